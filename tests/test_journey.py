"""The daily job from raw events to answers, once for the whole file; every test asks one thing of the same store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tastetwin import TasteTwin
from tastetwin.cli import app
from tastetwin.config import Config, EvaluateConfig, TrainConfig
from tastetwin.delivery.publish import promote_run, prune, roll_back
from tastetwin.errors import InputError, UsageError
from tastetwin.evaluation.stage import report_path
from tastetwin.features.vocabulary import read_vocabulary
from tastetwin.pipeline import run_day, run_stage
from tastetwin.runs import STAGES, Manifest, Run, is_finished, list_runs, published, read_manifest
from tastetwin.sources.synthetic import TownConfig, TownReport, write_day, write_town
from tastetwin.store import Store

pytestmark = pytest.mark.slow

TOWN = TownConfig(users=700, seed=3)
QUICK = Config(train=TrainConfig(epochs=1, layers=1, width=32, heads=2, dim=64), evaluate=EvaluateConfig(bootstrap=200))
NEXT_DAY = TOWN.until + timedelta(days=1)


@dataclass(frozen=True)
class Journey:
    """A town, its store, and the first day's run."""

    town: TownReport
    store: Store
    first: Run

    @property
    def tt(self) -> TasteTwin:
        return TasteTwin(self.store.root, QUICK)


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Journey:
    folder = tmp_path_factory.mktemp("journey")
    town = write_town(TOWN, folder / "town")
    store = Store.create(folder / "store")
    return Journey(town, store, run_day(store, str(town.folder), TOWN.until, QUICK))


@pytest.fixture
def copied(journey: Journey, tmp_path: Path) -> Iterator[Journey]:
    """A copy of the store for tests that publish something else."""
    shutil.copytree(journey.store.root, tmp_path / "store")
    yield Journey(journey.town, Store.open(tmp_path / "store"), journey.first)


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


def test_vectors_have_unit_length(journey: Journey) -> None:
    vectors = np.stack(journey.tt.vectors()["vector"].to_numpy(zero_copy_only=False))
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)


def test_similar_explains_and_refuses_clearly(journey: Journey) -> None:
    user = journey.tt.twins()["user_idno"][0].as_py()
    found = journey.tt.similar(user, 5)
    assert found.column_names == ["user_idno", "rank", "twin_idno", "score", "percentile", "evidence"]
    assert found["rank"].to_pylist() == [1, 2, 3, 4, 5]
    assert all(found["evidence"].to_pylist())
    with pytest.raises(UsageError, match="UNKNOWN-USER"):
        journey.tt.similar("nobody")
    history = pl.read_parquet([journey.store.path(p) for p in _features(journey).paths("history")])
    few = history.filter(pl.col("places").list.len() < QUICK.features.min_favors)["user_idno"][0]
    with pytest.raises(UsageError, match="TOO-FEW-FAVORS"):
        journey.tt.similar(few)


def test_evidence_names_only_places_that_many_favor(journey: Journey) -> None:
    rows = pq.read_table(journey.store.path(_features(journey).paths("place_row")[0]))
    visitors = dict(zip(rows["place_id"].to_pylist(), rows["visitors"].to_pylist(), strict=True))
    user = journey.tt.twins()["user_idno"][0].as_py()
    said = json.loads(_cli("similar", user, "--store", journey.store.root, "--json"))
    named = [place for twin in said["twins"] for place in twin["shared_places"]]
    assert named and all(visitors[place] >= 10 for place in named)


def test_embedding_the_same_source_gives_the_published_vectors(journey: Journey) -> None:
    """Batch and embed share one path from raw favors to tensors, so they must agree."""
    vectors, unusable = journey.tt.embed(journey.town.folder)
    known = {row["user_idno"]: row["vector"] for row in journey.tt.vectors().to_pylist()}
    found = {row["user_idno"]: row["vector"] for row in vectors.to_pylist()}
    assert unusable == []
    assert all(np.dot(known[user], found[user]) > 0.999 for user in known)


def test_embed_falls_back_by_category_and_region_and_lists_whom_it_cannot_place(journey: Journey) -> None:
    places = pl.read_parquet([journey.store.path(p) for p in _features(journey).paths("place")])
    like = places.filter(pl.col("place_category_code_list").list.len() > 0).row(0, named=True)
    new = {"place_id": ["new-1"], **{k: [like[k]] for k in ("place_category_code_list", "place_dongcode")}}
    reviews = {"user_idno": ["a", "b"], "review_place_id": ["new-1", "never-heard-of"]}
    vectors, unusable = journey.tt.embed({"reviews": pa.table(reviews), "places": pl.DataFrame(new)})
    assert vectors["user_idno"].to_pylist() == ["a"]
    assert unusable == ["b"]


