"""Processes that outlive the command that started them, and that a later one finds again.

A process is known by its pid, the moment it began and the boot it began in, which it writes down itself between fork
and exec: whenever the command is killed, no process runs that is not written down, and no number that now belongs to
somebody else is believed. The file is locked for as long as the process lives, so nothing is started twice. A torn
file needs no care: power cuts end the processes too.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PATIENCE: Final = 40.0
"""Seconds from SIGTERM to SIGKILL: longer than a server drains and finishes."""
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_GONE: Final = "ZXx"
"""States of a process that has ended, whether or not its parent has noticed."""


@dataclass(frozen=True)
class Detached:
    """A process by name, in a folder."""

    folder: Path
    name: str

    @property
    def log(self) -> Path:
        """What it says, from its last start on."""
        return self.folder / f"{self.name}.log"

    @property
    def _file(self) -> Path:
        return self.folder / f"{self.name}.pid"

    def start(self, words: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start it in its folder, in a session of its own, unless it runs."""
        handle = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(handle, 0)
            with self.log.open("wb") as log:
                subprocess.Popen(
                    words, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True, pass_fds=[handle],
                    preexec_fn=lambda: os.pwrite(handle, _identity(os.getpid()).encode(), 0),
                )  # fmt: skip
        except BlockingIOError:
            return
        finally:
            os.close(handle)

    def pid(self) -> int | None:
        """Of the process, if it runs."""
        try:
            written = self._file.read_text()
        except FileNotFoundError:
            return None
        number = written.partition(" ")[0]
        return int(number) if number and written == _identity(int(number)) else None

    def stop(self) -> None:
        """End it, if it runs: SIGTERM, and after ``PATIENCE`` SIGKILL."""
        pid = self.pid()
        if pid is None:
            return
        handle = os.pidfd_open(pid)
        try:
            if self.pid() != pid:  # it ended before the handle was there
                return
            for number in (signal.SIGTERM, signal.SIGKILL):
                signal.pidfd_send_signal(handle, number)
                if select.select([handle], [], [], PATIENCE)[0]:
                    return
        except ProcessLookupError:
            return
        finally:
            os.close(handle)


def _identity(pid: int) -> str:
    """What nobody else ever is; empty where there is no such process."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    began = fields[18]  # field 22 of proc(5)
    return "" if state in _GONE else f"{pid} {began} {_BOOT.read_text().strip()}"
