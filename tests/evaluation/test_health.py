"""List health against tables small enough to count by hand."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import pytest

from tastetwin.evaluation.health import (
    EarlierLists,
    ServedUsers,
    effective_rank,
    gini,
    list_health,
    lorenz,
    reciprocity,
    skewness,
    stability,
    vector_health,
)
from tests.evaluation.planted import make_histories, model_run, nearest, unit, world

CODES = np.array(["home", "away"], object)
CHAIN = np.array([[1, 2], [0, -1], [0, 1], [-1, -1]], np.int32)
"""0 shows 1 and 2, 1 shows 0, 2 shows 0 and 1, 3 has no list and is shown to nobody."""


def _served(n: int) -> ServedUsers:
    histories = make_histories({f"u{i}": [2, 3 + i] for i in range(n)})
    return ServedUsers(histories, np.zeros(n, np.int32), np.array(["home"], object), unit(np.eye(n) + 0.1))


def test_chain_by_hand() -> None:
    """Five entries: 0 and 1 shown twice, 2 once, 3 never; 0-1 and 0-2 are mutual, 2-1 is not: 4 of 5."""
    health = list_health(_served(4), CHAIN, None, seed=0)
    assert (health.users, health.k, health.served) == (4, 2, 3)
    assert health.never_shown == 0.25
    assert health.reciprocity == pytest.approx(4 / 5)
    assert health.top_share == pytest.approx(4 / 5)
    assert (health.out_of_range, health.self_share, health.duplicate_share) == (0, 0, 0)
    assert health.stability is None
    everyone = next(c for c in health.coverage if c.kind == "region")
    assert (everyone.users, everyone.served, everyone.shown) == (4, 0.75, 0.75)


def test_faulty_entries_are_counted() -> None:
    """Out of range, oneself, and the same twin twice."""
    twins = np.array([[1, 9], [1, 0], [0, 0], [-7, 2]], np.int32)
    health = list_health(_served(4), twins, None, seed=0)
    assert health.out_of_range == 2
    assert health.self_share == 0.25
    assert health.duplicate_share == 0.25


def test_gini_by_hand() -> None:
    """All alike: 0. One user holds everything: 1 - 1/n. The table 1, 3: 1/4."""
    assert gini(np.array([5, 5, 5])) == pytest.approx(0)
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(0.75)
    assert gini(np.array([1, 3])) == pytest.approx(0.25)
    assert gini(np.zeros(3, np.int64)) == 0


def test_lorenz_and_skewness_by_hand() -> None:
    """Half the users hold a quarter of the slots; a symmetric table has no skew, a hub skews to the right."""
    curve = lorenz(np.array([1, 3]))
    assert (curve[0], curve[25], curve[-1]) == pytest.approx((0, 0.25, 1))
    assert skewness(np.array([1, 2, 3])) == pytest.approx(0)
    assert skewness(np.array([0, 0, 0, 9])) > 1


def test_reciprocity_of_pairs_and_of_a_ring() -> None:
    """Two who list each other: 1. A ring of three: 0."""
    assert reciprocity(np.array([[1], [0]], np.int32), np.array([0, 1])) == 1
    assert reciprocity(np.array([[1], [2], [0]], np.int32), np.array([0, 1, 2])) == 0


def test_stability_compares_by_external_id() -> None:
    """Rows move from day to day; only ids count. One of three distinct twins kept: 1/3; a new user is left out."""
    ids = np.array(["a", "b", "c", "new"], object)
    twins = np.array([[1, 2], [0, -1], [-1, -1], [0, 1]], np.int32)
    earlier = EarlierLists(np.array(["b", "a"], object), np.array([["a", ""], ["c", "gone"]], object))
    assert stability(ids, twins, earlier, seed=0) == pytest.approx((1 / 3 + 1) / 2)
    nobody = EarlierLists(np.array(["z"], object), np.array([["a"]], object))
    assert stability(ids, twins, nobody, seed=0) is None


def test_vector_health_sees_nan_length_and_collapse() -> None:
    """Each fault shows in its own number."""
    good = unit(np.random.default_rng(0).standard_normal((300, 16)))
    healthy = vector_health(good, seed=0)
    assert healthy.not_finite == 0 and healthy.norm_error < 1e-5
    assert abs(healthy.mean_cosine) < 0.05 and healthy.effective_rank > 14
    broken = good.copy()
    broken[7, 3] = np.nan
    assert vector_health(broken, seed=0).not_finite == 1
    assert vector_health(good * 2, seed=0).norm_error == pytest.approx(1, abs=1e-5)
    assert vector_health(np.tile(good[:1], (50, 1)), seed=0).mean_cosine == pytest.approx(1)


def test_effective_rank_counts_directions() -> None:
    """k equally strong directions: k. A point: 0."""
    assert effective_rank(np.concatenate([np.eye(4), -np.eye(4)])) == pytest.approx(4)
    assert effective_rank(np.ones((5, 3))) == 0


def test_agreement_and_overlap_tell_true_lists_from_shuffled_ones() -> None:
    """Exact lists agree fully with their vectors; lists of other rows agree no more than chance does."""
    planted, run = world(), model_run(seed=1)
    served = ServedUsers(planted.histories, np.zeros(500, np.int32), np.array(["r"], object), run.vectors)
    exact = list_health(served, nearest(run.vectors), None, seed=0)
    shuffled = list_health(served, nearest(run.vectors)[np.random.default_rng(0).permutation(500)], None, seed=0)
    assert exact.agreement == pytest.approx(1)
    assert abs(shuffled.agreement) < 0.1
    assert np.mean(exact.overlap_twins) > 2 * np.mean(exact.overlap_random)
    assert np.mean(shuffled.overlap_twins) < 1.2 * np.mean(shuffled.overlap_random)


@pytest.mark.parametrize(("among", "wanted"), [("any", 0.0), ("other", 1.0)])
def test_agreement_looks_at_those_whom_the_rule_lets_in(among: Literal["any", "other"], wanted: float) -> None:
    """Everybody has a double at home and a friend elsewhere: the friend is the nearest who may be shown."""
    rng = np.random.default_rng(1)
    place = unit(rng.standard_normal((50, 8)))
    vectors = unit(np.concatenate([place, place + 1e-3, place + 0.2 * unit(rng.standard_normal((50, 8)))]))
    regions = np.repeat([0, 0, 1], 50).astype(np.int32)
    elsewhere = np.arange(100, 150, dtype=np.int32)
    twins = np.concatenate([elsewhere, elsewhere, np.arange(50, dtype=np.int32)])[:, None]
    served = dataclasses.replace(_served(150), regions=regions, vectors=vectors, among=among, region_codes=CODES)
    agreement = list_health(served, twins, None, seed=0).agreement
    assert (agreement > 0.99) == (wanted == 1.0)