def test_frames_of_any_make_are_accepted(journey: Journey) -> None:
    """The same events as Arrow, polars and pandas give the same vectors."""
    place = journey.tt.sql("SELECT place_id FROM place LIMIT 1")["place_id"][0].as_py()
    reviews = pa.table({"user_idno": ["a"], "review_place_id": [place]})
    found = [
        journey.tt.embed({"reviews": frame})[0]["vector"].to_pylist()
        for frame in (reviews, pl.from_arrow(reviews), reviews.to_pandas())
    ]
    assert found[0] == found[1] == found[2]


def test_sql_answers_a_planner(journey: Journey) -> None:
    user = journey.tt.twins()["user_idno"][0].as_py()
    row = journey.tt.sql(f"SELECT idno, payload.* FROM result WHERE idno = '{user}'").to_pylist()[0]
    assert row["idno"] == user and len(row["twins"]) == 100
    for view in ("twins", "user_favor", "place", "quarantine", "runs"):
        assert journey.tt.sql(f"SELECT count(*) AS n FROM {view}")["n"][0].as_py() > 0
    with pytest.raises(UsageError, match="SQL"):
        journey.tt.sql("SELECT * FROM read_csv('/etc/passwd')")
    with pytest.raises(UsageError, match="SQL"):
        journey.tt.sql(f"COPY (SELECT 1) TO '{journey.store.path('published.json')}'")


def test_exports_hold_what_they_promise(journey: Journey, tmp_path: Path) -> None:
    for what, name in (("twins", "t.parquet"), ("twins", "t.csv"), ("vectors", "v.parquet"), ("report", "r.html")):
        _cli("export", what, "--store", journey.store.root, "--to", str(tmp_path / name))
    twins = pq.read_table(tmp_path / "t.parquet")
    assert twins.column_names == ["user_idno", "rank", "twin_idno", "score", "percentile"]
    assert len((tmp_path / "t.csv").read_text().splitlines()) == twins.num_rows + 1
    assert (tmp_path / "r.html").read_text().startswith("<!")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.html", "t.csv", "t.parquet", "v.parquet"]


def test_the_report_is_self_contained(journey: Journey) -> None:
    html = Path(journey.store.path(report_path(journey.first.run_id))).read_text()
    assert "<script src" not in html and "http://" not in html.replace("http://www.w3.org", "") and "<link" not in html


def test_runs_tell_durations_and_funnel_as_json(journey: Journey) -> None:
    run = json.loads(_cli("runs", "--store", journey.store.root, "--json"))[0]
    assert run["published"] and run["status"] == "delivered"
    assert list(run["seconds"]) == list(STAGES)
    funnel = run["funnel"]
    assert funnel["accepted"] + funnel["quarantined"] == funnel["lines_read"]
    assert sum(funnel["quarantined_by_reason"].values()) == funnel["quarantined"]
    assert funnel["users"] >= funnel["users_served"] > 0


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


def test_pruning_never_touches_what_a_kept_run_reads(copied: Journey) -> None:
    run_stage(copied.store, "mart", TOWN.until, QUICK, again=True)
    prune(copied.store, keep_runs=2)
    assert all(is_finished(copied.store, stage, copied.first.stages[stage].generation) for stage in STAGES)
    assert copied.tt.twins().num_rows > 0


def test_a_future_date_and_a_missing_store_are_refused(journey: Journey, tmp_path: Path) -> None:
    future = (date.today() + timedelta(days=10)).isoformat()
    source, store = str(journey.town.folder), str(tmp_path / "s")
    with pytest.raises(UsageError, match="FUTURE-DATE"):
        _cli("run", "--source", source, "--store", store, "--date", future)
    with pytest.raises(Exception, match="NO-STORE"):
        _cli("similar", "1", "--store", store)


def test_every_table_says_what_the_schema_says(journey: Journey) -> None:
    user_favor = journey.tt.sql("SELECT * FROM user_favor LIMIT 1").schema
    assert user_favor.names == ["user_idno", "like_list", "like_stat_list", "review_list"]
    assert pc.all(pc.is_valid(journey.tt.sql("SELECT like_list FROM user_favor")["like_list"])).as_py()


def _features_of(journey: Journey, run: Run) -> Manifest:
    return read_manifest(journey.store, "features", run.generation("features"))


def _features(journey: Journey) -> Manifest:
    return _features_of(journey, journey.first)


def _cli(*arguments: str) -> str:
    """Run a command in this process; a refusal comes as its exception."""
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False).stdout
