"""Who is to be shown to nobody, and who was forgotten: an empty file for each, named by a hash of the id.

Nothing is read, changed and written back, so of two requests at once neither is lost, on any kind of store; asking
twice is asking once, and a request holds as soon as its file is there. The hash keeps ids out of listings and backups;
who can guess ids can still tell whether one is among them, so the folder is as private as the store.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tastetwin.errors import StoreError, UsageError
from tastetwin.generations import fingerprint
from tastetwin.store import Store, is_aside

FOLDER: Final = "privacy/opted_out"
FORGOTTEN: Final = "privacy/forgotten"
"""The deny set: whoever is in it has opted out as well, and nothing of theirs is taken in again."""
NAME_LENGTH: Final = 32
"""Hex digits of the SHA-256 of an id that name its file."""
_SETTLED: Final = 2_000_000_000
"""Nanoseconds after which a folder's time of change can be trusted to tell changes apart."""
_SHARD: Final = 2
"""Hex digits of a name that name the folder it lies in: 256 folders, so that none holds millions."""


@dataclass(frozen=True)
class OptOuts:
    """People, by the hashes of their ids: everybody who has opted out, or was forgotten, as of one moment."""

    names: frozenset[str] = frozenset()
    """Hashes of their ids."""

    def of(self, ids: Iterable[object]) -> npt.NDArray[np.bool_]:
        """[n] whether each of the given user ids is one of them."""
        if not self.names:
            return np.zeros(sum(1 for _ in ids), bool)
        return np.fromiter((name_of(user) in self.names for user in ids), bool)

    def without(self, table: pa.Table, *columns: str) -> pa.Table:
        """The rows in whose ``columns`` of user ids is none of them."""
        for column in columns if self.names else ():
            distinct = pc.unique(table.column(column))
            hidden = distinct.filter(pa.array(self.of(distinct.to_pylist())))
            if len(hidden):
                table = table.filter(pc.invert(pc.is_in(table.column(column), value_set=hidden)))
        return table

    def digest(self) -> str:
        """Fingerprint; the same for the same people."""
        return fingerprint(sorted(self.names))


def read_opt_outs(store: Store) -> OptOuts:
    """Everybody who has opted out now.

    Raises:
        StoreError: OPT-OUTS-DAMAGED when something lies there that is no opt-out; STORE-UNREADABLE; NO-STORE when the
            store is no longer there. Whoever cannot know must show nobody.
    """
    return OptOuts(_read(store, FOLDER))


def read_forgotten(store: Store) -> OptOuts:
    """Everybody who was forgotten.

    Raises:
        StoreError: as ``read_opt_outs``. Whoever cannot know must take nothing in.
    """
    return OptOuts(_read(store, FORGOTTEN))


class OptOutWatch:
    """Reads again and again who has opted out. On a local store only folders that have changed are listed: a look every
    second costs the same whether a hundred people have opted out or a million."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, tuple[int, frozenset[str]]] = {}

    def read(self) -> OptOuts:
        """Everybody who has opted out now.

        Raises:
            StoreError: as ``read_opt_outs``.
        """
        if not self._store.is_local:
            return read_opt_outs(self._store)
        shards = self._store.names(FOLDER)
        for shard in set(self._known) - set(shards):
            del self._known[shard]
        found = frozenset().union(*(self._shard(shard) for shard in shards))
        self._store.require()  # last: no folder at all is nobody only in a store that is there
        return OptOuts(found)

    def _shard(self, shard: str) -> frozenset[str]:
        try:
            changed = Path(self._store.path(f"{FOLDER}/{shard}")).stat().st_mtime_ns
        except OSError:
            return _in_shard(self._store, FOLDER, shard)  # says why it cannot be looked at
        known = self._known.get(shard)
        if known is not None and known[0] == changed:
            return known[1]
        names = _in_shard(self._store, FOLDER, shard)
        # A change in the very moment of an earlier one leaves no trace in the clock of the file system.
        if time.time_ns() - changed > _SETTLED:
            self._known[shard] = (changed, names)
        return names


def _read(store: Store, folder: str) -> frozenset[str]:
    found = frozenset().union(*(_in_shard(store, folder, shard) for shard in store.names(folder)))
    store.require()
    return found


def _in_shard(store: Store, folder: str, shard: str) -> frozenset[str]:
    # An unfinished file is of a request whose process was killed: nobody was told that it holds.
    found = frozenset(name for name in store.names(f"{folder}/{shard}") if not is_aside(name))
    for name in found:
        if name[:_SHARD] != shard or len(name) != NAME_LENGTH or set(name) - set("0123456789abcdef"):
            raise StoreError(
                "OPT-OUTS-DAMAGED",
                place=store.path(f"{folder}/{shard}/{name}"),
                value=name,
                rule=f"a file named by {NAME_LENGTH} hex digits in the folder of its first {_SHARD}",
                fix="move it away; if names were lost, restore the folder before the next run",
            )
    return found


def is_opted_out(store: Store, user: str) -> bool:
    """Whether one user has opted out now.

    Raises:
        StoreError: STORE-UNREADABLE.
    """
    return store.exists(_path(FOLDER, user))


def opt_out(store: Store, users: Iterable[str]) -> None:
    """Show these users to nobody from now on; whether they are known does not matter.

    Raises:
        StoreError: STORE-UNWRITABLE, DISK-FULL; those before it have opted out. NO-STORE: nobody has; what is written
            where the store was would be hidden when it is back.
    """
    store.require()
    for user in users:
        store.write_bytes(_path(FOLDER, user), b"")


def deny(store: Store, users: Iterable[str]) -> None:
    """Show these users to nobody and take nothing of theirs in from now on.

    Raises:
        StoreError: STORE-UNWRITABLE, DISK-FULL; some of them may be in already.
    """
    for user in users:
        opt_out(store, [user])
        store.write_bytes(_path(FORGOTTEN, user), b"")


def opt_in(store: Store, users: Iterable[str]) -> None:
    """Show these users again, from the next run on.

    Raises:
        UsageError: FORGOTTEN when one of them was forgotten; nobody is opted in then.
        StoreError: STORE-UNWRITABLE.
    """
    named = list(users)
    for user in named:
        if store.exists(_path(FORGOTTEN, user)):
            raise UsageError(
                "FORGOTTEN",
                place=f"user {user}",
                value="was forgotten",
                rule="an opt-in does not undo that",
                fix=f"remove {store.path(_path(FORGOTTEN, user))} first, if the source may bring them back",
            )
    for user in named:
        store.remove(_path(FOLDER, user))


def _path(folder: str, user: str) -> str:
    name = name_of(user)
    return f"{folder}/{name[:_SHARD]}/{name}"


def name_of(user: object) -> str:
    """What a user's file is called."""
    # Lone surrogates are legal in a Python string, and whoever has one in the id may opt out too.
    # SHA-256 (FIPS 180-4), since DuckDB knows it as well.
    return hashlib.sha256(str(user).encode("utf-8", "surrogatepass")).hexdigest()[:NAME_LENGTH]
