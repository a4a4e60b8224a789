"""Taste histories as arrays for the encoder: numpy only, shared by training and by analysis.

Training reads them packed, end to end, with no padding at all. The exported model reads them padded: every batch is
trimmed to its own longest history, so batches of similar lengths waste little.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tastetwin.features.histories import PAD_ROW, UNKNOWN_DAY, Histories

UNKNOWN_AGE = np.float32(-1)
_HIGHEST = np.finfo(np.float32).max


@dataclass(frozen=True)
class Batch:
    """What the encoder reads; each [n_users, longest], favors oldest first, padded on the right."""

    places: npt.NDArray[np.int64]
    """Vocabulary rows; ``PAD_ROW`` after the end."""
    visits: npt.NDArray[np.float32]
    """Favors on the place, >= 1; 0 after the end."""
    ratings: npt.NDArray[np.float32]
    """Mean rating minus the user's own mean; 0 where unknown."""
    ages: npt.NDArray[np.float32]
    """Days before the user's latest favor; -1 where unknown."""

    def inputs(self) -> dict[str, npt.NDArray[np.generic]]:
        """By the names of the exported model's inputs."""
        return {"places": self.places, "visits": self.visits, "ratings": self.ratings, "ages": self.ages}


def pad(histories: Histories, users: npt.NDArray[np.int64], max_length: int) -> Batch:
    """The histories of ``users`` (positions), each cut to its ``max_length`` most recent places."""
    starts, ends = histories.offsets[users], histories.offsets[users + 1]
    lengths = np.minimum(ends - starts, max_length)
    slots = np.arange(max(1, int(lengths.max(initial=0))))
    inside = slots < lengths[:, None]
    favors = np.where(inside, (ends - lengths)[:, None] + slots, 0)
    if len(histories.places) == 0:
        return _empty_batch(inside.shape)
    return Batch(
        np.where(inside, histories.places[favors], PAD_ROW).astype(np.int64),
        np.where(inside, histories.visits[favors], 0).astype(np.float32),
        np.where(inside, _known(histories.ratings[favors]), 0).astype(np.float32),
        _ages(np.where(inside, histories.days[favors], UNKNOWN_DAY)),
    )


def _empty_batch(shape: tuple[int, ...]) -> Batch:
    zeros = np.zeros(shape, np.float32)
    return Batch(np.full(shape, PAD_ROW, np.int64), zeros, zeros, zeros + UNKNOWN_AGE)


def _known(ratings: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """0 where unknown, and nothing infinite; ``np.nan_to_num`` takes longer than all else that is done for one user."""
    return np.where(np.isnan(ratings), np.float32(0), np.minimum(np.maximum(ratings, -_HIGHEST), _HIGHEST))


def _ages(days: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """[n, length] days since 1970 -> days before the row's latest; unknown stays unknown."""
    known = days != UNKNOWN_DAY
    latest = days.max(axis=1, keepdims=True).astype(np.int64)  # what is unknown is the lowest of all
    return np.where(known, latest - days, UNKNOWN_AGE).astype(np.float32)


@dataclass(frozen=True)
class PackedBatch:
    """Histories end to end, users in order, favors oldest first: ``Batch`` without its padding."""

    places: npt.NDArray[np.int64]
    """[total] vocabulary rows."""
    visits: npt.NDArray[np.float32]
    """[total] favors on the place, >= 1."""
    ratings: npt.NDArray[np.float32]
    """[total] mean rating minus the user's own mean; 0 where unknown."""
    ages: npt.NDArray[np.float32]
    """[total] days before the user's latest favor; -1 where unknown."""
    lengths: npt.NDArray[np.int64]
    """[n_users] favors of each user; may be 0."""


def pack(histories: Histories, users: npt.NDArray[np.int64], max_length: int) -> PackedBatch:
    """The histories of ``users`` (positions), each cut to its ``max_length`` most recent places."""
    ends = histories.offsets[users + 1]
    lengths = np.minimum(ends - histories.offsets[users], max_length)
    before = np.cumsum(lengths) - lengths
    owners = np.repeat(np.arange(len(users)), lengths)
    favors = (ends - lengths - before)[owners] + np.arange(len(owners))
    days = histories.days[favors]
    latest = np.full(len(users), UNKNOWN_DAY, np.int64)
    np.maximum.at(latest, owners, days)
    return PackedBatch(
        histories.places[favors].astype(np.int64),
        histories.visits[favors],
        _known(histories.ratings[favors]),
        np.where(days != UNKNOWN_DAY, latest[owners] - days, UNKNOWN_AGE).astype(np.float32),
        lengths,
    )


def length_buckets(lengths: npt.NDArray[np.int64], tokens: int, max_length: int) -> Iterator[npt.NDArray[np.int64]]:
    """Positions of users in groups of similar length, each at most ``tokens`` cells when padded (or one user)."""
    cut = np.minimum(lengths, max_length)
    order = np.argsort(cut, kind="stable")
    while len(order):
        cells = np.maximum(cut[order], 1) * np.arange(1, len(order) + 1)
        size = max(1, int(np.searchsorted(cells, tokens, side="right")))
        yield order[:size]
        order = order[size:]


def cut_catalogue(
    histories: Histories, users: npt.NDArray[np.int64], rng: np.random.Generator
) -> tuple[Histories, Histories]:
    """Two views of each user under one random partition of the catalogue; ages and order kept.

    A side is drawn for the places these users know, not for every place there is.
    """
    chosen = histories.select(users)
    known, which = np.unique(chosen.places, return_inverse=True)
    side = (rng.random(len(known)) < 0.5)[which]
    return chosen.filter(side), chosen.filter(~side)
