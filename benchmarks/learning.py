"""What more data is worth: the encoder beside implicit ALS of equal CPU time, on synthetic towns of growing size.

    OMP_NUM_THREADS=1 python benchmarks/learning.py [--towns 1000 10000 100000] [--seed 1]

Both learn from the same users and find the halves of the same others (at most 3,000 of them; disjoint and matched twin
test, CSLS). The encoder trains by its defaults, and its CPU seconds are what iALS gets: settings are drawn at random
(size 16 to 256, alpha 3 to 300, regularisation .1 to 2, 4 to 16 iterations) and fitted without a fifth of the users
until half of the time is gone, then the one by which those find their halves best is fitted on everybody. Full linear,
the strongest simple baseline, is beside them. Each way has one thread. The matched test has 100 candidates whatever the
size of the town; the disjoint one has as many as there are pairs, so compare its ratios.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from tastetwin.config import Config, EvaluateConfig, TrainConfig
from tastetwin.engine import connect
from tastetwin.evaluation.baselines import Material, Pair, home_candidates
from tastetwin.evaluation.benchmark import HOLDOUT
from tastetwin.evaluation.dataset import load_dataset
from tastetwin.evaluation.metrics import (
    CSLS_NEIGHBOURS,
    bootstrap_ratio,
    reciprocal,
    true_twin_ranks,
    true_twin_ranks_among,
)
from tastetwin.evaluation.tasks import PseudoUsers, disjoint_pairs
from tastetwin.features.histories import Histories, Vocabulary
from tastetwin.features.holdout import choose_holdout
from tastetwin.model.linear import Ials, fit_full, fit_ials, histories_matrix
from tastetwin.model.train import train
from tastetwin.sources.synthetic import TownConfig, write_town

MAX_PAIRS: Final = 3_000
TUNING_SHARE: Final = 0.5
VALIDATION: Final = EvaluateConfig(holdout_share=0.2, max_holdout=1_000)
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """Users to learn from, and the halves of others."""

    learners: Histories
    vocabulary: Vocabulary
    pairs: PseudoUsers
    candidates: npt.NDArray[np.int64]
    seed: int

    def ranks(self, pair: Pair) -> tuple[Values, Values]:
        """Reciprocal ranks of the disjoint and of the matched test."""
        disjoint = true_twin_ranks(*pair, CSLS_NEIGHBOURS)
        return reciprocal(disjoint), reciprocal(true_twin_ranks_among(*pair, self.candidates, CSLS_NEIGHBOURS))


@dataclass(frozen=True)
class Setting:
    """Of one iALS fit."""

    size: int
    alpha: float
    regularisation: float
    iterations: int

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Setting:
        """Anywhere in the ranges that the literature tunes over."""
        alpha, regularisation = (float(np.exp(rng.uniform(*np.log(ends)))) for ends in ((3, 300), (0.1, 2)))
        return cls(int(rng.choice([16, 32, 64, 128, 256])), alpha, regularisation, int(rng.choice([4, 8, 16])))

    def fit(self, users: Histories, n_rows: int, seed: int) -> Ials:
        """Fitted on these users."""
        matrix = histories_matrix(users, n_rows)
        return fit_ials(matrix, self.size, self.alpha, self.regularisation, self.iterations, seed)


def problem(users: int, seed: int, scratch: Path) -> Problem:
    """A town of this size, 30 % of its users kept out."""
    town = TownConfig(users=users, seed=seed)
    config = Config()
    folder = write_town(town, scratch / f"town-{users}").folder
    dataset = load_dataset(connect(None, config.engine.partitions), str(folder), town.until, config)
    rules = config.evaluate.model_copy(update={"holdout_share": HOLDOUT, "max_holdout": MAX_PAIRS, "seed": seed})
    histories = dataset.histories()
    held_out = choose_holdout(histories, rules, seed)
    pairs = disjoint_pairs(histories, held_out, dataset.vocabulary, rules, seed)
    learners = histories.select(np.flatnonzero(~held_out))
    return Problem(learners, dataset.vocabulary, pairs, home_candidates(pairs, dataset.vocabulary, seed), seed)


def encoder(given: Problem, config: TrainConfig) -> Pair:
    """By its defaults."""
    trained = train(given.learners, given.vocabulary, config)
    a, b = (trained.encode(half, config.max_length) for half in (given.pairs.a, given.pairs.b))
    return a, b


def ials_within(given: Problem, seconds: float) -> tuple[Pair, int]:
    """The best of as many settings as can be tried in the first half of the time."""
    began, rng, n_rows = time.process_time(), np.random.default_rng(given.seed), given.vocabulary.n_rows
    held_out = choose_holdout(given.learners, VALIDATION, given.seed + 1)
    rest = given.learners.select(np.flatnonzero(~held_out))
    cut = disjoint_pairs(given.learners, held_out, given.vocabulary, VALIDATION, given.seed + 1)
    tried: list[tuple[float, Setting]] = []
    while not tried or time.process_time() - began < TUNING_SHARE * seconds:
        setting = Setting.draw(rng)
        model = setting.fit(rest, n_rows, given.seed)
        a, b = (model.fold_in(histories_matrix(half, n_rows)) for half in (cut.a, cut.b))
        tried.append((float(reciprocal(true_twin_ranks(a, b, CSLS_NEIGHBOURS)).mean()), setting))
    best = max(tried, key=lambda each: each[0])[1].fit(given.learners, n_rows, given.seed)
    a, b = (best.fold_in(histories_matrix(half, n_rows)) for half in (given.pairs.a, given.pairs.b))
    return (a, b), len(tried)


def full_linear(given: Problem, config: EvaluateConfig) -> Pair:
    """Fused linear with the histograms of categories and regions."""
    material = Material(given.learners, given.vocabulary, given.pairs.a, given.pairs.b, config, given.seed)
    return material.fold_in(fit_full(material.matrix, given.vocabulary, material.fused(), given.seed))


def timed(work: Callable[[], Pair]) -> tuple[Pair, float]:
    """And its CPU seconds."""
    began = time.process_time()
    return work(), time.process_time() - began


def row(name: str, found: tuple[Values, Values], ials: tuple[Values, Values], seconds: float) -> str:
    """MRR of both tests, each over that of iALS."""
    cells = []
    for ours, theirs in zip(found, ials, strict=True):
        ratio = bootstrap_ratio(ours, theirs, 1_000, 1)
        cells.append(f"{ours.mean():.3f} | {ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]")
    return f"| {name} | {' | '.join(cells)} | {seconds:,.0f} |"


def main() -> None:
    """Parse arguments; three rows for every town."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--towns", nargs="*", type=int, default=[1_000, 10_000, 100_000])
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    config = Config(train=TrainConfig(threads=1, seed=options.seed))
    print("| users, method | disjoint | x iALS | matched | x iALS | CPU s |\n|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for users in options.towns:
            given = problem(users, options.seed, Path(scratch))
            pair, seconds = timed(lambda given=given: encoder(given, config.train))  # type: ignore[misc]
            ours = given.ranks(pair)
            began = time.process_time()
            pair, tried = ials_within(given, seconds)
            ials_seconds, ials = time.process_time() - began, given.ranks(pair)
            pair, linear_seconds = timed(lambda given=given: full_linear(given, config.evaluate))  # type: ignore[misc]
            print(row(f"{users:,}, iALS (best of {tried})", ials, ials, ials_seconds), flush=True)
            print(row(f"{users:,}, full linear", given.ranks(pair), ials, linear_seconds), flush=True)
            print(row(f"{users:,}, encoder", ours, ials, seconds), flush=True)


if __name__ == "__main__":
    main()
