"""Files of generations without some people: written anew under other names, manifest by manifest, the old ones removed.

A generation never changes for who reads it, so nothing is written in place: the new files lie in ``erased-<digest>``
beside the old ones, one atomic replacement of the manifest leads to them, and what no manifest leads to any more goes.
Struck anywhere, the same work done again finds the rest of it. Names within the folder stay, since a bucket is known by
its name.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tastetwin.analysis.rows import ranked_anew
from tastetwin.delivery.load import without_users
from tastetwin.generations import (
    FOLDERS,
    MANIFEST,
    FileEntry,
    Manifest,
    Stage,
    entry_of,
    finish,
    is_finished,
    read_manifest,
)
from tastetwin.privacy.mentions import mentions
from tastetwin.privacy.opt_out import OptOuts, name_of
from tastetwin.privacy.screen import Screen
from tastetwin.schema import OTHER, USER, Kind
from tastetwin.store import Store
from tastetwin.tables import put_table

Users = Sequence[str]
Cut = tuple[pa.Table, int]
"""What is left of a table, and how many rows, or entries of lists, are not."""

_SURROGATES: Final = re.compile("[\ud800-\udfff]")
_MOVED: Final = re.compile(r"([^/]+/[^/]+)/(?:erased-[0-9a-f]+/)?(.+)")


@dataclass(frozen=True)
class Found:
    """What one place holds of some people, and how to be rid of it."""

    place: str
    searched: int
    """Files looked through."""
    found: int
    """Lines, rows, list entries and texts that are about them or name them."""
    rewrites: int
    """Files to be written without them."""
    removes: int
    """Files to be removed: those that no manifest leads to, and those that cannot be told apart."""
    remains: str
    """What stays, and until when; "" for nothing."""
    erase: Callable[[], None]
    """Does it; done twice it is done once."""


def people_of(users: Users) -> OptOuts:
    """The same by the hashes of their ids."""
    return OptOuts(frozenset(name_of(user) for user in users))


# -- tables ------------------------------------------------------------------------------------------------------------


def _rows(table: pa.Table, users: Users, columns: tuple[str, ...] = (USER,)) -> Cut:
    gone = np.zeros(table.num_rows, bool)
    for column in columns:
        gone |= _is_one_of(table.column(column), users)
    return table.filter(pa.array(~gone)), int(gone.sum())


def _is_one_of(ids: pa.Array | pa.ChunkedArray, users: Users) -> npt.NDArray[np.bool_]:
    return np.array(pc.is_in(ids, value_set=_ids(users)), bool)


def _ids(users: Users) -> pa.Array:
    return pa.array([user for user in users if not _SURROGATES.search(user)], pa.string())  # the gate lets none in


_pairs = partial(_rows, columns=(USER, OTHER))


def _exposure(table: pa.Table, users: Users) -> Cut:
    """Who was hidden because of one of them is hidden without saying because of whom."""
    kept, gone = _rows(table, users)
    instead = kept.column("instead_idno").combine_chunks()
    named = _is_one_of(instead, users)
    field = kept.schema.field("instead_idno")
    hidden = pc.if_else(pa.array(named), pa.scalar(None, pa.string()), instead)
    return kept.set_column(kept.schema.get_field_index(field.name), field, hidden), gone + int(named.sum())


def _twins(table: pa.Table, users: Users) -> Cut:
    kept, gone = _rows(table, users, (USER, "twin_idno"))
    return ranked_anew(kept), gone


def _result(table: pa.Table, users: Users) -> Cut:
    kept, gone = _rows(table, users, ("idno",))
    cleaned = without_users(kept, _ids(users))
    before, after = (len(pc.list_flatten(pc.struct_field(each.column("payload"), "twins"))) for each in (kept, cleaned))
    return cleaned, gone + before - after


def _quarantine(table: pa.Table, users: Users) -> Cut:
    people = people_of(users)
    stay = [not mentions(text, people) for text in table.column("excerpt").to_pylist()]
    return table.filter(pa.array(stay, pa.bool_())), len(stay) - sum(stay)


TABLES: Final[dict[str, Callable[[pa.Table, Users], Cut]]] = {
    "reviews": _rows,
    "likes": _rows,
    "follows": _pairs,
    "blocks": _pairs,
    "not_shown": _pairs,
    "exposure": _exposure,
    "quarantine": _quarantine,
    "user_favor": _rows,
    "history": _rows,
    "vectors": _rows,
    "twins": _twins,
    "result": _result,
}
"""The tables that speak of users; a test knows the others."""


# -- generations -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    """One file of finished generations, which may share it."""

    stage: Stage
    table: str
    entry: FileEntry

    @property
    def kind(self) -> Kind:
        """What the lines of a file of the lake are."""
        return cast("Kind", self.table)

    def count(self, store: Store, users: Users) -> int:
        """What it holds of these users."""
        if self.stage == "collect":
            screen = Screen(people_of(users))
            deque(screen.lines(store.open_read(self.entry.path), self.entry.path, self.kind), maxlen=0)
            return screen.held_back
        return self._cut(store, users)[1] if self.table in TABLES else 0

    def rewritten(self, store: Store, users: Users) -> FileEntry:
        """The same without them, in another file."""
        match = _MOVED.fullmatch(self.entry.path)
        assert match is not None
        target = f"{match[1]}/erased-{people_of(users).digest()[:12]}/{match[2]}"
        if self.stage != "collect":
            return put_table(store, target, self._cut(store, users)[0])
        with store.open_write(target) as sink:
            Screen(people_of(users)).copy(store.open_read(self.entry.path), sink, target, self.kind)
        return entry_of(store, target)

    def _cut(self, store: Store, users: Users) -> Cut:
        rows = pq.read_table(store.path(self.entry.path), filesystem=store.arrow)
        return TABLES[self.table](rows, users)


def look_in(stage: Stage, remains: str, store: Store, users: Users) -> Found:
    """What the generations of a stage hold of these users; ``remains`` may name the ``{generations}``."""
    manifests = _finished(store, stage)
    files = {
        entry.path: _File(stage, table.split("/")[0], entry)
        for manifest in manifests
        for table, entries in manifest.tables.items()
        for entry in entries
    }
    counts = {path: count for path, file in files.items() if (count := file.count(store, users))}
    erase = partial(_erase, store, stage, [files[path] for path in counts], users)
    stray = len(_stray(store, stage))
    said = remains.format(generations=", ".join(each.generation for each in manifests) or "none")
    return Found(FOLDERS[stage], len(files), sum(counts.values()), len(counts), stray, said, erase)


def _erase(store: Store, stage: Stage, hits: list[_File], users: Users) -> None:
    new = {file.entry.path: file.rewritten(store, users) for file in hits}
    for manifest in _finished(store, stage):
        tables = {name: [new.get(each.path, each) for each in files] for name, files in manifest.tables.items()}
        if tables != manifest.tables:
            finish(store, replace(manifest, tables=tables))
    for path in _stray(store, stage):
        store.remove(path)


def _finished(store: Store, stage: Stage) -> list[Manifest]:
    names = [name for name in store.names(FOLDERS[stage]) if is_finished(store, stage, name)]
    return [read_manifest(store, stage, name) for name in names]


def _stray(store: Store, stage: Stage) -> list[str]:
    """Files that no finished generation leads to: of killed processes, and those written anew."""
    manifests = _finished(store, stage)
    led_to = {entry.path for each in manifests for entries in each.tables.values() for entry in entries}
    own = {f"{manifest.folder}/{MANIFEST}" for manifest in manifests}
    return [path for path in store.files(FOLDERS[stage]) if path not in led_to | own]
