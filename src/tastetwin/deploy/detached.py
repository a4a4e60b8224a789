"""Processes that outlive the command that started them, and that a later one finds again.

A process is known by its boot, its pid and the moment it began, which it writes down itself before it becomes what it
is to be: whenever the command is killed, nothing runs that is not written down, and no number that now belongs to
somebody else is believed. The file is locked for as long as the process lives, so nothing is started twice. A torn
file needs no care: power cuts end the processes too.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PATIENCE: Final = 40.0
"""Seconds from SIGTERM to SIGKILL: longer than a server drains and finishes."""
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_GONE: Final = "ZXx"
"""States of a process that has ended, whether or not its parent has noticed."""
_SHELL: Final = 'read -r line </proc/$$/stat && echo "$line" >>"$0" && exec "$@"'
"""Not a function of ours between fork and exec: libraries with threads make that unsafe."""


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
            os.pwrite(handle, _BOOT.read_bytes(), 0)
            with self.log.open("wb") as log:
                process = subprocess.Popen(
                    ["/bin/sh", "-c", _SHELL, self._file.name, *words], cwd=self.folder, env=environment,
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, pass_fds=[handle],
                )  # fmt: skip
            while process.poll() is None and self.pid() is None:
                time.sleep(0.01)
        except BlockingIOError:
            return
        finally:
            os.close(handle)

    def pid(self) -> int | None:
        """Of the process, if it runs."""
        try:
            boot, line = self._file.read_text().splitlines()
        except (FileNotFoundError, ValueError):  # not yet written down
            return None
        pid = int(line.split()[0])
        return pid if boot == _BOOT.read_text().strip() and _began(line) == _began(_stat(pid)) else None

    def stop(self) -> None:
        """End it, if it runs: SIGTERM, and after ``PATIENCE`` SIGKILL."""
        pid = self.pid()
        if pid is None:
            return
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:  # it has just ended
            return
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


def _stat(pid: int) -> str:
    """The line of proc(5); empty where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _began(line: str) -> str:
    """When the process began, in ticks since the boot; empty if it has ended."""
    fields = line.rpartition(")")[2].split()  # from field 3, the state, on; a name may hold anything
    return "" if not fields or fields[0] in _GONE else fields[19]
