"""Friends and planted taste: vectors whose worth is known by construction."""

from __future__ import annotations

import numpy as np
import pytest

from tastetwin.evaluation.dataset import Truth
from tastetwin.evaluation.known import friends_auc, planted_taste
from tests.evaluation.planted import unit

IDS = np.array([f"u{n}" for n in range(400)], object)
RNG = np.random.default_rng(0)


def test_friends_who_are_alike_are_told_from_strangers() -> None:
    """400 users in pairs of friends with one vector each pair: the friend is always the nearest."""
    vectors = np.repeat(unit(RNG.standard_normal((200, 16))), 2, axis=0)
    friends = IDS.reshape(200, 2)
    auc, mrr = friends_auc(vectors, IDS, friends, seed=1)
    assert auc > 0.99 and mrr == 1


def test_friends_who_are_not_alike_are_not_told_from_strangers() -> None:
    auc, mrr = friends_auc(unit(RNG.standard_normal((400, 16))), IDS, IDS.reshape(200, 2), seed=1)
    assert abs(auc - 0.5) < 0.06 and mrr < 0.05


def test_friends_nobody_knows_are_passed_over() -> None:
    vectors = unit(RNG.standard_normal((400, 4)))
    found = friends_auc(vectors, IDS, np.array([["x", "u1"], ["u2", "u2"]], object), seed=1)
    assert np.isnan(found).all()


TASTE = RNG.dirichlet(np.full(6, 0.2), 400).astype(np.float32)
HOMES = RNG.integers(0, 5, 400).astype(str).astype(object)
POPULARITY = RNG.uniform(0, 1, 400)


def planted(vectors: np.ndarray) -> float:
    return planted_taste(vectors, IDS, POPULARITY, Truth(IDS, TASTE, HOMES), seed=1)


def test_true_taste_is_found_and_home_or_popularity_alone_are_worth_nothing() -> None:
    """A model that knows where people live, or who likes what all like, would look good without the controls."""
    homes = np.eye(5, dtype=np.float32)[HOMES.astype(int)]
    popularity = np.stack([np.cos(POPULARITY), np.sin(POPULARITY)], axis=1).astype(np.float32)
    assert planted(unit(TASTE)) == pytest.approx(1, abs=0.02)
    assert abs(planted(homes)) < 0.02 and abs(planted(popularity)) < 0.02
    assert planted(unit(np.hstack([unit(TASTE), 2 * homes]))) > 0.8, "home is regressed out, not counted against taste"


def test_vectors_that_are_all_alike_have_no_correlation() -> None:
    """NaN, which the benchmark shows as a dash; a number would be made up."""
    assert np.isnan(planted(np.tile([[1.0, 0.0]], (400, 1)).astype(np.float32)))
