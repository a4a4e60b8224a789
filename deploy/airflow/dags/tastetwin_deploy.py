"""Blue-green: new model and app beside the old, the switch, checks, the old ones away; back after any failure."""

from __future__ import annotations

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, Param, TriggerRule
from airflow.sdk.bases.operator import chain

from taste_dags.pods import StagePod, configured, manners, pod
from taste_dags.settings import STEPS, Deploy, load

SETTINGS = load()
HOW = SETTINGS.deploy or Deploy()


def step(name: str) -> StagePod:
    """One of the deploy commands."""
    command = name.removeprefix("deploy_").replace("_", "-")
    options = [
        "--target",
        HOW.target,
        "--store",
        SETTINGS.store,
        "--run",
        "{{ params.run }}",
        *configured(SETTINGS),
        "--json",
    ]
    return pod(SETTINGS, name, ["deploy", command, *options, *HOW.arguments])


with DAG(
    "tastetwin_deploy",
    description=(__doc__ or "").splitlines()[0],
    schedule=None,
    max_active_runs=1,
    params={"run": Param(type="string", pattern=r"^\d{4}-\d{2}-\d{2}\.\d+$", description="Run id, as in 2026-11-22.1")},
    tags=["tastetwin"],
):
    *forward, rollback = [step(name) for name in STEPS]
    rollback.trigger_rule = TriggerRule.ONE_FAILED
    # A run's state is that of its last tasks: this one says "failed" when the rollback went well.
    deployed = EmptyOperator(task_id="deployed", **manners(SETTINGS, SETTINGS.tasks["check"]))
    chain(*forward, deployed)
    forward >> rollback
