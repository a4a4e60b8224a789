"""What of a similarity is home area and what is taste: a few axes of the taste vectors tell where people live.

The axes span what the mean vectors of the home regions differ in. With P the orthogonal projection onto them,
``u.v = u'Pv + u'(I - P)v`` exactly: home part plus taste part. No linear rule can tell the region from a vector whose
class means are equal (Belrose et al. 2023, LEACE); taking off the directions of the means one by one, the largest
first, is spectral attribute removal (Shao et al. 2023). An orthogonal projection, so that any index can search either
part: reweighted vectors are vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tastetwin.analysis.index import Floats, Ints, Vectors, pair_dots
from tastetwin.generations import FileEntry, Manifest
from tastetwin.store import Store
from tastetwin.tables import put_table, read_files

Rows = npt.NDArray[np.int32]
Doubles = npt.NDArray[np.float64]

LEVEL: Final = 0.52
"""A taste part tells nothing of home if, of two others, the one with the user's home is nearer this often at most."""
TOLERANCE: Final = 0.01
"""Where few users cannot show that, axes are added until no number of axes is better than this."""
MAX_USERS: Final = 100_000
"""Users read, drawn at random: enough for twenty in each of 5,000 regions."""
FOLDS: Final = 5
_TRIPLES: Final = 20_000
_ROWS_AT_A_TIME: Final = 1 << 16
_AXES: Final = pa.schema([pa.field("axis", pa.list_(pa.float32()))])
_TABLE: Final = "home_axes"


@dataclass(frozen=True)
class Parts:
    """The home axes, and how well the vectors tell home with and without them."""

    axes: Floats
    """[rank, dim] orthonormal; rank 0 where home regions are unknown, one, or not told by the vectors."""
    regions: int
    """Home regions seen."""
    told: float
    """How often the one of two others who has the user's home region is the nearer one; 0.5 = by chance."""
    told_by_taste: float
    """The same by the taste part alone, on users whom the axes were not fitted to."""

    def to_json(self) -> dict[str, float]:
        """Small JSON."""
        told = {"told": round(self.told, 4), "told_by_taste": round(self.told_by_taste, 4)}
        return {"axes": len(self.axes), "regions": self.regions, **told}


def fit_parts(vectors: Vectors, homes: Rows, seed: int) -> Parts:
    """The fewest axes without which the users' homes are no longer told (``LEVEL``), on users held out fold by fold.

    For [n, dim] unit vectors and [n] the region index of each user's home, -1 where unknown.
    """
    rng = np.random.default_rng(seed)
    known = rng.permutation(np.flatnonzero(homes >= 0))[:MAX_USERS]
    known = known[np.argsort(homes[known], kind="stable")]
    regions, starts, sizes = np.unique(homes[known], return_index=True, return_counts=True)
    if (sizes >= 2 * FOLDS).sum() < 2:  # nobody could be held out and still have a neighbour
        return Parts(np.empty((0, vectors.shape[1]), np.float32), len(regions), 0.5, 0.5)
    mine, home = vectors[known].astype(np.float64), homes[known]
    fold = (np.arange(len(known)) - np.repeat(starts, sizes)) % FOLDS
    curves = [
        _told(mine[fold == f], home[fold == f], _axes(mine[fold != f], home[fold != f]), rng) for f in range(FOLDS)
    ]
    told = np.mean([curve[: min(map(len, curves))] for curve in curves], axis=0)
    axes = _axes(mine, home)
    rank = min(int(np.argmax(told <= max(LEVEL, told.min() + TOLERANCE))), len(axes))
    return Parts(np.ascontiguousarray(axes[:rank], np.float32), len(regions), float(told[0]), float(told[rank]))


