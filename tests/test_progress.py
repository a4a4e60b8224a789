"""A log tells what a stage is doing, and how fast: in training only steps count."""

from __future__ import annotations

import pytest

from tastetwin import console


def test_a_log_names_each_phase_and_rates_it_by_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half a minute of linear fits before the first step must be neither silent nor counted as slow steps."""
    now = [0.0]
    monkeypatch.setattr("tastetwin.console.time.monotonic", lambda: now[0])
    tell = console.LineReporter().started("train")
    told: list[tuple[int, int, int | None, str]] = [
        (0, 0, None, "fitting linear views 1/4"),
        (30, 0, None, "training"),
        (31, 40, 90, "training"),
        (40, 60, 90, "training"),
        (41, 0, None, "choosing gates"),
    ]
    for second, done, total, phase in told:
        now[0] = float(second)
        tell(done, total, phase)
    said = [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert said == [
        "train: started",
        "train: fitting linear views 1/4",
        "train: training",
        "train: 60 of 90 steps, 6/s",
        "train: choosing gates",
    ]


def test_a_bar_begins_anew_with_each_phase() -> None:
    """A bar that went on from the last phase would show that one's speed."""
    reporter = console.BarReporter()
    try:
        tell = reporter.started("train")
        tell(5, 5, "training")
        tell(0, None, "choosing gates")
        assert reporter._bars is not None
        (task,) = reporter._bars.tasks
        assert (task.completed, task.total, task.fields["phase"]) == (0, None, "choosing gates")
    finally:
        reporter.stop()
