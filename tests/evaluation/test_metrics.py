"""Ranks, MRR, CSLS and intervals against tables that can be checked by eye."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from tastetwin.evaluation import metrics
from tastetwin.evaluation.metrics import (
    activity_buckets,
    bootstrap_mean,
    bootstrap_mean_by_user,
    bootstrap_ratio,
    bootstrap_ratio_by_user,
    hits,
    mean_nearest,
    reciprocal,
    region_buckets,
    true_twin_ranks,
    true_twin_ranks_among,
)
from tests.evaluation.planted import unit

A = np.eye(3, dtype=np.float32)
B = np.array([[0.6, 0.8, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]], np.float32)
"""Cosines of A and B: rows (.6 .8 0), (.8 .6 0), (0 0 1)."""
RAD = np.pi / 180


def test_ranks_by_hand() -> None:
    """Queries 0 and 1 are nearer to each other's twin; query 2 finds its own."""
    ranks = true_twin_ranks(A, B)
    assert ranks.tolist() == [2, 2, 1]
    assert reciprocal(ranks).tolist() == [0.5, 0.5, 1.0]
    assert hits(ranks, 1).tolist() == [0, 0, 1]


def test_csls_takes_a_hub_down() -> None:
    """Candidate 0 is near to everybody; with plain cosine it steals query 1's first rank, with CSLS it does not."""
    a, b = _at_degrees(0, 60), _at_degrees(25, 96)
    cosine = a @ b.T
    assert true_twin_ranks(a, b).tolist() == [1, 2]
    r_a, r_b = cosine.max(axis=1), cosine.max(axis=0)
    by_hand = 2 * cosine - r_a[:, None] - r_b
    assert by_hand[1] == pytest.approx(
        [
            2 * np.cos(35 * RAD) - np.cos(35 * RAD) - np.cos(25 * RAD),
            2 * np.cos(36 * RAD) - np.cos(35 * RAD) - np.cos(36 * RAD),
        ],
        abs=1e-6,
    )
    assert true_twin_ranks(a, b, csls_neighbours=1).tolist() == [1, 1]


def _at_degrees(*angles: float) -> npt.NDArray[np.float32]:
    return np.array([[np.cos(x * RAD), np.sin(x * RAD)] for x in angles], np.float32)


def test_mean_nearest_by_hand() -> None:
    """The mean of the two largest cosines of each row."""
    assert mean_nearest(A, B, 2) == pytest.approx([0.7, 0.7, 0.5])


def test_equal_vectors_earn_the_last_rank() -> None:
    """A collapsed model ties with everybody; optimistic ties would call it perfect."""
    same = np.full((50, 8), 1 / np.sqrt(8), np.float32)
    assert set(true_twin_ranks(same, same)) == {50}
    assert set(true_twin_ranks(same, same, csls_neighbours=10)) == {50}


def test_not_a_number_earns_the_last_rank() -> None:
    """NaN compares false with everything and must never look like a first rank."""
    broken = B.copy()
    broken[0] = np.nan
    assert true_twin_ranks(A, broken)[0] == 3


