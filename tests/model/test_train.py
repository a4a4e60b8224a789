"""Training works on any town, finds planted taste, and never leans on who is held out."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tastetwin.features.histories import Histories
from tastetwin.model import step
from tastetwin.model.prepare import Plan, halves, twin_mrr
from tastetwin.model.train import Trained, train
from tests.model import towns

CONFIG = towns.CONFIG


def vectors(trained: Trained, town: Histories) -> np.ndarray:
    with torch.no_grad():
        found: torch.Tensor = trained.encoder(*towns.tensors(town, 20))
    return np.asarray(found)


def test_planted_twins_are_found() -> None:
    """Users of one planted group, none of them trained on, must be each other's nearest."""
    town = towns.histories(users=160, places=80, groups=4, length=14, seed=1)
    holdout = np.arange(120, 160)
    trained = train(town, towns.vocabulary(80), CONFIG, holdout)
    assert trained.record.training_users == 120
    found = vectors(trained, town.select(holdout))
    similarity = found @ found.T
    np.fill_diagonal(similarity, -np.inf)
    assert np.all(similarity.argmax(axis=1) % 4 == np.arange(40) % 4)


@pytest.mark.parametrize(
    ("users", "places", "length", "categories", "regions", "epochs"),
    [(1, 3, 1, 3, 2, 1), (5, 10, 4, 0, 0, 1), (50, 10, 8, 0, 2, 1), (30, 300, 2, 3, 0, 1), (60, 40, 10, 3, 2, 0)],
)
def test_any_town_trains(users: int, places: int, length: int, categories: int, regions: int, epochs: int) -> None:
    """No categories, regions, ratings, times, one user, one place each: a vector for everybody all the same."""
    town = towns.histories(users, places, groups=1, length=length, seed=0, known=False)
    config = CONFIG.model_copy(update={"epochs": epochs})
    trained = train(town, towns.vocabulary(places, categories, regions), config)
    found = vectors(trained, town)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-4)
    assert np.isfinite(trained.record.losses).all()


def test_the_same_seed_gives_the_same_model() -> None:
    """A re-run of a day must give the same twins."""
    town, vocabulary = towns.histories(60, 40, 2, 12, seed=1), towns.vocabulary(40)
    first, second = (train(town, vocabulary, CONFIG).encoder.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_each_half_of_a_lesson_is_rated_by_its_own_mean() -> None:
    """As a whole history is; by the mean of both, each half would tell of the other and there is a lesson in that."""
    town = towns.histories(60, 40, 2, 12, seed=1)
    for half in halves(town, np.arange(60), np.random.default_rng(0)):
        users = np.repeat(np.arange(half.n_users), half.lengths())
        assert half.ratings.std() > 0.5
        assert np.bincount(users, half.visits * half.ratings) == pytest.approx(0, abs=1e-4)


def test_twin_mrr_by_hand() -> None:
    """Ranks 1 and 2 of two, and a tie counts as half way."""
    eye = np.eye(2, dtype=np.float32)
    assert twin_mrr(eye, eye) == 1
    assert twin_mrr(eye, eye[::-1].copy()) == 0.5
    assert twin_mrr(eye, np.ones((2, 2), np.float32)) == pytest.approx(1 / 1.5)


def test_a_draw_that_fails_ends_the_training_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next batch is drawn beside the one computed; what fails there must come out, and leave no thread behind."""
    draw, seen = step.draw, []

    def sometimes(plan: Plan, users: npt.NDArray[np.int64], number: int, *rest: Any) -> step.Draw | None:
        if number == 4:
            raise MemoryError
        return draw(plan, users, number, *rest)

    monkeypatch.setattr(step, "draw", sometimes)
    town = towns.histories(160, 80, 4, 14, seed=1)
    with pytest.raises(MemoryError):
        train(town, towns.vocabulary(80), CONFIG, on_step=lambda done, total, loss: seen.append(done))
    assert seen == [1, 2, 3, 4]
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("draw")]
