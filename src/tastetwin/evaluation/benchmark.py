"""The full benchmark for lists of people: seven tasks, every baseline, several seeds, on any source folder.

The daily gate measures one run against the published one; this measures *methods*. Docs: explanation/benchmark.md.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tastetwin.config import Config, EvaluateConfig, TrainConfig
from tastetwin.errors import InputError
from tastetwin.evaluation.baselines import (
    BASELINES,
    MORE_BASELINES,
    Baseline,
    Material,
    Pair,
    home_candidates,
    tune_ials,
)
from tastetwin.evaluation.dataset import Dataset
from tastetwin.evaluation.health import gini, reciprocity, skewness
from tastetwin.evaluation.known import friends_auc, planted_taste
from tastetwin.evaluation.metrics import (
    CSLS_NEIGHBOURS,
    Interval,
    bootstrap_mean,
    bootstrap_mean_by_user,
    bootstrap_ratio,
    bootstrap_ratio_by_user,
    hits,
    reciprocal,
    score_blocks,
    true_twin_ranks,
    true_twin_ranks_among,
)
from tastetwin.evaluation.records import MODEL
from tastetwin.evaluation.steps import Steps, Tell
from tastetwin.evaluation.tasks import PseudoUsers, chronological_pairs, disjoint_pairs
from tastetwin.evaluation.utility import (
    NEIGHBOURS,
    Future,
    ScoreBlocks,
    cut_in_time,
    factors,
    item_knn,
    ndcg_and_recall,
    popularity,
    popularity_at_home,
    twins_places,
)
from tastetwin.features.histories import FIRST_PLACE_ROW, Histories, joined
from tastetwin.features.holdout import choose_holdout
from tastetwin.provenance import source_digest
from tastetwin.runs import fingerprint

HOLDOUT: Final = 0.3
LIST_LENGTH: Final = 100
MIN_LONG: Final = 20
PairTask = Literal["disjoint", "matched", "chronological"]
PAIR_TASKS: Final[tuple[PairTask, ...]] = get_args(PairTask)
TaskRanks = dict[PairTask, list[npt.NDArray[np.int64]]]
"""[pairs] ranks without and with CSLS."""
PairKey = tuple[PairTask, str, bool]
"""Task, method, with CSLS or without."""
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PairScore:
    """One method on one task of finding one's other half, over all seeds."""

    task: PairTask
    method: str
    csls: bool
    pairs: int
    mrr: Interval
    recall_10: float
    recall_100: float
    ratio: Interval | None = None
    """MRR over that of the best baseline of the task, paired; None for the best baseline itself."""


@dataclass(frozen=True)
class UtilityScore:
    """One way to rank the places a user will visit."""

    method: str
    kind: Literal["people", "places"]
    """Votes of twins, or a recommender of places."""
    neighbours: int
    """Length of the twin lists, chosen on the validation users; 0 for a recommender of places."""
    users: int
    ndcg_20: Interval
    recall_20: float
    ratio: Interval | None = None


@dataclass(frozen=True)
class ListScore:
    """What a method's lists look like, and what else is known of its users."""

    method: str
    never_shown: float
    gini: float
    skewness: float
    reciprocity: float
    friends_auc: float | None
    friends_mrr: float | None
    planted: float | None


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
    complete: bool = True
    """Whether this is all of it, or what there was when it was stopped."""

    def to_json(self) -> dict[str, Any]:
        """Small JSON; NaN nowhere."""
        return asdict(self)


