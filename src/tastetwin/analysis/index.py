"""Who is closest: the index side (users who may be shown), the exact search over it, and the ranking of candidates.

The closeness of y to a query x is ``cos(x, y) - bias[y]``. The bias rides along as one more component
(``[x, 1] . [y, -bias]``), so that every search is a plain inner-product search. A search only proposes candidates;
``rank`` orders them by float32 dot products that do not depend on how queries were batched.
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
"""Candidates beyond k: pays for self, for rounding and for ties at the edge."""
ROUNDING: Final = np.float32(1e-5)
"""Two float32 dot products of the same unit vectors, summed in different orders, differ by less than this."""
MISSING: Final = np.uint64(2**64 - 1)
"""The key of nobody: after all others."""
Keys = npt.NDArray[np.uint64]


class Vectors(Protocol):
    """[n, dim] unit vectors by position, wherever they lie."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, dim)."""

    def __len__(self) -> int:
        """n."""

    def __getitem__(self, at: Any, /) -> Any:
        """[m, dim] float32 in C order of a slice, or of [m] positions."""


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


class ExactIndex:
    """Looks at every pair: the truth, and the choice for small sets."""

    def __init__(self, shown: Shown) -> None:
        self.shown = shown
        self._index: Any = load_faiss().IndexFlatIP(shown.vectors.shape[1] + 1)
        self._index.add(with_component(shown.vectors, -shown.bias))

    def top_k(self, queries: Floats, labels: Ints, k: int) -> tuple[Floats, Ints]:
        """The k closest shown users of each of [m, dim] unit vectors, C order; those of the query's label are left out.

        Returns:
            Scores [m, k] (``dot - bias``, descending, ties by position; -inf where there is nobody left) and positions
            [m, k] into ``shown`` (-1 there).
        """
        depth = min(k + SLACK, self.shown.size)
        if not depth or not len(queries):
            return empty_lists(len(queries), k)
        proposed, positions = self._index.search(with_component(queries, 1.0), depth)
        scores, found = rank(self.shown, queries, labels, positions, k)
        # A tie, up to rounding, between the last kept and the last proposed may go on below: look at all.
        again = np.flatnonzero((depth < self.shown.size) & ~(scores[:, -1] > proposed[:, -1] + ROUNDING))
        for row in again:
            everyone = np.arange(self.shown.size)[None]
            scores[row], found[row] = rank(self.shown, queries[row : row + 1], labels[row : row + 1], everyone, k)
        return scores, found


def empty_lists(queries: int, k: int) -> tuple[Floats, Ints]:
    """Scores and positions [queries, k] of nobody."""
    return np.full((queries, k), -np.inf, np.float32), np.full((queries, k), -1, np.int64)


def rank(shown: Shown, queries: Floats, labels: Ints, candidates: Ints, k: int) -> tuple[Floats, Ints]:
    """The k best of given candidates [m, c], -1 for none, by score, then position; returns as ``top_k``.

    One sort of ``sort_keys`` gives a total order.
    """
    known = candidates >= 0
    safe = np.ascontiguousarray(np.where(known, candidates, 0))
    scores = pair_dots(queries, shown.vectors, safe) - shown.bias[safe]
    known &= shown.labels[safe] != labels[:, None]
    keys = np.where(known, sort_keys(scores, safe), MISSING)
    if keys.shape[1] > 4 * k:
        keys = np.partition(keys, k - 1, axis=1)[:, :k]
    keys = np.sort(keys, axis=1)[:, :k]
    keys = np.pad(keys, ((0, 0), (0, k - keys.shape[1])), constant_values=MISSING)
    return from_keys(keys)


def sort_keys(scores: Floats, positions: Ints) -> Keys:
    """Keys that ascend as the scores descend, and with the positions where scores are equal; arrays broadcast."""
    return _descending(scores) << np.uint64(32) | positions.astype(np.uint64)


def from_keys(keys: Keys) -> tuple[Floats, Ints]:
    """The scores and positions of ``sort_keys``; -inf and -1 of ``MISSING``."""
    missing = keys == MISSING
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


def row_dots(queries: Floats, others: Floats) -> Floats:
    """[m] the dot product of each row of [m, dim] with the same row of the others, summed as ``pair_dots`` does."""
    return pair_dots(queries, others, np.arange(len(others))[:, None])[:, 0]


def with_component(vectors: Floats, component: Floats | float) -> Floats:
    """The vectors with one more component."""
    wide = np.empty((len(vectors), vectors.shape[1] + 1), np.float32)
    wide[:, :-1] = vectors
    wide[:, -1] = component
    return wide


def _descending(scores: Floats) -> Keys:
    """Integers that ascend as the scores descend (IEEE 754 bits, sign folded in)."""
    bits = (scores + np.float32(0)).view(np.uint32)  # + 0 turns -0 into 0
    ordered = np.where(bits >> 31 == 1, ~bits, bits | np.uint32(1 << 31))
    return (~ordered).astype(np.uint64)


def _from_descending(keys: Keys) -> Floats:
    ordered = ~keys.astype(np.uint32)
    bits = np.where(ordered >> 31 == 1, ordered & np.uint32(2**31 - 1), ~ordered)
    return np.ascontiguousarray(bits).view(np.float32)
