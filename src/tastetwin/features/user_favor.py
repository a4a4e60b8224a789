"""The favor rule, and ``user_favor``: one row per user with every favor, oldest first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pyarrow as pa

from tastetwin.config import FeaturesConfig
from tastetwin.schema import (
    CATEGORIES,
    LIKE_CONTENTS,
    LIKE_DISPLAY,
    LIKED_AT,
    PLACE,
    RATING,
    REVIEW_ID,
    REVIEW_PLACE,
    TIME,
    USER,
    VISITED,
)

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

_ROUNDING: Final = 1e-9
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

    A review without a rating is a visit, and a visit is a favor. With ``relative_to_user_mean`` the rating is compared
    with the user's own mean instead of ``min_rating``.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    kept = _in_categories(reviews, REVIEW_PLACE, places, config)
    if config.relative_to_user_mean:
        own = F.avg(RATING).over(Window.partitionBy(USER))
        marked = kept.withColumn("_own", own)
        return marked.where(F.col(RATING).isNull() | (F.col(RATING) >= F.col("_own") - _ROUNDING)).drop("_own")
    if config.min_rating is None:
        return kept
    return kept.where(F.col(RATING).isNull() | (F.col(RATING) >= config.min_rating))


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


def user_favor(reviews: DataFrame, likes: DataFrame) -> DataFrame:
    """``USER_FAVOR`` of the given favors."""
    from pyspark.sql import functions as F

    by_review = reviews.groupBy(USER).agg(
        _sorted_list((VISITED, REVIEW_ID, REVIEW_PLACE, RATING), _REVIEW).alias("review_list")
    )
    by_like = likes.groupBy(USER).agg(
        _sorted_list((LIKED_AT, LIKE_DISPLAY, LIKE_CONTENTS), _LIKE).alias("like_list"),
    )
    counted = likes.groupBy(USER, LIKE_DISPLAY).agg(F.count(F.lit(1)).alias(LIKE_COUNT))
    by_stat = counted.groupBy(USER).agg(_sorted_list((LIKE_DISPLAY, LIKE_COUNT), _STAT).alias("like_stat_list"))
    joined = by_review.join(by_like.join(by_stat, USER), USER, "full_outer")
    lists = [_never_null(name, USER_FAVOR.field(name).type) for name in USER_FAVOR.names[1:]]
    return joined.select(USER, *lists)


def _sorted_list(order: tuple[str, ...], struct: pa.StructType) -> Column:
    """Rows of a group as a list of ``struct``, ascending by ``order`` (nulls first)."""
    from pyspark.sql import functions as F

    fields = [struct.field(place).name for place in range(struct.num_fields)]
    ordered = F.sort_array(F.collect_list(F.struct(*order)))
    return (
        ordered if fields == list(order) else F.transform(ordered, lambda x: F.struct(*(x[n].alias(n) for n in fields)))
    )


def _never_null(name: str, kind: pa.DataType) -> Column:
    from pyspark.sql import functions as F
    from pyspark.sql.pandas.types import from_arrow_type

    return F.coalesce(F.col(name), F.array().cast(from_arrow_type(kind))).alias(name)
