"""Fresh favors in LMDB: the gateways of a machine share a folder.

Every add is one transaction, synced: what it returned from outlives kill -9 and, as far as the disk keeps its word, a
power cut. Numbers are given within the transaction, so whoever reads a number has seen all below it.

LMDB gives freed pages to later writers with their content, and may hand pieces of it on into pages in use. So nothing
is ever deleted from a file: to forget somebody, those who stay are written to a new file, and the old one is
overwritten with zeros and removed; for a moment that takes room for both. What a file system or an SSD keeps of
overwritten blocks is beyond that.

``current`` names the file in force. A lock on ``lock`` (flock, gone with its process) is held by one writer, or by
readers; only who writes alone may put another file in force.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tastetwin.durable import fsync
from tastetwin.errors import MissingExtra, StoreError
from tastetwin.features.favors import Favors
from tastetwin.privacy.opt_out import name_of
from tastetwin.serving.gateway.fresh import FreshMetrics, FreshRecord, arrived_of, dump, grown, key_of, load
from tastetwin.serving.gateway.outputs import seal

try:
    import lmdb
except ImportError as error:
    raise MissingExtra.of("lmdb", "serve") from error

CURRENT: Final = "current"
_LOCK: Final = "lock"
_LAST: Final = b"last"
_TABLE: Final = 1 << 16
"""Bytes of the table of readers: room for a thousand transactions at once, of all processes."""
_NUMBER: Final = 8
"""Bytes of a number, big-endian, so that keys sort by it."""
_BLOCK: Final = 1 << 20
_DAMAGED: Final = (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError, lmdb.PageNotFoundError)
Keep = Callable[[bytes, float], bool]
"""By key and ``arrived``."""


@dataclass(frozen=True)
class _File:
    """An open file: key -> number and record, number -> key, and the last number given."""

    name: str
    env: Any
    records: Any
    numbers: Any

    @classmethod
    def open(cls, folder: Path, name: str, size: int) -> _File:
        """Open, or make, the file; under a lock."""
        _reserve(folder / name)
        env = lmdb.open(str(folder / name), map_size=size, max_dbs=2, mode=0o600, readahead=False)
        _reach(env, folder / name / "data.mdb")
        env.reader_check()  # one that was killed would keep pages from being used again
        return cls(name, env, env.open_db(b"records"), env.open_db(b"numbers"))

    def last(self, transaction: Any) -> int:
        return int.from_bytes(transaction.get(_LAST) or b"", "big")

    def put(self, transaction: Any, key: bytes, content: bytes) -> None:
        """Write a record; ``content``: its number and what ``dump`` gave."""
        transaction.put(key, seal(key, content), db=self.records)
        transaction.put(content[:_NUMBER], key, db=self.numbers)

    def beyond(self, transaction: Any, cursor: int) -> list[tuple[int, bytes, bytes | None]]:
        """(number, key, sealed record) in the order of numbers."""
        place = transaction.cursor(self.numbers)
        rows = place.iternext() if place.set_range(_number(cursor + 1)) else ()
        return [(int.from_bytes(at, "big"), key, transaction.get(key, db=self.records)) for at, key in rows]


class LmdbLog:
    """A folder that the processes of one machine share."""

    def __init__(self, folder: str | Path, size: int, metrics: FreshMetrics) -> None:
        """Open, or make, a log of at most ``size`` bytes.

        Raises:
            StoreError: STORE-UNWRITABLE, DISK-FULL, FRESH-DAMAGED.
        """
        self._folder, self._size, self._metrics = Path(folder), size, metrics
        self._file: _File | None = None
        self._opening = threading.Lock()
        with self._coded():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._locked(fcntl.LOCK_EX):
                if not (self._folder / CURRENT).exists():
                    _File.open(self._folder, "log-1", size).env.close()
                    self._point("log-1")
                    fsync(self._folder.parent)
                self._shred_others(self._current().name)

    # -- the contract -------------------------------------------------------------------------------------------------

    def add_many(self, came: Mapping[str, Favors], arrived: float) -> list[FreshRecord]:
        """As ``FreshLog`` says: one transaction, one sync."""
        with self._writing() as (file, transaction):
            records = [
                self._add(file, transaction, FreshRecord(user, new, arrived, number))
                for number, (user, new) in enumerate(came.items(), file.last(transaction) + 1)
            ]
            if records:
                transaction.put(_LAST, _number(records[-1].number))
        return records

    def _add(self, file: _File, transaction: Any, new: FreshRecord) -> FreshRecord:
        key = key_of(name_of(new.user))
        known = self._read(key, transaction.get(key, db=file.records))
        if known is not None:
            transaction.delete(_number(known.number), db=file.numbers)
        record = grown(known, new.user, new.favors, new.arrived, new.number)
        file.put(transaction, key, _number(record.number) + dump(record))
        return record

    def since(self, cursor: int) -> tuple[list[FreshRecord], int]:
        """As ``FreshLog`` says."""
        with self._reading() as (file, transaction):
            last, rows = file.last(transaction), file.beyond(transaction, cursor)
        found = ((number, self._read(key, sealed)) for number, key, sealed in rows)
        # A number that its record does not have was left behind when the record before was damaged.
        return [record for number, record in found if record is not None and record.number == number], last

    def remove(self, names: Collection[str]) -> None:
        """As ``FreshLog`` says; afterwards no file in the folder holds anything of theirs."""
        gone = {key_of(name) for name in names}
        with self._reading() as (file, transaction):
            known = any(transaction.get(key, db=file.records) is not None for key in gone)
        if known:
            self._rewrite(lambda key, _: key not in gone)

    def prune(self, before: float) -> None:
        """As ``FreshLog`` says; afterwards no file in the folder holds anything of what was dropped."""
        with self._reading() as (file, transaction):
            old = any(at < before for _, _, at in self._contents(file, transaction))
        if old:
            self._rewrite(lambda _, arrived: arrived >= before)

    def close(self) -> None:
        """As ``FreshLog`` says; waits for calls of other threads."""
        with self._coded(), self._locked(fcntl.LOCK_EX):
            if self._file is not None:
                self._file.env.close()
                self._file = None

    # -- files --------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _reading(self) -> Iterator[tuple[_File, Any]]:
        """The file in force, and a transaction in it."""
        with self._coded(), self._locked(fcntl.LOCK_SH):
            file = self._current()
            with file.env.begin() as transaction:
                yield file, transaction

    @contextlib.contextmanager
    def _writing(self) -> Iterator[tuple[_File, Any]]:
        """The same, to write: committed and synced at the end, by whoever writes alone."""
        with self._coded(), self._locked(fcntl.LOCK_EX):
            file = self._current()
            with file.env.begin(write=True) as transaction:
                yield file, transaction

    @contextlib.contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        descriptor = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, kind)
            yield
        finally:
            os.close(descriptor)

    def _current(self) -> _File:
        """The file in force; under a lock. Nobody uses the one before: its readers had to end first."""
        name = (self._folder / CURRENT).read_text()
        with self._opening:
            if self._file is None or self._file.name != name:
                if self._file is not None:
                    self._file.env.close()
                    self._file = None
                path = self._folder / name / "data.mdb"
                if not path.exists() or not path.stat().st_size:  # LMDB would begin anew
                    raise lmdb.InvalidError(f"{name} is missing or empty")
                self._file = _File.open(self._folder, name, self._size)
            return self._file

    def _rewrite(self, keep: Keep) -> None:
        """Put a file in force that has only the records to keep; those that cannot be read are not kept."""
        with self._coded(), self._locked(fcntl.LOCK_EX):
            old = self._current()
            self._shred_others(old.name)
            name = f"log-{int(old.name.removeprefix('log-')) + 1}"
            try:
                self._copy(old, name, keep)
            except (lmdb.Error, OSError):
                self._shred_others(old.name)  # it may be what the disk has no room for
                raise
            self._point(name)
            self._current()
            self._shred_others(name)

    def _copy(self, old: _File, name: str, keep: Keep) -> None:
        new = _File.open(self._folder, name, self._size)
        try:
            with old.env.begin() as source, new.env.begin(write=True) as target:
                target.put(_LAST, _number(old.last(source)))
                for key, content, arrived in self._contents(old, source):
                    if keep(key, arrived):
                        new.put(target, key, content)
        finally:
            new.env.close()

    def _point(self, name: str) -> None:
        """Put a file in force, once it is sure to be there after a power cut."""
        fsync(self._folder / name)
        aside = self._folder / f"{CURRENT}.new"
        with aside.open("w") as file:
            file.write(name)
            file.flush()
            os.fsync(file.fileno())
        fsync(self._folder)
        aside.replace(self._folder / CURRENT)
        fsync(self._folder)

    def _shred_others(self, name: str) -> None:
        """Remove files not in force, of this rewriting or of one that was broken off."""
        for folder in self._folder.glob("log-*"):
            if folder.name != name:
                _shred(folder / "data.mdb")
                shutil.rmtree(folder)

    # -- records ------------------------------------------------------------------------------------------------------

    def _contents(self, file: _File, transaction: Any) -> Iterator[tuple[bytes, bytes, float]]:
        """(key, number and record, when its last favor came) of all that can be read."""
        for key, sealed in transaction.cursor(file.records):
            content = self._metrics.unsealed(key, sealed)
            if content is not None:
                yield key, content, arrived_of(content[_NUMBER:])

    def _read(self, key: bytes, sealed: bytes | None) -> FreshRecord | None:
        """The record; None where there is none that can be read."""
        content = self._metrics.unsealed(key, sealed)
        return None if content is None else load(content[_NUMBER:], int.from_bytes(content[:_NUMBER], "big"))

    @contextlib.contextmanager
    def _coded(self) -> Iterator[None]:
        """Trouble of LMDB or the file system as a StoreError."""
        try:
            yield
        except (lmdb.Error, OSError) as error:
            code, rule, fix = _meaning(error, self._folder)
            raise StoreError(code, place=str(self._folder), value=str(error), rule=rule, fix=fix) from error


def _meaning(error: Exception, folder: Path) -> tuple[str, str, str]:
    """Code, rule and fix."""
    if isinstance(error, lmdb.MapFullError):
        return "FRESH-FULL", "room for the favors that come in", "raise gateway.fresh_mb, or publish a newer run"
    if isinstance(error, _DAMAGED):
        return "FRESH-DAMAGED", "a log of fresh favors, whole", "move the folder away; the next run has its favors"
    if _is_full(error, folder):
        return "DISK-FULL", "space is left", "free some space"
    return (
        "STORE-UNWRITABLE",
        "a folder on this machine's own disk that can be written, for fresh favors",
        "correct gateway.fresh or the folder's rights",
    )


def _is_full(error: Exception, folder: Path) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOSPC
    # Where a write is cut short as no space is left, LMDB tells of an input/output error.
    return isinstance(error, lmdb.DiskError) or shutil.disk_usage(folder).free < _BLOCK


def _number(number: int) -> bytes:
    return number.to_bytes(_NUMBER, "big")


def _reserve(folder: Path) -> None:
    """Give LMDB's table of readers its room on the disk: as it is mapped, a full disk would end the process."""
    folder.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(folder / "lock.mdb", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if os.fstat(descriptor).st_size < _TABLE:
            os.posix_fallocate(descriptor, 0, _TABLE)
    finally:
        os.close(descriptor)


def _reach(env: Any, path: Path) -> None:
    """Make the file as long as its map: a look past the end of one that was cut off would end the process."""
    expected = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    if path.stat().st_size < expected:
        os.truncate(path, expected)


def _shred(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
        left = path.stat().st_size
        while left:  # within the file's own size: it must work on a full disk
            left -= file.write(bytes(min(left, _BLOCK)))
        file.flush()
        os.fsync(file.fileno())
