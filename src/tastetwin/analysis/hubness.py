"""Cross-domain similarity local scaling (CSLS): how crowded the neighbourhood of a vector is.

Some vectors are near to everybody (hubs) and would fill everybody's list. CSLS takes the mean similarity of both
sides to their nearest neighbours off their similarity (Conneau et al. 2018, arXiv:1710.04087).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from tastetwin.analysis.blas import load_faiss
from tastetwin.analysis.index import Floats, Ints, pair_dots

_BLOCK: Final = 8192  # fixed, so that a user's density is the same to the last bit however lists are cut later


def draw_bank(shown: Ints, size: int, seed: int) -> Ints:
    """Positions of the reference bank, ascending: at most ``size`` of the users who may be shown."""
    if len(shown) <= size:
        return shown
    return np.sort(np.random.default_rng(seed).choice(shown, size, replace=False))


def density(vectors: Floats, labels: Ints, bank: Ints, neighbours: int) -> Floats:
    """Mean cosine of each user to its nearest ``neighbours`` in the bank, users of its own label left out.

    Args:
        vectors: [n, dim] unit vectors, C order.
        labels: [n] at most one user of the bank has a given label.
        bank: positions of the bank's users.
        neighbours: how many; fewer where the bank is smaller, and 0 where it is empty or ``neighbours`` is.

    Returns:
        [n] in [-1, 1].
    """
    result = np.zeros(len(vectors), np.float32)
    depth = min(neighbours + 1, len(bank))
    if not neighbours or not depth:
        return result
    index = load_faiss().IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors[bank]))
    for start in range(0, len(vectors), _BLOCK):
        block = slice(start, start + _BLOCK)
        _, found = index.search(vectors[block], depth)
        result[block] = _mean_of_nearest(vectors, vectors[block], labels, labels[block], bank[found], neighbours)
    return result


def _mean_of_nearest(
    vectors: Floats, queries: Floats, labels: Ints, query_labels: Ints, found: Ints, neighbours: int
) -> Floats:
    cosines = pair_dots(queries, vectors, np.ascontiguousarray(found))
    own = labels[found] == query_labels[:, None]
    ordered = -np.sort(np.where(own, np.float32(np.inf), -cosines), axis=1)[:, :neighbours]
    usable: npt.NDArray[np.bool_] = np.isfinite(ordered)
    counts = usable.sum(axis=1)
    means: Floats = (np.where(usable, ordered, 0).sum(axis=1) / np.maximum(counts, 1)).astype(np.float32)
    return means
