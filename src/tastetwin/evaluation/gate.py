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
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from tastetwin.config import EvaluateConfig
from tastetwin.errors import GateRefused
from tastetwin.evaluation.measures import Measure, Severity, measures
from tastetwin.evaluation.metrics import Interval, bootstrap_ratio, reciprocal
from tastetwin.evaluation.records import PUBLISHED, TASKS, Evaluation, MethodScore, Task

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
    measures: list[Measure] = field(default_factory=list)
    """The health card; those that do not pass are among the findings. Empty in runs of earlier versions."""

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
    evaluation: Evaluation,
    published: Evaluation | None,
    config: EvaluateConfig,
    besides: Iterable[Finding] = (),
    drift: Iterable[Measure] = (),
) -> Verdict:
    """Weigh a run against the published one (None on a first run), its baselines and the thresholds of ``config``.

    ``besides`` are findings, and ``drift`` measures, that need more than evaluations, such as ``older_than``.
    """
    card = [*measures(evaluation, config), *drift]
    findings = [
        *besides,
        *(finding for each in card for finding in _failed(each)),
        *_against_baselines(evaluation, config),
        *(_against_published(evaluation, published, config) if published else ()),
    ]
    if published is None:
        findings = [replace(f, severity="warn") if f.severity == "refuse" else f for f in findings]
    order = {"broken": 0, "refuse": 1, "warn": 2}
    findings.sort(key=lambda f: order[f.severity])
    return Verdict(all(f.severity == "warn" for f in findings), published is None, findings, card)


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


def _failed(measure: Measure) -> Iterator[Finding]:
    limit = measure.limit
    if limit is not None and not measure.passed:
        yield Finding(limit.code, limit.severity, float(measure.value), float(limit.threshold), limit.complaint)


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
