"""Near and far twins of one user, searched afresh among the vectors of a run.

*Near* counts the home part ``NEAR`` times, a reweighted dot product. *Far* is the cosine of the taste parts less the
cosine of the home parts where that is positive: people who live elsewhere, no matter where, and share the taste. (A
negative weight would rather find people of the opposite home, whatever that is, and lost more of a planted taste.)
As in everybody's lists, what a user gives away freely is taken off (``hubness``), measured on a sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from tastetwin.analysis.hubness import density
from tastetwin.analysis.index import Floats, Ints
from tastetwin.analysis.parts import reweighted, unit
from tastetwin.analysis.scale import ScoreScale, sample_pairs
from tastetwin.analysis.search import Users
from tastetwin.config import AnalyzeConfig

NEAR: Final = 4.0
"""Weight of the home part in a search for near twins."""
BANK: Final = 2_000
"""Users that hubness and the percentile are measured on."""
_PAIRS: Final = 20_000


@dataclass(frozen=True)
class Space:
    """A similarity: the dot product of ``looked_at``, less that of ``kept_off`` where it is positive."""

    looked_at: Floats
    """[n, dim] unit vectors, C order."""
    kept_off: Floats
    """[n, rank] unit vectors; rank 0 takes nothing off."""

    def similarities(self, first: Ints, second: Ints) -> Floats:
        """[m] of the pairs; either may be one position for all."""
        dots = (self.looked_at[first] * self.looked_at[second]).sum(axis=-1)
        return np.asarray(dots - np.maximum((self.kept_off[first] * self.kept_off[second]).sum(axis=-1), 0))


def near(vectors: Floats, axes: Floats) -> Space:
    """For [n, dim] unit vectors and [rank, dim] home axes."""
    return Space(reweighted(vectors, axes, NEAR), np.empty((len(vectors), 0), np.float32))


def far(vectors: Floats, axes: Floats) -> Space:
    """For [n, dim] unit vectors and [rank, dim] home axes."""
    return Space(reweighted(vectors, axes, 0.0), unit(vectors @ axes.T))


@dataclass(frozen=True)
class Found:
    """The closest users, closest first."""

    users: Ints
    """[m] positions."""
    scores: Floats
    """[m] similarity - (r + r) / 2."""
    percentiles: Floats
    """[m] per cent of random pairs that are no closer."""


def closest(space: Space, user: int, among: Ints, depth: int, config: AnalyzeConfig) -> Found:
    """The ``depth`` closest users, chosen by similarity and then ordered by score.

    Args:
        space: what close means.
        user: position of the one who asks.
        among: positions of those who may be shown to them, ascending.
        depth: how many.
        config: ``csls_neighbours`` and ``seed`` are used.
    """
    n = len(space.looked_at)
    similarities = space.similarities(among, np.array([user]))
    chosen = np.sort(among[np.argsort(-similarities, kind="stable")[:depth]])
    bank = np.sort(np.random.default_rng(config.seed).permutation(n)[:BANK])
    asked = np.union1d(np.append(chosen, user), bank)
    crowd = np.zeros(n, np.float32)
    crowd[asked] = _crowding(space, asked, np.searchsorted(asked, bank), config)
    scores = space.similarities(chosen, np.array([user])) - (crowd[chosen] + crowd[user]) / np.float32(2)
    order = np.argsort(-scores, kind="stable")
    percentiles = _scale(space, crowd, bank, config.seed).percentile(scores[order])
    return Found(chosen[order], scores[order], percentiles)


def _crowding(space: Space, asked: Ints, bank: Ints, config: AnalyzeConfig) -> Floats:
    """[m] hubness of the users ``asked``, of whom those at ``bank`` are measured against."""
    users = Users(np.ascontiguousarray(space.looked_at[asked]), np.arange(len(asked), dtype=np.int64), None)
    return density(users, bank, config)


def _scale(space: Space, crowd: Floats, bank: Ints, seed: int) -> ScoreScale:
    first, second = (bank[side] for side in sample_pairs(len(bank), seed, _PAIRS))
    return ScoreScale.of(space.similarities(first, second) - (crowd[first] + crowd[second]) / np.float32(2))