def run_benchmark(
    dataset: Dataset, config: Config, seeds: int, methods: Mapping[str, Baseline] | None = None, tell: Tell = print
) -> Benchmark:
    """All tasks at once, nothing kept; arguments and errors as of ``Measurement``."""
    measurement = Measurement(dataset, config, seeds, methods, tell=tell)
    measurement.run()
    return measurement.found()


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
        plan = [(part, name) for part in (*map(_part, self._seeds), "lists") for name in self._methods]
        folder = None if keep is None else keep / f"{_file_name(dataset.name)}-{_digest(dataset, config)[:12]}"
        self.steps = Steps([*plan, *(("places", name) for name in RECOMMENDERS)], tell, folder, again=again)
        self._tell = tell
        self._ranks: dict[int, dict[str, TaskRanks]] = {}
        self._owners: dict[int, dict[PairTask, npt.NDArray[np.object_]]] = {}
        self._future: Future | None = None
        self._utility: dict[tuple[str, str], tuple[int, Values, Values]] = {}
        self._lists: list[ListScore] = []

    def run(self) -> None:
        """All that is still to be done."""
        kept, folder = self.steps.kept(), self.steps.folder
        where = "" if folder is None else f"; {kept} of them are kept in {folder}"
        self._tell(
            f"{self._dataset.name}: {self._histories.n_users:,} users, {len(self._dataset.favors):,} favors; "
            f"{len(self._methods)} methods on {len(self._seeds)} splits (seeds), then lists: "
            f"{len(self.steps.plan)} steps{where}. How long it takes shows after the first seed."
        )
        for seed in self._seeds:
            self._find_halves(seed)
        self._judge_lists()

    def found(self) -> Benchmark:
        """What is measured so far: of a seed that is not finished only where there is no other."""
        finished = [seed for seed, found in self._ranks.items() if len(found) == len(self._methods)]
        seeds = finished or list(self._ranks)[:1]
        places = int((~self._dataset.vocabulary.is_group).sum()) - FIRST_PLACE_ROW
        known = (self._dataset.name, self._histories.n_users, places, len(self._dataset.favors))
        ranks = {
            (task, name, csls > 0): np.concatenate([self._ranks[seed][name][task][csls] for seed in seeds])
            for name in (self._ranks[seeds[0]] if seeds else ())
            for task in PAIR_TASKS
            for csls in (0, 1)
        }
        owners = {task: np.concatenate([self._owners[seed][task] for seed in seeds]) for task, _, _ in ranks}
        pairs = _summaries(ranks, owners, self._config.evaluate)
        utility = [] if self._future is None else _utility_scores(self._utility, self._future, self._config.evaluate)
        complete = len(self.steps.done) == len(self.steps.plan)
        return Benchmark(*known, seeds, pairs, utility, list(self._lists), complete)

    def _find_halves(self, seed: int) -> None:
        """Tasks 1, 2, 3 of one split."""
        histories, vocabulary = self._histories, self._dataset.vocabulary
        evaluate = self._config.evaluate
        rules = evaluate.model_copy(update={"holdout_share": HOLDOUT, "max_holdout": 10**9, "seed": seed})
        mask = choose_holdout(histories, rules, seed)
        learners = histories.select(np.flatnonzero(~mask))
        disjoint = disjoint_pairs(histories, mask, vocabulary, rules, seed)
        older_newer = chronological_pairs(histories, mask, vocabulary, rules)
        material = Material(learners, vocabulary, *_together(disjoint, older_newer), rules, seed)
        candidates = home_candidates(disjoint, vocabulary, seed)
        tested = {"disjoint": disjoint, "matched": disjoint, "chronological": older_newer}
        self._owners[seed] = {task: tested[task].a.user_ids for task in PAIR_TASKS}
        for name, method in self._methods.items():
            work = functools.partial(_halves_found, method, material, disjoint.n_users, candidates)
            found = self.steps.do((_part(seed), name), work)
            self._ranks.setdefault(seed, {})[name] = _as_ranks(found)

    def _judge_lists(self) -> None:
        """Tasks 4 to 7: lists of all users by what they did before the cut, their utility afterwards, their looks."""
        self._future = future = cut_in_time(self._dataset)
        rules = self._config.evaluate
        material = Material(future.past, self._dataset.vocabulary, future.past, future.past, rules, rules.seed)
        for name, method in self._methods.items():
            work = functools.partial(_list_of, name, method, material, self._dataset, future)
            found = self.steps.do(("lists", name), work)
            self._utility[name, "people"] = _as_utility(found)
            self._lists.append(ListScore(**found["list"]))
        for name, recommend in RECOMMENDERS.items():
            work = functools.partial(_recommended, recommend, future, material)
            self._utility[name, "places"] = _as_utility(self.steps.do(("places", name), work))


