"""The gate: may this run be published?

Three severities. *broken*: no one may see these lists (not numbers, collapsed, empty, everyone gets the same).
*refuse*: worse than the published run or the baselines, or unhealthy; on a first run, when nothing is published yet,
the same finding is a warning, so that a newcomer sees a result. *warn*: worth a look.

Quality is judged by the paired bootstrap interval, not by the point: a run is refused when even the upper 95 % bound of
its ratio lies below the threshold, so that an equal retrain is blocked at most 1 time in 20 and a clearly worse one
always.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from tastetwin.config import EvaluateConfig
from tastetwin.errors import GateRefused
from tastetwin.evaluation.health import OVERLAP_DEPTH
from tastetwin.evaluation.metrics import Interval, bootstrap_ratio, reciprocal
from tastetwin.evaluation.records import PUBLISHED, TASKS, Evaluation, MethodScore, Task, VectorHealth

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
MIN_HELD_OUT: Final = 30
MIN_COMMON_HELD_OUT: Final = 0.5


@dataclass(frozen=True)
class Finding:
    """One thing the gate does not like."""

    code: str
    severity: Severity
    measured: float
    threshold: float
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """The gate's answer."""

    publish: bool
    first_run: bool
    findings: list[Finding]
    """The gravest first."""

    def require(self, place: str) -> None:
        """Stop a run that must not be published; ``place`` names it.

        Raises:
            GateRefused: GATE-BROKEN or GATE-REFUSED, with every finding that stopped it.
        """
        if self.publish:
            return
        stopping = [f for f in self.findings if f.severity != "warn"]
        raise GateRefused(
            "GATE-BROKEN" if stopping[0].severity == "broken" else "GATE-REFUSED",
            place=place,
            value="; ".join(f"{f.code}: {f.sentence}" for f in stopping),
            rule="the published run stays as it is",
            fix="read the run's report, then mend the cause or change the threshold under `evaluate`",
        )


def judge(
    evaluation: Evaluation, published: Evaluation | None, config: EvaluateConfig, besides: Iterable[Finding] = ()
) -> Verdict:
    """Weigh a run against the published one (None on a first run), its baselines and the thresholds of ``config``.

    ``besides`` are findings that need more than evaluations, such as ``older_than``.
    """
    findings = [
        *besides,
        *_vectors(evaluation.vectors, "the served users"),
        *_vectors(evaluation.pseudo_vectors, "the held-out halves"),
        *_lists(evaluation, config),
        *_against_baselines(evaluation, config),
        *(_against_published(evaluation, published, config) if published else ()),
    ]
    if published is None:
        findings = [replace(f, severity="warn") if f.severity == "refuse" else f for f in findings]
    order = {"broken": 0, "refuse": 1, "warn": 2}
    findings.sort(key=lambda f: order[f.severity])
    return Verdict(all(f.severity == "warn" for f in findings), published is None, findings)


def ratio_to_best_baseline(evaluation: Evaluation, config: EvaluateConfig, task: Task = "disjoint") -> Interval | None:
    """The model's MRR over the best baseline's on the same users; None without either."""
    model, rival = evaluation.model(task), evaluation.best_baseline(task)
    return None if model is None or rival is None else _ratio(model, rival, config)


def ratio_to_published(
    evaluation: Evaluation, published: Evaluation, config: EvaluateConfig, task: Task = "disjoint"
) -> Interval | None:
    """This model's MRR over the published model's, both asked today, on the users that neither has seen.

    None when the published model was not asked, or too few users were held out in both runs.
    """
    ours, theirs = evaluation.model(task), evaluation.of(task, PUBLISHED)
    unseen = np.isin(evaluation.users, published.users)
    if ours is None or theirs is None or evaluation.split != published.split or unseen.sum() < MIN_HELD_OUT:
        return None
    now, before = reciprocal(ours.rank_array()[unseen]), reciprocal(theirs.rank_array()[unseen])
    return bootstrap_ratio(now, before, config.bootstrap, config.seed)


