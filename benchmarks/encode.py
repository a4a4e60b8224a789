"""Users per core-second and useful GFLOP/s of an encoder, on histories of the length mix we plan for.

    OMP_NUM_THREADS=1 python benchmarks/encode.py [BUNDLE/encoder.onnx --rows VOCABULARY_ROWS --layers 1 --width 128]

Without a model, two are made on an invented vocabulary: the default shape, and 2 layers x 128. Lengths are lognormal
(mean 19, 90th percentile 39, at most 100). Useful work counts the transformer blocks at the histories' own lengths:
24 width^2 FLOP per favor and layer, and 4 width length^2 per layer for attention; what else the graph holds (linear
views, places' projection) is not counted, so the figure is a floor. The limit is numpy's float32 matrix product, at
this width and of large squares. Both are measured in turn, several times, and medians printed: other work on the
machine slows both. Targets: >= 4,000 users per second and core for the default model, >= 50 % of the limit.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_info

from tastetwin.analysis.encode import Encoder
from tastetwin.config import TrainConfig
from tastetwin.features.histories import FIRST_PLACE_ROW, Histories, Vocabulary

ROUNDS = 5
TOKENS = (1024, 2048, 4096)
INVENTED_ROWS, CATEGORIES, REGIONS, LEARNERS = 5_000, 60, 40, 2_000


@dataclass(frozen=True)
class Model:
    """An exported encoder and its shape."""

    path: Path
    rows: int
    layers: int
    width: int


def histories(users: int, rows: int, max_length: int, seed: int) -> Histories:
    """Zipf-popular places in lognormal lengths."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(2.6, 0.8, users).round(), 3, min(max_length, (rows - FIRST_PLACE_ROW) // 2))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    n = int(offsets[-1])
    places = FIRST_PLACE_ROW + (rng.random(n) ** 3 * (rows - FIRST_PLACE_ROW)).astype(np.int32)
    ratings = rng.normal(0, 1, n).astype(np.float32)
    ids = np.char.mod("%08d", np.arange(users)).astype(object)
    return Histories(
        ids, offsets, places.astype(np.int32), np.ones(n, np.float32), ratings, rng.integers(0, 700, n, np.int32)
    )


def invented_vocabulary(rows: int, seed: int) -> Vocabulary:
    """Every place in one category and one region."""
    rng = np.random.default_rng(seed)
    places = rows - FIRST_PLACE_ROW
    reserved = np.zeros(FIRST_PLACE_ROW, np.int64)
    ids = np.array([""] * FIRST_PLACE_ROW + [f"p{number}" for number in range(places)], object)
    return Vocabulary(
        ids,
        np.zeros(rows, bool),
        np.concatenate([reserved, np.arange(places + 1)]),
        rng.integers(0, CATEGORIES, places).astype(np.int32),
        np.concatenate([reserved - 1, rng.integers(0, REGIONS, places)]).astype(np.int32),
        np.arange(CATEGORIES, dtype=np.int64),
        np.array([str(number) for number in range(REGIONS)], object),
        np.full((rows, 2), np.nan, np.float32),
    )


def make_model(folder: Path, config: TrainConfig) -> Model:
    """Export an untrained encoder: its vectors are worthless, its speed is that of a trained one."""
    from tastetwin.model.export import export_onnx
    from tastetwin.model.train import train

    path = folder / f"{config.layers}x{config.width}.onnx"
    known = histories(LEARNERS, INVENTED_ROWS, config.max_length, seed=2)
    trained = train(known, invented_vocabulary(INVENTED_ROWS, seed=3), config.model_copy(update={"epochs": 0}))
    export_onnx(trained.encoder, path)
    return Model(path, INVENTED_ROWS, config.layers, config.width)


def useful_flops(lengths: npt.NDArray[np.int64], layers: int, width: int) -> float:
    """Of the transformer blocks, without padding."""
    return float(layers * (24 * width**2 * lengths.sum() + 4 * width * (lengths.astype(np.float64) ** 2).sum()))


def gemm_rate(rows: int, inner: int, columns: int) -> float:
    """FLOP per core-second of a float32 matrix product of this shape."""
    left, right = np.ones((rows, inner), np.float32), np.ones((inner, columns), np.float32)
    out = left @ right
    times = int(1e10 / (2 * rows * inner * columns)) + 1
    start = time.process_time()
    for _ in range(times):
        np.matmul(left, right, out=out)
    return times * 2 * rows * inner * columns / (time.process_time() - start)


def measure(model: Model, users: int, max_length: int) -> None:
    """One line per token budget, with the share of both limits."""
    known = histories(users, model.rows, max_length, seed=1)
    flops = useful_flops(known.lengths(), model.layers, model.width)
    encoders = {tokens: Encoder(str(model.path), max_length, tokens) for tokens in TOKENS}
    seconds: dict[int, list[float]] = {tokens: [] for tokens in TOKENS}
    limits: dict[str, list[float]] = {"same width": [], "squares": []}
    for _ in range(ROUNDS):
        limits["same width"].append(gemm_rate(4096, model.width, 4 * model.width))
        limits["squares"].append(gemm_rate(1024, 1024, 1024))
        for tokens, encoder in encoders.items():
            start = time.process_time()
            encoder.encode(known)
            seconds[tokens].append(time.process_time() - start)
    print(f"{model.layers} layers x {model.width}, {model.rows} places")
    for tokens, spent in seconds.items():
        rate = flops / median(spent)
        shares = ", ".join(f"{rate / median(found):.0%} of sgemm ({name})" for name, found in limits.items())
        print(f"  tokens {tokens:5}: {users / median(spent):6.0f} users/core-s, {rate / 1e9:5.1f} GFLOP/s, {shares}")
    print("  limits: " + ", ".join(f"{median(found) / 1e9:.0f} GFLOP/s ({name})" for name, found in limits.items()))


def main() -> None:
    """The given model, or two of our own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--rows", type=int, default=INVENTED_ROWS, help="rows of the bundle's vocabulary")
    parser.add_argument("--users", type=int, default=5_000)
    parser.add_argument("--max-length", type=int, default=100)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--width", type=int, default=128)
    options = parser.parse_args()
    if options.model:
        measure(Model(options.model, options.rows, options.layers, options.width), options.users, options.max_length)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            for config in (TrainConfig(threads=1), TrainConfig(layers=2, width=128, threads=1)):
                measure(make_model(Path(scratch), config), options.users, options.max_length)
    for pool in threadpool_info():
        print(" ", pool["prefix"], pool["version"], pool.get("architecture", ""), pool["num_threads"], "threads")


if __name__ == "__main__":
    main()
