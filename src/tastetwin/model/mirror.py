"""Checkpoints on a store that is no folder of this machine: written here, copied there, fetched back at the start."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path

from tastetwin.errors import StoreError
from tastetwin.model.files import CHECKPOINT
from tastetwin.store import Store, is_aside


class Mirror:
    """The checkpoints of one training in ``folder`` of a store, kept equal to those in ``local``.

    The pointer is copied after the tensors that it names and before the older ones go, so that the store, like the
    folder, holds the old checkpoint or the new one whenever the training is killed.
    """

    def __init__(self, store: Store, folder: str, local: Path) -> None:
        """Fetch what an earlier attempt left there.

        Raises:
            StoreError: STORE-UNREADABLE.
        """
        self.store, self.folder, self.local = store, folder, local
        for name in store.names(folder):
            if not is_aside(name):
                with store.open_read(f"{folder}/{name}") as source, (local / name).open("wb") as target:
                    shutil.copyfileobj(source, target, 4 << 20)
        self._copied = self._written_at()

    def update(self) -> None:
        """Copy the local checkpoint if it is a new one.

        Raises:
            StoreError: STORE-UNWRITABLE, DISK-FULL.
        """
        written_at = self._written_at()
        if written_at == self._copied:
            return
        tensors = [path for path in self.local.iterdir() if path.suffix == ".safetensors"]
        for path in (*tensors, self.local / CHECKPOINT):
            with path.open("rb") as source, self.store.open_write(f"{self.folder}/{path.name}") as target:
                shutil.copyfileobj(source, target, 4 << 20)
        for name in set(self.store.names(self.folder)) - {CHECKPOINT, *(path.name for path in tensors)}:
            self.store.remove(f"{self.folder}/{name}")
        self._copied = written_at

    def placed(self, error: StoreError) -> StoreError:
        """An error of the local folder, which is gone when it is read, as one of the store's."""
        place = error.problem.place.replace(str(self.local), self.store.url(self.folder))
        return StoreError(**asdict(replace(error.problem, place=place)))

    def _written_at(self) -> int:
        pointer = self.local / CHECKPOINT
        return pointer.stat().st_mtime_ns if pointer.exists() else 0
