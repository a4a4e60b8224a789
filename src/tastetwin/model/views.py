"""The linear views as frozen tables with one row per place: what the encoder carries inside.

Two kinds. A *bag* view is a sum of rows over a user's places (SVD, PPMI, category and region histograms). A *factor*
view is iALS, whose fold-in solves a small system per user; its items are stored whitened by the part of the system that
all users share, so that what is left to solve is close to the identity and a few conjugate-gradient steps suffice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from tastetwin.features.histories import FIRST_PLACE_ROW, Vocabulary
from tastetwin.model.kinds import area_matrix, category_matrix, category_region_cells, region_matrix
from tastetwin.model.linear import (
    FUSED_IALS,
    FUSED_SVD,
    HISTOGRAM_SVD,
    Floats,
    Histogram,
    Ials,
    Svd,
    fit_histogram,
    fit_ials,
    fit_ppmi,
    fit_svd,
)

Kinds = list[tuple[sp.csr_matrix, int]]
"""[n_rows, n_kinds] each place's kinds, and the size of the view of them."""

N_OTHER_BAGS: Final = 3
"""Bag views that are no kinds of place: two SVDs and the co-visits."""
PPMI_SIZE: Final = 128
FINE_SVD: Final = 64
"""Of categories in regions, and of areas on the map: finer kinds than categories or regions alone."""


@dataclass(frozen=True)
class LinearTables:
    """All linear views of one fit, side by side."""

    bags: Floats
    """[n_rows, sum of bag_sizes]"""
    bag_sizes: tuple[int, ...]
    factors: Floats
    """[n_rows, sum of factor_sizes] whitened item factors."""
    unwhiten: tuple[Floats, ...]
    """Per factor view [k, k]: the solution in whitened space times this is the user's vector."""
    alpha: float
    """iALS weight of an observed place."""

    @property
    def factor_sizes(self) -> tuple[int, ...]:
        """Lengths of the factor views in whitened space; a view that was turned onto a larger one comes out longer."""
        return tuple(len(back) for back in self.unwhiten)

    @property
    def width(self) -> int:
        """Length of all views side by side."""
        return sum(self.bag_sizes) + sum(int(back.shape[1]) for back in self.unwhiten)


def fit_tables(matrix: sp.csr_matrix, vocabulary: Vocabulary, kinds: Kinds, alpha: float, seed: int) -> LinearTables:
    """Fit every view on [n_users, n_rows] strengths and lay them side by side; places nobody visited get a fallback."""
    ials = [fit_ials(matrix, k, alpha, seed=seed) for k in FUSED_IALS]
    widest = fit_svd(matrix, max(FUSED_SVD), seed)  # its strongest components are those of the narrower ones
    bags: list[Svd | Histogram] = [replace(widest, components=widest.components[:, :k]) for k in FUSED_SVD]
    bags.append(fit_ppmi(matrix, PPMI_SIZE, seed))
    bags.extend(fit_histogram(matrix, kind, size, seed) for kind, size in kinds)
    whitened = [_whiten(view) for view in ials]
    visited = np.asarray(matrix.sum(axis=0)).ravel() > 0
    tables = [bag.table() for bag in bags]
    return LinearTables(
        _with_fallback(np.hstack(tables), visited, vocabulary),
        tuple(table.shape[1] for table in tables),
        _with_fallback(np.hstack([items for items, _ in whitened]), visited, vocabulary),
        tuple(back for _, back in whitened),
        alpha,
    )


def kinds_of_place(vocabulary: Vocabulary) -> Kinds:
    """Every kind of place that the source tells; the same for every fit and seed."""
    kinds = [(category_matrix(vocabulary), HISTOGRAM_SVD), (region_matrix(vocabulary), HISTOGRAM_SVD)]
    if all(kind.nnz for kind, _ in kinds):
        kinds.append((category_region_cells(vocabulary), FINE_SVD))
    kinds.append((area_matrix(vocabulary, seed=0), FINE_SVD))
    return [(kind, size) for kind, size in kinds if kind.nnz]


