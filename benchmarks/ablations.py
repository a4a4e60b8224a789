"""What each part of the encoder earns: one thing changed at a time, the same splits, paired ratios.

    OMP_NUM_THREADS=1 python benchmarks/ablations.py FOLDER [--seeds 2] [--only NAME...]

Prints a Markdown table as it goes: disjoint and matched twin MRR with CSLS, each over that of the encoder as it is
(with its 95 % bootstrap interval over users), and the CPU seconds of training.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch.nn import functional

from tastetwin.config import Config, TrainConfig
from tastetwin.engine import connect
from tastetwin.evaluation.baselines import home_candidates
from tastetwin.evaluation.benchmark import HOLDOUT
from tastetwin.evaluation.dataset import Dataset, load_dataset
from tastetwin.evaluation.metrics import (
    CSLS_NEIGHBOURS,
    Interval,
    bootstrap_ratio_by_user,
    reciprocal,
    true_twin_ranks,
    true_twin_ranks_among,
)
from tastetwin.evaluation.tasks import PseudoUsers, disjoint_pairs
from tastetwin.features.histories import UNKNOWN_DAY, Histories, Vocabulary
from tastetwin.features.holdout import choose_holdout
from tastetwin.features.home import home_regions
from tastetwin.model import prepare, step, views
from tastetwin.model.batches import cut_catalogue
from tastetwin.model.encoder import Block, SequenceView, unit
from tastetwin.model.layout import Layout, Packed
from tastetwin.model.step import sample as sample_places
from tastetwin.model.train import Trained, train

Values = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Halves = tuple[Histories, Histories]
AS_IS: Final = "as it is"
WHOLE_BLOCK: Final = Block.forward


@dataclass(frozen=True)
class Split:
    """Users to learn from, and others cut in two."""

    seed: int
    learners: Histories
    pairs: PseudoUsers
    candidates: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Change:
    """One thing that is different."""

    settings: dict[str, Any] = field(default_factory=dict)
    """Of section ``train``."""
    code: Callable[[], AbstractContextManager[Any]] = nullcontext
    """What is replaced in the code while training."""
    told: Callable[[Histories], Histories] = lambda histories: histories
    """What is told of histories, in training and in the test."""
    served: Callable[[Trained], None] = lambda trained: None
    """What is done to the trained encoder."""
    vectors: Callable[[Floats, npt.NDArray[np.int32]], Floats] = lambda vectors, homes: vectors
    """What is done to the vectors of people with these home regions."""
    csls: int = CSLS_NEIGHBOURS


def nothing_known(vocabulary: Vocabulary, seed: int = 0) -> sp.csr_matrix:
    """In place of a kind of place: the source does not tell."""
    return sp.csr_matrix((vocabulary.n_rows, 1), dtype=np.float32)


def split_per_user(histories: Histories, users: npt.NDArray[np.int64], rng: np.random.Generator) -> Halves:
    """Each user's places are dealt out anew, so that one's half shares places with another's other half."""
    chosen = histories.select(users)
    side = rng.random(len(chosen.places)) < 0.5
    return chosen.filter(side), chosen.filter(~side)


def split_in_time(histories: Histories, users: npt.NDArray[np.int64], rng: np.random.Generator) -> Halves:
    """Older against newer places, in every other batch."""
    if rng.random() < 0.5:
        return cut_catalogue(histories, users, rng)
    chosen = histories.select(users)
    lengths = chosen.lengths()
    place = np.arange(len(chosen.places)) - np.repeat(chosen.offsets[:-1], lengths)
    newer = place >= np.repeat((lengths * rng.uniform(0.4, 0.8)).astype(np.int64), lengths)
    return chosen.filter(~newer), chosen.filter(newer)


def split_by_kind(histories: Histories, users: npt.NDArray[np.int64], rng: np.random.Generator) -> Halves:
    """Reviews (rated) against likes (not rated), in every other batch."""
    if rng.random() < 0.5:
        return cut_catalogue(histories, users, rng)
    chosen = histories.select(users)
    rated = ~np.isnan(chosen.ratings)
    return chosen.filter(rated), chosen.filter(~rated)


