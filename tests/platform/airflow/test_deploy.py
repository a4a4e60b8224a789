"""The deploy DAG, played with commands that note and fail as told: all steps, and the way back from each."""

from __future__ import annotations

from typing import Any

import pytest

from tests.platform.airflow.plan import RUN, STEPS


def steps(run: dict[str, Any]) -> list[str]:
    """The deploy commands that pods were made for, in order."""
    return [pod["spec"]["containers"][0]["args"][1] for pod in run["created"]["main"]]


def test_a_deployment_takes_every_step_once_and_none_back(played: dict[str, Any]) -> None:
    """New model, new app, switch, check, old app, old model: traffic always has somewhere to go."""
    run = played["runs"]["deployed"]
    assert run["state"] == "success"
    assert steps(run) == ["model", "app", "switch", "check", "remove-app", "remove-model"]
    assert run["tasks"]["rollback"][0] == "skipped" and run["tasks"]["deployed"][0] == "success"
    for pod in run["created"]["main"]:
        assert pod["spec"]["containers"][0]["args"][2:8] == [
            "--target",
            "kubernetes",
            "--store",
            "/store",
            "--run",
            RUN,
        ]


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_fails_is_followed_by_the_rollback_and_the_run_is_failed(played: dict[str, Any], step: str) -> None:
    """A rollback that went well is still a deployment that did not; it must not look green."""
    run = played["runs"][f"{step}-fails"]
    assert run["state"] == "failed"
    assert steps(run) == [step.removeprefix("deploy_").replace("_", "-"), "rollback"]
    assert run["tasks"]["rollback"] == ["success", 1] and run["tasks"]["deployed"][0] == "upstream_failed"
    assert [alert["task"] for alert in run["alerts"]] == [step]
