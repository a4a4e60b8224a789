"""A score people can read: the chance that a twin favors the place that the user favors next.

Measured on users whom training did not see. The last place that each favored for the first time is taken out of the
history, the rest is encoded, and everybody else either has that place or has not. A logistic regression of that on
score, score squared and the other's number of places (who has been to many places is likelier to have been there) tells
the chance for any pair. Weights of pairs undo the sampling, so the chances are those of all pairs, not of the sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tastetwin.analysis.index import Floats, Ints
from tastetwin.features.histories import Histories, Vocabulary

Doubles = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

MIN_USERS: Final = 50
MIN_HITS: Final = 100
"""With fewer users, or pairs that do share the next place, nothing is said: not enough data."""
NEAREST: Final = 200
STRANGERS: Final = 1_000
"""Others that each user is compared with: the nearest, and a sample of the rest."""
LEVELS: Final = 10
_FOLDS: Final = 5
_RIDGE: Final = 1e-3
_STEPS: Final = 50


@dataclass(frozen=True)
class Pairs:
    """Pairs of a user and somebody else of whom it is known whether they have the user's next place."""

    user: Ints
    """[m] number of the user, 0, 1, ..."""
    score: Floats
    """[m] without the next place in the user's history."""
    places: Ints
    """[m] distinct places of the other."""
    hit: Mask
    """[m] whether the other has the place."""
    weight: Doubles
    """[m] how many pairs each stands for."""


@dataclass(frozen=True)
class Level:
    """Pairs told about the same chance by a fit that had not seen their users, and how many of them it was true of."""

    told: float
    observed: float
    low: float
    high: float
    """95 % interval of ``observed``, users resampled."""


@dataclass(frozen=True)
class Chance:
    """The fit."""

    coefficients: tuple[float, float, float, float]
    """Of 1, score, score squared, log(1 + places of the other)."""
    users: int
    reliability: tuple[Level, ...]
    """From unlikely to likely, each level with as many hits."""

    def of(self, scores: Floats, places: Ints) -> Floats:
        """Chance in [0, 1] for scores and the other's number of distinct places, both of the same shape."""
        return _logistic(_features(scores, places) @ np.asarray(self.coefficients)).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """Small JSON."""
        levels = [vars(level) for level in self.reliability]
        return {"coefficients": list(self.coefficients), "users": self.users, "reliability": levels}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Chance:
        """The inverse of ``to_json``."""
        intercept, linear, square, places = value["coefficients"]
        levels = tuple(Level(**level) for level in value["reliability"])
        return cls((intercept, linear, square, places), value["users"], levels)


def next_places(histories: Histories, vocabulary: Vocabulary) -> Ints:
    """[n_users] where in ``histories.places`` the last place is that was favored once; -1 where there is none.

    Fallback groups stand for many places and are none.
    """
    once = np.flatnonzero((histories.visits == 1) & ~vocabulary.is_group[histories.places])
    last = np.full(histories.n_users, -1, np.int64)
    last[np.searchsorted(histories.offsets, once, "right") - 1] = once  # ascending: the last one stays
    return last


def without(histories: Histories, favors: Ints) -> Histories:
    """The histories less the given favors (positions in ``places``)."""
    wanted = np.ones(len(histories.places), bool)
    wanted[favors] = False
    return histories.filter(wanted)


def sample_others(scores: Floats, me: int, rng: np.random.Generator) -> tuple[Ints, Doubles]:
    """Others to compare a user with, by their [n] scores, and how many each stands for.

    The ``NEAREST`` of them, and ``STRANGERS`` drawn from the rest; ``me`` is left out.
    """
    order = np.argsort(-scores, kind="stable")
    order = order[order != me]
    near, far = order[:NEAREST], order[NEAREST:]
    drawn = rng.permutation(far)[:STRANGERS]
    share = len(far) / max(len(drawn), 1)
    return np.concatenate([near, drawn]), np.concatenate([np.ones(len(near)), np.full(len(drawn), share)])


def fit_chance(pairs: Pairs, seed: int) -> Chance | None:
    """The chance by score and places; None where there is not enough data to say.

    Reliability is cross-validated: every pair is told its chance by a fit on the other users.
    """
    users = np.unique(pairs.user)
    if len(users) < MIN_USERS or pairs.hit.sum() < MIN_HITS:
        return None
    features = _features(pairs.score, pairs.places)
    told = np.empty(len(pairs.hit))
    fold = np.random.default_rng(seed).integers(0, _FOLDS, pairs.user.max() + 1)[pairs.user]
    for number in range(_FOLDS):
        rest = fold != number
        told[~rest] = _logistic(features[~rest] @ _fit(features[rest], pairs.hit[rest], pairs.weight[rest]))
    intercept, linear, square, places = _fit(features, pairs.hit, pairs.weight).tolist()
    return Chance((intercept, linear, square, places), len(users), tuple(_levels(pairs, told, seed)))


def _features(scores: npt.NDArray[np.floating], places: Ints) -> Doubles:
    wide = np.asarray(scores, np.float64)
    return np.stack([np.ones_like(wide), wide, wide**2, np.log1p(places)], axis=-1)


def _logistic(x: Doubles) -> Doubles:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -40, 40))))


def _fit(features: Doubles, hit: Mask, weight: Doubles) -> Doubles:
    """[d] weighted logistic regression by Newton's method (Hastie, Tibshirani & Friedman 2009, 4.4.1)."""
    scale = np.maximum(features.std(axis=0), 1e-6)
    scaled = features / scale
    beta = np.zeros(features.shape[1])
    for _ in range(_STEPS):
        p = _logistic(scaled @ beta)
        gradient = scaled.T @ (weight * (hit - p)) - _RIDGE * beta
        hessian = (scaled * (weight * p * (1 - p))[:, None]).T @ scaled + _RIDGE * np.eye(len(beta))
        step = np.linalg.solve(hessian, gradient)
        beta += np.clip(step, -5, 5)
        if np.abs(step).max() < 1e-8:
            break
    return np.asarray(beta / scale)


def _levels(pairs: Pairs, told: Doubles, seed: int) -> list[Level]:
    """Pairs in the order of what they were told, cut where the hits are equally many."""
    order = np.argsort(told, kind="stable")
    hits = np.cumsum((pairs.hit * pairs.weight)[order])
    level = np.minimum((LEVELS * (hits - 1e-9) / hits[-1]).astype(np.int64).clip(0), LEVELS - 1)
    rng = np.random.default_rng(seed)
    n = int(pairs.user.max()) + 1
    draws = np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(200)])
    found = []
    for number in range(LEVELS):
        mine = order[level == number]
        if not len(mine):
            continue
        weight, users = pairs.weight[mine], pairs.user[mine]
        hit = np.bincount(users, weight * pairs.hit[mine], minlength=n)
        all_ = np.bincount(users, weight, minlength=n)
        resampled = (draws @ hit) / np.maximum(draws @ all_, 1e-9)
        low, high = np.quantile(resampled, [0.025, 0.975])
        mean = float((weight * told[mine]).sum() / weight.sum())
        found.append(Level(mean, float(hit.sum() / all_.sum()), float(low), float(high)))
    return found
