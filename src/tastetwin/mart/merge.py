"""One row per key: within a day, and between a day and everything known before.

A mart table is cut into partitions by the day on which a row was landed. A new day adds its partition; an older
partition is read again only where one of its rows was superseded, so an increment costs what it touches. Rows that
come again unchanged are not new.
"""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from tastetwin.engine import Engine
from tastetwin.generations import FileEntry, Manifest
from tastetwin.schema import (
    CATEGORIES,
    ENDED,
    LANDED,
    LAT,
    LIKE_CONTENTS,
    LIKE_DISPLAY,
    LIKED_AT,
    LON,
    MART,
    NAME,
    OTHER,
    PLACE,
    RATING,
    RATING_REFUSED,
    REGION,
    RELATED_AT,
    REVIEW_ID,
    REVIEW_PLACE,
    USER,
    VISITED,
    Kind,
)
from tastetwin.store import Store
from tastetwin.tables import Layout, one_per_key, write_frame

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

_KEY: Final = "_key"


def _layout(kind: Kind, sort: tuple[str, ...], key: int) -> Layout:
    schema = MART[kind].append(pa.field(LANDED, pa.string(), nullable=False))
    return Layout(schema, sort, sort[:key])


LAYOUTS: Final[dict[Kind, Layout]] = {
    "reviews": _layout("reviews", (USER, REVIEW_ID, VISITED, RATING, REVIEW_PLACE, RATING_REFUSED), 2),
    "likes": _layout("likes", (USER, LIKED_AT, LIKE_DISPLAY, LIKE_CONTENTS), 4),
    "places": _layout("places", (PLACE, REGION, NAME, LAT, LON, CATEGORIES), 1),
    "follows": _layout("follows", (USER, OTHER, RELATED_AT, ENDED), 2),
    "blocks": _layout("blocks", (USER, OTHER, RELATED_AT, ENDED), 2),
}
"""Columns, grain and order of the mart tables. Of several rows of one landing with one key the greatest by the order
wins, whatever order they arrived in: the latest visit, the highest rating. Between landings the later one wins, so that
an edit counts whichever way it goes."""


def merge(
    engine: Engine, store: Store, kind: Kind, staged: list[str], previous: Manifest | None, day: str, folder: str
) -> dict[str, list[FileEntry]]:
    """Merge a day's staged rows into a mart table; returns its partitions, ``<kind>/<day>`` -> files.

    ``staged`` are Parquet files of the day's typed rows, duplicates included; ``previous`` is the mart of the latest
    earlier day.
    """
    layout = LAYOUTS[kind]
    past = {} if previous is None else {key: files for key, files in previous.tables.items() if _kind(key) == kind}
    if not staged:
        return past
    today = _landed(engine.read(store, staged, MART[kind]), day)
    if past:
        # First one row per key: a row that loses against one of its own day must not come back as news.
        today = one_per_key(engine, today, layout)
        known = engine.read(store, [entry.path for files in past.values() for entry in files], layout.schema)
        today = _without_known(today, known, layout)
    written = _write(engine, store, today, kind, day, folder, staged)
    if not past or not written:
        return past | written
    today = engine.read(store, [entry.path for entry in written[f"{kind}/{day}"]], layout.schema)
    return _rewrite_superseded(engine, store, kind, past, today, folder) | written


def _kind(key: str) -> str:
    return key.split("/")[0]


def _landed(frame: DataFrame, day: str) -> DataFrame:
    from pyspark.sql import functions as F

    return frame.withColumn(LANDED, F.lit(day))


def _without_known(today: DataFrame, known: DataFrame, layout: Layout) -> DataFrame:
    """Drop today's rows that are known already, every column equal."""
    contents = known.select(_content(layout).alias(_KEY))
    return today.withColumn(_KEY, _content(layout)).join(contents, _KEY, "left_anti").drop(_KEY)


def key_of(layout: Layout) -> Column:
    """The row's name as one string: its key, or everything where a part of the key is null."""
    from pyspark.sql import functions as F

    complete = functools.reduce(operator.and_, (F.col(name).isNotNull() for name in layout.key))
    return F.when(complete, _joined([F.col(name) for name in layout.key])).otherwise(_content(layout))


def _content(layout: Layout) -> Column:
    """The whole row, but for the day it was landed, as one string."""
    from pyspark.sql import functions as F

    def said(name: str) -> Column:
        kind = layout.schema.field(name).type
        if pa.types.is_boolean(kind):  # null counts as false: of versions that did not write it
            return F.coalesce(F.col(name), F.lit(False))
        return F.array_join(F.col(name).cast("array<string>"), ",") if pa.types.is_list(kind) else F.col(name)

    return _joined([said(name) for name in layout.sort])


def _joined(columns: list[Column]) -> Column:
    """One string of several columns; the separators are characters that the gate refuses in ids."""
    from pyspark.sql import functions as F

    return F.concat_ws("\x1f", *(F.coalesce(column.cast("string"), F.lit("\x1e")) for column in columns))


def _rewrite_superseded(
    engine: Engine, store: Store, kind: Kind, past: dict[str, list[FileEntry]], today: DataFrame, folder: str
) -> dict[str, list[FileEntry]]:
    layout = LAYOUTS[kind]
    keys = today.select(key_of(layout).alias(_KEY))
    known = engine.read(store, [entry.path for files in past.values() for entry in files], layout.schema)
    touched = known.withColumn(_KEY, key_of(layout)).join(keys, _KEY, "left_semi").select(LANDED).distinct().collect()
    kept = dict(past)
    for landed in sorted(row[LANDED] for row in touched):
        paths = [entry.path for entry in kept.pop(f"{kind}/{landed}")]
        rows = engine.read(store, paths, layout.schema).withColumn(_KEY, key_of(layout))
        kept |= _write(engine, store, rows.join(keys, _KEY, "left_anti").drop(_KEY), kind, landed, folder, paths)
    return kept


def _write(
    engine: Engine, store: Store, frame: DataFrame, kind: Kind, landed: str, folder: str, inputs: list[str]
) -> dict[str, list[FileEntry]]:
    """One partition; {} when it has no rows."""
    files = write_frame(engine, frame, store, f"{folder}/{kind}/{landed}", LAYOUTS[kind], inputs)
    return {f"{kind}/{landed}": files} if files else {}
