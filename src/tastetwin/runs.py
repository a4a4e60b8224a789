"""Runs, and the one pointer to what readers see.

A *run* is one pass over the stages for a logical date, kept as ``runs/<run id>.json``. *Publishing* is one atomic
replacement of ``published.json``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime
from itertools import accumulate, groupby
from typing import Final, Literal

from tastetwin.errors import UsageError
from tastetwin.generations import STAGES, Manifest, Stage, is_finished, read_manifest
from tastetwin.progress import Progress, silent
from tastetwin.store import Store

POINTER: Final = "published.json"

RunStatus = Literal["running", "open", "failed", "interrupted", "refused", "delivered"]
"""``running`` while a process works on it, ``open`` between stages that are carried out one by one."""


@dataclass(frozen=True)
class StageRecord:
    """What a run remembers of one stage."""

    generation: str
    seconds: float
    counts: dict[str, int] = field(default_factory=dict)
    finished_at: str = ""
    """UTC; empty in runs of earlier versions."""


class Reporter:
    """Hears what a job is doing; this one tells nobody."""

    def started(self, stage: Stage) -> Progress:
        """A stage begins; the returned function hears how far it is."""
        return silent

    def finished(self, stage: Stage, record: StageRecord) -> None:
        """A stage ended well."""

    def stop(self) -> None:
        """Nothing more comes, however the job ended."""


@dataclass(frozen=True)
class Run:
    """One pass over the stages for one logical date."""

    run_id: str
    logical_date: str
    status: RunStatus
    started_at: str
    stages: dict[str, StageRecord] = field(default_factory=dict)
    error: str | None = None
    findings: list[str] = field(default_factory=list)

    def generation(self, stage: Stage) -> str:
        """The generation a stage of this run made.

        Raises:
            UsageError: STAGE-MISSING when the stage has not run yet.
        """
        if stage not in self.stages:
            first = next(each for each in STAGES if each not in self.stages)
            source = " --source DIR" if first == "collect" else ""
            raise UsageError(
                "STAGE-MISSING",
                place=f"run {self.run_id}",
                value=f"no '{stage}' yet",
                rule="stages run in order: " + ", ".join(STAGES),
                fix=f"tastetwin {first}{source} --store ... --date {self.logical_date}",
            )
        return self.stages[stage].generation


@dataclass(frozen=True)
class Published:
    """The pointer: which run readers see, and which they saw before (latest last)."""

    run_id: str
    published_at: str
    previous: list[str]


def parse_date(text: str) -> date:
    """A logical date.

    Raises:
        UsageError: BAD-DATE when it is no ISO date; FUTURE-DATE when that day has not begun anywhere on earth.
    """
    try:
        day = date.fromisoformat(text)
    except ValueError as error:
        raise UsageError("BAD-DATE", place="--date", value=text, rule="an ISO date", fix="e.g. 2026-11-22") from error
    if (day - datetime.now(UTC).date()).days > 1:
        raise UsageError(
            "FUTURE-DATE", place="--date", value=text, rule="a logical date is over or running", fix="give a past day"
        )
    return day


_RUN_ID = re.compile(r"\d{4}-\d{2}-\d{2}\.(\d+)")


def list_runs(store: Store) -> list[Run]:
    """Every run, oldest first; those of a logical date as they were numbered, whatever the clock said."""
    ids = [name.removesuffix(".json") for name in store.names("runs") if name.endswith(".json")]
    known = [read_run(store, run_id) for run_id in ids if _RUN_ID.fullmatch(run_id)]
    runs = sorted(known, key=lambda run: (run.logical_date, _sequence(run.run_id)))
    days = (list(same) for _, same in groupby(runs, key=lambda run: run.logical_date))
    # A clock that was set back must not put a run before those that it came after.
    started = [at for day in days for at in accumulate((run.started_at for run in day), max)]
    return [run for _, run in sorted(zip(started, runs, strict=True), key=lambda pair: pair[0])]


def _sequence(run_id: str) -> int:
    return int(run_id.rsplit(".", 1)[1])


def read_run(store: Store, run_id: str) -> Run:
    """One run.

    Raises:
        UsageError: UNKNOWN-RUN when there is none of that id.
        StoreError: DAMAGED when its record cannot be read.
    """
    relative = f"runs/{run_id}.json"
    if not _RUN_ID.fullmatch(run_id) or not store.exists(relative):
        raise UsageError(
            "UNKNOWN-RUN", place=store.url(""), value=run_id, rule="a run id of this store", fix="see: tastetwin runs"
        )
    raw = store.read_json(relative)
    try:
        stages = {name: StageRecord(**record) for name, record in raw.pop("stages").items()}
        return Run(stages=stages, **raw)
    except (KeyError, TypeError, AttributeError) as error:
        raise store.damaged(relative, str(error)) from error


def write_run(store: Store, run: Run) -> Run:
    """Keep a run's record."""
    store.write_json(f"runs/{run.run_id}.json", asdict(run))
    return run


