"""Outputs in LMDB: all processes of a machine share a folder.

Two databases take turns. New values go into the young one; once it holds its share of the map, the old one is dropped
whole, which costs microseconds, and becomes the young one. Oldest first by an index of insertions found 5 % more
of Zipf-distributed keys and halved the rate of writes.

Nothing is synced, for it is a cache: after a crash of the machine the file may be anything. So every boot begins with
a folder of its own, and a process that dies, even by kill -9, harms nothing.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tastetwin.errors import MissingExtra, StoreError
from tastetwin.serving.gateway.outputs import OutputMetrics, seal, unseal

try:
    import lmdb
except ImportError as error:
    raise MissingExtra.of("lmdb", "serve") from error

SHARE: Final = 0.4
"""Of the map that the young database may take; the rest is for pages that readers still hold."""
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_GENERATIONS: Final = (b"0", b"1")
_YOUNG: Final = b"young"


class LmdbOutputs:
    """A folder that the processes of one machine share."""

    blocking = False

    def __init__(self, folder: str | Path, size: int, metrics: OutputMetrics) -> None:
        """Open, or make, a store of at most ``size`` bytes.

        Raises:
            StoreError: STORE-UNWRITABLE.
        """
        self._metrics = metrics
        try:
            self._env = _open(_of_this_boot(Path(folder)), size)
            self._databases = [self._env.open_db(name) for name in _GENERATIONS]
        except (OSError, lmdb.Error) as error:
            raise StoreError(
                "STORE-UNWRITABLE",
                place=str(folder),
                value=str(error),
                rule="a folder on this machine's own disk that can be written, for the prediction-output store",
                fix="correct gateway.outputs or the folder's rights; the folder can be removed at any time",
            ) from error
        self._pages = int(SHARE * self._env.info()["map_size"]) // self._env.stat()["psize"]

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """As ``Outputs`` says."""
        try:
            with self._env.begin() as transaction:
                young, old = self._by_age(transaction)
                return [unseal(key, transaction.get(key, db=young) or transaction.get(key, db=old)) for key in keys]
        except lmdb.Error:
            self._metrics.failed("get")
            return [None] * len(keys)

    def put(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        """As ``Outputs`` says."""
        try:
            with self._env.begin(write=True) as transaction:
                young = self._room(transaction)
                for key, value in pairs:
                    transaction.put(key, seal(key, value), db=young)
        except lmdb.Error:
            self._metrics.failed("put")
            self._relieve()

    def close(self) -> None:
        """As ``Outputs`` says."""
        self._env.close()

    def _by_age(self, transaction: Any) -> tuple[Any, Any]:
        at = transaction.get(_YOUNG) == _GENERATIONS[1]
        return self._databases[at], self._databases[not at]

    def _room(self, transaction: Any) -> Any:
        young, _ = self._by_age(transaction)
        taken = transaction.stat(young)
        full = taken["leaf_pages"] + taken["branch_pages"] + taken["overflow_pages"] >= self._pages
        return self._turn(transaction) if full else young

    def _turn(self, transaction: Any) -> Any:
        """Drop the old database; it is the young one now."""
        _, old = self._by_age(transaction)
        transaction.drop(old, delete=False)
        transaction.put(_YOUNG, _GENERATIONS[self._databases.index(old)])
        return old

    def _relieve(self) -> None:
        """After a write that failed, mostly for want of room: a reader that was killed may hold dropped pages."""
        with contextlib.suppress(lmdb.Error):
            self._env.reader_check()
            with self._env.begin(write=True) as transaction:
                self._turn(transaction)


def _of_this_boot(folder: Path) -> Path:
    """The folder of this boot; those of earlier ones are removed."""
    name = _BOOT.read_text().strip()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for other in folder.glob("boot-*"):
        if other.name != f"boot-{name}":
            shutil.rmtree(other, ignore_errors=True)
    return folder / f"boot-{name}"


def _open(folder: Path, size: int) -> Any:
    """The environment; made anew when it is damaged or larger than it may be."""
    try:
        env = _environment(folder, size)
        # A map that reaches past the end of its file would end the process at the first look there.
        expected = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
        if expected <= (folder / "data.mdb").stat().st_size and env.info()["map_size"] <= size:
            env.reader_check()
            return env
        env.close()
    except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    return _environment(folder, size)


def _environment(folder: Path, size: int) -> Any:
    folder.mkdir(mode=0o700, exist_ok=True)  # LMDB's own would have the mode of its files, which only root can enter
    return lmdb.open(
        str(folder), map_size=size, max_dbs=len(_GENERATIONS), sync=False, metasync=False, mode=0o600, readahead=False
    )
