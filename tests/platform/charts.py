"""Charts for the platform tests: `helm` as a call, sets of values, what they render to."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

ROOT: Final = Path(__file__).parents[2]
HELM: Final = ROOT / "deploy" / "helm"
CHARTS: Final = ("model", "app", "jobs", "sandbox", "platform")
Manifest = dict[str, Any]

MODEL: Final[Manifest] = {"model": {"version": "2026-11-22-3f9a0c12ab34"}, "run": {"id": "2026-11-22.1"}}
BACKEND: Final = "http://taste-model-2026-11-22-1-backend:8101"
APP: Final[Manifest] = {"gateway": {"backends": [BACKEND]}, "run": {"id": "2026-11-22.1"}}
S3: Final = {"store": {"url": "s3://bucket/store", "environmentSecret": "tastetwin-s3"}}
MONITORED: Final = {"serviceMonitor": {"enabled": True}}
REDIS: Final = {"state": {"redisSecret": "tastetwin-redis"}}
SCALED: Final = {"autoscaling": {"enabled": True}}
GPU: Final = {
    "gpu": {"count": 1},
    "runtimeClassName": "nvidia",
    "nodeSelector": {"accelerator": "h100"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
}
ROUTE: Final = {"enabled": True, "appHost": "taste.example.com", "gatewayHost": "model.example.com", "tlsSecret": "tls"}
OPERATORS: Final = ("kafka", "postgresql", "mongodb", "logs", "minio", "prometheus")

SETS: Final[dict[tuple[str, str], dict[str, Any]]] = {
    ("model", "least"): MODEL,
    ("model", "gpu"): MODEL | GPU,
    ("model", "scaled"): MODEL | SCALED | MONITORED,
    ("model", "s3"): MODEL | S3 | {"settings": {"backend": {"threads": 2}}},
    ("app", "least"): APP,
    ("app", "unpinned"): APP | {"run": {"id": ""}, "store": {"readOnly": True}},
    ("app", "scaled"): APP | REDIS | MONITORED | {
        "gateway": APP["gateway"] | SCALED,
        "app": SCALED | {"podAnnotations": {"a": "b"}},
    },
    ("app", "s3"): APP | S3 | {"image": {"registry": "registry.example.com", "tag": "7", "pullSecrets": ["pull"]}},
    ("app", "events"): APP | REDIS | {
        "settings": {"app": {"brokers": "kafka:9092"}},
        "events": {"replicas": 3, "clientSecret": "kafka"},
    },
    ("app", "route"): APP | {"route": ROUTE},
    ("jobs", "least"): {},
    ("jobs", "airflow"): {
        "airflow": {"accounts": [{"name": "airflow-worker", "namespace": "airflow"}]},
        "secret": "databases",
    },
    ("jobs", "daily"): {
        "daily": {"enabled": True, "source": "s3://bucket/events"} | GPU,
        "secret": "databases",
        "metrics": {"enabled": True, "pushgateway": "http://pushgateway:9091"},
        "settings": {"train": {"epochs": 3}},
        "deployer": {"enabled": False},
    },
    ("jobs", "s3"): S3 | {"daily": {"enabled": True, "source": "mongodb://db"}},
    ("sandbox", "least"): {},
    ("sandbox", "both"): GPU | {
        "secret": "databases",
        "home": {"claim": "mine"},
        "route": {"enabled": True, "jupyterHost": "lab.example.com", "codeHost": "code.example.com"},
    },
    ("platform", "least"): {},
    ("platform", "all"): {
        **{name: {"enabled": True} for name in OPERATORS},
        "connect": {"enabled": True, "image": "registry.example.com/connect:1"},
        "cassandra": {"enabled": True, "storageClass": "fast"},
        "storageClasses": {"nfs": {"enabled": True, "server": "nfs.example.com"}, "ceph": {"enabled": True}},
        "route": ROUTE | {"release": "taste-app-2026-11-22-1"},
    },
}  # fmt: skip
"""(chart, name) -> values: what installations differ in."""


def program() -> str:
    """Where helm is; no helm, no test."""
    found = shutil.which("helm") or shutil.which("helm", path=str(ROOT / ".tools" / "bin"))
    if found is None:
        pytest.skip("charts need helm: make test-platform fetches it")
    return found


def helm(*words: str | Path, values: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    """`helm WORDS`, away from anybody's own settings, whatever comes of it."""
    with tempfile.TemporaryDirectory() as home:
        given = Path(home) / "values.json"
        given.write_text(json.dumps(values or {}))
        command = [program(), *map(str, words), *(["--values", str(given)] if values is not None else [])]
        environment = {
            **os.environ,
            "HOME": home,
            "HELM_CACHE_HOME": home,
            "HELM_CONFIG_HOME": home,
            "KUBECONFIG": "/dev/null",
        }
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


@functools.cache
def folder(chart: str) -> Path:
    """Of a chart; of the platform a copy without the charts of others, which cannot be fetched everywhere."""
    if chart != "platform":
        return HELM / f"tastetwin-{chart}"
    copy = Path(tempfile.mkdtemp(prefix="tastetwin-chart-")) / "tastetwin-platform"
    shutil.copytree(HELM / copy.name, copy)
    about = yaml.safe_load((copy / "Chart.yaml").read_text())
    about["dependencies"] = [each for each in about["dependencies"] if each["name"] == "tastetwin-common"]
    (copy / "Chart.yaml").write_text(yaml.safe_dump(about))
    return copy


def rendered(chart: str, values: dict[str, Any], release: str = "it") -> list[Manifest]:
    """What a release would be made of."""
    done = helm("template", release, folder(chart), "--namespace", "taste", values=values)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


@functools.cache
def manifests(chart: str, name: str) -> list[Manifest]:
    """What one of ``SETS`` renders to."""
    return rendered(chart, SETS[chart, name])


def pods(found: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """(name of the owner, pod template) of everything that makes pods of ours."""
    for each in found:
        if each["kind"] == "Deployment":
            yield each["metadata"]["name"], each["spec"]["template"]
        elif each["kind"] == "CronJob":
            yield each["metadata"]["name"], each["spec"]["jobTemplate"]["spec"]["template"]


def of_kind(found: list[Manifest], kind: str) -> list[Manifest]:
    """Those of a kind."""
    return [each for each in found if each["kind"] == kind]


def chooses(selector: dict[str, Any], pod: Manifest) -> bool:
    """Whether a selector takes a pod, or its template."""
    labels = pod["metadata"]["labels"]
    among = [labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", ())]
    return bool(selector["matchLabels"].items() <= labels.items()) and all(among)