def _axes(vectors: Doubles, homes: Rows) -> Doubles:
    """[rank, dim] principal axes of the regions' true means, the largest first; at most half of the dimensions.

    Means of few users scatter by chance too: what the scatter within regions explains is taken off (the analysis of
    variance estimator; Searle, Casella & McCulloch 1992), and what is then not positive is no axis. ``homes`` ascend.
    """
    _, starts, sizes = np.unique(homes, return_index=True, return_counts=True)
    means = np.add.reduceat(vectors, starts) / sizes[:, None]
    around = vectors - np.repeat(means, sizes, axis=0)
    within = around.T @ around / max(len(vectors) - len(sizes), 1)
    between = (means - vectors.mean(axis=0)) * np.sqrt(sizes)[:, None]
    values, axes = np.linalg.eigh(between.T @ between - (len(sizes) - 1) * within)
    rank = min(int((values > 0).sum()), vectors.shape[1] // 2)
    return np.asarray(axes.T[::-1][:rank])


def _told(vectors: Doubles, homes: Rows, axes: Doubles, rng: np.random.Generator) -> Doubles:
    """[rank + 1] how often the one of the same home is nearer, without the first 0, 1, ... axes. ``homes`` ascend."""
    user, same, other = _triples(homes, rng)
    apart = vectors[same] - vectors[other]
    whole = np.einsum("ij,ij->i", vectors[user], apart)[:, None]
    along = np.cumsum((vectors[user] @ axes.T) * (apart @ axes.T), axis=1)
    return np.asarray((np.concatenate([whole, whole - along], axis=1) > 0).mean(axis=0))


def _triples(homes: Rows, rng: np.random.Generator) -> tuple[Ints, Ints, Ints]:
    """Users drawn at random, each with one of the same home and one of another."""
    start, stop = np.searchsorted(homes, homes, "left"), np.searchsorted(homes, homes, "right")
    user = rng.choice(np.flatnonzero(stop - start > 1), _TRIPLES)
    first, size = start[user], (stop - start)[user]
    same = first + (user - first + rng.integers(1, size)) % size
    return user, same, (stop[user] + rng.integers(0, len(homes) - size)) % len(homes)


def reweighted(vectors: Floats, axes: Floats, weight: float) -> Floats:
    """[n, dim] unit vectors whose dot products count the home part ``weight`` times; the vectors themselves at 1.

    ``axes`` [rank, dim] are orthonormal, ``weight`` at least 0: more than 1 draws people of one area together, 0 leaves
    taste alone.
    """
    if weight == 1 or not len(axes):
        return vectors
    stretch = np.float32(np.sqrt(weight) - 1)
    whole = vectors.copy()
    for along, axis in zip((stretch * projected(vectors, axes)).T, axes, strict=True):
        whole += along[:, None] * axis
    return unit(whole)


def projected(vectors: Floats, axes: Floats) -> Floats:
    """[n, rank] the lengths of [n, dim] vectors along [rank, dim] axes; no row depends on which others there are.

    A matrix product sums in an order that depends on its shape, and a shard's rows must be those of the whole.
    """
    along = np.empty((len(vectors), len(axes)), np.float32)
    for start in range(0, len(vectors), _ROWS_AT_A_TIME):
        rows = np.ascontiguousarray(vectors[start : start + _ROWS_AT_A_TIME])
        every = np.tile(np.arange(len(axes)), (len(rows), 1))
        along[start : start + _ROWS_AT_A_TIME] = pair_dots(rows, axes, every)
    return along


def unit(rows: npt.NDArray[np.floating]) -> Floats:
    """Rows at unit length; rows of zeros stay."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.ascontiguousarray(rows / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)


@dataclass(frozen=True)
class Split:
    """Taste vectors and where they lie along the home axes."""

    vectors: Floats
    """[n, dim] C order."""
    along: Floats
    """[n, rank] C order."""

    @classmethod
    def of(cls, vectors: Floats, axes: Floats) -> Split:
        """[n, dim] vectors by [rank, dim] axes."""
        return cls(vectors, projected(vectors, axes))

    def parts(self, users: Ints, others: Ints) -> tuple[Floats, Floats]:
        """The taste and the home part, [m, c] each, of the dot products of ``users`` [m] with ``others`` [m, c].

        They sum to the dot products, up to the rounding of that one float32 sum.
        """
        whole = pair_dots(np.ascontiguousarray(self.vectors[users]), self.vectors, others)
        if not self.along.shape[1]:
            return whole, np.zeros_like(whole)
        home = pair_dots(np.ascontiguousarray(self.along[users]), self.along, others)
        return whole - home, home


def write_axes(store: Store, folder: str, axes: Floats) -> dict[str, list[FileEntry]]:
    """The table of the axes, one row each, the strongest first; returns it for the manifest."""
    return {_TABLE: [put_table(store, f"{folder}/{_TABLE}.parquet", pa.table([axes.tolist()], schema=_AXES))]}


def read_axes(store: Store, analysis: Manifest, dim: int) -> Floats:
    """[rank, dim] what ``write_axes`` wrote; rank 0 for runs made before there were parts."""
    rows = read_files(store, analysis.paths(_TABLE), _AXES).column("axis").to_pylist()
    return np.array(rows, np.float32).reshape(len(rows), dim)
