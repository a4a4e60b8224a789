"""Everybody's list: exact for few users, through cells for many, a block of queries at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tastetwin.analysis.blas import side_by_side
from tastetwin.analysis.cells import CellIndex, Cells
from tastetwin.analysis.index import SLACK, ExactIndex, Floats, Ints, Shown, rank
from tastetwin.config import AnalyzeConfig
from tastetwin.progress import Progress, silent

BLOCK: Final = 8192
"""Queries searched at a time: bounds memory. Changes no result of the exact search; among cells, users at the very same
score at the end of a list may change with it."""
TUNING_QUERIES: Final = 1000


@dataclass(frozen=True)
class Users:
    """Everybody, in the order of their ids: all are queries, some are shown."""

    vectors: Floats
    """[n, dim] unit vectors, C order."""
    labels: Ints
    """[n] users of one label never meet."""
    cells: Cells | None
    """To look for neighbours in; None = look at everybody."""


@dataclass(frozen=True)
class Lists:
    """The closest shown users of everybody, and how they were found."""

    neighbours: npt.NDArray[np.int32]
    """[n, k] positions, closest first, ties in a list by position; -1 where there is nobody left."""
    scores: Floats
    """[n, k] ``dot - bias``; -inf where there is nobody left."""
    probes: int
    """Cells looked into per query; 0 = the search was exact."""
    recall: float
    """Share of the exact lists of a sample of queries that was found; 1 = exact."""


def search_all(
    users: Users,
    members: Ints,
    bias: Floats,
    k: int,
    config: AnalyzeConfig,
    block: int = BLOCK,
    progress: Progress = silent,
    queries: Ints | None = None,
) -> Lists:
    """The k closest members of another label of everybody, or of the given queries.

    Args:
        users: everybody.
        members: positions of those who may be found, ascending; at most one of each label.
        bias: [n_members] taken off every similarity to that member.
        k: length of the lists.
        config: ``recall`` and ``seed`` are used.
        block: queries at a time.
        progress: told of queries done.
        queries: positions of those whose lists are wanted, in the order of the lists; None = everybody.
    """
    asked = np.arange(len(users.labels)) if queries is None else queries
    shown = Shown(users.vectors[members], bias, users.labels[members])
    exact, probes, recall = ExactIndex(shown), 0, 1.0
    search: Callable[[Floats, Ints, int], tuple[Floats, Ints]] = exact.top_k
    order = np.arange(len(asked))
    if users.cells is not None and len(members):
        index = CellIndex(shown, users.cells, members)
        probes, recall = _choose_probes(index, exact, users, asked, k, config)
        search = functools.partial(look_into_cells, index, probes=probes)
        order = np.argsort(users.cells.home[asked], kind="stable")  # near queries look into the same cells
    found, scores = np.full((len(order), k), -1, np.int32), np.full((len(order), k), -np.inf, np.float32)
    names = np.append(members, -1).astype(np.int32)
    parts = [order[start : start + block] for start in range(0, len(order), block)]
    done = 0
    with side_by_side() as pool:
        tasks = pool.map(lambda part: search(users.vectors[asked[part]], users.labels[asked[part]], k), parts)
        for part, (best, at) in zip(parts, tasks, strict=True):
            scores[part], found[part] = best, names[at]
            done += len(part)
            progress(done, len(order))
    return Lists(found, scores, probes, recall)


def _choose_probes(
    index: CellIndex, exact: ExactIndex, users: Users, asked: Ints, k: int, config: AnalyzeConfig
) -> tuple[int, float]:
    drawn = np.random.default_rng(config.seed).permutation(asked)[:TUNING_QUERIES]
    queries = np.ascontiguousarray(users.vectors[drawn])
    _, truth = exact.top_k(queries, users.labels[drawn], k)
    return index.probes_needed(queries, truth, config.recall)


def look_into_cells(index: CellIndex, queries: Floats, labels: Ints, k: int, probes: int) -> tuple[Floats, Ints]:
    """As ``ExactIndex.top_k`` within the ``probes`` nearest cells of each query; in all where those hold too few."""
    depth = min(k + SLACK, index.shown.size)
    found = index.candidates(queries, depth, probes)
    short = np.flatnonzero((found < 0).any(axis=1))
    if len(short) and probes < index.cells.size:
        found[short] = index.candidates(queries[short], depth, index.cells.size)
    return rank(index.shown, queries, labels, found, k)
