"""The health card of a run: every figure beside the gate's limit for it, and a plain sentence.

A figure and its limit are stated once: the gate's findings are the measures that do not pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from tastetwin.config import EvaluateConfig
from tastetwin.evaluation.health import OVERLAP_DEPTH
from tastetwin.evaluation.metrics import bootstrap_ratio
from tastetwin.evaluation.records import Evaluation, Health, VectorHealth

Severity = Literal["broken", "refuse", "warn"]

MAX_NORM_ERROR: Final = 0.01
MAX_MEAN_COSINE: Final = 0.98
MIN_EFFECTIVE_RANK: Final = 2.0
MIN_RANKED: Final = 10
"""Vectors from which on a low rank says something: the halves of two people lie nearly on a line by right."""
MAX_TOP_SHARE: Final = 0.9
MIN_AGREEMENT: Final = 0.5
MIN_OVERLAP_RATIO: Final = 1.2
MIN_STABILITY: Final = 0.1
_MANY: Final = 1_000.0


@dataclass(frozen=True)
class Limit:
    """What the gate asks of a figure."""

    code: str
    severity: Severity
    threshold: float
    at: Literal["most", "least"]
    complaint: str
    """What is wrong where it does not hold, in words."""


@dataclass(frozen=True)
class Measure:
    """One figure of a run."""

    area: Literal["lists", "vectors", "halves", "drift"]
    name: str
    unit: Literal["share", "number", "count"]
    value: float
    meaning: str
    """What it says, in words."""
    limit: Limit | None = None
    """None where the gate has none, or had too little to judge by."""
    high: float | None = None
    """The upper 95 % bound of the value: what is judged, where there is one."""

    @property
    def passed(self) -> bool | None:
        """Whether the limit holds; None without one. What is no number does not pass."""
        if self.limit is None:
            return None
        judged = self.value if self.high is None else self.high
        return bool(judged <= self.limit.threshold if self.limit.at == "most" else judged >= self.limit.threshold)


def read_measures(said: list[dict[str, Any]]) -> list[Measure]:
    """Measures from their plain form (``dataclasses.asdict``)."""
    return [Measure(**{**each, "limit": each["limit"] and Limit(**each["limit"])}) for each in said]


def measures(evaluation: Evaluation, config: EvaluateConfig) -> list[Measure]:
    """Vectors, then lists; of lists that are empty only that they are."""
    return [
        *_vectors(evaluation.vectors, "vectors", "the served users"),
        *_vectors(evaluation.pseudo_vectors, "halves", "the held-out halves"),
        *_lists(evaluation.health, config),
    ]


def _vectors(health: VectorHealth, area: Literal["vectors", "halves"], whose: str) -> Iterator[Measure]:
    finite = health.rows - health.not_finite
    said = f"{health.not_finite} of {health.rows} vectors of {whose} hold a value that is no number"
    yield Measure(
        area, "vectors that are no numbers", "count", health.not_finite, "one is enough to spoil a search",
        _broken("VECTORS-NOT-FINITE", 0, "most", said),
    )  # fmt: skip
    if not finite:
        return
    yield Measure(
        area, "largest distance of a length from 1", "number", health.norm_error,
        "all vectors have unit length, so that a dot product is a cosine",
        _broken("VECTORS-NOT-UNIT", MAX_NORM_ERROR, "most", f"vectors of {whose} are not of unit length"),
    )  # fmt: skip
    said = f"vectors of {whose} point into one direction"
    if finite < MIN_RANKED:
        said += f", but {finite} are too few to tell tastes apart: the cause is too little data, not the model"
    yield Measure(
        area, "mean cosine of two users", "number", health.mean_cosine, "1: everybody is the same; 0: spread out",
        _broken("VECTORS-COLLAPSED", MAX_MEAN_COSINE, "most", said) if finite >= 3 else None,
    )  # fmt: skip
    yield Measure(
        area, "effective rank of the vectors", "number", health.effective_rank,
        "in how many directions tastes differ, roughly",
        _broken("VECTORS-LOW-RANK", MIN_EFFECTIVE_RANK, "least", f"vectors of {whose} lie on a line")
        if finite >= MIN_RANKED else None,
    )  # fmt: skip


def _lists(health: Health, config: EvaluateConfig) -> Iterator[Measure]:
    if health.served == 0:
        limit = _broken("LISTS-EMPTY", 1, "least", "no user has a twin list")
        yield Measure("lists", "users with a list", "count", 0, "how many can be shown twins", limit)
        return
    yield from _broken_lists(health)
    yield Measure(
        "lists", "eligible users with a list", "share", health.served / health.users, "how many can be shown twins",
        _refuse("FEW-SERVED", config.min_served, "least", "too few of the eligible users have a list"),
    )  # fmt: skip
    yield Measure(
        "lists", "users in nobody's list", "share", health.never_shown, "nobody will ever be shown to others by this",
        _refuse("MANY-NEVER-SHOWN", config.max_never_shown, "most", "too many users are in no list"),
    )  # fmt: skip
    yield Measure(
        "lists", "Gini of exposure", "number", health.gini, "0: all are shown alike; 1: one user fills every list",
        _refuse("EXPOSURE-UNEQUAL", config.max_gini, "most", "a few users fill most of the lists"),
    )  # fmt: skip
    yield Measure(
        "lists", "skew of exposure", "number", health.skewness, "above 0: some users are near to very many (hubs)"
    )
    yield Measure(
        "lists", "twins who list each other", "share", health.reciprocity, "a likeness that both sides would name"
    )
    yield from _overlap(health, config)
    if health.stability is not None:
        limit = Limit(
            "LISTS-UNSTABLE", "warn", MIN_STABILITY, "least", "hardly anybody keeps a twin of the published run"
        )
        meaning = "1: yesterday's ten first twins; 0: all others"
        yield Measure("lists", "Jaccard@10 with the published lists", "number", health.stability, meaning, limit)


def _broken_lists(health: Health) -> Iterator[Measure]:
    yield Measure(
        "lists", "entries that point at nobody", "count", health.out_of_range, "twins must be users of this run",
        _broken("LISTS-OUT-OF-RANGE", 0, "most", "lists point at users who do not exist"),
    )  # fmt: skip
    yield Measure(
        "lists", "users listed as their own twin", "share", health.self_share, "nobody is shown to themselves",
        _broken("LISTS-SHOW-SELF", 0, "most", "users are listed as their own twins"),
    )  # fmt: skip
    yield Measure(
        "lists", "lists with a repeated twin", "share", health.duplicate_share, "nobody is shown twice in one list",
        _broken("LISTS-REPEAT", 0, "most", "lists show somebody twice"),
    )  # fmt: skip
    yield Measure(
        "lists", f"slots of the {health.k} most shown users", "share", health.top_share,
        "near 100 %: everybody gets the same list",
        _broken("LISTS-CONSTANT", MAX_TOP_SHARE, "most", "everybody gets the same twins")
        if health.users > 2 * health.k else None,
    )  # fmt: skip
    said = "the lists are not the nearest by these vectors: another index, or rows in another order"
    yield Measure(
        "lists", "nearness to the exact nearest", "number", health.agreement,
        "0: as far away as random lists; 1: the nearest by these vectors",
        _broken("LISTS-NOT-NEAREST", MIN_AGREEMENT, "least", said),
    )  # fmt: skip


def _overlap(health: Health, config: EvaluateConfig) -> Iterator[Measure]:
    """Among a few users, ten twins and ten strangers are the same people."""
    if health.users <= 2 * OVERLAP_DEPTH or sum(health.overlap_twins) + sum(health.overlap_random) == 0:
        return
    ratio = bootstrap_ratio(
        np.asarray(health.overlap_twins), np.asarray(health.overlap_random), config.bootstrap, config.seed
    )
    # Where strangers share nothing, there is no ratio to speak of.
    bounds = (ratio.value, ratio.high)
    value, high = (min(float(np.nan_to_num(each, nan=_MANY, posinf=_MANY)), _MANY) for each in bounds)
    said = "twins share no more places than strangers do: lists and histories do not belong together"
    yield Measure(
        "lists", "places shared with twins, over strangers", "number", value,
        "how many times more places twins have in common",
        _refuse("LISTS-UNRELATED", MIN_OVERLAP_RATIO, "least", said), high,
    )  # fmt: skip


def _broken(code: str, threshold: float, at: Literal["most", "least"], complaint: str) -> Limit:
    return Limit(code, "broken", threshold, at, complaint)


def _refuse(code: str, threshold: float, at: Literal["most", "least"], complaint: str) -> Limit:
    return Limit(code, "refuse", threshold, at, complaint)
