"""Carrying the encoder on from day to day beside a full training every day: quality, cost, and how steady lists are.

    OMP_NUM_THREADS=1 python benchmarks/days.py FOLDER [--days 10] [--first 0.9] [--refit 7] [--seeds 1]

The first day has the earlier 0.9 of the source's favors, and each day after it an equal part of the rest comes in, with
its new users and places: 1 % of everything a day, more than most services see. Held-out users (30 % by hash, the same
every day) are cut in two on each day and looked for (disjoint and matched twin test). Prints a line a day and way and,
at the end, both ways over all days but the first, which they share:

mrr      carried / in full, with the 95 % bootstrap interval over users, for each test
cost     CPU seconds of the carried way over those of full training
lists    Jaccard@10 of everybody's list with that of the day before
vectors  cosine of a user's vector with that of the day before, where the user's places are the same, in the same order
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tastetwin.config import Config
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
from tastetwin.evaluation.tasks import PseudoUsers, disjoint_pairs
from tastetwin.features.histories import FIRST_PLACE_ROW, Histories, Vocabulary
from tastetwin.features.holdout import aside_limit, choose_holdout, set_aside
from tastetwin.features.stage import unlisted_too
from tastetwin.features.taste import taste_histories
from tastetwin.features.user_favor import group_favors
from tastetwin.features.vocabulary import assign_rows, describe_rows, empty_vocabulary, grow
from tastetwin.model.carry import carry_on, turn_onto
from tastetwin.model.linear import csls
from tastetwin.model.train import Trained, train
from tastetwin.schema import PLACE, USER

LIST: Final = 10
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Day:
    """A day's data, and the tests on it."""

    histories: Histories
    learners: Histories
    vocabulary: Vocabulary
    pairs: PseudoUsers
    candidates: npt.NDArray[np.int64]


@dataclass
class Way:
    """One way to have a bundle every day, and what was found of it."""

    name: str
    trained: Trained | None = None
    vectors: npt.NDArray[np.float32] | None = None
    lists: list[frozenset[str]] | None = None

    def __post_init__(self) -> None:
        self.disjoint: list[Values] = []
        self.matched: list[Values] = []
        self.seconds: list[float] = []
        self.steady: list[float] = []
        self.still: list[float] = []


def days(dataset: Dataset, config: Config, count: int, first: float, seed: int) -> Iterator[Day]:
    """The source as it was known on the first day and on ``count`` more."""
    dated = dataset.favors.filter(pc.is_valid(dataset.favors.column("at")))
    moments = dated.column("at").cast(pa.int64()).to_numpy()
    known = describe_rows(dataset.vocabulary).slice(FIRST_PLACE_ROW)
    rules = config.evaluate.model_copy(update={"holdout_share": HOLDOUT, "max_holdout": 10**9, "seed": seed})
    vocabulary = empty_vocabulary()
    for share in np.linspace(first, 1, count + 1):
        favors = dated.filter(pa.array(moments <= np.quantile(moments, share)))
        visited = favors.group_by("place").aggregate([(USER, "count_distinct")]).sort_by("place")
        visitors = pa.table({PLACE: visited.column("place"), "visitors": visited.column(f"{USER}_count_distinct")})
        vocabulary = grow(vocabulary, known, visitors.combine_chunks(), config.features.min_visitors)
        rows = assign_rows(vocabulary, unlisted_too(known, visitors.column(PLACE)))
        everybody = taste_histories(group_favors(favors.combine_chunks()), rows)[0]
        histories = everybody.select(np.flatnonzero(everybody.lengths() >= config.features.min_favors))
        held_out = choose_holdout(histories, rules, seed)
        aside = set_aside(histories, aside_limit(histories, rules, seed), seed)
        pairs = disjoint_pairs(histories, held_out, vocabulary, rules, seed)
        candidates = home_candidates(pairs, vocabulary, seed)
        yield Day(histories, histories.select(np.flatnonzero(~aside)), vocabulary, pairs, candidates)


def learn(day: Day, past: Trained | None, in_full: bool, config: Config) -> Trained:
    """The day's encoder, in full or carried on; as the training stage does it."""
    if past is not None and not in_full:
        return carry_on(past.encoder, day.learners, day.vocabulary, config.train)
    trained = train(day.learners, day.vocabulary, config.train)
    if past is not None:
        turn_onto(trained, past.encoder, day.learners, config.train)
    return trained


