"""What is played: settings files, and which run of which DAG with which of them."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

import yaml

from tastetwin.sources.synthetic import TownConfig, write_town
from tests.platform.containers import BASE, ROOT

STAGES: Final = ("collect", "mart", "features", "train", "analyze", "evaluate", "deliver")
STEPS: Final = ("deploy_model", "deploy_app", "switch", "check", "remove_app", "remove_model")
DAY: Final = "2026-06-30"
RUN: Final = "2026-06-30.1"
USER: Final = 10001
STUB: Final = """\
[ "$1" = deploy ] && word="$2" || word="$1"
echo "$*" >> /store/calls
if [ "$word" = "$FAIL" ] && ! { [ -n "$ONCE" ] && [ -e /store/failed ]; }; then touch /store/failed; exit "$CODE"; fi
echo '{"run_id": "2026-06-30.1", "status": "open", "funnel": {"users": 300}}'
"""
"""Stands in for tastetwin where a test wants a task to fail: notes what it was asked, fails at the word it is told."""


def settings(folder: Path, image: str) -> dict[str, Any]:
    """Two clusters, real images, everything tastetwin needs; training on the second cluster."""
    mounted = {"store": "/store", "town": "/source", "settings": "/etc/tastetwin", "notebooks": "/notebooks"}
    volumes = [{"name": name, "hostPath": {"path": str(folder / name)}} for name in mounted]
    mounts = [{"name": name, "mountPath": path} for name, path in mounted.items()]
    user = {"runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER}
    hard = {"readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    return {
        "start_date": "2026-01-01",
        "store": "/store",
        "source": "/source",
        "config": "/etc/tastetwin/settings.yaml",
        "clusters": {
            "main": {"connection": "main", "namespace": "tastetwin"},
            "gpu": {"connection": "gpu", "namespace": "training"},
        },
        "defaults": {
            "cluster": "main",
            "image": image,
            "retries": 1,
            "retry_delay": 0,
            "timeout": "PT5M",
            "pod": {
                "securityContext": user,
                "volumes": [*volumes, {"name": "tmp", "emptyDir": {}}],
            },
            "container": {
                "securityContext": hard,
                "env": [{"name": "OMP_NUM_THREADS", "value": "1"}],
                "volumeMounts": [*mounts, {"name": "tmp", "mountPath": "/tmp"}],
            },
        },
        "tasks": {
            "train": {
                "cluster": "gpu",
                "pod": {"nodeSelector": {"accelerator": "gpu"}},
                "container": {"resources": {"limits": {"memory": "3Gi"}}},
            }
        },
        "push": "kafka://broker:9092/twins",
        "load": "postgresql://loader@db/service",
        "deploy": {},
        "deadline": "PT12H",
        "alerts": "tastetwin_alerts",
    }


def stub(folder: Path, word: str, *, once: bool = False, code: int = 1) -> dict[str, Any]:
    """Tasks that fail at a word of tastetwin."""
    said = settings(folder, BASE)
    store = folder / f"stub-{word}-{code}-{once}"
    store.mkdir(exist_ok=True)
    store.chmod(0o777)
    defaults = said["defaults"]
    defaults["pod"]["volumes"][0]["hostPath"]["path"] = str(store)
    given = {"FAIL": word, "CODE": str(code), "ONCE": "1" if once else ""}
    defaults["container"]["env"] = [{"name": name, "value": value} for name, value in given.items()]
    defaults["container"]["command"] = ["/bin/sh", "/etc/tastetwin/stub"]
    return playable(said)


def playable(said: dict[str, Any]) -> dict[str, Any]:
    """Without brokers and databases, and without a deadline: `dag.test()` of Airflow 3.3.2 cannot end well with one."""
    return {key: value for key, value in said.items() if key not in ("push", "load", "deadline")}


def variant(said: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """With other training, or other tasks."""
    tasks = {**said["tasks"]}
    for name, more in changed.pop("tasks", {}).items():
        tasks[name] = {**tasks.get(name, {}), **more}
    return {**said, "tasks": tasks, **changed}


class Plan:
    """Collects runs and the settings files that they need."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shapes: list[str] = []
        self.runs: list[dict[str, Any]] = []

    def write(self, name: str, said: Any) -> str:
        path = self.folder / f"{name}.yaml"
        path.write_text(said if isinstance(said, str) else yaml.safe_dump(said, sort_keys=False))
        return str(path)

    def look(self, name: str, said: Any) -> None:
        """Read the DAGs with these settings."""
        self.shapes.append(self.write(name, said))

    def day(self, name: str, said: dict[str, Any], at: str, **more: Any) -> None:
        """Play the daily DAG."""
        path = self.write(name, said)
        self.runs.append(
            {"name": name, "settings": path, "dag": "tastetwin_daily", "at": f"{at}T03:00:00+00:00", **more}
        )

    def deployment(self, name: str, said: dict[str, Any], at: str, **more: Any) -> None:
        """Play the deploy DAG."""
        self.day(name, said, at, **more)
        self.runs[-1] |= {"dag": "tastetwin_deploy", "conf": {"run": RUN}}


