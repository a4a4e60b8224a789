"""Who is closest: the index side (users who may be shown) and the searches over it.

The closeness of y to a query x is ``cos(x, y) - bias[y]``. The bias rides along as one more component
(``[x, 1] . [y, -bias]``), so that both searches are plain inner-product searches: exact (faiss ``Flat``) and
approximate (faiss ``IVFn,SQbf16``: k-means cells, residuals in bfloat16). Either only proposes candidates; ``top_k``
ranks them by float32 dot products that do not depend on how queries were batched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from tastetwin.analysis.blas import load_faiss

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

SLACK: Final = 28
"""Candidates beyond k: pays for self, for rounding (float32 or bfloat16) and for ties at the edge."""
ROUNDING: Final = np.float32(1e-5)
"""Two float32 dot products of the same unit vectors, summed in different orders, differ by less than this."""
_WIDTH: Final = 16  # faiss' bfloat16 kernels are vectorised for multiples of this only
_TRAIN_PER_CELL: Final = 64
_SCAN_PAIRS: Final = 1 << 21
_MISSING: Final = np.uint64(2**64 - 1)


@dataclass(frozen=True)
class Shown:
    """The index side: users who may appear in lists, in the order of their ids."""

    vectors: Floats
    """[n_shown, dim] unit length, C order."""
    bias: Floats
    """[n_shown] taken off every similarity to that user."""
    labels: Ints
    """[n_shown] a query never meets a shown user of its own label; at most one shown user has a given label."""

    @property
    def size(self) -> int:
        """Shown users."""
        return len(self.labels)


class CandidateIndex(Protocol):
    """Proposes candidates for queries."""

    shown: Shown

    def candidates(self, queries: Floats, depth: int) -> tuple[Floats, Ints]:
        """Scores [m, depth] (descending, approximate) and positions [m, depth] into ``shown``, -1 where none."""

    def unsettled(self, kth: Floats, deepest: Floats, seen: Ints) -> npt.NDArray[np.bool_]:
        """[m] which queries need ``exhaust``: by last score kept (-inf: list not full), last and number proposed."""

    def exhaust(self, queries: Floats, labels: Ints, k: int) -> tuple[Floats, Ints]:
        """As ``top_k``, looking further than ``candidates`` did."""


class ExactIndex:
    """Looks at every pair: the truth, and the choice for small sets."""

    name: Final = "Flat"

    def __init__(self, shown: Shown) -> None:
        self.shown = shown
        self._index: Any = load_faiss().IndexFlatIP(shown.vectors.shape[1] + 1)
        self._index.add(_with_component(shown.vectors, -shown.bias, 1))

    def candidates(self, queries: Floats, depth: int) -> tuple[Floats, Ints]:
        """See ``CandidateIndex``."""
        return _search(self._index, _with_component(queries, 1.0, 1), depth)

    def unsettled(self, kth: Floats, deepest: Floats, seen: Ints) -> npt.NDArray[np.bool_]:
        """A tie, up to rounding, between the last kept and the last proposed may go on below: look at all."""
        return (seen < self.shown.size) & ~(kth > deepest + ROUNDING)

    def exhaust(self, queries: Floats, labels: Ints, k: int) -> tuple[Floats, Ints]:
        """Rank all shown users by pairwise dot products, a few queries at a time; slow, for ties only."""
        step = max(1, _SCAN_PAIRS // self.shown.size)
        parts = []
        for start in range(0, len(queries), step):
            block = slice(start, start + step)
            everyone = np.tile(np.arange(self.shown.size), (len(queries[block]), 1))
            parts.append(rank(self.shown, queries[block], labels[block], everyone, k))
        return np.concatenate([scores for scores, _ in parts]), np.concatenate([found for _, found in parts])


class ApproximateIndex:
    """``IVF{cells},SQbf16``: looks into the ``probes`` cells whose centres are closest to the query.

    Inverted files: Sivic & Zisserman 2003; as built by faiss (Douze et al. 2024, arXiv:2401.08281).
    """

    def __init__(self, shown: Shown, seed: int, probes: int = 1) -> None:
        faiss = load_faiss()
        self.shown = shown
        self.cells = cells_for(shown.size)
        self.name = f"IVF{self.cells},SQbf16"
        self.probes = probes
        # Any constant may be added to the bias; a centred one disturbs the cells least.
        self._offset = np.float32(shown.bias.mean(dtype=np.float64))
        width = -(-(shown.vectors.shape[1] + 1) // _WIDTH) * _WIDTH - shown.vectors.shape[1]
        self._width = width
        points = _with_component(shown.vectors, self._offset - shown.bias, width)
        self._index: Any = faiss.index_factory(points.shape[1], self.name, faiss.METRIC_INNER_PRODUCT)
        self._index.cp.seed = seed
        drawn = np.random.default_rng(seed).permutation(shown.size)[: _TRAIN_PER_CELL * self.cells]
        self._index.train(points[np.sort(drawn)])
        self._index.add(points)

    def candidates(self, queries: Floats, depth: int) -> tuple[Floats, Ints]:
        """See ``CandidateIndex``."""
        self._index.nprobe = self.probes
        scores, found = _search(self._index, _with_component(queries, 1.0, self._width), depth)
        return scores - self._offset, found

    def cell_order(self, queries: Floats, block: int) -> Ints:
        """[m] the queries' positions, those of one home cell side by side: neighbours then read the same memory."""
        home = np.empty(len(queries), np.int64)
        for start in range(0, len(queries), block):
            wide = _with_component(queries[start : start + block], 1.0, self._width)
            home[start : start + block] = self._index.quantizer.search(wide, 1)[1][:, 0]
        return np.argsort(home, kind="stable")

    def unsettled(self, kth: Floats, deepest: Floats, seen: Ints) -> npt.NDArray[np.bool_]:
        """The probed cells held too few users."""
        return np.isneginf(kth) & (seen < self.shown.size)

    def exhaust(self, queries: Floats, labels: Ints, k: int) -> tuple[Floats, Ints]:
        """Look into every cell."""
        probes, self.probes = self.probes, self.cells
        try:
            _, found = self.candidates(queries, min(k + SLACK, self.shown.size))
        finally:
            self.probes = probes
        return rank(self.shown, queries, labels, found, k)


