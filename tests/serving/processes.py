"""Servers as their users start them: a process each, on ports of their own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

_ADDRESS = re.compile(r"http://[\d.]+:\d+")


@dataclass
class Server:
    """One process, and what it has said."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where it listens; waits until it has said so."""
        return self.wait_for(_ADDRESS)

    def wait_for(self, pattern: re.Pattern[str], seconds: float = 60) -> str:
        """The first match in what it says."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            ended = self.process.poll() is not None
            time.sleep(0.02)
            for line in list(self.lines):
                if found := pattern.search(line):
                    return found.group()
            if ended:
                break
        raise AssertionError(f"no {pattern.pattern}: {self.lines[-20:]}")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)


@contextmanager
def started(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """``tastetwin ARGUMENTS`` until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tastetwin", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
    )
    server = Server(process)
    reader = threading.Thread(target=_listen, args=(server,), daemon=True)
    reader.start()
    try:
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(60)
        reader.join(5)


def _listen(server: Server) -> None:
    assert server.process.stderr is not None
    for line in server.process.stderr:
        server.lines.append(line.rstrip())
