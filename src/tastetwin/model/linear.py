"""Linear taste vectors: truncated SVD of TF-IDF, implicit ALS with fold-in, and both side by side.

They are the baselines every encoder must beat and the views it starts from. A user enters as one row of a
sparse binary matrix (distinct places) and is *folded in*: the factors of places stay, the user's vector follows in
closed form, so nobody has to be in the training set to get a vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from tastetwin.features.histories import Histories, Vocabulary
from tastetwin.model.kinds import category_matrix, region_matrix

Floats = npt.NDArray[np.float32]

FUSED_IALS: Final = (16, 32, 64)
FUSED_SVD: Final = (64, 128)
HISTOGRAM_SVD: Final = 32
HISTOGRAM_WEIGHT: Final = 0.5

_POWER_ITERATIONS: Final = 6
_OVERSAMPLING: Final = 16
_PAIR_BUDGET: Final = 100_000_000
"""Pairs of places counted for co-occurrence: about 2 GB and half a minute."""
_CG_STEPS: Final = 3
_TINY: Final = np.float32(1e-20)
_SOLVE_FLOATS: Final = 1 << 22
"""Floats of gathered item factors held at a time while solving: 16 MB, about a core's share of the cache."""


class View(Protocol):
    """A way to give any user a vector."""

    def fold_in(self, matrix: sp.csr_matrix) -> Floats:
        """[n_users, n_rows] -> [n_users, k]; rows of unit length, or all zero for a user without places."""
        ...


def unit(x: Floats) -> Floats:
    """Rows [n, k] at unit length; a row of zeros stays zero."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.where(norms > 0, norms, 1), np.float32)


def histories_matrix(histories: Histories, n_rows: int) -> sp.csr_matrix:
    """float32 [n_users, n_rows], 1 where the user favors the place."""
    ones = np.ones(len(histories.places), np.float32)
    shape = (histories.n_users, n_rows)
    # A copy: sparse products sort the indices in place, and would take places from their visits and times.
    return sp.csr_matrix((ones, histories.places, histories.offsets), shape=shape, copy=True)


def strength_matrix(histories: Histories, n_rows: int) -> sp.csr_matrix:
    """float32 [n_users, n_rows], sqrt(1 + ln visits) where the user favors the place: a regular counts, sublinearly."""
    matrix = histories_matrix(histories, n_rows)
    matrix.data = np.sqrt(1 + np.log(histories.visits)).astype(np.float32)
    return matrix


@dataclass(frozen=True)
class Svd:
    """Truncated SVD of TF-IDF (latent semantic analysis; Deerwester et al. 1990)."""

    weights: Floats
    """[n_rows] inverse document frequency; 0 where nobody was."""
    components: Floats
    """[n_rows, k] right singular vectors, the strongest first."""

    def table(self) -> Floats:
        """[n_rows, k] whose sum over a user's places is, at unit length, the user's vector."""
        return self.weights[:, None] * self.components

    def fold_in(self, matrix: sp.csr_matrix) -> Floats:
        """[n_users, n_rows] -> [n_users, k] unit rows."""
        return unit(np.asarray(matrix @ self.table(), np.float32))


def fit_svd(matrix: sp.csr_matrix, k: int, seed: int) -> Svd:
    """Fit on [n_users, n_rows]; ``k`` is capped by the matrix's size.

    Randomised subspace iteration (Halko, Martinsson & Tropp 2011): a few passes over the non-zeros, whatever the size.
    """
    visitors = np.asarray((matrix > 0).sum(axis=0), np.float64).ravel()
    idf = np.where(visitors > 0, np.log((1 + matrix.shape[0]) / np.maximum(visitors, 1)), 0).astype(np.float32)
    return Svd(idf, _right_singular_vectors(_temper_rows(matrix @ sp.diags_array(idf)), k, seed))


def _temper_rows(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Each row divided by the root of its norm: neither heavy users nor those of three places decide alone."""
    norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return (sp.diags_array(1 / np.sqrt(np.where(norms > 0, norms, 1))) @ matrix).tocsr().astype(np.float32)


