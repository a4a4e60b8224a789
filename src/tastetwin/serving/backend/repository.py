"""The loaded versions of the one model: load, unload, choose; a load that fails leaves everything as it was."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from tastetwin.config import BackendConfig
from tastetwin.errors import UsageError
from tastetwin.generations import is_finished
from tastetwin.serving.backend.metrics import Metrics
from tastetwin.serving.backend.model import Model, open_model
from tastetwin.serving.backend.refusals import unknown_model
from tastetwin.store import Store

NAME: Final = "taste"
VERSION: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}-[0-9a-f]{12}(-[0-9]{1,6})?")
"""How a bundle's id is spelled; nothing else ever becomes part of a path."""


@dataclass(eq=False)
class Loaded:
    """A version, and how many requests use it now."""

    model: Model
    number: int
    in_use: int = 0
    unused: asyncio.Event = field(default_factory=asyncio.Event)
    is_leaving: bool = False


class Repository:
    """Versions by id; lives on one event loop."""

    def __init__(self, store: Store, config: BackendConfig, metrics: Metrics, tell: Callable[[str], None]) -> None:
        """Start with none; ``tell`` hears of loads and unloads."""
        self._store, self._config, self._metrics, self._tell = store, config, metrics, tell
        self._loaded: dict[str, Loaded] = {}
        self._count = 0
        self._lock = asyncio.Lock()

    async def load(self, version: str) -> None:
        """Make a bundle of the store answer requests; one that does already stays as it is.

        Raises:
            UsageError: BAD-VERSION, NO-PROVIDER.
            StoreError: NO-GENERATION, DAMAGED, BAD-MODEL.
        """
        _check_version(version)
        async with self._lock:
            if version in self._loaded:
                return
            model = await asyncio.to_thread(open_model, self._store, version, self._config)
            self._count += 1
            self._loaded[version] = Loaded(model, self._count)
            self._metrics.models.set(len(self._loaded))
            self._tell(f"loaded {version}")

    async def unload(self, version: str) -> None:
        """Take no more requests for a version, wait for those in progress, let go of it.

        Raises:
            UsageError: UNKNOWN-MODEL when it is not loaded.
        """
        async with self._lock:
            leaving = self._loaded.pop(version, None)
            if leaving is None:
                raise unknown_model(NAME, version)
            self._metrics.models.set(len(self._loaded))
        if leaving.in_use:
            leaving.is_leaving = True
            await leaving.unused.wait()
        self._tell(f"unloaded {version}")

    def get(self, name: str, version: str = "") -> Loaded:
        """A loaded version; without one, the newest by its bundle's date, then by when it was loaded.

        Raises:
            UsageError: UNKNOWN-MODEL.
        """
        found = self._loaded.get(version) if version else self._newest()
        if name != NAME or found is None:
            raise unknown_model(name, version)
        return found

    @contextmanager
    def using(self, name: str, version: str) -> Iterator[Model]:
        """A loaded version that stays until the block ends.

        Raises:
            UsageError: UNKNOWN-MODEL.
        """
        loaded = self.get(name, version)
        loaded.in_use += 1
        try:
            yield loaded.model
        finally:
            loaded.in_use -= 1
            if loaded.is_leaving and not loaded.in_use:
                loaded.unused.set()

    def versions(self) -> list[str]:
        """Loaded versions, newest first."""
        return sorted(self._loaded, key=lambda version: self._age(self._loaded[version]), reverse=True)

    def index(self) -> list[dict[str, str]]:
        """Every bundle of the store and whether it is loaded, as the model repository extension has it."""
        kept = [name for name in self._store.names("bundles") if VERSION.fullmatch(name)]
        known = sorted({*self._loaded, *(name for name in kept if is_finished(self._store, "train", name))})
        return [
            {"name": NAME, "version": version, "state": "READY" if version in self._loaded else "UNAVAILABLE"}
            for version in known
        ]

    def _newest(self) -> Loaded | None:
        return max(self._loaded.values(), key=self._age, default=None)

    @staticmethod
    def _age(loaded: Loaded) -> tuple[str, int]:
        return loaded.model.logical_date, loaded.number


def _check_version(version: str) -> None:
    if not VERSION.fullmatch(version):
        raise UsageError(
            "BAD-VERSION",
            place="version",
            value=version[:100],
            rule="a bundle's id: date, and 12 hexadecimal digits, such as 2026-11-22-3f9a0c12ab34",
            fix="see the folder bundles of the store",
        )
