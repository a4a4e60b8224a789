"""All tiers on one machine, a process each: for a laptop, and for seeing how they belong together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final

from tastetwin.errors import StoreError
from tastetwin.serving.keys import add_key, read_keys, remove_key

GATEWAY_KEY: Final = "TASTETWIN_GATEWAY_KEY"
"""Variable in which a tier finds its key for the gateway."""
APP_KEY: Final = "serve-app"
RESTARTS: Final = 5
"""Within a minute; a tier that ends more often takes all down."""
_LOOK: Final = 0.1
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
        # A process group of its own: ctrl-C is for us, who end the tiers in order.
        self.process = subprocess.Popen(command, env={**os.environ, **self.environment}, process_group=0)

    def is_ready(self) -> bool:
        """Whether it says so."""
        try:
            with urllib.request.urlopen(self.ready_at, timeout=1) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def revive(self) -> None:
        """Start again if it has ended.

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
        self.start()

    def end(self) -> None:
        """Let it finish what it has accepted, and end."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def tiers_of(store: str, keys: Path, settings: Sequence[str]) -> list[Tier]:
    """Backend, gateway and app at their usual ports.

    The app's key for the gateway is made anew each time, and is in its environment only.

    Args:
        store: address of it.
        keys: file of API keys, of the gateway and the app; the secret of user tokens lies beside it.
        settings: options for each.

    Raises:
        StoreError: KEYS-FILE.
    """
    if any(entry.name == APP_KEY for entry in read_keys(keys)):
        remove_key(keys, APP_KEY)
    key = add_key(keys, APP_KEY, ["twins", "favors", "opt-out"], per_second=1e5, burst=100_000)
    credentials = ["--keys", str(keys)]
    secret = ["--secret", str(keys.with_suffix(".secret"))]
    return [
        Tier("backend", ["backend", "--store", store, *settings], "http://127.0.0.1:8101/v2/health/ready"),
        Tier("gateway", ["gateway", "--store", store, *credentials, *settings], "http://127.0.0.1:8102/readyz"),
        Tier("app", ["app", *credentials, *secret, *settings], "http://127.0.0.1:8103/readyz", {GATEWAY_KEY: key}),
    ]


def serve_all(tiers: Sequence[Tier], tell: Callable[[], None]) -> None:
    """Start the tiers in order, keep them running, and end them in the opposite order at SIGTERM or SIGINT.

    Args:
        tiers: upstream first.
        tell: called once all are ready.

    Raises:
        StoreError: TIER-ENDED.
    """
    told = _Signals()
    try:
        for tier in tiers:
            tier.start()
        if _all_ready(tiers, told):
            tell()
        while not told.end:
            time.sleep(_LOOK)
            for tier in tiers:
                tier.revive()
    finally:
        for tier in reversed(tiers):
            tier.end()


def _all_ready(tiers: Sequence[Tier], told: _Signals) -> bool:
    for tier in tiers:
        while not told.end and not tier.is_ready():
            time.sleep(_LOOK)
            for each in tiers:
                each.revive()
    return not told.end


class _Signals:
    """Whether somebody asked us to end."""

    def __init__(self) -> None:
        self.end = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.end = True