def _part(seed: int) -> str:
    return f"seed {seed}"


def _file_name(dataset: str) -> str:
    return re.sub(r"[^\w.-]+", "-", dataset)


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
    """The baselines, the 2021 recipe and the encoder."""
    return {**MORE_BASELINES, **BASELINES, "BERT, masked (2021)": bert_2021, MODEL: encoder(train)}


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


# -- tasks 1, 2, 3: finding one's other half --------------------------------------------------------------------------


def _halves_found(
    method: Baseline, material: Material, disjoint: int, candidates: npt.NDArray[np.int64]
) -> dict[PairTask, list[npt.NDArray[np.int64]]]:
    """Task -> ranks of the true other half, without and with CSLS; the first ``disjoint`` pairs are that task's."""
    a, b = method(material)
    n, both = disjoint, (0, CSLS_NEIGHBOURS)
    return {
        "disjoint": [true_twin_ranks(a[:n], b[:n], csls) for csls in both],
        "matched": [true_twin_ranks_among(a[:n], b[:n], candidates, csls) for csls in both],
        "chronological": [true_twin_ranks(a[n:], b[n:], csls) for csls in both],
    }


def _as_ranks(found: Mapping[PairTask, Sequence[Any]]) -> TaskRanks:
    return {task: [np.asarray(ranks, np.int64) for ranks in both] for task, both in found.items()}


def _together(first: PseudoUsers, second: PseudoUsers) -> tuple[Histories, Histories]:
    """Both tests' halves end to end, so that a method is fitted and asked once."""
    return joined(first.a, second.a), joined(first.b, second.b)


def _summaries(
    ranks: dict[PairKey, npt.NDArray[np.int64]],
    owners: Mapping[PairTask, npt.NDArray[np.object_]],
    rules: EvaluateConfig,
) -> list[PairScore]:
    values = {key: reciprocal(found) for key, found in ranks.items()}
    best = {task: max(_rivals(values, task), key=lambda key: float(values[key].mean())) for task, _, _ in values}
    scores = []
    for key, found in ranks.items():
        task, method, csls = key
        how = (owners[task], rules.bootstrap, rules.seed)
        ratio = None if key == best[task] else bootstrap_ratio_by_user(values[key], values[best[task]], *how)
        recall_10, recall_100 = (float(hits(found, depth).mean()) for depth in (10, 100))
        mrr = bootstrap_mean_by_user(values[key], *how)
        scores.append(PairScore(task, method, csls, len(found), mrr, recall_10, recall_100, ratio))
    return scores


def _rivals(values: Mapping[PairKey, Values], task: PairTask) -> list[PairKey]:
    """The task's baselines; where there is none, whatever was run."""
    mine = [key for key in values if key[0] == task]
    return [key for key in mine if key[1] != MODEL] or mine


def _ratio(values: Values, best: Values, rules: EvaluateConfig) -> Interval:
    return bootstrap_ratio(values, best, rules.bootstrap, rules.seed)


# -- tasks 4 to 7: lists of everybody ---------------------------------------------------------------------------------


def _list_of(name: str, method: Baseline, material: Material, dataset: Dataset, future: Future) -> dict[str, Any]:
    vectors = method(material)[0]
    length, ndcg, recall = _best_length(future, vectors, material.seed)
    looks = asdict(_list_score(name, dataset, future, vectors, material.seed))
    return {"length": length, "ndcg": ndcg, "recall": recall, "list": looks}


def _recommended(recommend: Recommender, future: Future, material: Material) -> dict[str, Any]:
    ndcg, recall = ndcg_and_recall(future, recommend(future, material))
    return {"length": 0, "ndcg": ndcg, "recall": recall}


def _as_utility(found: Mapping[str, Any]) -> tuple[int, Values, Values]:
    return found["length"], np.asarray(found["ndcg"], np.float64), np.asarray(found["recall"], np.float64)


