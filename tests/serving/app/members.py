"""Consumer processes that start at once: forked from a server that has imported everything, so kills are cheap."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

from tastetwin.config import Config

SESSION_MS: Final = 1_500
CLIENT: Final = f"session.timeout.ms={SESSION_MS}\nheartbeat.interval.ms=300\nfetch.wait.max.ms=20\n"
_FORKS: Final = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tastetwin.serving.app.events.serve", "tests.serving.app.fake_gateway"])


def _consume(config: Config, url: str, key: str, client: Path, instance: str | None, log: Path, told: Any) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 2)
    from tastetwin.serving.app.events.serve import Member, serve_events
    from tests.serving.app.fake_gateway import Adapter

    logging.basicConfig(level=logging.INFO)
    member = Member(sys.stderr.buffer, client=client, instance=instance)
    serve_events(config, lambda: Adapter(url, key), member, lambda said: told.put(said))


class Process:
    """One member of the group."""

    def __init__(
        self, config: Config, url: str, folder: Path, instance: str | None = None, key: str = "", client: str = CLIENT
    ) -> None:
        file = folder / "client.properties"
        file.write_text(client)
        self.log = folder / f"log-{os.urandom(4).hex()}"
        self._told: Any = _FORKS.SimpleQueue()
        args = (config, url, key, file, instance, self.log, self._told)
        self.process: BaseProcess = _FORKS.Process(target=_consume, args=args, daemon=True)
        self.process.start()

    def address(self) -> str:
        """Of its metrics, once it consumes."""
        while True:
            said = str(self._told.get())
            if "metrics" in said:
                return said.split()[-1]

    def told(self) -> str:
        """What it logged."""
        return self.log.read_text() if self.log.exists() else ""

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        if self.process.is_alive():
            self.signal(signal.SIGKILL)
        self.process.join(10)

    def end(self) -> int | None:
        """SIGTERM; the exit code."""
        self.signal(signal.SIGTERM)
        self.process.join(30)
        return self.process.exitcode
