"""How the favors of a batch lie in memory; the encoder is written once and works on either.

*Padded*: [n, length, ...], every user as long as the longest. Simple, and what the exported graph reads.
*Packed*: [total, ...], users end to end. What is done per favor (embedding, norms, linear layers: nearly all of the
work) is never done on padding; only attention pads, on a CPU within groups of users of similar length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from tastetwin.features.histories import PAD_ROW
from tastetwin.model.batches import PackedBatch, length_buckets

RECENCY_BUCKETS: Final = 8
_GROUP_CELLS: Final = {"cpu": 1_024, "cuda": 65_536}
"""Padded favors that attention handles at a time. Small groups hold users of nearly one length; on a GPU starting one
more kernel costs more than computing padding."""


class Layout(Protocol):
    """What the encoder does across the favors of one user; ``*favors`` is [n, length] or [total]."""

    def sums(self, weights: Tensor, rows: Tensor) -> Tensor:
        """[*favors], [*favors, k] -> [n, k] each user's weighted sum of rows; a user without favors gets zero."""

    def dots(self, rows: Tensor, users: Tensor) -> Tensor:
        """[*favors, k], [n, k] -> [*favors] each row's dot product with its user's vector."""

    def attend(self, mixed: Tensor, heads: int) -> Tensor:
        """[*favors, 3 * width] queries, keys and values -> [*favors, width], each favor over those of its user."""

    def recency(self, ages: Tensor) -> Tensor:
        """[*favors] days -> 0 for the user's latest favors .. ``RECENCY_BUCKETS`` - 1 for the oldest."""


class Padded:
    """Users of [n, length] favors, those past a user's end marked as outside."""

    def __init__(self, inside: Tensor) -> None:
        """``inside`` [n, length] bool."""
        self.inside = inside
        # Attention over nothing is 0 / 0: a history without places may look at its padding, which weighs 0 afterwards.
        self.mask = (inside | ~inside.any(dim=1, keepdim=True))[:, None, None, :]

    def sums(self, weights: Tensor, rows: Tensor) -> Tensor:
        """See ``Layout``."""
        return (weights[:, None] @ rows)[:, 0]

    def dots(self, rows: Tensor, users: Tensor) -> Tensor:
        """See ``Layout``."""
        return (rows @ users[..., None])[..., 0]

    def attend(self, mixed: Tensor, heads: int) -> Tensor:
        """See ``Layout``."""
        n, length, width = mixed.shape[0], mixed.shape[1], mixed.shape[2] // 3
        query, key, value = (
            part.reshape(n, length, heads, width // heads).transpose(1, 2) for part in mixed.chunk(3, dim=-1)
        )
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask)
        return out.transpose(1, 2).reshape(n, length, width)

    def recency(self, ages: Tensor) -> Tensor:
        """See ``Layout``."""
        count = self.inside.sum(dim=1, keepdim=True)
        order = (count - self.inside.long().cumsum(dim=1)) / (count - 1).clamp_min(1)
        return _bucket(order, ages, ages.amax(dim=1, keepdim=True))