def make_plan(folder: Path, jobs: str, sandbox: str) -> dict[str, Any]:
    """Everything that is played, and the world it is played in."""
    make_world(folder)
    plan, whole = Plan(folder), settings(folder, jobs)
    real = playable(whole)
    plan.look("whole", whole)
    notebook = {"path": "/etc/tastetwin/stage.ipynb", "output": "/notebooks/{day}.ipynb"}
    torchrun = {"where": "torchrun", "nodes": 2, "service": "tastetwin-train", "port": 29555}
    ray = {"where": "ray", "version": "2.51.1", "processes": 2, "gpus": 2}
    plan.look("torchrun", variant(whole, training=torchrun))
    plan.look("ray", variant(whole, training=ray))
    for name, said in refused(whole).items():
        plan.look(f"refused-{name}", said)

    plan.day("real", real, DAY)
    plan.day("real-again", real, DAY)
    changed = {
        "train": {"arguments": ["--again"]},
        "analyze": {"notebook": notebook, "image": sandbox},
    }
    plan.day("variants", variant(real, training=torchrun, tasks=changed), DAY)

    for back, stage in enumerate(STAGES, start=1):
        done = "|".join(STAGES[: STAGES.index(stage)]) or None
        plan.day(f"{stage}-fails", stub(folder, stage), f"2026-05-{30 - back}", done=done)
    upto = {"done": "|".join(STAGES[:-1])}
    plan.day("deliver-recovers", stub(folder, "deliver", once=True), "2026-04-30", **upto)
    plan.day("deliver-refused", stub(folder, "deliver", code=5), "2026-04-29", **upto)
    around = {"done": "collect|mart|features|analyze|evaluate|deliver|latest_only|deploy"}
    plan.day("ray-ends-well", variant(stub(folder, "none"), training=ray), "2026-04-28", ray="SUCCEEDED", **around)
    plan.day("ray-fails", variant(stub(folder, "none"), training=ray), "2026-04-27", ray="FAILED", **around)

    plan.deployment("deployed", stub(folder, "none"), "2026-03-31")
    for back, step in enumerate(STEPS, start=1):
        word = step.removeprefix("deploy_").replace("_", "-")
        done = "|".join(STEPS[: STEPS.index(step)]) or None
        said = stub(folder, word)
        said["defaults"]["retries"] = 0
        plan.deployment(f"{step}-fails", said, f"2026-03-{30 - back}", done=done)
    return {"shapes": plan.shapes, "runs": plan.runs}


def refused(whole: dict[str, Any]) -> dict[str, Any]:
    """Settings that must be refused, by what is wrong with them."""
    return {
        "unknown-key": {**whole, "stroe": "/store"},
        "unknown-task": variant(whole, tasks={"trian": {"retries": 1}}),
        "unknown-cluster": variant(whole, tasks={"train": {"cluster": "gpus"}}),
        "kubernetes-key": variant(whole, tasks={"mart": {"pod": {"nodeSelectors": {"a": "b"}}}}),
        "kubernetes-nested": {**whole, "defaults": {**whole["defaults"], "container": {"resources": {"limit": {}}}}},
        "negative": {**whole, "defaults": {**whole["defaults"], "retries": -1}},
        "training": {**whole, "training": {"where": "moon"}},
        "notebook": variant(whole, tasks={"switch": {"notebook": {"path": "/a", "output": "/b"}}}),
        "deadline": {key: value for key, value in whole.items() if key != "alerts"},
        "no-yaml": "clusters: [",
    }


def make_world(folder: Path) -> None:
    """A town, an empty store that the pods' user owns, and settings that train in seconds."""
    for name in ("store", "settings", "notebooks"):
        (folder / name).mkdir()
    quick = "train: {epochs: 1, layers: 1, width: 32, heads: 2, dim: 64}\nevaluate: {bootstrap: 200}\n"
    (folder / "settings" / "settings.yaml").write_text(quick)
    (folder / "settings" / "stub").write_text(STUB)
    shutil.copy(ROOT / "deploy" / "airflow" / "notebooks" / "stage.ipynb", folder / "settings")
    write_town(TownConfig(users=300), folder / "town")
    for name in ("store", "notebooks"):
        os.chown(folder / name, USER, USER)
    for each in (folder, *folder.parents):
        if each.stat().st_uid == os.geteuid() and str(each).startswith(tempfile.gettempdir() + "/"):
            each.chmod(each.stat().st_mode | 0o055)
