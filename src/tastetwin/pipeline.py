"""The daily job: which stage follows which, what each gets, and what a run remembers of it.

Stages are plain functions of earlier generations; this file only orders them. Nothing here computes.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Final

from structlog.contextvars import bind_contextvars

from tastetwin.config import Config
from tastetwin.engine import Engine, connect
from tastetwin.errors import GateRefused, StoreError, TasteTwinError
from tastetwin.generations import STAGES, Manifest, Stage, is_finished, is_whole, read_manifest, verify
from tastetwin.privacy.opt_out import read_opt_outs
from tastetwin.progress import Progress
from tastetwin.runs import (
    Reporter,
    Run,
    RunStatus,
    StageRecord,
    close_dead,
    latest_run,
    list_runs,
    new_run,
    published,
    published_or_none,
    record_stage,
    write_run,
)
from tastetwin.store import Store
from tastetwin.tracking.tell import Tracking, require


class Job:
    """One run in progress."""

    def __init__(self, store: Store, config: Config, run: Run, *, again: bool, reporter: Reporter) -> None:
        self.store = store
        self.config = config
        self.run = run
        self.again = again
        self.reporter = reporter
        self.tracking = Tracking(store, config)

    @functools.cached_property
    def engine(self) -> Engine:
        """Connected at first use."""
        return connect(self.config.engine.remote, self.config.engine.partitions)

    def leave_engine(self) -> None:
        """End the session, if there is one: a server ends one that is idle for as long as a training may take."""
        engine = self.__dict__.pop("engine", None)
        if engine is not None:
            engine.close()

    def manifest(self, stage: Stage) -> Manifest:
        """What a stage of this run made."""
        return read_manifest(self.store, stage, self.run.generation(stage))

    def earlier(self, stage: Stage) -> Manifest | None:
        """What that stage made for the latest earlier logical date; None where there is no earlier date.

        Raises:
            StoreError: PAST-GONE when it was pruned: going on without it would lose everything before this day.
        """
        known = [run for run in list_runs(self.store) if run.logical_date < self.run.logical_date]
        latest = max((run.logical_date for run in known if stage in run.stages), default=None)
        if latest is None:
            return None
        made = [run.stages[stage].generation for run in known if run.logical_date == latest and stage in run.stages]
        for generation in reversed(made):
            if is_finished(self.store, stage, generation):
                manifest = read_manifest(self.store, stage, generation)
                if is_whole(self.store, manifest):
                    return manifest
        raise StoreError(
            "PAST-GONE",
            place=f"{stage} of {latest}",
            value="no longer kept",
            rule=f"a day goes on from the '{stage}' of the latest earlier day (deliver.keep_runs are kept)",
            fix=f"run {latest} again first, or use another store",
        )

    def do(self, stage: Stage, work: Callable[[Progress], Manifest]) -> None:
        """Carry out a stage and note it in the run's record."""
        bind_contextvars(stage=stage)
        began = time.monotonic()
        manifest = work(self.reporter.started(stage))
        seconds = round(time.monotonic() - began, 3)
        at = datetime.now(UTC).isoformat(timespec="seconds")
        record = StageRecord(manifest.generation, seconds, manifest.facts.get("counts", {}), at)
        self.run = record_stage(self.store, self.run, stage, record)
        self.reporter.finished(stage, record)

    def tell(self, stage: Stage, told: Callable[[], None]) -> None:
        """Tell the trackers of a stage that is done; the run's record counts who was not reached."""
        told()
        if self.tracking.lost:
            known = self.run.stages[stage]
            counted = replace(known, counts={**known.counts, "untracked": self.tracking.lost})
            self.run = write_run(self.store, replace(self.run, stages={**self.run.stages, stage: counted}))
            self.tracking.lost = 0


def collect(job: Job, source: str) -> None:
    """Land the source's raw events of the day in the lake."""
    from tastetwin.sources.collect import collect as land

    day = date.fromisoformat(job.run.logical_date)
    settings = job.config.collect
    job.do("collect", lambda tell: land(job.store, source, day, again=job.again, config=settings, progress=tell))


def mart(job: Job) -> None:
    """Clean the lake's lines into the data mart."""
    from tastetwin.mart.stage import build_mart

    lake, earlier = job.manifest("collect"), job.earlier("mart")
    job.do(
        "mart",
        lambda tell: build_mart(job.engine, job.store, lake, earlier, job.config, again=job.again, progress=tell),
    )


