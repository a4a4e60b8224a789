"""Event files as TensorBoard's own reader sees them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tastetwin.evaluation.stage import evaluation_of
from tastetwin.model.pace import schedule
from tastetwin.tracking.tensorboard import Board
from tests.tracking.conftest import Lab


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    found = EventAccumulator(str(folder))
    found.Reload()
    return [(each.step, each.value) for each in found.Scalars(name)]


@pytest.mark.slow
def test_every_step_of_a_training_is_on_the_board(lab: Lab) -> None:
    """Loss and learning rate are those of the training, step by step; a curve with holes misleads."""
    record = lab.store.read_json(lab.bundle(lab.first).paths("record")[0])
    steps = len(record["losses"])
    board = lab.folder / "boards" / lab.first.run_id / "train"
    assert steps > 5 and record["skipped_steps"] == 0
    losses = scalars(board, "train/loss")
    assert [step for step, _ in losses] == list(range(1, steps + 1))
    assert [loss for _, loss in losses] == pytest.approx(record["losses"], rel=1e-6)
    rates = [lab.config.train.learning_rate * schedule(step, steps) for step in range(steps)]
    assert [rate for _, rate in scalars(board, "train/learning_rate")] == pytest.approx(rates, rel=1e-6)
    assert all(pace > 0 for _, pace in scalars(board, "train/users_per_second"))


@pytest.mark.slow
def test_a_day_that_is_carried_on_has_no_curve(lab: Lab) -> None:
    """Nothing was stepped; an empty curve would look like a training that died."""
    assert not (lab.folder / "boards" / lab.second.run_id / "train").exists()


@pytest.mark.slow
def test_the_report_s_figures_are_on_the_board_with_their_intervals(lab: Lab) -> None:
    """A quality without its interval invites to see progress in noise."""
    model = evaluation_of(lab.store, lab.second).model()
    assert model is not None
    board = lab.folder / "boards" / lab.second.run_id / "evaluate"
    for end, value in (("", model.mrr.value), ("/low", model.mrr.low), ("/high", model.mrr.high)):
        assert scalars(board, f"disjoint/model/mrr{end}")[-1] == pytest.approx((0, value))


def test_a_resumed_training_takes_the_place_of_what_was_written_past_its_checkpoint(tmp_path: Path) -> None:
    """After a kill the steps since the checkpoint are done again: twice on the board, the curve would jump back."""
    killed, resumed = Board(tmp_path), Board(tmp_path)
    for step in range(1, 8):
        killed.add(step, {"loss": 100.0 + step})
    killed.close()
    for step in range(6, 10):
        resumed.add(step, {"loss": float(step)})
    resumed.close()
    found = scalars(tmp_path, "loss")
    assert found == [(step, 100.0 + step) for step in range(1, 6)] + [(step, float(step)) for step in range(6, 10)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_takes_nothing_is_told_and_holds_up_nobody(tmp_path: Path) -> None:
    """The writer works in a thread of its own; one that dies in silence would fill a queue and stop the training."""
    (tmp_path / "board").mkdir()
    board = Board(tmp_path / "board")
    board.add(1, {"loss": 1.0})
    board._writer._general_file_writer.write = _full  # type: ignore[union-attr]
    with pytest.raises(OSError, match="No space left"):
        for step in range(2, 100_000):
            board.add(step, {"loss": 1.0})
        board.close()


def _full(data: bytes) -> None:
    raise OSError(28, "No space left on device")
