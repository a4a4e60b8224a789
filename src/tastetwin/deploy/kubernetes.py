"""A cluster, by its own tools: Helm for what runs, kubectl for what it says and for Traefik's route.

Nothing is kept here. What is deployed are releases ``taste-model-SLUG`` and ``taste-app-SLUG`` of the charts in
``deploy/helm``; who answers is what the IngressRoute ``tastetwin`` leads to, and whoever did before is an annotation of
it, written by the same patch.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from tastetwin.config import Config, DeployConfig
from tastetwin.delivery.pack import make_pack
from tastetwin.deploy.steps import Standing, read_metrics
from tastetwin.errors import StoreError, UsageError
from tastetwin.runs import Run
from tastetwin.store import Store

MODEL: Final = "taste-model-"
APP: Final = "taste-app-"
ROUTE: Final = "tastetwin"
PREVIOUS: Final = "tastetwin.io/previous"
PORTS: Final = {"backend": 8101, "gateway": 8102}
METRICS: Final = 8112
TIERS: Final = ("gateway", "app")
"""What the route leads to."""
DRIVER: Final = {"HELM_DRIVER": "configmap"}
"""Where Helm keeps releases, unless the environment says so: whoever deploys needs no right to read secrets then."""
_SHOWN: Final = 500
"""Characters of what a tool says."""
_LOOK: Final = 1.0
_PATIENCE: Final = 60.0
"""Seconds that a tool has beyond those that it waits for what it started; ``kubectl port-forward``, to say its port."""


def release(kind: str, run_id: str) -> str:
    """Name of a run's release; ``kind`` is ``MODEL`` or ``APP``."""
    return kind + re.sub(r"[^a-z0-9-]", "-", run_id.lower())


def run_of(name: str) -> str:
    """The run of a release, or of a service of one."""
    found = re.search(r"(\d{4}-\d{2}-\d{2})-(\d+)", name)
    return f"{found[1]}.{found[2]}" if found else name


