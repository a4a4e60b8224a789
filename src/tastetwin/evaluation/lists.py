"""Tasks 4 to 7 of the benchmark: lists of everybody, what they are worth, and what they look like."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from tastetwin.config import EvaluateConfig
from tastetwin.evaluation.baselines import Baseline, Material, tune_ials
from tastetwin.evaluation.dataset import Dataset
from tastetwin.evaluation.health import gini, reciprocity, skewness
from tastetwin.evaluation.known import friends_auc, planted_taste
from tastetwin.evaluation.metrics import CSLS_NEIGHBOURS, Interval, bootstrap_mean, bootstrap_ratio, score_blocks
from tastetwin.evaluation.records import MODEL
from tastetwin.evaluation.utility import (
    NEIGHBOURS,
    Future,
    ScoreBlocks,
    factors,
    item_knn,
    ndcg_and_recall,
    popularity,
    popularity_at_home,
    twins_places,
)

LIST_LENGTH: Final = 100
Values = npt.NDArray[np.float64]


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


def judge_list(name: str, method: Baseline, material: Material, dataset: Dataset, future: Future) -> dict[str, Any]:
    """The best ``length`` of a method's lists, their ``ndcg`` and ``recall`` [n_judged], and ``list``: their looks."""
    vectors = method(material)[0]
    length, ndcg, recall = _best_length(future, vectors, material.seed)
    looks = asdict(_list_score(name, dataset, future, vectors, material.seed))
    return {"length": length, "ndcg": ndcg, "recall": recall, "list": looks}


def judge_recommender(recommend: Recommender, future: Future, material: Material) -> dict[str, Any]:
    """The same of a recommender of places, which has no lists: ``length`` 0."""
    ndcg, recall = ndcg_and_recall(future, recommend(future, material))
    return {"length": 0, "ndcg": ndcg, "recall": recall}


def as_utility(found: Mapping[str, Any]) -> tuple[int, Values, Values]:
    """Length, NDCG and recall of what was judged, read back from JSON."""
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


def utility_scores(
    found: Mapping[tuple[str, str], tuple[int, Values, Values]], future: Future, rules: EvaluateConfig
) -> list[UtilityScore]:
    """A score for every (method, kind) on the users by whom no length was chosen."""
    test = ~future.validation(rules.seed)
    rivals = [key for key in found if key[0] != MODEL] or list(found)
    if not test.any() or not rivals:
        return []
    best = max(rivals, key=lambda key: float(found[key][1][test].mean()))
    scores = []
    for key, (length, ndcg, recall) in found.items():
        how = (rules.bootstrap, rules.seed)
        ratio = None if key == best else bootstrap_ratio(ndcg[test], found[best][1][test], *how)
        value = bootstrap_mean(ndcg[test], *how)
        scores.append(
            UtilityScore(key[0], key[1], length, int(test.sum()), value, float(recall[test].mean()), ratio)  # type: ignore[arg-type]
        )
    return scores


def _list_score(name: str, dataset: Dataset, future: Future, vectors: Any, seed: int) -> ListScore:
    twins = _nearest(vectors)
    shown = np.bincount(twins[twins >= 0], minlength=len(twins))
    sample = np.random.default_rng(seed).permutation(len(twins))[:2_000]
    # None for a method that has a similarity but no vectors, or whose vectors are as wide as the town.
    rows = vectors if isinstance(vectors, np.ndarray) else None
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


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _mean_popularity(future: Future) -> Values:
    """[n] mean log visitors of each user's places."""
    visitors = np.asarray(future.matrix.sum(axis=0)).ravel()
    logs = future.matrix @ np.log(np.maximum(visitors, 1))
    return np.asarray(logs / np.maximum(future.past.lengths(), 1), np.float64)
