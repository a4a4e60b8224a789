"""Prometheus itself reads our rules, scrapes our processes, and an alert goes off when a backend is killed."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tastetwin.serving.keys import SCOPES, add_key
from tests.serving.processes import Server, started
from tests.serving.test_together import ask, free_ports
from tests.test_monitoring import FOLDER, RULES, named, panels
from tests.world import Journey

NEEDED: Final = ("prometheus", "promtool")
pytestmark = pytest.mark.skipif(
    any(shutil.which(each) is None for each in NEEDED),
    reason="PROMETHEUS IS NOT INSTALLED, so no rule was tested: apt install prometheus",
)
INTERVAL: Final = 1
"""Seconds between looks, instead of the 15 of our settings."""


def promtool(*arguments: str | Path, stdin: str | None = None) -> str:
    done = subprocess.run(["promtool", *map(str, arguments)], input=stdin, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_rules_and_settings_are_what_prometheus_takes() -> None:
    """A rule that does not parse takes all others down with it."""
    assert promtool("check", "rules", *sorted(FOLDER.glob("rules/*.yaml"))).count("SUCCESS") == 3
    promtool("check", "config", FOLDER / "prometheus.yaml")


def test_every_alert_is_quiet_and_fires_when_it_should() -> None:
    """The examples say when."""
    assert promtool("test", "rules", *sorted(FOLDER.glob("tests/*.yaml"))).count("SUCCESS") == 3


def test_an_alert_whose_threshold_moved_fails_its_examples(tmp_path: Path) -> None:
    """Examples that pass whatever the rules say prove nothing."""
    shutil.copytree(FOLDER, tmp_path / "monitoring")
    rules = tmp_path / "monitoring" / "rules" / "daily.yaml"
    rules.write_text(rules.read_text().replace("> 30 * 3600", "> 31 * 3600"))
    done = subprocess.run(
        ["promtool", "test", "rules", tmp_path / "monitoring" / "tests" / "daily.yaml"], capture_output=True, timeout=60
    )
    assert done.returncode != 0 and b"TasteTwinDataLate" in done.stderr + done.stdout


def test_every_query_of_the_dashboard_is_promql(tmp_path: Path) -> None:
    """A panel with a bracket too few shows an error to whoever needs it."""
    queries = [target["expr"].replace("$__rate_interval", "5m") for panel in panels() for target in panel["targets"]]
    rules = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(queries)]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(queries)} rules found" in promtool("check", "rules", file)


@dataclass
class Stack:
    """Tiers, the file of the runs, and a Prometheus that looks at all of them."""

    prometheus: str
    gateway: Server
    backend: Server
    metrics: dict[str, str]
    """Job -> host and port."""
    key: str
    url: str

    def asked(self, path: str, **query: str) -> Any:
        """Data of an answer of Prometheus's API."""
        url = f"{self.prometheus}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.loads(answer.read())["data"]

    def value(self, expr: str) -> float | None:
        """Of an expression with one result; None without."""
        found = self.asked("query", query=expr)["result"]
        return float(found[0]["value"][1]) if found else None

    def states(self) -> dict[str, str]:
        """Alert -> pending or firing."""
        return {each["labels"]["alertname"]: each["state"] for each in self.asked("alerts")["alerts"]}


