"""Processes that outlive who started them, and are found again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tastetwin.deploy.detached import Detached

STARTER = """
import os, sys
from pathlib import Path
from tastetwin.deploy.detached import Detached
Detached(Path(sys.argv[1]), "one").start(["sleep", "60"], os.environ)
"""


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Detached]:
    process = Detached(tmp_path, "one")
    yield process
    process.stop()


def test_it_outlives_the_command_that_started_it_and_is_not_started_twice(one: Detached) -> None:
    """A server that ended with its deployment, or two on one port, would be an outage."""
    for _ in range(2):
        subprocess.run([sys.executable, "-c", STARTER, str(one.folder)], check=True, timeout=60)
        first = one.pid()
        assert first is not None and os.getsid(first) == first
        assert Path(f"/proc/{first}/cmdline").read_text().startswith("sleep")
        one.start(["sleep", "60"], os.environ)
        assert one.pid() == first


def test_an_ended_one_is_known_to_have_ended_and_can_be_started_again(one: Detached) -> None:
    """Also where we are its parent and nobody has asked for its exit code."""
    one.start(["sleep", "60"], os.environ)
    before = one.pid()
    os.kill(before or 0, signal.SIGKILL)
    while Path(f"/proc/{before}/stat").exists() and "Z" not in Path(f"/proc/{before}/stat").read_text():
        pass
    assert one.pid() is None
    one.start(["sleep", "60"], os.environ)
    assert one.pid() not in (None, before)
    one.stop()
    assert one.pid() is None


def test_a_number_that_belongs_to_somebody_else_by_now_is_not_believed(one: Detached) -> None:
    """Pids are given again: without this, a stop would end a stranger's process."""
    one.start(["sleep", "60"], os.environ)
    pid, file = one.pid(), one.folder / "one.pid"
    boot, line = file.read_text().splitlines()
    stranger = line.split()
    stranger[21] = str(int(stranger[21]) - 1)
    for text in (f"{boot}\n{' '.join(stranger)}\n", f"another-boot\n{line}\n", f"{boot}\n", ""):
        file.write_text(text)
        assert one.pid() is None
        one.stop()
    file.write_text(f"{boot}\n{line}\n")
    assert one.pid() == pid


def test_one_that_does_not_listen_is_killed(one: Detached, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollback must not wait for what hangs."""
    monkeypatch.setattr("tastetwin.deploy.detached.PATIENCE", 0.2)
    one.start(["sh", "-c", "trap '' TERM; while :; do sleep 1; done"], os.environ)
    one.stop()
    assert one.pid() is None


def test_what_cannot_be_started_does_not_run(one: Detached) -> None:
    """The log says why."""
    one.start(["/no/such/program"], os.environ)
    while one.pid() is not None:
        pass
    assert "no/such/program" in one.log.read_text()


def test_one_that_ends_just_before_it_is_stopped_is_stopped(one: Detached, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may end between the look and the signal; a rollback must not end with it."""
    one.start(["sleep", "60"], os.environ)
    pid = one.pid()
    one.stop()
    monkeypatch.setattr(Detached, "pid", lambda self: pid)  # as it was seen a moment ago
    one.stop()
