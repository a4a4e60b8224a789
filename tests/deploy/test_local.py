"""Blue-green on this machine, as far as it needs no HAProxy; the rest: tests/platform."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tastetwin.config import Config, DeployConfig
from tastetwin.deploy.golden import Golden, check_model
from tastetwin.deploy.local import COLOURS, LocalTarget
from tastetwin.deploy.steps import read_metrics
from tastetwin.errors import GateRefused, StoreError
from tastetwin.runs import Run, StageRecord
from tastetwin.serving.together import Home, Tier
from tastetwin.store import Store

NO_HTTP = b"SSH-2.0-OpenSSH_9.2\r\n"
HALF = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf"


@contextmanager
def answering(said: bytes) -> Iterator[int]:
    """The port of somebody who says this to everybody, whatever they ask."""
    with socket.create_server(("127.0.0.1", 0)) as bound:

        def answer() -> None:
            try:
                while True:
                    with bound.accept()[0] as asked:
                        asked.recv(1 << 16)
                        asked.sendall(said)
            except OSError:
                return

        threading.Thread(target=answer, daemon=True).start()
        yield bound.getsockname()[1]
        bound.shutdown(socket.SHUT_RDWR)


def test_what_a_deployment_keeps_is_its_owner_s_alone(tmp_path: Path) -> None:
    """Settings of a colour hold what the environment held, such as a password of Redis."""
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    with LocalTarget(Home(home, None), Store(tmp_path), Config()).alone():
        assert (home / "deploy").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("said", [NO_HTTP, HALF])
def test_whoever_answers_no_http_or_half_of_an_answer_is_not_ready_and_ends_no_command(
    tmp_path: Path, said: bytes
) -> None:
    """Somebody else may have the port; and what is killed may be in the middle of its answer."""
    with answering(said) as port:
        url = f"http://127.0.0.1:{port}"
        with pytest.raises(StoreError, match="DEPLOY-NOT-READY"):
            read_metrics(url)
        run = Run("2026-11-22.1", "2026-11-22", "delivered", "", {"train": StageRecord("bundle", 1.0)})
        nobody: Any = None
        golden = Golden(run, nobody, [], {}, nobody)
        with pytest.raises(GateRefused, match="DEPLOY-GOLDEN"):
            check_model(url, golden)
        config = Config(deploy=DeployConfig(port=port - COLOURS["blue"]))
        target = LocalTarget(Home(tmp_path, None), Store(tmp_path), config)
        assert not target._is_ready("blue", "backend")
    with answering(NO_HTTP) as port:
        assert not Tier("app", [], f"http://127.0.0.1:{port}").is_ready()
