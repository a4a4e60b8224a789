"""From how many users on attention pays: the encoder beside the same without it, learning from more and more users.

    OMP_NUM_THREADS=1 python benchmarks/attention.py FOLDER... [--learners 500 1000 2000 4000] [--seeds 2]

Of each folder 30 % of the users with 10 places are kept out and cut in two, as in tasks 1 and 3 of the
benchmark. The encoder learns from so many of the others, drawn at random, and then from all of them: as it is, with
blocks in which every place keeps its own values, and without any block. The three start from the same linear views, and
their seeds, batches and test pairs are the same; only the number of learners changes down a table. Steps are computed
where ``train.device`` finds best, so a GPU is used where there is one.
"""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import numpy as np

from ablations import AS_IS, CHANGES, Split, Values, measure, splits
from tastetwin.config import Config, TrainConfig
from tastetwin.engine import connect
from tastetwin.evaluation.dataset import Dataset, load_dataset
from tastetwin.evaluation.metrics import bootstrap_ratio_by_user
from tastetwin.features.histories import Histories
from tastetwin.model import prepare

WITHOUT: Final = ("no attention", "no blocks")


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


def found_by(dataset: Dataset, split: Split, config: TrainConfig) -> list[tuple[Values, Values]]:
    """Reciprocal ranks of the disjoint and of the matched test, as it is, then without each of ``WITHOUT``."""
    with fitted_once():
        return [measure(dataset, split, config, CHANGES[name])[:2] for name in (AS_IS, *WITHOUT)]


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
        parts = list(splits(dataset, config, options.seeds))
        owners = np.concatenate([split.pairs.a.user_ids for split in parts])
        everybody = min(split.learners.n_users for split in parts)
        for users in [*(size for size in options.learners if size < everybody), everybody]:
            some = [replace(split, learners=fewer(split.learners, users, split.seed)) for split in parts]
            by_split = [found_by(dataset, split, config.train) for split in some]
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
