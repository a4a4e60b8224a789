"""deliver: a result is the list beside what is known of the user, and only runs that the gate lets through have any."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from tastetwin.delivery.stage import deliver_run
from tastetwin.errors import GateRefused, TasteTwinError, UsageError
from tastetwin.evaluation.gate import Finding, Verdict
from tastetwin.evaluation.stage import RIVAL
from tastetwin.features.vocabulary import read_vocabulary
from tastetwin.generations import STAGES, Manifest, Stage, entry_of, read_manifest
from tastetwin.runs import Run, publish, published
from tastetwin.schema import RESULT
from tastetwin.store import Store
from tastetwin.tables import bucket_name, bucket_of, read_files, read_table
from tests import handmade
from tests.world import Journey


def evaluation(store: Store, name: str, *, against: Manifest | None = None, verdict: Verdict | None = None) -> Manifest:
    """An evaluation as the stage leaves it: its verdict, and which evaluation was the published one then."""
    path = f"evaluation/{name}/evaluation.json"
    store.write_bytes(path, name.encode())
    facts = {"verdict": asdict(verdict or Verdict(True, against is None, [])), RIVAL: against and against.digest()}
    return handmade.generation(store, "evaluate", name, keeps={"evaluation": [entry_of(store, path)]}, facts=facts)


def evaluated(store: Store, name: str = "e", **more: Any) -> tuple[Run, Manifest]:
    """A run of the handmade users, ready to be delivered."""
    made = evaluation(store, name, **more)
    return handmade.run_of(store, {"features": "f", "analyze": "a", "evaluate": name}, status="running"), made


@pytest.fixture
def store(memory_store: Store) -> Store:
    handmade.features(memory_store)
    handmade.analysis(memory_store)
    return memory_store


def refusal(store: Store, run: Run) -> TasteTwinError:
    with pytest.raises((UsageError, GateRefused)) as caught:
        deliver_run(store, run)
    assert store.names("results") == []
    return caught.value


# -- what is delivered ------------------------------------------------------------------------------------------------


def result(user: str) -> dict[str, Any]:
    """The row of a user, written out from the handmade lists."""
    columns = ("twin_idno", "score", "percentile", "taste", "home", "chance")
    listed = [dict(zip(columns, (*twin, *handmade.worth_of(twin[1])), strict=True)) for twin in handmade.LISTS[user]]
    known = {"favors": handmade.FAVORS[user], "places": len(handmade.USERS[user])}
    day = handmade.DAY
    return {
        "idno": user,
        "payload": {"logical_date": day, **known, "home_region": handmade.HOMES[user], "twins": listed},
    }


def test_a_result_is_the_user_s_list_beside_what_is_known_of_the_user(store: Store) -> None:
    """Favors, places, home and twins of one user each: a join that slipped by a row would look just as plausible.

    cid has too few places and hal nobody to be shown, so neither is served; nothing is known of where gus lives.
    """
    run, _ = evaluated(store)
    made = deliver_run(store, run)
    rows = read_table(store, made, "result", RESULT).to_pylist()
    assert sorted(rows, key=lambda row: str(row["idno"])) == [result(user) for user in ("ann", "bob", "dot", "gus")]
    assert made.facts == {"counts": {"results": 4}, "buckets": handmade.BUCKETS}


def test_lists_are_put_in_order_however_the_rows_lie(store: Store) -> None:
    """Rank decides who is first, and users ascend within a bucket."""
    backwards = handmade.twins().take(pa.array(range(5, -1, -1)))
    handmade.generation(
        store, "analyze", "back", {"twins": handmade.bucketed(backwards)}, facts={"buckets": handmade.BUCKETS}
    )
    evaluation(store, "e")
    run = handmade.run_of(store, {"features": "f", "analyze": "back", "evaluate": "e"})
    made = deliver_run(store, run)
    for path in made.paths("result"):
        rows = read_files(store, [path], RESULT).to_pylist()
        assert rows == sorted((result(row["idno"]) for row in rows), key=lambda row: str(row["idno"]))


def test_lists_made_before_there_were_parts_are_delivered_without(store: Store) -> None:
    """A run that was half done when the new version came is gone on with."""
    old = [rows.drop_columns(["taste", "home", "chance"]) for rows in handmade.bucketed(handmade.twins())]
    handmade.generation(store, "analyze", "old", {"twins": old}, facts={"buckets": handmade.BUCKETS})
    evaluation(store, "e")
    made = deliver_run(store, handmade.run_of(store, {"features": "f", "analyze": "old", "evaluate": "e"}))
    listed = [twin for row in read_table(store, made, "result", RESULT).to_pylist() for twin in row["payload"]["twins"]]
    assert len(listed) == 6 and all(twin["taste"] is None and twin["home"] is None for twin in listed)


def test_a_bucket_in_which_nobody_has_a_twin_is_no_obstacle(store: Store) -> None:
    """In a small town it happens, and must not cost the others their day."""
    only_bob = handmade.twins().slice(2, 1)
    handmade.generation(
        store, "analyze", "few", {"twins": handmade.bucketed(only_bob)}, facts={"buckets": handmade.BUCKETS}
    )
    evaluation(store, "e")
    run = handmade.run_of(store, {"features": "f", "analyze": "few", "evaluate": "e"})
    made = deliver_run(store, run)
    assert read_table(store, made, "result", RESULT).to_pylist() == [result("bob")]


def test_a_user_s_result_lies_where_the_user_s_history_does(store: Store) -> None:
    """One bucket answers for one user, in every table: that is how a single user is looked up."""
    run, _ = evaluated(store)
    made = deliver_run(store, run)
    for path in made.paths("result"):
        name = path.rsplit("/", 1)[-1]
        ids = read_files(store, [path], RESULT)["idno"].to_pylist()
        assert {bucket_name(bucket_of(user, handmade.BUCKETS)) for user in ids} <= {name}


def test_delivering_again_finds_the_work_done(store: Store) -> None:
    """A retry after a lost answer; with ``again`` the same rows are made beside it."""
    run, _ = evaluated(store)
    first = deliver_run(store, run)
    assert deliver_run(store, run).generation == first.generation
    anew = deliver_run(store, run, again=True)
    assert anew.generation != first.generation and anew.digest() == first.digest()


def test_delivering_publishes_nothing_by_itself(store: Store) -> None:
    """The pointer moves when everything is there; see ``publish_run``."""
    run, _ = evaluated(store)
    deliver_run(store, run)
    assert published(store) is None


# -- what is not ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("severity", "code"), [("refuse", "GATE-REFUSED"), ("broken", "GATE-BROKEN")])
def test_a_run_that_the_gate_refuses_is_not_delivered(store: Store, severity: Any, code: str) -> None:
    """And whoever is woken up by it reads what was found and where the report is."""
    finding = Finding("GINI", severity, 0.99, 0.9, "few are shown to all")
    run, _ = evaluated(store, verdict=Verdict(False, True, [finding]))
    error = refusal(store, run)
    assert isinstance(error, GateRefused) and error.problem.code == code
    assert "few are shown to all" in error.problem.value
    assert run.run_id in error.problem.place and f"reports/{run.run_id}.html" in error.problem.place


def test_a_warning_does_not_stop_a_delivery(store: Store) -> None:
    """On a first run there is only that."""
    run, _ = evaluated(store, verdict=Verdict(True, True, [Finding("GINI", "warn", 0.99, 0.9, "few are shown")]))
    assert deliver_run(store, run).facts["counts"] == {"results": 4}


def test_a_verdict_against_another_run_than_the_published_one_is_old(store: Store) -> None:
    """Two runs were evaluated when nothing was published: the second would replace the first without a comparison."""
    first, first_evaluation = evaluated(store, "e1")
    second, _ = evaluated(store, "e2")
    publish(store, first.run_id)
    error = refusal(store, second)
    assert error.problem.code == "OLD-VERDICT"
    assert f"tastetwin evaluate --store ... --date {handmade.DAY}" in error.problem.fix
    third, _ = evaluated(store, "e3", against=first_evaluation)
    assert deliver_run(store, third).stage == "deliver"


def test_a_verdict_from_before_a_rollback_is_old_too(store: Store) -> None:
    """It was better than a run that nobody sees any more."""
    first, first_evaluation = evaluated(store, "e1")
    second, second_evaluation = evaluated(store, "e2", against=first_evaluation)
    third, _ = evaluated(store, "e3", against=second_evaluation)
    publish(store, second.run_id)
    publish(store, first.run_id)
    assert refusal(store, third).problem.code == "OLD-VERDICT"


def test_the_published_run_can_be_delivered_again(store: Store) -> None:
    """It was judged against the one before, or nothing; it replaces itself."""
    run, _ = evaluated(store)
    publish(store, run.run_id)
    assert deliver_run(store, run).facts["counts"] == {"results": 4}


def test_a_run_without_evaluation_is_not_delivered(store: Store) -> None:
    """The gate cannot be gone round by leaving a stage out."""
    run = handmade.run_of(store, {"features": "f", "analyze": "a"})
    assert refusal(store, run).problem.code == "STAGE-MISSING"


# -- a whole run ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_results_of_a_real_run_are_lists_joined_with_histories(journey: Journey) -> None:
    """The join done once more, by another library, from the tables that it is made of."""
    made = {stage: read_manifest(journey.store, stage, journey.first.generation(stage)) for stage in STAGES}

    def read(stage: Stage, table: str) -> pl.DataFrame:
        return pl.read_parquet([journey.store.path(path) for path in made[stage].paths(table)])

    vocabulary = read_vocabulary(journey.store, made["features"].paths("vocabulary")[0])
    lists = read("analyze", "twins").sort("user_idno", "rank").group_by("user_idno", maintain_order=True).agg(
        pl.struct("twin_idno", "score", "percentile", "taste", "home", "chance").alias("twins")
    )  # fmt: skip
    facts = read("features", "history").select("user_idno", "favors", pl.col("places").list.len().alias("n"), "places")
    wanted = lists.join(facts, on="user_idno").sort("user_idno")
    found = read("deliver", "result").unnest("payload").sort("idno")
    assert found["idno"].to_list() == wanted["user_idno"].to_list()
    assert found["twins"].to_list() == wanted["twins"].to_list()
    assert found["favors"].to_list() == wanted["favors"].to_list()
    assert found["places"].to_list() == wanted["n"].to_list()
    assert set(found["logical_date"]) == {journey.first.logical_date}
    for home, places in zip(found["home_region"], wanted["places"], strict=True):
        regions = [str(vocabulary.region_codes[r]) for r in vocabulary.regions[places.to_numpy()] if r >= 0]
        assert regions.count(home) == max(map(regions.count, regions))