def test_blocks_sparse_and_dense_give_the_same_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded memory must not change an answer."""
    generator = np.random.default_rng(0)
    a, b = unit(generator.standard_normal((40, 6))), unit(generator.standard_normal((40, 6)))
    whole = true_twin_ranks(a, b, 5)
    monkeypatch.setattr(metrics, "BLOCK_SCORES", 90)
    assert np.array_equal(true_twin_ranks(a, b, 5), whole)
    assert np.array_equal(true_twin_ranks(sp.csr_matrix(a), sp.csr_matrix(b), 5), whole)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 3]))
@settings(max_examples=25, deadline=None)
def test_ranks_agree_with_sorting(seed: int, neighbours: int) -> None:
    """A slow twin: sort each row of scores and look the true one up."""
    generator = np.random.default_rng(seed)
    a, b = unit(generator.standard_normal((12, 4))), unit(generator.standard_normal((12, 4)))
    scores = _scores(a, b, neighbours)
    expected = [list(np.argsort(-row)).index(i) + 1 for i, row in enumerate(scores)]
    assert true_twin_ranks(a, b, neighbours).tolist() == expected
    everybody = np.array([[i, *(j for j in range(12) if j != i)] for i in range(12)])
    assert true_twin_ranks_among(a, b, everybody, neighbours).tolist() == expected


def _scores(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.float32]:
    cosine = a @ b.T
    if k == 0:
        return cosine
    r_a = np.sort(cosine, axis=1)[:, -k:].mean(axis=1)
    r_b = np.sort(cosine, axis=0)[-k:].mean(axis=0)
    return np.asarray(2 * cosine - r_a[:, None] - r_b)


def test_ranks_among_few_count_only_those() -> None:
    """Query 0 loses to candidate 1 only where candidate 1 takes part."""
    assert true_twin_ranks_among(A, B, np.array([[0, 2], [1, 0], [2, 0]])).tolist() == [1, 2, 1]


def test_bootstrap_covers_the_truth_about_95_times_in_100() -> None:
    """An interval that is too narrow lets noise decide what ships."""
    generator = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        interval = bootstrap_mean(generator.exponential(2.0, 200), 300, seed=trial)
        covered += interval.low <= 2.0 <= interval.high
    assert 180 <= covered <= 199


def test_ratio_is_paired() -> None:
    """Users differ a lot, the two methods by exactly 10 %: paired, that is certain; unpaired it would drown."""
    theirs = np.random.default_rng(2).exponential(1.0, 100)
    ratio = bootstrap_ratio(1.1 * theirs, theirs, 300, seed=0)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((1.1, 1.1, 1.1))


def test_buckets_are_exhaustive_and_disjoint() -> None:
    """Every user is in exactly one bucket; the edges are those of the published tables."""
    buckets = activity_buckets(np.array([1, 2, 3, 5, 6, 10, 11, 30, 31, 900]))
    assert {name: mask.nonzero()[0].tolist() for name, mask in buckets} == {
        "1-2": [0, 1],
        "3-5": [2, 3],
        "6-10": [4, 5],
        "11-30": [6, 7],
        "30+": [8, 9],
    }
    regions = np.array([0] * 9 + [1] * 7 + [2] * 6 + [3] * 4 + [-1], np.int32)
    named = {name: int(mask.sum()) for name, mask in region_buckets(regions, ["a", "b", "c", "d"], largest=2)}
    assert named == {"a": 9, "b": 7, "other": 10, "unknown": 1}


def test_a_user_with_many_values_is_drawn_as_one() -> None:
    """Five copies of every value are no more evidence than one; the naive interval would be less than half as wide."""
    values = np.random.default_rng(3).uniform(size=200)
    once = bootstrap_mean(values, 2_000, seed=1)
    owners = np.tile(np.arange(200), 5)
    again = bootstrap_mean_by_user(np.tile(values, 5), owners, 2_000, seed=1)
    assert again.value == pytest.approx(once.value)
    assert again.high - again.low == pytest.approx(once.high - once.low, rel=0.1)
    naive = bootstrap_mean(np.tile(values, 5), 2_000, seed=1)
    assert naive.high - naive.low < 0.5 * (again.high - again.low)


def test_a_ratio_by_user_weighs_all_values() -> None:
    """Owner a has two values, b one: the ratio is that of the means over all three."""
    ours, theirs = np.array([1.0, 0.5, 0.2]), np.array([0.5, 0.5, 0.4])
    found = bootstrap_ratio_by_user(ours, theirs, ["a", "a", "b"], 500, seed=1)
    assert found.value == pytest.approx(1.7 / 1.4)
    assert (found.low, found.high) == pytest.approx((0.5, 1.5))
