"""Rows that the mart of the published run held for a date and another run's does not: what a landing left out.

A landing is its whole day: a later one of the same date takes its place, and every later day goes on from it. New days
and edits only add rows, or put others with the same key in their place. So a key that is gone was in a file that was
not there this time, or was taken back by its owner; only a person can tell. Who was forgotten does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.parquet as pq

from tastetwin.config import DeliverConfig
from tastetwin.engine import Engine
from tastetwin.errors import GateRefused
from tastetwin.generations import FileEntry, Manifest, is_finished, read_manifest
from tastetwin.mart.merge import LAYOUTS, key_of
from tastetwin.privacy.opt_out import NAME_LENGTH, OptOuts, read_forgotten
from tastetwin.runs import Run
from tastetwin.schema import KINDS, LANDED, WHO, Kind
from tastetwin.store import Store

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_KEY: Final = "_key"
_NAME: Final = "_name"
_TOLD: Final = 5
"""Losses that a message lists."""


@dataclass(frozen=True)
class Lost:
    """Rows of one kind that a date had brought and that are in the mart no more."""

    kind: Kind
    logical_date: str
    rows: int
    of: int
    """Rows of that kind that the date had brought."""


def lost_rows(engine: Callable[[], Engine], store: Store, shown: Run, run: Run) -> list[Lost]:
    """What the mart of ``shown`` held, and that of ``run`` does not.

    Args:
        engine: asked for only where the two differ; compares keys, so that memory is its concern.
        store: holds everything.
        shown: the published run.
        run: to take its place.

    Raises:
        StoreError: NO-GENERATION; OPT-OUTS-DAMAGED, as who was forgotten must be known.
    """
    before, now = (read_manifest(store, "mart", each.generation("mart")) for each in (shown, run))
    # A later date holds no less, but as of the same one the two share most files, which need not be read.
    now = _as_of(store, now, before.logical_date)
    forgotten = read_forgotten(store)
    found = [lost for kind in KINDS for lost in _lost(engine, store, kind, before, now, forgotten)]
    return sorted(found, key=lambda lost: -lost.rows)


def require_nothing_lost(run: Run, lost: list[Lost], config: DeliverConfig) -> None:
    """Stop the publication of a run without rows that readers have.

    Raises:
        GateRefused: EVENTS-LOST; ``promote`` is the approval.
    """
    grave = [each for each in lost if each.rows > config.max_lost * each.of]
    if not grave:
        return
    named = [f"{each.rows:,} of {each.of:,} {each.kind} of {each.logical_date}" for each in grave[:_TOLD]]
    dates = sorted({each.logical_date for each in grave})
    raise GateRefused(
        "EVENTS-LOST",
        place=f"run {run.run_id}",
        value=f"gone from what the published run has: {', '.join(named)}{', ...' if len(grave) > _TOLD else ''}",
        rule=f"delivered, not published: above deliver.max_lost ({config.max_lost:.1%}) a person decides",
        fix=f"run {', '.join(dates[:_TOLD])} again from all of its files; or, if they are meant to be gone: "
        f"tastetwin promote {run.run_id} --store ...",
    )


def _as_of(store: Store, mart: Manifest, day: str) -> Manifest:
    """The mart that this one goes on from, as of ``day``, or of the earliest later date that is still kept."""
    while mart.logical_date > day and (previous := mart.parents.get("previous")):
        if not is_finished(store, "mart", previous):
            break
        earlier = read_manifest(store, "mart", previous)
        if earlier.logical_date < day:
            break
        mart = earlier
    return mart


def _lost(
    connect: Callable[[], Engine], store: Store, kind: Kind, before: Manifest, now: Manifest, forgotten: OptOuts
) -> Iterator[Lost]:
    """A key is in one file of a mart, so what both have need not be looked at."""
    layout = LAYOUTS[kind]
    theirs, ours = _only_in(before, now, kind), _only_in(now, before, kind)
    if not theirs:
        return
    engine = connect()
    known = engine.read(store, ours, layout.schema).select(key_of(layout).alias(_KEY))
    gone = engine.read(store, theirs, layout.schema).withColumn(_KEY, key_of(layout)).join(known, _KEY, "left_anti")
    for row in _without(engine, gone, kind, forgotten).groupBy(LANDED).count().collect():
        yield Lost(kind, row[LANDED], row["count"], _rows(store, before.tables[f"{kind}/{row[LANDED]}"]))


def _only_in(mart: Manifest, other: Manifest, kind: Kind) -> list[str]:
    shared = {entry.sha256 for files in other.tables.values() for entry in files}
    of_kind = [entry for table, files in mart.tables.items() if table.split("/")[0] == kind for entry in files]
    return [entry.path for entry in of_kind if entry.sha256 not in shared]


def _without(engine: Engine, rows: DataFrame, kind: Kind, people: OptOuts) -> DataFrame:
    """The rows that name none of these people (``OptOuts.without``, on the engine)."""
    from pyspark.sql import functions as F

    if not people.names:
        return rows
    names = engine.table(pa.table({_NAME: sorted(people.names)}))
    for column in WHO[kind]:
        name = F.substring(F.sha2(F.col(column), 256), 1, NAME_LENGTH)
        rows = rows.withColumn(_NAME, name).join(names, _NAME, "left_anti").drop(_NAME)
    return rows


def _rows(store: Store, files: list[FileEntry]) -> int:
    return sum(pq.read_metadata(store.path(each.path), filesystem=store.arrow).num_rows for each in files)
