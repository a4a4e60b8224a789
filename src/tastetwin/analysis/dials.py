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

from tastetwin.analysis.hubness import mean_found
from tastetwin.analysis.index import Floats, Ints
from tastetwin.analysis.parts import reweighted, unit
from tastetwin.analysis.scale import ScoreScale, sample_pairs
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

    def to(self, user: int) -> Floats:
        """[n] of everybody to one user, as ``similarities`` up to rounding: one pass over the vectors."""
        dots = self.looked_at @ self.looked_at[user]
        return np.asarray(dots - np.maximum(self.kept_off @ self.kept_off[user], 0))


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


@dataclass(frozen=True)
class Bank:
    """What is measured on a sample of the users of a space, once for all questions."""

    users: Ints
    """[b] positions, ascending."""
    crowding: Floats
    """[b] hubness of each."""
    scale: ScoreScale


def draw_bank(space: Space, config: AnalyzeConfig) -> Bank:
    """The bank of a space; ``csls_neighbours`` and ``seed`` are used."""
    users = np.sort(np.random.default_rng(config.seed).permutation(len(space.looked_at))[:BANK])
    crowding = _crowding(space, users, users, config.csls_neighbours)
    first, second = sample_pairs(len(users), config.seed, _PAIRS)
    similarities = space.similarities(users[first], users[second])
    scores = similarities - (crowding[first] + crowding[second]) / np.float32(2)
    scale = ScoreScale.of(scores if len(scores) else np.zeros(1, np.float32))  # of one user there is no pair
    return Bank(users, crowding, scale)


def closest(space: Space, user: int, among: Ints, depth: int, config: AnalyzeConfig, bank: Bank | None = None) -> Found:
    """The ``depth`` closest users, chosen by similarity and then ordered by score.

    ``among`` are positions of those who may be shown to the user, ascending; ``bank`` is ``draw_bank`` of the same,
    where somebody asks more than once. Of the configuration ``csls_neighbours`` and ``seed`` are used.
    """
    bank = bank or draw_bank(space, config)
    chosen = np.sort(among[_largest(space.to(user)[among], depth)])
    crowding = _crowding(space, np.append(chosen, user), bank.users, config.csls_neighbours)
    scores = space.similarities(chosen, np.array([user])) - (crowding[:-1] + crowding[-1]) / np.float32(2)
    order = np.argsort(-scores, kind="stable")
    return Found(chosen[order], scores[order], bank.scale.percentile(scores[order]))


def _largest(values: Floats, depth: int) -> Ints:
    """Positions of the ``depth`` largest, of equal ones the first."""
    if depth < len(values):
        least = np.partition(values, -depth)[-depth]
        at = np.flatnonzero(values >= least)
        return at[np.argsort(-values[at], kind="stable")[:depth]]
    return np.argsort(-values, kind="stable")


def _crowding(space: Space, asked: Ints, bank: Ints, neighbours: int) -> Floats:
    """[m] hubness (``hubness.density``) of the users ``asked``, by the exact nearest of the ``bank``."""
    if not neighbours:
        return np.zeros(len(asked), np.float32)
    cosines = space.looked_at[asked] @ space.looked_at[bank].T
    cosines[asked[:, None] == bank] = -np.inf
    return mean_found(np.sort(cosines, axis=1)[:, -neighbours:])
