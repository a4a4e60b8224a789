"""What runs have come to, as Prometheus reads it: for node exporter's textfile collector, or a push gateway.

Moments are told, not ages: a file stays true while it lies there. ``run`` is ``published``, the one that readers see,
or ``newest``, whatever became of it. No label holds an id of a user or place.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Final, get_args

from tastetwin.errors import MissingExtra
from tastetwin.evaluation.measures import Measure
from tastetwin.evaluation.stage import verdict_of
from tastetwin.generations import STAGES, Manifest
from tastetwin.privacy.opt_out import read_opt_outs
from tastetwin.runs import Run, RunStatus, StageRecord, kept_manifest, list_runs, published
from tastetwin.store import Store

try:
    from prometheus_client import CollectorRegistry, Metric, generate_latest
    from prometheus_client.core import GaugeMetricFamily
    from prometheus_client.registry import Collector
except ImportError as error:
    raise MissingExtra.of("prometheus_client", "serve") from error

STATES: Final[tuple[RunStatus, ...]] = get_args(RunStatus)
SEVERITIES: Final = ("broken", "refuse", "warn")
Samples = Iterable[tuple[Sequence[str], float]]
"""Values of labels, and the value."""
Named = list[tuple[str, Run]]
"""``published`` and ``newest``, as far as there are such runs."""


def run_metrics(store: Store) -> bytes:
    """The text format of Prometheus, UTF-8.

    Raises:
        StoreError: DAMAGED, OPT-OUTS-DAMAGED, STORE-UNREADABLE.
    """
    registry = CollectorRegistry()
    registry.register(_Runs(store))
    return generate_latest(registry)


class _Runs(Collector):
    def __init__(self, store: Store) -> None:
        self._store = store

    def describe(self) -> list[Metric]:
        """Nothing is read before it is asked for."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Everything."""
        runs, pointer = list_runs(self._store), published(self._store)
        named = [("published", run) for run in runs if pointer is not None and run.run_id == pointer.run_id]
        named += [("newest", run) for run in runs[-1:]]
        yield _gauge("metrics_timestamp_seconds", "When this was written.", [], [((), datetime.now(UTC).timestamp())])
        if pointer is not None:
            at = _moment(pointer.published_at)
            yield _gauge("published_timestamp_seconds", "When readers got the run that they see.", [], [((), at)])
        yield from _records(named)
        yield from _stages(runs)
        yield from _judged([(name, m) for name, run in named if (m := kept_manifest(self._store, run, "evaluate"))])
        yield from _sizes(self._store, named)
        yield _gauge("opt_outs", "Users who have opted out.", [], [((), len(read_opt_outs(self._store).names))])


def _gauge(name: str, said: str, labels: Sequence[str], samples: Samples) -> Metric:
    family = GaugeMetricFamily(f"tastetwin_{name}", said, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _records(named: Named) -> Iterator[Metric]:
    """What the runs' own records say."""
    info = [((name, run.run_id, run.logical_date), 1) for name, run in named]
    yield _gauge("run_info", "Which run it is.", ["run", "run_id", "logical_date"], info)
    states = [((name, each), float(run.status == each)) for name, run in named for each in STATES]
    yield _gauge("run_status", "1 for the status that the run has.", ["run", "status"], states)
    started = [([name], _moment(run.started_at)) for name, run in named]
    yield _gauge("run_started_timestamp_seconds", "When it began.", ["run"], started)
    until = [([name], _end_of(run.logical_date)) for name, run in named]
    yield _gauge(
        "run_data_until_timestamp_seconds", "End of its logical date: what came later is not in it.", ["run"], until
    )
    steps, refused = [], []
    for name, run in named:
        for stage, record in run.stages.items():
            for count, n in record.counts.items():
                step, _, reason = count.partition(".")
                if not reason:
                    steps.append(((name, stage, step), n))
                elif step == "quarantined":
                    refused.append(((name, reason), n))
    yield _gauge("run_funnel", "What a stage counted: lines, favors, users, lists.", ["run", "stage", "step"], steps)
    yield _gauge("run_quarantined_lines", "Lines refused, by reason.", ["run", "reason"], refused)


def _end_of(day: str) -> float:
    return datetime.combine(date.fromisoformat(day) + timedelta(days=1), time(), UTC).timestamp()


def _stages(runs: list[Run]) -> Iterator[Metric]:
    """Of each stage its last success, in whatever run."""
    last: dict[str, StageRecord] = {}
    for run in runs:
        for stage, record in run.stages.items():
            if record.finished_at >= (last[stage].finished_at if stage in last else ""):
                last[stage] = record
    done = [([stage], _moment(each.finished_at)) for stage, each in last.items() if each.finished_at]
    yield _gauge("run_stage_success_timestamp_seconds", "When the stage last ended well.", ["stage"], done)
    took = [([stage], each.seconds) for stage, each in last.items()]
    yield _gauge("run_stage_seconds", "How long it took then.", ["stage"], took)


def _judged(judged: list[tuple[str, Manifest]]) -> Iterator[Metric]:
    """What evaluation and gate said."""
    verdicts = [(name, verdict_of(manifest)) for name, manifest in judged]
    passed = [([name], float(verdict.publish)) for name, verdict in verdicts]
    yield _gauge("run_gate_passed", "Whether the gate lets it be published.", ["run"], passed)
    found = [
        ((name, each), sum(finding.severity == each for finding in verdict.findings))
        for name, verdict in verdicts
        for each in SEVERITIES
    ]
    yield _gauge("run_gate_findings", "What the gate does not like.", ["run", "severity"], found)
    yield from _card([(name, each) for name, verdict in verdicts for each in verdict.measures])
    labels = ["run", "task", "method", "csls"]
    quality = [(name, each) for name, manifest in judged for each in manifest.facts.get("quality", [])]
    mrr = [
        ((name, each["task"], each["method"], str(each["csls"]).lower()), each["mrr"]["value"])
        for name, each in quality
    ]
    yield _gauge("run_mrr_ratio", "Mean reciprocal rank of the true twin of held-out users.", labels, mrr)


def _card(card: list[tuple[str, Measure]]) -> Iterator[Metric]:
    """Measures with their limits; what is judged is the upper bound, where a measure has one."""
    labels = ["run", "area", "measure"]
    limits = [((name, each.area, each.name), each.limit) for name, each in card]
    values = [((name, each.area, each.name), each.value) for name, each in card]
    yield _gauge("run_measure", "Figures of the health card.", labels, values)
    bounds = [((*where, limit.at), limit.threshold) for where, limit in limits if limit]
    yield _gauge("run_measure_limit", "What the gate asks of them: at most, or at least.", [*labels, "at"], bounds)
    passed = [((name, each.area, each.name), float(each.passed)) for name, each in card if each.passed is not None]
    yield _gauge("run_measure_passed", "Whether the limit holds.", labels, passed)


def _sizes(store: Store, named: Named) -> Iterator[Metric]:
    """By manifests, so that it costs the same however much there is."""
    sizes = []
    for name, run in named:
        for stage in STAGES:
            if manifest := kept_manifest(store, run, stage):
                files = {entry.path: entry.bytes for entries in manifest.tables.values() for entry in entries}
                sizes.append(((name, stage), sum(files.values())))
    yield _gauge(
        "run_bytes", "Files of a stage's output, of those that earlier days left too.", ["run", "stage"], sizes
    )
    if store.is_local:
        usage = shutil.disk_usage(store.root)
        yield _gauge("store_free_bytes", "Left on the store's disk.", [], [((), usage.free)])
        yield _gauge("store_capacity_bytes", "Of the store's disk.", [], [((), usage.total)])
