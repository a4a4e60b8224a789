"""The daily job: the order of the stages, what each is given, and what a run's record says however it ends.

The stages are stand-ins that write a generation of one file, so that only the order is tested here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from typing import Any, Final

import pytest

from tastetwin import pipeline
from tastetwin.config import Config, DeliverConfig
from tastetwin.errors import GateRefused, InputError, StoreError, UsageError
from tastetwin.evaluation.reports import report_path
from tastetwin.generations import STAGES, Made, Manifest, Plan, Stage, entry_of, make
from tastetwin.pipeline import INTERRUPTED, Job, past_bundle, run_day, run_stage
from tastetwin.progress import Progress, silent
from tastetwin.runs import (
    Reporter,
    Run,
    RunStatus,
    StageRecord,
    latest_run,
    list_runs,
    publish,
    published,
    read_run,
    rollback,
    write_run,
)
from tastetwin.store import Store
from tests import handmade

DAY: Final = date(2026, 6, 2)
NEXT: Final = date(2026, 6, 3)
NAMES: Final[dict[Stage, str]] = {
    "collect": "tastetwin.sources.collect.collect",
    "mart": "tastetwin.mart.stage.build_mart",
    "features": "tastetwin.features.stage.build_features",
    "train": "tastetwin.model.stage.train_bundle",
    "analyze": "tastetwin.analysis.stage.analyze_users",
    "evaluate": "tastetwin.evaluation.stage.evaluate_run",
    "deliver": "tastetwin.delivery.stage.deliver_run",
}


class Session:
    """An engine that notes when it is opened and closed."""

    def __init__(self, noted: list[str]) -> None:
        self.noted = noted
        noted.append("opened")

    def close(self) -> None:
        self.noted.append("closed")


class Town:
    """Stand-ins for all stages, over a store of their own."""

    def __init__(self, store: Store, patch: pytest.MonkeyPatch) -> None:
        self.store = store
        self.calls: list[tuple[Stage, dict[str, str | None]]] = []
        """(stage, what it was given: role -> generation)."""
        self.fails: dict[Stage, BaseException] = {}
        self.reports: list[str] = []
        self.sessions: list[str] = []
        patch.setattr(pipeline, "connect", lambda *_: Session(self.sessions))
        patch.setattr("tastetwin.evaluation.reports.write_report", self._report)
        for stage, name in NAMES.items():
            patch.setattr(name, getattr(self, f"_{stage}"))

    @property
    def order(self) -> list[Stage]:
        return [stage for stage, _ in self.calls]

    def given(self, stage: Stage) -> dict[str, str | None]:
        """What a stage was given the last time."""
        return next(given for called, given in reversed(self.calls) if called == stage)

    def day(self, day: date = DAY, **more: Any) -> Run:
        return run_day(self.store, "source", day, Config(), **more)

    def stage(self, stage: Stage, day: date | None = DAY, **more: Any) -> Run:
        source = "source" if stage == "collect" else None
        return run_stage(self.store, stage, day, Config(), source=source, **more)

    def stages(self, *stages: Stage, day: date = DAY) -> Run:
        return [self.stage(stage, day) for stage in stages][-1]

    def _made(
        self, stage: Stage, day: str, parents: dict[str, Manifest | None], again: bool, tell: Progress
    ) -> Manifest:
        self.calls.append(
            (stage, {role: None if parent is None else parent.generation for role, parent in parents.items()})
        )
        if stage in self.fails:
            raise self.fails[stage]
        tell(1, 1)

        def work(folder: str) -> Made:
            self.store.write_bytes(f"{folder}/t", f"{stage} of {day}".encode())
            return {"t": [entry_of(self.store, f"{folder}/t")]}, {"counts": {f"{stage}d": 1}, "buckets": 1}

        return make(self.store, Plan(stage, day, parents, {}), work, again=again)

    def _collect(
        self, store: Store, source: str, day: date, *, again: bool, config: Any, progress: Progress
    ) -> Manifest:
        return self._made("collect", day.isoformat(), {}, again, progress)

    def _mart(
        self, engine: Session, store: Store, lake: Manifest, old: Manifest | None, config: Any, **how: Any
    ) -> Manifest:
        return self._made("mart", lake.logical_date, {"lake": lake, "earlier": old}, how["again"], how["progress"])

    def _features(
        self, engine: Session, store: Store, mart: Manifest, old: Manifest | None, config: Any, **how: Any
    ) -> Manifest:
        return self._made("features", mart.logical_date, {"mart": mart, "earlier": old}, how["again"], how["progress"])

    def _train(self, store: Store, features: Manifest, config: Any, *, past: Manifest | None, **how: Any) -> Manifest:
        parents = {"features": features, "past": past}
        return self._made("train", features.logical_date, parents, how["again"], how["progress"])

    def _analyze(
        self, engine: Session, store: Store, features: Manifest, bundle: Manifest, config: Any, **how: Any
    ) -> Manifest:
        parents: dict[str, Manifest | None] = {"features": features, "bundle": bundle}
        return self._made("analyze", features.logical_date, parents, how["again"], how["progress"])

    def _evaluate(self, store: Store, run: Run, config: Any, **how: Any) -> Manifest:
        return self._made("evaluate", run.logical_date, {}, how["again"], how["progress"])

    def _deliver(self, store: Store, run: Run, **how: Any) -> Manifest:
        return self._made("deliver", run.logical_date, {}, how["again"], how["progress"])

    def _report(self, store: Store, run: Run, config: Any) -> str:
        self.reports.append(run.run_id)
        store.write_bytes(report_path(run.run_id), b"<html>")
        return report_path(run.run_id)


@pytest.fixture
def town(memory_store: Store, monkeypatch: pytest.MonkeyPatch) -> Town:
    return Town(memory_store, monkeypatch)


def generations(run: Run) -> dict[str, str]:
    return {stage: record.generation for stage, record in run.stages.items()}


def done(run: Run) -> tuple[Stage, ...]:
    """The stages of a run, in order (its record keeps them by name)."""
    return tuple(stage for stage in STAGES if stage in run.stages)


def seen(store: Store) -> str | None:
    pointer = published(store)
    return None if pointer is None else pointer.run_id


# -- the order --------------------------------------------------------------------------------------------------------


def test_the_stages_run_in_order_and_each_is_given_what_this_run_made(town: Town) -> None:
    """Never "the latest": another day's mart under today's lists would be found by nobody."""
    run = town.day()
    assert tuple(town.order) == STAGES
    made = generations(run)
    assert dict(town.calls) == {
        "collect": {},
        "mart": {"lake": made["collect"], "earlier": None},
        "features": {"mart": made["mart"], "earlier": None},
        "train": {"features": made["features"], "past": None},
        "analyze": {"features": made["features"], "bundle": made["train"]},
        "evaluate": {},
        "deliver": {},
    }


def test_a_run_that_went_well_is_delivered_and_published(town: Town) -> None:
    """With every stage's generation and counts in its record, and a report."""
    run = town.day()
    assert (run.status, run.error) == ("delivered", None)
    assert read_run(town.store, run.run_id) == run
    assert {stage: record.counts for stage, record in run.stages.items()} == {s: {f"{s}d": 1} for s in STAGES}
    assert seen(town.store) == run.run_id
    assert town.reports == [run.run_id]


