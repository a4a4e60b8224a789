"""The charts for real: `helm template | podman kube play -`, from the daily job to twins in an app's answer."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tastetwin.runs import Run, published_run
from tastetwin.serving.keys import add_key
from tastetwin.sources.synthetic import TownConfig, write_town
from tastetwin.store import Store
from tests.platform.charts import Manifest, of_kind, pods, rendered
from tests.platform.containers import podman, run
from tests.platform.stack import call

USER = 10_001
PATIENCE = 60.0
"""Seconds until a server must answer, on a busy machine."""
SMALL: dict[str, Any] = {
    "train": {"epochs": 1, "width": 32, "heads": 2, "dim": 64},
    "evaluate": {"bootstrap": 200},
}


@dataclass
class Engine:
    """What `podman kube play` has not: volumes of a pod's own, services."""

    folder: Path
    name: str = field(default_factory=lambda: f"taste-{secrets.token_hex(3)}")
    pods: list[str] = field(default_factory=list)
    volumes: set[str] = field(default_factory=set)

    def volume(self, name: str, folder: Path | None = None) -> str:
        """A claim of that name, in a folder if one is given; else empty, with the owner that the image gives it."""
        whole = f"{self.name}-{name}"
        if whole not in self.volumes:
            options = [] if folder is None else ["--opt", "type=none", "--opt", "o=bind", "--opt", f"device={folder}"]
            podman("volume", "create", *options, whole)
            self.volumes.add(whole)
        return whole

    def play(self, found: list[Manifest]) -> list[str]:
        """Start what was rendered; returns names of pods, by which pods on the network find one another."""
        text = yaml.safe_dump_all(self.playable(each) for each in found)
        path = self.folder / f"{secrets.token_hex(4)}.yaml"
        path.write_text(text)
        said = podman("kube", "play", "--network", self.name, path).stdout
        begun = [
            podman("pod", "inspect", pod, "--format", "{{.Name}}").stdout.strip()
            for pod in re.findall(r"Pods?:\n(\w+)", said)
        ]
        self.pods += begun
        return begun

    def playable(self, manifest: Manifest) -> Manifest:
        """Podman 4.3 shares an emptyDir between all pods, gives secrets undecoded, and opens ports on all addresses."""
        for owner, pod in [("", manifest)] if manifest["kind"] == "Pod" else pods([manifest]):
            for volume in pod["spec"]["volumes"]:
                if "emptyDir" in volume:
                    del volume["emptyDir"]
                    volume["persistentVolumeClaim"] = {"claimName": self.volume(f"{owner or 'job'}-{volume['name']}")}
                elif "secret" in volume:
                    volume["persistentVolumeClaim"] = {"claimName": volume.pop("secret")["secretName"]}
            for container in pod["spec"]["containers"]:
                for port in container.get("ports", ()):
                    port |= {"hostPort": free_port(), "hostIP": "127.0.0.1"}
        return manifest

    def end(self) -> None:
        """Leave nothing behind."""
        podman("pod", "rm", "--force", "--time", "2", *self.pods, check=False)
        volumes = podman("volume", "ls", "--quiet", "--filter", f"name={self.name}").stdout.split()
        podman("volume", "rm", "--force", *volumes, check=False)
        podman("network", "rm", "--force", self.name, check=False)


@dataclass
class Town:
    """A town's run, served by two releases."""

    engine: Engine
    store: Store
    run: Run
    keys: dict[str, str]
    releases: dict[str, list[Manifest]] = field(default_factory=dict)

    def url(self, component: str, port: str = "http") -> str:
        """From here to a server."""
        for found in self.releases.values():
            for _, pod in pods(found):
                for container in pod["spec"]["containers"]:
                    if container["name"] == component:
                        (number,) = (each["hostPort"] for each in container["ports"] if each["name"] == port)
                        return f"http://127.0.0.1:{number}"
        raise AssertionError(component)

    def container(self, component: str) -> str:
        """Its name."""
        (name,) = (f"{pod}-{component}" for pod in self.engine.pods if f"-{component}-pod" in pod)
        return name

    def wait_for(self, component: str, path: str, port: str = "http") -> None:
        """Until it says that it is ready."""
        url, until = self.url(component, port) + path, time.monotonic() + PATIENCE
        while True:
            try:
                with urllib.request.urlopen(url, timeout=2):
                    return
            except OSError:
                said = podman("logs", self.container(component), check=False)
                assert time.monotonic() < until, said.stdout + said.stderr
                time.sleep(0.5)


