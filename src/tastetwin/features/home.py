"""A user's home area: the region where most of the history lies."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tastetwin.features.histories import Histories, Vocabulary


def home_region(places: npt.NDArray[np.int32], vocabulary: Vocabulary) -> int:
    """``home_regions`` of one user with these [n] vocabulary rows."""
    regions = vocabulary.regions[places]
    counts = np.bincount(regions[regions >= 0])
    return int(counts.argmax()) if len(counts) else -1


def home_regions(histories: Histories, vocabulary: Vocabulary) -> npt.NDArray[np.int32]:
    """[n_users] the region index with the most places of the user, the smallest on ties; -1 where none is known."""
    users = np.repeat(np.arange(histories.n_users), histories.lengths())
    regions = vocabulary.regions[histories.places]
    known = regions >= 0
    home = np.full(histories.n_users, -1, np.int32)
    if not known.any():
        return home
    n_regions = len(vocabulary.region_codes)
    pairs, counts = np.unique(users[known] * n_regions + regions[known], return_counts=True)
    order = np.lexsort((-pairs, counts))  # per user the last one wins: most places, then the smallest region
    home[pairs[order] // n_regions] = pairs[order] % n_regions
    return home
