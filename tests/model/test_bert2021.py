"""The 2021 recipe: learns from masked places alone who belongs together."""

from __future__ import annotations

import numpy as np

from tastetwin.features.histories import Histories
from tastetwin.model.bert2021 import Recipe, encode_bert, fit_bert
from tests.model.towns import histories

RECIPE = Recipe(width=32, layers=1, heads=2, max_length=20, epochs=12)


def town() -> Histories:
    return histories(users=240, places=60, groups=3, length=12, seed=2)


def test_users_of_a_group_come_to_lie_together() -> None:
    """Places of a group share users, so masked prediction must place them, and their users, near each other."""
    vectors = encode_bert(fit_bert(town(), 62, seed=1, recipe=RECIPE), town())
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    group = np.arange(240) % 3
    cosine = vectors @ vectors.T
    same = group[:, None] == group
    np.fill_diagonal(same, False)
    assert cosine[same].mean() > cosine[group[:, None] != group].mean() + 0.3


def test_the_same_seed_gives_the_same_vectors() -> None:
    first, second = (encode_bert(fit_bert(town(), 62, 3, RECIPE), town()) for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, encode_bert(fit_bert(town(), 62, 4, RECIPE), town()))
