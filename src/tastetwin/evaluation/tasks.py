"""The held-out tasks: which users are kept out of training, and how each becomes two people with the same taste.

Disjoint twin test: the catalogue is cut into two halves at random, and each held-out user becomes ``~a`` with the
places of one half and ``~b`` with those of the other. No ``~a`` shares a place with any ``~b``, so overlap is worth
nothing and only taste (and home area) is left. Matched twin test: the same pairs, each ``~a`` ranking its ``~b`` among
others of the same region and activity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tastetwin.config import EvaluateConfig
from tastetwin.features.histories import Histories, Vocabulary
from tastetwin.features.holdout import uniform_hashes
from tastetwin.features.home import home_regions

FloatMatrix = npt.NDArray[np.float32]

MATCHED_OTHERS: Final = 99
MATCHED_ACTIVITY_FACTOR: Final = 2.0


@dataclass(frozen=True)
class PseudoUsers:
    """Held-out users cut in two: row i of ``a`` and row i of ``b`` are the same person, on disjoint catalogues."""

    a: Histories
    """[n] the queries."""
    b: Histories
    """[n] the candidates; same users, same order."""
    activity: npt.NDArray[np.int64]
    """[n] distinct places of the whole user."""
    regions: npt.NDArray[np.int32]
    """[n] the region of most of the user's places; -1 where none is known."""

    @property
    def n_users(self) -> int:
        """Pairs."""
        return self.a.n_users


def disjoint_pairs(
    histories: Histories, holdout: npt.NDArray[np.bool_], vocabulary: Vocabulary, config: EvaluateConfig, seed: int
) -> PseudoUsers:
    """Cut each held-out user ([n_users] mask) in two by one random cut of the catalogue.

    A user with fewer than ``min_places`` places, or fewer than ``min_half`` in either half, is left out. A place's half
    depends on its id and the seed alone, so that the pairs stay comparable from day to day.
    """
    long_enough = histories.lengths() >= config.min_places
    users = histories.select(np.flatnonzero(holdout & long_enough).astype(np.int64))
    second_half = _second_half(users.places, vocabulary, seed)
    in_b = _sums_per_user(second_half, users)
    enough = (in_b >= config.min_half) & (users.lengths() - in_b >= config.min_half)
    kept_favors = np.repeat(enough, users.lengths())
    users = users.select(np.flatnonzero(enough).astype(np.int64))
    second_half = second_half[kept_favors]
    return PseudoUsers(
        a=users.filter(~second_half).recentred(),
        b=users.filter(second_half).recentred(),
        activity=users.lengths(),
        regions=home_regions(users, vocabulary),
    )


def chronological_pairs(
    histories: Histories, holdout: npt.NDArray[np.bool_], vocabulary: Vocabulary, config: EvaluateConfig
) -> PseudoUsers:
    """Cut each held-out user in two in time: ``a`` the older half of the places, ``b`` the newer.

    Places visited again lie with their last visit, so the halves share none, but they share what is near them in time
    and space: plain overlap of neighbours nearly solves this. Who is left out: as in ``disjoint_pairs``.
    """
    long_enough = histories.lengths() >= max(config.min_places, 2 * config.min_half)
    users = histories.select(np.flatnonzero(holdout & long_enough).astype(np.int64))
    place_in_history = np.arange(len(users.places)) - np.repeat(users.offsets[:-1], users.lengths())
    newer = place_in_history >= np.repeat(users.lengths() // 2, users.lengths())
    older, later = (users.filter(part).recentred() for part in (~newer, newer))
    return PseudoUsers(older, later, users.lengths(), home_regions(users, vocabulary))


def matched_candidates(pseudo: PseudoUsers, region_histograms: FloatMatrix, seed: int) -> npt.NDArray[np.int64]:
    """[n, m] for each pair the ``~b`` it is ranked among: column 0 its own, then the ``m - 1 <= 99`` nearest others.

    ``region_histograms`` [n, n_regions] unit rows of the whole users. Others within a factor of 2 of the user's
    activity come first, nearest by region histogram; ties are broken at random, so that data without regions works.
    """
    n = pseudo.n_users
    others = min(MATCHED_OTHERS, n - 1)
    log_activity = np.log(pseudo.activity)
    shuffled = np.random.default_rng(seed).permutation(n)
    chosen = np.empty((n, others + 1), np.int64)
    for user in range(n):
        near = region_histograms[shuffled] @ region_histograms[user]
        too_far = np.abs(log_activity[shuffled] - log_activity[user]) > np.log(MATCHED_ACTIVITY_FACTOR) + 1e-9
        order = shuffled[np.lexsort((-np.round(near, 5), too_far))]
        chosen[user] = np.concatenate([[user], order[order != user][:others]])
    return chosen


def in_its_half(half: Histories, vocabulary: Vocabulary, seed: int, second: bool) -> Histories:
    """Without the places that the cut of the catalogue puts into the other half.

    Another vocabulary may read two places of different halves as one group, and the halves would share it.
    """
    return half.filter(_second_half(half.places, vocabulary, seed) == second)


def _second_half(places: npt.NDArray[np.int32], vocabulary: Vocabulary, seed: int) -> npt.NDArray[np.bool_]:
    """[n_favors] true for the places that fall into the second half of the catalogue."""
    rows, inverse = np.unique(places, return_inverse=True)
    half: npt.NDArray[np.bool_] = uniform_hashes(vocabulary.place_ids[rows], seed, b"place") >= 0.5
    return half[inverse]


def _sums_per_user(flags: npt.NDArray[np.bool_], histories: Histories) -> npt.NDArray[np.int64]:
    """[n_users] how many of each user's favors are flagged."""
    totals = np.concatenate([[0], np.cumsum(flags)]).astype(np.int64)
    return np.diff(totals[histories.offsets])
