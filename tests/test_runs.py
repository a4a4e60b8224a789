"""Generations, manifests, runs and the pointer: what makes a re-run find its work and a reader see one whole run."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tastetwin import generations, runs
from tastetwin.config import Config
from tastetwin.errors import StoreError, TasteTwinError, UsageError
from tastetwin.generations import STAGES, FileEntry, Manifest
from tastetwin.pipeline import run_stage
from tastetwin.runs import Run, StageRecord
from tastetwin.store import Store

DAY = date(2026, 11, 22)


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "disk":
        yield Store.create(tmp_path / "store")
        return
    name = f"/{uuid.uuid4()}"
    yield Store.create(f"memory:/{name}")
    fsspec.filesystem("memory").rm(name, recursive=True)


def make(store: Store, generation: str, word: str = "x") -> Manifest:
    path = f"mart/{generation}/reviews/part-0"
    store.write_bytes(path, word.encode())
    tables = {"reviews": [generations.entry_of(store, path)], "likes": []}
    return generations.finish(store, Manifest("mart", generation, "2026-11-22", {"collect": "c"}, {}, tables, {"n": 1}))


def record(generation: str = "g") -> StageRecord:
    return StageRecord(generation, 1.5, {"lines_read": 3})


def code_of(error: pytest.ExceptionInfo[TasteTwinError]) -> str:
    return error.value.problem.code


# -- generations ----------------------------------------------------------------------------------------------------


def test_the_same_inputs_find_their_finished_work(store: Store) -> None:
    """How a re-run costs nothing, and how ``again`` makes new work without touching the old."""
    generation, finished = generations.begin(store, "mart", "2026-11-22", {"a": 1}, again=False)
    assert finished is None
    manifest = make(store, generation)
    assert generations.begin(store, "mart", "2026-11-22", {"a": 1}, again=False) == (generation, manifest)
    assert generations.begin(store, "mart", "2026-11-22", {"a": 1}, again=True) == (f"{generation}-2", None)
    make(store, f"{generation}-2")
    assert generations.begin(store, "mart", "2026-11-22", {"a": 1}, again=True) == (f"{generation}-3", None)


def test_finished_work_that_lost_a_file_is_made_anew_beside_it(store: Store) -> None:
    """Pruning may take files that an older generation shared; its own files may still be somebody else's."""
    generation, _ = generations.begin(store, "mart", "2026-11-22", {"a": 1}, again=False)
    manifest = make(store, generation)
    store.remove(manifest.paths("reviews")[0])
    assert not generations.is_whole(store, manifest)
    assert generations.begin(store, "mart", "2026-11-22", {"a": 1}, again=False) == (f"{generation}-2", None)


def test_other_inputs_days_and_stages_have_other_ids() -> None:
    """Anything that goes into the work must show in its name."""
    ids = {
        generations.generation_id("2026-11-22", "mart", {"a": 1}),
        generations.generation_id("2026-11-22", "mart", {"a": 2}),
        generations.generation_id("2026-11-23", "mart", {"a": 1}),
        generations.generation_id("2026-11-22", "features", {"a": 1}),
    }
    assert len(ids) == 4


def test_a_generation_without_manifest_does_not_exist(store: Store) -> None:
    """The manifest is written last; before that a reader must not find the files."""
    store.write_bytes("mart/g/reviews/part-0", b"half")
    assert not generations.is_finished(store, "mart", "g")
    with pytest.raises(StoreError) as caught:
        generations.read_manifest(store, "mart", "g")
    assert code_of(caught) == "NO-GENERATION"


def test_a_manifest_comes_back_as_it_was_written(store: Store) -> None:
    """Equality after reading is what ``begin`` returns to a re-run."""
    manifest = make(store, "g")
    assert generations.read_manifest(store, "mart", "g") == manifest
    generations.verify(store, manifest)
    assert manifest.paths("reviews") == ["mart/g/reviews/part-0"]
    assert manifest.paths("none") == []


@pytest.mark.parametrize("content", [b"X", b"", b"xx", None])
def test_a_tampered_file_is_damaged(store: Store, content: bytes | None) -> None:
    """Changed, cut, grown or gone: the hash in the manifest tells."""
    manifest = make(store, "g")
    store.remove("mart/g/reviews/part-0")
    if content is not None:
        store.write_bytes("mart/g/reviews/part-0", content)
    with pytest.raises(StoreError) as caught:
        generations.verify(store, manifest)
    assert code_of(caught) == "DAMAGED"
    generations.verify(store, manifest, ["likes"])


