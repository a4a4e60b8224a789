"""Lists filled under rules: search, keep who may be shown, and look deeper where a list is still short."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from tastetwin.analysis.exposure import accepted
from tastetwin.analysis.index import Floats, Ints
from tastetwin.analysis.pairs import PairRules
from tastetwin.analysis.search import BLOCK, Lists, Users, search_all
from tastetwin.config import AnalyzeConfig
from tastetwin.progress import Progress, silent

Positions = npt.NDArray[np.int32]
Doubles = npt.NDArray[np.float64]

MARGIN: Final = 2
"""Candidates per place in a list, where a rule or a cap may turn some of them away."""
DEEPER: Final = 4
"""How much deeper the next search goes for lists that are still short."""
_CANDIDATES: Final = 1 << 25
"""Held at a time in searches after the first: bounds memory."""


@dataclass(frozen=True)
class Filled:
    """Everybody's list."""

    neighbours: Positions
    """[n, k] positions, the best first; -1 where nobody is left."""
    scores: Floats
    """[n, k] ``cos - (r + r) / 2``; -inf where nobody is left."""
    first: Lists
    """What the first search found, and how."""
    searches: int
    """How many there were, each deeper than the one before, for fewer users."""


class Filling:
    """Lists in the making."""

    def __init__(self, k: int, room: Ints, rules: PairRules) -> None:
        """Empty lists of ``k``; ``room`` [n]: in how many each user may be."""
        n = len(room)
        self.k, self.room, self.rules = k, room.copy(), rules
        self.neighbours = np.full((n, k), -1, np.int32)
        self.scores = np.full((n, k), -np.inf, np.float32)
        self.have = np.zeros(n, np.int64)

    def add(self, users: Ints, candidates: Positions, scores: Floats, priority: Doubles) -> None:
        """Put candidates into the lists of ``users``; arrays [m, c], the best by ``priority`` first."""
        allowed = self.rules.allow(users, candidates) & ~self._listed(users, candidates)
        chosen = accepted(np.where(allowed, candidates, -1), priority, self.k - self.have[users], self.room)
        row, column = np.nonzero(chosen)
        place = self.have[users[row]] + (np.cumsum(chosen, axis=1) - 1)[row, column]
        self.neighbours[users[row], place] = candidates[row, column]
        self.scores[users[row], place] = scores[row, column]
        self.have[users] += chosen.sum(axis=1)
        self.room -= np.bincount(candidates[row, column], minlength=len(self.room))

    def _listed(self, users: Ints, candidates: Positions) -> npt.NDArray[np.bool_]:
        if not self.have[users].any():
            return np.zeros(candidates.shape, bool)
        n = len(self.room)
        known = self.neighbours[users]
        keys = (users[:, None] * n + known)[known >= 0]
        return np.isin(users[:, None] * n + candidates, keys)

    def short(self, users: Ints) -> Ints:
        """Those of ``users`` whose list is not full."""
        return users[self.have[users] < self.k]

    def in_order(self, users: Ints) -> None:
        """Order the lists of ``users`` by score, those found later among the others."""
        order = np.lexsort((self.neighbours[users], -self.scores[users]), axis=1)
        for table in (self.neighbours, self.scores):
            table[users] = np.take_along_axis(table[users], order, axis=1)


def fill_lists(
    users: Users,
    members: Ints,
    densities: Floats,
    room: Ints,
    rules: PairRules,
    config: AnalyzeConfig,
    *,
    mutual: bool = False,
    block: int = BLOCK,
    progress: Progress = silent,
) -> Filled:
    """Everybody's list of ``config.k``, full unless nobody is left who may be shown and has room.

    Args:
        users: everybody.
        members: positions of those who may be shown, ascending; at most one of each label.
        densities: [n] see ``hubness.density``.
        room: [n] in how many lists each user may be.
        rules: who may be shown to whom.
        config: ``k``, and what ``search_all`` takes.
        mutual: order by the worse of both ranks (``worse_rank``); people found in later searches follow, by score.
        block: queries at a time.
        progress: told of queries done in the first search.
    """
    filling = Filling(config.k, room, rules)
    half = densities / np.float32(2)
    may_be_refused = rules.restrict or mutual or room[members].min(initial=len(half)) < len(half) - 1
    depth = config.k * MARGIN if may_be_refused else config.k

    def look(asked: Ints, takers: Ints, tell: Progress = silent) -> tuple[Lists, Floats]:
        size = max(min(block, _CANDIDATES // depth), 1)
        lists = search_all(users, takers, half[takers], depth, config, size, tell, asked)
        return lists, lists.scores - half[asked, None]

    everybody = np.arange(len(half))
    first, scores = look(everybody, members, progress)
    _add_first(filling, first.neighbours, scores, mutual)
    searches, takers = 1, members
    left = short = filling.short(everybody)
    while len(short) and depth < len(takers):
        takers = members[filling.room[members] > 0]
        depth = min(depth * DEEPER, max(len(takers), 1))
        for asked in np.array_split(short, -(-len(short) * depth // _CANDIDATES)):
            found, scores = look(asked, takers)
            filling.add(asked, found.neighbours, scores, scores.astype(np.float64))
        short = filling.short(short)
        searches += 1
    if not mutual:
        filling.in_order(left)
    return Filled(filling.neighbours, filling.scores, first, searches)


def _add_first(filling: Filling, candidates: Positions, scores: Floats, mutual: bool) -> None:
    everybody = np.arange(len(candidates))
    if not mutual:
        filling.add(everybody, candidates, scores, scores.astype(np.float64))
        return
    closeness = np.clip(scores.astype(np.float64), -4, 4) / 10  # within (-1/2, 1/2): decides among equal ranks only
    priority = closeness - worse_rank(candidates)
    order = np.argsort(-priority, axis=1, kind="stable")
    filling.add(
        everybody,
        np.take_along_axis(candidates, order, axis=1),
        np.take_along_axis(scores, order, axis=1),
        np.take_along_axis(priority, order, axis=1),
    )


def worse_rank(candidates: Positions) -> Doubles:
    """[n, c] of each candidate: the worse of the user's rank for them and theirs for the user, both from 1.

    Who does not have the user among their own c candidates ranks them beyond: c + the user's rank.
    """
    n, c = candidates.shape
    there = candidates >= 0
    user, column = np.nonzero(there)
    other, mine = candidates[there], (column + 1).astype(np.float64)
    listed = sp.csr_matrix((mine, (user, other)), shape=(n, n))
    place = sp.csr_matrix((np.arange(1.0, len(mine) + 1), (user, other)), shape=(n, n))  # 0 would be no entry
    back = listed.astype(bool).multiply(listed.T.tocsr()).tocsr()
    at = place.multiply(back.astype(bool)).tocsr()
    for matrix in (back, at):
        matrix.sort_indices()  # the same pairs in the same order
    theirs = c + mine
    theirs[at.data.astype(np.int64) - 1] = back.data
    worse = np.full((n, c), 3.0 * c)
    worse[there] = np.maximum(mine, theirs)
    return worse