def neighbours_in_batches(plan: prepare.Plan, epoch: int) -> list[npt.NDArray[np.int64]]:
    """Hard negatives: every other pass has people of one home region and of like activity in a batch."""
    rng = np.random.default_rng([plan.config.seed, 1, epoch])
    homes = home_regions(plan.histories, plan.vocabulary)
    order = rng.permutation(plan.learners)
    if epoch % 2:
        order = order[np.lexsort((plan.histories.lengths()[order], homes[order]))]
    batches: list[npt.NDArray[np.int64]] = []
    for fold in range(prepare.FOLDS):
        mine = order[plan.fold[order] == fold]
        pieces = -(-len(mine) // plan.config.batch_users)
        batches.extend(np.array_split(mine, pieces) if pieces else [])
    return [batches[at] for at in rng.permutation(len(batches))]


def shortened(half: Histories, most: int, rng: np.random.Generator) -> Histories:
    """Augmentation: each view keeps four in five of its places."""
    return sample_places(half.filter(rng.random(len(half.places)) < 0.8), most, rng)


def plain_mean(view: SequenceView, states: torch.Tensor, strengths: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Pooling: every place counts the same, however often it was visited."""
    return unit(layout.sums((strengths > 0).to(states.dtype), states))


def strongest(view: SequenceView, states: torch.Tensor, strengths: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Pooling: the largest state in each dimension."""
    assert isinstance(layout, Packed)
    found = states.new_full((layout.n_users, states.shape[1]), -torch.inf)
    found = found.scatter_reduce(0, layout.owners[:, None].expand_as(states), states, "amax")
    return unit(found.nan_to_num(neginf=0.0))


def unmixed(block: Block, x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """No attention: each place keeps its own values, whatever the others are."""
    values = block.mix(block.norm_1(x)).chunk(3, dim=-1)[2]
    x = x + functional.dropout(block.out(values), block.dropout, block.training)
    inner = block.down(functional.gelu(block.up(block.norm_2(x))))
    return x + functional.dropout(inner, block.dropout, block.training)


def skipped(block: Block, x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """No blocks: the mean of the embedded places."""
    return x


def dropped(block: Block, x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Stochastic depth (Huang et al. 2016): in training a block is left out of every fifth step."""
    return x if block.training and torch.rand(()) < 0.2 else WHOLE_BLOCK(block, x, layout)


def without_home(vectors: Floats, homes: npt.NDArray[np.int32]) -> Floats:
    """Region residual: half of the mean vector of one's home region taken off."""
    left = vectors.copy()
    for home in np.unique(homes):
        left[homes == home] -= vectors[homes == home].mean(axis=0) / 2
    return np.asarray(left / np.maximum(np.linalg.norm(left, axis=1, keepdims=True), 1e-9), np.float32)


def without_ratings(histories: Histories) -> Histories:
    """How places were rated is not told."""
    return replace(histories, ratings=np.full_like(histories.ratings, np.nan))


def without_days(histories: Histories) -> Histories:
    """Only the order is told."""
    return replace(histories, days=np.full_like(histories.days, UNKNOWN_DAY))


def no_contrast(a: torch.Tensor, b: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """Nothing to learn from, but a gradient for every weight."""
    return 0 * (a.sum() + b.sum() + temperature)


def served_with(residual: bool, sequence: bool) -> Callable[[Trained], None]:
    """The best gates among those that leave out the residual, the sequence view, or both."""

    def choose(trained: Trained) -> None:
        fits = {
            key: mrr
            for key, mrr in trained.record.validation_mrr.items()
            if (residual or float(key.split("/")[0]) == 0) and (sequence or float(key.split("/")[1]) == 0)
        }
        best = max(fits, key=lambda key: fits[key])
        trained.encoder.gates.copy_(torch.tensor([float(gate) for gate in best.split("/")]))

    return choose


CHANGES: Final[dict[str, Change]] = {
    AS_IS: Change(),
    "linear views alone": Change(served=served_with(residual=False, sequence=False)),
    "no residual": Change(served=served_with(residual=False, sequence=True)),
    "no sequence view": Change(served=served_with(residual=True, sequence=False)),
    "no attention": Change(code=lambda: patch.object(Block, "forward", unmixed)),
    "no blocks": Change(code=lambda: patch.object(Block, "forward", skipped)),
    "no areas on the map": Change(code=lambda: patch.object(views, "area_matrix", nothing_known)),
    "no categories in regions": Change(code=lambda: patch.object(views, "category_region_cells", nothing_known)),
    "no masked places": Change(code=lambda: patch.object(step, "MASKED_WEIGHT", 0.0)),
    "masked places alone": Change(code=lambda: patch.object(step, "two_view_contrast", no_contrast)),
    "views split per user": Change(code=lambda: patch.object(prepare, "cut_catalogue", split_per_user)),
    "half the views cut in time": Change(code=lambda: patch.object(prepare, "cut_catalogue", split_in_time)),
    "6 passes": Change({"epochs": 6}),
    "60 passes": Change({"epochs": 60}),
    "2 layers": Change({"layers": 2}),
    "4 layers": Change({"layers": 4}),
    "8 layers": Change({"layers": 8}),
    "width 64": Change({"width": 64}),
    "width 256": Change({"width": 256}),
    "vectors of 64": Change({"dim": 64}),
    "vectors of 512": Change({"dim": 512}),
    "length 50": Change({"max_length": 50}),
    "length 200": Change({"max_length": 200}),
    "no dropout in the blocks": Change({"dropout": 0.0}),
    "bf16": Change({"precision": "bf16"}),
    "hard negatives by region and activity": Change(
        code=lambda: patch.object(prepare.Plan, "schedule", neighbours_in_batches)
    ),
    "pooling: plain mean": Change(code=lambda: patch.object(SequenceView, "forward", plain_mean)),
    "pooling: maximum": Change(code=lambda: patch.object(SequenceView, "forward", strongest)),
    "a fifth of each view dropped": Change(code=lambda: patch.object(step, "sample", shortened)),
    "stochastic depth, 4 layers": Change({"layers": 4}, code=lambda: patch.object(Block, "forward", dropped)),
    "no ratings": Change(told=without_ratings),
    "no days": Change(told=without_days),
    "neither ratings nor days": Change(told=lambda histories: without_ratings(without_days(histories))),
    "reviews against likes": Change(code=lambda: patch.object(prepare, "cut_catalogue", split_by_kind)),
    "cosine in place of CSLS": Change(csls=0),
    "region residual": Change(vectors=without_home),
}


def splits(dataset: Dataset, config: Config, seeds: int) -> Iterator[Split]:
    """As in tasks 1 and 3 of the benchmark."""
    histories = dataset.histories()
    for seed in range(1, seeds + 1):
        update = {"holdout_share": HOLDOUT, "max_holdout": 10**9, "seed": seed}
        rules = config.evaluate.model_copy(update=update)
        mask = choose_holdout(histories, rules, seed)
        pairs = disjoint_pairs(histories, mask, dataset.vocabulary, rules, seed)
        candidates = home_candidates(pairs, dataset.vocabulary, seed)
        yield Split(seed, histories.select(np.flatnonzero(~mask)), pairs, candidates)


def measure(dataset: Dataset, split: Split, config: TrainConfig, change: Change) -> tuple[Values, Values, float]:
    """Reciprocal ranks of the disjoint and of the matched test, and CPU seconds of training."""
    chosen = config.model_copy(update={**change.settings, "seed": split.seed})
    began = time.process_time()
    with change.code():
        trained = train(change.told(split.learners), dataset.vocabulary, chosen)
    seconds = time.process_time() - began
    change.served(trained)
    with change.code():
        a, b = (
            change.vectors(trained.encode(change.told(half), chosen.max_length), home_regions(half, dataset.vocabulary))
            for half in (split.pairs.a, split.pairs.b)
        )
    disjoint = true_twin_ranks(a, b, change.csls)
    matched = true_twin_ranks_among(a, b, split.candidates, change.csls)
    return reciprocal(disjoint), reciprocal(matched), seconds


def cell(ours: Values, as_is: Values, owners: npt.NDArray[np.object_]) -> str:
    """MRR, and its ratio with interval."""
    ratio: Interval = bootstrap_ratio_by_user(ours, as_is, owners, 1_000, 1)
    return f"{ours.mean():.3f} | {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def main() -> None:
    """Parse arguments, measure the encoder as it is, then each change."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="*", metavar="NAME", choices=CHANGES, default=list(CHANGES))
    options = parser.parse_args()
    config = Config()
    dataset = load_dataset(connect(None, config.engine.partitions), str(options.folder), date.today(), config)
    parts = list(splits(dataset, config, options.seeds))
    owners = np.concatenate([split.pairs.a.user_ids for split in parts])
    print("| changed | disjoint | x | matched | x | CPU s |\n|---|---|---|---|---|---|", flush=True)
    first: tuple[Values, Values] | None = None
    for name in [AS_IS, *(name for name in options.only if name != AS_IS)]:
        found = [measure(dataset, split, config.train, CHANGES[name]) for split in parts]
        disjoint, matched = (np.concatenate([each[at] for each in found]) for at in (0, 1))
        first = first or (disjoint, matched)
        seconds = sum(each[2] for each in found) / len(found)
        cells = [cell(*both, owners) for both in zip((disjoint, matched), first, strict=True)]
        print(f"| {name} | {' | '.join(cells)} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
