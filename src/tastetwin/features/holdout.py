"""Who is kept out of training, so that there is somebody to evaluate on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from tastetwin.config import EvaluateConfig
from tastetwin.features.histories import Histories


def choose_holdout(histories: Histories, config: EvaluateConfig, seed: int) -> npt.NDArray[np.bool_]:
    """[n_users] true for the users that must be kept out of training.

    Eligible users (``min_places`` distinct places) whose hashed id falls below ``holdout_share``; of more than
    ``max_holdout`` the smallest hashes win. The hash depends on nothing but id and seed, so that the same user stays
    held out from day to day; at the cap, a newcomer with a smaller hash frees the user with the largest.
    """
    eligible = np.flatnonzero(histories.lengths() >= config.min_places)
    hashes = uniform_hashes(histories.user_ids[eligible], seed, b"user")
    below = np.flatnonzero(hashes < config.holdout_share)
    chosen = below[np.argsort(hashes[below], kind="stable")[: config.max_holdout]]
    mask = np.zeros(histories.n_users, bool)
    mask[eligible[chosen]] = True
    return mask


def aside_limit(histories: Histories, config: EvaluateConfig, seed: int) -> float:
    """The largest hash of a user that training must not see: of whoever is held out, or may be with more places.

    0 where nobody is held out: then there is nobody to be fair to, and everybody is learnt from.
    """
    held_out = choose_holdout(histories, config, seed)
    if not held_out.any():
        return 0.0
    if held_out.sum() < config.max_holdout:
        return float(np.nextafter(config.holdout_share, 0))
    return float(uniform_hashes(histories.user_ids[held_out], seed, b"user").max())


def set_aside(histories: Histories, limit: float, seed: int) -> npt.NDArray[np.bool_]:
    """[n_users] true for the users with a hash of at most ``limit`` (see ``aside_limit``).

    Learned weights serve for days (``train.refit_days``), and for as long as they do the limit is that of the day they
    were learnt on: nobody above it is held out, since those above were learnt from.
    """
    return np.asarray(uniform_hashes(histories.user_ids, seed, b"user") <= limit)


def uniform_hashes(ids: Iterable[object], seed: int, purpose: bytes) -> npt.NDArray[np.float64]:
    """[n] a number in [0, 1) for each id, the same on every machine (blake2b, keyed by purpose and seed)."""
    key = purpose + str(seed).encode()
    digests = b"".join(hashlib.blake2b(_to_bytes(i), digest_size=8, key=key).digest() for i in ids)
    return np.frombuffer(digests, "<u8").astype(np.float64) / 2.0**64


def _to_bytes(identifier: object) -> bytes:
    """Lone surrogates are legal in a Python string and must not stop an evaluation."""
    return str(identifier).encode("utf-8", "surrogatepass")
