"""What rules, cap and mutual order do to the lists, and what they cost beside the bare search for neighbours.

    OMP_NUM_THREADS=1 python benchmarks/lists.py [--users 200000] [--folder EVENTS]

The first table is of made-up vectors (those of neighbours.py) in core-seconds: the bare search, then with 20 people
whom everybody follows, with the cap, with mutual order. Target: all of it within 2x of the bare search. The second, for
a folder of events, trains on the first 80 % of them and says who is shown how often and what the lists are worth: the
mean cosine of twins, and NDCG@20 of the first visits afterwards by their votes.
"""

from __future__ import annotations

import argparse
import functools
import sys
from datetime import date
from pathlib import Path
from typing import Final

import numpy as np
import scipy.sparse as sp

from tastetwin.analysis.index import Floats
from tastetwin.analysis.pairs import PairRules
from tastetwin.analysis.twins import Twins, find_twins
from tastetwin.config import AnalyzeConfig, Config, ListsConfig
from tastetwin.engine import connect
from tastetwin.evaluation.baselines import Material
from tastetwin.evaluation.benchmark import encoder
from tastetwin.evaluation.dataset import load_dataset
from tastetwin.evaluation.health import gini, skewness
from tastetwin.evaluation.utility import Future, cut_in_time, ndcg_and_recall

sys.path.insert(0, str(Path(__file__).parent))
from neighbours import clustered, cpu

FOLLOWED: Final = 20
WAYS: Final = {
    "cosine alone": (0, ListsConfig(exposure_cap=None)),
    "CSLS": (10, ListsConfig(exposure_cap=None)),
    "CSLS, cap 3": (10, ListsConfig(exposure_cap=3)),
    "CSLS, cap 2": (10, ListsConfig(exposure_cap=2)),
    "CSLS, cap 1.5": (10, ListsConfig(exposure_cap=1.5)),
    "CSLS, cap 1.2": (10, ListsConfig(exposure_cap=1.2)),
    "CSLS, mutual": (10, ListsConfig(exposure_cap=None, mutual=True)),
    "CSLS, mutual, cap 2": (10, ListsConfig(exposure_cap=2, mutual=True)),
}


def followed(n: int) -> PairRules:
    """Everybody follows 20 others, drawn at random, half of them near in the order of ids."""
    rng = np.random.default_rng(3)
    user = np.repeat(np.arange(n), FOLLOWED)
    near = (user + rng.integers(1, 50, len(user))) % n
    others = np.where(rng.random(len(user)) < 0.5, near, rng.integers(0, n, len(user)))
    return PairRules(np.unique(user * n + others), "any", np.full(n, -1, np.int32))


def show_costs(vectors: Floats) -> None:
    """Core-seconds of each addition."""
    config, free = AnalyzeConfig(), ListsConfig(exposure_cap=None)
    rules = followed(len(vectors))
    bare, _ = cpu(lambda: find_twins(vectors, config))
    print(f"| {len(vectors):,} users, lists of {config.k} | core-s | x bare | searches | short lists |")
    print("|---|---|---|---|---|")
    print(f"| bare search | {bare:.1f} | 1 | 1 | |")
    for name, ruled, lists in (
        ("20 followed", rules, free),
        ("cap 2", None, ListsConfig(exposure_cap=2)),
        ("20 followed, cap 2", rules, ListsConfig(exposure_cap=2)),
        ("20 followed, cap 2, mutual", rules, ListsConfig(exposure_cap=2, mutual=True)),
    ):
        seconds, twins = cpu(functools.partial(find_twins, vectors, config, rules=ruled, lists=lists))
        facts = twins.facts
        print(f"| {name} | {seconds:.1f} | {seconds / bare:.2f} | {facts.searches} | {facts.short} |", flush=True)


def show_worth(folder: str) -> None:
    """Who is shown, and what the lists are worth."""
    config = Config()
    dataset = load_dataset(connect(None, config.engine.partitions), folder, date.today(), config)
    future = cut_in_time(dataset)
    material = Material(future.past, dataset.vocabulary, future.past, future.past, config.evaluate, 1)
    vectors = encoder(config.train)(material)[0]
    for k in (10, 100):
        print(f"\n| {dataset.name}, lists of {k} | never shown | Gini | skew | most | mean cosine | NDCG@20 |")
        print("|---|---|---|---|---|---|---|")
        for name, (csls, lists) in WAYS.items():
            twins = find_twins(vectors, AnalyzeConfig(k=k, csls_neighbours=csls), lists=lists)
            print(f"| {name} | {_worth(twins, vectors, future)} |", flush=True)


def _worth(twins: Twins, vectors: Floats, future: Future) -> str:
    there = twins.neighbours >= 0
    user, twin = np.nonzero(there)[0], twins.neighbours[there]
    cosine = (vectors[user] * vectors[twin]).sum(axis=1)
    shown = np.bincount(twin, minlength=len(vectors))
    votes = sp.csr_matrix((np.maximum(cosine, 0), (user, twin)), shape=(len(vectors),) * 2) @ future.matrix
    starts = range(0, len(vectors), 1000)
    ndcg, _ = ndcg_and_recall(
        future, lambda: ((at, votes[at : at + 1000].toarray().astype(np.float32)) for at in starts)
    )
    looks = f"{(shown == 0).mean():.4f} | {gini(shown):.3f} | {skewness(shown):.2f} | {shown.max()}"
    return f"{looks} | {cosine.mean():.4f} | {ndcg.mean():.4f}"


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--folder")
    options = parser.parse_args()
    if options.folder:
        show_worth(options.folder)
    else:
        show_costs(clustered(options.users, 192, seed=1))


if __name__ == "__main__":
    main()