def add(way: Way, day: Day, before: Day | None, config: Config, in_full: bool) -> None:
    """One more day of a way."""
    began = time.process_time()
    way.trained = learn(day, way.trained, in_full, config)
    way.seconds.append(time.process_time() - began)
    a, b = (way.trained.encode(half, config.train.max_length) for half in (day.pairs.a, day.pairs.b))
    way.disjoint.append(reciprocal(true_twin_ranks(a, b, CSLS_NEIGHBOURS)))
    way.matched.append(reciprocal(true_twin_ranks_among(a, b, day.candidates, CSLS_NEIGHBOURS)))
    vectors = way.trained.encode(day.histories, config.train.max_length)
    lists = nearest(vectors, day.histories)
    if before is not None and way.vectors is not None and way.lists is not None:
        old, new = both_days(before.histories, day.histories)
        alike = [len(way.lists[o] & lists[n]) / len(way.lists[o] | lists[n]) for o, n in zip(old, new, strict=True)]
        way.steady.append(float(np.mean(alike)))
        mine, theirs = (np.split(each.places, each.offsets[1:-1]) for each in (before.histories, day.histories))
        same = [np.array_equal(mine[o], theirs[n]) for o, n in zip(old, new, strict=True)]
        way.still.append(float((way.vectors[old[same]] * vectors[new[same]]).sum(axis=1).mean()))
    way.vectors, way.lists = vectors, lists


def nearest(vectors: npt.NDArray[np.float32], histories: Histories) -> list[frozenset[str]]:
    """Everybody's ``LIST`` nearest others by CSLS."""
    found: list[frozenset[str]] = []
    scores = csls(vectors, vectors)
    np.fill_diagonal(scores, -np.inf)
    for best in np.argpartition(-scores, LIST, axis=1)[:, :LIST]:
        found.append(frozenset(histories.user_ids[best]))
    return found


def both_days(before: Histories, today: Histories) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Positions, on either day, of the users of both."""
    _, old, new = np.intersect1d(before.user_ids.astype(str), today.user_ids.astype(str), return_indices=True)
    return old, new


def line(name: str, way: Way) -> str:
    """What was found of the last day."""
    since = f"lists {way.steady[-1]:.3f}, vectors {way.still[-1]:.3f}" if way.steady else ""
    return f"  {name}: {way.disjoint[-1].mean():.4f} {way.matched[-1].mean():.4f}, CPU {way.seconds[-1]:.1f} s {since}"


def main() -> None:
    """Parse arguments; both ways through the days of every seed; the sums."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, default in (("days", 10), ("refit", Config().train.refit_days), ("seeds", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--first", type=float, default=0.9)
    options = parser.parse_args()
    config = Config()
    dataset = load_dataset(connect(None, config.engine.partitions), str(options.folder), date.today(), config)
    ways: list[tuple[Way, Way]] = []
    owners: list[npt.NDArray[np.object_]] = []
    for seed in range(1, options.seeds + 1):
        full, carried = Way("in full"), Way("carried")
        ways.append((full, carried))
        before: Day | None = None
        for number, day in enumerate(days(dataset, config, options.days, options.first, seed)):
            print(
                f"seed {seed} day {number}: {day.histories.n_users:,} users, {day.vocabulary.n_rows:,} rows, "
                f"{len(day.histories.places):,} places favored",
                flush=True,
            )
            for way in (full, carried):
                add(way, day, before, config, in_full=way is full or number % options.refit == 0)
                print(line(way.name, way), flush=True)
            if number:
                owners.append(day.pairs.a.user_ids)
            before = day
    users = np.concatenate(owners)
    for test in ("disjoint", "matched"):
        full_mrr, carried_mrr = (
            np.concatenate([np.concatenate(getattr(pair[at], test)[1:]) for pair in ways]) for at in (0, 1)
        )
        ratio = bootstrap_ratio_by_user(carried_mrr, full_mrr, users, 1_000, 1)
        print(f"{test}: in full {full_mrr.mean():.4f}, carried x {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]")
    cost = sum(sum(c.seconds[1:]) for _, c in ways) / sum(sum(f.seconds[1:]) for f, _ in ways)
    print(f"cost: {cost:.3f}")
    for name in ("steady", "still"):
        of_full, of_carried = (np.mean([getattr(pair[at], name) for pair in ways]) for at in (0, 1))
        print(f"{'lists' if name == 'steady' else 'vectors'}: in full {of_full:.3f}, carried {of_carried:.3f}")


if __name__ == "__main__":
    main()
