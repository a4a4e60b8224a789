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
CANDIDATES: Final = 1 << 25
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


@dataclass(frozen=True)
class Filling:
    """Lists in the making, a row each."""

    users: Ints
    """[m] positions of whose they are."""
    neighbours: Positions
    """[m, k] positions, -1 where nobody is yet; those who are come first."""
    scores: Floats
    """[m, k]"""
    rules: PairRules

    @classmethod
    def empty(cls, users: Ints, k: int, rules: PairRules) -> Filling:
        """Empty lists of ``k``."""
        shape = (len(users), k)
        return cls(users, np.full(shape, -1, np.int32), np.full(shape, -np.inf, np.float32), rules)

    def missing(self, rows: Ints) -> Ints:
        """How many are missing in each of the lists."""
        return np.asarray((self.neighbours[rows] < 0).sum(axis=1))

    def short(self, rows: Ints) -> Ints:
        """Those of ``rows`` whose list is not full."""
        return rows[self.missing(rows) > 0]

    def possible(self, rows: Ints, candidates: Positions) -> Positions:
        """The candidates [len(rows), c] with -1 in place of those against the rules or in the list already."""
        users, known = self.users[rows], self.neighbours[rows]
        allowed = self.rules.allow(users, candidates)
        if (known >= 0).any():
            n = len(self.rules.homes)
            keys = (users[:, None] * n + known)[known >= 0]
            allowed &= ~np.isin(users[:, None] * n + candidates, keys)
        return np.where(allowed, candidates, np.int32(-1))

    def put(self, rows: Ints, candidates: Positions, scores: Floats, chosen: npt.NDArray[np.bool_]) -> None:
        """Put the chosen candidates, arrays [len(rows), c], at the end of the lists."""
        row, column = np.nonzero(chosen)
        have = self.neighbours.shape[1] - self.missing(rows)
        place = have[row] + (np.cumsum(chosen, axis=1) - 1)[row, column]
        self.neighbours[rows[row], place] = candidates[row, column]
        self.scores[rows[row], place] = scores[row, column]

    def in_order(self, rows: Ints) -> None:
        """Order the lists by score, ties by position: those found later, and what has become a tie by rounding."""
        scores, names = self.scores[rows], self.neighbours[rows]
        tied, falls = scores[:, 1:] == scores[:, :-1], names[:, 1:] < names[:, :-1]
        rows = rows[((scores[:, 1:] > scores[:, :-1]) | tied & falls).any(axis=1)]
        order = np.lexsort((self.neighbours[rows], -self.scores[rows]), axis=1)
        for table in (self.neighbours, self.scores):
            table[rows] = np.take_along_axis(table[rows], order, axis=1)


def first_depth(k: int, room: Ints, rules: PairRules, mutual: bool = False) -> int:
    """Candidates looked for first for a list of ``k``; ``room`` of those who may be shown."""
    may_be_refused = rules.restrict or mutual or room.min(initial=len(rules.homes)) < len(rules.homes) - 1
    return k * MARGIN if may_be_refused else k


def next_depth(depth: int, takers: int) -> int:
    """Of the next search, among so many ``takers``."""
    return min(depth * DEEPER, max(takers, 1))


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
    everybody, room = np.arange(len(densities)), room.copy()
    filling = Filling.empty(everybody, config.k, rules)
    half = densities / np.float32(2)
    depth = first_depth(config.k, room[members], rules, mutual)

    def look(asked: Ints, takers: Ints, tell: Progress = silent) -> tuple[Lists, Floats]:
        size = max(min(block, CANDIDATES // depth), 1)
        lists = search_all(users, takers, half[takers], depth, config, size, tell, asked)
        return lists, lists.scores - half[asked, None]

    first, scores = look(everybody, members, progress)
    _add_first(filling, first.neighbours, scores, room, mutual)
    searches, takers = 1, members
    short = filling.short(everybody)
    while len(short) and depth < len(takers):
        takers = members[room[members] > 0]
        depth = next_depth(depth, len(takers))
        for asked in np.array_split(short, -(-len(short) * depth // CANDIDATES)):
            found, scores = look(asked, takers)
            _add(filling, asked, found.neighbours, scores, scores.astype(np.float64), room)
        short = filling.short(short)
        searches += 1
    if not mutual:
        filling.in_order(everybody)
    return Filled(filling.neighbours, filling.scores, first, searches)


def _add(filling: Filling, rows: Ints, candidates: Positions, scores: Floats, priority: Doubles, room: Ints) -> None:
    """Fill lists from candidates [m, c], the best by ``priority`` first, and take from their ``room``."""
    possible = filling.possible(rows, candidates)
    chosen = accepted(possible, priority, filling.missing(rows), room)
    filling.put(rows, candidates, scores, chosen)
    room -= np.bincount(candidates[chosen], minlength=len(room))


def _add_first(filling: Filling, candidates: Positions, scores: Floats, room: Ints, mutual: bool) -> None:
    everybody = np.arange(len(candidates))
    if not mutual:
        _add(filling, everybody, candidates, scores, scores.astype(np.float64), room)
        return
    closeness = np.clip(scores.astype(np.float64), -4, 4) / 10  # within (-1/2, 1/2): decides among equal ranks only
    priority = closeness - worse_rank(candidates)
    order = np.argsort(-priority, axis=1, kind="stable")
    _add(
        filling,
        everybody,
        np.take_along_axis(candidates, order, axis=1),
        np.take_along_axis(scores, order, axis=1),
        np.take_along_axis(priority, order, axis=1),
        room,
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
