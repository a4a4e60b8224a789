"""Which accounts count as one person's, or as nobody's."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tastetwin.analysis.accounts import MIN_PLACES, bursts, cluster_labels, duplicate_edges
from tastetwin.config import ListsConfig
from tastetwin.features.histories import FIRST_PLACE_ROW, UNKNOWN_DAY, Histories, Vocabulary

ROWS = 40
FIRST_GROUP = 36


def vocabulary() -> Vocabulary:
    """Rows 2..35 are places, 36..39 fallback groups."""
    return dataclasses.replace(wide_vocabulary(ROWS), is_group=np.arange(ROWS) >= FIRST_GROUP)


def wide_vocabulary(rows: int) -> Vocabulary:
    return Vocabulary(
        np.array([str(row) for row in range(rows)], dtype=object),
        np.zeros(rows, bool),
        np.zeros(rows + 1, np.int64),
        np.zeros(0, np.int32),
        np.full(rows, -1, np.int32),
        np.zeros(0, np.int64),
        np.zeros(0, object),
        np.full((rows, 2), np.nan, np.float32),
    )


def histories(users: Sequence[Sequence[int]]) -> Histories:
    places = np.array([place for user in users for place in user], np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(user) for user in users])]).astype(np.int64)
    ids = np.array([f"{number:03d}" for number in range(len(users))], dtype=object)
    return Histories(ids, offsets, places, *(np.ones(len(places), np.float32),) * 2, np.zeros(len(places), np.int32))


def slow(users: Sequence[Sequence[int]], overlap: float) -> set[tuple[int, int]]:
    """The definition: pairs of whom both have enough places of their own right, whose sets overlap so much, and not by
    chance."""
    compared = [number for number, user in enumerate(users) if sum(place < FIRST_GROUP for place in user) >= MIN_PLACES]
    different = {frozenset(users[number]) for number in compared}

    def by_chance(shared: set[int]) -> float:
        shares = [sum(place in places for places in different) / (len(different) + 1) for place in shared]
        return math.prod(shares) * math.comb(len(compared), 2)

    return {
        (a, b)
        for a, b in itertools.combinations(compared, 2)
        if len({*users[a]} & {*users[b]}) >= overlap * len({*users[a], *users[b]})
        and by_chance({*users[a]} & {*users[b]}) < 1
    }


def found(users: Sequence[Sequence[int]], overlap: float) -> set[tuple[int, int]]:
    first, second = duplicate_edges(histories(users), vocabulary(), overlap)
    return {(int(a), int(b)) for a, b in zip(first, second, strict=True)}


_user = st.lists(st.integers(FIRST_PLACE_ROW, ROWS - 1), max_size=8, unique=True)


@settings(deadline=None)
@given(
    st.lists(_user, min_size=1, max_size=6).flatmap(lambda pool: st.lists(st.sampled_from(pool), max_size=12)),
)
def test_equal_sets_are_always_found_together(users: list[list[int]]) -> None:
    """Order of visits must not matter, nor users without any place; no pair is found that is none."""
    rng = np.random.default_rng(len(users))
    mixed = [[int(place) for place in rng.permutation(user)] for user in users]
    wanted = slow(mixed, 1.0)
    labels = cluster_labels(histories(mixed), vocabulary(), ListsConfig(duplicate_overlap=1.0))
    assert found(mixed, 1.0) <= wanted
    for user, label in enumerate(labels.tolist()):
        same = [first for first, second in wanted if second == user]
        assert label == min([user, *same])


def test_nearly_all_near_identical_accounts_are_found_and_no_others() -> None:
    """300 people and 100 copies of some of them, each with one place of twenty changed (overlap 19 / 21)."""
    rng = np.random.default_rng(1)
    people = [rng.choice(np.arange(2, 4000), 20, replace=False).tolist() for _ in range(300)]
    copies = [[*people[number][1:], 4000 + number] for number in range(100)]
    first, second = duplicate_edges(histories([*people, *copies]), wide_vocabulary(4200), 0.9)
    pairs = set(zip(first.tolist(), second.tolist(), strict=True))
    assert pairs <= {(number, 300 + number) for number in range(100)}
    assert len(pairs) >= 98


def test_four_shared_places_are_no_duplicate_and_five_are() -> None:
    """The threshold itself."""
    assert found([[2, 3, 4, 5], [5, 4, 3, 2]], 0.9) == set()
    assert found([[2, 3, 4, 5, 6], [6, 5, 4, 3, 2]], 0.9) == {(0, 1)}


def test_where_there_are_few_places_people_who_share_them_all_are_people() -> None:
    """Of a chain with eight branches: 500 customers have 93 sets of five and more between them."""
    rng = np.random.default_rng(4)
    people = [rng.choice(np.arange(2, 10), rng.integers(5, 9), replace=False).tolist() for _ in range(500)]
    assert found(people, 0.9) == set()


def test_copies_do_not_excuse_each_other() -> None:
    """A hundred accounts with the same five places among a hundred people: the places look popular, and are not."""
    rng = np.random.default_rng(5)
    people = [rng.choice(np.arange(7, FIRST_GROUP), 6, replace=False).tolist() for _ in range(100)]
    copies = [rng.permutation(np.arange(2, 7)).tolist() for _ in range(100)]
    labels = cluster_labels(histories([*people, *copies]), vocabulary(), ListsConfig())
    assert set(labels[100:].tolist()) == {100}


def test_fallback_groups_do_not_make_duplicates() -> None:
    """Two people in one quarter may both favor only rare cafes there: that is no proof of one person."""
    user = [2, 3, 36, 37, 38]
    assert found([user, user], 0.9) == set()


def farm(accounts: int, guests: int) -> Histories:
    """Accounts that were five times at place 10 and once at two others; guests who were there once, among others."""
    rng = np.random.default_rng(3)
    fans = [[10, *rng.choice(np.arange(11, 30), 2, replace=False).tolist()] for _ in range(accounts)]
    others = [[10, *rng.choice(np.arange(11, 30), 4, replace=False).tolist()] for _ in range(guests)]
    made = histories([*others, *fans])
    visits = made.visits.copy()
    visits[made.offsets[guests:-1]] = 5
    return dataclasses.replace(made, visits=visits)


def test_a_farm_around_one_place_becomes_one_account() -> None:
    """Twenty of them and twenty guests; the guests are people."""
    labels = cluster_labels(farm(20, 20), vocabulary(), ListsConfig(farm_accounts=20))
    assert labels[:20].tolist() == list(range(20)) and set(labels[20:].tolist()) == {20}


@pytest.mark.parametrize(
    ("visits", "others", "is_farm"),
    [(3, 2, True), (2, 1, False), (5, 4, True), (5, 5, False), (20, 9, True), (20, 10, False)],
)
def test_who_lives_for_one_place_is_there_often_and_more_than_anywhere_else(
    visits: int, others: int, is_farm: bool
) -> None:
    """Three visits at least, more than to all others together, and ten places at most: a regular's life is wider."""
    fans = histories([[10, *range(11, 11 + others)]] * 20)
    made = dataclasses.replace(fans, visits=np.where(fans.places == 10, visits, 1).astype(np.float32))
    rules = ListsConfig(farm_accounts=20, duplicate_overlap=1.0)
    labels = cluster_labels(made, dataclasses.replace(vocabulary(), is_group=np.arange(ROWS) > 10), rules)
    assert labels.tolist() == ([0] * 20 if is_farm else list(range(20)))


