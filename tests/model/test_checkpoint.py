"""A crash costs at most one checkpoint interval, and resumption changes nothing."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from tastetwin.config import TrainConfig
from tastetwin.errors import InputError, StoreError
from tastetwin.model import step
from tastetwin.model import train as training
from tests.model import towns

CONFIG = TrainConfig(
    dim=16, layers=1, width=16, heads=2, epochs=6, batch_users=16, max_length=16, checkpoint_steps=4, threads=1
)

CHILD = """
import os, signal, sys
from pathlib import Path
from safetensors.torch import save_file
from tastetwin.model.train import train
from tests.model import towns
from tests.model.test_checkpoint import CONFIG

die_at = int(sys.argv[2])
def on_step(step, total, loss):
    if step == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
folder = Path(sys.argv[1])
result = train(towns.histories(90, 40, 4, 12, seed=2), towns.vocabulary(40), CONFIG, None, folder, on_step)
save_file({k: v.contiguous() for k, v in result.encoder.state_dict().items()}, folder / "final.safetensors")
"""


def child(folder: Path, die_at: int) -> int:
    folder.mkdir(exist_ok=True)
    root = Path(__file__).parents[2]
    return subprocess.run([sys.executable, "-c", CHILD, str(folder), str(die_at)], cwd=root, check=False).returncode


@pytest.mark.slow
def test_killed_and_resumed_equals_unbroken_bit_for_bit(tmp_path: Path) -> None:
    """Kill -9 between two checkpoints, go on, compare every tensor: the promise, literally."""
    assert child(tmp_path / "unbroken", die_at=-1) == 0
    assert child(tmp_path / "broken", die_at=10) == -9
    assert (tmp_path / "broken" / "checkpoint.json").exists()
    assert child(tmp_path / "broken", die_at=-1) == 0
    wanted, found = (load_file(tmp_path / name / "final.safetensors") for name in ("unbroken", "broken"))
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_a_checkpoint_of_other_data_or_config_is_refused(tmp_path: Path) -> None:
    """Continuing on other data would give a model that no record describes."""
    town, vocabulary = towns.histories(60, 40, 4, 12, seed=2), towns.vocabulary(40)
    training.train(town, vocabulary, CONFIG, None, tmp_path)
    with pytest.raises(StoreError, match=r"OTHER-CHECKPOINT.*fingerprint"):
        training.train(towns.histories(60, 40, 4, 12, seed=3), vocabulary, CONFIG, None, tmp_path)
    with pytest.raises(StoreError, match=r"OTHER-CHECKPOINT.*learning_rate"):
        training.train(town, vocabulary, CONFIG.model_copy(update={"learning_rate": 0.5}), None, tmp_path)
    (tmp_path / "checkpoint.json").write_text("{")
    with pytest.raises(StoreError, match="BAD-CHECKPOINT"):
        training.train(town, vocabulary, CONFIG, None, tmp_path)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "DISK-FULL"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "DISK-FULL"),
        (SafetensorError("Error while serializing: I/O error: Input/output error (os error 5)"), "STORE-UNWRITABLE"),
    ],
    ids=["full", "full, in Rust's words", "broken"],
)
def test_a_checkpoint_that_cannot_be_written_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    """A disk that fills up overnight must leave a message to act on, not the stack trace of a library."""

    def refuse(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("tastetwin.model.checkpoint.save_file", refuse)
    with pytest.raises(StoreError, match=code):
        training.train(towns.histories(60, 40, 4, 12, seed=2), towns.vocabulary(40), CONFIG, None, tmp_path)


def test_nan_steps_are_skipped_counted_and_rolled_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bad batch must not spoil the weights, and a row of bad ones goes back to the last good state."""
    real, calls = step.whole_loss, 0

    def sometimes_nan(*arguments: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        loss = real(*arguments)  # type: ignore[arg-type]
        return loss * float("nan") if calls in (2, 6, 7, 8) else loss

    monkeypatch.setattr(step, "whole_loss", sometimes_nan)
    town = towns.histories(90, 40, 4, 12, seed=2)
    trained = training.train(town, towns.vocabulary(40), CONFIG, None, tmp_path)
    assert trained.record.skipped_steps == 4
    assert trained.record.rollbacks == 1
    assert all(torch.isfinite(value).all() for value in trained.encoder.state_dict().values())


def test_nobody_to_learn_from_is_a_coded_error() -> None:
    """An empty training set is the caller's data, not a stack trace."""
    town = towns.histories(5, 40, 4, 12, seed=2)
    with pytest.raises(InputError, match="TRAIN-NO-USERS"):
        training.train(town, towns.vocabulary(40), CONFIG, torch.arange(5).numpy())