def test_whoever_listens_hears_every_stage_begin_and_end(town: Town) -> None:
    """And how far it is, from the function it got at the beginning."""
    heard: list[str] = []

    class Listener:
        def started(self, stage: Stage) -> Progress:
            heard.append(f"{stage} begins")
            return lambda done, total, phase="": heard.append(f"{done} of {total}")

        def finished(self, stage: Stage, record: StageRecord) -> None:
            heard.append(f"{stage} ends: {record.counts}")

    town.day(reporter=Listener())
    assert heard == [
        said for s in STAGES for said in (f"{s} begins", "1 of 1", f"{s} ends: {{'{s}d': 1}}")
    ]  # fmt: skip


def test_the_same_day_again_is_a_new_run_of_the_same_generations(town: Town) -> None:
    """Finished work is found; with ``again`` all of it is made once more."""
    first, second = town.day(), town.day()
    assert (first.run_id, second.run_id) == ("2026-06-02.1", "2026-06-02.2")
    assert generations(second) == generations(first)
    third = town.day(again=True)
    assert not set(generations(third).values()) & set(generations(first).values())


# -- going on from the day before -------------------------------------------------------------------------------------


def job(store: Store, day: str) -> Job:
    return Job(store, Config(), Run(f"{day}.9", day, "running", "now"), again=False, reporter=Reporter())


