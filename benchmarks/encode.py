"""Users per core-second and useful GFLOP/s of an encoder, on histories of the length mix we plan for.

    OMP_NUM_THREADS=1 python benchmarks/encode.py BUNDLE/encoder.onnx --rows VOCABULARY_ROWS [--layers 2 --width 128]

Lengths are lognormal (mean 19, 90th percentile 39, at most 100). Useful work counts the transformer blocks at the
histories' own lengths: 24 width^2 FLOP per favor and layer, and 4 width length^2 per layer for attention; what else
the graph holds is not counted, so the figure is a floor. The limit is numpy's float32 matrix product on this machine.
Target: >= 4,000 users per second and core for the default model.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from threadpoolctl import threadpool_info

from tastetwin.analysis.encode import Encoder
from tastetwin.features.histories import FIRST_PLACE_ROW, Histories


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


def useful_flops(lengths: np.ndarray[tuple[int], np.dtype[np.int64]], layers: int, width: int) -> float:
    """Of the transformer blocks, without padding."""
    return float(layers * (24 * width**2 * lengths.sum() + 4 * width * (lengths.astype(np.float64) ** 2).sum()))


def gemm_rate(width: int) -> float:
    """FLOP per core-second of a float32 matrix product of this width."""
    left, right = np.ones((4096, width), np.float32), np.ones((width, 4 * width), np.float32)
    start = time.process_time()
    for _ in range(20):
        left @ right
    return 20 * 2 * 4096 * width * 4 * width / (time.process_time() - start)


def main() -> None:
    """Print one line per token budget, then the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, required=True, help="rows of the bundle's vocabulary")
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--max-length", type=int, default=100)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=128)
    arguments = parser.parse_args()
    known = histories(arguments.users, arguments.rows, arguments.max_length, seed=1)
    flops = useful_flops(known.lengths(), arguments.layers, arguments.width)
    for tokens in (512, 1024, 2048, 4096, 16_384):
        encoder = Encoder(arguments.model, arguments.max_length, tokens)
        start = time.process_time()
        encoder.encode(known)
        seconds = time.process_time() - start
        rate = arguments.users / seconds
        print(f"tokens {tokens:6}: {rate:8.0f} users/core-s, {flops / seconds / 1e9:6.1f} useful GFLOP/s")
    print(f"limit (sgemm, width {arguments.width}): {gemm_rate(arguments.width) / 1e9:.0f} GFLOP/s")
    for pool in threadpool_info():
        print(" ", pool["prefix"], pool["version"], pool.get("architecture", ""), pool["num_threads"], "threads")


if __name__ == "__main__":
    main()