Recommender = Callable[[Future, Material], ScoreBlocks]
RECOMMENDERS: Final[dict[str, Recommender]] = {
    "popularity": lambda future, material: popularity(future),
    "popularity at home": lambda future, material: popularity_at_home(future),
    "item kNN": lambda future, material: item_knn(future),
    "iALS (tuned on twins)": lambda future, material: factors(future, tune_ials(material)),
}
"""Recommenders of places, beside the votes of twins."""


def _best_length(future: Future, vectors: Any, seed: int) -> tuple[int, Values, Values]:
    """The list length that serves the validation users best, and NDCG and recall of all judged users with it."""
    validation = future.validation(seed)
    tried = {k: ndcg_and_recall(future, twins_places(future, vectors, k)) for k in NEIGHBOURS}
    best = max(tried, key=lambda k: float(tried[k][0][validation].mean()) if validation.any() else -k)
    return best, *tried[best]


def _utility_scores(
    found: Mapping[tuple[str, str], tuple[int, Values, Values]], future: Future, rules: EvaluateConfig
) -> list[UtilityScore]:
    test = ~future.validation(rules.seed)
    rivals = [key for key in found if key[0] != MODEL] or list(found)
    if not test.any() or not rivals:
        return []
    best = max(rivals, key=lambda key: float(found[key][1][test].mean()))
    scores = []
    for key, (length, ndcg, recall) in found.items():
        ratio = None if key == best else _ratio(ndcg[test], found[best][1][test], rules)
        value = bootstrap_mean(ndcg[test], rules.bootstrap, rules.seed)
        scores.append(
            UtilityScore(key[0], key[1], length, int(test.sum()), value, float(recall[test].mean()), ratio)  # type: ignore[arg-type]
        )
    return scores


def _list_score(name: str, dataset: Dataset, future: Future, vectors: Any, seed: int) -> ListScore:
    twins = _nearest(vectors)
    shown = np.bincount(twins[twins >= 0], minlength=len(twins))
    sample = np.random.default_rng(seed).permutation(len(twins))[:2_000]
    rows = _rows(vectors)
    auc = mrr = planted = None
    if rows is not None and len(dataset.friends):
        auc, mrr = (_finite(value) for value in friends_auc(rows, future.past.user_ids, dataset.friends, seed))
    if rows is not None and dataset.truth is not None:
        found = planted_taste(rows, future.past.user_ids, _mean_popularity(future), dataset.truth, seed)
        planted = _finite(found)
    health = (float((shown == 0).mean()), gini(shown), skewness(shown), reciprocity(twins, sample))
    return ListScore(name, *health, auc, mrr, planted)


def _nearest(vectors: Any) -> npt.NDArray[np.int32]:
    """[n, k] everybody's nearest by CSLS, themselves aside."""
    n = vectors.shape[0]
    k = min(LIST_LENGTH, n - 1)
    near = min(CSLS_NEIGHBOURS, n - 1)
    crowd = np.concatenate([np.partition(c, -near, axis=1)[:, -near:].mean(axis=1) for _, c in _others(vectors)])
    twins = np.empty((n, k), np.int32)
    for start, cosine in _others(vectors):
        scores = 2 * cosine - crowd
        top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1, kind="stable")
        twins[start : start + len(cosine)] = np.take_along_axis(top, order, axis=1)
    return twins


def _others(vectors: Any) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """``score_blocks`` of everybody with everybody else; -inf with themselves."""
    for start, cosine in score_blocks(vectors, vectors):
        rows = np.arange(len(cosine))
        cosine[rows, start + rows] = -np.inf
        yield start, cosine


def _rows(vectors: Any) -> npt.NDArray[np.float32] | None:
    """Dense rows; None for a method that has a similarity but no vectors, or whose vectors are as wide as the town."""
    return vectors if isinstance(vectors, np.ndarray) else None


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _mean_popularity(future: Future) -> Values:
    """[n] mean log visitors of each user's places."""
    visitors = np.asarray(future.matrix.sum(axis=0)).ravel()
    logs = future.matrix @ np.log(np.maximum(visitors, 1))
    return np.asarray(logs / np.maximum(future.past.lengths(), 1), np.float64)
