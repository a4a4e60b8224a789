"""What trackers are told of a bundle and of its evaluation, as plain names and numbers."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tastetwin.generations import Manifest
from tastetwin.model.pace import schedule

if TYPE_CHECKING:
    from tastetwin.evaluation.gate import Verdict
    from tastetwin.evaluation.metrics import Interval
    from tastetwin.evaluation.records import Evaluation

LOSS: Final = "train/loss"
RATE: Final = "train/learning_rate"
USERS_PER_SECOND: Final = "train/users_per_second"
SECONDS: Final = "train/seconds"
"""That the steps took which one process did."""
PUBLISH: Final = "gate/publish"


@dataclass(frozen=True)
class Point:
    """A value at a step of training; steps count from 1."""

    name: str
    step: int
    value: float


def parameters(bundle: Manifest) -> dict[str, str]:
    """What a bundle was made from and with: its settings, data, code and seed."""
    code = bundle.provenance.get("code", {})
    said = {
        "bundle": bundle.generation,
        "sha256": bundle.digest(),
        "data": bundle.parents["features"],
        "data_sha256": bundle.provenance.get("parents", {}).get("features"),
        "learnt_in_full_on": bundle.facts["full_training"]["on"],
        "code.version": bundle.code_version,
        "code.commit": code.get("commit"),
        "code.sources": code.get("sources"),
    }
    return {name: str(value) for name, value in {**said, **_flat(bundle.settings)}.items()}


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        inner = _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
        found |= inner
    return found


def curve(bundle: Manifest, record: dict[str, Any], most: int) -> Iterator[Point]:
    """Loss and learning rate of a training, at ``most`` steps of it or fewer; empty where weights were carried on.

    ``record`` is the bundle's. Steps that were skipped have no loss, and are not counted.
    """
    losses, peak = record["losses"], bundle.settings["train"]["learning_rate"]
    total = len(losses) + record["skipped_steps"]
    for step in range(0, len(losses), max(1, math.ceil(len(losses) / most))):
        yield Point(LOSS, step + 1, losses[step])
        yield Point(RATE, step + 1, peak * schedule(step, total))


def training(record: dict[str, Any]) -> dict[str, float]:
    """How a training went; ``record`` is its bundle's."""
    counts = {name: record[name] for name in ("training_users", "validation_users", "skipped_steps", "rollbacks")}
    return _finite(
        {
            **{f"train/{name}": value for name, value in counts.items()},
            **{f"validation/mrr/{_name(name)}": value for name, value in record["validation_mrr"].items()},
        }
    )


def judgement(evaluation: Evaluation, verdict: Verdict) -> dict[str, float]:
    """Every figure of the report, with its 95 % interval where it has one, and what the gate makes of them."""
    severities = Counter(finding.severity for finding in verdict.findings)
    return _finite(
        {
            **_intervals(_scores(evaluation)),
            **_intervals(_buckets(evaluation)),
            **_card(verdict),
            PUBLISH: float(verdict.publish),
            **{f"gate/{severity}": float(severities[severity]) for severity in ("broken", "refuse", "warn")},
        }
    )


def _scores(evaluation: Evaluation) -> Iterator[tuple[str, Interval]]:
    for score in evaluation.scores:
        name = f"{score.task}/{_name(score.method)}{'' if score.csls else '/plain'}"
        yield from ((f"{name}/{each}", getattr(score, each)) for each in ("mrr", "recall_10", "recall_100"))


def _buckets(evaluation: Evaluation) -> Iterator[tuple[str, Interval]]:
    for bucket in evaluation.buckets:
        name = f"{bucket.kind}/{_name(bucket.name)}"
        yield from ((f"{name}/model/mrr", bucket.model), (f"{name}/best_baseline/mrr", bucket.baseline))


def _card(verdict: Verdict) -> dict[str, float]:
    found: dict[str, float] = {}
    for measure in verdict.measures:
        name = f"health/{measure.area}/{_name(measure.name)}"
        found[name] = measure.value
        if measure.limit is not None:
            found[f"{name}/limit"], found[f"{name}/passed"] = measure.limit.threshold, float(bool(measure.passed))
    return found


def _intervals(named: Iterable[tuple[str, Interval]]) -> dict[str, float]:
    return {
        f"{name}{end}": value
        for name, found in named
        for end, value in (("", found.value), ("/low", found.low), ("/high", found.high))
    }


def _finite(values: dict[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def _name(text: str) -> str:
    """As both trackers take it."""
    return re.sub(r"[^\w.-]+", "_", text).strip("_.")[:60]
