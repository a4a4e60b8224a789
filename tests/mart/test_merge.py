"""One row per key within a day and between days, beside a slow twin in plain Python."""

from __future__ import annotations

import random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tastetwin.generations import Manifest
from tastetwin.mart.merge import LAYOUTS
from tastetwin.schema import KINDS, Kind
from tastetwin.tables import lay_out
from tests.conftest import Mart

Row = dict[str, Any]


def review(number: str | None, user: str = "u1", place: str = "p1", rating: float = 4.0, day: int = 1) -> Row:
    return {
        "review_id": number,
        "user_idno": user,
        "review_rating": rating,
        "review_visited_date": f"2026-05-{day:02d}T12:00:00",
        "review_place_id": place,
    }


def like(user: str, place: str, day: int = 1) -> Row:
    return {
        "user_idno": user,
        "like_regymdt": f"2026-05-{day:02d}T12:00:00",
        "like_displayid": "main",
        "like_contentsid": place,
    }


def reviews(*rows: Row) -> dict[str, list[Row]]:
    return {"reviews.jsonl": list(rows)}


def plain(mart: Mart, kind: Kind) -> list[Row]:
    """Rows without the day they were landed, in an order of their own."""
    rows = [{name: value for name, value in row.items() if name != "landed_date"} for row in mart.rows(kind)]
    return sorted(rows, key=repr)


# -- within a day -----------------------------------------------------------------------------------------------------


def rank(value: Any) -> tuple[bool, Any]:
    """Nulls first; a list counts as its text."""
    shown = ",".join(map(str, value)) if isinstance(value, list) else value
    return (value is not None, 0 if value is None else shown)


def slow_twin(rows: list[Row], kind: Kind) -> list[Row]:
    """One row per complete key, else per whole row: the greatest stays."""
    layout = LAYOUTS[kind]
    best: dict[tuple[Any, ...], tuple[tuple[Any, ...], Row]] = {}
    for row in rows:
        order = tuple(rank(row[name]) for name in layout.sort)
        key = order[: len(layout.key)] if all(row[name] is not None for name in layout.key) else order
        if key not in best or order > best[key][0]:
            best[key] = (order, row)
    return [row for _, row in sorted(best.values(), key=lambda pair: pair[0])]