def mart(store: Store, name: str, day: str) -> Manifest:
    """A mart of one file, and a run that made it."""
    path = f"mart/{name}/t"
    store.write_bytes(path, name.encode())
    made = handmade.generation(store, "mart", name, keeps={"t": [entry_of(store, path)]}, day=day)
    handmade.run_of(store, {"mart": name}, day=day, status="failed")
    return made


def test_a_day_goes_on_from_the_latest_earlier_date(memory_store: Store) -> None:
    """Not from the newest run: a day that is made up for must not see what came after it, nor itself."""
    for name, day in (("second", "2026-06-02"), ("first", "2026-06-01"), ("fourth", "2026-06-04")):
        mart(memory_store, name, day)
    found = {
        day: earlier and earlier.generation
        for day in ("2026-06-01", "2026-06-02", "2026-06-03", "2026-06-05")
        for earlier in [job(memory_store, day).earlier("mart")]
    }
    assert found == {"2026-06-01": None, "2026-06-02": "first", "2026-06-03": "second", "2026-06-05": "fourth"}


def test_of_an_earlier_date_the_newest_run_counts(memory_store: Store) -> None:
    """A day that was run twice was run the second time for a reason; also if a later stage failed."""
    mart(memory_store, "wrong", "2026-06-01")
    mart(memory_store, "right", "2026-06-01")
    handmade.run_of(memory_store, {"collect": "c"}, day="2026-06-01", status="failed")
    earlier = job(memory_store, "2026-06-02").earlier("mart")
    assert earlier is not None and earlier.generation == "right"


def test_a_mart_that_lost_a_file_is_passed_over_for_an_older_run_of_that_date(memory_store: Store) -> None:
    """Its manifest is there; what it took over from an earlier generation is gone with that."""
    mart(memory_store, "whole", "2026-06-01")
    memory_store.remove(mart(memory_store, "torn", "2026-06-01").paths("t")[0])
    earlier = job(memory_store, "2026-06-02").earlier("mart")
    assert earlier is not None and earlier.generation == "whole"


@pytest.mark.parametrize("lost", ["mart/second/manifest.json", "mart/second/t"])
def test_when_the_day_before_is_gone_the_job_stops(memory_store: Store, lost: str) -> None:
    """Going on from the day before that, or from nothing, would lose rows without a word."""
    mart(memory_store, "first", "2026-06-01")
    mart(memory_store, "second", "2026-06-02")
    memory_store.remove(lost)
    with pytest.raises(StoreError) as caught:
        job(memory_store, "2026-06-03").earlier("mart")
    assert caught.value.problem.code == "PAST-GONE"
    assert "2026-06-02" in caught.value.problem.place


def test_the_next_day_is_given_the_mart_the_features_and_the_bundle_of_the_day_before(town: Town) -> None:
    """And nothing else: lists and figures are made of today's alone."""
    first = generations(town.day())
    town.day(NEXT)
    assert town.given("mart")["earlier"] == first["mart"]
    assert town.given("features")["earlier"] == first["features"]
    assert town.given("train")["past"] == first["train"]
    assert set(town.given("analyze")) == {"features", "bundle"}


def test_no_session_is_kept_idle_while_a_model_is_trained(town: Town) -> None:
    """Spark Connect ends idle sessions after an hour, Sail after minutes; analysis opens one of its own."""
    town.day()
    assert town.sessions == ["opened", "closed", "opened"]


def bundle(store: Store, name: str, day: str, status: RunStatus = "delivered") -> Run:
    """A bundle of one file, and a run that made it; readers see it where it was delivered."""
    path = f"bundles/{name}/t"
    store.write_bytes(path, name.encode())
    handmade.generation(store, "train", name, keeps={"t": [entry_of(store, path)]}, day=day)
    run = handmade.run_of(store, {"train": name}, day=day, status=status)
    if status == "delivered":
        publish(store, run.run_id)
    return run


def past(store: Store, day: str) -> str | None:
    found = past_bundle(store, day)
    return None if found is None else found.generation