def test_a_group_of_rare_places_is_no_farm() -> None:
    """People of a quarter with rare places only are people."""
    made = farm(25, 0)
    rural = dataclasses.replace(made, places=np.where(made.places == 10, FIRST_GROUP, made.places).astype(np.int32))
    assert cluster_labels(rural, vocabulary(), ListsConfig(farm_accounts=20)).tolist() == list(range(25))


@pytest.mark.parametrize(("accounts", "guests"), [(19, 0), (20, 21)])
def test_faithful_guests_are_no_farm(accounts: int, guests: int) -> None:
    """Too few of them, or a place that most others go to as well."""
    labels = cluster_labels(farm(accounts, guests), vocabulary(), ListsConfig(farm_accounts=20))
    assert labels.tolist() == list(range(accounts + guests))


def test_a_burst_is_most_of_a_history_on_one_day() -> None:
    """Twelve places of 20; of 30, or of 24, they are a holiday; on unknown days they say nothing; nor does a trip."""
    many = [[*range(2, 22)], [*range(2, 32)], [*range(2, 22)], [*range(2, 22)], [*range(2, 26)]]
    made = histories(many)
    days = np.arange(len(made.places), dtype=np.int32)
    days[0:12] = days[20:32] = 7
    days[50:62] = UNKNOWN_DAY
    days[90:102] = 7
    assert bursts(dataclasses.replace(made, days=days), 12).tolist() == [True, False, False, False, False]
    assert not bursts(dataclasses.replace(made, days=days), 13).any()


def test_a_day_that_is_most_of_what_many_have_is_the_source_s() -> None:
    """Events that all carry the day of an import must not hide those who have most of them."""
    made = histories([[*range(2, 22)]] * 2 + [[*range(2, 12)]] * 18)
    days = np.repeat(np.arange(20, dtype=np.int32), made.lengths())
    alone = dataclasses.replace(made, days=days.copy())
    assert bursts(alone, 12).nonzero()[0].tolist() == [0, 1]
    days[days > 16] = 0  # 3 of 18 ordinary users came with the first one, none with the second
    assert bursts(dataclasses.replace(made, days=days), 12).nonzero()[0].tolist() == [1]


def test_histories_without_places_are_nobodys_pattern() -> None:
    """Nothing to divide by."""
    nobody = histories([[], []])
    assert cluster_labels(nobody, vocabulary(), ListsConfig()).tolist() == [0, 1]
    assert bursts(nobody, 2).tolist() == [False, False]
