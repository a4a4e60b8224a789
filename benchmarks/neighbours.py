"""All-pairs top-100 lists: ours, the exact search, the peers (where installed), and the limit of the hardware.

    OMP_NUM_THREADS=1 python benchmarks/neighbours.py [--users 200000] [--dim 192] [--peers]

Costs are core-seconds (CPU time of this process) and hold index building, tuning, hubness correction and re-ranking.
The exact search and the peers are timed on a sample of queries and scaled; their lists are by plain cosine.
Target: recall@100 >= 0.99 within 60 core-seconds for 200,000 users.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from tastetwin.analysis.blas import load_faiss
from tastetwin.analysis.cells import Cells
from tastetwin.analysis.hubness import density, draw_bank
from tastetwin.analysis.index import ExactIndex, Floats, Ints, Shown
from tastetwin.analysis.search import Users
from tastetwin.analysis.twins import find_twins
from tastetwin.config import AnalyzeConfig

K = 100
REGIONS, TASTES = 60, 4000


def unit(vectors: Floats) -> Floats:
    """Rows at unit length."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / lengths, np.float32)


def clustered(users: int, dim: int, seed: int) -> Floats:
    """[users, dim] 60 regions x 4000 Zipf taste clusters, falling spectrum, 30 % mixtures, 5 % near duplicates."""
    rng = np.random.default_rng(seed)
    spectrum = (np.arange(1, dim + 1) ** -0.8).astype(np.float32)
    regions = rng.standard_normal((REGIONS, dim), dtype=np.float32) * spectrum
    tastes = rng.standard_normal((TASTES, dim), dtype=np.float32) * spectrum
    home = (np.arange(TASTES) % REGIONS)[:, None]
    centres = tastes + regions[home[:, 0]]
    weights = 1 / np.arange(1, TASTES + 1) ** 0.8
    taste = rng.choice(TASTES, (users, 2), p=weights / weights.sum())
    share = np.where(rng.random((users, 1)) < 0.3, rng.random((users, 1)), 1).astype(np.float32)
    vectors = share * centres[taste[:, 0]] + (1 - share) * centres[taste[:, 1]]
    vectors += 0.6 * rng.standard_normal((users, dim), dtype=np.float32) * spectrum
    copies = rng.random(users) < 0.05
    originals = vectors[rng.integers(0, users, int(copies.sum()))]
    vectors[copies] = originals + 0.05 * rng.standard_normal(originals.shape, dtype=np.float32) * spectrum
    return unit(vectors)


def cpu(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, all threads, and the result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def gemm_rate(dim: int) -> float:
    """FLOP per core-second of a large float32 matrix product with numpy's BLAS."""
    left, right = np.ones((2048, dim), np.float32), np.ones((dim, 2048), np.float32)
    out = left @ right
    seconds, _ = cpu(lambda: [np.matmul(left, right, out=out) for _ in range(50)])
    return float(50 * 2 * 2048 * dim * 2048 / seconds)


def ours(vectors: Floats, sample: Ints) -> None:
    """find_twins as the daily job calls it, checked against the exact search with the same correction."""
    config = AnalyzeConfig()
    seconds, twins = cpu(lambda: find_twins(vectors, config))
    labels = np.arange(len(vectors), dtype=np.int64)
    bank = draw_bank(labels, config.csls_bank, config.seed)
    cells_seconds, cells = cpu(lambda: Cells.fit(vectors, labels, config.seed))
    bank_seconds, densities = cpu(lambda: density(Users(vectors, labels, cells), bank, config))
    exact = ExactIndex(Shown(vectors, densities / np.float32(2), labels))
    truth, _ = exact.top_k(np.ascontiguousarray(vectors[sample]), labels[sample], K)
    scores = twins.scores[sample] + densities[sample, None] / 2 + np.float32(1e-6)
    recall = (scores >= truth[:, -1:]).mean()
    facts = twins.facts
    print(f"ours, {facts.cells} cells, {facts.probes} looked into: {seconds:.1f} core-s, recall@{K} {recall:.4f}")
    print(
        f"  of which k-means {cells_seconds:.1f}, hubness bank {bank_seconds:.1f}; recall in tuning {facts.recall:.4f}"
    )


def exact(vectors: Floats, sample: Ints) -> Ints:
    """faiss Flat on the sample; returns the true lists (self included)."""
    index = load_faiss().IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    seconds, (_, truth) = cpu(lambda: index.search(vectors[sample], K))
    print(f"exact flat: {seconds * len(vectors) / len(sample):.1f} core-s (scaled from {len(sample)} queries)")
    return np.asarray(truth)


def overlap(found: Ints, truth: Ints) -> float:
    """Mean share of the true list that was found."""
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, truth, strict=True)]))


def scann(vectors: Floats, sample: Ints, truth: Ints) -> None:
    """ScaNN with the settings that reach .99 in our notes."""
    library = importlib.import_module("scann")
    leaves = int(2 * np.sqrt(len(vectors)))
    builder = library.scann_ops_pybind.builder(vectors, K, "dot_product").tree(
        leaves, max(50, leaves // 18), training_sample_size=100_000
    )
    build, searcher = cpu(lambda: builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(400).build())
    seconds, (found, _) = cpu(lambda: searcher.search_batched(vectors[sample]))
    total = build + seconds * len(vectors) / len(sample)
    print(f"peer ScaNN: {total:.1f} core-s (build {build:.1f}), recall@{K} {overlap(np.asarray(found), truth):.4f}")


def hnswlib(vectors: Floats, sample: Ints, truth: Ints) -> None:
    """hnswlib, M 16, efConstruction 100, ef 200."""
    index = importlib.import_module("hnswlib").Index("ip", vectors.shape[1])
    index.init_index(len(vectors), M=16, ef_construction=100, random_seed=1)
    build, _ = cpu(lambda: index.add_items(vectors, num_threads=1))
    index.set_ef(200)
    seconds, (found, _) = cpu(lambda: index.knn_query(vectors[sample], K, num_threads=1))
    total = build + seconds * len(vectors) / len(sample)
    print(f"peer hnswlib: {total:.1f} core-s (build {build:.1f}), recall@{K} {overlap(found.astype(int), truth):.4f}")


def main() -> None:
    """Print ours, the exact search, the peers and the limit side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=192)
    parser.add_argument("--peers", action="store_true", help="also ScaNN and hnswlib, where installed")
    arguments = parser.parse_args()
    vectors = clustered(arguments.users, arguments.dim, seed=1)
    sample = np.sort(np.random.default_rng(2).choice(arguments.users, min(2000, arguments.users), replace=False))
    ours(vectors, sample)
    truth = exact(vectors, sample)
    for peer in (scann, hnswlib) if arguments.peers else ():
        try:
            peer(vectors, sample, truth)
        except ImportError:
            print(f"peer {peer.__name__}: absent (pip install {peer.__name__})")
    flops, rate = 2 * arguments.users**2 * arguments.dim, gemm_rate(arguments.dim)
    print(f"limit, exact: {flops / rate:.1f} core-s = {flops / 1e12:.1f} TFLOP at {rate / 1e9:.0f} GFLOP/s (sgemm)")
    for pool in threadpool_info():
        print(" ", pool["prefix"], pool["version"], pool.get("architecture", ""), pool["num_threads"], "threads")


if __name__ == "__main__":
    main()
