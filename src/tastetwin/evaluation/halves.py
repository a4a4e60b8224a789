"""Tasks 1, 2 and 3 of the benchmark: one half of a person's places finds the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from tastetwin.config import EvaluateConfig
from tastetwin.evaluation.baselines import Baseline, Material
from tastetwin.evaluation.metrics import (
    CSLS_NEIGHBOURS,
    Interval,
    bootstrap_mean_by_user,
    bootstrap_ratio_by_user,
    hits,
    reciprocal,
    true_twin_ranks,
    true_twin_ranks_among,
)
from tastetwin.evaluation.records import MODEL
from tastetwin.evaluation.tasks import PseudoUsers
from tastetwin.features.histories import Histories, joined

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


def find_halves(
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


def as_ranks(found: Mapping[PairTask, Sequence[Any]]) -> TaskRanks:
    """What ``find_halves`` found, read back from JSON."""
    return {task: [np.asarray(ranks, np.int64) for ranks in both] for task, both in found.items()}


def together(first: PseudoUsers, second: PseudoUsers) -> tuple[Histories, Histories]:
    """Both tests' halves end to end, so that a method is fitted and asked once."""
    return joined(first.a, second.a), joined(first.b, second.b)


def summaries(
    ranks: dict[PairKey, npt.NDArray[np.int64]],
    owners: Mapping[PairTask, npt.NDArray[np.object_]],
    rules: EvaluateConfig,
) -> list[PairScore]:
    """A score for every task, method and correction.

    ``ranks`` [pairs] are those of the true other halves over all seeds, ``owners`` [pairs] whose halves they are; one
    user may own several pairs.
    """
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