def _right_singular_vectors(matrix: sp.csr_matrix, k: int, seed: int) -> Floats:
    k = max(1, min(k, *matrix.shape))
    width = min(k + _OVERSAMPLING, *matrix.shape)
    basis = np.random.default_rng(seed).standard_normal((matrix.shape[1], width)).astype(np.float32)
    transposed = matrix.T.tocsr()  # row by row it is read in the order it lies in memory
    for _ in range(_POWER_ITERATIONS):
        basis, _ = np.linalg.qr(transposed @ (matrix @ basis))
    _, _, rotation = np.linalg.svd(matrix @ basis, full_matrices=False)
    return np.ascontiguousarray(basis @ rotation[:k].T, np.float32)


@dataclass(frozen=True)
class Ials:
    """Item factors of implicit ALS, with what the fold-in of a user needs."""

    items: Floats
    """[n_rows, k] item factors."""
    alpha: float
    """Weight of an observed place of strength 1, on top of the weight 1 of every place."""
    shared: Floats
    """[k, k] the part of the normal equations that all users share: Gramian of the items plus penalty."""

    def fold_in(self, matrix: sp.csr_matrix) -> Floats:
        """[n_users, n_rows] -> [n_users, k] unit rows."""
        return unit(self.solve(matrix))

    def solve(self, matrix: sp.csr_matrix) -> Floats:
        """[n_users, n_rows] -> [n_users, k], the least-squares solution itself."""
        return _solve_side(matrix, self.items, self.alpha, self.shared)


def fit_ials(
    matrix: sp.csr_matrix,
    k: int,
    alpha: float = 30.0,
    regularisation: float = 0.5,
    iterations: int = 8,
    seed: int = 0,
) -> Ials:
    """Implicit alternating least squares on binary [n_users, n_rows]; ``k`` is capped by the matrix's size.

    Hu, Koren & Volinsky 2008: every cell is fitted with weight 1, an observed one with target 1 and ``alpha`` more.
    ``regularisation`` is in units of the penalty at which only structure stronger than chance survives, so that one
    value serves towns and countries: see ``noise_edge``.
    """
    k = max(1, min(k, *matrix.shape))
    penalty = float(regularisation * (1 + alpha) * noise_edge(matrix))
    noise = np.random.default_rng(seed).standard_normal((matrix.shape[1], k))
    items = (noise / np.sqrt(k)).astype(np.float32)
    users = np.zeros((matrix.shape[0], k), np.float32)
    transposed = matrix.T.tocsr()
    for _ in range(iterations):
        users = _approach_side(matrix, items, alpha, _shared(items, penalty), users)
        items = _approach_side(transposed, users, alpha, _shared(users, penalty), items)
    return Ials(items, alpha, _shared(items, penalty))


def _approach_side(matrix: sp.csr_matrix, other: Floats, alpha: float, shared: Floats, start: Floats) -> Floats:
    """A half-step of the fit: a few conjugate-gradient steps from ``start`` towards what ``_solve_side`` solves.

    Takács, Pilászy & Tikk 2011: warm-started, the alternation loses nothing by it, and a row of n places costs n k
    instead of n k^2 + k^3.
    """
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    observed, weights = other[matrix.indices], alpha * matrix.data

    def through(x: Floats) -> Floats:
        fitted = np.einsum("ij,ij->i", observed, x[rows]) * weights
        return np.asarray(x @ shared + _with_data(matrix, fitted) @ other, np.float32)

    solution = start
    residual = np.asarray(_with_data(matrix, 1 + weights) @ other, np.float32) - through(start)
    direction, power = residual, (residual * residual).sum(axis=1, keepdims=True)
    for _ in range(_CG_STEPS):
        image = through(direction)
        step = power / np.maximum((direction * image).sum(axis=1, keepdims=True), _TINY)
        solution, residual = solution + step * direction, residual - step * image
        fresh = (residual * residual).sum(axis=1, keepdims=True)
        direction, power = residual + fresh / np.maximum(power, _TINY) * direction, fresh
    solution[np.diff(matrix.indptr) == 0] = 0  # exactly, as a direct solve has it
    return solution


