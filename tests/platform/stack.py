"""A town's daily job by the jobs image, and the three tiers that serve it, each from its image, in one pod."""

from __future__ import annotations

import json
import os
import secrets
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.platform.containers import podman

SETTINGS = """\
train: {epochs: 1, layers: 1, width: 32, heads: 2, dim: 64}
evaluate: {bootstrap: 200}
gateway: {fresh: /home/tastetwin/state/fresh}
app: {state: /home/tastetwin/state/app}
"""
LOCKED_DOWN = ("--read-only", "--read-only-tmpfs=false", "--tmpfs", "/tmp", "--cap-drop", "all")
DAY = "2026-06-30"
CONFIG = ("--config", "/etc/tastetwin/settings.yaml")
SECRETS = "/run/secrets/tastetwin"
KEYS = f"{SECRETS}/keys.json"
PLACES = {"events": "/events", "store": "/store", "state": "/home/tastetwin/state", "secrets": SECRETS}


@dataclass(frozen=True)
class Stack:
    """The pod's addresses and keys, and a user with a list."""

    gateway: str
    app: str
    key: str
    user: str

    def ask_gateway(self, body: dict[str, Any]) -> dict[str, Any]:
        """The gateway's answer for twins."""
        return call(f"{self.gateway}/v1/models/taste/twins", self.key, body)

    def ask_app(self) -> dict[str, Any]:
        """The first page of the user's twins, with a token as the product's client has one."""
        token = call(f"{self.app}/v1/tokens", self.key, {"user": self.user, "seconds": 600})["token"]
        return call(f"{self.app}/v1/me/twins?page=1", token)


@contextmanager
def stack(images: dict[str, str], folder: Path, pod: str) -> Iterator[Stack]:
    """Run the day, start the pod, wait until all tiers are ready; remove the pod at the end."""
    mounts = ["-v", f"{folder / 'settings.yaml'}:/etc/tastetwin/settings.yaml:ro"]
    (folder / "settings.yaml").write_text(SETTINGS)
    for name, inside in PLACES.items():
        (folder / name).mkdir()
        os.chown(folder / name, 10001, 10001)
        mounts += ["-v", f"{folder / name}:{inside}"]

    def job(*command: str) -> str:
        return podman("run", "--rm", *LOCKED_DOWN, *mounts, images["jobs"], *command, timeout=180).stdout

    job("town", "/events/town", "--users", "300", "--seed", "3")
    job("run", "--source", "/events/town", "--store", "/store", "--date", DAY, *CONFIG)
    scopes = [word for scope in ("twins", "favors", "opt-out", "app") for word in ("--scope", scope)]
    key = json.loads(job("keys", "add", "all", *scopes, "--file", KEYS, "--json"))["key"]
    for name, text in (("gateway.key", key), ("secret.txt", secrets.token_hex(32))):
        (folder / "secrets" / name).write_text(text + "\n")
        (folder / "secrets" / name).chmod(0o400)
        os.chown(folder / "secrets" / name, 10001, 10001)

    podman("pod", "create", "--name", pod, "-p", "127.0.0.1::8102", "-p", "127.0.0.1::8103")
    try:
        yield Stack(*_tiers(images, pod, mounts), key, _somebody(job))
    finally:
        podman("pod", "rm", "--force", "--time", "5", pod)


def _tiers(images: dict[str, str], pod: str, mounts: list[str]) -> tuple[str, str]:
    """Start them; addresses of gateway and app once both say that they are ready."""
    app = f"--keys {KEYS} --gateway-key {SECRETS}/gateway.key --secret {SECRETS}/secret.txt"
    for tier, more in {"backend": "--store /store", "gateway": f"--store /store --keys {KEYS}", "app": app}.items():
        container = ("run", "--detach", "--pod", pod, "--name", f"{pod}-{tier}", *LOCKED_DOWN, *mounts, images[tier])
        podman(*container, "serve", tier, *more.split(), "--host", "0.0.0.0", *CONFIG)
    infra = podman("pod", "inspect", "--format", "{{.InfraContainerID}}", pod).stdout.strip()
    addresses = [f"http://{podman('port', infra, port).stdout.strip()}" for port in ("8102", "8103")]
    for address in addresses:
        until_answered(f"{address}/readyz", f"{pod}-app")
    return addresses[0], addresses[1]


def _somebody(job: Any) -> str:
    """A user with a list of three."""
    row = json.loads(
        job("sql", "--store", "/store", "select user_idno from twins where rank = 3 order by 1 limit 1", "--json")
    )
    return str(row["user_idno"])


def until_answered(url: str, container: str, seconds: float = 60) -> None:
    """Wait until an address answers well; fails with the container's last lines when it does not in time."""
    until = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError as error:
            if time.monotonic() > until:
                logs = podman("logs", "--tail", "20", container, check=False)
                raise AssertionError(f"{url}: {error}\n{logs.stdout}{logs.stderr}") from error
            time.sleep(0.3)


def call(url: str, key: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """The JSON that an address answers."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)
    return found
