"""Which accounts count as one person's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tastetwin.analysis.duplicates import MIN_PLACES, duplicate_labels
from tastetwin.features.histories import FIRST_PLACE_ROW, Histories, Vocabulary

ROWS = 40
FIRST_GROUP = 36


def vocabulary() -> Vocabulary:
    """Rows 2..35 are places, 36..39 fallback groups."""
    return Vocabulary(
        np.array([str(row) for row in range(ROWS)], dtype=object),
        np.arange(ROWS) >= FIRST_GROUP,
        np.zeros(ROWS + 1, np.int64),
        np.zeros(0, np.int32),
        np.full(ROWS, -1, np.int32),
        np.zeros(0, np.int64),
        np.zeros(0, object),
        np.full((ROWS, 2), np.nan, np.float32),
    )


def histories(users: Sequence[Sequence[int]]) -> Histories:
    places = np.array([place for user in users for place in user], np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(user) for user in users])]).astype(np.int64)
    ids = np.array([f"{number:03d}" for number in range(len(users))], dtype=object)
    return Histories(ids, offsets, places, *(np.ones(len(places), np.float32),) * 2, np.zeros(len(places), np.int32))


def slow(users: Sequence[Sequence[int]]) -> list[int]:
    """The definition: the first earlier user with an equal set, where the set has enough places of its own right."""
    labels = []
    for number, user in enumerate(users):
        named = sum(place < FIRST_GROUP for place in user)
        same = [other for other in range(number) if set(users[other]) == set(user)]
        labels.append(same[0] if same and named >= MIN_PLACES else number)
    return labels


_user = st.lists(st.integers(FIRST_PLACE_ROW, ROWS - 1), max_size=8, unique=True)


@given(
    st.lists(_user, min_size=1, max_size=6).flatmap(lambda pool: st.lists(st.sampled_from(pool), max_size=12)),
)
def test_labels_equal_the_definition(users: list[list[int]]) -> None:
    """Order of visits must not matter, nor users without any place."""
    rng = np.random.default_rng(len(users))
    mixed = [[int(place) for place in rng.permutation(user)] for user in users]
    assert duplicate_labels(histories(mixed), vocabulary()).tolist() == slow(mixed)


def test_four_shared_places_are_no_duplicate_and_five_are() -> None:
    """The threshold itself."""
    assert duplicate_labels(histories([[2, 3, 4, 5], [5, 4, 3, 2]]), vocabulary()).tolist() == [0, 1]
    assert duplicate_labels(histories([[2, 3, 4, 5, 6], [6, 5, 4, 3, 2]]), vocabulary()).tolist() == [0, 0]


def test_fallback_groups_do_not_make_duplicates() -> None:
    """Two people in one quarter may both favor only rare cafes there: that is no proof of one person."""
    user = [2, 3, 36, 37, 38]
    assert duplicate_labels(histories([user, user]), vocabulary()).tolist() == [0, 1]
