"""Runs in Airflow's environment, started by the tests: plays runs of the DAGs one by one and writes what came of them.

One process for all of them, since Airflow takes many seconds to start. The folder holds ``plan.json`` and, at the end,
``played.json``.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DAGS = HERE.parents[2] / "deploy" / "airflow" / "dags"
TOKENS = {"main": "token-of-main", "gpu": "token-of-gpu"}


class Hook:
    """Takes alerts."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                said = json.loads(self.rfile.read(int(self.headers["content-length"])))
                hook.heard.append({**said, "authorization": self.headers["authorization"]})
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                """Says nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"


def prepare(folder: Path) -> None:
    """Airflow's own home and database, before anything of it is imported."""
    os.environ |= {
        "AIRFLOW_HOME": str(folder / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO",
    }
    from airflow.utils.db import initdb

    initdb()


def shapes(files: list[str]) -> dict[str, Any]:
    """Of each settings file: the errors of reading the DAGs with it, or what they look like."""
    return {file: shape(file) for file in files}


def read(file: str) -> Any:
    """The DAGs with a settings file, as Airflow reads them."""
    from airflow.dag_processing.dagbag import BundleDagBag

    os.environ["TASTETWIN_AIRFLOW"] = file
    return BundleDagBag(DAGS, bundle_path=DAGS, bundle_name="dags-folder")


def shape(file: str) -> dict[str, Any]:
    bag = read(file)
    errors = {Path(path).name: text for path, text in bag.import_errors.items()}
    return {"errors": errors, "dags": {name: drawn(dag) for name, dag in bag.dags.items()}}


def drawn(dag: Any) -> dict[str, Any]:
    """What the tests ask of a DAG."""
    late = [dag.deadline] if dag.deadline and not isinstance(dag.deadline, list) else dag.deadline or []
    return {
        "order": [task.task_id for task in dag.topological_sort()],
        "edges": sorted([task.task_id, to] for task in dag.tasks for to in task.downstream_task_ids),
        "max_active_runs": dag.max_active_runs,
        "catchup": dag.catchup,
        "deadlines": [each.interval.total_seconds() for each in late],
        "tasks": {task.task_id: told(task) for task in dag.tasks},
    }


def told(task: Any) -> dict[str, Any]:
    """What the tests ask of a task."""
    timeout = task.execution_timeout
    said = {
        "kind": type(task).__name__,
        "retries": task.retries,
        "backoff": bool(task.retry_exponential_backoff),
        "timeout": timeout and timeout.total_seconds(),
        "alerts": bool(task.on_failure_callback),
        "depends_on_past": task.depends_on_past,
        "rule": task.trigger_rule.value,
    }
    for name in ("kubernetes_conn_id", "namespace", "image", "cmds", "arguments", "pod_template_dict", "yaml_conf"):
        said[name] = getattr(task, name, None)
    return said


def play(step: dict[str, Any], clusters: dict[str, Any], hook: Hook) -> dict[str, Any]:
    """One run of a DAG from its beginning to its end."""
    began = time.monotonic()
    before = {name: len(cluster.created) for name, cluster in clusters.items()}
    heard = len(hook.heard)
    dag = read(step["settings"]).dags[step["dag"]]
    run = dag.test(
        logical_date=datetime.fromisoformat(step["at"]),
        run_conf=step.get("conf"),
        mark_success_pattern=step.get("done"),
    )
    return {
        "state": str(run.state),
        "seconds": round(time.monotonic() - began, 1),
        **left(run),
        "created": {name: cluster.created[before[name] :] for name, cluster in clusters.items()},
        "alerts": hook.heard[heard:],
    }


def left(run: Any) -> dict[str, Any]:
    """What is in Airflow's database of a run's tasks: states, tries, XComs."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        mine = TaskInstance.dag_id == run.dag_id, TaskInstance.run_id == run.run_id
        tasks = {
            ti.task_id: [str(ti.state), ti.try_number] for ti in session.scalars(select(TaskInstance).where(*mine))
        }
        xcoms: dict[str, dict[str, Any]] = {name: {} for name in tasks}
        for each in session.scalars(
            select(XComModel).where(XComModel.dag_id == run.dag_id, XComModel.run_id == run.run_id)
        ):
            xcoms[each.task_id][each.key] = XComModel.deserialize_value(each)
    return {"tasks": tasks, "xcoms": xcoms}


def triggered() -> list[dict[str, Any]]:
    """The runs that other runs asked for."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        asked = select(DagRun).where(DagRun.run_id.startswith("tastetwin_deploy__", autoescape=True))
        runs = session.scalars(asked.order_by(DagRun.id))
        return [{"run_id": run.run_id, "conf": run.conf, "state": str(run.state)} for run in runs]


async def late(hook: Hook) -> dict[str, Any]:
    """A missed deadline, as the triggerer hears of it."""
    from airflow.triggers.callback import CallbackTrigger

    run = {"dag_id": "tastetwin_daily", "dag_run_id": "scheduled__1", "logical_date": "2026-06-30T03:00:00Z"}
    kwargs = {"connection": "tastetwin_alerts", "what": "is late", "context": {"dag_run": run}}
    said = [event.payload async for event in CallbackTrigger("taste_dags.alerts.Alert", kwargs).run()]
    return {"ended": str(said[-1]), "alert": hook.heard[-1]}


def finish(clusters: dict[str, Any]) -> None:
    """Leave no pod behind."""
    for cluster in clusters.values():
        cluster.close()


def stop(clusters: dict[str, Any]) -> None:
    """End from outside; not by an exception, which the task that happens to run would take for its own."""
    finish(clusters)
    os._exit(143)


def main(folder: Path) -> None:
    """Carry out the plan."""
    from tests.platform.airflow.cluster import Cluster

    plan = json.loads((folder / "plan.json").read_text())
    hook = Hook()
    connection = {"conn_type": "http", "host": hook.url, "password": "hook-token"}
    os.environ["AIRFLOW_CONN_TASTETWIN_ALERTS"] = json.dumps(connection)
    clusters = {name: Cluster(folder, token) for name, token in TOKENS.items()}
    for name, cluster in clusters.items():
        extra = {"kube_config": cluster.kube_config()}
        os.environ[f"AIRFLOW_CONN_{name.upper()}"] = json.dumps({"conn_type": "kubernetes", "extra": extra})
    signal.signal(signal.SIGTERM, lambda *_: stop(clusters))
    prepare(folder)
    played: dict[str, Any] = {"shapes": shapes(plan["shapes"]), "runs": {}}
    try:
        for step in plan["runs"]:
            clusters["gpu"].ray_ends = step.get("ray", "")
            played["runs"][step["name"]] = play(step, clusters, hook)
        played["triggered"] = triggered()
        played["late"] = asyncio.run(late(hook))
    finally:
        finish(clusters)
        (folder / "played.json").write_text(json.dumps(played, default=str))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