def features(job: Job) -> None:
    """Build user_favor, place, the vocabulary and the taste histories."""
    from tastetwin.features.stage import build_features

    cleansed, earlier = job.manifest("mart"), job.earlier("features")
    job.do(
        "features",
        lambda tell: build_features(
            job.engine, job.store, cleansed, earlier, job.config, again=job.again, progress=tell
        ),
    )


def train(job: Job) -> None:
    """Fit the encoder and write the bundle."""
    from tastetwin.model.stage import train_bundle

    job.leave_engine()
    made, past = job.manifest("features"), past_bundle(job.store, job.run.logical_date)
    with job.tracking.watch(job.run) as watch:
        job.do(
            "train",
            lambda tell: train_bundle(
                job.store, made, job.config, past=past, again=job.again, progress=tell, watch=watch
            ),
        )
    job.tell("train", lambda: job.tracking.trained(job.run))


def past_bundle(store: Store, day: str) -> Manifest | None:
    """What training may go on from: the bundle of the run published last for the latest earlier day.

    None where there is none, where it was pruned or is damaged, and where a run was refused since: training can always
    begin anew. Neither a refused run nor one that was rolled back is gone on from.
    """
    pointer = published(store)
    shown = [] if pointer is None else [*pointer.previous, pointer.run_id]
    runs = {run.run_id: run for run in list_runs(store) if run.logical_date <= day}
    before = [runs[run_id] for run_id in shown if run_id in runs and runs[run_id].logical_date < day]
    if not before:
        return None
    latest = max(run.logical_date for run in before)
    if any(run.status == "refused" and run.logical_date > latest for run in runs.values()):
        return None
    generation = [run for run in before if run.logical_date == latest][-1].generation("train")
    try:
        bundle = read_manifest(store, "train", generation)
        verify(store, bundle)
    except StoreError as error:
        if error.problem.code in ("NO-GENERATION", "DAMAGED"):
            return None
        raise
    return bundle


def analyze(job: Job) -> None:
    """Encode all users and make every user's twin list."""
    from tastetwin.analysis.stage import analyze_users

    made, bundle = job.manifest("features"), job.manifest("train")
    job.do(
        "analyze",
        lambda tell: analyze_users(job.engine, job.store, made, bundle, job.config, again=job.again, progress=tell),
    )


def evaluate(job: Job) -> None:
    """Measure the run, ask the gate, write the report."""
    from tastetwin.evaluation.reports import write_report
    from tastetwin.evaluation.stage import evaluate_run

    job.do("evaluate", lambda tell: evaluate_run(job.store, job.run, job.config, again=job.again, progress=tell))
    write_report(job.store, job.run, job.config)
    job.tell("evaluate", lambda: job.tracking.evaluated(job.run))


def deliver(job: Job) -> None:
    """Publish the lists, if the gate agrees and they change no more than may pass unseen.

    Raises:
        GateRefused: when not; what is published stays. EVENTS-LOST and AWAITS-APPROVAL leave the run delivered, to be
            promoted.
    """
    from tastetwin.delivery.diff import diff_runs, require_no_leak, write_diff
    from tastetwin.delivery.lost import lost_rows, require_nothing_lost
    from tastetwin.delivery.pack import is_served, make_pack
    from tastetwin.delivery.publish import publish_run
    from tastetwin.delivery.stage import deliver_run
    from tastetwin.evaluation.reports import report_path, write_report

    # Whoever opts out while this works is left out by readers, and is no leak.
    opt_outs, shown = read_opt_outs(job.store), published_or_none(job.store)
    job.do("deliver", lambda tell: deliver_run(job.store, job.run, again=job.again, progress=tell))
    if not job.store.exists(report_path(job.run.run_id)):  # a run that took over another run's evaluation has none
        write_report(job.store, job.run, job.config)
    require_no_leak(job.store, job.run, opt_outs)
    if is_served(job.store):
        make_pack(job.store, job.run)
    diff = None if shown is None else diff_runs(job.store, job.run, shown, opt_outs)
    if diff is not None:
        write_diff(job.store, diff)
    job.run = write_run(job.store, replace(job.run, status="delivered"))
    if shown is not None:
        lost = lost_rows(lambda: job.engine, job.store, shown, job.run)
        require_nothing_lost(job.run, lost, job.config.deliver)
    if diff is not None:
        diff.require_approval(job.config.deliver)
    publish_run(job.store, job.run, job.config)
    job.tell("deliver", job.tracking.follow)


