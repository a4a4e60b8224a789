"""Histories per second of a training step on one core, where its time goes, and what a matrix product could do.

Run: OMP_NUM_THREADS=1 python benchmarks/train.py [--users 2000] [--places 2000] [--steps 10]

A history is one half of a user. Lengths are lognormal (median 13, at most 100), places Zipf-popular. Useful work
counts the products of the embedding, the blocks, the residual, the masked places and the contrast, forward and
backward, at the histories' own lengths; what else a step does is not counted, so the figure is a floor. The limit is
torch's float32 matrix product on this machine. The peer is the padded layout, in the forward pass that both can do.
Times are CPU time: on a busy machine take the ratios.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from tastetwin.config import TrainConfig
from tastetwin.features.histories import FIRST_PLACE_ROW, Histories, Vocabulary
from tastetwin.model import finish, step
from tastetwin.model.batches import pack, pad
from tastetwin.model.encoder import Encoder
from tastetwin.model.hardware import choose
from tastetwin.model.layout import packed, padded
from tastetwin.model.prepare import Plan, prepare
from tastetwin.model.workers import Workers

ALONE = Workers(0, 1)
CPU = torch.device("cpu")


def town(users: int, places: int, seed: int) -> tuple[Histories, Vocabulary]:
    """Distinct places of each user drawn by popularity; 30 categories, 20 regions."""
    rng = np.random.default_rng(seed)
    popularity = 1 / np.arange(10, places + 10)
    lengths = np.clip(rng.lognormal(2.6, 0.8, users).round(), 3, min(100, places // 2)).astype(np.int64)
    drawn = [rng.choice(places, n, replace=False, p=popularity / popularity.sum()) for n in lengths]
    total, rows = int(lengths.sum()), places + FIRST_PLACE_ROW
    histories = Histories(
        np.char.mod("%08d", np.arange(users)).astype(object),
        np.concatenate([[0], np.cumsum(lengths)]),
        (np.concatenate(drawn) + FIRST_PLACE_ROW).astype(np.int32),
        np.ones(total, np.float32),
        rng.normal(size=total).astype(np.float32),
        rng.integers(0, 900, total).astype(np.int32),
    )
    known = np.arange(rows) >= FIRST_PLACE_ROW
    vocabulary = Vocabulary(
        place_ids=np.char.mod("p%d", np.arange(rows)).astype(object),
        is_group=np.zeros(rows, bool),
        category_offsets=np.concatenate([[0], np.cumsum(known)]),
        categories=rng.integers(0, 30, places).astype(np.int32),
        regions=np.where(known, rng.integers(0, 20, rows), -1).astype(np.int32),
        category_codes=np.arange(30),
        region_codes=np.char.mod("r%d", np.arange(20)).astype(object),
        coordinates=np.full((rows, 2), np.nan, np.float32),
    )
    return histories, vocabulary


def useful_flops(batch: step.Draw, lengths: np.ndarray[tuple[int], np.dtype[np.int64]], encoder: Encoder) -> float:
    """Of one step, padding left out; the embedding's input is frozen, so it has no gradient of its own."""
    linear, _, width = encoder.part_sizes
    layers, hidden = len(encoder.sequence.blocks), len(batch.hidden_at)
    embedding = 2 * 2 * len(batch.rows) * encoder.sequence.place.in_features * width
    blocks = 3 * layers * (24 * width**2 * lengths.sum() + 4 * width * (lengths.astype(np.float64) ** 2).sum())
    residual = 3 * 2 * len(lengths) * 2 * linear * encoder.up.out_features
    masked = 3 * 2 * hidden * (width * len(batch.candidates) + width**2)
    contrast = 3 * 2 * batch.n_users**2 * (linear + width)
    return float(embedding + blocks + residual + masked + contrast)


def seconds(work: Callable[[], object], times: int) -> float:
    """CPU seconds of one call, the first left out."""
    work()
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) / times


def gemm_rate(width: int) -> float:
    """FLOP per core-second of a float32 matrix product of this width."""
    left, right = torch.ones(4096, width), torch.ones(width, 4 * width)
    return 2 * 4096 * width * 4 * width / seconds(lambda: left @ right, 20)


def print_step(plan: Plan, encoder: Encoder, steps: int) -> None:
    """Parts of a step, the whole of it, and the limit."""
    model = step.Objective(encoder.train(), choose(plan.config))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    users = max(plan.schedule(0), key=len)
    views = plan.views[plan.fold[users[0]]]
    batch = step.draw(plan, users, 0, ALONE, CPU)
    assert batch is not None
    lengths = np.bincount(batch.favors.layout.owners.numpy(), minlength=2 * batch.n_users)  # type: ignore[attr-defined]
    strengths = torch.ones(len(batch.favors.places))
    parts = {
        "draw": lambda: step.draw(plan, users, 0, ALONE, CPU),
        "linear views": lambda: views(batch.favors.places, strengths, batch.favors.layout),
        "forward, views included": lambda: step.whole_loss(model, views, batch, ALONE),
        "whole update": lambda: step.update(model, optimizer, views, batch, ALONE),
    }
    spent = {name: seconds(work, steps) for name, work in parts.items()}
    print(f"a batch of {len(lengths)} histories, {lengths.sum()} favors, {len(batch.rows)} places to embed")
    for name, each in spent.items():
        print(f"  {name:24} {1e3 * each:8.1f} ms")
    whole = spent["draw"] + spent["whole update"]
    flops = useful_flops(batch, lengths, encoder)
    print(f"ours: {len(lengths) / whole:,.0f} histories/core-s, {flops / whole / 1e9:.1f} useful GFLOP/s")
    print(f"limit (sgemm, width {plan.config.width}): {gemm_rate(plan.config.width) / 1e9:.0f} GFLOP/s")


@torch.no_grad()
def print_layouts(plan: Plan, encoder: Encoder, steps: int) -> None:
    """The forward pass of one batch of whole histories, packed and padded."""
    encoder.eval()
    users = np.arange(min(256, plan.histories.n_users))
    wide = pad(plan.histories, users, plan.config.max_length)
    flat = pack(plan.histories, users, plan.config.max_length)
    slow = seconds(lambda: encoder.encode(padded(*map(torch.from_numpy, wide.inputs().values()))), steps)
    fast = seconds(lambda: encoder.encode(packed(flat, CPU)), steps)
    print(f"forward of {len(users)} histories: ours, packed {1e3 * fast:.0f} ms; padded {1e3 * slow:.0f} ms")


def main() -> None:
    """Print the phases around the steps, a step's parts, and the two layouts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--places", type=int, default=2_000)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    histories, vocabulary = town(arguments.users, arguments.places, seed=1)
    torch.set_num_threads(1)
    began, last = time.process_time(), "start"

    def tell(phase: str) -> None:
        nonlocal began, last
        print(f"{last:28} {time.process_time() - began:6.2f} s")
        began, last = time.process_time(), phase

    plan, encoder = prepare(histories, vocabulary, TrainConfig(threads=1), ALONE, tell)
    tell("choosing gates")
    finish.choose_gates(plan, encoder.eval())
    tell("projecting")
    finish.project(plan, encoder)
    tell("training")
    print_step(plan, encoder, arguments.steps)
    print_layouts(plan, encoder, arguments.steps)


if __name__ == "__main__":
    main()