def table_floats(n_users: int, vocabulary: Vocabulary) -> int:
    """Floats of a row of the tables that ``fit_tables`` would make of so many users, factors filled up to the widest.

    That is how they are served; few users, places or kinds of place allow less than the full sizes.
    """
    least = min(n_users, vocabulary.n_rows)
    bags = [min(size, least) for size in FUSED_SVD] + [min(PPMI_SIZE, vocabulary.n_rows)]
    bags += [min(size, n_users, kind.shape[1]) for kind, size in kinds_of_place(vocabulary)]
    return sum(bags) + len(FUSED_IALS) * min(max(FUSED_IALS), least)


def _whiten(ials: Ials) -> tuple[Floats, Floats]:
    """Items and way back: with shared = L L', items become items inv(L)', and x = inv(L)' z."""
    back = np.linalg.inv(np.linalg.cholesky(ials.shared.astype(np.float64))).astype(np.float32)
    return np.asarray(ials.items @ back.T, np.float32), back


def _with_fallback(table: Floats, visited: npt.NDArray[np.bool_], vocabulary: Vocabulary) -> Floats:
    """Give each place that nobody visited the mean of its peers: same category and region, else category, else region.

    A row that has something of its own (histograms do) keeps it.
    """
    categories = first_categories(vocabulary)
    regions = vocabulary.regions.astype(np.int64)
    both = np.where((categories >= 0) & (regions >= 0), categories * (regions.max(initial=0) + 1) + regions, -1)
    filled = table.copy()
    open_cells = ~visited[:, None] & (table == 0)
    open_cells[:FIRST_PLACE_ROW] = False
    for keys in (both, categories, regions):
        peers = _peer_means(table, visited, keys)
        filled = np.where(open_cells, peers, filled)
        open_cells &= filled == 0
    return np.asarray(filled, np.float32)


def first_categories(vocabulary: Vocabulary) -> npt.NDArray[np.int64]:
    """[n_rows] the main (first) category of each place, -1 without one."""
    starts, ends = vocabulary.category_offsets[:-1], vocabulary.category_offsets[1:]
    padded = np.append(vocabulary.categories, -1)
    return np.where(ends > starts, padded[np.minimum(starts, len(padded) - 1)], -1).astype(np.int64)


def _peer_means(table: Floats, visited: npt.NDArray[np.bool_], keys: npt.NDArray[np.int64]) -> Floats:
    """[n_rows, k] mean over the visited rows with the same key; zero where the key is -1 or has none."""
    counted = np.flatnonzero(visited & (keys >= 0))
    _, groups = np.unique(keys, return_inverse=True)
    shape = (int(groups.max(initial=0)) + 1, len(keys))
    members = sp.csr_matrix((np.ones(len(counted), np.float32), (groups[counted], counted)), shape=shape)
    means = (members @ table) / np.maximum(np.asarray(members.sum(axis=1)), 1)
    return np.asarray(np.where(keys[:, None] >= 0, means[groups], 0), np.float32)


def align(tables: LinearTables, onto: LinearTables) -> LinearTables:
    """Rotate each view of a fit onto the same view of another one (orthogonal Procrustes).

    The rows of ``onto`` are the first of ``tables``; behind them there may be places that it does not know.
    """
    n_rows = len(onto.bags)
    bags = _blocks(tables.bags, tables.bag_sizes)
    targets = _blocks(onto.bags, onto.bag_sizes)
    turned = [block @ rotation(block[:n_rows], target) for block, target in zip(bags, targets, strict=True)]
    backs = [
        back @ rotation(block[:n_rows] @ _items(back), target @ _items(onto_back))
        for block, target, back, onto_back in zip(
            _blocks(tables.factors, tables.factor_sizes),
            _blocks(onto.factors, onto.factor_sizes),
            tables.unwhiten,
            onto.unwhiten,
            strict=True,
        )
    ]
    return replace(tables, bags=np.hstack(turned), bag_sizes=onto.bag_sizes, unwhiten=tuple(backs))


def _items(back: Floats) -> Floats:
    """Whitened items times this are the items again."""
    return np.asarray(np.linalg.inv(back.T), np.float32)


def _blocks(table: Floats, sizes: tuple[int, ...]) -> list[Floats]:
    return np.split(table, np.cumsum(sizes)[:-1], axis=1)


def rotation(source: Floats, target: Floats) -> Floats:
    """[k_source, k_target] the orthonormal map that brings source nearest to target (Schönemann 1966)."""
    left, _, right = np.linalg.svd(source.T @ target, full_matrices=False)
    return np.asarray(left @ right, np.float32)