@pytest.fixture(scope="module")
def engine(images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    made = Engine(tmp_path_factory.mktemp("played"))
    podman("network", "create", made.name)
    try:
        yield made
    finally:
        made.end()


@pytest.fixture(scope="module")
def town(engine: Engine) -> Town:
    """The daily job as a pod of the jobs chart; then model and app for its run."""
    source, folder, credentials = (engine.folder / name for name in ("events", "store", "keys"))
    write_town(TownConfig(users=300, seed=3), source)
    folder.mkdir()
    keys = make_keys(credentials)
    for path in (folder, *credentials.rglob("*")):
        shutil.chown(path, USER, USER)
    volumes = {name: engine.volume(name, engine.folder / name) for name in ("events", "store")}
    daily = {"enabled": True, "source": "/source", "sourceClaim": volumes["events"]}
    values = {"store": {"claim": volumes["store"]}, "settings": SMALL, "daily": daily}
    do_job(engine, rendered("jobs", local(values), f"{engine.name}-jobs"))
    store = Store.open(str(folder))
    made = Town(engine, store, published_run(store), keys)
    serve(made, volumes["store"], {name: engine.volume(name, credentials / name) for name in ("gateway", "app")})
    return made


def make_keys(folder: Path) -> dict[str, str]:
    """Files as the secrets hold them; returns the keys themselves."""
    for name in ("gateway", "app"):
        (folder / name).mkdir(parents=True)
    gateway = add_key(folder / "gateway" / "keys.json", "app", ["twins", "favors", "opt-out"])
    lab = add_key(folder / "gateway" / "keys.json", "lab", ["twins"])
    shop = add_key(folder / "app" / "keys.json", "shop", ["app"])
    (folder / "app" / "gateway.key").write_text(gateway)
    (folder / "app" / "secret.txt").write_text(secrets.token_urlsafe(48))
    return {"lab": lab, "shop": shop, "desk": token(folder / "desk")}


def token(folder: Path) -> str:
    """A secret with one key, as the sandbox has it."""
    folder.mkdir()
    made = secrets.token_hex(24)
    (folder / "token").write_text(made)
    return made


def do_job(engine: Engine, found: list[Manifest]) -> None:
    """The pod of the CronJob, once: podman knows no CronJobs."""
    (cron,) = of_kind(found, "CronJob")
    template = cron["spec"]["jobTemplate"]["spec"]["template"]
    name = cron["metadata"]["name"]
    pod = template | {"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"] | {"name": name}}
    (begun,) = engine.play([*of_kind(found, "ConfigMap"), pod])
    status = podman("wait", f"{begun}-daily", timeout=180).stdout.strip()
    assert status == "0", podman("logs", f"{begun}-daily").stderr


def serve(town: Town, claim: str, secret: dict[str, str]) -> None:
    """Model, then app, each beside what it asks; pods find one another by name, where a cluster has services."""
    both = {"run": {"id": town.run.run_id}, "store": {"claim": claim}}
    values = both | {"model": {"version": town.run.generation("train")}, "replicas": 1}
    model = rendered("model", local(values), f"{town.engine.name}-model")
    (backend,) = town.engine.play(model)
    town.releases["model"] = model
    town.wait_for("backend", "/v2/health/ready")
    gateway = backend.replace("-model-backend", "-app-gateway")
    values = both | {
        "gateway": {"backends": [f"http://{backend}:8101"], "secret": secret["gateway"]},
        "app": {"gateway": f"http://{gateway}:8102", "secret": secret["app"]},
    }
    app = rendered("app", local(values), f"{town.engine.name}-app")
    assert gateway in town.engine.play(app)
    town.releases["app"] = app
    for tier in ("gateway", "app"):
        town.wait_for(tier, "/readyz")


