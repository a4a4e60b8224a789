"""The DAGs as Airflow reads them: order, manners of tasks, what of the settings reaches pods, what is refused."""

from __future__ import annotations

import ast
import json
import os
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.platform.airflow.plan import STAGES, STEPS
from tests.platform.charts import chooses, manifests, of_kind
from tests.platform.containers import ROOT

DAGS = ROOT / "deploy" / "airflow" / "dags"
DEFAULT = """
import json, tastetwin_daily, tastetwin_deploy
from taste_dags.settings import RayTraining, load
from taste_dags.training import ray_manifest
tasks = [task for one in (tastetwin_daily.stages[0], tastetwin_deploy.rollback) for task in one.dag.tasks]
pods = {task.task_id: task for task in tasks if hasattr(task, "pod_template_dict")}
print(json.dumps({
    "pods": {name: task.pod_template_dict for name, task in pods.items()},
    "arguments": {name: task.arguments for name, task in pods.items()},
    "ray": ray_manifest(load(), RayTraining(where="ray", version="2.51.1")),
}))
"""
"""Run in Airflow's environment, with the settings beside the DAGs."""
PARSED = """
import sys
from airflow.cli.cli_parser import get_parser
said = get_parser().parse_args(sys.argv[1:])
print(said.dag_id, said.max_active_runs)
"""
"""A command line as Airflow's own program understands it."""
REFUSALS = {
    "unknown-key": "stroe: Extra inputs",
    "unknown-task": "tasks.trian",
    "unknown-cluster": "tasks.train.cluster: 'gpus' is none of clusters: main, gpu",
    "kubernetes-key": "tasks.mart.pod: nodeSelectors: no field of Kubernetes' V1PodSpec",
    "kubernetes-nested": "defaults.container: resources.limit: no field of Kubernetes' V1ResourceRequirements",
    "negative": "defaults.retries: Input should be greater than or equal to 0",
    "training": "'moon'",
    "notebook": "tasks.switch.notebook: a notebook takes the place of a stage",
    "deadline": "deadline: needs alerts",
    "no-yaml": "no YAML",
}


