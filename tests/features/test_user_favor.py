"""The favor rule on tables small enough to check by eye, and the table it ends in."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tastetwin.config import Config, FeaturesConfig
from tastetwin.engine import Engine
from tastetwin.features.stage import PLACE_ROWS as TABLE
from tastetwin.features.stage import build_features, read_histories, read_place_rows
from tastetwin.features.user_favor import USER_FAVOR, favored_likes, favored_reviews, favors, group_favors
from tastetwin.schema import LIKES, PLACES, REVIEWS
from tastetwin.tables import read_table
from tests.conftest import Mart

PLACE_ROWS = [
    {"place_id": "cafe", "place_category_code_list": [1, 2]},
    {"place_id": "bar", "place_category_code_list": [3]},
    {"place_id": "what", "place_category_code_list": None},
]


def review(
    number: str, rating: float | None, place: str = "cafe", user: str = "u", day: int | None = 1
) -> dict[str, Any]:
    when = None if day is None else datetime(2026, 1, day)
    return {
        "review_id": number,
        "user_idno": user,
        "review_rating": rating,
        "review_visited_date": when,
        "review_place_id": place,
    }


def like(place: str, display: str | None = "main", user: str = "u", day: int | None = 1) -> dict[str, Any]:
    when = None if day is None else datetime(2026, 1, day)
    return {"user_idno": user, "like_regymdt": when, "like_displayid": display, "like_contentsid": place}


RATED = [review("1", 2.0), review("2", 3.0, "bar"), review("3", 4.0, "what"), review("4", None, "new")]


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ({}, "234"),
        ({"min_rating": None}, "1234"),
        ({"min_rating": 3.5}, "34"),
        ({"relative_to_user_mean": True}, "234"),
        ({"categories": [2]}, ""),
        ({"categories": [3, 99]}, "2"),
        ({"categories": [1, 3], "min_rating": None}, "12"),
        ({"categories": [1, 3], "relative_to_user_mean": True}, "2"),
        ({"categories": []}, ""),
    ],
)
def test_which_reviews_count(engine: Engine, rule: dict[str, Any], kept: str) -> None:
    """A review without a rating is a visit, and a visit counts; a category must be known to count."""
    reviews = engine.table(pa.Table.from_pylist(RATED, REVIEWS))
    places = engine.table(pa.Table.from_pylist(PLACE_ROWS, PLACES))
    found = favored_reviews(reviews, places, FeaturesConfig(**rule)).toArrow().to_pylist()
    assert "".join(sorted(row["review_id"] for row in found)) == kept


@pytest.mark.parametrize(
    ("rule", "kept"), [({}, "1"), ({"relative_to_user_mean": True}, "1"), ({"min_rating": None}, "123")]
)
def test_a_rating_that_was_refused_is_no_visit(engine: Engine, rule: dict[str, Any], kept: str) -> None:
    """Nobody knows what was meant; where ratings do not matter, this one does not either. Null is an older mart's."""
    rows = [review("1", None), review("2", None), review("3", 1.0), review("0", 4.0)]
    rows = [{**row, "review_rating_refused": row["review_id"] == "2" or None} for row in rows]
    reviews, places = engine.table(pa.Table.from_pylist(rows, REVIEWS)), engine.table(PLACES.empty_table())
    found = favored_reviews(reviews, places, FeaturesConfig(**rule)).toArrow().to_pylist()
    assert "".join(sorted(row["review_id"] for row in found)) == "0" + kept


@pytest.mark.parametrize(("rating", "times"), [(3.3, 6), (4.1, 7), (0.7, 30)])
def test_equal_ratings_are_all_at_the_mean(engine: Engine, rating: float, times: int) -> None:
    """The sum's rounding puts the mean of 3.3 six times above 3.3; the user would lose every review."""
    reviews = engine.table(pa.Table.from_pylist([review(str(n), rating) for n in range(times)], REVIEWS))
    places = engine.table(PLACES.empty_table())
    assert favored_reviews(reviews, places, FeaturesConfig(relative_to_user_mean=True)).count() == times


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ({}, ["bar", "cafe", "what"]),
        ({"likes": False}, []),
        ({"like_displays": ["main"]}, ["cafe"]),
        ({"like_displays": []}, []),
        ({"categories": [3]}, ["bar"]),
    ],
)
def test_which_likes_count(engine: Engine, rule: dict[str, Any], kept: list[str]) -> None:
    likes = engine.table(pa.Table.from_pylist([like("cafe"), like("bar", "list"), like("what", None)], LIKES))
    places = engine.table(pa.Table.from_pylist(PLACE_ROWS, PLACES))
    found = favored_likes(likes, places, FeaturesConfig(**rule)).toArrow().to_pylist()
    assert sorted(row["like_contentsid"] for row in found) == kept


def test_the_table_has_exactly_the_promised_columns() -> None:
    """Planners and other services query it by these names and types."""
    assert USER_FAVOR.remove_metadata() == pa.schema(
        [
            pa.field("user_idno", pa.string(), nullable=False),
            pa.field("like_list", pa.list_(pa.struct([
                ("like_regymdt", pa.timestamp("us")), ("like_displayid", pa.string()), ("like_contentsid", pa.string())
            ]))),
            pa.field("like_stat_list", pa.list_(pa.struct([
                ("like_displayid", pa.string()), ("restaurant_like_displayid_count", pa.int64())
            ]))),
            pa.field("review_list", pa.list_(pa.struct([
                ("review_id", pa.string()), ("review_rating", pa.float64()),
                ("review_visited_date", pa.timestamp("us")), ("review_place_id", pa.string()),
            ]))),
        ]
    )  # fmt: skip


