"""Which run readers see, and that what they may go back to is kept."""

from __future__ import annotations

import pyarrow as pa
import pytest

from tastetwin.config import Config, DeliverConfig
from tastetwin.delivery.publish import promote_run, prune, publish_run, roll_back
from tastetwin.errors import UsageError
from tastetwin.generations import FOLDERS, STAGES, Stage, is_finished, is_whole, read_manifest
from tastetwin.runs import Run, RunStatus, published
from tastetwin.store import Store
from tests import handmade

ROWS = pa.table({"n": [1]})


@pytest.fixture
def store(memory_store: Store) -> Store:
    return memory_store


def delivered(store: Store, day: int, status: RunStatus = "delivered") -> Run:
    """A run of 2026-06-<day> whose stages made a generation ``g<day>`` each."""
    for stage in STAGES:
        handmade.generation(store, stage, f"g{day}", {"t": [ROWS]})
    return handmade.run_of(store, dict.fromkeys(STAGES, f"g{day}"), day=f"2026-06-{day:02}", status=status)


def seen(store: Store) -> str | None:
    """The run that readers see."""
    pointer = published(store)
    return None if pointer is None else pointer.run_id


def kept(store: Store, run: Run) -> list[Stage]:
    """The stages of a run that are still there."""
    return [stage for stage in STAGES if is_finished(store, stage, run.generation(stage))]


def refusal(store: Store, run_id: str) -> str:
    with pytest.raises(UsageError) as caught:
        promote_run(store, run_id)
    return caught.value.problem.code


# -- promote and roll back --------------------------------------------------------------------------------------------


def test_a_delivered_run_can_be_promoted(store: Store) -> None:
    """Any one that is kept, an older one too."""
    first, second = delivered(store, 1), delivered(store, 2)
    for run in (second, first):
        assert promote_run(store, run.run_id).run_id == run.run_id
        assert seen(store) == run.run_id


@pytest.mark.parametrize("status", ["running", "failed", "interrupted", "refused"])
def test_a_run_that_was_not_delivered_is_not_promoted(store: Store, status: RunStatus) -> None:
    """All of its tables are there; the gate, or whatever stopped it, still stands."""
    promote_run(store, delivered(store, 1).run_id)
    assert refusal(store, delivered(store, 2, status).run_id) == "NOT-DELIVERED"
    assert seen(store) == "2026-06-01.1"


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_lost_a_stage_is_not_promoted(store: Store, stage: Stage) -> None:
    """A reader would see lists and get no answer why, or no report, or no SQL."""
    promote_run(store, delivered(store, 1).run_id)
    run = delivered(store, 2)
    store.remove(f"{FOLDERS[stage]}/g2")
    assert refusal(store, run.run_id) == "NOT-DELIVERED"
    assert seen(store) == "2026-06-01.1"


def test_an_unknown_run_is_not_promoted(store: Store) -> None:
    """A slip of the keyboard."""
    assert refusal(store, "2026-06-01.1") == "UNKNOWN-RUN"


def test_rolling_back_again_and_again_goes_back_run_by_run(store: Store) -> None:
    """Each time to what readers saw before, and at the first one it stays."""
    runs = [delivered(store, day) for day in (1, 2, 3)]
    for run in runs:
        publish_run(store, run, Config())
    assert [roll_back(store).run_id for _ in range(2)] == [runs[1].run_id, runs[0].run_id]
    with pytest.raises(UsageError, match="NO-PREVIOUS"):
        roll_back(store)
    assert seen(store) == runs[0].run_id


def test_rolling_back_follows_publication_and_not_the_calendar(store: Store) -> None:
    """A day published late, or promoted, is what people saw before."""
    first, second, third = (delivered(store, day) for day in (1, 2, 3))
    for run in (second, third, first):
        publish_run(store, run, Config())
    assert [roll_back(store).run_id for _ in range(2)] == [third.run_id, second.run_id]


def test_rolling_back_passes_over_runs_whose_tables_are_gone(store: Store) -> None:
    """Going back to them would leave readers with nothing."""
    runs = [delivered(store, day) for day in (1, 2, 3)]
    for run in runs:
        publish_run(store, run, Config())
    store.remove("analysis/g2")
    assert roll_back(store).run_id == runs[0].run_id


# -- prune ------------------------------------------------------------------------------------------------------------


