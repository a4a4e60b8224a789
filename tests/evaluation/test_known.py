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


def planted(vectors: np.ndarray, homes: np.ndarray, popularity: np.ndarray) -> float:
    taste = RNG.dirichlet(np.full(6, 0.2), 400).astype(np.float32) if vectors is None else TASTE
    return planted_taste(vectors, IDS, popularity, Truth(IDS, taste, homes), seed=1)


TASTE = RNG.dirichlet(np.full(6, 0.2), 400).astype(np.float32)
HOMES = RNG.integers(0, 5, 400).astype(str).astype(object)
POPULARITY = RNG.standard_normal(400)


def test_true_taste_is_found_and_home_alone_is_worth_nothing() -> None:
    """A model that knows where people live, and no more, would look good without the partial correlation."""
    homes = np.eye(5, dtype=np.float32)[HOMES.astype(int)]
    assert planted(unit(TASTE), HOMES, POPULARITY) == pytest.approx(1, abs=0.02)
    assert abs(planted(homes, HOMES, POPULARITY)) < 0.02
    both = planted(unit(np.hstack([unit(TASTE), 2 * homes])), HOMES, POPULARITY)
    assert both > 0.8, "home beside taste is regressed out, not counted against it"
