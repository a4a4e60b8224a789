"""Everybody's list: exact for few users, through cells for many, a block of queries at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tastetwin.analysis.cells import CellIndex, Cells
from tastetwin.analysis.index import SLACK, ExactIndex, Floats, Ints, Shown, empty_lists, rank
from tastetwin.config import AnalyzeConfig
from tastetwin.progress import Progress, silent

BLOCK: Final = 8192
"""Queries searched at a time: bounds memory, changes no result."""
_TUNING_QUERIES: Final = 1000


@dataclass(frozen=True)
class Lists:
    """The closest shown users of every query, and how they were found."""

    neighbours: npt.NDArray[np.int32]
    """[n, k] positions in the index side, closest first, ties by position; -1 where there is nobody left."""
    scores: Floats
    """[n, k] ``dot - bias``; -inf where there is nobody left."""
    probes: int
    """Cells looked into per query; 0 = the search was exact."""
    recall: float
    """Share of the exact lists of a sample of queries that was found; 1 = exact."""


def search_all(
    vectors: Floats,
    labels: Ints,
    shown: Shown,
    k: int,
    cells: Cells | None,
    config: AnalyzeConfig,
    block: int = BLOCK,
    progress: Progress = silent,
) -> Lists:
    """Everybody's k closest shown users of another label.

    Args:
        vectors: [n, dim] unit vectors, C order: all queries.
        labels: [n] theirs.
        shown: the index side.
        k: length of the lists.
        cells: to look into; None = exact.
        config: ``recall`` and ``seed`` are used.
        block: queries at a time.
        progress: told of queries done.
    """
    n = len(vectors)
    exact = ExactIndex(shown)
    if cells is None or not shown.size:
        neighbours, scores = np.full((n, k), -1, np.int32), np.full((n, k), -np.inf, np.float32)
        for start in range(0, n, block):
            part = slice(start, start + block)
            scores[part], neighbours[part] = exact.top_k(vectors[part], labels[part], k)
            progress(min(n, start + block), n)
        return Lists(neighbours, scores, 0, 1.0)
    index = CellIndex(shown, cells)
    probes, recall = _choose_probes(index, exact, vectors, labels, k, config)
    neighbours, scores = np.full((n, k), -1, np.int32), np.full((n, k), -np.inf, np.float32)
    order = np.argsort(cells.nearest(vectors, 1)[:, 0], kind="stable")
    for start in range(0, n, block):
        users = order[start : start + block]
        scores[users], neighbours[users] = look_into_cells(index, vectors[users], labels[users], k, probes)
        progress(min(n, start + block), n)
    return Lists(neighbours, scores, probes, recall)


def _choose_probes(
    index: CellIndex, exact: ExactIndex, vectors: Floats, labels: Ints, k: int, config: AnalyzeConfig
) -> tuple[int, float]:
    drawn = np.random.default_rng(config.seed).permutation(len(vectors))[:_TUNING_QUERIES]
    queries = np.ascontiguousarray(vectors[drawn])
    _, truth = exact.top_k(queries, labels[drawn], k)
    return index.probes_needed(queries, truth, config.recall)


def look_into_cells(index: CellIndex, queries: Floats, labels: Ints, k: int, probes: int) -> tuple[Floats, Ints]:
    """As ``ExactIndex.top_k`` within the ``probes`` nearest cells of each query; in all where those hold too few."""
    depth = min(k + SLACK, index.shown.size)
    if not depth:
        return empty_lists(len(queries), k)
    found = index.candidates(queries, depth, probes)
    short = np.flatnonzero((found < 0).any(axis=1))
    if len(short) and probes < index.cells.size:
        found[short] = index.candidates(queries[short], depth, index.cells.size)
    return rank(index.shown, queries, labels, found, k)