@dataclass(frozen=True)
class KubernetesTarget:
    """The cluster that kubectl's configuration names."""

    store: Store
    config: Config = field(repr=False)
    gateway_key: str = field(repr=False)

    # -- what is so ---------------------------------------------------------------------------------------------------

    def standing(self) -> Standing:
        """As ``Target`` says.

        Raises:
            StoreError: DEPLOY-TOOL, from all methods.
        """
        released = {each["name"]: each["status"] == "deployed" for each in self._releases()}
        for each in self._items("deployments", "app.kubernetes.io/part-of=tastetwin"):
            name = each["metadata"]["labels"]["app.kubernetes.io/instance"]
            if name in released:
                released[name] = released[name] and _is_ready(each)
        route = self._route()
        up = {
            kind: {run_of(name): ready for name, ready in released.items() if name.startswith(kind)}
            for kind in (MODEL, APP)
        }
        return Standing(
            None if route is None else _live(route),
            None if route is None else route["metadata"].get("annotations", {}).get(PREVIOUS),
            up[MODEL],
            up[APP],
            route is not None,
        )

    def model(self, run_id: str) -> AbstractContextManager[str]:
        """As ``Target`` says."""
        return self._service(f"{release(MODEL, run_id)}-backend", PORTS["backend"])

    def gateway(self, run_id: str) -> AbstractContextManager[str]:
        """As ``Target`` says."""
        return self._service(f"{release(APP, run_id)}-gateway", PORTS["gateway"])

    def front(self) -> AbstractContextManager[str]:
        """As ``Target`` says; without ``deploy.front``, the service that the route leads to."""
        live = self.standing().live
        return self.gateway(live or "") if self._of.front is None else nullcontext(self._of.front)

    def key(self) -> str:
        """As ``Target`` says."""
        return self.gateway_key

    def metrics(self, run_id: str) -> list[str]:
        """As ``Target`` says.

        Raises:
            StoreError: DEPLOY-NOT-READY where there is no gateway, or one does not answer.
        """
        labels = f"app.kubernetes.io/instance={release(APP, run_id)},app.kubernetes.io/component=gateway"
        pods, texts = [each for each in self._items("pods", labels) if _has_begun(each)], []
        if not pods:
            fix = f"kubectl get pods -n {self._of.namespace} -l {labels}"
            raise StoreError("DEPLOY-NOT-READY", place=labels, value="no pods", rule="requests are counted", fix=fix)
        for pod in pods:
            at = f"{pod['status'].get('podIP')}:{METRICS}"
            asked = (
                nullcontext(f"http://{at}")
                if self._of.in_cluster
                else self._forwarded(f"pod/{pod['metadata']['name']}", METRICS)
            )
            with asked as url:
                texts.append(read_metrics(url))
        return texts

    # -- what is done -------------------------------------------------------------------------------------------------

    def start_model(self, run: Run) -> None:
        """As ``Target`` says.

        Raises:
            StoreError: DEPLOY-NOT-READY.
        """
        values = [f"model.version={run.generation('train')}", f"run.id={run.run_id}"]
        words = [word for each in values for word in ("--set-string", each)]
        self._install(release(MODEL, run.run_id), "tastetwin-model", words, self._of.model_values)

    def start_app(self, run: Run) -> None:
        """As ``Target`` says; makes the run's pack, if there is none yet.

        Raises:
            StoreError: DEPLOY-NOT-READY; as ``make_pack``.
        """
        make_pack(self.store, run)
        backend = f"http://{release(MODEL, run.run_id)}-backend:{PORTS['backend']}"
        words = ["--set-string", f"run.id={run.run_id}", "--set-json", f'gateway.backends=["{backend}"]']
        self._install(release(APP, run.run_id), "tastetwin-app", words, self._of.app_values)

    def point(self, run_id: str, previous: str | None) -> None:
        """As ``Target`` says; the patch is refused where somebody else changed the route meanwhile."""
        route = self._route()
        if route is None or not _ours(route):
            value = f"no IngressRoute {ROUTE}" if route is None else f"{ROUTE} leads to no gateway or app"
            raise _no_tool("kubectl", value, "values route.enabled of the chart tastetwin-platform")
        for service in _ours(route):
            service["name"] = f"{release(APP, run_id)}-{service['name'].rpartition('-')[2]}"
        patch = {
            "metadata": {
                "resourceVersion": route["metadata"]["resourceVersion"],
                "annotations": {PREVIOUS: previous},
            },
            "spec": {"routes": route["spec"]["routes"]},
        }
        self._run("kubectl", "patch", "ingressroute", ROUTE, "--type=merge", "-p", orjson.dumps(patch).decode())

    def stop_app(self, run_id: str) -> None:
        """As ``Target`` says: pods drain at SIGTERM."""
        self._uninstall(release(APP, run_id))

    def stop_model(self, run_id: str) -> None:
        """As ``Target`` says."""
        self._uninstall(release(MODEL, run_id))

    def stop(self) -> None:
        """Nothing: whoever ends all of a cluster's service should say so to the cluster.

        Raises:
            UsageError: DEPLOY-TARGET.
        """
        raise UsageError("DEPLOY-TARGET", place="stop", rule="of target local alone", fix="helm uninstall each release")

    def alone(self) -> AbstractContextManager[None]:
        """Whoever schedules deployments sees to it that they do not meet; Helm and the patch refuse it."""
        return nullcontext()

    # -- how ----------------------------------------------------------------------------------------------------------

    @property
    def _of(self) -> DeployConfig:
        return self.config.deploy

    def _install(self, name: str, chart: str, words: Sequence[str], values: Sequence[str]) -> None:
        self._settle(name)
        files = [word for each in values for word in ("--values", each)]
        try:
            self._run(
                "helm", "upgrade", "--install", name, f"{self._of.charts}/{chart}", *files, *words, *self._waiting
            )
        except StoreError as error:
            fix = f"kubectl describe pods -n {self._of.namespace} -l app.kubernetes.io/instance={name}"
            value = error.problem.value
            raise StoreError("DEPLOY-NOT-READY", place=name, value=value, rule="it gets ready", fix=fix) from error

    def _uninstall(self, name: str) -> None:
        self._run("helm", "uninstall", name, "--ignore-not-found", *self._waiting)

    def _settle(self, name: str) -> None:
        """Helm takes a release whose command was killed for one that is still worked on, for ever."""
        while True:
            found = next((each for each in self._releases() if each["name"] == name), None)
            if found is None or not found["status"].startswith(("pending", "uninstalling")):
                return
            if found["status"] == "uninstalling" or _age(found["updated"]) > self._of.ready_seconds:
                break
            time.sleep(_LOOK)
        if found["status"] in ("pending-install", "uninstalling"):
            self._uninstall(name)
        else:
            self._run("helm", "rollback", name, *self._waiting)

    @property
    def _waiting(self) -> list[str]:
        return ["--wait", "--timeout", f"{self._of.ready_seconds:.0f}s"]

    def _releases(self) -> list[dict[str, Any]]:
        said = self._run("helm", "list", "--filter", f"^({MODEL}|{APP})", "--max", "0", "--output", "json",
                         "--time-format", "2006-01-02T15:04:05Z07:00")  # fmt: skip
        found: list[dict[str, Any]] = orjson.loads(said)
        return found

    def _items(self, kind: str, labels: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = orjson.loads(self._run("kubectl", "get", kind, "-l", labels, "-o", "json"))[
            "items"
        ]
        return found

    def _route(self) -> dict[str, Any] | None:
        said = self._run("kubectl", "get", "ingressroute", ROUTE, "--ignore-not-found", "-o", "json")
        return orjson.loads(said) if said.strip() else None

    def _service(self, name: str, port: int) -> AbstractContextManager[str]:
        if self._of.in_cluster:
            return nullcontext(f"http://{name}.{self._of.namespace}:{port}")
        return self._forwarded(f"service/{name}", port)

    @contextmanager
    def _forwarded(self, what: str, port: int) -> Iterator[str]:
        words = ["kubectl", "port-forward", "-n", self._of.namespace, what, f":{port}"]
        # A file and no pipe: it says a line for each connection, and nobody would empty the pipe.
        with tempfile.TemporaryFile() as said, subprocess.Popen(words, stdout=said, stderr=said) as process:
            try:
                yield f"http://127.0.0.1:{_forwarded_port(process, said.fileno(), what)}"
            finally:
                process.kill()

    def _run(self, tool: str, *words: str) -> str:
        command, seconds = [tool, words[0], "-n", self._of.namespace, *words[1:]], self._of.ready_seconds + _PATIENCE
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=DRIVER | os.environ)
        except subprocess.TimeoutExpired as error:
            fix = "see whether the cluster's API answers: kubectl version"
            raise _no_tool(f"{tool} {words[0]}", f"no end within {seconds:g} s", fix) from error
        except OSError as error:
            raise _no_tool(tool, error.strerror or "", f"install {tool}") from error
        if done.returncode:
            raise _no_tool(
                f"{tool} {words[0]}", done.stderr.strip()[-_SHOWN:], "give the same command again afterwards"
            )
        return done.stdout


