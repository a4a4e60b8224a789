"""Shadow membership: was a user's history learned from? (Shokri et al. 2017; Carlini et al. 2022)

Models are trained on random halves of the users. Each in turn is the target, the others are its shadows: an attacker
who can train such models on users alike, knows the history in question, and asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from attacks.figures import Doubles, Mask, Trial
from attacks.service import LIST, Service
from tastetwin.analysis.twins import find_twins
from tastetwin.features.histories import Histories
from tastetwin.model.train import Trained, train

Floats = npt.NDArray[np.float32]

COLUMNS: Final = ("ids", "percentile", "chance", "score")
"""Features of everybody's lists, of the numbers in one's own, and last of vectors, as ``embed`` gives them."""
_LEAST_SPREAD: Final = 1e-6


@dataclass(frozen=True)
class Shadows:
    """Models, each of which is the target once."""

    views: Mapping[str, Doubles]
    """By column [models, users, d]."""
    members: Mask
    """[models, users]"""

    def as_they_are(self) -> Trial:
        """Guess by the features themselves, as Shokri."""
        flat = {name: values.reshape(-1, values.shape[-1]) for name, values in self.views.items()}
        models, users = self.members.shape
        return Trial(flat, self.members.ravel(), np.tile(np.arange(users), models))

    def by_user(self) -> Trial:
        """Guess by each feature against what it is for the same user in other models, as Carlini."""
        ratios = {name: likelihood_ratios(values, self.members) for name, values in self.views.items()}
        return Shadows(ratios, self.members).as_they_are()


def shadows(service: Service, histories: Histories, models: int, seed: int) -> Shadows:
    """Train ``models`` and ask each about everybody with 6 places or more."""
    rng = np.random.default_rng(seed)
    members = np.stack([_half(histories.n_users, rng) for _ in range(models)])
    usual = np.flatnonzero(histories.lengths() >= 6)
    found = [features(service, histories, each, seed + at) for at, each in enumerate(members)]
    views = {name: np.stack([of_model[name] for of_model in found])[:, usual] for name in COLUMNS}
    return Shadows(views, members[:, usual])


def features(service: Service, histories: Histories, members: Mask, seed: int) -> dict[str, Doubles]:
    """Of every user, by a model trained on ``members`` alone."""
    config = service.config.train.model_copy(update={"seed": seed})
    trained = train(histories.select(np.flatnonzero(members)), service.vocabulary, config)
    whole = trained.encode(histories, config.max_length)
    twins = find_twins(whole, service.config.analyze, lists=service.config.lists)
    percentiles = twins.scale.percentile(twins.scores[:, :LIST])
    chances: Doubles = np.zeros(len(whole))
    if service.chance is not None:
        places = histories.lengths()[twins.neighbours[:, :LIST]]
        chances = service.chance.of(percentiles, places)[:, 0].astype(np.float64)
    cosines = whole @ whole.T
    np.fill_diagonal(cosines, -np.inf)
    nearest = np.sort(cosines, axis=1)[:, -LIST:]
    vectors = [halves_alike(trained, histories, config.max_length, seed), nearest[:, -1], nearest.mean(axis=1)]
    whole_percentiles = np.floor(percentiles)
    return {
        "ids": listed(twins.neighbours[:, :LIST]),
        "percentile": np.stack([whole_percentiles[:, 0], whole_percentiles.mean(axis=1)], axis=1).astype(np.float64),
        "chance": np.round(100.0 * chances, 1)[:, None],
        "score": np.stack(vectors, axis=1).astype(np.float64),
    }


def listed(near: npt.NDArray[np.int32]) -> Doubles:
    """[n_users, 2] in how many lists each user is, and how many of their own twins list them."""
    everybody = np.arange(len(near))[:, None]
    lists = np.bincount(near[near >= 0], minlength=len(near))
    mutual = ((near[near] == everybody[:, :, None]).any(axis=2) & (near >= 0)).sum(axis=1)
    return np.stack([lists, mutual], axis=1).astype(np.float64)


def halves_alike(trained: Trained, histories: Histories, max_length: int, seed: int) -> Floats:
    """[n_users] cosine of the vectors of two halves of each history."""
    within = np.arange(len(histories.places)) - np.repeat(histories.offsets[:-1], histories.lengths())
    halves = [trained.encode(histories.filter(within % 2 == part), max_length) for part in (0, 1)]
    return np.asarray((halves[0] * halves[1]).sum(axis=1))


def likelihood_ratios(values: Doubles, members: Mask) -> Doubles:
    """[models, users, d] log ratio of each value under the same user's values in and out of the other models.

    Gaussians with one spread for all users (Carlini et al. 2022, section V.B: few shadows).
    """
    ratios = np.zeros_like(values)
    for target in range(len(values)):
        others = np.arange(len(values)) != target
        inside = _mean_where(values[others], members[others])
        outside = _mean_where(values[others], ~members[others])
        centres = np.where(members[others][:, :, None], inside, outside)
        spread = np.maximum(np.nanstd(values[others] - centres, axis=(0, 1)), _LEAST_SPREAD)
        value = values[target]
        ratios[target] = np.nan_to_num(((value - outside) ** 2 - (value - inside) ** 2) / (2 * spread**2))
    return ratios


def _mean_where(values: Doubles, chosen: Mask) -> Doubles:
    """[users, d] mean over the chosen models; NaN where none is."""
    count = chosen.sum(axis=0)[:, None]
    total = (values * chosen[:, :, None]).sum(axis=0)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))


def _half(n: int, rng: np.random.Generator) -> Mask:
    members = np.zeros(n, bool)
    members[rng.permutation(n)[: n // 2]] = True
    return members
