"""Steps are done once, kept whole, and told; an estimate says what it knows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tastetwin.errors import InputError
from tastetwin.evaluation import steps
from tastetwin.evaluation.steps import Steps, spoken

PLAN = [("seed 1", "a, b (2021)"), ("seed 1", "c"), ("seed 2", "a, b (2021)"), ("seed 2", "c")]


def gives(value: Any, calls: list[Any]) -> Callable[[], Any]:
    def work() -> Any:
        calls.append(value)
        return value

    return work


def test_a_step_is_done_once_and_found_again(tmp_path: Path) -> None:
    """An hour of work must not be lost to a closed laptop."""
    calls: list[Any] = []
    found = {"ranks": np.array([3, 1]), "ndcg": np.array([0.1, 1 / 3])[::-1], "name": None}
    for _ in range(2):
        again = Steps(PLAN, lambda text: None, tmp_path / "kept").do(PLAN[0], gives(found, calls))
    assert len(calls) == 1
    assert again == {"ranks": [3, 1], "ndcg": [1 / 3, 0.1], "name": None}
    assert Steps(PLAN, lambda text: None, tmp_path / "kept").kept() == 1


def test_again_does_it_again_and_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    calls: list[Any] = []
    for folder, again in ((tmp_path, False), (tmp_path, True), (None, False), (None, False)):
        Steps(PLAN, lambda text: None, folder, again=again).do(PLAN[0], gives(len(calls), calls))
    assert len(calls) == 4
    assert Steps(PLAN, lambda text: None, tmp_path).do(PLAN[0], gives("new", calls)) == 1, "the later result stays"


def test_a_spoilt_record_is_done_again(tmp_path: Path) -> None:
    measured = Steps(PLAN, lambda text: None, tmp_path)
    measured.do(PLAN[0], lambda: 1)
    next(tmp_path.iterdir()).write_bytes(b'{"seco')
    assert Steps(PLAN, lambda text: None, tmp_path).do(PLAN[0], lambda: 2) == 2


def test_a_folder_that_cannot_be_made_is_told_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="KEEP-UNWRITABLE"):
        Steps(PLAN, lambda text: None, tmp_path / "file" / "kept")


def test_what_fails_is_not_kept(tmp_path: Path) -> None:
    def fail() -> Any:
        raise SystemExit(130)

    with pytest.raises(SystemExit):
        Steps(PLAN, lambda text: None, tmp_path).do(PLAN[0], fail)
    assert list(tmp_path.iterdir()) == []


def test_the_estimate_is_a_lower_bound_until_every_method_was_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows how long a method takes that has not run yet."""
    now = iter([0.0, 100.0, 100.0, 120.0])
    monkeypatch.setattr("tastetwin.evaluation.steps.time.monotonic", lambda: next(now))
    monkeypatch.setattr(Steps, "_heartbeat", lambda self, step: threading.Lock())
    heard: list[str] = []
    measured = Steps(PLAN, heard.append, tmp_path)
    for step in PLAN[:2]:
        measured.do(step, lambda: None)
    assert heard == [
        "seed 1: a, b (2021), 2 min (1 of 4, at least 2 min left)",
        "seed 1: c, 20 s (2 of 4, about 2 min left)",
    ]


def test_what_is_kept_takes_no_time_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever goes on after a stop wants to know what is still ahead; of what nobody has seen yet, nothing is said."""
    now = iter([0.0, 100.0, 100.0, 200.0])
    monkeypatch.setattr("tastetwin.evaluation.steps.time.monotonic", lambda: next(now))
    monkeypatch.setattr(Steps, "_heartbeat", lambda self, step: threading.Lock())
    for step in PLAN[::2]:
        Steps(PLAN, lambda text: None, tmp_path).do(step, lambda: None)
    heard: list[str] = []
    Steps(PLAN, heard.append, tmp_path).do(PLAN[0], lambda: None)
    assert heard == ["seed 1: a, b (2021), 2 min, kept (1 of 4)"]


def test_a_long_step_gives_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence for half an hour looks like a hang."""
    monkeypatch.setattr(steps, "HEARTBEAT", 0.001)
    alive = threading.Event()

    def tell(text: str) -> None:
        if "still at it" in text:
            alive.set()

    Steps(PLAN, tell).do(PLAN[0], lambda: alive.wait(60))
    assert alive.is_set()


@pytest.mark.parametrize(("seconds", "said"), [(0.2, "0 s"), (89, "89 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations_are_spoken(seconds: float, said: str) -> None:
    assert spoken(seconds) == said
