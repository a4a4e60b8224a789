"""All tiers on one machine, a process each: for a laptop, and for seeing how they belong together."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from types import FrameType
from typing import Any, Final

from tastetwin.config import BackendConfig, Config, ServeConfig
from tastetwin.durable import written_aside
from tastetwin.errors import StoreError, UsageError
from tastetwin.serving.app.forget import STATE
from tastetwin.serving.keys import SCOPES, add_key
from tastetwin.serving.life import bind
from tastetwin.settings import variable

METRICS: Final = 10
"""/metrics of gateway and app: so many ports beyond their own, as deploy/monitoring/prometheus.yaml has it."""
APP_SCOPES: Final = ("twins", "favors", "opt-out")
_USUAL_DRAIN: Final = (ServeConfig().drain_seconds, BackendConfig().drain_seconds)
RESTARTS: Final = 5
"""Within a minute; a tier that ends more often takes all down."""
_LOOK: Final = 0.1
_PR_SET_PDEATHSIG: Final = 1
"""prctl(2)"""
_PATIENCE: Final = 30.0
"""Seconds that a tier has to end before it is killed."""


@dataclass
class Tier:
    """One process, started again when it ends unasked."""

    name: str
    arguments: Sequence[str]
    ready_at: str
    """URL that answers 200 once it is ready."""
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    started: list[float] = field(default_factory=list)

    def start(self) -> None:
        """Begin."""
        self.started.append(time.monotonic())
        command = [sys.executable, "-m", "tastetwin", "serve", *self.arguments]
        environment = {**os.environ, **self.environment}
        # A process group of its own: ctrl-C is for us, who end the tiers in order.
        self.process = subprocess.Popen(command, env=environment, process_group=0, preexec_fn=_end_with_parent)

    def is_ready(self) -> bool:
        """Whether it says so."""
        try:
            with urllib.request.urlopen(self.ready_at, timeout=1) as answer:  # nosec B310  # http: of this machine
                return bool(answer.status == 200)
        except (OSError, HTTPException):  # the latter where what answers is no HTTP
            return False

    def revive(self, tell: Callable[[str], None]) -> None:
        """Start again, and say so, if it has ended.

        Raises:
            StoreError: TIER-ENDED when it does so again and again.
        """
        if self.process is None or self.process.poll() is None:
            return
        self.started = [at for at in self.started if time.monotonic() - at < 60]
        if len(self.started) > RESTARTS:
            raise StoreError(
                "TIER-ENDED",
                place=f"serve {self.name}",
                value=f"exit {self.process.returncode}, {len(self.started)} times within a minute",
                rule="a tier serves until it is told to end",
                fix="what it said stands above",
            )
        tell(f"{self.name} ended (exit {self.process.returncode}); started again")
        self.start()

    def end(self, told: _Signals) -> None:
        """Let it finish what it has accepted, and end; a further signal to us is passed on."""
        process, heard, until = self.process, told.count, time.monotonic() + _PATIENCE
        if process is None or process.poll() is not None:
            return
        process.terminate()
        while process.poll() is None and time.monotonic() < until:
            time.sleep(_LOOK)
            if told.count > heard:
                heard = told.count
                process.terminate()
        process.kill()
        process.wait()


@dataclass(frozen=True)
class Home:
    """Where tiers that run together keep what outlives them."""

    folder: Path
    new_key: str | None
    """One that may do everything, if it was made just now: it can be seen at no other time."""

    @classmethod
    def at(cls, folder: Path) -> Home:
        """The home in a folder, made if there is none.

        Raises:
            StoreError: KEYS-FILE where it cannot be written.
        """
        home = cls(folder, None)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return home if home.keys.exists() and home.gateway_key.exists() else cls(folder, home._make())
        except OSError as error:
            value, rule, fix = error.strerror or "", "a folder that can be written", "mend that, or name another --home"
            raise StoreError("KEYS-FILE", place=str(folder), value=value, rule=rule, fix=fix) from error

    def _make(self) -> str:
        """Both files of keys; returns the owner's."""
        self.keys.unlink(missing_ok=True)
        owner, app = add_key(self.keys, "owner", SCOPES), add_key(self.keys, "app", APP_SCOPES)
        with written_aside(self.gateway_key, 0o600) as handle:
            handle.write(app.encode())  # last: without it the home is made anew, and nobody has seen a key
        return owner

    @property
    def keys(self) -> Path:
        """Of whoever may ask gateway and app."""
        return self.folder / "keys.json"

    @property
    def gateway_key(self) -> Path:
        """The app's own for the gateway."""
        return self.folder / "gateway.key"

    @property
    def secret(self) -> Path:
        """The app's, for user tokens."""
        return self.folder / "secret.txt"

    def settings(self, config: Config, backend: str, gateway: str) -> dict[str, dict[str, Any]]:
        """What tiers that run here need besides the settings in force, by section.

        Args:
            config: the settings in force.
            backend: URL of the gateway's backend.
            gateway: URL of the app's gateway.
        """
        folder = self.folder.absolute()
        # Nobody has to notice first that a tier of this machine ends: unless told to, none waits for that.
        usual = (config.serve.drain_seconds, config.backend.drain_seconds) == _USUAL_DRAIN
        drain = {"drain_seconds": 0} if usual else {}
        kept = {name: getattr(config.gateway, name) or str(folder / name) for name in ("fresh", "outputs")}
        app = {"gateway": gateway, "state": config.app.state or str(folder / STATE)}
        return {"serve": drain, "backend": drain, "gateway": {"backends": [backend], **kept}, "app": app}


