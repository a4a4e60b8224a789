"""k-means cells of users, and a search that looks only into the cells near each query.

The inverted file (Sivic & Zisserman 2003) turned round for the case where *everybody* is a query: cell by cell, one
matrix product scores all queries that look into a cell against all of its users, and a heap per query keeps the best.
That runs at the speed of matrix products, about six times that of scanning lists query by query, and its scores are
exact: only users in cells that were not looked into can be missed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tastetwin.analysis.blas import load_faiss
from tastetwin.analysis.index import Floats, Ints, Shown, with_component

_TRAIN_PER_CELL: Final = 64
_ITERATIONS: Final = 10
_NEAR: Final = 4
"""Cells looked into before all others: a heap that begins with near users turns far ones away at the door."""


@dataclass(frozen=True)
class Cells:
    """k-means on the sphere (Dhillon & Modha 2001)."""

    centres: Floats
    """[cells, dim] unit length."""
    home: Ints
    """[n_users] the nearest cell of every user."""

    @classmethod
    def fit(cls, vectors: Floats, members: Ints, seed: int) -> Cells:
        """The cells of the ``members`` (positions, at least one) of [n_users, dim] unit vectors; 64 a cell are read."""
        cells = cells_for(len(members))
        drawn = np.random.default_rng(seed).permutation(members)[: _TRAIN_PER_CELL * cells]
        kmeans = load_faiss().Kmeans(
            vectors.shape[1], cells, niter=_ITERATIONS, spherical=True, seed=seed, min_points_per_centroid=1
        )
        kmeans.train(vectors[np.sort(drawn)])
        centres = np.ascontiguousarray(kmeans.centroids, np.float32)
        return cls(centres, nearest_points(vectors, centres, 1)[:, 0])

    @property
    def size(self) -> int:
        """How many."""
        return len(self.centres)


def cells_for(size: int) -> int:
    """The power of two nearest to 2 sqrt(size), at most ``size``: choosing among cells stays cheaper than scoring."""
    return min(size, int(2 ** np.round(np.log2(2 * np.sqrt(max(size, 1))))))


class CellIndex:
    """The index side, sorted by cell."""

    def __init__(self, shown: Shown, cells: Cells, members: Ints) -> None:
        """``members``: the positions of the shown users among those of ``cells``."""
        self.shown, self.cells = shown, cells
        self.home: Ints = cells.home[members]
        self._order = np.argsort(self.home, kind="stable")
        self._points = with_component(shown.vectors, -shown.bias)[self._order]
        self._starts = np.searchsorted(self.home[self._order], np.arange(cells.size + 1))
        sizes = np.maximum(np.diff(self._starts), 1)
        crowding = np.bincount(self.home, shown.bias, minlength=cells.size) / sizes
        self.centres: Floats = with_component(cells.centres, -crowding.astype(np.float32))

    def candidates(self, queries: Floats, depth: int, probes: int) -> Ints:
        """[m, depth] positions into ``shown`` of the best in each query's ``probes`` nearest cells, -1 where none.

        In no order. Queries that are near each other look into the same cells, which makes the products larger.
        """
        wide = with_component(queries, 1.0)
        looked_into = nearest_points(wide, self.centres, probes)
        best: Any = load_faiss().ResultHeap(len(queries), depth, keep_max=True)
        for part in (looked_into[:, :_NEAR], looked_into[:, _NEAR:]):
            for cell, rows in _by_cell(part):
                members = slice(self._starts[cell], self._starts[cell + 1])
                if members.start < members.stop:
                    best.add_result_subset(rows, wide[rows] @ self._points[members].T, self._order[members])
        return np.asarray(best.I)

    def probes_needed(self, queries: Floats, truth: Ints, recall: float) -> tuple[int, float]:
        """The fewest cells to look into so that the true lists are found, and the share of them that is found then.

        Found by two standard errors of the sample more than asked: all users are to have it, not just the sample. No
        search is needed: a true twin is found as soon as its cell is looked into. ``queries`` [m, dim] are a sample of
        users, ``truth`` [m, k] the positions of their exact lists, -1 where there is nobody left, ``recall`` in (0, 1]
        is to be reached.
        """
        order = nearest_points(with_component(queries, 1.0), self.centres, self.cells.size)
        rank = np.empty_like(order)
        np.put_along_axis(rank, order, np.arange(self.cells.size)[None], axis=1)
        there = truth >= 0
        needed = np.where(there, np.take_along_axis(rank, self.home[np.where(there, truth, 0)], axis=1), -1)
        lengths = np.maximum(there.sum(axis=1), 1)
        low, high = 1, self.cells.size
        while low < high:
            middle = (low + high) // 2
            shares = ((needed < middle) & there).sum(axis=1) / lengths
            enough = shares.mean() - 2 * shares.std() / np.sqrt(len(shares)) >= recall
            low, high = (low, middle) if enough else (middle + 1, high)
        return low, float(((needed < low) & there).sum() / max(there.sum(), 1))


def _by_cell(looked_into: Ints) -> Iterator[tuple[int, Ints]]:
    """Each cell of [m, probes] with the rows that look into it, ascending."""
    flat = np.argsort(looked_into, axis=None, kind="stable")
    cells, rows = looked_into.ravel()[flat], flat // max(looked_into.shape[1], 1)
    starts = np.flatnonzero(np.diff(cells, prepend=-1))
    for start, group in zip(starts, np.split(rows, starts[1:]), strict=False):
        yield int(cells[start]), group


def nearest_points(queries: Floats, points: Floats, k: int) -> Ints:
    """[m, k] positions of the points with the largest inner products, the largest first."""
    faiss = load_faiss()
    return np.asarray(faiss.knn(queries, points, k, metric=faiss.METRIC_INNER_PRODUCT)[1])
