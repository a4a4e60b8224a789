"""A user's home area, by hand and beside a slow twin."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tastetwin.features.histories import FIRST_PLACE_ROW
from tastetwin.features.home import home_region, home_regions
from tests.evaluation.planted import REGIONS, make_histories, make_vocabulary

Region = int
NOWHERE: Region = -1

regions_of_users = st.lists(st.lists(st.integers(NOWHERE, REGIONS - 1), max_size=8), max_size=6)


def homes(users: list[list[Region]]) -> list[int]:
    """The homes of users whose places, all different, lie in these regions."""
    flat = [region for places in users for region in places]
    vocabulary = make_vocabulary(len(flat), np.array(flat, np.int32), np.zeros(len(flat), np.int32))
    starts = np.cumsum([FIRST_PLACE_ROW, *map(len, users)])
    rows = {f"u{n}": list(range(starts[n], starts[n] + len(places))) for n, places in enumerate(users)}
    found = home_regions(make_histories(rows), vocabulary)
    assert found.dtype == np.int32
    assert [home_region(np.array(row, np.int32), vocabulary) for row in rows.values()] == found.tolist()
    return [int(home) for home in found]


def test_the_home_is_the_region_of_most_places() -> None:
    """Each user by itself: the first one's many places in region 3 must not move the second there."""
    assert homes([[3, 3, 3, 1], [1, 0, 1], [2]]) == [3, 1, 2]


def test_on_ties_the_smaller_region_is_home() -> None:
    """In whatever order the places were visited, so that a re-run agrees."""
    assert homes([[2, 1], [1, 2], [3, 0, 3, 0], [1, 2, 3]]) == [1, 1, 0, 1]


def test_places_of_unknown_region_do_not_vote() -> None:
    """They may be the most; one place that is known is better than none."""
    assert homes([[NOWHERE, NOWHERE, 2], [NOWHERE], [], [0]]) == [2, -1, -1, 0]


def test_where_no_region_is_known_nobody_has_a_home() -> None:
    """A source without places, and a town without users."""
    assert homes([[NOWHERE, NOWHERE], []]) == [-1, -1]
    assert homes([]) == []


def test_a_place_counts_once_however_often_it_is_visited_and_for_everybody_who_goes_there() -> None:
    """Places are shared between users; histories name each place once."""
    vocabulary = make_vocabulary(4, np.array([0, 1, 1, 2], np.int32), np.zeros(4, np.int32))
    histories = make_histories({"a": [2, 3, 4], "b": [4, 2], "c": [5, 3, 4], "d": [5]})
    assert home_regions(histories, vocabulary).tolist() == [1, 0, 1, 2]


@given(regions_of_users)
@settings(max_examples=200, deadline=None)
def test_homes_equal_the_slow_twin(users: list[list[Region]]) -> None:
    """Ties, unknown regions, users without places, all mixed."""
    counts = [Counter(region for region in places if region != NOWHERE) for places in users]
    wanted = [min(found, key=lambda region: (-found[region], region), default=NOWHERE) for found in counts]
    assert homes(users) == wanted