def new_run(store: Store, day: date, stages: dict[str, StageRecord] | None = None) -> Run:
    """Begin a run, with the ``stages`` that another one has done: ids count up within a date (``2026-11-22.1``)."""
    taken = [run_id for name in store.names("runs") if (run_id := name.removesuffix(".json")).startswith(f"{day}.")]
    number = 1 + max((_sequence(run_id) for run_id in taken if _RUN_ID.fullmatch(run_id)), default=0)
    started = datetime.now(UTC).isoformat(timespec="microseconds")
    return write_run(store, Run(f"{day}.{number}", day.isoformat(), "running", started, stages or {}))


def latest_run(store: Store, day: date | None = None) -> Run:
    """The newest run (of a logical date).

    Raises:
        UsageError: NO-RUN when there is none.
    """
    runs = [run for run in list_runs(store) if day is None or run.logical_date == day.isoformat()]
    if not runs:
        raise UsageError(
            "NO-RUN",
            place=store.url(""),
            value=f"no run of {day}" if day else "no run yet",
            rule="a run begins with 'collect'",
            fix="tastetwin collect --source DIR --store " + store.url(""),
        )
    return runs[-1]


def record_stage(store: Store, run: Run, stage: Stage, record: StageRecord) -> Run:
    """Note a finished stage; what later stages had made from older input no longer belongs to the run."""
    later = set(STAGES[STAGES.index(stage) :])
    kept = {name: known for name, known in run.stages.items() if name not in later}
    return write_run(store, replace(run, status="running", error=None, stages={**kept, stage: record}))


def close_dead(store: Store) -> list[Run]:
    """Mark runs that still read ``running`` as interrupted: their process was killed; returns them.

    Only for who holds the store (``Store.writing``): then nobody else is running. A store that is not local has no such
    lock, and there nothing is marked.
    """
    left = [run for run in list_runs(store) if run.status == "running"] if store.is_local else []
    said = "the process ended without a word (killed, or the machine went down); the same command goes on from there"
    return [write_run(store, replace(run, status="interrupted", error=said)) for run in left]


def kept_manifest(store: Store, run: Run, stage: Stage) -> Manifest | None:
    """What a stage of a run made; None before, and once it was pruned."""
    if stage not in run.stages or not is_finished(store, stage, run.generation(stage)):
        return None
    return read_manifest(store, stage, run.generation(stage))


def funnel(run: Run) -> dict[str, int]:
    """What became of lines and users in a run: the counts of its stages under their names."""
    return {name: count for record in run.stages.values() for name, count in record.counts.items()}


# -- the pointer ----------------------------------------------------------------------------------------------------


def published(store: Store) -> Published | None:
    """What readers see now; None before the first publication.

    Raises:
        StoreError: DAMAGED when the pointer cannot be read.
    """
    if not store.exists(POINTER):
        return None
    try:
        return Published(**store.read_json(POINTER))
    except TypeError as error:
        raise store.damaged(POINTER, str(error)) from error


def published_run(store: Store) -> Run:
    """The run readers see.

    Raises:
        UsageError: NOT-PUBLISHED when nothing is published yet.
    """
    pointer = published(store)
    if pointer is None:
        raise UsageError(
            "NOT-PUBLISHED",
            place=store.url(""),
            value=_why_nothing(store),
            rule="a run is published by 'deliver'",
            fix="tastetwin run --source DIR --store " + store.url(""),
        )
    return read_run(store, pointer.run_id)


def _why_nothing(store: Store) -> str:
    """What became of the last run of a store in which nothing is published."""
    known = list_runs(store)
    if not known:
        return "no run yet, so none is published"
    said = f": {known[-1].error}" if known[-1].error else ""
    return f"no run is published yet; the last, {known[-1].run_id}, is {known[-1].status}{said}"


def published_or_none(store: Store) -> Run | None:
    """The run readers see, or None before the first publication."""
    return published_run(store) if published(store) is not None else None


def publish(store: Store, run_id: str) -> Published:
    """Point readers at a run; publishing what is already published changes nothing."""
    now = published(store)
    if now is not None and now.run_id == run_id:
        return now
    before = [] if now is None else [*(past for past in now.previous if past != run_id), now.run_id]
    return _point(store, Published(run_id, datetime.now(UTC).isoformat(timespec="seconds"), before[-50:]))


def rollback(store: Store, usable: Callable[[str], bool]) -> Published:
    """Point readers at the latest earlier run that is still ``usable``.

    Raises:
        UsageError: NO-PREVIOUS when there is none.
    """
    now = published(store)
    previous = [] if now is None else now.previous
    for place in range(len(previous) - 1, -1, -1):
        if usable(previous[place]):
            at = datetime.now(UTC).isoformat(timespec="seconds")
            return _point(store, Published(previous[place], at, previous[:place]))
    raise UsageError(
        "NO-PREVIOUS",
        place=store.url(""),
        value="nothing to go back to",
        rule="an earlier published run is still kept",
        fix="see: tastetwin runs, and promote a delivered one",
    )


def _point(store: Store, pointer: Published) -> Published:
    store.write_json(POINTER, asdict(pointer))
    return pointer