def test_training_goes_on_from_what_readers_saw_on_the_latest_earlier_day(memory_store: Store) -> None:
    """Of a day delivered twice the second counts, also where it was made up for later; a failed run is none."""
    bundle(memory_store, "second", "2026-06-02")
    bundle(memory_store, "first", "2026-06-01")
    bundle(memory_store, "first-again", "2026-06-01")
    bundle(memory_store, "third", "2026-06-03", "failed")
    found = [past(memory_store, f"2026-06-0{day}") for day in range(1, 6)]
    assert found == [None, "first-again", "second", "second", "second"]


def test_after_a_refusal_training_begins_anew(memory_store: Store) -> None:
    """What the gate refused may be the carrying on itself: the same day run again, and the next, do not repeat it."""
    bundle(memory_store, "first", "2026-06-01")
    bundle(memory_store, "refused", "2026-06-02", "refused")
    assert past(memory_store, "2026-06-02") is None
    assert past(memory_store, "2026-06-03") is None
    bundle(memory_store, "second", "2026-06-02")
    assert past(memory_store, "2026-06-03") == "second"


def test_what_was_rolled_back_is_not_gone_on_from(memory_store: Store) -> None:
    """Somebody had a reason; its weights would be back the next morning."""
    bundle(memory_store, "first", "2026-06-01")
    bundle(memory_store, "second", "2026-06-02")
    rollback(memory_store, lambda run_id: True)
    assert past(memory_store, "2026-06-03") == "first"


@pytest.mark.parametrize("lost", ["bundles/second/manifest.json", "bundles/second/t"])
@pytest.mark.parametrize("content", [None, b"{"])
def test_a_bundle_that_is_gone_or_damaged_is_not_gone_on_from(
    memory_store: Store, lost: str, content: bytes | None
) -> None:
    """No error, and no older one either: training can begin anew."""
    bundle(memory_store, "first", "2026-06-01")
    bundle(memory_store, "second", "2026-06-02")
    if content is None:
        memory_store.remove(lost)
    else:
        memory_store.write_bytes(lost, content)
    assert past(memory_store, "2026-06-03") is None


def test_a_past_that_is_gone_fails_the_day_and_nothing_is_built(town: Town) -> None:
    """The record says which day has to be run again."""
    first = town.day()
    town.store.remove(f"mart/{first.generation('mart')}")
    with pytest.raises(StoreError, match="PAST-GONE"):
        town.day(NEXT)
    failed = latest_run(town.store)
    assert failed.status == "failed" and failed.error is not None and "PAST-GONE" in failed.error
    assert town.order == [*STAGES, "collect"]


# -- how a run ends ---------------------------------------------------------------------------------------------------

ENDS: Final[list[tuple[BaseException, RunStatus, str]]] = [
    (InputError("QUARANTINE-SHARE", place="mart", rule="few"), "failed", "QUARANTINE-SHARE: mart. few"),
    (ValueError("boom"), "failed", "ValueError: boom"),
    (KeyboardInterrupt(), "interrupted", INTERRUPTED),
    (SystemExit(143), "interrupted", INTERRUPTED),
    (GateRefused("GATE-REFUSED", place="run", rule="no worse"), "refused", "GATE-REFUSED: run. no worse"),
]


@pytest.mark.parametrize(("error", "status", "said"), ENDS, ids=[type(error).__name__ for error, _, _ in ENDS])
@pytest.mark.parametrize("stage", ["mart", "deliver"])
def test_how_a_run_ended_badly_is_in_its_record(
    town: Town, stage: Stage, error: BaseException, status: RunStatus, said: str
) -> None:
    """Status, error in full and the stages that were done; what readers see stays, and the caller gets the error."""
    shown = town.day()
    town.calls.clear()
    town.fails[stage] = error
    with pytest.raises(type(error)):
        town.day(NEXT)
    ended = read_run(town.store, "2026-06-03.1")
    assert (ended.status, ended.error) == (status, said)
    assert done(ended) == STAGES[: STAGES.index(stage)]
    assert tuple(town.order) == STAGES[: STAGES.index(stage) + 1], "nothing runs after a failure"
    assert seen(town.store) == shown.run_id