INTERRUPTED: Final = "interrupted (ctrl-C or SIGTERM); the same command goes on from there"
STEPS: Final[dict[Stage, Callable[[Job], None]]] = {
    "mart": mart,
    "features": features,
    "train": train,
    "analyze": analyze,
    "evaluate": evaluate,
    "deliver": deliver,
}
"""Every stage but ``collect``, which alone needs a source."""


def run_day(
    store: Store, source: str, day: date, config: Config, *, again: bool = False, reporter: Reporter | None = None
) -> Run:
    """The whole daily job for one logical date, in a run of its own.

    Stages whose inputs have not changed find their finished work, so a run after a crash goes on where that stopped.

    Raises:
        TasteTwinError: from any stage; the run's record keeps it, what is published stays.
    """
    require(config.tracking)
    with store.writing():
        close_dead(store)
        job = Job(store, config, new_run(store, day), again=again, reporter=reporter or Reporter())
        with _recorded(job):
            collect(job, source)
            for step in STEPS.values():
                step(job)
        return job.run


def run_stage(
    store: Store,
    stage: Stage,
    day: date | None,
    config: Config,
    *,
    source: str | None = None,
    again: bool = False,
    reporter: Reporter | None = None,
) -> Run:
    """One stage by itself: ``collect`` begins a run for ``day``, any other goes on with the newest run (of ``day``)."""
    require(config.tracking)
    with store.writing():
        close_dead(store)
        run = _begin(store, stage, day)
        job = Job(store, config, run, again=again, reporter=reporter or Reporter())
        with _recorded(job):
            if stage == "collect":
                assert source is not None
                collect(job, source)
            else:
                STEPS[stage](job)
            if job.run.status == "running":
                job.run = write_run(store, replace(job.run, status="open"))
        return job.run


def help_train(store: Store, day: date | None, config: Config, *, again: bool = False) -> None:
    """Take part in the training that process 0 carries out by ``run_stage``, in any other process of ``torchrun``."""
    from tastetwin.model.stage import help_train as take_part

    run = latest_run(store, day)
    made, past = read_manifest(store, "features", run.generation("features")), past_bundle(store, run.logical_date)
    take_part(store, made, config, past=past, again=again)


def _begin(store: Store, stage: Stage, day: date | None) -> Run:
    if stage == "collect":
        assert day is not None
        return new_run(store, day)
    run = latest_run(store, day)
    if run.status not in ("delivered", "refused"):
        return write_run(store, replace(run, status="running"))
    # What was delivered is what readers see, and a refusal is to be remembered: a new run with the same beginnings.
    before = set(STAGES[: STAGES.index(stage)])
    kept = {str(name): record for name, record in run.stages.items() if name in before}
    return new_run(store, date.fromisoformat(run.logical_date), kept)


@contextmanager
def _recorded(job: Job) -> Iterator[None]:
    """Keep in the run's record how it ended when it ends badly."""
    bind_contextvars(run=job.run.run_id)  # left bound: the error is told further out
    try:
        yield
    except GateRefused as error:
        from tastetwin.delivery.publish import prune

        _close(job, "refused", error)
        # Where every run is to be approved, or one is refused every day, no publication would ever remove anything.
        with suppress(StoreError):  # of the two, the refusal is to be told
            prune(job.store, job.config.deliver.keep_runs)
        raise
    except (KeyboardInterrupt, SystemExit) as error:
        _close(job, "interrupted", error)
        raise
    except Exception as error:
        _close(job, "failed", error)
        raise


def _close(job: Job, status: RunStatus, error: BaseException) -> None:
    said = str(error) if isinstance(error, TasteTwinError) else f"{type(error).__name__}: {error}"
    if status == "interrupted":
        said = INTERRUPTED
    # What goes wrong after the delivery (while pruning, say) must not take from readers the run they see.
    ended = "delivered" if job.run.status == "delivered" else status
    write_run(job.store, replace(job.run, status=ended, error=said))
