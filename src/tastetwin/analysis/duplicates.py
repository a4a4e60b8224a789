"""Accounts that look like one person's: exactly the same set of places."""

from __future__ import annotations

from typing import Final

import numpy as np

from tastetwin.analysis.index import Ints
from tastetwin.features.histories import Histories, Vocabulary

MIN_PLACES: Final = 5
"""With fewer places, two people who share them all are no surprise."""


def duplicate_labels(histories: Histories, vocabulary: Vocabulary) -> Ints:
    """[n_users] the position of the first user (by id) with the same set of places; most users' own position.

    Fallback groups stand for many places, so only users with ``MIN_PLACES`` places of their own right are compared.
    """
    named = ~vocabulary.is_group[histories.places]
    user_of = np.repeat(np.arange(histories.n_users), histories.lengths())
    compared = np.flatnonzero(np.bincount(user_of[named], minlength=histories.n_users) >= MIN_PLACES)
    labels = np.arange(histories.n_users, dtype=np.int64)
    if not len(compared):
        return labels
    keys = _set_keys(histories)[compared]
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    labels[compared] = compared[first[group.ravel()]]
    return labels


def _set_keys(histories: Histories) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """[n_users] 24 bytes that are equal for equal sets of places: two 64-bit sums of hashes and the length.

    The sums ignore order; an accidental collision has odds of 2^-128 per pair.
    """
    parts = np.empty((histories.n_users, 3), np.uint64)
    for column, salt in enumerate((0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)):
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(_mixed(histories.places, salt), dtype=np.uint64)])
        parts[:, column] = np.diff(sums[histories.offsets])  # modulo 2^64, as are the sums
    parts[:, 2] = histories.lengths().astype(np.uint64)
    return parts.view([("key", "V24")])["key"].ravel()


def _mixed(
    places: np.ndarray[tuple[int], np.dtype[np.int32]], salt: int
) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """[n_favors] splitmix64 of each place (Steele, Lea & Flood 2014)."""
    x = (places.astype(np.uint64) + np.uint64(1)) * np.uint64(salt)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