def shape(played: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(said for file, said in played["shapes"].items() if Path(file).stem == name)
    return found


@pytest.fixture
def whole(played: dict[str, Any]) -> dict[str, Any]:
    """The DAGs with every section of the settings given."""
    return dict(shape(played, "whole")["dags"])


@pytest.fixture(scope="module")
def default(airflow: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The pod of each task as the settings beside the DAGs have it, its arguments, and the RayJob of a training."""
    environment = {**os.environ, "AIRFLOW_HOME": str(tmp_path_factory.mktemp("home")), "PYTHONPATH": str(DAGS)}
    done = subprocess.run([airflow, "-c", DEFAULT], env=environment, check=True, timeout=120, capture_output=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_the_default_settings_make_both_dags(default: dict[str, Any]) -> None:
    """Whoever copies the folder into Airflow sees no import error."""
    assert set(default["pods"]) == {*STAGES, *STEPS, "rollback"}


def test_a_pod_is_given_no_secret_and_no_source_that_it_does_not_use(default: dict[str, Any]) -> None:
    """A stage that reads hostile lines has no business with the key that opens the gateway."""
    volumes = {name: pod["spec"]["volumes"] for name, pod in default["pods"].items()}
    secrets = {name: [each["secret"] for each in found if "secret" in each] for name, found in volumes.items()}
    asking = {"deploy_app", "check", "rollback"}
    assert {name for name, found in secrets.items() if found} == asking
    assert all([each["key"] for each in secrets[name][0]["items"]] == ["gateway.key"] for name in asking)
    assert {name for name, said in default["arguments"].items() if "--gateway-key" in said} == asking
    assert {name for name, found in volumes.items() if "source" in [each["name"] for each in found]} == {"collect"}
    for pod in default["pods"].values():
        mounts = [each["name"] for each in pod["spec"]["containers"][0]["volumeMounts"]]
        assert mounts == [each["name"] for each in pod["spec"]["volumes"]]
    tokens = {name for name, pod in default["pods"].items() if pod["spec"]["automountServiceAccountToken"]}
    assert tokens == {*STEPS, "rollback"}


def test_every_pod_of_a_training_by_ray_is_behind_the_charts_network_policy(default: dict[str, Any]) -> None:
    """Ray asks nobody for a key: whoever reaches a head's port runs code. The pod that submits must be let in."""
    spec = default["ray"]["spec"]
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    policies = of_kind(manifests("jobs", "airflow"), "NetworkPolicy")
    (policy,) = (each["spec"] for each in policies if each["metadata"]["name"] == "it-jobs")
    (rule,) = policy["ingress"]
    for pod in (spec["rayClusterSpec"]["headGroupSpec"]["template"], group["template"], spec["submitterPodTemplate"]):
        assert chooses(policy["podSelector"], pod) and chooses(rule["from"][0]["podSelector"], pod)
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"]["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
        assert pod["spec"]["automountServiceAccountToken"] is False
    assert spec["submitterPodTemplate"]["spec"]["restartPolicy"] == "Never"


def test_the_daily_job_is_the_stage_words_in_order(whole: dict[str, Any]) -> None:
    """One vocabulary: what README and CLI call a stage is the task's id."""
    daily = whole["tastetwin_daily"]
    chain = [list(pair) for pair in pairwise(STAGES)]
    after = [["deliver", "latest_only"], ["deliver", "load"], ["deliver", "push"], ["latest_only", "deploy"]]
    assert daily["edges"] == sorted([*chain, *after])
    assert [task for task in daily["order"] if task in STAGES] == list(STAGES)
    assert (daily["max_active_runs"], daily["catchup"]) == (1, True)


def test_the_page_s_backfill_is_one_run_at_a_time_too(airflow: Path, tmp_path: Path) -> None:
    """A backfill does not ask the DAG: ten days at once would write to one store, and publish in any order."""
    page = (ROOT / "docs" / "how-to" / "airflow.md").read_text(encoding="utf-8").replace("\\\n", "")
    (words,) = (line.split() for line in page.splitlines() if line.startswith("airflow backfill"))
    environment = {**os.environ, "AIRFLOW_HOME": str(tmp_path)}
    done = subprocess.run([airflow, "-c", PARSED, *words[1:]], env=environment, timeout=120, capture_output=True)
    assert done.stdout.splitlines()[-1:] == [b"tastetwin_daily 1"], done.stderr


def test_only_stages_that_carry_on_yesterday_s_rows_wait_for_yesterday(whole: dict[str, Any]) -> None:
    """A day that the gate refused must not stop the next; a day without a mart must."""
    tasks = whole["tastetwin_daily"]["tasks"]
    assert [name for name in STAGES if tasks[name]["depends_on_past"]] == ["collect", "mart", "features"]


def test_every_task_tries_again_ends_in_time_and_rings(whole: dict[str, Any]) -> None:
    """A pod that hangs, or fails for good, is somebody's to know of."""
    tasks = {name: task for dag in whole.values() for name, task in dag["tasks"].items()}
    assert len(tasks) == len(STAGES) + len(STEPS) + 6
    assert not [
        name for name, task in tasks.items() if task["retries"] != 1 or task["timeout"] != 300 or not task["alerts"]
    ]
    assert whole["tastetwin_daily"]["deadlines"] == [12 * 3600]


def test_deploying_goes_through_all_steps_and_back_after_any(whole: dict[str, Any]) -> None:
    """A rollback that hangs on one step only would not run for the others."""
    dag = whole["tastetwin_deploy"]
    steps = [*STEPS, "deployed"]
    forward = [list(pair) for pair in pairwise(steps)]
    assert dag["edges"] == sorted([*forward, *([step, "rollback"] for step in STEPS)])
    assert dag["tasks"]["rollback"]["rule"] == "one_failed"
    assert dag["max_active_runs"] == 1


def test_settings_reach_the_pods_of_two_clusters(whole: dict[str, Any]) -> None:
    """Training on the GPU cluster is worth nothing if the pod goes elsewhere, or asks for no GPU node."""
    tasks = whole["tastetwin_daily"]["tasks"]
    places = {name: (tasks[name]["kubernetes_conn_id"], tasks[name]["namespace"]) for name in ("mart", "train")}
    assert places == {"mart": ("main", "tastetwin"), "train": ("gpu", "training")}
    train, mart = (tasks[name]["pod_template_dict"]["spec"] for name in ("train", "mart"))
    assert train["nodeSelector"] == {"accelerator": "gpu"} and "nodeSelector" not in mart
    container = train["containers"][0]
    assert container["resources"] == {"limits": {"memory": "3Gi"}}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True  # of the defaults, beside what is its own


def test_training_by_torchrun_finds_its_first_node_by_name(played: dict[str, Any]) -> None:
    """The nodes of a Job know each other only by the headless service."""
    train = shape(played, "torchrun")["dags"]["tastetwin_daily"]["tasks"]["train"]
    said = " ".join([*train["cmds"], *train["arguments"]])
    assert train["kind"] == "TrainingJob"
    assert said.startswith(
        "torchrun --nnodes 2 --node-rank $(JOB_COMPLETION_INDEX) --nproc-per-node 1 --master-addr job-"
    )
    assert train["pod_template_dict"]["spec"]["subdomain"] == "tastetwin-train"


@pytest.mark.parametrize(("name", "said"), REFUSALS.items(), ids=list(REFUSALS))
def test_wrong_settings_are_refused_when_the_dags_are_read(played: dict[str, Any], name: str, said: str) -> None:
    """A mistake shows in Airflow's list of import errors, not at three in the morning."""
    read = shape(played, f"refused-{name}")
    assert read["dags"] == {} and len(read["errors"]) == 2
    assert all(said in text for text in read["errors"].values())


def test_dag_files_import_nothing_of_tastetwin() -> None:
    """Airflow's environment has other versions of everything; stages run in their own images."""
    for file in DAGS.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        named = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        named |= {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
        assert not [name for name in named if name.split(".")[0] == "tastetwin"], file