def local(values: dict[str, Any]) -> dict[str, Any]:
    return {"image": {"registry": "localhost", "pullPolicy": "Never"}} | values


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def somebody(town: Town) -> tuple[str, list[str]]:
    """A user and their list, as the command tells it."""
    words = [sys.executable, "-m", "tastetwin"]
    asked = "SELECT idno FROM result ORDER BY idno LIMIT 1"
    user = json.loads(run(*words, "sql", asked, "--store", town.store.root, "--json").stdout)["idno"]
    listed = json.loads(run(*words, "similar", user, "--store", town.store.root, "--json").stdout)
    return user, [twin["twin_idno"] for twin in listed["twins"]]


def test_what_the_daily_job_published_comes_out_of_the_app(town: Town) -> None:
    """Images, charts, settings, secrets and store belong together if, and only if, a user gets their own list."""
    user, twins = somebody(town)
    answer = call(f"{town.url('gateway')}/v1/models/taste/twins", town.keys["lab"], {"user": user, "k": 5})
    assert answer["version"] == town.run.run_id and [twin["user"] for twin in answer["twins"]] == twins[:5]
    token = call(f"{town.url('app')}/v1/tokens", town.keys["shop"], {"user": user, "seconds": 600})["token"]
    page = call(f"{town.url('app')}/v1/me/twins", token)
    assert [twin["user"] for twin in page["people"]][:5] == twins[:5]


def test_metrics_are_where_the_charts_say(town: Town) -> None:
    """Prometheus reads the port that the ServiceMonitor names."""
    for tier, port in (("backend", "http"), ("gateway", "metrics"), ("app", "metrics")):
        with urllib.request.urlopen(town.url(tier, port) + "/metrics", timeout=5) as answer:
            assert b"# TYPE tastetwin_" in answer.read()


@pytest.mark.parametrize("tier", ["backend", "gateway", "app"])
def test_a_server_runs_without_any_right(town: Town, tier: str) -> None:
    """What manifests ask for, the kernel does: no root, no capability, no new privileges, filtered system calls."""
    name = town.container(tier)
    process = podman("inspect", name, "--format", "{{.State.Pid}}").stdout.strip()
    status = dict(re.findall(r"^(\w+):\s*(.*)$", Path(f"/proc/{process}/status").read_text(), flags=re.MULTILINE))
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(USER)}
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
    for path in ("/", "/etc/tastetwin", "/run/secrets/tastetwin", "/opt/tastetwin"):
        done = podman("exec", name, "/bin/sh", "-c", f"touch {path}/mine", check=False)
        assert done.returncode != 0, path
    podman("exec", name, "/bin/sh", "-c", "touch /tmp/mine")


def test_the_sandbox_opens_to_its_token_alone(town: Town) -> None:
    """Whoever gets in has the store and the secrets of the jobs before them."""
    volumes = {name: town.engine.volume(name) for name in ("store", "home")}
    desk = town.engine.volume("desk", town.engine.folder / "keys" / "desk")
    values = {"store": {"claim": volumes["store"]}, "home": {"claim": volumes["home"]}, "tokenSecret": desk}
    town.releases["sandbox"] = rendered("sandbox", local(values), f"{town.engine.name}-desk")
    town.engine.play(town.releases["sandbox"])
    town.wait_for("sandbox", "/api", "jupyter")
    town.wait_for("sandbox", "/healthz", "code")
    files = town.url("sandbox", "jupyter") + "/api/contents"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(files, timeout=10)
    with urllib.request.urlopen(f"{files}?token={town.keys['desk']}", timeout=10) as answer:
        assert json.load(answer)["type"] == "directory"
    with urllib.request.urlopen(town.url("sandbox", "code"), timeout=10) as answer:
        assert "/login" in answer.url
    podman("exec", town.container("sandbox"), "tastetwin", "runs", "--store", "/store")


def test_a_server_that_is_told_to_end_ends_well(town: Town) -> None:
    """Within the time that pods are given, and with 0: what was accepted is answered before."""
    for tier in ("app", "gateway", "backend"):
        name = town.container(tier)
        begun = time.monotonic()
        podman("stop", "--time", "40", name)
        assert time.monotonic() - begun < 40
        assert podman("inspect", name, "--format", "{{.State.ExitCode}}").stdout.strip() == "0", tier
