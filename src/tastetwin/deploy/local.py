"""Two colours of processes on this machine, and HAProxy in front.

In ``HOME/deploy``: ``state.json`` (which run has which colour), ``targets.json`` (what Prometheus is to scrape),
``COLOUR-TIER.pid`` and ``.log``, ``COLOUR.yaml`` (the colour's settings), ``haproxy.cfg``, ``haproxy.sock``,
``live.map`` (which colour answers), ``gateway.key`` (for golden queries). Both colours share the home's keys, secret,
fresh favors, outputs and the app's state, which are made for several processes.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from tastetwin.config import ENV_PREFIX, Config
from tastetwin.delivery.pack import make_pack
from tastetwin.deploy.detached import Detached
from tastetwin.deploy.haproxy import FRONTS, Haproxy
from tastetwin.deploy.steps import Standing, read_metrics
from tastetwin.errors import StoreError, UsageError
from tastetwin.runs import Run
from tastetwin.serving.keys import add_key, remove_key
from tastetwin.serving.together import Home
from tastetwin.store import Store

FOLDER: Final = "deploy"
STATE: Final = "state.json"
TARGETS: Final = "targets.json"
COLOURS: Final = {"blue": 10, "green": 20}
"""Colour -> its first port beyond ``deploy.port``."""
TIERS: Final = {"backend": 0, "gateway": 1, "app": 2}
"""Tier -> its port beyond the colour's first; /metrics of gateway and app are ``METRICS`` further."""
METRICS: Final = 3
KEY_NAME: Final = "deploy"
_LOCAL: Final = "http://127.0.0.1"
_READY: Final = {"backend": "v2/health/ready", "gateway": "readyz", "app": "readyz"}
_LOOK: Final = 0.1


