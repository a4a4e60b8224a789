"""A crash costs at most one checkpoint interval, and resumption changes nothing."""

from __future__ import annotations

import errno
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from tastetwin import durable
from tastetwin.config import Config
from tastetwin.errors import InputError, StoreError
from tastetwin.features.taste import to_arrow
from tastetwin.features.vocabulary import write_vocabulary
from tastetwin.generations import Manifest
from tastetwin.model import step
from tastetwin.model import train as training
from tastetwin.model.stage import train_bundle
from tastetwin.progress import Progress
from tastetwin.store import Store
from tastetwin.tables import put_table
from tests.model import towns

CONFIG = towns.MANY_STEPS

CHILD = """
import os, signal, sys
from pathlib import Path
from safetensors.torch import save_file
from tastetwin.model.train import train
from tastetwin.store import Store
from tests.model import towns
from tests.model.test_checkpoint import CONFIG

die_at = int(sys.argv[2])
def on_step(step, total, loss):
    if step == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
folder = Path(sys.argv[1])
result = train(towns.histories(90, 40, 4, 12, seed=2), towns.vocabulary(40), CONFIG, None, Store(folder), on_step)
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


def test_a_training_that_goes_on_says_from_where(tmp_path: Path) -> None:
    """A log that rates the steps since the phase began would count those of the checkpoint as its own."""
    town, vocabulary = towns.histories(90, 40, 4, 12, seed=2), towns.vocabulary(40)

    def stop(step: int, _: int, __: float) -> None:
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(town, vocabulary, CONFIG, None, Store(tmp_path), stop)
    heard: list[str] = []
    training.train(town, vocabulary, CONFIG, None, Store(tmp_path), tell=heard.append)
    assert "going on from step 4" in heard and "training" not in heard


def test_a_checkpoint_of_other_data_config_or_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Continuing on other data, or by other code of the same version, would give a model that no record describes."""
    town, vocabulary = towns.histories(60, 40, 4, 12, seed=2), towns.vocabulary(40)
    training.train(town, vocabulary, CONFIG, None, Store(tmp_path))
    with pytest.raises(StoreError, match=r"OTHER-CHECKPOINT.*fingerprint"):
        training.train(towns.histories(60, 40, 4, 12, seed=3), vocabulary, CONFIG, None, Store(tmp_path))
    with pytest.raises(StoreError, match=r"OTHER-CHECKPOINT.*learning_rate"):
        training.train(town, vocabulary, CONFIG.model_copy(update={"learning_rate": 0.5}), None, Store(tmp_path))
    with monkeypatch.context() as patch, pytest.raises(StoreError, match=r"OTHER-CHECKPOINT.*sources"):
        patch.setattr(training, "source_digest", lambda: "of other code")
        training.train(town, vocabulary, CONFIG, None, Store(tmp_path))
    (tmp_path / "checkpoint.json").write_text("{")
    with pytest.raises(StoreError, match="BAD-CHECKPOINT"):
        training.train(town, vocabulary, CONFIG, None, Store(tmp_path))


@pytest.mark.parametrize("part", ["checkpoint", "fit-"])
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "DISK-FULL"),
        (OSError(errno.EIO, "Input/output error"), "STORE-UNWRITABLE"),
    ],
    ids=["full", "broken"],
)
def test_a_checkpoint_that_cannot_be_written_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str, part: str
) -> None:
    """A disk that fills up overnight must leave a message to act on, not the stack trace of a library."""

    real = durable.written_aside

    def refuse(path: Path) -> AbstractContextManager[IO[bytes]]:
        if path.name.startswith(part):
            raise error
        return real(path)

    monkeypatch.setattr("tastetwin.durable.written_aside", refuse)
    with pytest.raises(StoreError, match=code):
        training.train(towns.histories(60, 40, 4, 12, seed=2), towns.vocabulary(40), CONFIG, None, Store(tmp_path))


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
    trained = training.train(town, towns.vocabulary(40), CONFIG, None, Store(tmp_path))
    assert trained.record.skipped_steps == 4
    assert trained.record.rollbacks == 1
    assert all(torch.isfinite(value).all() for value in trained.encoder.state_dict().values())


