"""Servers as processes of their own, as in production."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).parents[2] / "src"


@dataclass
class Tier:
    """A running server."""

    process: subprocess.Popen[str]
    url: str = ""
    said: list[str] = field(default_factory=list)

    def listen(self, ready: str) -> None:
        """Until it says that it answers; goes on reading in a thread."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            self.url = self.url or (line.split()[0] if line.startswith("http://") else "")
            if line.startswith(ready):
                break
        else:
            raise AssertionError("".join(self.said))
        threading.Thread(target=self.said.extend, args=[self.process.stderr], daemon=True).start()

    def end(self) -> int:
        """By SIGTERM; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextmanager
def running(arguments: Sequence[str], ready: str = "http://", **settings: str) -> Iterator[Tier]:
    """``tastetwin serve ...``, killed in the end if it still runs."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), **settings}
    command = [sys.executable, "-m", "tastetwin", "serve", *arguments, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    tier = Tier(process)
    try:
        tier.listen(ready)
        yield tier
    finally:
        process.kill()
        process.wait()
