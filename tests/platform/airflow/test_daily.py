"""The daily DAG, played: the whole chain on a town as real containers, and what happens when a task fails."""

from __future__ import annotations

from typing import Any

import pytest

from tests.platform.airflow.plan import DAY, STAGES


def run(played: dict[str, Any], name: str) -> dict[str, Any]:
    return dict(played["runs"][name])


def made(played: dict[str, Any], name: str) -> dict[str, str]:
    return dict(run(played, name)["xcoms"]["deliver"]["return_value"]["generations"])


def test_the_whole_chain_ends_with_a_published_run_that_is_to_be_deployed(played: dict[str, Any]) -> None:
    """Every stage by itself, as its container's user, on a read-only root: what production does, all of it."""
    real = run(played, "real")
    assert real["state"] == "success"
    said = real["xcoms"]["deliver"]["return_value"]
    assert (said["run_id"], said["status"], said["published"]) == (f"{DAY}.1", "delivered", True)
    assert set(made(played, "real")) == set(STAGES)
    assert played["triggered"][0] == {
        "run_id": f"tastetwin_deploy__{DAY}.1",
        "conf": {"run": f"{DAY}.1"},
        "state": "queued",
    }


def test_pods_go_to_their_cluster_with_their_command(played: dict[str, Any]) -> None:
    """Six stages in one cluster, training in the other, each asked for the logical date."""
    created = run(played, "real")["created"]
    assert [pod["metadata"]["labels"]["task_id"] for pod in created["gpu"]] == ["train"]
    assert [pod["metadata"]["labels"]["task_id"] for pod in created["main"]] == [s for s in STAGES if s != "train"]
    assert {pod["metadata"]["namespace"] for pod in created["main"]} == {"tastetwin"}
    mart = created["main"][1]["spec"]["containers"][0]
    assert mart["args"] == [
        "mart",
        *["--store", "/store", "--date", "2026-06-30", "--config", "/etc/tastetwin/settings.yaml", "--json"],
    ]


def test_the_same_date_again_makes_the_same_generations(played: dict[str, Any]) -> None:
    """A retry, a cleared task and a backfill must not make other data; only the verdict looks at what is published."""
    first, again = made(played, "real"), made(played, "real-again")
    assert run(played, "real-again")["state"] == "success"
    assert {name: first[name] for name in STAGES if name != "evaluate"} == {
        name: again[name] for name in STAGES if name != "evaluate"
    }


def test_a_notebook_takes_a_stage_s_place_and_torchrun_trains_on_two_nodes(played: dict[str, Any]) -> None:
    """What comes after must not notice the difference."""
    variants = run(played, "variants")
    assert variants["state"] == "success", variants["tasks"]
    assert len(variants["created"]["gpu"]) == 2
    assert made(played, "variants")["train"] == made(played, "real")["train"] + "-2"  # --again: beside the old
    papermill = next(pod for pod in variants["created"]["main"] if pod["metadata"]["labels"]["task_id"] == "analyze")
    assert papermill["spec"]["containers"][0]["command"] == ["papermill"]
    assert variants["xcoms"]["analyze"]["return_value"]["generations"]["analyze"] == made(played, "variants")["analyze"]


def test_nothing_but_ids_passes_through_airflow_s_database(played: dict[str, Any]) -> None:
    """XCom is no place for data, and no place for counts of people either."""
    allowed = {"run_id", "logical_date", "status", "published", "generations"}
    values = [x["return_value"] for task, x in run(played, "real")["xcoms"].items() if task in STAGES]
    assert len(values) == len(STAGES) and all(set(value) == allowed for value in values)
    assert max(len(str(value)) for value in values) < 1000


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_fails_is_tried_again_then_stops_the_chain_and_rings(played: dict[str, Any], stage: str) -> None:
    """Nobody may read lists that were made of half a day."""
    failed = run(played, f"{stage}-fails")
    later = [*STAGES[STAGES.index(stage) + 1 :], "latest_only", "deploy"]
    assert failed["state"] == "failed"
    assert failed["tasks"][stage] == ["failed", 2]
    assert {failed["tasks"][name][0] for name in later} == {"upstream_failed"}
    pods = failed["created"]["gpu" if stage == "train" else "main"]
    assert [pod["metadata"]["labels"]["task_id"] for pod in pods] == [stage, stage]
    assert [(alert["task"], alert["try"]) for alert in failed["alerts"]] == [(stage, 2)]


def test_an_alert_says_where_to_look_and_nothing_of_the_data(played: dict[str, Any]) -> None:
    """The hook's owner may be another company."""
    alert = run(played, "mart-fails")["alerts"][0]
    assert alert.pop("authorization") == "Bearer hook-token"
    assert set(alert) == {"text", "dag", "task", "try", "run", "logical_date", "log"}
    assert alert["text"].startswith("TasteTwin: tastetwin_daily mart 2026-05-") and alert["text"].endswith(" failed")


def test_a_missed_deadline_rings_through_the_triggerer(played: dict[str, Any]) -> None:
    """A day that hangs fails nowhere; only the clock can tell."""
    assert "success" in played["late"]["ended"]
    assert played["late"]["alert"]["text"] == "TasteTwin: tastetwin_daily 2026-06-30T03:00:00Z is late"


def test_a_stage_that_recovers_lets_the_chain_go_on(played: dict[str, Any]) -> None:
    """A node that went away costs a retry, not a day."""
    recovered = run(played, "deliver-recovers")
    assert recovered["state"] == "success" and recovered["alerts"] == []
    assert recovered["tasks"]["deliver"] == ["success", 2] and recovered["tasks"]["deploy"][0] == "success"


def test_what_the_gate_refused_is_not_tried_again(played: dict[str, Any]) -> None:
    """The gate's answer does not change in a minute, and somebody has to look."""
    refused = run(played, "deliver-refused")
    assert refused["state"] == "failed" and refused["tasks"]["deliver"] == ["failed", 1]
    assert len(refused["created"]["main"]) == 1 and len(refused["alerts"]) == 1


def test_training_on_ray_is_waited_for_and_its_failure_is_the_task_s(played: dict[str, Any]) -> None:
    """A RayJob that is only submitted says nothing of the model."""
    well, ill = run(played, "ray-ends-well"), run(played, "ray-fails")
    assert (well["state"], ill["state"]) == ("success", "failed")
    job = well["created"]["gpu"][0]
    assert job["metadata"]["name"] == "tastetwin-train-2026-04-28"
    assert job["spec"]["entrypoint"].startswith(
        "torchrun --standalone --nproc-per-node 2 -m tastetwin train --store /store"
    )
    assert "--date '2026-04-28'" in job["spec"]["entrypoint"] and job["spec"]["entrypointNumGpus"] == 2
    assert len(ill["created"]["gpu"]) == 2  # the next try takes the place of the first
