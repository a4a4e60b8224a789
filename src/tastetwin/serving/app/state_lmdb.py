"""The app's state in an LMDB folder that the app's processes of one machine share. Written through to the disk.

An entry's key is its kind, the digest of whose list it is on, and the digest of who is on it; its value is a number
that grows with time, and the id. A second table has the two digests the other way round, so that somebody can be
removed from everybody's lists.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from tastetwin.errors import MissingExtra, StoreError
from tastetwin.serving.app.state import DROPS, KINDS, LIMIT, Kind, full

try:
    import lmdb
except ImportError as error:
    raise MissingExtra.of("lmdb", "serve") from error

MAP_BYTES: Final = 16 << 30
"""Room, at most; the file takes what is used."""
_DIGEST: Final = 16
_NUMBER: Final = 8
_LAST: Final = b"last"
T = TypeVar("T")


class LmdbState:
    """A folder."""

    def __init__(self, folder: Path) -> None:
        """Open, or make.

        Raises:
            StoreError: STATE-UNAVAILABLE.
        """
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._env = lmdb.open(str(folder), map_size=MAP_BYTES, max_dbs=3, mode=0o600)
            self._entries, self._holders, self._numbers = (
                self._env.open_db(name) for name in (b"entries", b"holders", b"numbers")
            )
            self._env.reader_check()
        except (OSError, lmdb.Error) as error:
            raise self._unavailable(error) from error

    def add(self, kind: Kind, user: str, other: str) -> None:
        """As ``State`` says."""
        self._write(lambda transaction: self._add(transaction, kind, user, other))

    def remove(self, kind: Kind, user: str, other: str) -> None:
        """As ``State`` says."""
        key = _entry(kind, digest(user), digest(other))
        self._write(lambda transaction: self._delete(transaction, key))

    def of(self, kind: Kind, user: str) -> list[str]:
        """As ``State`` says."""
        try:
            with self._env.begin() as transaction:
                values = [value for _, value in self._list(transaction, kind, digest(user))]
        except lmdb.Error as error:
            raise self._unavailable(error) from error
        return [value[_NUMBER:].decode() for value in sorted(values, reverse=True)]

    def forget(self, user: str) -> None:
        """As ``State`` says."""
        self._write(lambda transaction: self._forget(transaction, digest(user)))

    def close(self) -> None:
        """As ``State`` says."""
        self._env.close()

    def _add(self, transaction: Any, kind: Kind, user: str, other: str) -> None:
        mine, theirs = digest(user), digest(other)
        key = _entry(kind, mine, theirs)
        if transaction.get(key, db=self._entries) is not None:
            return
        there = list(self._list(transaction, kind, mine))
        if len(there) >= LIMIT:
            if not DROPS[kind]:
                raise full(kind)
            self._delete(transaction, min(there, key=lambda entry: entry[1])[0])
        number = int.from_bytes(transaction.get(_LAST, b"", db=self._numbers)) + 1
        transaction.put(_LAST, number.to_bytes(_NUMBER), db=self._numbers)
        transaction.put(key, number.to_bytes(_NUMBER) + other.encode(), db=self._entries)
        transaction.put(_entry(kind, theirs, mine), b"", db=self._holders)

    def _forget(self, transaction: Any, who: bytes) -> None:
        for kind in KINDS:
            for key, _ in list(self._list(transaction, kind, who)):
                self._delete(transaction, key)
            for key, _ in list(self._list(transaction, kind, who, self._holders)):
                self._delete(transaction, _turned(key))

    def _delete(self, transaction: Any, key: bytes) -> None:
        transaction.delete(key, db=self._entries)
        transaction.delete(_turned(key), db=self._holders)

    def _list(self, transaction: Any, kind: Kind, who: bytes, table: Any = None) -> Iterator[tuple[bytes, bytes]]:
        prefix = kind[:1].encode() + who
        cursor = transaction.cursor(table or self._entries)
        found = cursor.set_range(prefix)
        while found and cursor.key().startswith(prefix):
            yield cursor.key(), cursor.value()
            found = cursor.next()

    def _write(self, change: Callable[[Any], None]) -> None:
        try:
            with self._env.begin(write=True) as transaction:
                change(transaction)
        except lmdb.Error as error:
            with suppress(lmdb.Error):
                self._env.reader_check()
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> StoreError:
        return StoreError(
            "STATE-UNAVAILABLE",
            place=str(self._folder),
            value=str(error),
            rule="a folder on this machine's own disk that can be written, for the app's state",
            fix="correct app.state or the folder's rights; bring back a good copy of a damaged one",
        )


def digest(user: str) -> bytes:
    """Of an id, which may be longer than a key of LMDB."""
    return hashlib.blake2b(user.encode(), digest_size=_DIGEST).digest()


def _entry(kind: Kind, first: bytes, second: bytes) -> bytes:
    return kind[:1].encode() + first + second


def _turned(key: bytes) -> bytes:
    """The key of the same two in the other table."""
    return key[:1] + key[1 + _DIGEST :] + key[1 : 1 + _DIGEST]
