"""Generations: the immutable output of one stage, and its manifest.

A generation is a folder whose ``manifest.json`` is written last, so a folder without one does not exist for any reader.
Its id is the logical date plus a fingerprint of everything that went in (the parents' contents, the settings, the code
version): the same inputs lead to the same id, which is how a re-run finds finished work and how a crashed run goes on.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

import orjson

from tastetwin import __version__
from tastetwin.errors import StoreError
from tastetwin.provenance import made_with
from tastetwin.store import Store

Stage = Literal["collect", "mart", "features", "train", "analyze", "evaluate", "deliver"]
STAGES: Final[tuple[Stage, ...]] = ("collect", "mart", "features", "train", "analyze", "evaluate", "deliver")
FOLDERS: Final[dict[Stage, str]] = {
    "collect": "lake",
    "mart": "mart",
    "features": "features",
    "train": "bundles",
    "analyze": "analysis",
    "evaluate": "evaluation",
    "deliver": "results",
}
MANIFEST: Final = "manifest.json"


@dataclass(frozen=True)
class FileEntry:
    """One file of a generation; ``path`` is relative to the store's root."""

    path: str
    bytes: int
    sha256: str


Made = tuple[dict[str, list[FileEntry]], dict[str, Any]]
"""Tables and facts of a generation."""


@dataclass(frozen=True)
class Manifest:
    """What a generation holds and what it was made from.

    Holds no clock time: the same inputs, code and kind of machine give the same bytes.
    """

    stage: Stage
    generation: str
    logical_date: str
    parents: dict[str, str]
    """Stage (or role) -> generation id."""
    settings: dict[str, Any]
    tables: dict[str, list[FileEntry]]
    """Table -> its files; a table may keep files of an earlier generation."""
    facts: dict[str, Any]
    """Counts and notes that the stage states about its output; small JSON."""
    code_version: str = __version__
    format: int = 1
    provenance: dict[str, Any] = field(default_factory=dict)
    """``parents``: role -> digest of its contents; ``code``, ``libraries``, ``machine``: see ``provenance.made_with``.
    Empty in generations of earlier versions."""

    @property
    def folder(self) -> str:
        """The generation's folder, relative to the store's root."""
        return f"{FOLDERS[self.stage]}/{self.generation}"

    def digest(self) -> str:
        """Fingerprint of the contents (not of how they came about)."""
        return fingerprint(sorted((table, entry.sha256) for table, files in self.tables.items() for entry in files))

    def paths(self, table: str) -> list[str]:
        """Files of a table, all of its partitions (``table/partition``), relative to the store's root."""
        return [entry.path for key in sorted(self.tables) if key.split("/")[0] == table for entry in self.tables[key]]


@dataclass(frozen=True)
class Plan:
    """A generation to be made: all that decides what will be in it, besides the code."""

    stage: Stage
    logical_date: str
    parents: dict[str, Manifest | None]
    """Stage (or role) -> what it is made from; None where there is no such thing yet."""
    settings: dict[str, Any]

    def inputs(self) -> dict[str, Any]:
        """What the generation's id is a fingerprint of."""
        parents = {role: parent and parent.digest() for role, parent in self.parents.items()}
        return {"parents": parents, "settings": self.settings}

    def manifest(self, generation: str, made: Made) -> Manifest:
        """The record of what was made."""
        parents = {role: parent.generation for role, parent in self.parents.items() if parent is not None}
        tables, facts = made
        return Manifest(
            self.stage,
            generation,
            self.logical_date,
            parents,
            self.settings,
            tables,
            facts,
            provenance={"parents": self.inputs()["parents"], **made_with()},
        )


def fingerprint(value: Any) -> str:
    """Hex SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()


def generation_id(day: str, stage: Stage, inputs: dict[str, Any]) -> str:
    """``<date>-<12 hex>`` over the stage, its inputs and the code version."""
    return f"{day}-{fingerprint([stage, day, inputs, __version__])[:12]}"


def begin(store: Store, stage: Stage, day: str, inputs: dict[str, Any], *, again: bool) -> tuple[str, Manifest | None]:
    """The generation id for these inputs and, where that work is already finished, its manifest.

    With ``again``, or where files of it were pruned with another generation, finished work is left as it is and made
    once more under a numbered id (``...-2``).
    """
    base = generation_id(day, stage, inputs)
    for number in itertools.count(1):
        generation = base if number == 1 else f"{base}-{number}"
        if not is_finished(store, stage, generation):
            return generation, None
        if not again and is_whole(store, manifest := read_manifest(store, stage, generation)):
            return generation, manifest
    raise AssertionError("unreachable")


def make(store: Store, plan: Plan, work: Callable[[str], Made], *, again: bool = False) -> Manifest:
    """The generation of a plan: found finished, or made by ``work`` in an empty folder, whose path it is given.

    ``work`` makes tables and facts from the folder's path, relative to the store's root. With ``again`` it is made once
    more even if it is finished.
    """
    generation, finished = begin(store, plan.stage, plan.logical_date, plan.inputs(), again=again)
    if finished is not None:
        return finished
    folder = f"{FOLDERS[plan.stage]}/{generation}"
    store.remove(folder)
    store.make_folder(folder)
    return finish(store, plan.manifest(generation, work(folder)))


def read_manifest(store: Store, stage: Stage, generation: str) -> Manifest:
    """A finished generation's manifest.

    Raises:
        StoreError: NO-GENERATION when it is absent or unfinished; DAMAGED when it cannot be read.
    """
    relative = f"{FOLDERS[stage]}/{generation}/{MANIFEST}"
    if not store.exists(relative):
        raise StoreError(
            "NO-GENERATION",
            place=store.path(relative),
            value=generation,
            rule="the generation is finished and still kept",
            fix=f"run '{stage}' again for that date",
        )
    raw = store.read_json(relative)
    try:
        tables = {name: [FileEntry(**entry) for entry in entries] for name, entries in raw.pop("tables").items()}
        return Manifest(tables=tables, **raw)
    except (KeyError, TypeError, AttributeError) as error:
        raise store.damaged(relative, str(error)) from error


def is_finished(store: Store, stage: Stage, generation: str) -> bool:
    """Whether that generation exists for readers."""
    return store.exists(f"{FOLDERS[stage]}/{generation}/{MANIFEST}")


def is_whole(store: Store, manifest: Manifest) -> bool:
    """Whether all of its files are there; some may be an earlier generation's, and pruned with that."""
    return all(store.exists(entry.path) for entries in manifest.tables.values() for entry in entries)


def entry_of(store: Store, relative: str) -> FileEntry:
    """Size and hash of a file just written."""
    return FileEntry(relative, store.size(relative), store.sha256(relative))


def finish(store: Store, manifest: Manifest) -> Manifest:
    """Make a generation exist: all of its files durable first, the manifest last."""
    store.sync(manifest.folder)
    store.write_json(f"{manifest.folder}/{MANIFEST}", asdict(manifest))
    return manifest


def verify(store: Store, manifest: Manifest, tables: Iterable[str] | None = None) -> None:
    """Compare files with the manifest's hashes.

    Raises:
        StoreError: DAMAGED for the first file that differs or is absent.
    """
    for table in manifest.tables if tables is None else tables:
        for entry in manifest.tables[table]:
            found = store.sha256(entry.path) if store.exists(entry.path) else "absent"
            if found != entry.sha256:
                raise store.damaged(entry.path, f"sha256 {found}, manifest says {entry.sha256}")
