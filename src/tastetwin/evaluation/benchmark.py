"""The full benchmark for lists of people: seven tasks, every baseline, several seeds, on any source folder.

The daily gate measures one run against the published one; this measures *methods*. Docs: explanation/benchmark.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

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

HOLDOUT: Final = 0.3
LIST_LENGTH: Final = 100
MIN_LONG: Final = 20
PairTask = Literal["disjoint", "matched", "chronological"]
PairKey = tuple[PairTask, str, bool]
"""Task, method, with CSLS or without."""
Values = npt.NDArray[np.float64]
OnStep = Callable[[str], None]


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

    def to_json(self) -> dict[str, Any]:
        """Small JSON; NaN nowhere."""
        return asdict(self)


def run_benchmark(
    dataset: Dataset, config: Config, seeds: int, methods: Mapping[str, Baseline] | None = None, tell: OnStep = print
) -> Benchmark:
    """All tasks.

    Args:
        dataset: of any source.
        config: sections ``train`` (the encoder) and ``evaluate`` (halves, resamples) are used; 30 % are held out.
        seeds: how many splits, with the encoder trained anew on each: 1, 2, ...
        methods: in place of all.
        tell: hears what is being done.

    Raises:
        InputError: TOO-FEW-LONG when hardly anybody has places enough to be cut in two.
    """
    chosen = all_methods(config.train) if methods is None else methods
    histories = dataset.histories()
    places = int((~dataset.vocabulary.is_group).sum()) - FIRST_PLACE_ROW
    if (histories.lengths() >= config.evaluate.min_places).sum() < MIN_LONG:
        raise InputError(
            "TOO-FEW-LONG",
            place=dataset.name,
            value=f"{(histories.lengths() >= config.evaluate.min_places).sum()} users",
            rule=f"{MIN_LONG} users with {config.evaluate.min_places} distinct places (evaluate.min_places), to be cut "
            "in two",
            fix="give more events",
        )
    found = Benchmark(dataset.name, histories.n_users, places, len(dataset.favors), list(range(1, seeds + 1)))
    found.pairs = _pair_tasks(dataset, config, found.seeds, chosen, tell)
    found.utility, found.lists = _list_tasks(dataset, config, chosen, tell)
    return found


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


def _pair_tasks(
    dataset: Dataset, config: Config, seeds: list[int], methods: Mapping[str, Baseline], tell: OnStep
) -> list[PairScore]:
    ranks: dict[PairKey, list[npt.NDArray[np.int64]]] = {}
    owners: dict[PairTask, list[npt.NDArray[np.object_]]] = {"disjoint": [], "matched": [], "chronological": []}
    histories = dataset.histories()
    for seed in seeds:
        rules = config.evaluate.model_copy(update={"holdout_share": HOLDOUT, "max_holdout": 10**9, "seed": seed})
        mask = choose_holdout(histories, rules, seed)
        learners = histories.select(np.flatnonzero(~mask))
        disjoint = disjoint_pairs(histories, mask, dataset.vocabulary, rules, seed)
        older_newer = chronological_pairs(histories, mask, dataset.vocabulary, rules)
        both = _together(disjoint, older_newer)
        material = Material(learners, dataset.vocabulary, *both, rules, seed)
        candidates = home_candidates(disjoint, dataset.vocabulary, seed)
        for task, pseudo in (("disjoint", disjoint), ("matched", disjoint), ("chronological", older_newer)):
            owners[task].append(pseudo.a.user_ids)  # type: ignore[index]
        for name, method in methods.items():
            tell(f"seed {seed}: {name}")
            a, b = method(material)
            n = disjoint.n_users
            for csls in (0, CSLS_NEIGHBOURS):
                key = (name, csls > 0)
                ranks.setdefault(("disjoint", *key), []).append(true_twin_ranks(a[:n], b[:n], csls))
                ranks.setdefault(("matched", *key), []).append(true_twin_ranks_among(a[:n], b[:n], candidates, csls))
                ranks.setdefault(("chronological", *key), []).append(true_twin_ranks(a[n:], b[n:], csls))
    users = {task: np.concatenate(each) for task, each in owners.items()}
    return _summaries({key: np.concatenate(each) for key, each in ranks.items()}, users, config.evaluate)


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


def _list_tasks(
    dataset: Dataset, config: Config, methods: Mapping[str, Baseline], tell: OnStep
) -> tuple[list[UtilityScore], list[ListScore]]:
    """Lists of all users by what they did before the cut: their utility afterwards, and what they look like."""
    future = cut_in_time(dataset)
    past, rules = future.past, config.evaluate
    material = Material(past, dataset.vocabulary, past, past, rules, rules.seed)
    utility, lists = {}, []
    for name, method in methods.items():
        tell(f"lists: {name}")
        vectors = method(material)[0]
        utility[name, "people"] = _best_length(future, vectors, rules.seed)
        lists.append(_list_score(name, dataset, future, vectors, rules.seed))
    for name, scores in _recommenders(future, material):
        tell(f"places: {name}")
        utility[name, "places"] = 0, *ndcg_and_recall(future, scores)
    return _utility_scores(utility, future, rules), lists


def _recommenders(future: Future, material: Material) -> Iterator[tuple[str, ScoreBlocks]]:
    yield "popularity", popularity(future)
    yield "popularity at home", popularity_at_home(future)
    yield "item kNN", item_knn(future)
    yield "iALS (tuned on twins)", factors(future, tune_ials(material))


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
    if not test.any():
        return []
    rivals = [key for key in found if key[0] != MODEL]
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


# -- for people -------------------------------------------------------------------------------------------------------

_TITLES: Final[dict[PairTask, str]] = {
    "disjoint": "Disjoint twin test: one half of a person's places finds the other, none in common",
    "matched": "Matched twin test: the same among 99 others of the same area and activity",
    "chronological": "Chronological twin test: older places find newer ones (secondary: overlap in time helps)",
}


def as_tables(found: Benchmark) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """(title, columns, rows) per task, the best method first; of each method the better of with and without CSLS."""
    for task, title in _TITLES.items():
        best: dict[str, PairScore] = {}
        for score in (each for each in found.pairs if each.task == task):
            if score.method not in best or score.mrr.value > best[score.method].mrr.value:
                best[score.method] = score
        ranked = sorted(best.values(), key=lambda score: -score.mrr.value)
        rows = [
            [s.method, "yes" if s.csls else "no", *_shown(s.mrr), f"{s.recall_10:.2f}", *_shown_ratio(s.ratio)]
            for s in ranked
        ]
        yield title, ["method", "CSLS", "MRR", "95 % interval", "recall@10", "x best baseline", "95 % interval "], rows
    yield (
        "Neighbour utility: the places of the twins rank those visited for the first time later",
        ["method", "by", "twins", "NDCG@20", "95 % interval", "recall@20", "x best baseline", "95 % interval "],
        [
            [s.method, s.kind, str(s.neighbours or "-"), *_shown(s.ndcg_20, 4), f"{s.recall_20:.3f}",
             *_shown_ratio(s.ratio)]
            for s in sorted(found.utility, key=lambda s: -s.ndcg_20.value)
        ],
    )  # fmt: skip
    yield (
        "Lists of everybody",
        ["method", "never shown", "Gini", "skew", "reciprocity", "friends AUC", "friends MRR", "planted taste"],
        [
            [s.method, *(f"{v:.3f}" for v in (s.never_shown, s.gini, s.skewness, s.reciprocity)),
             *("-" if v is None else f"{v:.3f}" for v in (s.friends_auc, s.friends_mrr, s.planted))]
            for s in found.lists
        ],
    )  # fmt: skip


def _shown(value: Interval, digits: int = 3) -> list[str]:
    return [f"{value.value:.{digits}f}", f"{value.low:.{digits}f} .. {value.high:.{digits}f}"]


def _shown_ratio(ratio: Interval | None) -> list[str]:
    return (
        ["1", "the best baseline"] if ratio is None else [f"{ratio.value:.3f}", f"{ratio.low:.3f} .. {ratio.high:.3f}"]
    )