@pytest.mark.parametrize("content", [b"{", b"{}", b'{"tables": 1}', b'{"tables": {"t": [{"oops": 1}]}}'])
def test_a_tampered_manifest_run_or_pointer_is_damaged(store: Store, content: bytes) -> None:
    """Whatever is in the file, the reader gets a code and the place, not a KeyError."""
    make(store, "g")
    for place in ("mart/g/manifest.json", "runs/2026-11-22.1.json", runs.POINTER):
        store.write_bytes(place, content)
    for read in (
        lambda: generations.read_manifest(store, "mart", "g"),
        lambda: runs.read_run(store, "2026-11-22.1"),
        lambda: runs.published(store),
    ):
        with pytest.raises(StoreError) as caught:
            read()
        assert code_of(caught) == "DAMAGED"


def test_a_digest_tells_contents_and_not_where_they_lie() -> None:
    """Later stages name their work after it: the same bytes landed twice must give the same mart."""

    def manifest(folder: str, sha: str = "1", table: str = "reviews") -> Manifest:
        return Manifest("collect", folder, "2026-11-22", {}, {}, {table: [FileEntry(f"lake/{folder}/r", 1, sha)]}, {})

    assert manifest("a").digest() == manifest("b").digest()
    assert len({manifest("a").digest(), manifest("a", sha="2").digest(), manifest("a", table="likes").digest()}) == 3


# -- runs -----------------------------------------------------------------------------------------------------------


def test_run_ids_count_up_within_a_logical_date(store: Store) -> None:
    """Also past nine, where names no longer sort as numbers do."""
    ids = [runs.new_run(store, DAY).run_id for _ in range(11)]
    assert ids == [f"2026-11-22.{number}" for number in range(1, 12)]
    assert runs.new_run(store, DAY + timedelta(days=1)).run_id == "2026-11-23.1"
    assert [run.run_id for run in runs.list_runs(store)] == [*ids, "2026-11-23.1"]
    assert runs.latest_run(store, DAY).run_id == "2026-11-22.11"


def test_a_clock_that_was_set_back_does_not_make_an_earlier_run_the_newest(store: Store) -> None:
    """The next stage would go on with what failed, and a later day with what was made before it."""
    for number, at in enumerate(("05:00", "04:00", "04:30"), 1):
        run = runs.new_run(store, DAY)
        assert run.run_id == f"2026-11-22.{number}"
        runs.write_run(store, replace(run, started_at=f"2026-11-23T{at}:00.000000+00:00"))
    other = runs.new_run(store, DAY - timedelta(days=1))
    runs.write_run(store, replace(other, started_at="2026-11-23T04:45:00.000000+00:00"))
    assert [run.run_id for run in runs.list_runs(store)] == ["2026-11-21.1", *(f"2026-11-22.{n}" for n in (1, 2, 3))]
    assert runs.latest_run(store).run_id == runs.latest_run(store, DAY).run_id == "2026-11-22.3"


def test_what_a_killed_writer_left_among_the_runs_is_no_run(store: Store) -> None:
    """A half-written record lies beside the real ones under a name of its own."""
    runs.new_run(store, DAY)
    store.write_bytes("runs/.2026-11-22.2.json.4711.tmp", b"{")
    assert len(runs.list_runs(store)) == 1
    assert runs.new_run(store, DAY).run_id == "2026-11-22.2"


def test_recording_a_stage_again_drops_what_came_after_it(store: Store) -> None:
    """Lists made from an older mart do not belong to a run whose mart was made anew."""
    run = runs.new_run(store, DAY)
    for stage in STAGES[:4]:
        run = runs.record_stage(store, run, stage, record(stage))
    failed = runs.write_run(store, replace(run, status="failed", error="X"))
    run = runs.record_stage(store, failed, "mart", record("mart again"))
    assert {stage: kept.generation for stage, kept in run.stages.items()} == {
        "collect": "collect",
        "mart": "mart again",
    }
    assert (run.status, run.error) == ("running", None)
    assert runs.read_run(store, run.run_id) == run
    with pytest.raises(UsageError) as caught:
        run.generation("train")
    assert code_of(caught) == "STAGE-MISSING"


