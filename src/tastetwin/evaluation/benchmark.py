"""The full benchmark for lists of people: seven tasks, every baseline, several seeds, on any source folder.

The daily gate measures one run against the published one; this measures *methods*. Docs: explanation/benchmark.md.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from tastetwin.config import Config, EvaluateConfig, TrainConfig
from tastetwin.errors import InputError
from tastetwin.evaluation.baselines import (
    BASELINES,
    MORE_BASELINES,
    TUNED,
    Baseline,
    Material,
    Pair,
    home_candidates,
)
from tastetwin.evaluation.dataset import Dataset
from tastetwin.evaluation.groups import GroupScore, Judged, end_to_end, pair_groups, utility_groups
from tastetwin.evaluation.halves import (
    PAIR_TASKS,
    PairScore,
    PairTask,
    TaskRanks,
    as_ranks,
    find_halves,
    summaries,
    together,
)
from tastetwin.evaluation.lists import (
    RECOMMENDERS,
    ListScore,
    UtilityScore,
    Votes,
    as_list_score,
    as_votes,
    judge_list,
    judge_recommender,
    utility_scores,
)
from tastetwin.evaluation.records import MODEL
from tastetwin.evaluation.steps import Steps, Tell
from tastetwin.evaluation.tasks import PseudoUsers, chronological_pairs, disjoint_pairs
from tastetwin.evaluation.utility import Future, a_day_later, cut_in_time
from tastetwin.features.histories import FIRST_PLACE_ROW, Histories
from tastetwin.features.holdout import choose_holdout
from tastetwin.generations import fingerprint
from tastetwin.provenance import source_digest

HOLDOUT: Final = 0.3
MIN_LONG: Final = 20
BERT_2021: Final = "BERT, masked (2021)"
SLOW: Final = frozenset({BERT_2021})
"""Takes longer than all others together, so it comes when the others have measured everything."""


@dataclass
class Benchmark:
    """Everything measured on one dataset."""

    dataset: str
    users: int
    places: int
    favors: int
    seeds: list[int]
    pairs: list[PairScore] = field(default_factory=list)
    utility: list[UtilityScore] = field(default_factory=list)
    lists: list[ListScore] = field(default_factory=list)
    groups: list[GroupScore] = field(default_factory=list)
    complete: bool = True
    """Whether this is all of it, or what there was when it was stopped."""


class Measurement:
    """The benchmark of one dataset, step by step; what is measured so far can be told at any time."""

    def __init__(
        self,
        dataset: Dataset,
        config: Config,
        seeds: int,
        methods: Mapping[str, Baseline] | None = None,
        *,
        tell: Tell = print,
        keep: Path | None = None,
        again: bool = False,
    ) -> None:
        """Plan it.

        Args:
            dataset: of any source.
            config: sections ``train`` (the encoder) and ``evaluate`` (halves, resamples) are used; 30 % are held out.
            seeds: how many splits, with the encoder trained anew on each: 1, 2, ...
            methods: in place of all.
            tell: hears what is being done.
            keep: a folder in which the steps of this dataset, configuration and code get a folder of their own.
            again: measure also what is kept.

        Raises:
            InputError: TOO-FEW-LONG when hardly anybody has places enough to be cut in two.
        """
        self._dataset, self._config = dataset, config
        self._methods = all_methods(config.train) if methods is None else methods
        self._seeds = list(range(1, seeds + 1))
        self._histories = dataset.histories()
        _check_length(dataset.name, self._histories, config.evaluate)
        slow = [name for name in self._methods if name in SLOW]
        quick = [name for name in self._methods if name not in SLOW]
        self._first, *self._later = [names for names in (quick, slow) if names]
        parts = (*map(_part, self._seeds), "lists")
        plan = [(part, name) for part in parts for name in self._first]
        plan += [("places", name) for name in RECOMMENDERS]
        plan += [(part, name) for names in self._later for part in parts for name in names]
        name = re.sub(r"[^\w.-]+", "-", dataset.name)
        folder = None if keep is None else keep / f"{name}-{_digest(dataset, config)[:12]}"
        self.steps = Steps(plan, tell, folder, again=again)
        self._tell = tell
        self._ranks: dict[int, dict[str, TaskRanks]] = {}
        self._judged: dict[int, dict[PairTask, Judged]] = {}
        self._future: Future | None = None
        self._of_lists: Material | None = None
        self._utility: dict[tuple[str, str], Votes] = {}
        self._lists: list[ListScore] = []

    def run(self) -> Benchmark:
        """All that is still to be done; returns what is ``found`` then."""
        kept, folder = self.steps.kept(), self.steps.folder
        where = "" if folder is None else f"; {kept} of them are kept in {folder}"
        self._tell(
            f"{self._dataset.name}: {self._histories.n_users:,} users, {len(self._dataset.favors):,} favors; "
            f"{len(self._methods)} methods on {len(self._seeds)} splits (seeds), then lists: "
            f"{len(self.steps.plan)} steps{where}. How long it takes shows after the first seed."
        )
        self._measure(self._first)
        self._judge_recommenders()
        for names in self._later:
            self._measure(names)
        return self.found()

    def found(self) -> Benchmark:
        """What is measured so far: of a seed that is not finished only where there is no other.

        A slow method is there once it has all seeds, since all are compared on the same splits.
        """
        finished = [seed for seed, found in self._ranks.items() if found.keys() >= {*self._first}]
        seeds = finished or list(self._ranks)[:1]
        names = [name for name in self._methods if seeds and all(name in self._ranks[seed] for seed in seeds)]
        places = int((~self._dataset.vocabulary.is_group).sum()) - FIRST_PLACE_ROW
        known = (self._dataset.name, self._histories.n_users, places, len(self._dataset.favors))
        ranks = {
            (task, name, csls > 0): np.concatenate([self._ranks[seed][name][task][csls] for seed in seeds])
            for name in names
            for task in PAIR_TASKS
            for csls in (0, 1)
        }
        rules, codes = self._config.evaluate, list(self._dataset.vocabulary.region_codes)
        judged = {task: end_to_end([self._judged[seed][task] for seed in seeds]) for task, _, _ in ranks}
        pairs = summaries(ranks, {task: people.user_ids for task, people in judged.items()}, rules)
        groups = pair_groups(ranks, pairs, judged, codes, rules)
        utility: list[UtilityScore] = []
        if self._future is not None:
            utility = utility_scores(self._utility, self._future, rules)
            groups += utility_groups(self._utility, utility, self._future, rules)
        complete = len(self.steps.done) == len(self.steps.plan)
        return Benchmark(*known, seeds, pairs, utility, list(self._lists), groups, complete)

    def _measure(self, names: Sequence[str]) -> None:
        for seed in self._seeds:
            self._find_halves(seed, names)
        self._judge_lists(names)

    def _find_halves(self, seed: int, names: Sequence[str]) -> None:
        """Tasks 1, 2, 3 of one split for these methods."""
        histories, vocabulary = self._histories, self._dataset.vocabulary
        evaluate = self._config.evaluate
        rules = evaluate.model_copy(update={"holdout_share": HOLDOUT, "max_holdout": 10**9, "seed": seed})
        mask = choose_holdout(histories, rules, seed)
        learners = histories.select(np.flatnonzero(~mask))
        disjoint = disjoint_pairs(histories, mask, vocabulary, rules, seed)
        older_newer = chronological_pairs(histories, mask, vocabulary, rules)
        material = Material(learners, vocabulary, *together(disjoint, older_newer), rules, seed)
        candidates = home_candidates(disjoint, vocabulary, seed)
        tested: dict[PairTask, PseudoUsers] = {"disjoint": disjoint, "matched": disjoint, "chronological": older_newer}
        self._judged[seed] = {
            task: Judged(pairs.a.user_ids, pairs.a.lengths(), pairs.regions) for task, pairs in tested.items()
        }
        for name in names:
            work = functools.partial(find_halves, self._methods[name], material, disjoint.n_users, candidates)
            found = self.steps.do((_part(seed), name), work)
            self._ranks.setdefault(seed, {})[name] = as_ranks(found)

    def _judge_lists(self, names: Sequence[str]) -> None:
        """Tasks 4 to 7: lists of all users by what they did before the cut, their worth afterwards, their looks."""
        future, material = self._cut()
        for name in names:
            work = functools.partial(judge_list, name, self._methods[name], material, self._dataset, future)
            found = self.steps.do(("lists", name), work)
            self._utility[name, "people"] = as_votes(found)
            self._lists.append(as_list_score(found))

    def _judge_recommenders(self) -> None:
        """Task 4 without people: places ranked for everybody, to see what lists of people are worth beside them."""
        future, material = self._cut()
        for name, recommend in RECOMMENDERS.items():
            work = functools.partial(judge_recommender, recommend, future, material)
            self._utility[name, "places"] = as_votes(self.steps.do(("places", name), work))

    def _cut(self) -> tuple[Future, Material]:
        if self._future is None or self._of_lists is None:
            rules, vocabulary = self._config.evaluate, self._dataset.vocabulary
            self._future = cut_in_time(self._dataset)
            past, later = self._future.past, a_day_later(self._dataset, self._future)
            self._of_lists = Material(past, vocabulary, past, later, rules, rules.seed)
        return self._future, self._of_lists


def _part(seed: int) -> str:
    return f"seed {seed}"


def _check_length(name: str, histories: Histories, rules: EvaluateConfig) -> None:
    enough = int((histories.lengths() >= rules.min_places).sum())
    if enough < MIN_LONG:
        raise InputError(
            "TOO-FEW-LONG",
            place=name,
            value=f"{enough} users",
            rule=f"{MIN_LONG} users with {rules.min_places} distinct places (evaluate.min_places), to be cut in two",
            fix="give more events",
        )


def _digest(dataset: Dataset, config: Config) -> str:
    """Hex digest of all that a step's result hangs on."""
    favors = dataset.favors.sort_by([(name, "ascending") for name in dataset.favors.column_names]).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, favors.schema) as stream:
        stream.write_table(favors)
    arrays = [dataset.friends, *vars(dataset.vocabulary).values()]
    arrays += [] if dataset.truth is None else vars(dataset.truth).values()
    known = [
        hashlib.sha256(part).hexdigest() for part in (sink.getvalue(), repr([a.tolist() for a in arrays]).encode())
    ]
    settings = [config.train.model_dump(mode="json"), config.evaluate.model_dump(mode="json")]
    return fingerprint([source_digest(), *known, *settings])


def all_methods(train: TrainConfig) -> dict[str, Baseline]:
    """The baselines, the encoder, and the 2021 recipe."""
    return {**MORE_BASELINES, **BASELINES, **TUNED, MODEL: encoder(train), BERT_2021: bert_2021}


def encoder(config: TrainConfig) -> Baseline:
    """Our encoder, fitted on the training users with the material's seed."""

    def fit(material: Material) -> Pair:
        from tastetwin.model.train import train

        trained = train(material.train, material.vocabulary, config.model_copy(update={"seed": material.seed}))
        a, b = (trained.encode(half, config.max_length) for half in (material.a, material.b))
        return a, b

    return fit


def bert_2021(material: Material) -> Pair:
    """Masked places alone, mean pooling."""
    from tastetwin.model.bert2021 import encode_bert, fit_bert

    model = fit_bert(material.train, material.vocabulary.n_rows, material.seed)
    a, b = (encode_bert(model, half) for half in (material.a, material.b))
    return a, b
