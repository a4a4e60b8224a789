"""Finished linear fits of a training in progress, kept beside its checkpoint: most of what a training costs.

Arrays in safetensors, one file a fit; which of them are to be believed, and whose, is in one JSON file written after
each. A file whose bytes are not those, or a fit of other data, config or code, is as good as none.
"""

from __future__ import annotations

import hashlib
from threading import Lock
from typing import Any, Final

import numpy as np
import orjson
from safetensors.numpy import load, save

from tastetwin.model.workers import Arrays
from tastetwin.store import Store

KEPT: Final = "fits.json"
FILE: Final = "{name}.safetensors"


class Fits:
    """What is finished, by name; keeps nothing without a store."""

    def __init__(self, store: Store | None = None, identity: dict[str, Any] | None = None) -> None:
        """``identity`` as of the checkpoint. Raises ``StoreError`` STORE-UNREADABLE."""
        self._store, self._identity, self._lock = store, identity, Lock()
        self._digests = self._told(store) if store is not None else {}

    def read(self, name: str) -> Arrays | None:
        """The arrays kept under a name; None without, or if they are damaged.

        Raises:
            StoreError: STORE-UNREADABLE.
        """
        if self._store is None or name not in self._digests:
            return None
        try:
            data = self._store.read_bytes(FILE.format(name=name))
        except FileNotFoundError:
            return None
        if hashlib.sha256(data).hexdigest() != self._digests[name]:
            return None
        return {key: array.copy() for key, array in load(data).items()}  # torch wants to own what it is given

    def keep(self, name: str, arrays: Arrays) -> None:
        """Keep arrays under a name; any thread may. Killed at any moment, they are kept whole or not at all.

        Raises:
            StoreError: DISK-FULL or STORE-UNWRITABLE.
        """
        if self._store is None:
            return
        data = save({key: np.asarray(array, order="C") for key, array in arrays.items()})
        with self._lock:
            self._store.write_bytes(FILE.format(name=name), data)
            self._digests[name] = hashlib.sha256(data).hexdigest()
            self._store.write_json(KEPT, {"identity": self._identity, "sha256": self._digests})

    def _told(self, store: Store) -> dict[str, str]:
        try:
            content = orjson.loads(store.read_bytes(KEPT))
            return dict(content["sha256"]) if content["identity"] == self._identity else {}
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return {}
