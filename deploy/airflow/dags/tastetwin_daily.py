"""The daily job: every stage a pod, in the order of the stage words; then the lists are sent and the model deployed."""

from __future__ import annotations

import pendulum
from airflow.providers.standard.operators.latest_only import LatestOnlyOperator
from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, AsyncCallback, CronDataIntervalTimetable, DeadlineAlert, DeadlineReference
from airflow.sdk.bases.operator import chain

from taste_dags.alerts import Alert
from taste_dags.pods import macros, manners, pod, stage_pod
from taste_dags.settings import STAGES, load
from taste_dags.training import training

SETTINGS = load()
CARRIED_ON = ("collect", "mart", "features")
"""Stages that carry on the rows of the day before, and so wait for it."""

late = SETTINGS.deadline and DeadlineAlert(
    reference=DeadlineReference.DAGRUN_QUEUED_AT,
    interval=SETTINGS.deadline,
    callback=AsyncCallback(Alert, {"connection": SETTINGS.alerts, "what": "is late"}),
    name="day done",
)

with DAG(
    "tastetwin_daily",
    description=(__doc__ or "").splitlines()[0],
    schedule=CronDataIntervalTimetable(SETTINGS.schedule, SETTINGS.timezone),
    start_date=pendulum.datetime(*SETTINGS.start_date.timetuple()[:3], tz=SETTINGS.timezone),
    catchup=SETTINGS.catchup,
    max_active_runs=1,
    deadline=late or None,
    user_defined_macros=macros(SETTINGS),
    tags=["tastetwin"],
):
    stages = [training(SETTINGS) if stage == "train" else stage_pod(SETTINGS, stage) for stage in STAGES]
    for stage in stages:
        stage.depends_on_past = stage.task_id in CARRIED_ON
    chain(*stages)
    to_store = ["--store", SETTINGS.store, "--json"]
    if SETTINGS.push:
        stages[-1] >> pod(SETTINGS, "push", ["push", "--to", SETTINGS.push, *to_store])
    if SETTINGS.load:
        stages[-1] >> pod(SETTINGS, "load", ["load", "--to", SETTINGS.load, *to_store])
    if SETTINGS.deploy:
        run = "{{ ti.xcom_pull(task_ids='deliver')['run_id'] }}"
        latest = LatestOnlyOperator(task_id="latest_only", **manners(SETTINGS, SETTINGS.tasks["deliver"]))
        deploy = TriggerDagRunOperator(
            task_id="deploy",
            trigger_dag_id="tastetwin_deploy",
            trigger_run_id=f"tastetwin_deploy__{run}",
            conf={"run": run},
            reset_dag_run=True,
            **manners(SETTINGS, SETTINGS.tasks["deliver"]),
        )
        chain(stages[-1], latest, deploy)
