"""The names of columns and the schemas of tables, once.

Field names of the source are kept where the source's users know them. Each table says its grain: "one row per ...".
Times are UTC, in microseconds, without a zone tag (so that both engines and DuckDB read the same instant).
"""

from __future__ import annotations

from typing import Final, Literal

import pyarrow as pa

Kind = Literal["reviews", "likes", "places", "follows", "blocks"]
KINDS: Final[tuple[Kind, ...]] = ("reviews", "likes", "places", "follows", "blocks")

USER: Final = "user_idno"
PLACE: Final = "place_id"
REVIEW_ID: Final = "review_id"
RATING: Final = "review_rating"
RATING_REFUSED: Final = "review_rating_refused"
VISITED: Final = "review_visited_date"
REVIEW_PLACE: Final = "review_place_id"
LIKED_AT: Final = "like_regymdt"
LIKE_DISPLAY: Final = "like_displayid"
LIKE_CONTENTS: Final = "like_contentsid"
CATEGORIES: Final = "place_category_code_list"
REGION: Final = "place_dongcode"
NAME: Final = "place_name"
LAT: Final = "place_lat"
LON: Final = "place_lon"
OTHER: Final = "other_idno"
RELATED_AT: Final = "relation_regymdt"
ENDED: Final = "relation_ended"
LANDED: Final = "landed_date"

TIME: Final = pa.timestamp("us")

REVIEWS: Final = pa.schema(
    [
        pa.field(REVIEW_ID, pa.string()),
        pa.field(USER, pa.string(), nullable=False),
        pa.field(RATING, pa.float64()),
        pa.field(VISITED, TIME),
        pa.field(REVIEW_PLACE, pa.string(), nullable=False),
        pa.field(RATING_REFUSED, pa.bool_()),
    ]
)
"""mart.reviews: one row per user and ``review_id`` (without one: per user, place, time and rating).
``review_rating_refused`` says that the source gave a rating that cannot be used: nobody knows whether the user liked
the place. A review that never had a rating is a visit. Null counts as false: no earlier version wrote the column."""

LIKES: Final = pa.schema(
    [
        pa.field(USER, pa.string(), nullable=False),
        pa.field(LIKED_AT, TIME),
        pa.field(LIKE_DISPLAY, pa.string()),
        pa.field(LIKE_CONTENTS, pa.string(), nullable=False),
    ]
)
"""mart.likes: one row per like (user, display id, contents id, time)."""

PLACES: Final = pa.schema(
    [
        pa.field(PLACE, pa.string(), nullable=False),
        pa.field(CATEGORIES, pa.list_(pa.int64())),
        pa.field(REGION, pa.string()),
        pa.field(NAME, pa.string()),
        pa.field(LAT, pa.float64()),
        pa.field(LON, pa.float64()),
    ]
)
"""mart.places: one row per place."""

RELATIONS: Final = pa.schema(
    [
        pa.field(USER, pa.string(), nullable=False),
        pa.field(OTHER, pa.string(), nullable=False),
        pa.field(RELATED_AT, TIME),
        pa.field(ENDED, pa.bool_()),
    ]
)
"""mart.follows, mart.blocks: one row per user and other user, the last one said; ``relation_ended`` takes it back (who
unfollows sends the pair again with it). Null counts as false."""

QUARANTINE: Final = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("length", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("excerpt", pa.string(), nullable=False),
    ]
)
"""mart.quarantine: one row per refused line: which file, where in its uncompressed bytes, why."""

MART: Final[dict[Kind, pa.Schema]] = {
    "reviews": REVIEWS,
    "likes": LIKES,
    "places": PLACES,
    "follows": RELATIONS,
    "blocks": RELATIONS,
}

WHO: Final[dict[Kind, tuple[str, ...]]] = {
    "reviews": (USER,),
    "likes": (USER,),
    "places": (),
    "follows": (USER, OTHER),
    "blocks": (USER, OTHER),
}
"""The columns of each kind that name people."""

TWINS: Final = pa.schema(
    [
        pa.field(USER, pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("twin_idno", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("percentile", pa.float32(), nullable=False),
        pa.field("taste", pa.float32()),
        pa.field("home", pa.float32()),
        pa.field("chance", pa.float32()),
    ]
)
"""twins: one row per user and rank, rank 1 the closest; higher score means closer. ``taste`` and ``home`` sum to the
similarity; null in runs made before there were parts. ``chance`` that the twin has the place that the user favors next;
null where there was not enough data to measure it."""

VECTORS: Final = pa.schema([pa.field(USER, pa.string(), nullable=False), pa.field("vector", pa.list_(pa.float32()))])
"""vectors: one row per user; vectors have unit length."""

_TWIN: Final = [(field.name, field.type) for field in TWINS if field.name not in (USER, "rank")]
RESULT: Final = pa.schema(
    [
        pa.field("idno", pa.string(), nullable=False),
        pa.field(
            "payload",
            pa.struct(
                [
                    pa.field("logical_date", pa.string()),
                    pa.field("favors", pa.int32()),
                    pa.field("places", pa.int32()),
                    pa.field("home_region", pa.string()),
                    pa.field("twins", pa.list_(pa.struct(_TWIN))),
                ]
            ),
        ),
    ]
)
"""result: one row per user served."""
