"""Do twins' places tell the future? On worlds small enough to rank by eye."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp

from tastetwin.evaluation.dataset import first_of, split_by_time
from tastetwin.evaluation.utility import (
    Future,
    crowds,
    item_knn,
    ndcg_and_recall,
    popularity,
    popularity_at_home,
    twins_places,
)
from tastetwin.features.histories import FIRST_PLACE_ROW
from tests.evaluation.planted import make_histories, make_vocabulary, unit

PLACES = 6


def future(past: dict[str, list[int]], visits: dict[str, list[int]], regions: list[int] | None = None) -> Future:
    """Places are numbered from 0."""
    histories = make_histories({user: [FIRST_PLACE_ROW + p for p in places] for user, places in past.items()})
    width = FIRST_PLACE_ROW + PLACES

    def matrix(rows: dict[str, list[int]]) -> sp.csr_matrix:
        dense = np.zeros((len(past), width), np.float32)
        for at, user in enumerate(sorted(past)):
            dense[at, [FIRST_PLACE_ROW + p for p in rows.get(user, [])]] = 1
        return sp.csr_matrix(dense)

    kinds = np.zeros(PLACES, np.int32)
    vocabulary = make_vocabulary(PLACES, np.array(regions or [0] * PLACES, np.int32), kinds)
    return Future(histories, matrix(past), matrix(visits), vocabulary)


WORLD = future(
    {"a": [0, 1, 2], "b": [0, 1, 3], "c": [4, 5, 2], "d": [4, 5, 3]}, {"a": [3], "c": [3]}, regions=[0, 0, 0, 1, 1, 1]
)


def test_the_places_of_the_nearest_twin_come_first() -> None:
    """a's only twin is b, whose place 3 is where a will go: a perfect list. c's is a stranger who knows it not."""
    vectors = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    ndcg, recall = ndcg_and_recall(WORLD, twins_places(WORLD, vectors, 1))
    assert ndcg.tolist() == pytest.approx([1, 1]) and recall.tolist() == [1, 1]
    wrong = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], np.float32)
    ndcg, _ = ndcg_and_recall(WORLD, twins_places(WORLD, wrong, 1))
    assert ndcg.max() < 0.7, "a's twin is c: 4 and 5 first, 3 with the rest"


def test_a_twin_in_the_opposite_direction_does_not_vote() -> None:
    """A negative similarity must not count against places, nor for them."""
    vectors = np.array([[1, 0], [-1, 0], [-1, 0], [-1, 0]], np.float32)
    ((_, scores),) = list(twins_places(WORLD, vectors, 3)())
    assert not scores[0].any()


def test_csls_keeps_hubs_from_voting_and_weighs_the_votes() -> None:
    """b is a hub: a asks b without CSLS, with it c, who is a little farther from a and far from all others."""
    vectors = unit(np.array([[1, 0, 0], [1, 1, 1], [0.55, -0.835, 0], [0, 0, 1]]))
    found = vectors @ vectors.T
    crowd = crowds(vectors)
    np.testing.assert_allclose(crowd, found[~np.eye(4, dtype=bool)].reshape(4, 3).mean(axis=1), rtol=1e-5)
    for less, twin in ((0, 1), (crowd, 2)):
        ((_, scores),) = list(twins_places(WORLD, vectors, 1, less)())
        weight = found[0, twin] - np.broadcast_to(less, 4)[twin] / 2
        np.testing.assert_allclose(scores[0], weight * WORLD.matrix.toarray()[twin], rtol=1e-5)


def test_places_visited_before_are_never_the_answer() -> None:
    """The task is first visits; a list of the user's own places must earn nothing."""
    ndcg, _ = ndcg_and_recall(WORLD, lambda: iter([(0, WORLD.matrix.toarray())]))
    blank, _ = ndcg_and_recall(WORLD, lambda: iter([(0, np.zeros(WORLD.matrix.shape, np.float32))]))
    assert ndcg.tolist() == blank.tolist()


def test_ndcg_is_what_the_formula_says() -> None:
    """Two wanted places at ranks 2 and 3 of the list: (1/log2 3 + 1/log2 4) / (1 + 1/log2 3)."""
    world = future({"a": [0], "b": [1]}, {"a": [2, 3]})
    scores = np.zeros((2, FIRST_PLACE_ROW + PLACES), np.float32)
    scores[0, FIRST_PLACE_ROW + np.array([4, 2, 3])] = [3, 2, 1]
    ndcg, recall = ndcg_and_recall(world, lambda: iter([(0, scores)]))
    assert ndcg.tolist() == pytest.approx([(1 / np.log2(3) + 0.5) / (1 + 1 / np.log2(3))])
    assert recall.tolist() == [1]


