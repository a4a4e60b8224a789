"""A task is a pod that runs one public command of tastetwin."""

from __future__ import annotations

import json
from datetime import timedelta
from functools import partial
from typing import Any, Final

import pendulum
from airflow.providers.cncf.kubernetes.callbacks import KubernetesPodOperatorCallback
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from taste_dags.alerts import Alert
from taste_dags.settings import Notebook, Settings, Task

DAY: Final = "{{ day(logical_date) }}"
"""The logical date in the schedule's time zone, filled in by Airflow when the task runs."""
FINAL: Final = {2: "the request is wrong", 5: "refused by the gate", 6: "something is not installed"}
"""Exit codes of tastetwin that another try would end with, too."""
JUPYTER: Final = {"JUPYTER_RUNTIME_DIR": "/tmp/jupyter", "IPYTHONDIR": "/tmp/ipython"}
"""Where a kernel may write in a pod whose root is read-only."""
TAIL: Final = 20
"""Lines at a log's end among which the result is looked for."""
FACTS: Final = ("run_id", "logical_date", "status", "published", "generations")


class Lineage(KubernetesPodOperatorCallback):
    """Keeps of a finished pod's answer which run and which generations it made, and nothing else."""

    @staticmethod
    def on_pod_completion(*, pod: Any, client: Any, operator: Any, context: Context, **kwargs: Any) -> None:
        """Called before the pod is deleted."""
        push(client, operator.pod, operator.base_container_name, context)


def push(client: Any, pod: Any, container: str, context: Context) -> None:
    """The facts of a pod's answer as the task's XCom."""
    name, namespace = pod.metadata.name, pod.metadata.namespace
    log = client.read_namespaced_pod_log(name, namespace, container=container, tail_lines=TAIL, _preload_content=False)
    said = last_object(log.data.decode("utf-8", "replace"))
    if said:
        context["ti"].xcom_push(key="return_value", value={name: said[name] for name in FACTS if name in said})


def last_object(log: str) -> dict[str, Any]:
    """The last line that is a JSON object; empty where none is."""
    for line in reversed(log.splitlines()):
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if isinstance(said, dict):
            return said
    return {}


class StagePod(KubernetesPodOperator):
    """A pod whose failure is final where tastetwin's exit code says that it is."""

    def execute(self, context: Context) -> None:
        """Run the pod.

        Raises:
            AirflowFailException: it failed and would again; Airflow does not try again.
            AirflowException: it failed and may do better.
        """
        try:
            super().execute(context)
        except AirflowException as error:
            why = FINAL.get(self._exit_code())
            if why:
                raise AirflowFailException(f"{why}: no other try") from error
            raise

    def _exit_code(self) -> int:
        status = getattr(self.remote_pod, "status", None)
        for each in getattr(status, "container_statuses", None) or ():
            if each.name == self.base_container_name and each.state.terminated:
                return int(each.state.terminated.exit_code)
        return -1


def day(zone: str, logical_date: Any) -> str:
    """The date of a moment in a time zone."""
    return str(pendulum.instance(logical_date).in_timezone(zone).to_date_string())


def macros(settings: Settings) -> dict[str, Any]:
    """What templates may call."""
    return {"day": partial(day, settings.timezone)}


def stage_arguments(settings: Settings, stage: str) -> list[str]:
    """The command line of a stage, after the program's name."""
    source = ["--source", settings.source.replace("{day}", DAY)] if stage == "collect" else []
    return [stage, *source, "--store", settings.store, "--date", DAY, *configured(settings), "--json"]


def configured(settings: Settings) -> list[str]:
    """The option that names the settings of tastetwin, where there are some."""
    return ["--config", settings.config] if settings.config else []


def stage_pod(settings: Settings, stage: str) -> StagePod:
    """A stage: its command, or the notebook that takes its place."""
    notebook = settings.tasks[stage].notebook
    if notebook:
        return pod(settings, stage, notebook_arguments(settings, stage, notebook), cmds=["papermill"], env_vars=JUPYTER)
    return pod(settings, stage, stage_arguments(settings, stage))


def notebook_arguments(settings: Settings, stage: str, notebook: Notebook) -> list[str]:
    """The command line of papermill, with ``stage``, ``store``, ``date``, ``config`` and, to collect, ``source``."""
    given = {"stage": stage, "store": settings.store, "date": DAY, "config": settings.config or ""}
    if stage == "collect":
        given["source"] = settings.source.replace("{day}", DAY)
    parameters = [part for name, value in given.items() for part in ("-r", name, value)]
    output = notebook.output.replace("{day}", DAY)
    return [notebook.path, output, *parameters, "--log-output", "--no-progress-bar"]


def pod(settings: Settings, name: str, arguments: list[str], **more: Any) -> StagePod:
    """A task of that name, as its section of the settings says."""
    task = settings.tasks[name]
    return StagePod(
        **manners(settings, task),
        **place(settings, task),
        task_id=name,
        name=f"tastetwin-{name.replace('_', '-')}",
        image=task.image,
        arguments=[*arguments, *task.arguments],
        pod_template_dict=template(name, task),
        startup_timeout_seconds=int(task.startup_timeout.total_seconds()),
        callbacks=[Lineage],
        log_events_on_failure=True,
        log_pod_spec_on_failure=False,  # environment variables may be secret
        **more,
    )


def place(settings: Settings, task: Task) -> dict[str, str]:
    """Which cluster, which namespace."""
    cluster = settings.clusters[task.cluster]
    return {"kubernetes_conn_id": cluster.connection, "namespace": cluster.namespace}


def manners(settings: Settings, task: Task) -> dict[str, Any]:
    """What every operator is told of retries, time and alarm."""
    return {
        "retries": task.retries,
        "retry_delay": task.retry_delay,
        "retry_exponential_backoff": task.retry_delay > timedelta(0),
        "max_retry_delay": task.longest_retry_delay,
        "execution_timeout": task.timeout,
        "on_failure_callback": [Alert(settings.alerts, "failed")] if settings.alerts else None,
    }


def template(name: str, task: Task) -> dict[str, Any]:
    """The pod that the settings describe; the operator adds image, command and labels."""
    labels = {"app.kubernetes.io/part-of": "tastetwin", "app.kubernetes.io/component": name}
    spec = {**task.pod, "containers": [{**task.container, "name": "base"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": labels}, "spec": spec}
