"""Blue-green in a cluster: ``fake_cluster`` plays Helm, kubectl and the API; golden queries go to real servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tastetwin.config import Config, DeployConfig
from tastetwin.deploy.kubernetes import APP, MODEL, KubernetesTarget, release, run_of
from tastetwin.errors import StoreError, UsageError
from tastetwin.runs import published_run
from tastetwin.serving.keys import add_key
from tests.deploy.contract import DeployContract, Only, Place, served
from tests.deploy.town import Town
from tests.serving.processes import started
from tests.serving.test_together import free_ports

pytestmark = pytest.mark.slow
FAKE = Path(__file__).parent / "fake_cluster.py"
FIRST = "taste-app-none"
"""What the route leads to before anything is deployed."""
CHANGES = 5
"""Of the cluster in a deployment: two releases installed, the route patched, two removed."""


@dataclass(frozen=True)
class Servers:
    """What answers golden queries, and with which key."""

    ports: dict[str, int]
    key: str


@pytest.fixture(scope="module")
def servers(runs: Town, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """A backend and, but for the spoilt one, a gateway of each run, as a cluster's pods would be."""
    folder, ports = tmp_path_factory.mktemp("servers"), {}
    key = add_key(folder / "keys.json", "deploy", ("twins", "embed"), 1e6, 1_000_000)
    with ExitStack() as stack:
        store = ["--store", str(runs.store.root), "--port", "0"]
        for run in (runs.old, runs.new, runs.bad):
            words = ["serve", "backend", *store, "--version", run.generation("train")]
            backend = stack.enter_context(started(words)).url
            ports[f"{release(MODEL, run.run_id)}-backend"] = port_of(backend)
            if run is runs.bad:
                continue
            environment = {
                "TASTETWIN_GATEWAY__BACKENDS": json.dumps([backend]),
                "TASTETWIN_GATEWAY__WEIGHTS": json.dumps({run.run_id: 1.0}),
            }
            metrics = free_ports(1)
            words = ["serve", "gateway", *store, "--keys", str(folder / "keys.json"), "--metrics-port", str(metrics)]
            gateway = stack.enter_context(started(words, environment))
            ports[f"{release(APP, run.run_id)}-gateway"] = port_of(gateway.url)
            ports[f"{release(APP, run.run_id)}-gateway-0"] = metrics
        yield Servers(ports, key)


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


