"""Cross-domain similarity local scaling (CSLS): how crowded the neighbourhood of a vector is.

Some vectors are near to everybody (hubs) and would fill everybody's list. CSLS takes the mean similarity of both
sides to their nearest neighbours off their similarity (Conneau et al. 2018, arXiv:1710.04087).
"""

from __future__ import annotations

import numpy as np

from tastetwin.analysis.index import Floats, Ints
from tastetwin.analysis.search import Users, search_all
from tastetwin.config import AnalyzeConfig


def draw_bank(shown: Ints, size: int, seed: int) -> Ints:
    """Positions of the reference bank, ascending: at most ``size`` of the users who may be shown."""
    if len(shown) <= size:
        return shown
    return np.sort(np.random.default_rng(seed).choice(shown, size, replace=False))


def density(users: Users, bank: Ints, config: AnalyzeConfig) -> Floats:
    """Mean cosine of everybody to their nearest ``config.csls_neighbours`` in the bank, own label left out.

    ``bank``: positions, at most one of each label; fewer neighbours where it is smaller.

    Returns:
        [n] in [-1, 1]; 0 where there are no neighbours.
    """
    if not config.csls_neighbours or not len(bank):
        return np.zeros(len(users.labels), np.float32)
    return mean_found(search_all(users, bank, np.zeros(len(bank), np.float32), config.csls_neighbours, config).scores)


def mean_found(cosines: Floats) -> Floats:
    """[n] means of [n, k] cosines, -inf where nobody was left; 0 where there was nobody at all."""
    found = np.isfinite(cosines)
    means: Floats = np.where(found, cosines, 0).sum(axis=1) / np.maximum(found.sum(axis=1), 1).astype(np.float32)
    return means