def test_what_a_stage_made_is_told_while_it_is_kept(store: Store) -> None:
    """None before the stage has run and after it was pruned; both are the ordinary life of a store."""
    run = runs.new_run(store, DAY)
    assert runs.kept_manifest(store, run, "mart") is None
    made = make(store, "g")
    run = runs.record_stage(store, run, "mart", record("g"))
    assert runs.kept_manifest(store, run, "mart") == made
    store.remove(made.folder)
    assert runs.kept_manifest(store, run, "mart") is None


def test_the_pointer_remembers_fifty_publications_and_no_more(store: Store) -> None:
    """Readers fetch it again and again; years of days must not make it long."""
    for number in range(60):
        runs.publish(store, f"2026-01-01.{number}")
    pointer = runs.published(store)
    assert pointer is not None and pointer.run_id == "2026-01-01.59"
    assert pointer.previous == [f"2026-01-01.{number}" for number in range(9, 59)]


def test_a_run_whose_process_was_killed_is_noted_by_the_next_writer(tmp_path: Path) -> None:
    """``kill -9`` leaves nobody to write down how it ended; whoever holds the lock knows that nobody else runs."""
    store = Store.create(tmp_path / "store")
    dead, failed = runs.new_run(store, DAY), runs.new_run(store, DAY)
    runs.write_run(store, replace(failed, status="failed", error="X"))
    with store.writing():
        assert [run.run_id for run in runs.close_dead(store)] == [dead.run_id]
        assert runs.close_dead(store) == []
    now = runs.read_run(store, dead.run_id)
    assert now.status == "interrupted" and now.error is not None and "killed" in now.error
    assert runs.read_run(store, failed.run_id).error == "X"


def test_without_a_lock_nobody_is_taken_for_dead() -> None:
    """On object storage another machine may well be running."""
    store = Store(f"memory://{uuid.uuid4()}")
    runs.new_run(store, DAY)
    assert runs.close_dead(store) == []
    assert runs.latest_run(store).status == "running"


