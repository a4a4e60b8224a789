"""What ``tastetwin deploy --target kubernetes`` gives to Helm, the charts take, and make of it what it means."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tastetwin.config import Config, DeployConfig
from tastetwin.deploy.kubernetes import APP, MODEL, KubernetesTarget, release
from tastetwin.runs import Run, StageRecord

CHARTS = Path(__file__).parents[2] / "deploy" / "helm"
RUN = Run("2026-11-22.1", "2026-11-22", "delivered", "", {"train": StageRecord("2026-11-22-3f9a0c12ab34", 0.0)})
pytestmark = [
    pytest.mark.skipif(shutil.which("helm") is None, reason="NOT TESTED: no helm; run by make test-platform"),
    pytest.mark.skipif(not (CHARTS / "tastetwin-app").is_dir(), reason="NOT TESTED: no charts in deploy/helm"),
]


def rendered(words: tuple[str, ...], folder: Path) -> list[dict[str, Any]]:
    """What ``helm upgrade --install NAME CHART ... --wait --timeout T`` would apply."""
    shutil.copytree(CHARTS, folder / "helm")
    tool, verb, install, name, chart, *values = words
    assert (tool, verb, install) == ("helm", "upgrade", "--install")
    at = folder / "helm" / chart.rpartition("/")[2]
    subprocess.run(["helm", "dependency", "build", str(at)], check=True, capture_output=True, timeout=60)
    command = ["helm", "template", name, str(at), "-n", "tastetwin", *values[: values.index("--wait")]]
    found = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    return [each for each in yaml.safe_load_all(found) if each]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The commands that install."""
    found: list[tuple[str, ...]] = []

    def run(self: KubernetesTarget, *words: str) -> str:
        found.extend([words] if words[1] == "upgrade" else [])
        return "[]"

    monkeypatch.setattr(KubernetesTarget, "_run", run)
    monkeypatch.setattr("tastetwin.deploy.kubernetes.make_pack", lambda store, run: None)
    return found


TARGET = KubernetesTarget(None, Config(deploy=DeployConfig()), "")  # type: ignore[arg-type]


def test_the_model_s_chart_serves_the_run_s_bundle(asked: list[tuple[str, ...]], tmp_path: Path) -> None:
    """Golden queries are asked of the service by this name, at this port, for this version."""
    TARGET.start_model(RUN)
    made = rendered(asked[0], tmp_path)
    name = f"{release(MODEL, RUN.run_id)}-backend"
    pods = next(each for each in made if each["kind"] == "Deployment")["spec"]["template"]
    assert RUN.generation("train") in pods["spec"]["containers"][0]["args"]
    service = next(each for each in made if each["kind"] == "Service")
    assert service["metadata"]["name"] == name and 8101 in [port["port"] for port in service["spec"]["ports"]]
    assert service["metadata"]["labels"]["tastetwin.io/run"] == RUN.run_id


def test_the_app_s_chart_pins_the_run_and_asks_its_model(asked: list[tuple[str, ...]], tmp_path: Path) -> None:
    """A gateway that followed the pointer would change over by itself."""
    TARGET.start_app(RUN)
    made = rendered(asked[0], tmp_path)
    text = next(each["data"]["settings.yaml"] for each in made if each["kind"] == "ConfigMap")
    gateway = yaml.safe_load(text)["gateway"]
    assert gateway["weights"] == {RUN.run_id: 1.0}
    assert gateway["backends"] == [f"http://{release(MODEL, RUN.run_id)}-backend:8101"]
    names = {each["metadata"]["name"] for each in made if each["kind"] == "Service"}
    assert {f"{release(APP, RUN.run_id)}-{tier}" for tier in ("gateway", "app")} <= names
    labels = {each["metadata"]["labels"]["app.kubernetes.io/instance"] for each in made if each["kind"] == "Deployment"}
    assert labels == {release(APP, RUN.run_id)}
