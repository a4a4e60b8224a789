"""The verb: a server that starts, says where, and ends; and what it refuses to listen on."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tastetwin.errors import UsageError
from tastetwin.page import app
from tastetwin.page.serve import serve
from tastetwin.store import Store
from tests.page.web import Site


def nothing(_: str) -> None: ...


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "no.such.host.invalid", "203.0.113.7"])
def test_an_address_that_is_not_one_of_this_machine_is_refused(hostile: Store, host: str) -> None:
    """Where it answers on every address, no name can be checked against another page that points here."""
    with pytest.raises(UsageError, match="PAGE-ADDRESS"):
        serve(hostile, host, 0, nothing)


def test_a_port_that_is_taken_is_said_at_once(hostile: Store) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="PAGE-ADDRESS"):
        serve(hostile, "127.0.0.1", taken.getsockname()[1], nothing)


def test_a_store_without_a_published_run_says_so(memory_store: Store) -> None:
    with pytest.raises(UsageError, match="NOT-PUBLISHED"):
        serve(memory_store, "127.0.0.1", 0, nothing)


def test_the_verb_serves_until_it_is_stopped(hostile: Store) -> None:
    command = [sys.executable, "-m", "tastetwin", "page", "--store", hostile.root, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        told = server.stderr.readline()
        port = int(told.split("/")[2].rpartition(":")[2])
        assert told.startswith("http://127.0.0.1:")
        assert Site(port).ask("/health").status == 200
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 130


def test_what_the_pages_need_is_installed_with_the_package() -> None:
    """A wheel without templates would serve nothing."""
    folder = Path(app.__file__).parent
    declared = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    patterns = [f"page/{name}" for name in ("templates/*.html", "static/*", "texts/*.json")]
    assert all(f'"{pattern}"' in declared for pattern in patterns)
    packed = {path for pattern in patterns for path in folder.parent.glob(pattern)}
    assert {path for path in folder.rglob("*.*") if path.suffix not in (".py", ".pyc")} == packed
