"""After the last step: how much of what was learnt is served, and the projection to the served length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from tastetwin.features.histories import Histories
from tastetwin.model.batches import length_buckets, pack
from tastetwin.model.encoder import Encoder, Parts, unit
from tastetwin.model.layout import Favors, packed
from tastetwin.model.prepare import FOLDS, Plan, halves, twin_mrr

VALIDATION_CUTS: Final = 6
GATES: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
PROJECTION_SAMPLE: Final = 50_000
_TOKENS: Final = 8_192


def batches(
    histories: Histories, max_length: int, device: torch.device
) -> Iterator[tuple[npt.NDArray[np.int64], Favors]]:
    """All users in packed batches of bounded size: (positions, favors)."""
    for users in length_buckets(histories.lengths(), _TOKENS, max_length):
        yield users, packed(pack(histories, users, max_length), device)


@torch.no_grad()
def encode(encoder: Encoder, histories: Histories, max_length: int) -> npt.NDArray[np.float32]:
    """[n_users, dim] unit vectors by torch; the daily job's analysis encodes with the exported model."""
    vectors = np.zeros((histories.n_users, encoder.projection.shape[1]), np.float32)
    for users, favors in batches(histories, max_length, encoder.prior.device):
        vectors[users] = encoder.encode(favors).cpu().numpy()
    return vectors


@torch.no_grad()
def choose_gates(plan: Plan, encoder: Encoder) -> dict[str, float]:
    """Set the gates of residual and sequence view by the twin test on users the weights have not seen.

    Returns the mean reciprocal rank of each choice, under "residual/sequence".
    """
    trials = [_trial(plan, encoder, cut) for cut in range(VALIDATION_CUTS)]
    found: dict[str, float] = {}
    for residual in GATES:
        for sequence in GATES:
            encoder.gates.copy_(torch.tensor([residual, sequence]))
            mrr = [twin_mrr(*(encoder.fuse(*side).cpu().numpy() for side in sides)) for sides in trials]
            found[f"{residual}/{sequence}"] = float(np.mean(mrr))
    best = max(found, key=lambda key: found[key])
    encoder.gates.copy_(torch.tensor([float(gate) for gate in best.split("/")]))
    return found


def _trial(plan: Plan, encoder: Encoder, cut: int) -> tuple[Parts, Parts]:
    """Both halves of the validating users under one partition, each by the views fitted without their fold."""
    rng = np.random.default_rng([plan.config.seed, 4, cut])
    a, b = halves(plan.histories, plan.validators, rng)
    fold = plan.fold[plan.validators[np.isin(plan.histories.user_ids[plan.validators], a.user_ids)]]
    first, second = (_parts(plan, encoder, half, fold) for half in (a, b))
    return first, second


def _parts(plan: Plan, encoder: Encoder, half: Histories, fold: npt.NDArray[np.int64]) -> Parts:
    device = encoder.prior.device
    linear, residual, sequence = (torch.zeros(half.n_users, size, device=device) for size in encoder.part_sizes)
    for number in range(FOLDS):
        mine = np.flatnonzero(fold == number)
        for users, favors in batches(half.select(mine), plan.config.max_length, device):
            parts = encoder.parts(plan.views[number], favors)
            for whole, part in zip((linear, residual, sequence), parts, strict=True):
                whole[torch.from_numpy(mine[users])] = part
    return linear, residual, sequence


@torch.no_grad()
def project(plan: Plan, encoder: Encoder) -> None:
    """Set the projection to the strongest directions of the training users' wide vectors (uncentred PCA), and the
    prior to their mean direction."""
    rng = np.random.default_rng([plan.config.seed, 5])
    users = np.sort(rng.permutation(plan.histories.n_users)[:PROJECTION_SAMPLE])
    device, size = encoder.prior.device, len(encoder.prior)
    scatter, total = torch.zeros(size, size, device=device, dtype=torch.float64), torch.zeros(size, device=device)
    for _, favors in batches(plan.histories.select(users), plan.config.max_length, device):
        wide = encoder.wide(encoder.parts(encoder.views, favors))
        scatter += (wide.T @ wide).double()
        total += wide.sum(dim=0)
    encoder.prior.copy_(unit(total))
    _, vectors = torch.linalg.eigh(scatter)
    encoder.projection.copy_(vectors.flip(1)[:, : encoder.projection.shape[1]])
