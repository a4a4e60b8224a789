"""What became of everybody's requests decides, too, whether a run stays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest

from tastetwin.config import DeployConfig
from tastetwin.deploy.steps import Deployment, Standing
from tastetwin.errors import GateRefused
from tastetwin.runs import Run

RUN = Run("2026-11-22.1", "2026-11-22", "delivered", "")
COUNTED = 'tastetwin_requests_total{{route="{route}",status="{status}"}} {value}\n'


class Target:
    """Serves the run; its gateways count as they are told."""

    def __init__(self, *looks: list[str]) -> None:
        self.looks: Iterator[list[str]] = iter(looks)

    def standing(self) -> Standing:
        return Standing(RUN.run_id, None, {RUN.run_id: True}, {RUN.run_id: True}, True)

    def front(self) -> Any:
        return nullcontext("http://front")

    def key(self) -> str:
        return "tt_key"

    def metrics(self, run_id: str) -> list[str]:
        return next(self.looks)


def counted(good: int, bad: int, probes: int = 0) -> str:
    """One gateway's /metrics."""
    lines = (("twins", 200, good), ("twins", 503, bad), ("/readyz", 503, probes))
    return "".join(COUNTED.format(route=route, status=status, value=value) for route, status, value in lines)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses that golden queries went to; all pass."""
    found: list[str] = []
    monkeypatch.setattr("tastetwin.deploy.steps.Golden.of", lambda *args: None)
    monkeypatch.setattr("tastetwin.deploy.steps.check_gateway", lambda url, key, golden: found.append(url))
    return found


def check(target: Target, **settings: float) -> None:
    config = DeployConfig(**{"check_seconds": 0, "max_errors": 0.01, **settings})
    Deployment(target, None, RUN, config, lambda said: None).step("check")  # type: ignore[arg-type]


def test_a_run_under_which_requests_fail_is_not_kept(asked: list[str]) -> None:
    """Golden queries may pass while every tenth of the others fails."""
    with pytest.raises(GateRefused, match=r"DEPLOY-ERRORS.*11 of 200 requests"):
        check(Target([counted(100, 5), counted(0, 0)], [counted(200, 5), counted(89, 11)]))
    assert asked == ["http://front"]


def test_what_failed_before_and_probes_are_nobody_s_fault(asked: list[str]) -> None:
    """A gateway says 503 to probes while it starts, and counts from its start on."""
    check(Target([counted(100, 90, 4)], [counted(199, 91, 500)]))


def test_golden_queries_do_not_drown_what_fails(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are counted as well, so as many as a loop can ask would be a hundred to each of a quiet hour's."""
    slept: list[float] = []
    now = iter(range(100))
    monkeypatch.setattr("tastetwin.deploy.steps.time.monotonic", lambda: float(next(now)))
    monkeypatch.setattr("tastetwin.deploy.steps.time.sleep", slept.append)
    check(Target([counted(0, 0)], [counted(9, 0)]), check_seconds=3.5)
    assert slept == [1.0, 1.0, 0.5] and len(asked) == 4