def _with_data(matrix: sp.csr_matrix, data: Floats) -> sp.csr_matrix:
    return sp.csr_matrix((data, matrix.indices, matrix.indptr), shape=matrix.shape)


def _shared(factors: Floats, penalty: float) -> Floats:
    return np.asarray(factors.T @ factors + penalty * np.eye(factors.shape[1]), np.float32)


def noise_edge(matrix: sp.csr_matrix) -> float:
    """The largest singular value expected of a random binary matrix of the same density (Marchenko & Pastur 1967).

    A factor whose singular value times (1 + alpha) is under the penalty is shrunk to nothing.
    """
    rows, columns = np.unique(matrix.nonzero()[0]).size, np.unique(matrix.indices).size
    return float(np.sqrt(matrix.nnz / max(1, rows)) + np.sqrt(matrix.nnz / max(1, columns)))


def _solve_side(matrix: sp.csr_matrix, other: Floats, alpha: float, shared: Floats) -> Floats:
    """One half-step: for each row r with strengths s, (shared + alpha F' diag(s) F) x = F' (1 + alpha s)."""
    k = other.shape[1]
    padded = np.concatenate([other, np.zeros((1, k), np.float32)])
    solution = np.zeros((matrix.shape[0], k), np.float32)
    for rows, members, strengths in _padded_batches(matrix, pad=len(other), floats=_SOLVE_FLOATS // k):
        factors = padded[members]
        weighted = factors * (alpha * strengths[..., None])
        left = shared + factors.transpose(0, 2, 1) @ weighted
        right = (factors + weighted).sum(axis=1)
        solution[rows] = np.linalg.solve(left, right[..., None])[..., 0]
    return solution


def _padded_batches(
    matrix: sp.csr_matrix, pad: int, floats: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]]:
    """Yield (rows [b], members [b, longest], strengths), non-empty rows only, shortest first, ``floats`` cells each."""
    lengths = np.diff(matrix.indptr)
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    while len(order):
        cells = lengths[order] * np.arange(1, len(order) + 1)
        size = max(1, int(np.searchsorted(cells, floats, side="right")))
        rows, order = order[:size], order[size:]
        slots = np.arange(lengths[rows[-1]])
        inside = slots < lengths[rows][:, None]
        positions = np.where(inside, matrix.indptr[rows][:, None] + slots, 0)
        yield rows, np.where(inside, matrix.indices[positions], pad), matrix.data[positions]


def fit_ppmi(matrix: sp.csr_matrix, k: int, seed: int) -> Svd:
    """Factors of how much more often two places share a user than chance has it, as a view of unit place vectors.

    Shifted PPMI with context smoothing .75 and the root of the singular values (Levy, Goldberg & Dagan 2015).
    """
    pairs = _co_occurrence(matrix, seed)
    totals = np.asarray(pairs.sum(axis=1), np.float64).ravel()
    context = totals**0.75
    cells = pairs.tocoo()
    expected = totals[cells.row] * context[cells.col] / max(context.sum(), 1)
    information = np.log(np.maximum(cells.data / expected, 1)).astype(np.float32)
    ppmi = sp.csr_matrix((information, (cells.row, cells.col)), shape=pairs.shape)
    components = _right_singular_vectors(ppmi, k, seed)
    scaled = unit(components * np.sqrt(np.linalg.norm(ppmi @ components, axis=0)))
    return Svd((totals > 0).astype(np.float32), scaled)


