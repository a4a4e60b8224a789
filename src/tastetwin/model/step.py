"""One training step: what chance decides in a batch, what is computed of it, and one update of the weights.

Nothing here is as large as the catalogue but the frozen tables and the embeddings of categories and regions: places
are drawn, embedded and told apart by the few thousand that a batch holds or samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tastetwin.features.histories import FIRST_PLACE_ROW, Histories, joined
from tastetwin.model.batches import pack
from tastetwin.model.encoder import Encoder, LinearViews, strength, unit
from tastetwin.model.hardware import Hardware
from tastetwin.model.layout import Favors, moved, packed
from tastetwin.model.objectives import masked_place, two_view_contrast
from tastetwin.model.prepare import Plan, halves
from tastetwin.model.workers import Workers

MASKED_WEIGHT: Final = 0.1
TRAIN_LENGTH: Final = 32
CANDIDATES: Final = 4_096


@dataclass(frozen=True)
class Draw:
    """A batch and all that chance decides in it; the tensors are of this process's share of the users."""

    favors: Favors
    """One half of each user, then the other half of each."""
    hidden: Tensor
    """[total] bool: favors whose place must be guessed."""
    hidden_at: Tensor
    """[m] where those are."""
    rows: Tensor
    """[u] distinct places to embed: those of the favors, and the candidates."""
    row_of: Tensor
    """[total] position of each favor's place in ``rows``."""
    candidates: Tensor
    """[c] positions in ``rows`` of the places to choose from."""
    targets: Tensor
    """[m] which candidate each hidden favor is."""
    n_users: int
    """Users of the whole batch."""
    n_hidden: int
    """Hidden favors of the whole batch."""


def draw(plan: Plan, users: npt.NDArray[np.int64], step: int, group: Workers, device: torch.device) -> Draw | None:
    """Cut, shorten and mask a batch of users; None where fewer than two are left to be told apart.

    All processes draw the whole batch from the same seed, then each keeps its users.
    """
    rng = np.random.default_rng([plan.config.seed, 2, step])
    length = min(TRAIN_LENGTH, plan.config.max_length)
    both = joined(*(sample(half, length, rng) for half in halves(plan.histories, users, rng)))
    n_users = both.n_users // 2
    if n_users < 2:
        return None
    hidden = rng.random(len(both.places)) < plan.config.mask_share
    n_rows = plan.vocabulary.n_rows
    sampled = rng.integers(FIRST_PLACE_ROW, n_rows, min(n_rows, CANDIDATES))
    candidates = np.unique(np.concatenate([both.places[hidden], sampled]))
    own = group.share_of(n_users)
    mine = np.concatenate([own, n_users + own])
    batch = pack(both, mine, length)
    hidden_here = np.flatnonzero(hidden[np.isin(np.repeat(np.arange(2 * n_users), both.lengths()), mine)])
    is_hidden = np.zeros(len(batch.places), bool)
    is_hidden[hidden_here] = True
    rows = np.unique(np.concatenate([batch.places, candidates]))

    def here(array: npt.NDArray[np.generic]) -> Tensor:
        return moved(array, device)

    return Draw(
        favors=packed(batch, device),
        hidden=here(is_hidden),
        hidden_at=here(hidden_here),
        rows=here(rows),
        row_of=here(np.searchsorted(rows, batch.places)),
        candidates=here(np.searchsorted(rows, candidates)),
        targets=here(np.searchsorted(candidates, batch.places[hidden_here])),
        n_users=n_users,
        n_hidden=int(hidden.sum()),
    )


def sample(half: Histories, most: int, rng: np.random.Generator) -> Histories:
    """At most ``most`` random places of each user, order kept: a few long histories would outweigh all others."""
    owners = np.repeat(np.arange(half.n_users), half.lengths())
    shuffled = np.lexsort((rng.random(len(owners)), owners))
    place_in_user = np.arange(len(owners)) - half.offsets[owners]
    kept = np.sort(shuffled[place_in_user < most])
    lengths = np.minimum(half.lengths(), most)
    return half.keep(kept, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), half.user_ids)


class Objective(nn.Module):
    """What a process computes of its users; in a module of its own, for ``Workers.together`` to wrap."""

    def __init__(self, encoder: Encoder, hardware: Hardware) -> None:
        super().__init__()
        self.encoder, self.hardware = encoder, hardware

    def forward(self, views: LinearViews, batch: Draw) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Linear vectors with their residual [2n, k], sequence vectors [2n, width], masked loss (a sum), temperature.

        Rows are one half of each user, then the other half of each; all float32.
        """
        favors, sequence = batch.favors, self.encoder.sequence
        strengths = strength(favors.visits, favors.places)
        with torch.no_grad():
            parts = views(favors.places, strengths, favors.layout)
        linear = self.encoder.linear(parts)
        with self.hardware.autocast():
            residual = self.encoder.residual(linear)
            embedded = sequence.embed_places(views.bags[batch.rows], batch.rows)
            known = nn.functional.embedding(batch.row_of, embedded)
            states = sequence.states(torch.where(batch.hidden[:, None], sequence.hidden_place, known), favors)
            guesses = sequence.guess(states[batch.hidden_at])
        vectors = sequence(states.float(), strengths, favors.layout)
        choices = nn.functional.embedding(batch.candidates, embedded)
        masked = masked_place(guesses.float(), choices.float(), batch.targets)
        return unit(linear + residual.float()), vectors, masked, self.encoder.log_temperature.exp().clamp(0.01, 1)


def whole_loss(model: nn.Module, views: LinearViews, batch: Draw, group: Workers) -> Tensor:
    """Two-view contrast of the linear part and of the sequence view over the whole batch, plus the masked places.

    The mean over all processes, of the value and of the gradient, is that of one process with all users.
    """
    linears, sequences, masked, temperature = model(views, batch)
    sides = [*linears.chunk(2), *sequences.chunk(2)]
    rows = group.gather(torch.cat(sides, dim=1), batch.n_users)
    linear_a, linear_b, sequence_a, sequence_b = rows.split_with_sizes([side.shape[1] for side in sides], dim=1)
    by_linear = two_view_contrast(linear_a, linear_b, temperature)
    by_sequence = two_view_contrast(sequence_a, sequence_b, temperature)
    loss: Tensor = by_linear + by_sequence + MASKED_WEIGHT * masked * group.world / max(1, batch.n_hidden)
    return loss


def update(
    model: nn.Module, optimizer: torch.optim.Optimizer, views: LinearViews, batch: Draw, group: Workers
) -> float:
    """One update from one batch; returns the loss, NaN where it or its gradient is not finite and nothing was done."""
    loss = whole_loss(model, views, batch, group)
    optimizer.zero_grad()
    value = group.mean(loss)
    if not math.isfinite(value):
        return math.nan
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    if not math.isfinite(float(norm)):
        return math.nan
    optimizer.step()
    return value
