"""A log tells what a stage is doing, and how fast: in training only steps count."""

from __future__ import annotations

import pytest

from tastetwin import console
from tastetwin.runs import StageRecord


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


@pytest.mark.parametrize("width", ["200", "80", "60"])
def test_what_a_stage_counted_is_never_torn_from_its_name(
    width: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On 80 columns the number stood alone at the beginning of the next line."""
    monkeypatch.setenv("COLUMNS", width)
    counts = {"training_users": 1_615, "held_out": 114, "days_since_full_training": 0, "lost.a": 3}
    console.BarReporter().finished("train", StageRecord("g", 26.8, counts, "now"))
    lines = capsys.readouterr().err.splitlines()
    said = " ".join(" ".join(line.split()) for line in lines)
    assert said == "✓ train 26.8 s days_since_full_training 0, held_out 114, training_users 1,615"
    assert all(line.startswith(" " * 22) for line in lines[1:])
    assert all("days_since_full_training 0" in line or "days" not in line for line in lines)
