"""What kinds of place there are: categories, regions, categories in regions, and areas on the map."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.spatial import cKDTree

from tastetwin.features.histories import Vocabulary
from tastetwin.features.vocabulary import on_sphere

AREAS: Final = (16, 64, 256, 1024)
"""Areas on the map, from quarters of the whole to streets: as many small ones where places are many."""
PLACES_PER_AREA: Final = 3
_NEAR: Final = 4
_ITERATIONS: Final = 8
_SAMPLE: Final = 100_000


def category_matrix(vocabulary: Vocabulary) -> sp.csr_matrix:
    """float32 [n_rows, n_categories]; a place's categories share one unit of mass."""
    counts = np.diff(vocabulary.category_offsets)
    shares = np.repeat(1 / np.maximum(counts, 1), counts).astype(np.float32)
    shape = (vocabulary.n_rows, max(1, len(vocabulary.category_codes)))
    return sp.csr_matrix((shares, vocabulary.categories, vocabulary.category_offsets), shape=shape, copy=True)


def region_matrix(vocabulary: Vocabulary) -> sp.csr_matrix:
    """float32 [n_rows, n_regions], 1 at the place's region; an empty row where it is unknown."""
    known = np.flatnonzero(vocabulary.regions >= 0)
    shape = (vocabulary.n_rows, max(1, len(vocabulary.region_codes)))
    return sp.csr_matrix((np.ones(len(known), np.float32), (known, vocabulary.regions[known])), shape=shape)


def category_region_cells(vocabulary: Vocabulary) -> sp.csr_matrix:
    """float32 [n_rows, n_cells] of category x region; a missing category, or region, counts as one of its own."""
    categories = category_matrix(vocabulary)
    bare = np.asarray(categories.sum(axis=1)).ravel() == 0
    categories = sp.hstack([categories, sp.csr_matrix(bare[:, None].astype(np.float32))]).tocoo()
    regions = vocabulary.regions[categories.row].astype(np.int64) + 1
    cells, columns = np.unique(
        categories.col.astype(np.int64) * (len(vocabulary.region_codes) + 1) + regions, return_inverse=True
    )
    return sp.csr_matrix((categories.data, (categories.row, columns)), shape=(vocabulary.n_rows, len(cells)))


def area_matrix(vocabulary: Vocabulary, seed: int) -> sp.csr_matrix:
    """float32 [n_rows, n_areas] soft membership in areas of every size of ``AREAS``, one unit of mass at each size.

    An empty row without coordinates. Areas are centres of k-means (Lloyd 1982), so that they are small where places are
    dense, be the data one town or a continent; a place belongs to its nearest centres by a Gaussian of their distance.
    """
    located = np.flatnonzero(~np.isnan(vocabulary.coordinates).any(axis=1))
    points = on_sphere(vocabulary.coordinates[located])
    sizes = sorted({min(size, len(points) // PLACES_PER_AREA) for size in AREAS} - {0})
    parts = [_memberships(points, size, np.random.default_rng([seed, size])) for size in sizes]
    if not parts:
        return sp.csr_matrix((vocabulary.n_rows, 1), dtype=np.float32)
    inside = sp.hstack(parts).tocoo()
    shape = (vocabulary.n_rows, inside.shape[1])
    return sp.csr_matrix((inside.data, (located[inside.row], inside.col)), shape=shape)


def _memberships(points: npt.NDArray[np.float64], size: int, rng: np.random.Generator) -> sp.csr_matrix:
    """float32 [n, size] shares of each point in its nearest centres, adding up to 1."""
    near = min(_NEAR, size)
    distance, nearest = cKDTree(_centres(points, size, rng)).query(points, k=[*range(1, near + 1)])
    spread = np.maximum(distance[:, -1:] / 2, np.finfo(np.float32).tiny)
    shares = np.exp(-0.5 * (distance / spread) ** 2)
    shares /= shares.sum(axis=1, keepdims=True)
    offsets = np.arange(0, nearest.size + 1, near)
    return sp.csr_matrix((shares.ravel().astype(np.float32), nearest.ravel(), offsets), shape=(len(points), size))


def _centres(points: npt.NDArray[np.float64], size: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """[size, 3] centres of k-means on a sample of the points; one that loses all its points stays."""
    sample = points[rng.choice(len(points), min(len(points), _SAMPLE), replace=False)]
    centres = sample[:size]
    for _ in range(_ITERATIONS):
        _, own = cKDTree(centres).query(sample)
        counts = np.bincount(own, minlength=size)[:, None]
        sums = np.stack([np.bincount(own, axis, size) for axis in sample.T], axis=1)
        centres = np.where(counts > 0, sums / np.maximum(counts, 1), centres)
    return centres