def test_a_run_made_stage_by_stage_is_open_between_stages_and_a_killed_stage_is_noted(tmp_path: Path) -> None:
    """Nobody works on it for hours, and yet it is not dead: the next stage goes on with it."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "likes.jsonl").write_bytes(b"{}\n")
    store = Store.create(tmp_path / "store")
    first = run_stage(store, "collect", DAY, Config(), source=str(source))
    runs.new_run(store, DAY)  # killed while collecting
    third = run_stage(store, "collect", DAY, Config(), source=str(source))
    assert [run.status for run in runs.list_runs(store)] == ["open", "interrupted", "open"]
    assert (first.status, third.status) == ("open", "open")
    with pytest.raises(UsageError, match="STAGE-MISSING"):
        run_stage(store, "features", DAY, Config())
    assert runs.read_run(store, third.run_id).status == "failed"


@pytest.mark.parametrize("run_id", ["2026-11-22.7", "../store", "", "2026-11-22.1/../x"])
def test_an_unknown_run_is_a_usage_error_and_no_path(store: Store, run_id: str) -> None:
    """A run id comes from a command line; it must not read another file."""
    with pytest.raises(UsageError) as caught:
        runs.read_run(store, run_id)
    assert code_of(caught) == "UNKNOWN-RUN"


def test_no_run_yet_is_said_in_so_many_words(store: Store) -> None:
    """The first thing a newcomer meets when commands come in the wrong order."""
    for day in (None, DAY):
        with pytest.raises(UsageError) as caught:
            runs.latest_run(store, day)
        assert code_of(caught) == "NO-RUN"


def test_dates_are_iso_and_not_in_the_future() -> None:
    """A logical date two days ahead is a slip of the keyboard; tomorrow has begun somewhere."""
    today = datetime.now(UTC).date()
    assert runs.parse_date("2026-11-22") == DAY
    assert runs.parse_date((today + timedelta(days=1)).isoformat()) == today + timedelta(days=1)
    wrong = {"22.11.2026": "BAD-DATE", "2026-02-30": "BAD-DATE", (today + timedelta(days=3)).isoformat(): "FUTURE-DATE"}
    for text, code in wrong.items():
        with pytest.raises(UsageError) as caught:
            runs.parse_date(text)
        assert code_of(caught) == code


# -- the pointer ----------------------------------------------------------------------------------------------------


def new_ids(store: Store, count: int) -> list[str]:
    return [runs.new_run(store, DAY).run_id for _ in range(count)]


def test_nothing_is_published_at_first(store: Store) -> None:
    """Readers of a store without publication get told so."""
    assert runs.published(store) is None
    with pytest.raises(UsageError) as caught:
        runs.published_run(store)
    assert code_of(caught) == "NOT-PUBLISHED"
    assert "no run yet" in caught.value.problem.value
    with pytest.raises(UsageError) as caught:
        runs.rollback(store, lambda _: True)
    assert code_of(caught) == "NO-PREVIOUS"


def test_where_only_a_failed_run_is_readers_are_told_of_it(store: Store) -> None:
    """The store is there, so the first run seemed to have worked; what went wrong is what has to be mended."""
    failed = replace(runs.new_run(store, DAY), status="failed", error="NO-SOURCE: /nowhere: not there")
    runs.write_run(store, failed)
    with pytest.raises(UsageError) as caught:
        runs.published_run(store)
    assert code_of(caught) == "NOT-PUBLISHED"
    assert caught.value.problem.value.endswith(f"{failed.run_id}, is failed: NO-SOURCE: /nowhere: not there")


def test_a_missing_stage_is_answered_with_the_first_that_has_to_run(store: Store) -> None:
    """``train`` asks for features; where nothing was collected either, building features is no help."""
    run = runs.new_run(store, DAY)
    for known, command in (
        (run, "tastetwin collect --source DIR"),
        (replace(run, stages={"collect": record()}), "mart"),
    ):
        with pytest.raises(UsageError) as caught:
            known.generation("features")
        assert caught.value.problem.value == "no 'features' yet" and command in caught.value.problem.fix


def test_publishing_moves_the_pointer_and_publishing_again_changes_nothing(store: Store) -> None:
    """A deliver that is retried after its answer was lost must not bury the run it replaced."""
    first, second = new_ids(store, 2)
    runs.publish(store, first)
    once = runs.publish(store, second)
    assert runs.publish(store, second) == once
    assert (once.run_id, once.previous) == (second, [first])
    assert runs.published_run(store).run_id == second


def test_rollback_goes_to_the_latest_usable_run_and_forgets_what_it_left(store: Store) -> None:
    """Two rollbacks in a row go two runs back, not back and forth; a pruned run is passed over."""
    first, second, third, fourth = new_ids(store, 4)
    for run_id in (first, second, third, fourth):
        runs.publish(store, run_id)
    assert runs.rollback(store, lambda run_id: run_id != third).run_id == second
    assert runs.rollback(store, lambda _: True).run_id == first
    with pytest.raises(UsageError):
        runs.rollback(store, lambda _: True)
    assert runs.published_run(store).run_id == first


def test_publishing_an_earlier_run_names_each_run_once(store: Store) -> None:
    """``promote`` of an older run: it is the present one now, not also a past one."""
    first, second, third = new_ids(store, 3)
    for run_id in (first, second, third, first):
        runs.publish(store, run_id)
    pointer = runs.published(store)
    assert pointer is not None
    assert (pointer.run_id, pointer.previous) == (first, [second, third])


@settings(deadline=None)
@given(st.lists(st.sampled_from(["publish 1", "publish 2", "publish 3", "rollback"]), max_size=20))
def test_the_pointer_never_lists_the_present_run_or_one_run_twice(steps: list[str]) -> None:
    """Whatever order of publications and rollbacks: no loops for a rollback to get lost in."""
    store = Store(f"memory://{uuid.uuid4()}")
    for step in steps:
        if step != "rollback":
            runs.publish(store, f"2026-11-22.{step[-1]}")
        else:
            try:
                runs.rollback(store, lambda _: True)
            except UsageError:
                continue
        pointer = runs.published(store)
        assert pointer is not None
        everyone = [*pointer.previous, pointer.run_id]
        assert len(set(everyone)) == len(everyone)


def test_a_run_record_comes_back_as_it_was_written(store: Store) -> None:
    """Everything ``tastetwin runs`` shows."""
    run = Run("2026-11-22.1", "2026-11-22", "refused", "2026-11-22T00:00:00", {"mart": record()}, "GATE", ["finding"])
    runs.write_run(store, run)
    assert runs.read_run(store, "2026-11-22.1") == run
