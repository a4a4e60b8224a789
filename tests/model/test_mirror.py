"""Training outlives its machine: checkpoints on a store that is no folder are copied there and fetched back."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from tastetwin.config import Config
from tastetwin.errors import StoreError
from tastetwin.features.taste import to_arrow
from tastetwin.features.vocabulary import write_vocabulary
from tastetwin.generations import Manifest
from tastetwin.model.stage import train_bundle
from tastetwin.progress import Progress
from tastetwin.store import Store
from tastetwin.tables import put_table
from tests.model import towns
from tests.model.test_checkpoint import CONFIG as TRAIN

CONFIG = Config(train=TRAIN)
KILLED_AT = 10
"""Of 12 and more steps, with a checkpoint every 4."""


class KilledError(BaseException):
    """Passes every handler, as the end of the process does."""


@pytest.fixture
def store() -> Iterator[Store]:
    name = f"/{uuid.uuid4()}"
    yield Store.create(f"memory:/{name}")
    fsspec.filesystem("memory").rm(name, recursive=True)


def features(store: Store) -> Manifest:
    """Histories and vocabulary of a little town, as the features stage leaves them."""
    town = towns.histories(90, 40, 4, 12, seed=2)
    rows = pa.Table.from_batches([to_arrow(town, np.diff(town.offsets).astype(np.int32))])
    tables = {
        "history": [put_table(store, "features/f/history.parquet", rows)],
        "vocabulary": [write_vocabulary(store, "features/f/vocabulary.parquet", towns.vocabulary(40))],
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


def train_until_killed(store: Store, made: Manifest, step: int = KILLED_AT) -> None:
    with pytest.raises(KilledError):
        train_bundle(store, made, CONFIG, progress=killed_at(step))


def test_a_training_killed_on_one_machine_goes_on_on_the_next(store: Store) -> None:
    """On a cluster the next attempt has another disk; hours of training must not depend on the old one."""
    made = features(store)
    train_until_killed(store, made)
    kept = [name.rpartition("/")[2] for name in store.files("checkpoints")]
    assert kept == ["checkpoint-8.safetensors", "checkpoint.json"]
    steps: list[int] = []
    resumed = train_bundle(store, made, CONFIG, progress=counted(steps))
    assert steps[0] == 9
    assert store.files("checkpoints") == []
    unbroken = train_bundle(store, made, CONFIG, again=True)
    assert resumed.digest() == unbroken.digest()


def test_killed_while_a_checkpoint_is_copied_the_one_before_it_stands(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors first, the pointer last: a pointer never names tensors that are not whole."""
    made = features(store)
    real = Store.open_write

    def open_write(self: Store, relative: str) -> object:
        if relative.endswith("checkpoint.json") and self.read_json(relative)["step"] == 4:
            raise KilledError
        return real(self, relative)

    train_until_killed(store, made, step=5)
    monkeypatch.setattr(Store, "open_write", open_write)
    train_until_killed(store, made)
    monkeypatch.undo()
    assert [name.rpartition("/")[2] for name in store.files("checkpoints")] == [
        "checkpoint-4.safetensors", "checkpoint-8.safetensors", "checkpoint.json",
    ]  # fmt: skip
    steps: list[int] = []
    train_bundle(store, made, CONFIG, progress=counted(steps))
    assert steps[0] == 5


def test_a_spoilt_checkpoint_is_told_by_its_place_in_the_store(store: Store) -> None:
    """The temporary folder it was fetched into is gone when the message is read."""
    made = features(store)
    train_until_killed(store, made)
    pointer = store.files("checkpoints")[-1]
    store.write_bytes(pointer, b"{")
    with pytest.raises(StoreError) as caught:
        train_bundle(store, made, CONFIG)
    assert caught.value.problem.code == "BAD-CHECKPOINT"
    assert caught.value.problem.place == store.url(pointer.rpartition("/")[0])