@dataclass(frozen=True)
class Cluster(Place):
    """See there."""

    folder: Path

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "cluster.json").read_text())
        return found

    def change(self, **values: Any) -> None:
        (self.folder / "cluster.json").write_text(json.dumps(self.state | values))

    def changes(self) -> list[list[str]]:
        """The calls that change something."""
        return [call for call in self.state["calls"] if call[1] in ("upgrade", "uninstall", "patch", "rollback")]

    def empty(self) -> None:
        routes = [
            {"match": f"Host(`{tier}.example.com`)", "services": [{"name": f"{FIRST}-{tier}", "port": port}]}
            for tier, port in (("app", 8103), ("gateway", 8102))
        ]
        route = {"metadata": {"name": "tastetwin", "resourceVersion": "1"}, "spec": {"routes": routes, "tls": {}}}
        state = {"releases": {}, "route": route, "calls": [], "changes": 0, "broken": []}
        (self.folder / "cluster.json").write_text(json.dumps(state))

    def command(self, *words: str) -> subprocess.Popen[str]:
        where = ["--target", "kubernetes", "--store", str(self.store.root), "--config", str(self.folder / "c.yaml")]
        return subprocess.Popen(
            [sys.executable, "-m", "tastetwin", "deploy", *words, *where],
            env={**os.environ, "TASTETWIN_GATEWAY_KEY": self.target.gateway_key},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def place(runs: Town, servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    for tool in ("helm", "kubectl"):
        path = tmp_path / "bin" / tool
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{FAKE}" {tool} "$@"\n')
        path.chmod(0o755)
    (tmp_path / "ports.json").write_text(json.dumps(servers.ports))
    (tmp_path / "c.yaml").write_text("deploy: {golden: 5, check_seconds: 0}\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_CLUSTER", str(tmp_path))
    target = KubernetesTarget(runs.store, Config(deploy=DeployConfig(golden=5, check_seconds=0)), servers.key)
    cluster = Cluster(runs.store, runs.old, runs.new, runs.bad, target, tmp_path)
    cluster.empty()
    return cluster


class TestKubernetes(DeployContract):
    """The promises of every target."""

    killed_after = ("app", "check")

    def test_the_tools_are_asked_in_this_order_and_for_nothing_else(self, place: Cluster) -> None:
        """What changes the cluster, word by word: charts, values, and the one patch that moves the traffic."""
        served(place, place.old)
        place.change(calls=[])
        served(place, place.new)
        old, new = (run.run_id for run in (place.old, place.new))
        waiting = ["--wait", "--timeout", "600s"]
        model, app, patch, *removed = place.changes()
        assert model == [
            "helm", "upgrade", "--install", release(MODEL, new), "deploy/helm/tastetwin-model",
            "--set-string", f"model.version={place.new.generation('train')}", "--set-string", f"run.id={new}", *waiting,
        ]  # fmt: skip
        assert app == [
            "helm", "upgrade", "--install", release(APP, new), "deploy/helm/tastetwin-app",
            "--set-string", f"run.id={new}",
            "--set-json", f'gateway.backends=["http://{release(MODEL, new)}-backend:8101"]', *waiting,
        ]  # fmt: skip
        assert patch[:5] == ["kubectl", "patch", "ingressroute", "tastetwin", "--type=merge"]
        assert len(removed) == CHANGES - 3
        assert removed == [
            ["helm", "uninstall", release(kind, old), "--ignore-not-found", *waiting] for kind in (APP, MODEL)
        ]
        route = place.state["route"]
        assert [(rule["match"], rule["services"]) for rule in route["spec"]["routes"]] == [
            (f"Host(`{tier}.example.com`)", [{"name": f"{release(APP, new)}-{tier}", "port": port}])
            for tier, port in (("app", 8103), ("gateway", 8102))
        ]
        assert route["metadata"]["annotations"] == {"tastetwin.io/previous": old}

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_killed_at_any_change_of_the_cluster_it_is_given_again(self, place: Cluster, when: str) -> None:
        """Helm leaves a release pending for ever then, which the next command must not stumble over."""
        served(place, place.old)
        for number in range(1, CHANGES + 1):
            run = (place.old, place.new)[number % 2]
            place.change(changes=0)
            (place.folder / "kill").write_text(f"{number} {when}")
            killed = place.command("--run", run.run_id)
            said = killed.communicate(timeout=120)[1]
            assert killed.returncode == -9, said
            (place.folder / "kill").unlink()
            served(place, run)

    def test_an_app_that_never_gets_ready_leaves_nothing(self, place: Cluster) -> None:
        """A quota, an image that cannot be pulled: Helm gives up, and so do we."""
        served(place, place.old)
        place.change(broken=[f'gateway.backends=["http://{release(MODEL, place.new.run_id)}-backend:8101"]'])
        with pytest.raises(StoreError, match=r"DEPLOY-NOT-READY.*deadline exceeded"):
            place.deployment(place.new).all_steps()
        assert Only(place.old) == place.target.standing()

    def test_a_route_that_somebody_else_changed_meanwhile_is_not_overwritten(
        self, place: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two deployments at once would else each believe that they answer."""
        served(place, place.old)
        stale = place.state["route"]
        stale["metadata"]["resourceVersion"] = "0"
        monkeypatch.setattr(KubernetesTarget, "_route", lambda self: stale)
        with pytest.raises(StoreError, match=r"DEPLOY-TOOL.*has been modified"):
            place.target.point(place.new.run_id, None)

    def test_rules_of_others_in_the_route_stay_as_they_are(self, place: Cluster) -> None:
        """A page for a path, a redirect: a deployment that renamed them would break what it never looked at."""
        served(place, place.old)
        route, others = place.state["route"], [
            {"match": "PathPrefix(`/away`)", "services": [{"name": "noop@internal", "kind": "TraefikService"}]},
            {"match": "PathPrefix(`/help`)", "services": [{"name": "help-page", "port": 80}]},
        ]  # fmt: skip
        route["spec"]["routes"] = [others[0], *route["spec"]["routes"], others[1]]
        place.change(route=route)
        served(place, place.new)
        first, *ours, last = place.state["route"]["spec"]["routes"]
        assert [first, last] == others
        assert [each["services"][0]["name"] for each in ours] == [
            f"{release(APP, place.new.run_id)}-{tier}" for tier in ("app", "gateway")
        ]

    def test_a_run_is_never_its_own_way_back(self, place: Cluster) -> None:
        """Somebody led the route elsewhere by hand, and the run before is deployed: a rollback would end it all."""
        served(place, place.old)
        served(place, place.new)
        route = place.state["route"]
        for rule, tier in zip(route["spec"]["routes"], ("app", "gateway"), strict=True):
            rule["services"][0]["name"] = f"closed-today-{tier}"
        place.change(route=route)
        served(place, place.old)
        assert place.target.standing().previous is None
        with pytest.raises(UsageError, match="NO-PREVIOUS"):
            place.deployment(place.old).step("rollback")
        assert Only(place.old) == place.target.standing()

    def test_by_hand_a_way_back_names_its_run_where_not_the_published_one_answers(self, place: Cluster) -> None:
        """Who has published the run before again would take that away, and be told that all is done."""
        published = published_run(place.store).run_id
        other = next(run for run in (place.old, place.new) if run.run_id != published)
        served(place, other)
        refused = place.command("rollback")
        said = refused.communicate(timeout=120)[1]
        assert refused.returncode == 2 and "DEPLOY-WHICH" in said
        assert Only(other) == place.target.standing()

    def test_gateways_are_asked_what_became_of_requests_and_none_is_no_answer(self, place: Cluster) -> None:
        """Nothing of nothing failed would be a check that nobody fails."""
        served(place, place.old)
        (text,) = place.target.metrics(place.old.run_id)
        assert "tastetwin_requests_total{" in text
        with pytest.raises(StoreError, match="DEPLOY-NOT-READY"):
            place.target.metrics(place.new.run_id)

    def test_a_pod_that_comes_up_or_is_gone_fails_no_check(self, place: Cluster) -> None:
        """More traffic makes the autoscaler add one just then: a sound deployment would go back for it."""
        served(place, place.old)
        name, releases = release(APP, place.old.run_id), place.state["releases"]
        others = [{"phase": "Pending"}, {"phase": "Failed", "reason": "Evicted"},
                  {"podIP": "10.0.0.10", "containerStatuses": [{"started": False}]}]  # fmt: skip
        place.change(releases=releases | {name: {**releases[name], "more": others}})
        assert len(place.target.metrics(place.old.run_id)) == 1

    def test_a_release_whose_removal_was_killed_is_removed_and_made_again(self, place: Cluster) -> None:
        """Helm installs nothing over what is still being uninstalled."""
        served(place, place.old)
        releases = place.state["releases"]
        releases[release(MODEL, place.new.run_id)] = {
            **releases[release(MODEL, place.old.run_id)], "status": "uninstalling",
        }  # fmt: skip
        place.change(releases=releases)
        served(place, place.new)

    def test_without_its_route_nothing_is_switched(self, place: Cluster) -> None:
        """It comes with a chart; whoever forgot it is told which."""
        elsewhere = {**place.state["route"], "spec": {"routes": [{"match": "PathPrefix(`/`)", "services": []}]}}
        for route in (None, elsewhere):
            place.change(route=route)
            with pytest.raises(StoreError, match=r"DEPLOY-TOOL.*tastetwin-platform"):
                place.deployment(place.old).all_steps()
            assert place.target.standing().models == {}


def test_a_run_s_releases_are_named_so_that_the_run_is_known_from_them() -> None:
    """Charts, route and labels are tied together by these names."""
    assert release(MODEL, "2026-11-22.10") == "taste-model-2026-11-22-10"
    assert run_of("taste-app-2026-11-22-10-gateway") == "2026-11-22.10"


def test_a_key_is_not_shown() -> None:
    """Targets end up in tracebacks."""
    assert "secret" not in repr(KubernetesTarget(None, Config(), "secret"))  # type: ignore[arg-type]


def test_a_tool_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image without Helm."""
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(StoreError, match=r"DEPLOY-TOOL.*helm"):
        KubernetesTarget(None, Config(), "").standing()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo $$ > pid; exec sleep 600", "no port within 0.5 s: nothing said"),
        ("echo $$ > pid; echo waiting; sleep 5 & wait", "no port within 0.5 s: waiting"),
        (
            "echo $$ > pid; echo 'Error: services \"x\" not found' >&2; exit 1",
            'it ended: Error: services "x" not found',
        ),
    ],
    ids=["silent", "with a child", "ended"],
)
def test_a_port_that_is_not_forwarded_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    """kubectl that waits for an API server for ever would hold the deployment until the scheduler ends it."""
    (tmp_path / "kubectl").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("tastetwin.deploy.kubernetes._PATIENCE", 0.5)
    target, began = KubernetesTarget(None, Config(), ""), time.monotonic()  # type: ignore[arg-type]
    with pytest.raises(StoreError) as caught, target.model("2026-11-22.1"):
        pass
    assert time.monotonic() - began < 10
    assert (caught.value.problem.code, caught.value.problem.value) == ("DEPLOY-TOOL", said)
    assert "kubectl port-forward service/taste-model-2026-11-22-1-backend" in caught.value.problem.place
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize(("given", "used"), [({}, "configmap"), ({"HELM_DRIVER": "secret"}, "secret")])
def test_helm_keeps_its_releases_in_configmaps_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], used: str
) -> None:
    """Where they lie in secrets, whoever deploys may read every key of the namespace."""
    (tmp_path / "helm").write_text('#!/bin/sh\nprintf \'[{"name": "%s"}]\' "$HELM_DRIVER"\n')
    (tmp_path / "helm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("HELM_DRIVER", raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert KubernetesTarget(None, Config(), "")._releases() == [{"name": used}]  # type: ignore[arg-type]
