"""The daily job from raw events to published lists, as a whole; every test asks one thing of the same finished run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from tastetwin import TasteTwin
from tastetwin.cli.ask import compare
from tastetwin.delivery.publish import promote_run, roll_back
from tastetwin.errors import GateRefused, InputError
from tastetwin.features.vocabulary import read_vocabulary
from tastetwin.generations import STAGES, read_manifest
from tastetwin.pipeline import run_day, run_stage
from tastetwin.runs import list_runs, published, read_run
from tastetwin.sources.synthetic import write_day
from tests.world import NEXT_DAY, QUICK, TOWN, Journey

pytestmark = pytest.mark.slow


def test_every_stage_runs_and_the_run_is_published(journey: Journey) -> None:
    assert journey.first.status == "delivered"
    assert tuple(stage for stage in STAGES if stage in journey.first.stages) == STAGES
    pointer = published(journey.store)
    assert pointer is not None and pointer.run_id == journey.first.run_id


def test_the_funnel_is_the_town_s_own_account(journey: Journey) -> None:
    """What the town wrote is what the job counted: no line lost, no line invented."""
    kinds = journey.town.kinds.values()
    counts = journey.first.stages["mart"].counts
    assert counts["lines_read"] == sum(kind.lines for kind in kinds)
    assert counts["accepted"] == sum(kind.accepted for kind in kinds)
    assert counts["quarantined"] == sum(kind.refused for kind in kinds)


def test_planted_twins_are_found(journey: Journey) -> None:
    """The ten closest share the planted taste far more often than people of the same home do: the known answer."""
    truth = pl.read_parquet(journey.town.truth / "users.parquet").select("user_idno", "taste_group", "home_region")
    twins = pl.from_arrow(journey.tt.twins())
    assert isinstance(twins, pl.DataFrame)
    pairs = (
        twins.filter(pl.col("rank") <= 10)
        .join(truth, on="user_idno")
        .join(truth, left_on="twin_idno", right_on="user_idno", suffix="_twin")
    )
    same = (pairs["taste_group"] == pairs["taste_group_twin"]).mean()
    by_chance = ((truth["taste_group"].value_counts()["count"] / len(truth)) ** 2).sum()
    assert isinstance(same, float)
    assert same > 3 * by_chance


def test_lists_are_whole(journey: Journey) -> None:
    """Every eligible user has K twins, nobody is their own, nobody twice, scores fall with rank."""
    eligible = journey.first.stages["features"].counts["eligible"]
    twins = pl.from_arrow(journey.tt.twins())
    assert isinstance(twins, pl.DataFrame)
    assert twins["user_idno"].n_unique() == eligible
    assert (twins["user_idno"] != twins["twin_idno"]).all()
    assert twins.group_by("user_idno").agg(pl.col("twin_idno").n_unique() == pl.len())["twin_idno"].all()
    assert twins.group_by("user_idno").len()["len"].unique().to_list() == [100]
    falling = twins.sort("user_idno", "rank").group_by("user_idno").agg((pl.col("score").diff() <= 0).all())
    assert falling["score"].all()
    assert twins["percentile"].is_between(0, 100).all()


def test_a_comparison_answers_in_json(journey: Journey, capsys: pytest.CaptureFixture[str]) -> None:
    """A program must get what a person gets; evidence is made of named tuples, which orjson does not know."""
    store = str(journey.store.root)
    user, other = TasteTwin(store).sql("SELECT user_idno, twin_idno FROM twins LIMIT 1").to_pylist()[0].values()
    compare(user, other, store, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["user_idno"] == user and said["agree"]["sentence"]
    assert all(place["visitors"] >= 10 for place in said["agree"]["places"])


def test_the_same_day_again_finds_its_work_done(copied: Journey) -> None:
    again = run_day(copied.store, str(copied.town.folder), TOWN.until, QUICK)
    assert again.run_id == f"{TOWN.until}.2"
    kept = {stage: again.stages[stage].generation for stage in STAGES if stage not in ("evaluate",)}
    assert kept == {stage: copied.first.stages[stage].generation for stage in kept}


def test_the_same_day_made_anew_gives_the_same_mart_and_feature_bytes(copied: Journey) -> None:
    for stage in ("mart", "features"):
        run = run_stage(copied.store, stage, TOWN.until, QUICK, again=True)
        fresh = read_manifest(copied.store, stage, run.stages[stage].generation)
        first = read_manifest(copied.store, stage, copied.first.stages[stage].generation)
        assert fresh.generation != first.generation
        assert fresh.digest() == first.digest()


def test_a_second_day_keeps_rows_files_and_comparability(copied: Journey, tmp_path: Path) -> None:
    """The increment adds files and leaves the old ones; vocabulary rows stay; a rollback brings the old lists back."""
    report = write_day(TOWN, 1, tmp_path / "day")
    second = run_day(copied.store, str(report.folder), NEXT_DAY, QUICK)
    assert second.status == "delivered"
    old, new = (read_manifest(copied.store, "mart", run.stages["mart"].generation) for run in (copied.first, second))
    assert set(old.paths("reviews")) < set(new.paths("reviews"))
    before, after = (
        read_vocabulary(
            copied.store, read_manifest(copied.store, "features", run.generation("features")).paths("vocabulary")[0]
        )
        for run in (copied.first, second)
    )
    assert list(after.place_ids[: before.n_rows]) == list(before.place_ids)
    assert roll_back(copied.store).run_id == copied.first.run_id
    assert promote_run(copied.store, second.run_id).run_id == second.run_id


def test_a_date_landed_again_with_less_waits_until_a_person_says_so(copied: Journey, tmp_path: Path) -> None:
    """A half-synced folder takes nothing from readers: not by its own date, not by the next, which goes on from it."""
    shutil.copytree(copied.town.folder, tmp_path / "half")
    file = next((tmp_path / "half").glob("reviews*.jsonl"))
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-50]))
    after = write_day(TOWN, 1, tmp_path / "day").folder
    with pytest.raises(GateRefused, match="EVENTS-LOST") as caught:
        run_day(copied.store, str(tmp_path / "half"), TOWN.until, QUICK)
    assert f"reviews of {TOWN.until}" in caught.value.problem.value
    with pytest.raises(GateRefused, match=f"EVENTS-LOST.* of {TOWN.until}"):
        run_day(copied.store, str(after), NEXT_DAY, QUICK)
    pointer = published(copied.store)
    assert pointer is not None and pointer.run_id == copied.first.run_id
    waiting = read_run(copied.store, f"{TOWN.until}.2")
    assert waiting.status == "delivered" and str(waiting.error).startswith("EVENTS-LOST")
    assert promote_run(copied.store, waiting.run_id).run_id == waiting.run_id
    accepted = run_day(copied.store, str(after), NEXT_DAY, QUICK)
    assert published(copied.store).run_id == accepted.run_id  # type: ignore[union-attr]


def test_a_failing_day_leaves_the_published_run_alone(copied: Journey, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "reviews.jsonl").write_text("not json\n" * 100)
    with pytest.raises(InputError, match="QUARANTINE-SHARE"):
        run_day(copied.store, str(bad), NEXT_DAY, QUICK)
    pointer = published(copied.store)
    assert pointer is not None and pointer.run_id == copied.first.run_id
    failed = list_runs(copied.store)[-1]
    assert failed.status == "failed" and failed.error is not None and "QUARANTINE-SHARE" in failed.error
    assert copied.tt.similar(copied.tt.twins()["user_idno"][0].as_py()).num_rows == 10