def test_nobody_to_learn_from_is_a_coded_error() -> None:
    """An empty training set is the caller's data, not a stack trace."""
    town = towns.histories(5, 40, 4, 12, seed=2)
    with pytest.raises(InputError, match="TRAIN-NO-USERS"):
        training.train(town, towns.vocabulary(40), CONFIG, torch.arange(5).numpy())


# -- in a store that is no folder of this machine ---------------------------------------------------------------------


WHOLE = Config(train=CONFIG)
KILLED_AT = 10
"""Of 12 and more steps, with a checkpoint every 4."""


class KilledError(BaseException):
    """Passes every handler, as the end of the process does."""


@pytest.fixture
def remote() -> Iterator[Store]:
    name = f"/{uuid.uuid4()}"
    yield Store.create(f"memory:/{name}")
    fsspec.filesystem("memory").rm(name, recursive=True)


def features(remote: Store) -> Manifest:
    """Histories and vocabulary of a little town, as the features stage leaves them."""
    town = towns.histories(90, 40, 4, 12, seed=2)
    rows = pa.Table.from_batches([to_arrow(town, np.diff(town.offsets).astype(np.int32))])
    tables = {
        "history": [put_table(remote, "features/f/history.parquet", rows)],
        "vocabulary": [write_vocabulary(remote, "features/f/vocabulary.parquet", towns.vocabulary(40))],
    }
    return Manifest("features", "f", "2026-06-30", {}, {}, tables, {})


def killed_at(step: int) -> Progress:
    def progress(done: int, total: int | None, phase: str = "", /) -> None:
        if done == step:
            raise KilledError

    return progress


def counted(steps: list[int]) -> Progress:
    def progress(done: int, total: int | None, phase: str = "", /) -> None:
        if total is not None:
            steps.append(done)

    return progress


def train_until_killed(remote: Store, made: Manifest, step: int = KILLED_AT) -> None:
    with pytest.raises(KilledError):
        train_bundle(remote, made, WHOLE, progress=killed_at(step))


def test_a_training_killed_on_one_machine_goes_on_on_the_next(remote: Store) -> None:
    """On a cluster the next attempt has another disk; hours of training must not depend on the old one."""
    made = features(remote)
    train_until_killed(remote, made)
    kept = [name.rpartition("/")[2] for name in remote.files("checkpoints")]
    fits = [f"fit-{name}.safetensors" for name in (0, 1, 2, 3, "alpha")]
    assert kept == ["checkpoint-8.safetensors", "checkpoint.json", *fits, "fits.json"]
    steps: list[int] = []
    resumed = train_bundle(remote, made, WHOLE, progress=counted(steps))
    assert steps[0] == 9
    assert remote.files("checkpoints") == []
    unbroken = train_bundle(remote, made, WHOLE, again=True)
    assert resumed.digest() == unbroken.digest()


def test_killed_while_a_checkpoint_is_written_the_one_before_it_stands(
    remote: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors first, the pointer last: a pointer never names tensors that are not whole."""
    made = features(remote)
    real = Store.write_json

    def write_json(self: Store, relative: str, value: dict[str, Any]) -> None:
        if relative == "checkpoint.json" and self.exists(relative) and self.read_json(relative)["step"] == 4:
            raise KilledError
        real(self, relative, value)

    train_until_killed(remote, made, step=5)
    monkeypatch.setattr(Store, "write_json", write_json)
    train_until_killed(remote, made)
    monkeypatch.undo()
    kept = [name.rpartition("/")[2] for name in remote.files("checkpoints")]
    assert [name for name in kept if name.startswith("checkpoint")] == [
        "checkpoint-4.safetensors", "checkpoint-8.safetensors", "checkpoint.json",
    ]  # fmt: skip
    steps: list[int] = []
    train_bundle(remote, made, WHOLE, progress=counted(steps))
    assert steps[0] == 5


def test_a_spoilt_checkpoint_is_told_by_its_place_in_the_store(remote: Store) -> None:
    """Whoever reads the message looks for it there."""
    made = features(remote)
    train_until_killed(remote, made)
    (pointer,) = (name for name in remote.files("checkpoints") if name.endswith("/checkpoint.json"))
    remote.write_bytes(pointer, b"{")
    with pytest.raises(StoreError) as caught:
        train_bundle(remote, made, WHOLE)
    assert caught.value.problem.code == "BAD-CHECKPOINT"
    assert caught.value.problem.place == remote.url(pointer.rpartition("/")[0])
