"""The favor rule, and ``user_favor``: one row per user with every favor, oldest first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tastetwin.config import FeaturesConfig
from tastetwin.schema import (
    CATEGORIES,
    LIKE_CONTENTS,
    LIKE_DISPLAY,
    LIKED_AT,
    PLACE,
    RATING,
    RATING_REFUSED,
    REVIEW_ID,
    REVIEW_PLACE,
    TIME,
    USER,
    VISITED,
)

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

ROUNDING: Final = 1e-9
"""The mean of equal ratings may come out above them, and its last bit depends on the order of the sum."""
LIKE_COUNT: Final = "restaurant_like_displayid_count"

_LIKE: Final = pa.struct(
    [pa.field(LIKED_AT, TIME), pa.field(LIKE_DISPLAY, pa.string()), pa.field(LIKE_CONTENTS, pa.string())]
)
_STAT: Final = pa.struct([pa.field(LIKE_DISPLAY, pa.string()), pa.field(LIKE_COUNT, pa.int64())])
_REVIEW: Final = pa.struct(
    [
        pa.field(REVIEW_ID, pa.string()),
        pa.field(RATING, pa.float64()),
        pa.field(VISITED, TIME),
        pa.field(REVIEW_PLACE, pa.string()),
    ]
)
USER_FAVOR: Final = pa.schema(
    [
        pa.field(USER, pa.string(), nullable=False),
        pa.field("like_list", pa.list_(_LIKE)),
        pa.field("like_stat_list", pa.list_(_STAT)),
        pa.field("review_list", pa.list_(_REVIEW)),
    ]
)
"""user_favor: one row per user with a favor; lists are empty, never null, oldest first (unknown times lead)."""


def favored_reviews(reviews: DataFrame, places: DataFrame, config: FeaturesConfig) -> DataFrame:
    """The reviews that count as favors.

    A review without a rating is a visit, and a visit is a favor. Where a rating was given that cannot be used, nobody
    knows whether the user liked the place: no favor, unless ratings do not matter. With ``relative_to_user_mean`` the
    rating is compared with the user's own mean instead of ``min_rating``.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    kept = _in_categories(reviews, REVIEW_PLACE, places, config)
    is_visit = F.col(RATING).isNull() & ~F.coalesce(F.col(RATING_REFUSED), F.lit(False))
    if config.relative_to_user_mean:
        own = F.avg(RATING).over(Window.partitionBy(USER))
        marked = kept.withColumn("_own", own)
        return marked.where(is_visit | (F.col(RATING) >= F.col("_own") - ROUNDING)).drop("_own")
    if config.min_rating is None:
        return kept
    return kept.where(is_visit | (F.col(RATING) >= config.min_rating))


def favored_likes(likes: DataFrame, places: DataFrame, config: FeaturesConfig) -> DataFrame:
    """The likes that count as favors."""
    from pyspark.sql import functions as F

    if not config.likes:
        return likes.limit(0)
    kept = _in_categories(likes, LIKE_CONTENTS, places, config)
    return kept if config.like_displays is None else kept.where(F.col(LIKE_DISPLAY).isin(config.like_displays))


def _in_categories(events: DataFrame, place: str, places: DataFrame, config: FeaturesConfig) -> DataFrame:
    from pyspark.sql import functions as F

    if config.categories is None:
        return events
    wanted = F.arrays_overlap(F.col(CATEGORIES), F.array(*(F.lit(code) for code in config.categories)))
    return events.join(places.where(wanted).select(F.col(PLACE).alias(place)), place, "left_semi")


def favors(reviews: DataFrame, likes: DataFrame) -> DataFrame:
    """Both kinds of favor, one row each, as ``group_favors`` takes them."""
    from pyspark.sql import functions as F

    return reviews.select(
        USER,
        F.lit(False).alias("is_like"),
        F.col(VISITED).alias("at"),
        F.col(REVIEW_ID).alias("name"),
        F.col(REVIEW_PLACE).alias("place"),
        F.col(RATING).alias("rating"),
    ).unionByName(
        likes.select(
            USER,
            F.lit(True).alias("is_like"),
            F.col(LIKED_AT).alias("at"),
            F.col(LIKE_DISPLAY).alias("name"),
            F.col(LIKE_CONTENTS).alias("place"),
            F.lit(None).cast("double").alias("rating"),
        )
    )


_ORDER: Final = [(name, "ascending", "at_start") for name in (USER, "at", "name", "place", "rating")]


def group_favors(rows: pa.Table) -> pa.Table:
    """``USER_FAVOR`` of all favors of some users, users ascending, each list by time, then name, place and rating."""
    rows = rows.take(pc.sort_indices(rows, sort_keys=_ORDER)).combine_chunks()
    users = pc.unique(rows.column(USER))
    likes, reviews = rows.filter(rows.column("is_like")), rows.filter(pc.invert(rows.column("is_like")))
    counted = likes.group_by([USER, "name"]).aggregate([([], "count_all")])
    counted = counted.take(pc.sort_indices(counted, sort_keys=[(USER, "ascending", "at_start"), _ORDER[2]]))
    return pa.table(
        [
            users,
            _lists(users, likes, _LIKE, ("at", "name", "place")),
            _lists(users, counted, _STAT, ("name", "count_all")),
            _lists(users, reviews, _REVIEW, ("name", "rating", "at", "place")),
        ],
        schema=USER_FAVOR,
    )


def _lists(users: pa.Array, rows: pa.Table, kind: pa.StructType, columns: tuple[str, ...]) -> pa.ListArray:
    """[n_users] lists of ``kind``: the rows of each user, which lie side by side in the order of the users."""
    arrays = [rows.column(name).combine_chunks().cast(kind.field(place).type) for place, name in enumerate(columns)]
    owner = pc.index_in(rows.column(USER), value_set=users).to_numpy()
    counts = np.bincount(owner, minlength=len(users))
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(arrays, fields=list(kind)))
