"""Blue-green on this machine, as far as it needs no HAProxy; the rest: tests/platform."""

from __future__ import annotations

from pathlib import Path

from tastetwin.config import Config
from tastetwin.deploy.local import LocalTarget
from tastetwin.serving.together import Home
from tastetwin.store import Store


def test_what_a_deployment_keeps_is_its_owner_s_alone(tmp_path: Path) -> None:
    """Settings of a colour hold what the environment held, such as a password of Redis."""
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    with LocalTarget(Home(home, None), Store(tmp_path), Config()).alone():
        assert (home / "deploy").stat().st_mode & 0o077 == 0