def wait(what: str, is_so: Any, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, what
        time.sleep(0.2)


@contextmanager
def textfile(folder: Path) -> Iterator[str]:
    """What node exporter does with its textfile collector, as far as this goes: the folder's file by HTTP."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        extensions_map = {".prom": "text/plain; version=0.0.4"}  # noqa: RUF012

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def settings_for(targets: dict[str, str], folder: Path) -> Path:
    """Ours, at these addresses and in seconds instead of minutes."""
    settings = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    settings["global"] = {"scrape_interval": f"{INTERVAL}s", "evaluation_interval": f"{INTERVAL}s"}
    settings["scrape_configs"] = [each for each in settings["scrape_configs"] if each["job_name"] in targets]
    for each in settings["scrape_configs"]:
        each["static_configs"] = [{"targets": [targets[each["job_name"]]]}]
        each |= {"metrics_path": "/tastetwin.prom"} if each["job_name"] == "node" else {}
    shutil.copytree(FOLDER / "rules", folder / "rules")
    for file in folder.glob("rules/*.yaml"):
        file.write_text(file.read_text().replace("for: 1m\n", "for: 2s\n"))
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(settings))
    return folder / "prometheus.yaml"


@contextmanager
def prometheus(settings: Path, port: int) -> Iterator[str]:
    arguments = [f"--config.file={settings}", f"--storage.tsdb.path={settings.parent / 'data'}", "--log.level=warn"]
    process = subprocess.Popen(
        ["prometheus", *arguments, f"--web.listen-address=127.0.0.1:{port}"], stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait("Prometheus is ready", functools.partial(answers, f"{url}/-/ready"))
        yield url
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture
def stack(copied: Journey, tmp_path: Path) -> Iterator[Stack]:
    store, key = copied.store.root, add_key(tmp_path / "keys.json", "all", list(SCOPES), 1e5, 100_000)
    (tmp_path / "gateway.key").write_text(key)
    port = free_ports(6)
    at = [f"127.0.0.1:{port + number}" for number in range(6)]
    (tmp_path / "metrics").mkdir()
    command = ["metrics", "--store", store, "--output", str(tmp_path / "metrics" / "tastetwin.prom")]
    subprocess.run([sys.executable, "-m", "tastetwin", *command], check=True, timeout=60)
    keys, quick = ["--keys", str(tmp_path / "keys.json")], {"TASTETWIN_SERVE__DRAIN_SECONDS": "0"}
    gateway = ["serve", "gateway", "--store", store, *keys, "--port", str(port + 1), "--metrics-port", str(port + 2)]
    app = ["serve", "app", *keys, "--gateway-key", str(tmp_path / "gateway.key"), "--secret", str(tmp_path / "secret")]
    with ExitStack() as on:
        backend = on.enter_context(started(["serve", "backend", "--store", store, "--port", str(port)]))
        behind = quick | {"TASTETWIN_GATEWAY__BACKENDS": json.dumps([f"http://{at[0]}"])}
        middle = on.enter_context(started(gateway, behind))
        ports = ["--port", str(port + 3), "--metrics-port", str(port + 4)]
        on.enter_context(started([*app, *ports], quick | {"TASTETWIN_APP__GATEWAY": f"http://{at[1]}"}))
        for number in (1, 3):
            wait("a tier is ready", functools.partial(answers, f"http://{at[number]}/readyz"))
        targets = {"tastetwin-backend": at[0], "tastetwin-gateway": at[2], "tastetwin-app": at[4]}
        targets["node"] = on.enter_context(textfile(tmp_path / "metrics"))
        url = on.enter_context(prometheus(settings_for(targets, tmp_path), port + 5))
        yield Stack(url, middle, backend, targets, key, f"http://{at[1]}")


def test_prometheus_sees_all_and_tells_when_the_model_is_gone(stack: Stack) -> None:
    """From a process that is killed to an alert with a runbook, by the real thing."""
    wait("all targets are up", lambda: stack.value("sum(up)") == len(stack.metrics))
    groups = stack.asked("rules")["groups"]
    wait("rules are evaluated", lambda: rules_are_well(stack))
    assert sum(len(group["rules"]) for group in groups) == len(RULES)
    known = set(stack.asked("label/__name__/values"))
    missing = {name for rule in RULES for name in named(rule["expr"])} - known
    assert {name for name in missing if not name.startswith("tastetwin_events_")} <= {
        "tastetwin_request_seconds_bucket", "tastetwin_requests_total"}  # fmt: skip  # before the first request
    for number in range(20):
        ask(f"{stack.url}/v1/models/taste/embed", stack.key, {"items": [likes(number)]})
    wait("requests are counted", lambda: (stack.value("sum(tastetwin_requests_total)") or 0) >= 20)
    assert stack.value('tastetwin_run_gate_passed{run="published"}') == 1
    assert not {"TasteTwinNoModel", "TasteTwinTierDown"} & set(stack.states())

    os.kill(stack.backend.process.pid, signal.SIGKILL)
    for alert in ("TasteTwinNoModel", "TasteTwinTierDown"):
        wait(f"{alert} fires", lambda alert=alert: stack.states().get(alert) == "firing")
    (fired,) = [e for e in stack.asked("alerts")["alerts"] if e["labels"]["alertname"] == "TasteTwinNoModel"]
    assert fired["labels"]["severity"] == "critical" and fired["labels"]["job"] == "tastetwin-gateway"
    assert fired["annotations"]["summary"] == "tastetwin-gateway reaches no model"
    assert fired["annotations"]["runbook_url"] == "docs/how-to/runbooks.md#no-model"


def rules_are_well(stack: Stack) -> bool:
    rules = [rule for group in stack.asked("rules")["groups"] for rule in group["rules"]]
    assert not [rule["lastError"] for rule in rules if rule.get("lastError")]
    return all(rule["health"] == "ok" for rule in rules)


def likes(number: int) -> dict[str, Any]:
    return {"likes": [{"like_contentsid": str(100_000_000 + number)}, {"like_contentsid": str(100_000_050 + number)}]}