class Packed:
    """Users of ``lengths`` favors, end to end."""

    def __init__(self, lengths: npt.NDArray[np.int64], device: torch.device) -> None:
        starts = np.cumsum(lengths) - lengths
        owners = np.repeat(np.arange(len(lengths)), lengths)
        slots = np.arange(len(owners)) - starts[owners]
        order = (lengths[owners] - 1 - slots) / np.maximum(lengths[owners] - 1, 1)
        self.device, self.n_users = device, len(lengths)
        self.starts, self.owners = self._moved(starts), self._moved(owners)
        self.every = self._moved(np.arange(len(owners)))
        self.order = self._moved(order.astype(np.float32))
        self._group(lengths, starts, slots)

    def _group(
        self, lengths: npt.NDArray[np.int64], starts: npt.NDArray[np.int64], slots: npt.NDArray[np.int64]
    ) -> None:
        """Groups of users; the favor in each of their padded cells (any, past the end), the cell of each favor."""
        self.groups: list[Padded] = []
        cell_of_user = np.zeros(len(lengths), np.int64)
        favor_of_cell: list[npt.NDArray[np.int64]] = []
        cells = 0
        for users in length_buckets(lengths, _GROUP_CELLS[self.device.type], int(lengths.max(initial=0))):
            length = int(lengths[users].max())
            inside = np.arange(length) < lengths[users][:, None]
            favors = np.where(inside, starts[users][:, None] + np.arange(length), 0)
            cell_of_user[users] = cells + length * np.arange(len(users))
            cells += inside.size
            favor_of_cell.append(favors.ravel())
            if length:
                self.groups.append(Padded(self._moved(inside)))
        self.favor_of_cell = self._moved(np.concatenate([np.empty(0, np.int64), *favor_of_cell]))
        self.cell = self._moved(np.repeat(cell_of_user, lengths) + slots)

    def _moved(self, array: npt.NDArray[np.generic]) -> Tensor:
        return moved(array, self.device)

    def sums(self, weights: Tensor, rows: Tensor) -> Tensor:
        """See ``Layout``."""
        if not len(rows):
            return rows.new_zeros(self.n_users, rows.shape[1])
        return F.embedding_bag(self.every, rows, self.starts, mode="sum", per_sample_weights=weights)

    def dots(self, rows: Tensor, users: Tensor) -> Tensor:
        """See ``Layout``."""
        return (rows * users[self.owners]).sum(-1)

    def attend(self, mixed: Tensor, heads: int) -> Tensor:
        """See ``Layout``."""
        if not self.groups:
            return mixed[:, : mixed.shape[1] // 3]
        cells = F.embedding(self.favor_of_cell, mixed).split_with_sizes([group.inside.numel() for group in self.groups])
        found = [
            group.attend(part.reshape(*group.inside.shape, -1), heads).flatten(0, 1)
            for part, group in zip(cells, self.groups, strict=True)
        ]
        return F.embedding(self.cell, torch.cat(found))

    def recency(self, ages: Tensor) -> Tensor:
        """See ``Layout``."""
        oldest = ages.new_full((self.n_users,), -1).scatter_reduce(0, self.owners, ages, "amax")
        return _bucket(self.order, ages, oldest[self.owners])


def _bucket(order: Tensor, ages: Tensor, oldest: Tensor) -> Tensor:
    """Recency by the share of the user's own oldest age; by ``order`` (0 latest .. 1 oldest) where ages are unknown.

    Relative to the user's own history: ages in days tell when somebody joined, by which their two halves find each
    other without any taste (that raised the twin test by a sixth, on the wrong grounds).
    """
    share = torch.where((ages >= 0) & (oldest > 0), ages / oldest.clamp_min(1), order)
    return (share.clamp(0, 1) * (RECENCY_BUCKETS - 1)).round().long()


@dataclass(frozen=True)
class Favors:
    """A batch as the encoder reads it; each tensor [n, length] or [total], as ``layout`` has it."""

    places: Tensor
    visits: Tensor
    ratings: Tensor
    ages: Tensor
    layout: Layout


def padded(places: Tensor, visits: Tensor, ratings: Tensor, ages: Tensor) -> Favors:
    """The tensors of a ``batches.Batch``, each [n, length]."""
    return Favors(places, visits, ratings, ages, Padded(places != PAD_ROW))


def packed(batch: PackedBatch, device: torch.device) -> Favors:
    """A packed batch on ``device``."""
    places, visits, ratings, ages = (
        moved(array, device) for array in (batch.places, batch.visits, batch.ratings, batch.ages)
    )
    return Favors(places, visits, ratings, ages, Packed(batch.lengths, device))


def moved(array: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """A tensor on ``device``; the host does not wait for the copy."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