def _ratio(model: MethodScore, rival: MethodScore, config: EvaluateConfig) -> Interval:
    ours, theirs = reciprocal(model.rank_array()), reciprocal(rival.rank_array())
    return bootstrap_ratio(ours, theirs, config.bootstrap, config.seed)


def _vectors(health: VectorHealth, whose: str) -> Iterator[Finding]:
    if health.not_finite:
        sentence = f"{health.not_finite} of {health.rows} vectors of {whose} hold a value that is no number"
        yield Finding("VECTORS-NOT-FINITE", "broken", health.not_finite, 0, sentence)
    if health.rows == health.not_finite:
        return
    if health.norm_error > MAX_NORM_ERROR:
        sentence = f"vectors of {whose} are not of unit length"
        yield Finding("VECTORS-NOT-UNIT", "broken", health.norm_error, MAX_NORM_ERROR, sentence)
    finite = health.rows - health.not_finite
    if finite < 3:
        return
    if health.mean_cosine > MAX_MEAN_COSINE:
        sentence = f"vectors of {whose} point into one direction"
        if finite < MIN_RANKED:
            sentence += f", but {finite} are too few to tell tastes apart: the cause is too little data, not the model"
        yield Finding("VECTORS-COLLAPSED", "broken", health.mean_cosine, MAX_MEAN_COSINE, sentence)
    if finite >= MIN_RANKED and health.effective_rank < MIN_EFFECTIVE_RANK:
        sentence = f"vectors of {whose} lie on a line"
        yield Finding("VECTORS-LOW-RANK", "broken", health.effective_rank, MIN_EFFECTIVE_RANK, sentence)


def _lists(evaluation: Evaluation, config: EvaluateConfig) -> Iterator[Finding]:
    health = evaluation.health
    if health.served == 0:
        yield Finding("LISTS-EMPTY", "broken", 0, 1, "no user has a twin list")
        return
    yield from _broken_lists(evaluation)
    served = health.served / health.users
    if served < config.min_served:
        yield _refuse("FEW-SERVED", served, config.min_served, "too few of the eligible users have a list")
    if health.never_shown > config.max_never_shown:
        yield _refuse("MANY-NEVER-SHOWN", health.never_shown, config.max_never_shown, "too many users are in no list")
    if health.gini > config.max_gini:
        yield _refuse("EXPOSURE-UNEQUAL", health.gini, config.max_gini, "a few users fill most of the lists")
    # Among so few users, ten twins and ten strangers are the same people.
    if health.users > 2 * OVERLAP_DEPTH and sum(health.overlap_twins) + sum(health.overlap_random) > 0:
        twins, strangers = np.asarray(health.overlap_twins), np.asarray(health.overlap_random)
        ratio = bootstrap_ratio(twins, strangers, config.bootstrap, config.seed)
        if ratio.high < MIN_OVERLAP_RATIO:
            sentence = "twins share no more places than strangers do: lists and histories do not belong together"
            yield _refuse("LISTS-UNRELATED", ratio.value, MIN_OVERLAP_RATIO, sentence)
    if health.stability is not None and health.stability < MIN_STABILITY:
        sentence = "hardly anybody keeps a twin of the published run"
        yield Finding("LISTS-UNSTABLE", "warn", health.stability, MIN_STABILITY, sentence)


