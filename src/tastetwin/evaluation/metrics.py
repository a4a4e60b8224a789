"""Ranks of true twins, the numbers made of them, and how sure we are of those numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

FloatMatrix = npt.NDArray[np.float32]
Ranks = npt.NDArray[np.int64]

BLOCK_SCORES: Final = 1 << 22
"""Scores held at once: 16 MB of float32."""
CSLS_NEIGHBOURS: Final = 10
TIE: Final = 1e-6
"""Scores nearer than this count as equal: matrix products of equal vectors differ by rounding alone."""
SMALLEST_REGION: Final = 5
ACTIVITY_BUCKETS: Final[tuple[tuple[str, int, int], ...]] = (
    ("1-2", 1, 2),
    ("3-5", 3, 5),
    ("6-10", 6, 10),
    ("11-30", 11, 30),
    ("30+", 31, 1 << 62),
)
"""Name, least and most distinct places."""


@dataclass(frozen=True)
class Interval:
    """A measured value and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def dense(block: Any) -> FloatMatrix:
    """A block of scores as a dense float32 array, whether it came from dense or from scipy sparse matrices."""
    rows = block.toarray() if hasattr(block, "toarray") else block
    return np.asarray(rows, np.float32)


def score_blocks(a: Any, b: Any) -> Iterator[tuple[int, FloatMatrix]]:
    """Yield ``(first row, a[first:...] @ b.T)`` in bounded memory; a, b: dense or scipy sparse [n_a, d], [n_b, d]."""
    rows = max(1, BLOCK_SCORES // max(1, b.shape[0]))
    for start in range(0, a.shape[0], rows):
        yield start, dense(a[start : start + rows] @ b.T)


def mean_nearest(a: Any, b: Any, neighbours: int) -> npt.NDArray[np.float32]:
    """[n_a] mean score of each row of ``a`` with its ``neighbours`` nearest rows of ``b``: CSLS's ``r``."""
    k = min(neighbours, b.shape[0])
    means = [np.partition(block, -k, axis=1)[:, -k:].mean(axis=1) for _, block in score_blocks(a, b)]
    return np.concatenate(means).astype(np.float32)


def true_twin_ranks(a: Any, b: Any, csls_neighbours: int = 0) -> Ranks:
    """[n] the rank (1 = first) of ``b[i]`` among all rows of ``b`` for query ``a[i]``.

    a, b: [n, d], rows of unit length, dense or scipy sparse. With ``csls_neighbours`` > 0 the score is CSLS,
    ``2 cos(x, y) - r(x) - r(y)`` with r the mean cosine to that many nearest rows of the other side (Conneau et al.
    2018, "Word Translation Without Parallel Data"). Ties count against the query: vectors that are all the same earn
    the last rank, not the first. A score that is not a number also earns the last rank.
    """
    r_a, r_b = _hubness(a, b, csls_neighbours)
    ranks = np.empty(a.shape[0], np.int64)
    for start, cosine in score_blocks(a, b):
        stop = start + len(cosine)
        ranks[start:stop] = _ranks_in_block(2 * cosine - r_a[start:stop, None] - r_b, np.arange(start, stop))
    return ranks


def true_twin_ranks_among(a: Any, b: Any, candidates: npt.NDArray[np.int64], csls_neighbours: int = 0) -> Ranks:
    """[n] the rank of ``b[i]`` for ``a[i]`` among ``b[candidates[i]]``, whose column 0 is i itself.

    candidates: [n, m] rows of b. Scores and ties as in `true_twin_ranks`; r is taken over all of the other side.
    """
    r_a, r_b = _hubness(a, b, csls_neighbours)
    ranks = np.empty(a.shape[0], np.int64)
    for start, cosine in score_blocks(a, b):
        stop = start + len(cosine)
        scores = 2 * cosine - r_a[start:stop, None] - r_b
        chosen = np.take_along_axis(scores, candidates[start:stop], axis=1)
        ranks[start:stop] = _ranks_in_block(chosen, np.zeros(stop - start, np.int64))
    return ranks


def reciprocal(ranks: Ranks) -> npt.NDArray[np.float64]:
    """[n] 1 / rank; its mean is the MRR."""
    return 1.0 / ranks.astype(np.float64)


def hits(ranks: Ranks, k: int) -> npt.NDArray[np.float64]:
    """[n] 1 where the true twin is among the first k, else 0; its mean is recall@k."""
    return (ranks <= k).astype(np.float64)


def bootstrap_mean(values: npt.NDArray[np.float64], samples: int, seed: int) -> Interval:
    """The mean of [n] values, one per user, with its 95 % percentile bootstrap interval over users (Efron 1979)."""
    means = _resampled_means(values[:, None], samples, seed)[:, 0]
    return Interval(float(values.mean()), *_percentiles(means))


def bootstrap_ratio(
    ours: npt.NDArray[np.float64], theirs: npt.NDArray[np.float64], samples: int, seed: int
) -> Interval:
    """mean(ours) / mean(theirs) for the same users in the same order, with its *paired* 95 % bootstrap interval."""
    means = _resampled_means(np.stack([ours, theirs], axis=1), samples, seed)
    floor = np.finfo(np.float64).tiny
    ratios = means[:, 0] / np.maximum(means[:, 1], floor)
    return Interval(float(ours.mean() / max(theirs.mean(), floor)), *_percentiles(ratios))


def bootstrap_mean_by_user(
    values: npt.NDArray[np.float64], owners: Sequence[object] | npt.NDArray[Any], samples: int, seed: int
) -> Interval:
    """As ``bootstrap_mean`` where a user may own several of the [n] values: users are drawn, with all of theirs."""
    totals = _per_owner(values, owners)
    means = _resampled_means(totals, samples, seed)
    return Interval(float(values.mean()), *_percentiles(means[:, 0] / means[:, 1]))


def bootstrap_ratio_by_user(
    ours: npt.NDArray[np.float64],
    theirs: npt.NDArray[np.float64],
    owners: Sequence[object] | npt.NDArray[Any],
    samples: int,
    seed: int,
) -> Interval:
    """As ``bootstrap_ratio`` where a user may own several of the values."""
    sums = np.stack([_per_owner(values, owners)[:, 0] for values in (ours, theirs)], axis=1)
    return bootstrap_ratio(sums[:, 0], sums[:, 1], samples, seed)


def _per_owner(values: npt.NDArray[np.float64], owners: Sequence[object] | npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """[n_owners, 2] each owner's sum and number of values."""
    _, at = np.unique(np.asarray(owners, str), return_inverse=True)
    return np.stack([np.bincount(at, values), np.bincount(at)], axis=1)


def activity_buckets(activity: npt.NDArray[np.int64]) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    """The name and [n] mask of every activity bucket that holds anyone, from least to most active."""
    masks = [(name, (activity >= least) & (activity <= most)) for name, least, most in ACTIVITY_BUCKETS]
    return [(name, mask) for name, mask in masks if mask.any()]


def region_buckets(
    regions: npt.NDArray[np.int32], region_codes: Sequence[object], largest: int = 8, fewest: int = SMALLEST_REGION
) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    """The name and [n] mask of the ``largest`` home regions, then of "other" ones and of users with "unknown".

    A region of fewer than ``fewest`` users says nothing on its own and counts as other.
    """
    counts = np.bincount(regions[regions >= 0], minlength=len(region_codes))
    top = [int(r) for r in np.argsort(-counts, kind="stable")[:largest] if counts[r] >= fewest]
    buckets = [(str(region_codes[r]), regions == r) for r in top]
    buckets.append(("other", (regions >= 0) & ~np.isin(regions, top)))
    buckets.append(("unknown", regions < 0))
    return [(name, mask) for name, mask in buckets if mask.any()]


def _hubness(a: Any, b: Any, neighbours: int) -> tuple[FloatMatrix, FloatMatrix]:
    """CSLS's r of both sides; zeros without CSLS, which leaves the order of plain cosines."""
    if neighbours == 0:
        return np.zeros(a.shape[0], np.float32), np.zeros(b.shape[0], np.float32)
    return mean_nearest(a, b, neighbours), mean_nearest(b, a, neighbours)


def _ranks_in_block(scores: FloatMatrix, own_columns: npt.NDArray[np.int64]) -> Ranks:
    """[rows] how many columns score at least as high as the own one; a NaN anywhere is never in our favor."""
    own = np.take_along_axis(scores, own_columns[:, None], axis=1)
    clearly_lower = scores < own - TIE
    return np.asarray(scores.shape[1] - clearly_lower.sum(axis=1), np.int64)


def _resampled_means(values: npt.NDArray[np.float64], samples: int, seed: int) -> npt.NDArray[np.float64]:
    """[samples, c] column means of [n, c] values over users drawn with replacement."""
    n = len(values)
    generator = np.random.default_rng(seed)
    chunk = max(1, BLOCK_SCORES // n)
    sizes = [min(chunk, samples - start) for start in range(0, samples, chunk)]
    return np.concatenate([values[generator.integers(0, n, (size, n))].mean(axis=1) for size in sizes])


def _percentiles(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
