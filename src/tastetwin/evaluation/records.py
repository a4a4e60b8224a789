"""What one evaluation found, as plain records that survive a trip through JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final, Literal, get_args

import numpy as np
import orjson
from pydantic import TypeAdapter, ValidationError

from tastetwin.errors import StoreError
from tastetwin.evaluation.metrics import Interval, Ranks

Task = Literal["disjoint", "matched"]
TASKS: Final[tuple[Task, ...]] = get_args(Task)


@dataclass(frozen=True)
class MethodScore:
    """One method on one task."""

    task: Task
    method: str
    csls: bool
    mrr: Interval
    recall_10: Interval
    recall_100: Interval
    ranks: list[int]
    """[n held-out users] the rank of the true twin, in the order of ``Evaluation.users``: what pairs two runs."""

    def rank_array(self) -> Ranks:
        """[n] the ranks as an array."""
        return np.asarray(self.ranks, np.int64)


@dataclass(frozen=True)
class Bucket:
    """MRR of model and best baseline within one group of held-out users."""

    kind: Literal["activity", "region"]
    name: str
    users: int
    model: Interval
    baseline: Interval


@dataclass(frozen=True)
class Coverage:
    """How one group of users takes part in the lists."""

    kind: str
    name: str
    users: int
    served: float
    """Share with a list."""
    shown: float
    """Share in at least one list."""


@dataclass(frozen=True)
class Health:
    """Task 7: the twin lists as a whole. Shares are of all users of the table unless they say otherwise."""

    users: int
    k: int
    served: int
    out_of_range: int
    """Entries that point at nobody."""
    self_share: float
    """Users who are their own twin."""
    duplicate_share: float
    """Lists that show somebody twice."""
    never_shown: float
    gini: float
    skewness: float
    top_share: float
    """Share of all slots filled by the k users shown most."""
    reciprocity: float
    agreement: float
    """0: lists as far away as random ones; 1: the nearest by these vectors."""
    overlap_twins: list[float]
    """Per sampled user: mean places shared with ten twins."""
    overlap_random: list[float]
    """Per sampled user: mean places shared with ten random users."""
    stability: float | None
    """Mean Jaccard@10 with the earlier run's lists."""
    lorenz: list[float]
    coverage: list[Coverage]


@dataclass(frozen=True)
class VectorHealth:
    """The spread of a set of vectors."""

    rows: int
    not_finite: int
    """Rows with a value that is no number."""
    norm_error: float
    """Largest distance of a row's length from 1."""
    mean_cosine: float
    effective_rank: float


@dataclass(frozen=True)
class Histogram:
    """Shares per bin of two sets of scores."""

    edges: list[float]
    twins: list[float]
    strangers: list[float]


@dataclass(frozen=True)
class Evaluation:
    """The whole of one evaluation."""

    split: str
    """How the held-out users were chosen; only runs of the same split are compared pair by pair."""
    users: list[str]
    """[n held-out users] keyed hashes of their ids: they pair two runs and name nobody."""
    train_users: int
    scores: list[MethodScore]
    buckets: list[Bucket]
    health: Health
    vectors: VectorHealth
    """Of the users in the lists."""
    pseudo_vectors: VectorHealth
    """Of the held-out halves."""
    histogram: Histogram

    def of(self, task: Task, method: str, csls: bool = True) -> MethodScore | None:
        """The score of one method, or None where it was not run."""
        return next((s for s in self.scores if (s.task, s.method, s.csls) == (task, method, csls)), None)

    def model(self, task: Task = "disjoint") -> MethodScore | None:
        """The evaluated model with CSLS, as the lists use it."""
        return self.of(task, MODEL)

    def best_baseline(self, task: Task = "disjoint") -> MethodScore | None:
        """The baseline with the highest MRR, with or without CSLS."""
        baselines = [s for s in self.scores if s.task == task and s.method not in (MODEL, PUBLISHED)]
        return max(baselines, key=lambda s: s.mrr.value, default=None)


MODEL: Final = "model"
"""The name of the evaluated model among the methods."""
PUBLISHED: Final = "published model"
"""The name of the published run's model, asked about the same held-out users."""


def to_json(evaluation: Evaluation) -> bytes:
    """UTF-8 JSON; the same evaluation gives the same bytes."""
    return orjson.dumps(asdict(evaluation))


def from_json(data: bytes, place: str) -> Evaluation:
    """Read what `to_json` wrote; ``place`` names the file in the error.

    Raises:
        StoreError: EVALUATION-UNREADABLE when it is no evaluation of this version.
    """
    try:
        return TypeAdapter(Evaluation).validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise StoreError(
            "EVALUATION-UNREADABLE",
            place=place,
            value=f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            rule="an evaluation written by this version is needed",
            fix="run `tastetwin evaluate` again",
        ) from None