def _co_occurrence(matrix: sp.csr_matrix, seed: int) -> sp.csr_matrix:
    """[n_rows, n_rows] users shared by two places, over as many random users as the budget of pairs allows.

    Those who would take much of it alone come last: an account with ten thousand places would leave it to nobody else.
    """
    cost = np.diff(matrix.indptr).astype(np.int64) ** 2
    order = np.random.default_rng(seed).permutation(matrix.shape[0])
    order = order[np.argsort(cost[order] > _PAIR_BUDGET // 100, kind="stable")]
    users = np.sort(order[np.cumsum(cost[order]) <= _PAIR_BUDGET])
    binary = matrix[users].astype(bool).astype(np.float32)
    pairs = (binary.T @ binary).tocsr()
    pairs.setdiag(0)
    pairs.eliminate_zeros()
    return pairs


@dataclass(frozen=True)
class Histogram:
    """SVD of what kinds of place a user favors: categories, or regions."""

    kinds: sp.csr_matrix
    """[n_rows, n_kinds] each place's kinds."""
    svd: Svd

    def table(self) -> Floats:
        """[n_rows, k] whose sum over a user's places is, at unit length, the user's vector."""
        return np.asarray(self.kinds @ self.svd.table(), np.float32)

    def fold_in(self, matrix: sp.csr_matrix) -> Floats:
        """[n_users, n_rows] -> [n_users, k] unit rows."""
        return self.svd.fold_in((matrix @ self.kinds).tocsr())


def fit_histogram(matrix: sp.csr_matrix, kinds: sp.csr_matrix, k: int, seed: int) -> Histogram:
    """Fit on [n_users, n_rows] and the kinds of each place [n_rows, n_kinds]."""
    return Histogram(kinds, fit_svd((matrix @ kinds).tocsr(), k, seed))


@dataclass(frozen=True)
class Fused:
    """Views side by side, each at unit length times its weight; the whole at unit length."""

    views: tuple[View, ...]
    weights: tuple[float, ...]

    def fold_in(self, matrix: sp.csr_matrix) -> Floats:
        """[n_users, n_rows] -> [n_users, sum of k] unit rows."""
        parts = [weight * view.fold_in(matrix) for view, weight in zip(self.views, self.weights, strict=True)]
        return unit(np.hstack(parts))


def fit_fused(matrix: sp.csr_matrix, seed: int, alpha: float = 30.0, regularisation: float = 0.5) -> Fused:
    """*Fused linear*: iALS of 16, 32, 64 and SVD of 64, 128 side by side."""
    ials: list[View] = [fit_ials(matrix, k, alpha, regularisation, seed=seed) for k in FUSED_IALS]
    views = (*ials, *(fit_svd(matrix, k, seed) for k in FUSED_SVD))
    return Fused(views, (1.0,) * len(views))


def fit_full(matrix: sp.csr_matrix, vocabulary: Vocabulary, fused: Fused, seed: int) -> Fused:
    """*Full linear*: fused linear, and the category and region histograms at half weight."""
    kinds = (category_matrix(vocabulary), region_matrix(vocabulary))
    histograms = tuple(fit_histogram(matrix, kind, HISTOGRAM_SVD, seed) for kind in kinds)
    return Fused((fused, *histograms), (1.0, *(HISTOGRAM_WEIGHT for _ in histograms)))


def csls(queries: Floats, candidates: Floats, neighbours: int = 10) -> Floats:
    """[n_queries, n_candidates] similarities, corrected for hubs; higher means closer.

    Cross-domain similarity local scaling (Conneau et al. 2018), the part that changes a query's ranking: a candidate
    near to everybody loses its mean similarity to its ``neighbours`` nearest queries.
    """
    similarity = queries @ candidates.T
    if neighbours == 0 or len(queries) == 0:
        return np.asarray(similarity, np.float32)
    nearest = np.partition(similarity, -min(neighbours, len(queries)), axis=0)[-neighbours:]
    return np.asarray(2 * similarity - nearest.mean(axis=0), np.float32)
