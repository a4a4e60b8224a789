"""features: ``user_favor`` and ``place``, the vocabulary, and every user's taste history."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from tastetwin.config import Config, FeaturesConfig
from tastetwin.engine import Engine
from tastetwin.features.histories import Histories, Vocabulary
from tastetwin.features.taste import HISTORY, from_arrow, history_table
from tastetwin.features.user_favor import USER_FAVOR, favored_likes, favored_reviews, favors, group_favors
from tastetwin.features.vocabulary import (
    PlaceRows,
    assign_rows,
    empty_vocabulary,
    grow,
    read_vocabulary,
    write_vocabulary,
)
from tastetwin.generations import FileEntry, Made, Manifest, Plan, make
from tastetwin.mart.merge import LAYOUTS
from tastetwin.progress import Progress, silent
from tastetwin.schema import CATEGORIES, ENDED, LIKE_CONTENTS, OTHER, PLACE, PLACES, REGION, REVIEW_PLACE, USER
from tastetwin.store import Store
from tastetwin.tables import Layout, map_files, put_table, read_files, read_table, write_frame

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

PLACE_ROWS: Final = pa.schema(
    [
        pa.field(PLACE, pa.string(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("visitors", pa.int64(), nullable=False),
    ]
)
"""place_row: one row per place known or favored: the vocabulary row it is read as, and its distinct visitors."""


NOT_SHOWN: Final = pa.schema(
    [pa.field(USER, pa.string(), nullable=False), pa.field(OTHER, pa.string(), nullable=False)]
)
"""not_shown: one row per user and other user who is not to be in the user's list: followed already, or one of the two
has blocked the other."""


def build_features(
    engine: Engine,
    store: Store,
    mart: Manifest,
    previous: Manifest | None,
    config: Config,
    *,
    again: bool = False,
    progress: Progress = silent,
) -> Manifest:
    """The features as of the mart's logical date.

    ``previous`` are the features of the latest earlier day, whose vocabulary rows keep their places; ``progress`` is
    told users done.
    """
    settings = {"features": config.features.model_dump(mode="json")}
    plan = Plan("features", mart.logical_date, {"mart": mart, "previous": previous}, settings)

    def work(folder: str) -> Made:
        return _write(engine, store, mart, previous, config.features, folder, progress)

    return make(store, plan, work, again=again)


def _write(
    engine: Engine,
    store: Store,
    mart: Manifest,
    previous: Manifest | None,
    config: FeaturesConfig,
    folder: str,
    progress: Progress,
) -> Made:
    described = _mart_table(engine, store, mart, "places")
    tables = {
        "user_favor": write_user_favor(engine, store, mart, config, f"{folder}/user_favor"),
        "place": write_frame(engine, described, store, f"{folder}/place", Layout(PLACES, (PLACE,))),
        "not_shown": _write_not_shown(engine, store, mart, f"{folder}/not_shown"),
    }
    favored = [entry.path for entry in tables["user_favor"]]
    old = read_vocabulary(store, previous.paths("vocabulary")[0]) if previous else empty_vocabulary()
    places = read_files(store, [entry.path for entry in tables["place"]], PLACES).sort_by(PLACE)
    visitors = _visitors(engine.read(store, favored, USER_FAVOR))
    tables |= _write_vocabulary(store, visitors, places, old, config.min_visitors, folder)
    work = functools.partial(_history_job, root=store.url(""), relative=tables["place_row"][0].path)
    tables["history"] = map_files(engine, store, favored, f"{folder}/history", work)
    counts = _count(engine, store, [entry.path for entry in tables["history"]], config)
    progress(counts["users"], counts["users"])
    return tables, {"counts": counts, "buckets": engine.partitions}


def _mart_table(engine: Engine, store: Store, mart: Manifest, kind: Any) -> DataFrame:
    return engine.read(store, mart.paths(kind), LAYOUTS[kind].schema)


def favor_rows(engine: Engine, store: Store, mart: Manifest, config: FeaturesConfig) -> DataFrame:
    """Everything in a mart that counts as a favor, one row each."""
    places = _mart_table(engine, store, mart, "places")
    reviews = favored_reviews(_mart_table(engine, store, mart, "reviews"), places, config)
    return favors(reviews, favored_likes(_mart_table(engine, store, mart, "likes"), places, config))


def write_user_favor(
    engine: Engine, store: Store, mart: Manifest, config: FeaturesConfig, folder: str
) -> list[FileEntry]:
    """``user_favor`` of a mart, in buckets by user."""
    inputs = [*mart.paths("reviews"), *mart.paths("likes")]
    layout = Layout(USER_FAVOR, (USER,))
    return write_frame(
        engine, favor_rows(engine, store, mart, config), store, folder, layout, inputs, make=group_favors
    )


def _write_not_shown(engine: Engine, store: Store, mart: Manifest, folder: str) -> list[FileEntry]:
    from pyspark.sql import functions as F

    inputs = [*mart.paths("follows"), *mart.paths("blocks")]
    if not inputs:
        return []
    follows, blocks = (
        _mart_table(engine, store, mart, kind).where(~F.coalesce(F.col(ENDED), F.lit(False)))
        for kind in ("follows", "blocks")
    )
    turned = blocks.select(F.col(OTHER).alias(USER), F.col(USER).alias(OTHER))
    pairs = follows.select(USER, OTHER).unionByName(blocks.select(USER, OTHER)).unionByName(turned)
    return write_frame(engine, pairs, store, folder, Layout(NOT_SHOWN, (USER, OTHER), (USER, OTHER)), inputs)


def _write_vocabulary(
    store: Store, visitors: pa.Table, places: pa.Table, old: Vocabulary, min_visitors: int, folder: str
) -> dict[str, list[FileEntry]]:
    """``vocabulary`` and ``place_row`` of the day."""
    vocabulary = grow(old, places, visitors, min_visitors)
    assigned = assign_rows(vocabulary, unlisted_too(places, visitors.column(PLACE)))
    at = pc.index_in(assigned.place_ids, value_set=visitors.column(PLACE))
    counts = pc.fill_null(visitors.column("visitors").take(at), 0).cast(pa.int64())
    rows = pa.table([assigned.place_ids, pa.array(assigned.rows), counts], schema=PLACE_ROWS)
    return {
        "vocabulary": [write_vocabulary(store, f"{folder}/vocabulary.parquet", vocabulary)],
        "place_row": [put_table(store, f"{folder}/place_row.parquet", rows)],
    }


def _visitors(favors: DataFrame) -> pa.Table:
    """Columns place_id, visitors (distinct users): one row per favored place, ascending."""
    from pyspark.sql import functions as F

    events = F.concat(
        F.transform("review_list", lambda event: event[REVIEW_PLACE]),
        F.transform("like_list", lambda event: event[LIKE_CONTENTS]),
    )
    visited = favors.select(F.explode(F.array_distinct(events)).alias(PLACE))
    counted = visited.groupBy(PLACE).agg(F.count(F.lit(1)).alias("visitors")).orderBy(PLACE).toArrow()
    return counted.cast(pa.schema([(PLACE, pa.string()), ("visitors", pa.int64())])).combine_chunks()


def unlisted_too(places: pa.Table, favored: pa.ChunkedArray | pa.Array) -> pa.Table:
    """Id, categories and region of the places and, after them, of favored ones that the source does not describe."""
    listed = places.select([PLACE, CATEGORIES, REGION])
    absent = favored.filter(pc.invert(pc.is_in(favored, value_set=places.column(PLACE))))
    nothing = [pa.nulls(len(absent), listed.schema.field(name).type) for name in (CATEGORIES, REGION)]
    return pa.concat_tables([listed, pa.table([absent, *nothing], schema=listed.schema)]).combine_chunks()


def _history_job(favors: pa.Table, *, root: str, relative: str) -> pa.Table:
    return history_table(favors, _cached_rows(root, relative))


@functools.lru_cache(maxsize=2)
def _cached_rows(root: str, relative: str) -> PlaceRows:
    return read_place_rows(Store(root), relative)


def _count(engine: Engine, store: Store, history: list[str], config: FeaturesConfig) -> dict[str, int]:
    from pyspark.sql import functions as F

    eligible = (F.size("places") >= config.min_favors).cast("bigint")
    totals = engine.read(store, history, HISTORY).agg(F.count(F.lit(1)), F.sum("favors"), F.sum(eligible)).collect()[0]
    return dict(zip(("users", "favors", "eligible"), (int(value or 0) for value in totals), strict=True))


# -- reading ----------------------------------------------------------------------------------------------------------


def read_place_rows(store: Store, relative: str) -> PlaceRows:
    """Which row each place is read as."""
    table = read_files(store, [relative], PLACE_ROWS)
    return PlaceRows(table.column(PLACE), table.column("row").to_numpy())


def read_histories(store: Store, features: Manifest, min_favors: int) -> Histories:
    """All eligible users' histories, user ids ascending."""
    table = read_table(store, features, "history", HISTORY)
    table = table.filter(pc.greater_equal(pc.list_value_length(table.column("places")), min_favors))
    return from_arrow(table.sort_by(USER).combine_chunks())