def test_favors_are_listed_oldest_first_and_counted_by_display(engine: Engine) -> None:
    """Unknown times lead; a user with one kind of favor has an empty list of the other, never null."""
    reviews = [review("b", 4.0, day=2), review("a", 5.0, day=2), review("c", None, day=None), review("d", 3.0, "bar")]
    likes = [like("bar", day=3), like("cafe", day=2), like("cafe", None, day=None), like("cafe", user="only likes")]
    rows = {row["user_idno"]: row for row in grouped(engine, reviews, likes)}
    assert set(rows) == {"u", "only likes"}
    assert [each["review_id"] for each in rows["u"]["review_list"]] == ["c", "d", "a", "b"]
    assert [(each["like_contentsid"], each["like_displayid"]) for each in rows["u"]["like_list"]] == [
        ("cafe", None),
        ("cafe", "main"),
        ("bar", "main"),
    ]
    counts = [tuple(each.values()) for each in rows["u"]["like_stat_list"]]
    assert counts == [(None, 1), ("main", 2)]
    assert rows["only likes"]["review_list"] == []


def grouped(engine: Engine, reviews: list[dict[str, Any]], likes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    frames = engine.table(pa.Table.from_pylist(reviews, REVIEWS)), engine.table(pa.Table.from_pylist(likes, LIKES))
    rows: list[dict[str, Any]] = group_favors(favors(*frames).toArrow()).to_pylist()
    return rows


def slow_user_favor(reviews: list[dict[str, Any]], likes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Plain Python, one user at a time; None sorts before everything."""

    def key(*values: Any) -> list[tuple[bool, Any]]:
        return [(value is not None, value) for value in values]

    rows = []
    for user in sorted({each["user_idno"] for each in reviews + likes}):
        mine = [{k: v for k, v in each.items() if k != "user_idno"} for each in reviews if each["user_idno"] == user]
        liked = [{k: v for k, v in each.items() if k != "user_idno"} for each in likes if each["user_idno"] == user]
        displays = [each["like_displayid"] for each in liked]
        rows.append(
            {
                "user_idno": user,
                "like_list": sorted(liked, key=lambda each: key(*each.values())),
                "like_stat_list": [
                    {"like_displayid": one, "restaurant_like_displayid_count": displays.count(one)}
                    for one in sorted(set(displays), key=lambda one: key(one))
                ],
                "review_list": sorted(
                    mine,
                    key=lambda each: key(
                        each["review_visited_date"], each["review_id"], each["review_place_id"], each["review_rating"]
                    ),
                ),
            }
        )
    return rows


@given(
    reviews=st.lists(
        st.builds(
            review,
            number=st.sampled_from([None, "1", "2"]),
            rating=st.sampled_from([None, 1.0, 5.0]),
            place=st.sampled_from(["cafe", "bar"]),
            user=st.sampled_from(["u", "v", "사용자"]),
            day=st.sampled_from([None, 1, 2]),
        )
    ),
    likes=st.lists(
        st.builds(
            like,
            place=st.sampled_from(["cafe", "bar"]),
            display=st.sampled_from([None, "main", "list"]),
            user=st.sampled_from(["v", "w"]),
            day=st.sampled_from([None, 1, 2]),
        )
    ),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_grouping_equals_one_user_at_a_time(
    engine: Engine, reviews: list[dict[str, Any]], likes: list[dict[str, Any]]
) -> None:
    """The grouping is array arithmetic over many users at once; nobody may get another's favor."""
    assert grouped(engine, reviews, likes) == slow_user_favor(reviews, likes)


def test_the_stage_writes_what_the_rule_says(mart: Mart) -> None:
    """From raw lines to histories: visitors, rows, eligible users, and the previous day's rows in their places."""
    lines = [
        {"review_id": f"{u}{p}", "user_idno": f"u{u}", "review_place_id": f"p{p}", "review_rating": 5}
        for u in range(4)
        for p in range(5)
        if p < 4 or u == 0
    ]
    described = [{"place_id": f"p{p}", "place_category_code_list": [1], "place_dongcode": "r"} for p in range(9)]
    first = mart.day(1, {"reviews.jsonl": lines, "places.jsonl": described})
    config = Config(features=FeaturesConfig(min_visitors=3, min_favors=5))
    made = build_features(mart.engine, mart.store, first, None, config)
    assert made.facts["counts"] == {"users": 4, "favors": 17, "eligible": 1}
    stored = read_table(mart.store, made, "user_favor", USER_FAVOR)
    assert sorted(stored.column("user_idno").to_pylist()) == ["u0", "u1", "u2", "u3"]
    rows = read_place_rows(mart.store, made.paths("place_row")[0])
    visitors = read_table(mart.store, made, "place_row", TABLE).column("visitors").to_pylist()
    assert dict(zip(rows.place_ids.to_pylist(), visitors, strict=True)) == {
        **{f"p{p}": 4 for p in range(4)}, "p4": 1, **{f"p{p}": 0 for p in range(5, 9)},
    }  # fmt: skip
    histories = read_histories(mart.store, made, 5)
    assert histories.user_ids.tolist() == ["u0"] and histories.lengths().tolist() == [5]
    assert histories.places.tolist()[4] == rows.of(pa.array(["p8"]))[0], "p4 and p8 are read as the same group"
    new = [{"review_id": "x", "user_idno": f"u{u}", "review_place_id": "a new place"} for u in range(4)]
    second = mart.day(2, {"reviews.jsonl": new})
    later = build_features(mart.engine, mart.store, second, made, config)
    again = read_place_rows(mart.store, later.paths("place_row")[0])
    known = pa.array([f"p{p}" for p in range(9)])
    assert again.of(known).tolist() == rows.of(known).tolist()
    assert again.of(pa.array(["a new place"]))[0] > max(rows.rows)
    assert build_features(mart.engine, mart.store, second, made, config, again=True).digest() == later.digest()
