"""Little towns with planted taste, for the model's tests."""

from __future__ import annotations

import numpy as np
import torch

from tastetwin.config import TrainConfig
from tastetwin.features.histories import FIRST_PLACE_ROW, UNKNOWN_DAY, Histories, Vocabulary
from tastetwin.model.batches import pad

CONFIG = TrainConfig(
    dim=32, layers=1, width=16, heads=2, epochs=2, batch_users=32, max_length=20, threads=1, device="cpu"
)
"""A training of moments; on the CPU, where the same training gives the same bits."""
MANY_STEPS = CONFIG.model_copy(
    update={"dim": 16, "epochs": 6, "batch_users": 16, "max_length": 16, "checkpoint_steps": 4}
)


def vocabulary(places: int, categories: int = 3, regions: int = 2) -> Vocabulary:
    """``places`` places; category and region go round; 0 categories or regions = none known."""
    rows = places + FIRST_PLACE_ROW
    counts = np.zeros(rows, np.int64)
    counts[FIRST_PLACE_ROW:] = 1 if categories else 0
    return Vocabulary(
        place_ids=np.array([""] * FIRST_PLACE_ROW + [f"p{i}" for i in range(places)], object),
        is_group=np.zeros(rows, bool),
        category_offsets=np.concatenate([[0], np.cumsum(counts)]),
        categories=(np.arange(places if categories else 0) % max(categories, 1)).astype(np.int32),
        regions=np.array([-1] * FIRST_PLACE_ROW + [i % regions if regions else -1 for i in range(places)], np.int32),
        category_codes=np.arange(categories, dtype=np.int64),
        region_codes=np.array([f"r{i}" for i in range(regions)], object),
        coordinates=np.full((rows, 2), np.nan, np.float32),
    )


def histories(users: int, places: int, groups: int, length: int, seed: int, known: bool = True) -> Histories:
    """User u of group u % groups favors ``length`` random places of its group's block; times and ratings if known."""
    rng = np.random.default_rng(seed)
    block = places // groups
    lengths = np.minimum(rng.integers(max(1, length // 2), length + 1, users), block)
    rows = [FIRST_PLACE_ROW + (u % groups) * block + rng.permutation(block)[:n] for u, n in enumerate(lengths)]
    total = int(lengths.sum())
    return Histories(
        user_ids=np.array([f"u{u:06d}" for u in range(users)], object),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        places=np.concatenate(rows).astype(np.int32),
        visits=rng.integers(1, 4, total).astype(np.float32),
        ratings=(rng.normal(size=total) if known else np.full(total, np.nan)).astype(np.float32),
        days=(rng.integers(15_000, 16_000, total) if known else np.full(total, UNKNOWN_DAY)).astype(np.int32),
    )


def tensors(town: Histories, max_length: int = 100) -> tuple[torch.Tensor, ...]:
    """All users padded: the encoder's arguments."""
    return tuple(map(torch.from_numpy, pad(town, np.arange(town.n_users), max_length).inputs().values()))