def _is_ready(deployment: dict[str, Any]) -> bool:
    """Whether all replicas of what is wanted now are ready."""
    status = deployment.get("status", {})
    seen = status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0)
    return bool(seen and status.get("readyReplicas", 0) >= deployment["spec"].get("replicas", 1))


def _has_begun(pod: dict[str, Any]) -> bool:
    """Whether its server has come up: one that an autoscaler adds now, or that was evicted, cannot be asked."""
    return any(each.get("started") for each in pod["status"].get("containerStatuses", ()))


def _live(route: dict[str, Any]) -> str | None:
    """The run that a route leads to; None where it is no release of ours."""
    runs = {run_of(service["name"]) for service in _ours(route) if service["name"].startswith(APP)}
    return runs.pop() if len(runs) == 1 else None


def _ours(route: dict[str, Any]) -> list[dict[str, Any]]:
    """Services of gateways and apps in a route, whose other rules (a page, a redirect) are somebody else's."""
    found = [service for rule in route["spec"]["routes"] for service in rule.get("services", ())]
    return [
        each for each in found if each.get("kind", "Service") == "Service" and each["name"].rpartition("-")[2] in TIERS
    ]


def _forwarded_port(process: subprocess.Popen[bytes], said: int, what: str) -> str:
    """The local port that ``kubectl port-forward`` tells of in the file ``said``."""
    until = time.monotonic() + _PATIENCE
    while True:
        ended, late = process.poll() is not None, time.monotonic() > until
        text = os.pread(said, 4 * _SHOWN, 0).decode(errors="replace")
        if found := re.search(r"from 127\.0\.0\.1:(\d+)", text):
            return found[1]
        if ended or late:
            why = "it ended" if ended else f"no port within {_PATIENCE:g} s"
            fix = "see: kubectl get services,pods; kubectl version"
            raise _no_tool(f"kubectl port-forward {what}", f"{why}: {text.strip()[-_SHOWN:] or 'nothing said'}", fix)
        time.sleep(_LOOK / 20)


def _age(updated: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(updated)).total_seconds()


def _no_tool(tool: str, value: str, fix: str) -> StoreError:
    return StoreError("DEPLOY-TOOL", place=tool, value=value, rule="it does what it is asked", fix=fix)
