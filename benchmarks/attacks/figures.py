"""What an attacker learns: AUC of a guess made on cases that the guesser was not fitted to, with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from tastetwin.evaluation.metrics import Interval

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

FOLDS: Final = 5
RESAMPLES: Final = 1_000
RIDGE: Final = 0.1

KINDS: Final[dict[str, tuple[str, ...]]] = {
    "no answers, taste alone": ("taste",),
    "ids": ("ids",),
    "+ ranks": ("ids", "ranks"),
    "+ percentile": ("ids", "ranks", "percentile"),
    "+ chance in 1-2-5 steps": ("ids", "ranks", "percentile", "coarse"),
    "+ chance": ("ids", "ranks", "percentile", "chance"),
    "+ evidence, no places": ("ids", "ranks", "percentile", "chance", "themes"),
    "+ evidence": ("ids", "ranks", "percentile", "chance", "themes", "evidence"),
    "raw score": ("score",),
}
"""Kinds of answers, and the columns of a trial that each of them shows. No client gets the last one.

The first is what an attacker guesses who gets no answer, and knows all favors but the target's."""


@dataclass(frozen=True)
class Trial:
    """Cases with a secret bit, and what answers say about each."""

    views: Mapping[str, Doubles]
    """Columns by name, each [cases, d]."""
    secret: Mask
    """[cases]"""
    owner: Ints
    """[cases] whose secret it is: what is resampled, and never in the fit and in the guess at once."""

    def leaks(self) -> dict[str, Interval]:
        """AUC by kind of answers, of the kinds that the trial has columns for."""
        found = {}
        for kind, names in KINDS.items():
            if names[-1] in self.views:
                shown = [self.views[name] for name in names if name in self.views]
                found[kind] = auc(guess(shown, self.secret, self.owner), self.secret, self.owner)
        return found


def guess(columns: Sequence[Doubles], secret: Mask, owner: Ints, seed: int = 1) -> Doubles:
    """[cases] how likely the secret is, fitted on the cases of other owners.

    Args:
        columns: each [cases, d]. Of each column alone and of the first one, two, ... together, those are used that tell
            most in a second cross-validation among the cases fitted on: what says nothing must not spoil the rest.
        secret: [cases]
        owner: [cases]
        seed: of the folds.
    """
    choices = [*columns, *(np.concatenate(columns[:end], axis=1) for end in range(2, len(columns) + 1))]
    fold = np.random.default_rng(seed).integers(0, FOLDS, int(owner.max()) + 1)[owner]
    guessed = np.zeros(len(secret))
    for number in range(FOLDS):
        mine, rest = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        inner = np.random.default_rng(seed + 1).integers(0, FOLDS, int(owner.max()) + 1)[owner[rest]]
        tried = [_area(_out_of_fold(views[rest], secret[rest], inner), secret[rest]) for views in choices]
        best = choices[int(np.argmax(np.nan_to_num(tried)))]
        guessed[mine] = _told(best[rest], secret[rest], best[mine])
    return guessed


def _out_of_fold(views: Doubles, secret: Mask, fold: Ints) -> Doubles:
    """[cases] each told by the cases of other folds."""
    told = np.zeros(len(secret))
    for number in range(FOLDS):
        mine = fold == number
        told[mine] = _told(views[~mine], secret[~mine], views[mine])
    return told


def _told(views: Doubles, secret: Mask, asked: Doubles) -> Doubles:
    """[asked] along the discriminant of ``views``, from the middle of both means, in deviations of its cases."""
    if not secret.any() or secret.all() or not len(asked):
        return np.zeros(len(asked))
    along = discriminant(views, secret)
    middle = (views[secret].mean(axis=0) + views[~secret].mean(axis=0)) / 2
    return np.asarray((asked - middle) @ along / max(float((views @ along).std()), 1e-12))


def discriminant(views: Doubles, secret: Mask) -> Doubles:
    """[d] direction from the cases without to those with the secret (Fisher 1936), ridge on standardised columns."""
    spread = views.std(axis=0)
    scale = np.where(spread > 1e-12, spread, np.inf)
    apart = (views[secret].mean(axis=0) - views[~secret].mean(axis=0)) / scale
    within = np.concatenate([views[each] - views[each].mean(axis=0) for each in (secret, ~secret)]) / scale
    covariance = within.T @ within / len(within) + RIDGE * np.eye(views.shape[1])
    return np.asarray(np.linalg.solve(covariance, apart) / scale)


def auc(guessed: Doubles, secret: Mask, owner: Ints, seed: int = 1) -> Interval:
    """Area under the ROC curve, ties half, with its 95 % bootstrap interval over owners."""
    rng = np.random.default_rng(seed)
    owners, at = np.unique(owner, return_inverse=True)
    cases = [np.flatnonzero(at == number) for number in range(len(owners))]
    drawn = []
    for _ in range(RESAMPLES):
        chosen = np.concatenate([cases[number] for number in rng.integers(0, len(owners), len(owners))])
        drawn.append(_area(guessed[chosen], secret[chosen]))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Interval(_area(guessed, secret), float(low), float(high))


def _area(guessed: Doubles, secret: Mask) -> float:
    """Mann-Whitney U; NaN where all cases are of one kind."""
    yes, no = int(secret.sum()), int((~secret).sum())
    if not yes or not no:
        return float("nan")
    return float((rankdata(guessed)[secret].sum() - yes * (yes + 1) / 2) / (yes * no))