def _broken_lists(evaluation: Evaluation) -> Iterator[Finding]:
    health = evaluation.health
    if health.out_of_range:
        yield Finding("LISTS-OUT-OF-RANGE", "broken", health.out_of_range, 0, "lists point at users who do not exist")
    if health.self_share > 0:
        yield Finding("LISTS-SHOW-SELF", "broken", health.self_share, 0, "users are listed as their own twins")
    if health.duplicate_share > 0:
        yield Finding("LISTS-REPEAT", "broken", health.duplicate_share, 0, "lists show somebody twice")
    if health.users > 2 * health.k and health.top_share > MAX_TOP_SHARE:
        yield Finding("LISTS-CONSTANT", "broken", health.top_share, MAX_TOP_SHARE, "everybody gets the same twins")
    if health.agreement < MIN_AGREEMENT:
        sentence = "the lists are not the nearest by these vectors: another index, or rows in another order"
        yield Finding("LISTS-NOT-NEAREST", "broken", health.agreement, MIN_AGREEMENT, sentence)


def _against_baselines(evaluation: Evaluation, config: EvaluateConfig) -> Iterator[Finding]:
    if len(evaluation.users) < MIN_HELD_OUT:
        sentence = "too few users could be held out to measure quality"
        yield Finding("FEW-HELD-OUT", "warn", len(evaluation.users), MIN_HELD_OUT, sentence)
        return
    for task in TASKS:
        ratio, rival = ratio_to_best_baseline(evaluation, config, task), evaluation.best_baseline(task)
        if ratio is not None and rival is not None and ratio.high < config.min_ratio_to_baseline:
            sentence = f"{task} twin MRR is below the baseline '{rival.method}' ({_spoken(ratio)})"
            yield _refuse("WORSE-THAN-BASELINE", ratio.value, config.min_ratio_to_baseline, sentence)


def _against_published(evaluation: Evaluation, published: Evaluation, config: EvaluateConfig) -> Iterator[Finding]:
    yield from _fewer_users(evaluation, published, config)
    if evaluation.split != published.split:
        sentence = "users were held out by another rule than in the published run: quality cannot be compared"
        yield Finding("NOT-COMPARABLE", "warn", 0, 1, sentence)
        return
    common = len(set(evaluation.users) & set(published.users)) / max(1, len(published.users))
    if published.users and common < MIN_COMMON_HELD_OUT:
        sentence = "most held-out users of the published run are gone"
        yield _refuse("HELD-OUT-LOST", common, MIN_COMMON_HELD_OUT, sentence)
    if ratio_to_published(evaluation, published, config) is None and published.users and evaluation.users:
        sentence = "too few users were held out in both runs to compare the two models"
        yield Finding(
            "NOT-COMPARABLE", "warn", len(set(evaluation.users) & set(published.users)), MIN_HELD_OUT, sentence
        )
    for task in TASKS:
        ratio = ratio_to_published(evaluation, published, config, task)
        if ratio is not None and ratio.high < config.min_ratio_to_published:
            sentence = f"{task} twin MRR is below the published model's on the same users ({_spoken(ratio)})"
            yield _refuse("WORSE-THAN-PUBLISHED", ratio.value, config.min_ratio_to_published, sentence)


def older_than(published_date: str, logical_date: str) -> Iterator[Finding]:
    """A day from the past must not take the place of a later one by itself; ISO dates."""
    if logical_date < published_date:
        yield _refuse("STALE-DAY", 0, 0, f"{logical_date} is before the published run's {published_date}")


def _fewer_users(evaluation: Evaluation, published: Evaluation, config: EvaluateConfig) -> Iterator[Finding]:
    counts = (
        ("users in the lists", evaluation.health.users, published.health.users),
        ("training users", evaluation.train_users, published.train_users),
    )
    for name, now, before in counts:
        ratio = now / max(1, before)
        if ratio < config.min_users_to_published:
            sentence = f"{now} {name}, {before} in the published run"
            yield _refuse("FEWER-USERS", ratio, config.min_users_to_published, sentence)


def _refuse(code: str, measured: float, threshold: float, sentence: str) -> Finding:
    return Finding(code, "refuse", float(measured), float(threshold), sentence)


def _spoken(ratio: Interval) -> str:
    return f"ratio {ratio.value:.2f}, 95 % interval {ratio.low:.2f} to {ratio.high:.2f}"
