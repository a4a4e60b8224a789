"""From how many users on attention pays: the encoder beside the same without it, learning from more and more users.

    OMP_NUM_THREADS=1 python benchmarks/attention.py FOLDER... [--learners 500 1000 2000 4000] [--seeds 2]

Of each folder 30 % of the users with 10 places (at most 3,000) are kept out and cut in two, as in tasks 1 and 3 of the
benchmark. The encoder learns from so many of the others, drawn at random, and then from all of them: as it is, with
blocks in which every place keeps its own values, and without any block. The three start from the same linear views, and
their seeds, batches and test pairs are the same; only the number of learners changes down a table. Steps are computed
where ``train.device`` finds best, so a GPU is used where there is one.
"""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from ablations import CHANGES, Split
from tastetwin.config import Config, TrainConfig
from tastetwin.engine import connect
from tastetwin.evaluation.baselines import home_candidates
from tastetwin.evaluation.benchmark import HOLDOUT
from tastetwin.evaluation.dataset import Dataset, load_dataset
from tastetwin.evaluation.metrics import (
    CSLS_NEIGHBOURS,
    bootstrap_ratio_by_user,
    reciprocal,
    true_twin_ranks,
    true_twin_ranks_among,
)
from tastetwin.evaluation.tasks import disjoint_pairs
from tastetwin.features.histories import Histories, Vocabulary
from tastetwin.features.holdout import choose_holdout
from tastetwin.model import prepare
from tastetwin.model.train import train

MAX_PAIRS: Final = 3_000
WITHOUT: Final = ("no attention", "no blocks")
Values = npt.NDArray[np.float64]
Found = tuple[Values, Values]
"""Reciprocal ranks of the disjoint and of the matched test."""


def split_of(dataset: Dataset, config: Config, seed: int) -> Split:
    """Users to learn from, and at most ``MAX_PAIRS`` others cut in two."""
    rules = config.evaluate.model_copy(update={"holdout_share": HOLDOUT, "max_holdout": MAX_PAIRS, "seed": seed})
    histories = dataset.histories()
    held_out = choose_holdout(histories, rules, seed)
    pairs = disjoint_pairs(histories, held_out, dataset.vocabulary, rules, seed)
    learners = histories.select(np.flatnonzero(~held_out))
    return Split(seed, learners, pairs, home_candidates(pairs, dataset.vocabulary, seed))


def fewer(histories: Histories, users: int, seed: int) -> Histories:
    """So many of them, at random; whoever is among few is among more."""
    return histories.select(np.sort(np.random.default_rng(seed).permutation(histories.n_users)[:users]))


def fitted_once() -> AbstractContextManager[Any]:
    """A context in which every training starts from one fit of the linear views."""
    kept: list[Any] = []
    fit = prepare.fit_views

    def once(*given: Any) -> Any:
        kept[:] = kept or [fit(*given)]
        return kept[0]

    return patch.object(prepare, "fit_views", once)


def found_by(split: Split, vocabulary: Vocabulary, config: TrainConfig, change: AbstractContextManager[Any]) -> Found:
    """Of the encoder as it is under ``change``."""
    with change:
        trained = train(split.learners, vocabulary, config)
        a, b = (trained.encode(half, config.max_length) for half in (split.pairs.a, split.pairs.b))
    disjoint = true_twin_ranks(a, b, CSLS_NEIGHBOURS)
    return reciprocal(disjoint), reciprocal(true_twin_ranks_among(a, b, split.candidates, CSLS_NEIGHBOURS))


def measure(split: Split, vocabulary: Vocabulary, config: TrainConfig) -> list[Found]:
    """As it is, then without each of ``WITHOUT``."""
    seeded = config.model_copy(update={"seed": split.seed})
    with fitted_once():
        changes: list[AbstractContextManager[Any]] = [nullcontext(), *(CHANGES[name].code() for name in WITHOUT)]
        return [found_by(split, vocabulary, seeded, change) for change in changes]


def main() -> None:
    """Parse arguments; a row for every number of learners."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--learners", nargs="*", type=int, default=[500, 1_000, 2_000, 4_000])
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    config = Config()
    heads = [f"{test}, over {name}" for test in ("disjoint", "matched") for name in WITHOUT]
    print(f"| learners | disjoint | matched | {' | '.join(heads)} |\n|{'---|' * (3 + len(heads))}", flush=True)
    for folder in options.folders:
        dataset = load_dataset(connect(None, config.engine.partitions), str(folder), date.today(), config)
        splits = [split_of(dataset, config, seed) for seed in range(1, options.seeds + 1)]
        owners = np.concatenate([split.pairs.a.user_ids for split in splits])
        everybody = min(split.learners.n_users for split in splits)
        for users in [*(size for size in options.learners if size < everybody), everybody]:
            some = [replace(split, learners=fewer(split.learners, users, split.seed)) for split in splits]
            by_split = [measure(split, dataset.vocabulary, config.train) for split in some]
            by_test = [
                [np.concatenate([found[way][test] for found in by_split]) for way in range(1 + len(WITHOUT))]
                for test in (0, 1)
            ]
            ratios = [
                bootstrap_ratio_by_user(as_is, other, owners, 1_000, 1)
                for as_is, *others in by_test
                for other in others
            ]
            cells = [f"{ways[0].mean():.3f}" for ways in by_test]
            cells += [f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]" for ratio in ratios]
            print(f"| {folder.name}, {users:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
