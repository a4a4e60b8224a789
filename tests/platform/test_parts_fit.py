"""What one part takes for granted another one gives: the DAGs' settings as they are shipped, charts, the package."""

from __future__ import annotations

from typing import Any

import yaml

from tastetwin import __version__
from tests.platform.airflow.plan import STAGES, STEPS
from tests.platform.charts import ROOT, SETS, Manifest, manifests, of_kind, rendered

DAGS: dict[str, Any] = yaml.safe_load((ROOT / "deploy/airflow/dags/tastetwin.yaml").read_text(encoding="utf-8"))
OF_THE_TEAM = {"tastetwin-source"}
"""What no chart makes: the volume that events come in on."""


def jobs() -> list[Manifest]:
    return rendered("jobs", SETS["jobs", "airflow"], release="tastetwin")


def names(kind: str) -> set[str]:
    return {each["metadata"]["name"] for each in of_kind(jobs(), kind)}


def test_pods_of_the_dags_name_what_the_jobs_chart_makes() -> None:
    """A claim or an account of another name is a pod that never starts, and nothing says so before the night."""
    pod, deploy = DAGS["defaults"]["pod"], DAGS["tasks"]["switch"]["pod"]
    volumes = {each["name"]: each for each in pod["volumes"]}
    claims = {
        each["persistentVolumeClaim"]["claimName"] for each in volumes.values() if "persistentVolumeClaim" in each
    }
    assert claims - OF_THE_TEAM == names("PersistentVolumeClaim")
    assert volumes["settings"]["configMap"]["name"] in names("ConfigMap")
    assert {pod["serviceAccountName"], deploy["serviceAccountName"]} <= names("ServiceAccount")
    (settings,) = of_kind(jobs(), "ConfigMap")
    assert DAGS["config"] == "/etc/tastetwin/" + next(iter(settings["data"]))
    assert {DAGS["defaults"]["image"], DAGS["tasks"]["switch"]["image"]} == {f"tastetwin/jobs:{__version__}"}


def test_every_task_s_pod_is_behind_one_network_policy() -> None:
    """Policies go by the tasks' names: a task that none names may talk to everybody."""
    policies = [each["spec"]["podSelector"] for each in of_kind(jobs(), "NetworkPolicy")]
    for task in (*STAGES, *STEPS, "rollback", "push", "load"):
        found = [each for each in policies if task in each["matchExpressions"][0]["values"]]
        assert len(found) == 1 and found[0]["matchLabels"] == {"app.kubernetes.io/part-of": "tastetwin"}, task


def test_a_deployment_may_make_and_remove_all_that_its_charts_hold() -> None:
    """One kind that its role forgets, and every deployment fails in the cluster, and nowhere else."""
    (role,) = (each for each in of_kind(jobs(), "Role") if each["metadata"]["name"] == "tastetwin-deploy")
    verbs = {
        (group, resource): set(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    for key in SETS:
        for each in manifests(*key) if key[0] in ("model", "app") else ():
            group, kind = each["apiVersion"].rpartition("/")[0], each["kind"].lower()
            resource = f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"
            assert {"create", "get", "list", "watch", "patch", "delete"} <= verbs[group, resource], each["kind"]
    assert {"get", "patch"} <= verbs["traefik.io", "ingressroutes"] and "get" in verbs["", "pods"]