def all_tiers(store: str, home: Home, config: Config, config_file: Path | None, port: int) -> list[Tier]:
    """Backend, gateway, app and, where there are brokers, events: on ports from ``port`` on."""
    settings = [] if config_file is None else ["--config", str(config_file)]
    at = [f"http://127.0.0.1:{port + number}" for number in range(4)]
    environment = _as_environment(home.settings(config, at[0], at[1]))
    ports = [["--port", str(port + number), *settings] for number in range(3)]
    for number in (1, 2):
        ports[number] += ["--metrics-port", str(port + number + METRICS)]
    keys, key = ["--keys", str(home.keys)], ["--gateway-key", str(home.gateway_key)]
    tiers = [
        Tier("backend", ["backend", "--store", store, *ports[0]], f"{at[0]}/v2/health/ready", environment),
        Tier("gateway", ["gateway", "--store", store, *keys, *ports[1]], f"{at[1]}/readyz", environment),
        Tier("app", ["app", *keys, *key, "--secret", str(home.secret), *ports[2]], f"{at[2]}/readyz", environment),
    ]
    if config.app.brokers is not None:
        words = ["events", *key, "--metrics-port", str(port + 3), *settings]
        tiers.append(Tier("events", words, f"{at[3]}/readyz", environment))
    return tiers


def _as_environment(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    named = {variable(section, key): value for section, keys in settings.items() for key, value in keys.items()}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in named.items()}


def check_ports(first: int, n: int) -> None:
    """See that nobody listens there, or where metrics will be, before anything is made or started.

    Raises:
        UsageError: SERVE-ADDRESS.
    """
    ports = (*range(first, first + n), first + 1 + METRICS, first + 2 + METRICS)
    for port in ports:
        try:
            bind("127.0.0.1", port).close()
        except UsageError as error:
            rule = f"all of these ports are free: {', '.join(map(str, ports))}"
            fix = "end what listens there (another serve?), or name the first of others by --port"
            found = error.problem
            raise UsageError(found.code, place=found.place, value=found.value, rule=rule, fix=fix) from error


def keep_running(tiers: Sequence[Tier], ready: str, tell: Callable[[str], None]) -> None:
    """Start the tiers in order, keep them running, and end them in the opposite order at SIGTERM or SIGINT.

    Args:
        tiers: upstream first.
        ready: what to tell once all are.
        tell: hears it, and which tier is started again.

    Raises:
        StoreError: TIER-ENDED.
    """
    told = _Signals()
    try:
        for tier in tiers:
            tier.start()
        if _all_ready(tiers, told, tell):
            tell(ready)
        while not told.end:
            time.sleep(_LOOK)
            for tier in tiers:
                tier.revive(tell)
    finally:
        for tier in reversed(tiers):
            tier.end(told)


def _all_ready(tiers: Sequence[Tier], told: _Signals, tell: Callable[[str], None]) -> bool:
    for tier in tiers:
        while not told.end and not tier.is_ready():
            time.sleep(_LOOK)
            for each in tiers:
                each.revive(tell)
    return not told.end


class _Signals:
    """How often somebody asked us to end."""

    def __init__(self) -> None:
        self.count = 0
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._hear)

    @property
    def end(self) -> bool:
        """Whether anybody did."""
        return self.count > 0

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.count += 1


def _end_with_parent() -> None:
    """In the child: SIGTERM when we are gone, however that came about, so that nobody goes on to hold the ports."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