@pytest.mark.parametrize("error", [ValueError("full"), KeyboardInterrupt()], ids=["error", "ctrl-C"])
def test_what_goes_wrong_after_the_delivery_does_not_undo_it(
    town: Town, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Readers see the run already; calling it failed would forbid a rollback to it."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("tastetwin.delivery.publish.prune", fail)
    with pytest.raises(type(error)):
        town.day()
    ended = latest_run(town.store)
    said = INTERRUPTED if isinstance(error, KeyboardInterrupt) else "ValueError: full"
    assert (ended.status, ended.error) == ("delivered", said)
    assert seen(town.store) == ended.run_id


def test_days_that_the_gate_refuses_or_a_person_approves_leave_no_more_behind_than_others(town: Town) -> None:
    """With deliver.max_changed: 0 no run publishes itself, and the disk would fill up with every day there ever was."""
    shown, settings = town.day(), Config(deliver=DeliverConfig(keep_runs=2))
    town.fails["deliver"] = GateRefused("AWAITS-APPROVAL", place="run", rule="few changes")
    for days in range(1, 6):
        with pytest.raises(GateRefused, match="AWAITS-APPROVAL"):
            run_day(town.store, "source", DAY + timedelta(days), settings)
    kept = [generations(run)["mart"] for run in [shown, *list_runs(town.store)[-2:]]]
    assert sorted(town.store.names("mart")) == sorted(kept), "what readers see, and the newest runs"


def test_after_a_failure_the_same_command_goes_on_and_ends_well(town: Town) -> None:
    """In a run of its own that finds the finished stages; the failed run keeps its story."""
    town.fails["train"] = ValueError("boom")
    with pytest.raises(ValueError, match="boom"):
        town.day()
    town.fails.clear()
    run = town.day()
    failed = read_run(town.store, "2026-06-02.1")
    assert (failed.status, run.status) == ("failed", "delivered")
    assert generations(failed).items() <= generations(run).items()


def test_publishing_prunes_by_the_settings(town: Town) -> None:
    """The job is what keeps a store from growing for ever."""
    config = Config(deliver=DeliverConfig(keep_runs=2))
    runs = [run_day(town.store, "source", date(2026, 6, day), config) for day in range(1, 6)]
    there = [town.store.exists(f"features/{run.generation('features')}") for run in runs]
    assert there == [False, False, True, True, True], "two to go back to, and the one that is seen"


# -- one stage at a time ----------------------------------------------------------------------------------------------


def test_stages_carried_out_one_by_one_make_one_run(town: Town) -> None:
    """What an Airflow DAG does; the run is delivered by the last of them, as by ``run``."""
    run = town.stages(*STAGES)
    assert [known.run_id for known in list_runs(town.store)] == ["2026-06-02.1"]
    assert tuple(town.order) == STAGES == done(run)
    assert run.status == "delivered" and seen(town.store) == run.run_id


def test_between_single_stages_a_run_is_open(town: Town) -> None:
    """Not running: nobody is at work on it, and the next command may be days away."""
    assert town.stages("collect", "mart").status == "open"
    assert latest_run(town.store).status == "open"


@pytest.mark.parametrize(("stage", "missing"), [("features", "mart"), ("train", "features"), ("analyze", "train")])
def test_a_stage_out_of_order_says_what_is_missing(town: Town, stage: Stage, missing: Stage) -> None:
    """The stage before it by name, and the command for that; everything before is there."""
    town.stages(*STAGES[: STAGES.index(missing)])
    with pytest.raises(UsageError) as caught:
        town.stage(stage)
    assert caught.value.problem.code == "STAGE-MISSING"
    assert caught.value.problem.value == f"no '{missing}' yet"
    assert f"tastetwin {missing}" in caught.value.problem.fix
    assert stage not in town.order


def test_a_stage_done_again_takes_what_came_after_it_out_of_the_run(town: Town) -> None:
    """Lists of the old mart do not belong beside the new one; the next stage has to be run again, too."""
    town.stages("collect", "mart", "features", "train")
    run = town.stage("mart", again=True)
    assert done(run) == ("collect", "mart")
    with pytest.raises(UsageError, match="STAGE-MISSING"):
        town.stage("train")


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_delivered_run_is_never_changed_by_a_later_stage(town: Town, stage: Stage) -> None:
    """Readers see it; a stage carried out again begins a new run with the same beginnings."""
    shown = town.day()
    run = town.stage(stage, again=True)
    assert read_run(town.store, shown.run_id) == shown
    assert run.run_id == "2026-06-02.2"
    assert done(run) == STAGES[: STAGES.index(stage) + 1]
    same = STAGES[: STAGES.index(stage)]
    assert {name: generations(run)[name] for name in same} == {name: generations(shown)[name] for name in same}
    assert run.generation(stage) != shown.generation(stage)
    if stage != "deliver":
        assert seen(town.store) == shown.run_id


def test_going_on_after_a_refusal_is_a_new_run(town: Town) -> None:
    """Else nobody could see later that the gate had said no, and why."""
    refused = write_run(town.store, replace(town.day(), status="refused", error="GATE-REFUSED"))
    later = town.stage("features")
    assert later.run_id != refused.run_id and later.status == "open"
    assert read_run(town.store, refused.run_id) == refused


def test_a_new_run_that_fails_at_once_has_only_the_beginnings(town: Town) -> None:
    """The delivered run's later stages were never this one's: it must not look as if it had lists."""
    town.day()
    town.fails["features"] = ValueError("boom")
    with pytest.raises(ValueError, match="boom"):
        town.stage("features", again=True)
    assert done(latest_run(town.store)) == ("collect", "mart")


def test_a_new_run_is_born_with_its_beginnings(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after its first write, a run without stages would be the newest, and ask for the source again."""
    town.day()
    write, written = Store.write_json, list[str]()

    def killed_after_one(store: Store, relative: str, value: dict[str, Any]) -> None:
        if written:
            raise SystemExit(137)
        write(store, relative, value)
        written.append(relative)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Store, "write_json", killed_after_one)
        town.stage("features", again=True)
    assert done(latest_run(town.store)) == ("collect", "mart")


def test_collect_always_begins_a_run(town: Town) -> None:
    """New events are a new pass, whatever became of the last one."""
    assert [town.stage("collect").run_id for _ in range(2)] == ["2026-06-02.1", "2026-06-02.2"]


def test_a_stage_without_a_date_goes_on_with_the_newest_run(town: Town) -> None:
    """And with one, with the newest run of that date."""
    town.stage("collect", DAY)
    town.stage("collect", NEXT)
    assert town.stage("mart", None).run_id == "2026-06-03.1"
    assert town.stage("mart", DAY).run_id == "2026-06-02.1"
    with pytest.raises(UsageError, match="NO-RUN"):
        town.stage("mart", date(2026, 6, 4))


def test_a_single_stage_that_fails_is_in_the_record_and_can_be_tried_again(town: Town) -> None:
    """The same run goes on; its error is forgotten when it does."""
    town.stage("collect")
    town.fails["mart"] = ValueError("boom")
    with pytest.raises(ValueError, match="boom"):
        town.stage("mart")
    assert (latest_run(town.store).status, latest_run(town.store).error) == ("failed", "ValueError: boom")
    town.fails.clear()
    run = town.stage("mart")
    assert (run.run_id, run.error, done(run)) == ("2026-06-02.1", None, ("collect", "mart"))


def test_a_run_that_took_over_an_evaluation_gets_a_report_all_the_same(town: Town) -> None:
    """Delivered again from a new run: its report, with its own id, is written by ``deliver``."""
    first = town.day()
    again = town.stage("deliver", again=True)
    assert town.reports == [first.run_id, again.run_id]


# -- one writer -------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk_town(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Town:
    return Town(Store.create(tmp_path_factory.mktemp("pipeline") / "store"), monkeypatch)


def test_while_somebody_writes_nobody_else_does(disk_town: Town) -> None:
    """Two schedulers, one store: the second is told so and leaves no run behind."""
    attempts: list[Callable[[], Run]] = [disk_town.day, lambda: disk_town.stage("collect")]
    with disk_town.store.writing():
        for attempt in attempts:
            with pytest.raises(StoreError, match="STORE-BUSY"):
                attempt()
    assert list_runs(disk_town.store) == [] and disk_town.calls == []


def test_a_run_whose_process_was_killed_is_closed_by_the_next_one(disk_town: Town) -> None:
    """It could not say so itself; it must not read "running" for ever."""
    killed = disk_town.stage("collect")
    write_run(disk_town.store, replace(killed, status="running"))
    disk_town.stage("collect", NEXT)
    found = read_run(disk_town.store, killed.run_id)
    assert found.status == "interrupted" and found.error is not None
    assert disk_town.stage("mart").run_id == killed.run_id, "and it can go on"


def test_stages_see_no_progress_when_nobody_listens() -> None:
    """The premise of a job without a reporter."""
    assert Reporter().started("mart") is silent