def test_only_the_newest_runs_are_kept_and_the_lake_for_ever(store: Store) -> None:
    """Of three runs two may stay; the first one's raw events stay, too: nothing can bring them back."""
    first, second, third = (delivered(store, day) for day in (1, 2, 3))
    removed = prune(store, keep_runs=2)
    assert sorted(removed) == sorted(f"{FOLDERS[stage]}/g1" for stage in STAGES[1:])
    assert kept(store, first) == ["collect"]
    assert kept(store, second) == kept(store, third) == list(STAGES)
    assert store.files("lake/g1") and not store.files("mart/g1")
    assert prune(store, keep_runs=2) == [], "nothing is left to do"


def test_publishing_prunes_what_the_settings_no_longer_keep(store: Store) -> None:
    """How pruning happens in daily life."""
    runs = []
    for day in (1, 2, 3, 4):
        runs.append(delivered(store, day))
        publish_run(store, runs[-1], Config(deliver=DeliverConfig(keep_runs=2)))
    assert [len(kept(store, run)) for run in runs] == [1, 7, 7, 7], "the newest two, and two to go back to"
    assert roll_back(store).run_id == runs[2].run_id


def test_the_published_run_is_kept_however_old_it_is(store: Store) -> None:
    """A week of failed runs must not take from readers what they see, nor the way back from it."""
    old, shown = delivered(store, 1), delivered(store, 2)
    for run in (old, shown):
        promote_run(store, run.run_id)
    for day in (3, 4, 5):
        delivered(store, day, "failed")
    prune(store, keep_runs=2)
    assert kept(store, old) == kept(store, shown) == list(STAGES)
    assert [store.exists(f"mart/g{day}") for day in (3, 4, 5)] == [False, True, True]


def test_files_that_a_kept_run_took_over_stay_with_their_generation(store: Store) -> None:
    """A mart adds files to those of the days before; the day that wrote them may be long forgotten."""
    delivered(store, 1)
    second = delivered(store, 2)
    third = handmade.run_of(store, dict.fromkeys(STAGES, "g3"), day="2026-06-03")
    of_the_first = read_manifest(store, "mart", "g1").tables["t"]
    for stage in STAGES:
        handmade.generation(store, stage, "g3", keeps={"t": of_the_first} if stage == "mart" else None)
    removed = prune(store, keep_runs=2)
    assert "mart/g1" not in removed and "features/g1" in removed
    for run in (second, third):
        assert is_whole(store, read_manifest(store, "mart", run.generation("mart")))


def test_a_run_of_a_few_stages_counts_and_keeps_those(store: Store) -> None:
    """Stages carried out by hand, one at a time: the next command goes on from them."""
    delivered(store, 1)
    handmade.generation(store, "mart", "half")
    handmade.run_of(store, {"mart": "half"}, day="2026-06-02", status="failed")
    assert prune(store, keep_runs=2) == []
    assert is_finished(store, "mart", "half")


def test_a_kept_run_that_lost_a_stage_does_not_stop_the_pruning(store: Store) -> None:
    """Somebody made room by hand; the disk must not fill up for it."""
    for day in (1, 2, 3):
        delivered(store, day)
    store.remove("analysis/g3")
    assert "analysis/g1" in prune(store, keep_runs=2)


def test_what_a_killed_attempt_left_goes_too(store: Store) -> None:
    """A folder without manifest is nobody's, and large."""
    delivered(store, 1)
    store.write_bytes("mart/dead/t/bucket-00000.parquet", b"half")
    assert prune(store, keep_runs=2) == ["mart/dead"]
    assert not store.exists("mart/dead")


def test_a_generation_stops_existing_before_its_files_go(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in between, it leaves files that nobody believes in, and no manifest of files that are not there."""
    delivered(store, 1), delivered(store, 2), delivered(store, 3)

    def killed(relative: str) -> None:
        if not relative.endswith("manifest.json"):
            raise KeyboardInterrupt
        Store.remove(store, relative)

    monkeypatch.setattr(store, "remove", killed)
    with pytest.raises(KeyboardInterrupt):
        prune(store, keep_runs=2)
    assert not is_finished(store, "mart", "g1") and store.files("mart/g1")
    monkeypatch.undo()
    assert "mart/g1" in prune(store, keep_runs=2), "and the next time it goes"