def cells_for(size: int) -> int:
    """The power of two nearest to 3 sqrt(size): where scanning cells and choosing among them cost about the same."""
    return int(2 ** np.round(np.log2(3 * np.sqrt(max(size, 1)))))


def top_k(index: CandidateIndex, queries: Floats, labels: Ints, k: int) -> tuple[Floats, Ints]:
    """The k closest shown users of each query.

    Args:
        index: over the index side.
        queries: [m, dim] unit vectors, C order.
        labels: [m] labels of the queries; shown users of the same label are left out.
        k: length of the lists.

    Returns:
        Scores [m, k] (``dot - bias``, descending, ties by position; -inf where there is nobody left) and positions
        [m, k] into ``index.shown`` (-1 there).
    """
    scores, found = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
    depth = min(k + SLACK, index.shown.size)
    if not depth or not len(queries):
        return scores, found
    proposed, positions = index.candidates(queries, depth)
    best, who = rank(index.shown, queries, labels, positions, k)
    scores[:, : best.shape[1]], found[:, : who.shape[1]] = best, who
    seen = (positions >= 0).sum(axis=1)
    again = np.flatnonzero(index.unsettled(scores[:, -1], proposed[:, -1], seen))
    if len(again):
        best, who = index.exhaust(np.ascontiguousarray(queries[again]), labels[again], k)
        scores[again, : best.shape[1]], found[again, : who.shape[1]] = best, who
    return scores, found


def rank(shown: Shown, queries: Floats, labels: Ints, candidates: Ints, k: int) -> tuple[Floats, Ints]:
    """The best of given candidates [m, c] by exact score, then position; width ``min(k, c)``.

    A score and a position share one 64-bit key, so that one sort gives a total order.
    """
    known = candidates >= 0
    safe = np.ascontiguousarray(np.where(known, candidates, 0))
    scores = pair_dots(queries, shown.vectors, safe) - shown.bias[safe]
    known &= shown.labels[safe] != labels[:, None]
    keys = np.where(known, _descending(scores) << np.uint64(32) | safe.astype(np.uint64), _MISSING)
    if keys.shape[1] > 4 * k:
        keys = np.partition(keys, k - 1, axis=1)[:, :k]
    keys = np.sort(keys, axis=1)[:, :k]
    missing = keys == _MISSING
    found = np.where(missing, -1, (keys & np.uint64(0xFFFFFFFF)).astype(np.int64))
    return np.where(missing, np.float32(-np.inf), _from_descending(keys >> np.uint64(32))), found


def pair_dots(queries: Floats, vectors: Floats, positions: Ints) -> Floats:
    """[m, c] dot products of each query with its own ``positions`` [m, c] of ``vectors``.

    Each pair is summed by itself, in one order: the result depends neither on the other pairs nor on which is first.
    """
    faiss = load_faiss()
    out = np.empty(positions.shape, np.float32)
    pointers = [faiss.swig_ptr(part) for part in (out, queries, vectors, positions)]
    faiss.fvec_inner_products_by_idx(*pointers, queries.shape[1], *positions.shape)
    return out


def _search(index: Any, queries: Floats, depth: int) -> tuple[Floats, Ints]:
    scores, found = index.search(queries, depth)
    return scores, found


def _with_component(vectors: Floats, component: Floats | float, width: int) -> Floats:
    """The vectors with ``width`` more components, the first of them given and the others zero."""
    wide = np.zeros((len(vectors), vectors.shape[1] + width), np.float32)
    wide[:, : vectors.shape[1]] = vectors
    wide[:, vectors.shape[1]] = component
    return wide


def _descending(scores: Floats) -> npt.NDArray[np.uint64]:
    """Integers that ascend as the scores descend (IEEE 754 bits, sign folded in)."""
    bits = (scores + np.float32(0)).view(np.uint32)  # + 0 turns -0 into 0
    ordered = np.where(bits >> 31 == 1, ~bits, bits | np.uint32(1 << 31))
    return (~ordered).astype(np.uint64)


def _from_descending(keys: npt.NDArray[np.uint64]) -> Floats:
    ordered = ~keys.astype(np.uint32)
    bits = np.where(ordered >> 31 == 1, ordered & np.uint32(2**31 - 1), ~ordered)
    return np.ascontiguousarray(bits).view(np.float32)
