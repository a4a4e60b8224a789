"""Training steps on a GPU beside one process on all cores of the same machine, and where a step's time goes.

    python benchmarks/gpu.py [--users 20000] [--places 20000] [--seconds 3]

At the default shape and at larger ones, with larger batches. A history is one half of a user (see ``train.py``). *draw*
is what the CPU does before a step (cut, shorten, mask, pack, copy), *update* the step itself, *step* what a training
takes from one to the next, drawing beside the update; the other figures are of that. Useful work counts matrix products
at the histories' own lengths; the limit is a product of two squares in the same type on the same device. Wall time, so
on a busy machine it means little.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import torch

from attention import fitted_once
from tastetwin.config import TrainConfig
from tastetwin.features.histories import Histories, Vocabulary
from tastetwin.model import prepare, step
from tastetwin.model.hardware import Hardware, choose
from tastetwin.model.train import train
from tastetwin.model.workers import Workers
from train import town, useful_flops

ALONE: Final = Workers(0, 1)
SHAPES: Final = ((1, 128, 256), (1, 128, 1024), (2, 256, 1024), (4, 512, 4096), (12, 768, 4096))
"""Layers, width, users a batch; the first is the default, the last the size of BERT (base)."""
Shapes = tuple[tuple[int, int, int], ...]
SMALL: Final = 3
"""Of the shapes, as many are tried in float32."""
SIDE: Final = 8192
STEPS: Final = 60


def wall(device: torch.device, seconds: float, work: Callable[[int], object]) -> float:
    """Seconds of one call, three left out."""

    def done() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    for number in range(3):
        work(number)
    began, calls = done(), 0
    while time.perf_counter() - began < seconds:
        work(calls)
        calls += 1
    return (done() - began) / calls


def limit(hardware: Hardware, seconds: float) -> float:
    """FLOP per second of a product of two squares."""
    side = SIDE if hardware.device.type == "cuda" else SIDE // 8
    left, right = (torch.randn(side, side, device=hardware.device, dtype=hardware.products) for _ in range(2))
    return 2 * side**3 / wall(hardware.device, seconds, lambda _: left @ right)


def hardwares() -> Iterator[tuple[str, TrainConfig, Shapes]]:
    """What there is to compute with, and the shapes tried on it."""
    if torch.cuda.is_available():
        yield torch.cuda.get_device_name(), TrainConfig(device="cuda", precision="bf16"), SHAPES
        yield torch.cuda.get_device_name(), TrainConfig(device="cuda", precision="float32"), SHAPES[:SMALL]
    yield f"{torch.get_num_threads()} cores", TrainConfig(device="cpu", precision="float32"), SHAPES[:SMALL]


def row(problem: tuple[Histories, Vocabulary], config: TrainConfig, name: str, limits: float, seconds: float) -> str:
    """One shape on one device."""
    hardware = choose(config)
    taken, memory = spent_by_training(problem, config)
    plan, encoder = prepare.prepare(*problem, config, ALONE, lambda phase: None)
    batches = sorted(plan.schedule(0), key=len)
    users = batches[len(batches) // 2]
    batch = step.draw(plan, users, 0, ALONE, hardware.device)
    assert batch is not None
    lengths = np.bincount(batch.favors.layout.owners.cpu().numpy(), minlength=2 * batch.n_users)  # type: ignore[attr-defined]
    drawn = wall(hardware.device, seconds, lambda at: step.draw(plan, users, at, ALONE, hardware.device))
    model = step.Objective(encoder.to(hardware.device).train(), hardware)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    views = plan.views[plan.fold[users[0]]].to(hardware.device)
    updated = wall(hardware.device, seconds, lambda _: step.update(model, optimizer, views, batch, ALONE))
    rate = useful_flops(batch, lengths, encoder) / taken
    cells = [
        f"{config.layers} x {config.width}, {len(users):,} users",
        f"{name}, {hardware.precision}",
        f"{1e3 * drawn:.1f}",
        f"{1e3 * updated:.1f}",
        f"{1e3 * taken:.1f}",
        f"{len(lengths) / taken:,.0f}",
        f"{rate / 1e12:.2f} ({rate / limits:.1%})",
        f"{memory / 2**20:,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def spent_by_training(problem: tuple[Histories, Vocabulary], config: TrainConfig) -> tuple[float, int]:
    """Median seconds between steps of a real training, the first ten left out, and the most bytes of a GPU it held."""
    times: list[float] = []
    settings = {"max_steps": STEPS, "epochs": 1_000, "checkpoint_steps": 10**9}
    if config.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    train(*problem, config.model_copy(update=settings), on_step=lambda *_: times.append(time.perf_counter()))
    memory = torch.cuda.max_memory_allocated() if config.device == "cuda" else 0
    return float(np.median(np.diff(times)[10:])), memory


def main() -> None:
    """Parse arguments; a row for every shape and device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--places", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=3)
    options = parser.parse_args()
    problem = town(options.users, options.places, seed=1)
    print("| shape, batch | device | draw, ms | update, ms | step, ms | histories/s | useful TFLOP/s | MiB |")
    print("|" + "---|" * 8, flush=True)
    with fitted_once():
        for name, base, shapes in hardwares():
            most = limit(choose(base), options.seconds)
            for layers, width, users in shapes:
                shape = {"layers": layers, "width": width, "batch_users": users}
                print(row(problem, base.model_copy(update=shape), name, most, options.seconds), flush=True)


if __name__ == "__main__":
    main()
