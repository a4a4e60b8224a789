"""The collect stage: land the raw events of one logical day in the lake, bytes as they came.

The lake holds ``lake/<generation>/<kind>/<file>``. A generation is named after what the source showed when it was
looked at, so an unchanged source finds its finished work, and an attempt after a crash goes on with the same folder.
"""

from __future__ import annotations

from datetime import date
from typing import Any, Protocol

from tastetwin.config import CollectConfig
from tastetwin.generations import FOLDERS, FileEntry, Manifest, begin, finish
from tastetwin.privacy.opt_out import read_forgotten
from tastetwin.privacy.screen import Screen
from tastetwin.progress import Progress, silent
from tastetwin.sources.files import Folder
from tastetwin.store import Store, is_aside


class Source(Protocol):
    """Where raw events come from."""

    @property
    def name(self) -> str:
        """Fit for manifests and messages: without credentials."""

    @property
    def ignored(self) -> list[str]:
        """What is there and not ours."""

    @property
    def inputs(self) -> dict[str, Any]:
        """What tells this source, in its present state, from another; no credentials."""

    def land(
        self, store: Store, folder: str, progress: Progress, screen: Screen | None = None
    ) -> dict[str, list[FileEntry]]:
        """Kind -> files now in the lake, ascending by name; goes on where an earlier attempt stopped."""


def collect(
    store: Store,
    source: str,
    day: date,
    *,
    again: bool = False,
    config: CollectConfig,
    progress: Progress = silent,
) -> Manifest:
    """Land ``source`` (a folder, an fsspec URL or a ``mongodb://`` address) as the events of ``day``.

    The manifest's tables are keyed by kind (``reviews``, ``likes``, ``places``), present kinds only; facts: ``source``,
    ``files`` and ``bytes`` per kind, ``ignored`` (the first 100 names of what was there and is not ours). Memory does
    not depend on the size of the source. Progress counts bytes (folders) or documents (MongoDB). Lines of users
    who were forgotten are not landed; fact ``counts.held_back`` says how many this attempt left out.

    Raises:
        InputError: the source cannot be used (SOURCE-..., NO-SOURCE, MONGODB-...).
        StoreError: DISK-FULL, STORE-UNWRITABLE; OPT-OUTS-DAMAGED, as who was forgotten must be known.
        MissingExtra: a ``mongodb://`` source without the 'mongodb' extra.
    """
    origin = open_source(source, config)
    generation, finished = begin(store, "collect", day.isoformat(), origin.inputs, again=again)
    if finished is not None:
        return finished
    folder = f"{FOLDERS['collect']}/{generation}"
    _sweep(store, folder)
    forgotten = read_forgotten(store)
    screen = Screen(forgotten) if forgotten.names else None
    tables = origin.land(store, folder, progress, screen)
    counts = {
        "files": sum(len(entries) for entries in tables.values()),
        "bytes": sum(entry.bytes for entries in tables.values() for entry in entries),
    }
    if screen is not None:
        counts["held_back"] = screen.held_back
    facts = {
        "counts": counts,
        "source": origin.name,
        "files": {kind: len(entries) for kind, entries in tables.items()},
        "bytes": {kind: sum(entry.bytes for entry in entries) for kind, entries in tables.items()},
        "ignored": origin.ignored[:100],
    }
    store.make_folder(folder)
    return finish(store, Manifest("collect", generation, day.isoformat(), {}, {}, tables, facts))


def open_source(source: str, config: CollectConfig) -> Source:
    """The adapter for an address.

    Raises:
        InputError, MissingExtra: as ``collect``.
    """
    if source.startswith(("mongodb://", "mongodb+srv://")):
        from tastetwin.sources.mongodb import Database

        return Database(source, config.mongodb_database)
    return Folder(source)


def _sweep(store: Store, folder: str) -> None:
    """Remove what killed attempts left half written."""
    for relative in store.files(folder):
        if is_aside(relative.rpartition("/")[2]):
            store.remove(relative)