class _State(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    port: int
    """``deploy.port`` as of the first deployment: what runs is there until all is stopped."""
    runs: dict[str, str] = {}
    """Colour -> run."""
    previous: str | None = None


@dataclass(frozen=True)
class LocalTarget:
    """This machine."""

    home: Home
    store: Store
    config: Config

    # -- what is so ---------------------------------------------------------------------------------------------------

    def standing(self) -> Standing:
        """As ``Target`` says."""
        state = self._state()
        live = self._live_colour()
        started = {colour: run for colour, run in state.runs.items() if self._runs(colour, ("gateway", "app"))}
        return Standing(
            None if live is None else state.runs.get(live),
            state.previous,
            {run: self._is_ready(colour, "backend") for colour, run in state.runs.items()},
            {run: all(self._is_ready(colour, tier) for tier in ("gateway", "app")) for colour, run in started.items()},
            self._haproxy.process.pid() is not None,
        )

    def model(self, run_id: str) -> AbstractContextManager[str]:
        """As ``Target`` says."""
        return nullcontext(self._url(self._colour_of(run_id), "backend"))

    def gateway(self, run_id: str) -> AbstractContextManager[str]:
        """As ``Target`` says."""
        return nullcontext(self._url(self._colour_of(run_id), "gateway"))

    def front(self) -> AbstractContextManager[str]:
        """As ``Target`` says."""
        host = self.config.deploy.host
        anywhere = host in ("0.0.0.0", "*")  # nosec B104
        return nullcontext(f"http://{'127.0.0.1' if anywhere else host}:{self._state().port}")

    def metrics(self, run_id: str) -> list[str]:
        """As ``Target`` says.

        Raises:
            StoreError: DEPLOY-NOT-READY.
        """
        return [read_metrics(f"{_LOCAL}:{self._port(self._colour_of(run_id), 'gateway') + METRICS}")]

    # -- what is done -------------------------------------------------------------------------------------------------

    def start_model(self, run: Run) -> None:
        """As ``Target`` says.

        Raises:
            StoreError: DEPLOY-NOT-READY.
        """
        colour = self._find(run.run_id) or self._take(run.run_id)
        self._start(colour, "backend", ["--store", self.store.url(""), "--version", run.generation("train")])

    def start_app(self, run: Run) -> None:
        """As ``Target`` says; makes the run's pack, if there is none yet.

        Raises:
            StoreError: DEPLOY-NOT-READY; as ``make_pack``.
        """
        make_pack(self.store, run)
        colour, keys = self._colour_of(run.run_id), ["--keys", str(self.home.keys.absolute())]
        for tier, words in (
            ("gateway", ["--store", self.store.url("")]),
            (
                "app",
                ["--secret", str(self.home.secret.absolute()), "--gateway-key", str(self.home.gateway_key.absolute())],
            ),
        ):
            metrics = ["--metrics-port", str(self._port(colour, tier) + METRICS)]
            self._start(colour, tier, [*words, *keys, *metrics])

    def point(self, run_id: str, previous: str | None) -> None:
        """As ``Target`` says; starts HAProxy, if it does not run.

        Raises:
            StoreError: DEPLOY-TOOL, DEPLOY-NOT-READY.
        """
        colour = self._colour_of(run_id)
        self._save(previous=previous)
        fronts = {front: self._state().port + number for number, front in enumerate(FRONTS)}
        sections = {f"{front}-{each}": self._port(each, front) for front in FRONTS for each in COLOURS}
        self._haproxy.start(self.config.deploy.host, fronts, sections)
        wanted = {front: f"{front}-{colour}" for front in FRONTS}
        if not self._wait(lambda: all(self._haproxy.sections()[each].up for each in wanted.values())):
            raise self._not_ready(colour, "gateway", "HAProxy finds it, or the app, not ready")
        self._haproxy.route(wanted)

    def stop_app(self, run_id: str) -> None:
        """As ``Target`` says."""
        colour = self._find(run_id)
        if colour is None:
            return
        if self._haproxy.process.pid() is not None:
            sections = [f"{front}-{colour}" for front in FRONTS]
            until = time.monotonic() + self.config.deploy.drain_seconds
            while time.monotonic() < until and any(self._haproxy.sections()[each].busy for each in sections):
                time.sleep(_LOOK)
        for tier in ("app", "gateway"):
            self._process(colour, tier).stop()

    def stop_model(self, run_id: str) -> None:
        """As ``Target`` says."""
        colour = self._find(run_id)
        if colour is not None:
            self._process(colour, "backend").stop()
            self._save(runs={each: run for each, run in self._state().runs.items() if each != colour})

    def stop(self) -> None:
        """End everything, HAProxy first; what outlives a deployment stays in the home."""
        self._haproxy.process.stop()
        self._store.remove("live.map")
        for run_id in self._state().runs.values():
            self.stop_app(run_id)
            self.stop_model(run_id)
        self._store.remove(STATE)
        self._store.remove(TARGETS)

    # -- how ----------------------------------------------------------------------------------------------------------

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the home for one command.

        Raises:
            StoreError: DEPLOY-BUSY.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # settings may hold a password of Redis
        with (self._folder / ".lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                fix = "wait for it, or end it: the next command goes on from there"
                raise StoreError(
                    "DEPLOY-BUSY",
                    place=str(self._folder),
                    value="another command deploys",
                    rule="one at a time",
                    fix=fix,
                ) from error
            yield

    def key(self) -> str:
        """As ``Target`` says; made at first use."""
        path = self._folder / "gateway.key"
        path.touch(mode=0o600)
        key = path.read_text()
        if not key:
            with suppress(UsageError):  # known, but whoever made it was killed before it was kept
                remove_key(self.home.keys, KEY_NAME)
            key = add_key(self.home.keys, KEY_NAME, ("twins", "embed"), 1_000, 1_000)
            path.write_text(key)
        return key

    def _start(self, colour: str, tier: str, words: Sequence[str]) -> None:
        """Start a tier unless it runs; returns once it is ready."""
        process, environment = self._process(colour, tier), _without_settings(os.environ)
        if process.pid() is None:
            if _is_taken(self._port(colour, tier)):  # and whoever has it may answer as ours would
                raise self._not_ready(colour, tier, f"port {self._port(colour, tier)} is somebody else's")
            self._store.write_bytes(f"{colour}.yaml", yaml.safe_dump(self._settings(colour)).encode())
        command = [sys.executable, "-m", "tastetwin", "serve", tier, "--port", str(self._port(colour, tier))]
        process.start([*command, "--config", str(self._folder.absolute() / f"{colour}.yaml"), *words], environment)
        if not self._wait(lambda: process.pid() is None or self._is_ready(colour, tier)):
            raise self._not_ready(colour, tier, f"not within {self.config.deploy.ready_seconds:g} s")
        if process.pid() is None:
            raise self._not_ready(colour, tier, "ended")

    def _settings(self, colour: str) -> dict[str, Any]:
        """Those in force, and what makes a colour of them."""
        made: dict[str, Any] = self.config.model_dump(mode="json", exclude_defaults=True)
        added = self.home.settings(self.config, self._url(colour, "backend"), self._url(colour, "gateway"))
        added["gateway"] |= {"weights": {self._state().runs[colour]: 1.0}, "shadow": {}}
        for section, values in added.items():
            made[section] = made.get(section, {}) | values
        return made

    def _take(self, run_id: str) -> str:
        """A colour that does not answer, for a run; whatever had it before ends."""
        runs = self._state().runs
        colour = min((each for each in COLOURS if each != self._live_colour()), key=lambda each: each in runs)
        if colour in runs:
            self.stop_app(runs[colour])
            self.stop_model(runs[colour])
        self._save(runs=self._state().runs | {colour: run_id})
        return colour

    def _live_colour(self) -> str | None:
        section = self._haproxy.routes().get("gateway")
        return None if section is None else section.rpartition("-")[2]

    def _find(self, run_id: str) -> str | None:
        return next((colour for colour, run in self._state().runs.items() if run == run_id), None)

    def _colour_of(self, run_id: str) -> str:
        colour = self._find(run_id)
        assert colour is not None, "its model was started"
        return colour

    @property
    def _haproxy(self) -> Haproxy:
        return Haproxy(self._folder)

    @property
    def _folder(self) -> Path:
        return self.home.folder / FOLDER

    @property
    def _store(self) -> Store:
        """The folder, for its durable writes."""
        return Store(self._folder)

    def _process(self, colour: str, tier: str) -> Detached:
        return Detached(self._folder, f"{colour}-{tier}")

    def _runs(self, colour: str, tiers: Sequence[str]) -> bool:
        return any(self._process(colour, tier).pid() is not None for tier in tiers)

    def _port(self, colour: str, tier: str) -> int:
        return self._state().port + COLOURS[colour] + TIERS[tier]

    def _url(self, colour: str, tier: str) -> str:
        return f"{_LOCAL}:{self._port(colour, tier)}"

    def _is_ready(self, colour: str, tier: str) -> bool:
        """Whether it runs, and says so: somebody else may have the port."""
        try:
            with urllib.request.urlopen(f"{self._url(colour, tier)}/{_READY[tier]}", timeout=2) as said:  # nosec B310  # http: of this machine
                return bool(said.status == 200) and self._runs(colour, [tier])
        except (OSError, HTTPException):  # the latter where what answers is no HTTP
            return False

    def _wait(self, done: Callable[[], bool]) -> bool:
        until = time.monotonic() + self.config.deploy.ready_seconds
        while not (so := done()) and time.monotonic() < until:
            time.sleep(_LOOK)
        return so

    def _not_ready(self, colour: str, tier: str, value: str) -> StoreError:
        log = self._process(colour, tier).log
        return StoreError(
            "DEPLOY-NOT-READY", place=f"{colour} {tier}", value=value, rule="it gets ready", fix=f"see {log}"
        )

    def _state(self) -> _State:
        if not self._store.exists(STATE):
            return _State(port=self.config.deploy.port)
        try:
            return _State.model_validate(self._store.read_json(STATE))
        except ValidationError as error:
            raise self._store.damaged(STATE, str(error.errors()[0]["msg"])) from error

    def _save(self, **changed: Any) -> None:
        self._store.write_json(STATE, self._state().model_copy(update=changed).model_dump())
        targets = [self._target(colour, tier) for colour in self._state().runs for tier in TIERS]
        self._store.write_bytes(TARGETS, json.dumps(targets).encode())

    def _target(self, colour: str, tier: str) -> dict[str, Any]:
        """As file_sd_configs of Prometheus wants it; a backend has /metrics on its own port."""
        at = self._port(colour, tier) + (0 if tier == "backend" else METRICS)
        return {"targets": [f"127.0.0.1:{at}"], "labels": {"job": f"tastetwin-{colour}-{tier}"}}


def _without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Settings were read already, and the environment's would win over a colour's own."""
    return {name: value for name, value in environment.items() if not (name.startswith(ENV_PREFIX) and "__" in name)}


def _is_taken(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as asked:
        asked.settimeout(1)
        return asked.connect_ex(("127.0.0.1", port)) == 0
