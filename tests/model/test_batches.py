"""Histories as padded arrays: nothing lost but the oldest, nothing invented."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tastetwin.features.histories import PAD_ROW, UNKNOWN_DAY, Histories
from tastetwin.model.batches import UNKNOWN_AGE, cut_catalogue, length_buckets, pack, pad
from tests.model import towns


def two_users() -> Histories:
    return Histories(
        np.array(["a", "b"], object),
        np.array([0, 3, 4]),
        np.array([5, 6, 7, 8], np.int32),
        np.array([1, 2, 1, 3], np.float32),
        np.array([0.5, np.nan, -1, 2], np.float32),
        np.array([10, 20, 25, UNKNOWN_DAY], np.int32),
    )


def test_a_batch_by_hand() -> None:
    """Every number can be checked by eye: padding, unknown rating as 0, ages from the user's own latest."""
    batch = pad(two_users(), np.array([1, 0]), max_length=10)
    assert batch.places.tolist() == [[8, PAD_ROW, PAD_ROW], [5, 6, 7]]
    assert batch.visits.tolist() == [[3, 0, 0], [1, 2, 1]]
    assert batch.ratings.tolist() == [[2, 0, 0], [0.5, 0, -1]]
    assert batch.ages.tolist() == [[UNKNOWN_AGE] * 3, [15, 5, 0]]


def test_the_most_recent_places_are_kept() -> None:
    """Truncation must drop the oldest taste, not the newest."""
    assert pad(two_users(), np.array([0]), max_length=2).places.tolist() == [[6, 7]]


@given(st.lists(st.floats(width=32), min_size=4, max_size=4))
def test_every_rating_is_a_number_that_the_model_can_read(ratings: list[float]) -> None:
    """Bit for bit as ``np.nan_to_num``, with which bundles were trained."""
    histories = replace(two_users(), ratings=np.array(ratings, np.float32))
    wanted = np.nan_to_num(histories.ratings)
    padded = pad(histories, np.array([0, 1]), 10)
    assert np.array_equal(padded.ratings[[0, 0, 0, 1], [0, 1, 2, 0]], wanted)
    assert np.array_equal(pack(histories, np.array([0, 1]), 10).ratings, wanted)


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 400))
def test_buckets_hold_every_user_once_within_the_budget(lengths: list[int], tokens: int) -> None:
    """A user lost between buckets would lose their twins without a word."""
    array = np.array(lengths, np.int64)
    buckets = list(length_buckets(array, tokens, max_length=100))
    assert sorted(np.concatenate(buckets).tolist() if buckets else []) == list(range(len(lengths)))
    for bucket in buckets:
        assert len(bucket) == 1 or len(bucket) * np.minimum(array[bucket], 100).max() <= tokens


def test_the_two_views_share_no_place_and_miss_none() -> None:
    """The contrastive objective is void if a place shows up on both sides."""
    town = towns.histories(users=20, places=30, groups=2, length=10, seed=0)
    a, b = cut_catalogue(town, np.arange(20), np.random.default_rng(0))
    for u in range(20):
        parts = [set(h.places[h.offsets[u] : h.offsets[u + 1]].tolist()) for h in (a, b, town)]
        assert parts[0] | parts[1] == parts[2]
        assert not parts[0] & parts[1]
