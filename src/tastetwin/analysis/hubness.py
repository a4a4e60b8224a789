"""Cross-domain similarity local scaling (CSLS): how crowded the neighbourhood of a vector is.

Some vectors are near to everybody (hubs) and would fill everybody's list. CSLS takes the mean similarity of both
sides to their nearest neighbours off their similarity (Conneau et al. 2018, arXiv:1710.04087).
"""

from __future__ import annotations

import numpy as np

from tastetwin.analysis.cells import Cells
from tastetwin.analysis.index import Floats, Ints, Shown
from tastetwin.analysis.search import search_all
from tastetwin.config import AnalyzeConfig


def draw_bank(shown: Ints, size: int, seed: int) -> Ints:
    """Positions of the reference bank, ascending: at most ``size`` of the users who may be shown."""
    if len(shown) <= size:
        return shown
    return np.sort(np.random.default_rng(seed).choice(shown, size, replace=False))


def density(vectors: Floats, labels: Ints, bank: Ints, cells: Cells | None, config: AnalyzeConfig) -> Floats:
    """Mean cosine of each user to its nearest ``config.csls_neighbours`` in the bank, users of its own label left out.

    Args:
        vectors: [n, dim] unit vectors, C order.
        labels: [n] at most one user of the bank has a given label.
        bank: positions of the bank's users.
        cells: to look for them in; None = exact.
        config: how many neighbours (fewer where the bank is smaller), and the recall in cells.

    Returns:
        [n] in [-1, 1]; 0 where there are no neighbours.
    """
    if not config.csls_neighbours or not len(bank):
        return np.zeros(len(vectors), np.float32)
    crowd = Shown(vectors[bank], np.zeros(len(bank), np.float32), labels[bank])
    cosines = search_all(vectors, labels, crowd, config.csls_neighbours, cells, config).scores
    found = np.isfinite(cosines)
    means: Floats = np.where(found, cosines, 0).sum(axis=1) / np.maximum(found.sum(axis=1), 1).astype(np.float32)
    return means
