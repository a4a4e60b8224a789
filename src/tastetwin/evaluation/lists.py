"""Tasks 4 to 7 of the benchmark: lists of everybody, what they are worth, and what they look like."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from tastetwin.config import EvaluateConfig
from tastetwin.evaluation.baselines import Baseline, Material, tune_ials
from tastetwin.evaluation.dataset import Dataset
from tastetwin.evaluation.health import EarlierLists, TwinTable, coverage, gini, reciprocity, skewness, stability
from tastetwin.evaluation.known import friends_auc, planted_taste
from tastetwin.evaluation.metrics import Interval, bootstrap_mean, bootstrap_ratio
from tastetwin.evaluation.records import MODEL, Coverage
from tastetwin.evaluation.utility import (
    NEIGHBOURS,
    Future,
    ScoreBlocks,
    cosines_of_others,
    crowds,
    factors,
    item_knn,
    ndcg_and_recall,
    popularity,
    popularity_at_home,
    twins_places,
)
from tastetwin.features.home import home_regions

LIST_LENGTH: Final = 100
FIRST_TWINS: Final = 10
"""Of a list, what most people look at: how long these stay and whom they show is told."""
Values = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]


class Votes(NamedTuple):
    """What the places of a method's lists were worth to each judged user."""

    length: int
    """Of the lists; 0 for a recommender of places."""
    csls: bool
    """Whether the twins are the nearest by CSLS."""
    ndcg: Values
    """[n_judged]"""
    recall: Values
    """[n_judged]"""


@dataclass(frozen=True)
class UtilityScore:
    """One way to rank the places a user will visit."""

    method: str
    kind: Literal["people", "places"]
    """Votes of twins, or a recommender of places."""
    neighbours: int
    """Length of the twin lists, chosen on the validation users; 0 for a recommender of places."""
    csls: bool
    """Whether the twins are the nearest by CSLS, chosen likewise."""
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
    stability: float | None
    """Mean Jaccard@10 with the lists of the same users a day later, by what was learnt before."""
    coverage: list[Coverage]
    """By activity and region; ``shown`` in the first ten of anybody's list."""
    friends_auc: float | None
    friends_mrr: float | None
    planted: float | None


def judge_list(name: str, method: Baseline, material: Material, dataset: Dataset, future: Future) -> dict[str, Any]:
    """The ``votes`` of a method's lists, and ``list``: their looks.

    ``material.a`` are the users of the past, ``material.b`` the same users a day later.
    """
    vectors, later = method(material)
    crowd = crowds(vectors)
    votes = _best_votes(future, vectors, crowd, material.seed)
    twins = _nearest(vectors, crowd, LIST_LENGTH), _nearest(later, crowds(later), FIRST_TWINS)
    looks = asdict(_list_score(name, dataset, future, vectors, *twins, material.seed))
    return {"votes": votes._asdict(), "list": looks}


def judge_recommender(recommend: Recommender, future: Future, material: Material) -> dict[str, Any]:
    """The same of a recommender of places, which has no lists."""
    return {"votes": Votes(0, False, *ndcg_and_recall(future, recommend(future, material)))._asdict()}


def as_votes(found: Mapping[str, Any]) -> Votes:
    """What ``judge_list`` or ``judge_recommender`` found, read back from JSON."""
    ndcg, recall = (np.asarray(found["votes"][name], np.float64) for name in ("ndcg", "recall"))
    return Votes(found["votes"]["length"], found["votes"]["csls"], ndcg, recall)


def as_list_score(found: Mapping[str, Any]) -> ListScore:
    """The looks of what ``judge_list`` found, read back from JSON."""
    return ListScore(**{**found["list"], "coverage": [Coverage(**group) for group in found["list"]["coverage"]]})


Recommender = Callable[[Future, Material], ScoreBlocks]
RECOMMENDERS: Final[dict[str, Recommender]] = {
    "popularity": lambda future, material: popularity(future),
    "popularity at home": lambda future, material: popularity_at_home(future),
    "item kNN": lambda future, material: item_knn(future),
    "iALS (tuned on twins)": lambda future, material: factors(future, tune_ials(material)),
}
"""Recommenders of places, beside the votes of twins."""


def _best_votes(future: Future, vectors: Any, crowd: Floats, seed: int) -> Votes:
    """Those of the list length, with or without CSLS, that serve the validation users best; of equal ones the first."""
    validation = future.validation(seed)
    tried = [
        Votes(k, csls, *ndcg_and_recall(future, twins_places(future, vectors, k, crowd if csls else 0)))
        for csls in (False, True)
        for k in NEIGHBOURS
    ]
    return max(tried, key=lambda votes: float(votes.ndcg[validation].mean())) if validation.any() else tried[0]


def utility_scores(found: Mapping[tuple[str, str], Votes], future: Future, rules: EvaluateConfig) -> list[UtilityScore]:
    """A score for every (method, kind) on the users by whom nothing was chosen."""
    test = ~future.validation(rules.seed)
    rivals = [key for key in found if key[0] != MODEL] or list(found)
    if not test.any() or not rivals:
        return []
    best = max(rivals, key=lambda key: float(found[key].ndcg[test].mean()))
    scores = []
    for key, (length, csls, ndcg, recall) in found.items():
        how = (rules.bootstrap, rules.seed)
        ratio = None if key == best else bootstrap_ratio(ndcg[test], found[best].ndcg[test], *how)
        value, recalled = bootstrap_mean(ndcg[test], *how), float(recall[test].mean())
        scores.append(
            UtilityScore(key[0], key[1], length, csls, int(test.sum()), value, recalled, ratio)  # type: ignore[arg-type]
        )
    return scores


def _list_score(
    name: str, dataset: Dataset, future: Future, vectors: Any, twins: TwinTable, later: TwinTable, seed: int
) -> ListScore:
    ids = future.past.user_ids
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
    steady = stability(ids, later, EarlierLists(ids, ids[twins[:, :FIRST_TWINS]]), seed)
    first = np.bincount(twins[:, :FIRST_TWINS].ravel(), minlength=len(twins)) > 0
    homes, codes = home_regions(future.past, future.vocabulary), future.vocabulary.region_codes
    covered = coverage(future.past.lengths(), homes, list(codes), np.ones(len(twins), bool), first)
    return ListScore(name, *health, steady, covered, auc, mrr, planted)


def _nearest(vectors: Any, crowd: Floats, length: int) -> TwinTable:
    """[n, k] everybody's ``length`` nearest by CSLS, themselves aside."""
    n = vectors.shape[0]
    k = min(length, n - 1)
    twins = np.empty((n, k), np.int32)
    for start, cosine in cosines_of_others(vectors):
        scores = 2 * cosine - crowd
        top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1, kind="stable")
        twins[start : start + len(cosine)] = np.take_along_axis(top, order, axis=1)
    return twins


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _mean_popularity(future: Future) -> Values:
    """[n] mean log visitors of each user's places."""
    visitors = np.asarray(future.matrix.sum(axis=0)).ravel()
    logs = future.matrix @ np.log(np.maximum(visitors, 1))
    return np.asarray(logs / np.maximum(future.past.lengths(), 1), np.float64)