def test_equal_scores_earn_nothing() -> None:
    """The order in which places are numbered must not pay: ids often follow age or popularity."""
    ndcg, recall = ndcg_and_recall(
        future({"a": [0], "b": [1]}, {"a": [2]}), lambda: iter([(0, np.zeros((2, 30), np.float32)[:, :8])])
    )
    assert recall.tolist() == [1] and ndcg[0] < 0.4, "last of the eight"


def test_the_popular_come_first_and_those_of_home_before_them() -> None:
    world = future({"a": [0, 1], "b": [0, 1, 3], "c": [3, 4], "d": [3]}, {}, regions=[0, 0, 0, 1, 1, 1])
    ((_, popular),) = list(popularity(world)())
    assert popular.shape == world.matrix.shape
    assert popular[:, FIRST_PLACE_ROW:].tolist() == [[2, 2, 0, 3, 1, 0]] * 4
    at_home = np.concatenate([block for _, block in popularity_at_home(world)()])[:, FIRST_PLACE_ROW:]
    assert np.argsort(-at_home[0], kind="stable").tolist()[:4] == [0, 1, 3, 4], "a lives where 0 and 1 are"
    assert np.argsort(-at_home[2], kind="stable").tolist()[:4] == [3, 4, 0, 1], "c where 3 and 4 are"


def test_item_knn_is_the_cosine_of_columns() -> None:
    """Beside the formula written out over dense arrays."""
    visits = WORLD.matrix.toarray()
    visitors = np.maximum(visits.sum(axis=0), 1)
    cosine = (visits.T @ visits) / np.sqrt(visitors[:, None] * visitors)
    np.fill_diagonal(cosine, 0)
    wanted = (visits * np.log1p(4 / visitors)) @ cosine
    found = np.concatenate([block for _, block in item_knn(WORLD)()])
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def favors(rows: Sequence[tuple[str, int | None, str]]) -> pa.Table:
    at = [None if day is None else datetime(2026, 1, day) for _, day, _ in rows]
    return pa.table(
        {"user_idno": [row[0] for row in rows], "at": pa.array(at, pa.timestamp("us")), "name": [r[2] for r in rows]}
    )


def test_one_cut_in_time_for_everybody_where_times_are_known() -> None:
    """A user who came late has only a future: nobody is judged by what was not yet known."""
    table = favors([("a", day, str(day)) for day in range(1, 9)] + [("late", 9, "9"), ("late", 10, "10")])
    earlier, later = split_by_time(table, 0.8)
    assert earlier.column("name").to_pylist() == [str(day) for day in range(1, 9)]
    assert later.column("user_idno").to_pylist() == ["late", "late"]


def test_each_users_own_order_where_times_are_missing() -> None:
    table = favors([("a", None, f"r{n}") for n in range(5)] + [("b", None, f"r{n}") for n in range(10)])
    earlier, later = split_by_time(table.take([14, 3, 0, 7, 1, 2, 4, 5, 6, 8, 9, 10, 11, 12, 13]), 0.8)
    assert sorted(zip(*[later.column(name).to_pylist() for name in ("user_idno", "name")], strict=True)) == [
        ("a", "r4"), ("b", "r8"), ("b", "r9"),
    ]  # fmt: skip
    assert len(earlier) == 12


def test_the_next_favors_in_time_come_first_and_ties_hang_on_no_order_of_the_table() -> None:
    rows = [("a", 3, "x"), ("b", 2, "y"), ("c", 3, "z"), ("a", 5, "w"), ("c", 3, "v")]
    whole = favors(rows)
    for count in range(6):
        found = first_of(whole, count)
        days = [moment.day for moment in found.column("at").to_pylist()]
        assert days == [2, 3, 3, 3, 5][:count]
        again = first_of(whole.take([4, 3, 2, 1, 0]), count)
        assert found.column("name").to_pylist() == again.column("name").to_pylist()


def test_without_times_everybodys_next_favor_comes_before_anybodys_second() -> None:
    """In the order of each: whoever has few favors is as likely to have one of the day as others."""
    users = [f"u{n:02}" for n in range(40)]
    later = favors([(user, None, f"{user} {n}") for user in users for n in range(3)])
    first, second = (first_of(later, count).column("name").to_pylist() for count in (10, 60))
    assert second[:10] == first and len({*first}) == 10
    assert {*second[:40]} == {f"{user} 0" for user in users}
    assert all(name.endswith(" 1") for name in second[40:])
    assert first != [f"{user} 0" for user in users[:10]], "drawn, not the first by id"