few = st.sampled_from
optional = {
    "review_id": few([None, "1", "2"]), "user_idno": few(["u", "ü", "v"]), "review_rating": few([None, 1.0, 4.5]),
    "review_rating_refused": few([None, False, True]),
    "review_visited_date": few([None, 0, 7]), "review_place_id": few(["p", "q"]), "like_regymdt": few([None, 0, 7]),
    "like_displayid": few([None, "d"]), "like_contentsid": few(["p", "q"]), "place_id": few(["p", "q"]),
    "place_category_code_list": few([None, [], [1], [2, 10], [2, 9]]), "place_dongcode": few([None, "a"]),
    "place_name": few([None, "n"]), "place_lat": few([None, -1.5]), "place_lon": few([None, 2.0]),
    "other_idno": few(["v", "w"]), "relation_regymdt": few([None, 0, 7]), "relation_ended": few([None, False, True]),
    "landed_date": st.just("2026-06-01"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
@settings(max_examples=150, deadline=None)
def test_duplicates_are_resolved_whatever_their_order(kind: Kind, data: st.DataObject) -> None:
    """Files arrive in any order; the winner must not depend on it, and nulls must not merge what has no key."""
    schema = LAYOUTS[kind].schema
    rows = data.draw(st.lists(st.fixed_dictionaries({name: optional[name] for name in schema.names}), max_size=12))
    shuffled = data.draw(st.permutations(rows))
    table = pa.Table.from_pylist(shuffled, schema)
    cut = data.draw(st.integers(0, len(rows)))
    found = lay_out(pa.concat_tables([table.slice(0, cut), table.slice(cut)]), LAYOUTS[kind])
    wanted = pa.Table.from_pylist(slow_twin(rows, kind), schema)
    assert found.to_pylist() == wanted.to_pylist()


# -- between days -----------------------------------------------------------------------------------------------------


def entries(mart: Manifest, partition: str) -> list[tuple[str, str]]:
    return [(entry.path, entry.sha256) for entry in mart.tables[partition]]


def test_a_day_landed_again_with_more_lines_is_built_anew(mart: Mart) -> None:
    """Late data for the same day must not be taken for what is finished already."""
    first = mart.day(1, reviews(review("1")))
    mart.latest = None
    second = mart.day(1, reviews(review("1"), review("2")))
    assert second.generation != first.generation and second.facts["counts"]["accepted"] == 2
    assert second.parents["collect"] != first.parents["collect"]


def test_a_new_day_adds_a_partition_and_refers_to_the_older_ones(mart: Mart) -> None:
    """An increment costs what it brings, not the whole past."""
    first = mart.day(1, reviews(review("1"), review("2", "u2")))
    second = mart.day(2, reviews(review("3"), review("4", "u2")))
    assert entries(second, "reviews/2026-06-01") == entries(first, "reviews/2026-06-01")
    assert {path.split("/")[1] for path, _ in entries(second, "reviews/2026-06-02")} == {second.generation}
    assert sorted(row["review_id"] for row in mart.rows("reviews")) == ["1", "2", "3", "4"]


def test_an_edited_review_replaces_the_older_one_and_only_its_partition(mart: Mart) -> None:
    """The newest word of a user counts even when it is a lower rating of an earlier visit."""
    mart.day(1, reviews(review("1", rating=5.0, day=9), review("2", "u2")))
    middle = mart.day(2, reviews(review("3", "u3")))
    last = mart.day(3, reviews(review("1", rating=1.0, day=2)))
    assert [(row["review_rating"], row["landed_date"]) for row in mart.rows("reviews") if row["review_id"] == "1"] == [
        (1.0, "2026-06-03")
    ]
    assert len(mart.rows("reviews")) == 3
    assert entries(last, "reviews/2026-06-02") == entries(middle, "reviews/2026-06-02")
    assert all(last.generation in path for path, _ in entries(last, "reviews/2026-06-01"))


def test_the_same_review_id_of_two_users_is_two_reviews(mart: Mart) -> None:
    """Ids are unique per user only; a foreign id must not delete a visit."""
    mart.day(1, reviews(review("1", "u1")))
    mart.day(2, reviews(review("1", "u2")))
    assert len(mart.rows("reviews")) == 2


@pytest.mark.parametrize("kind", ["follows", "blocks"])
def test_of_two_people_the_latest_word_holds_and_each_pair_has_its_own(mart: Mart, kind: Kind) -> None:
    """A second block in place of the first would show somebody to whom they fled from."""

    def said(*words: tuple[str, str, bool]) -> dict[str, list[Row]]:
        lines = [{"user_idno": a, "other_idno": b, "relation_ended": end} for a, b, end in words]
        return {**reviews(review("1")), f"{kind}.jsonl": lines}

    mart.day(1, said(("ann", "bob", False), ("ann", "cid", False), ("bob", "ann", False)))
    mart.day(2, said(("ann", "cid", True), ("ann", "dot", False)))
    assert [(row["user_idno"], row["other_idno"], row["relation_ended"]) for row in plain(mart, kind)] == [
        ("ann", "bob", False),
        ("ann", "cid", True),
        ("ann", "dot", False),
        ("bob", "ann", False),
    ]


def test_two_likes_of_one_place_at_two_times_are_two(mart: Mart) -> None:
    """A like has no id: all that is known of it is its name."""
    mart.day(1, {"likes.jsonl": [like("u", "p", 1), like("u", "p", 2), like("u", "p", 2), like("u", "q", 2)]})
    mart.day(2, {"likes.jsonl": [like("u", "p", 3), like("u", "p", 1)]})
    assert len(plain(mart, "likes")) == 4


def test_a_partition_of_which_everything_was_replaced_is_gone(mart: Mart) -> None:
    mart.day(1, reviews(review("1", rating=2.0)))
    assert set(mart.day(2, reviews(review("1", rating=3.0))).tables) == {"reviews/2026-06-02", "quarantine"}


def test_a_snapshot_sent_again_adds_nothing(mart: Mart) -> None:
    """Also where it holds two versions of one review: the one that lost must not come back as news."""
    files = {
        **reviews(review("1", rating=3.0), review("1", rating=5.0), review(None), review(None), review("2", "u2")),
        "likes.jsonl": [like("u1", "p1"), like("u1", "p1"), {**like("u2", "p1"), "like_regymdt": None}],
        "places.jsonl": [{"place_id": "p1", "place_dongcode": "a"}, {"place_id": "p1", "place_dongcode": "b"}],
    }
    first = mart.day(1, files)
    second = mart.day(2, files)
    assert {key: files for key, files in second.tables.items() if files} == {
        key: files for key, files in first.tables.items() if files
    }


def test_a_late_event_is_kept_with_the_day_it_was_landed(mart: Mart) -> None:
    mart.day(1, reviews(review("1", day=20)))
    mart.day(2, reviews(review("2", day=3)))
    assert {row["review_id"]: row["landed_date"] for row in mart.rows("reviews")} == {
        "1": "2026-06-01",
        "2": "2026-06-02",
    }


def test_a_day_without_events_keeps_what_was_known(mart: Mart) -> None:
    first = mart.day(1, {**reviews(review("1")), "likes.jsonl": [like("u1", "p1")]})
    second = mart.day(2, {"likes.jsonl": b""})
    assert {k: v for k, v in second.tables.items() if v} == {k: v for k, v in first.tables.items() if v}


def test_a_place_that_moves_has_its_new_region_only(mart: Mart) -> None:
    mart.day(1, {**reviews(review("1")), "places.jsonl": [{"place_id": "p1", "place_dongcode": "z"}]})
    mart.day(2, {**reviews(review("2")), "places.jsonl": [{"place_id": "p1", "place_dongcode": "a"}]})
    assert [(row["place_id"], row["place_dongcode"]) for row in mart.rows("places")] == [("p1", "a")]


@pytest.mark.parametrize("seed", [1, 2])
def test_days_merged_one_by_one_equal_a_rebuild_from_everything(
    mart: Mart, tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    """Where each later landing is also the greater row, the two rules agree and the path must not show."""
    rng = random.Random(seed)
    days: list[dict[str, list[Row]]] = [{"reviews.jsonl": [], "likes.jsonl": []} for _ in range(3)]
    for number, files in enumerate(days):
        for _ in range(60):
            key, user = str(rng.randrange(30)), f"u{rng.randrange(4)}"
            files["reviews.jsonl"].append(
                review(key, user, f"p{rng.randrange(5)}", day=10 * number + rng.randrange(1, 9))
            )
            files["reviews.jsonl"].append(review(None, user, f"p{rng.randrange(3)}", day=rng.randrange(1, 4)))
            files["likes.jsonl"].append(like(user, f"p{rng.randrange(9)}", rng.randrange(1, 4)))
        mart.day(number + 1, files)
    whole = Mart(mart.engine, tmp_path_factory.mktemp("whole"), mart.config)
    whole.day(3, {name: [row for files in days for row in files[name]] for name in days[0]})
    for kind in KINDS:
        assert plain(mart, kind) == plain(whole, kind)
