"""A score people can read: the chance that a twin favors the place that the user favors next.

Measured on users whom training did not see. The last place that each favored for the first time is taken out of the
history, the rest is encoded, and everybody else either has that place or has not. A logistic regression of that on how
rare so close a pair is, and on the other's number of places (who has been to many is likelier to have been there),
tells the chance for any pair; it never falls as the score rises. It rises by the logarithm of the rarity: by the rarity
itself, first twins were told up to twice what came true. Weights of pairs undo the sampling, so the chances are those
of all pairs, not of the sample.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tastetwin.analysis.index import Floats, Ints

Doubles = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

MIN_USERS: Final = 50
MIN_HITS: Final = 100
"""With fewer users, or pairs that do share the next place, nothing is said: not enough data."""
LEVELS: Final = 10
STEPS: Final = np.array(
    [0, .001, .002, .003, .005, .007, .01, .015, .02, .03, .04, .05, .06, .08, .1, .12, .15, .2, .25, .3, .35, .4, .45,
     .5, .6, .7, .8, .9, .95], np.float32
)  # fmt: skip
"""Chances as they are told; a certainty is not to be had by rounding up."""
_FOLDS: Final = 5
_RIDGE: Final = 1e-3
_STEPS: Final = 50


@dataclass(frozen=True)
class Pairs:
    """Pairs of a user and somebody else of whom it is known whether they have the user's next place."""

    user: Ints
    """[m] number of the user, 0, 1, ..."""
    percentile: Floats
    """[m] of the score, without the next place in the user's history (``ScoreScale``)."""
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
    """The fit: log odds are the sum of a constant and of two logarithms, each times its number."""

    constant: float
    by_rarity: float
    """Of log(1 + rarity of the score), see ``_rarity``; not negative."""
    by_places: float
    """Of log(1 + places of the other)."""
    users: int
    reliability: tuple[Level, ...]
    """From unlikely to likely, each level with as many hits."""

    def of(self, percentiles: Floats, places: Ints) -> Floats:
        """Chance in [0, 1] for percentiles and the other's number of distinct places, both of the same shape.

        The nearest of ``STEPS``: more digits would say nothing more, and tell how many places the other has.
        """
        by_rarity = self.by_rarity * np.log1p(_rarity(percentiles))
        exact = _logistic(self.constant + by_rarity + self.by_places * np.log1p(places))
        return STEPS[np.searchsorted((STEPS[1:] + STEPS[:-1]) / 2, exact)]

    def to_json(self) -> dict[str, Any]:
        """Small JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any] | None) -> Chance | None:
        """The inverse of ``to_json``; None where there was not enough data, or the fit is another version's."""
        if value is None or value.keys() != {field.name for field in fields(cls)}:
            return None
        return cls(**{**value, "reliability": tuple(Level(**level) for level in value["reliability"])})


def fit_chance(pairs: Pairs, seed: int) -> Chance | None:
    """The chance by score and places; None where there is not enough data to say.

    Reliability is cross-validated: every pair is told its chance by a fit on the other users.
    """
    users = np.unique(pairs.user)
    if len(users) < MIN_USERS or pairs.hit.sum() < MIN_HITS:
        return None
    features = _features(pairs.percentile, pairs.places)
    told = np.empty(len(pairs.hit))
    fold = np.random.default_rng(seed).integers(0, _FOLDS, pairs.user.max() + 1)[pairs.user]
    for number in range(_FOLDS):
        rest = fold != number
        told[~rest] = _logistic(features[~rest] @ _fit(features[rest], pairs.hit[rest], pairs.weight[rest]))
    constant, by_rarity, by_places = _fit(features, pairs.hit, pairs.weight).tolist()
    return Chance(constant, by_rarity, by_places, len(users), tuple(_levels(pairs, told, seed)))


def _features(percentiles: Floats, places: Ints) -> Doubles:
    rarity = _rarity(percentiles)
    return np.stack([np.ones_like(rarity), np.log1p(rarity), np.log1p(places)], axis=-1)


def _rarity(percentiles: Floats) -> Doubles:
    """How rare so close a pair is: nats of the share of random pairs that are closer, which is at least a millionth."""
    return np.asarray(-np.log(np.maximum(1 - np.asarray(percentiles, np.float64) / 100, 1e-6)))


def _logistic(x: Doubles) -> Doubles:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -40, 40))))


def _fit(features: Doubles, hit: Mask, weight: Doubles) -> Doubles:
    """[3] ``_newton``; without the rarity where a closer pair would be less likely."""
    found = _newton(features, hit, weight)
    if found[1] >= 0:
        return found
    return np.insert(_newton(features[:, [0, 2]], hit, weight), 1, 0.0)


def _newton(features: Doubles, hit: Mask, weight: Doubles) -> Doubles:
    """[d] weighted logistic regression by Newton's method (Hastie, Tibshirani & Friedman 2009, 4.4.1)."""
    scale = np.maximum(np.abs(features).max(axis=0), 1e-6)
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
