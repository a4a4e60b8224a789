"""The training stage from day to day: in full, carried on, and in full again when it is due."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tastetwin.config import Config
from tastetwin.errors import InputError, StoreError
from tastetwin.features.histories import Histories, Vocabulary
from tastetwin.features.taste import to_arrow
from tastetwin.features.vocabulary import read_vocabulary, write_vocabulary
from tastetwin.generations import Manifest
from tastetwin.model import stage
from tastetwin.model.hardware import choose
from tastetwin.model.past import full_training
from tastetwin.model.stage import train_bundle
from tastetwin.store import Store
from tastetwin.tables import put_table
from tests.model import towns
from tests.model.test_carry import BEFORE, TODAY, TOWN, next_day
from tests.model.test_checkpoint import CONFIG as TRAIN

CONFIG = Config(train=TRAIN.model_copy(update={"refit_days": 3}))


def features(store: Store, day: int, town: Histories, vocabulary: Vocabulary) -> Manifest:
    """Histories and vocabulary of a day, as the features stage leaves them."""
    folder = f"features/f{day}"
    rows = pa.Table.from_batches([to_arrow(town, np.diff(town.offsets).astype(np.int32))])
    tables = {
        "history": [put_table(store, f"{folder}/history.parquet", rows)],
        "vocabulary": [write_vocabulary(store, f"{folder}/vocabulary.parquet", vocabulary)],
    }
    return Manifest("features", f"f{day}", f"2026-06-{day:02}", {}, {}, tables, {})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.create(tmp_path_factory.mktemp("training") / "store")


@pytest.fixture(scope="module")
def first(store: Store) -> Manifest:
    return train_bundle(store, features(store, 1, TOWN, BEFORE), CONFIG)


@pytest.fixture(scope="module")
def second(store: Store, first: Manifest) -> Manifest:
    return train_bundle(store, features(store, 2, next_day(), TODAY), CONFIG, past=first)


def facts(bundle: Manifest) -> tuple[str, str, int]:
    full = full_training(bundle)
    return full.on, full.because, bundle.facts["counts"]["days_since_full_training"]


def test_the_first_day_is_learnt_in_full(first: Manifest) -> None:
    """There is nothing else to do."""
    assert facts(first) == ("2026-06-01", "there is no earlier bundle to go on from", 0)
    assert first.facts["likeness_to_past"] is None
    assert first.parents == {"features": "f1"}


def test_a_bundle_says_what_its_steps_were_computed_by(store: Store, first: Manifest, second: Manifest) -> None:
    """Dropout is drawn by each process, and "auto" is one thing here and another there: settings do not tell them."""
    there = choose(CONFIG.train)
    by = {"since": 0, "processes": 1, "device": there.device.type, "precision": there.precision}
    assert first.facts["ran_on"] == store.read_json(first.paths("record")[0])["ran_on"] == [by]
    assert second.facts["ran_on"] == [], "it was carried on"


def test_the_second_day_carries_it_on(store: Store, first: Manifest, second: Manifest) -> None:
    """A bundle like any other, of today's places; its manifest says what it goes on from."""
    assert facts(second) == ("2026-06-01", "there is no earlier bundle to go on from", 1)
    assert second.parents == {"features": "f2", "past": first.generation}
    assert second.facts["likeness_to_past"] > 0.9
    assert read_vocabulary(store, second.paths("vocabulary")[0]).n_rows == TODAY.n_rows
    record = store.read_json(second.paths("record")[0])
    assert record["losses"] == [] and record["alpha"] > 0 and len(record["gates"]) == 2
    assert {entry.path.rpartition("/")[2] for entries in second.tables.values() for entry in entries} == {
        "encoder.onnx", "weights.safetensors", "encoder.json", "vocabulary.parquet",
    }  # fmt: skip


def test_what_other_code_began_is_begun_anew(tmp_path: Path, first: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Updated while a training was interrupted, the job went on by both codes, or refused until somebody came."""
    store = Store.create(tmp_path / "store")

    def killed(done: int, total: int, loss: float) -> None:
        if done == CONFIG.train.checkpoint_steps:
            raise KeyboardInterrupt

    monkeypatch.setattr(stage, "source_digest", lambda: "before")
    with pytest.raises(KeyboardInterrupt):
        train_bundle(store, features(store, 1, TOWN, BEFORE), CONFIG, watch=killed)
    assert store.files("checkpoints")
    steps: list[int] = []
    monkeypatch.setattr(stage, "source_digest", lambda: "after")
    made = train_bundle(store, features(store, 1, TOWN, BEFORE), CONFIG, watch=lambda done, *_: steps.append(done))
    assert steps[0] == 1 and made.digest() == first.digest()
    assert not store.files("checkpoints")


def test_carried_on_twice_it_is_the_same_bundle(store: Store, first: Manifest, second: Manifest) -> None:
    """A re-run of a day gives the same twins."""
    again = train_bundle(store, features(store, 2, next_day(), TODAY), CONFIG, past=first, again=True)
    assert again.generation != second.generation
    assert again.digest() == second.digest()


def test_when_it_is_due_it_is_learnt_in_full_and_turned_onto_the_day_before(store: Store, second: Manifest) -> None:
    """Two days after the training it is carried on once more, on the third it is not."""
    third = train_bundle(store, features(store, 3, next_day(), TODAY), CONFIG, past=second)
    fourth = train_bundle(store, features(store, 4, next_day(), TODAY), CONFIG, past=third)
    assert facts(third)[0::2] == ("2026-06-01", 2)
    on, because, days = facts(fourth)
    assert (on, days) == ("2026-06-04", 0) and "3 days ago" in because
    assert fourth.facts["likeness_to_past"] > 0.8
    assert store.read_json(fourth.paths("record")[0])["losses"]


def test_places_in_another_order_are_learnt_anew(store: Store, first: Manifest) -> None:
    """A store whose features were made from nothing again: its rows are other places."""
    other = replace(BEFORE, place_ids=BEFORE.place_ids[::-1].copy())
    made = train_bundle(store, features(store, 5, TOWN, other), Config(train=TRAIN), past=first)
    assert facts(made)[0] == "2026-06-05" and "other places" in facts(made)[1]
    assert made.facts["likeness_to_past"] is None, "there is nothing to be turned onto"


def test_a_town_whose_people_are_all_gone_is_told_so(store: Store, first: Manifest) -> None:
    """On a day between full trainings as on any other; and of each rule that may have left nobody, ratings too."""
    nobody = TOWN.select(np.empty(0, np.int64))
    with pytest.raises(InputError, match=r"TRAIN-NO-USERS.*min_rating.*lower.*min_visitors, min_favors or min_rating"):
        train_bundle(store, features(store, 7, nobody, BEFORE), Config(train=TRAIN), past=first)


def test_helpers_take_part_in_full_trainings_only(
    store: Store, first: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of torchrun that trained while process 0 carries on would wait for it for ever."""
    fitted: list[Any] = []
    monkeypatch.setattr(stage, "_fit", lambda *given: fitted.append(given))
    made = features(store, 6, towns.histories(100, 80, 4, 12, seed=3), BEFORE)
    stage.help_train(store, made, Config(train=TRAIN), past=first)
    assert fitted == [], "within train.refit_days of seven"
    stage.help_train(store, made, CONFIG, past=first)
    assert len(fitted) == 1


def test_too_large_a_catalogue_is_told_before_anything_is_fitted(
    store: Store, first: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Days of fitting must not end with a model that no file can hold, nor a helper wait for a process that is gone."""
    made = features(store, 8, TOWN, BEFORE)
    monkeypatch.setattr(stage, "_fit", lambda *given: pytest.fail("it was fitted"))
    monkeypatch.setattr(stage, "_carry_on", lambda *given: pytest.fail("it was fitted"))
    monkeypatch.setattr("tastetwin.model.export.MAX_BYTES", 10_000)
    rows = rf"{BEFORE.n_rows} rows of vocabulary of \d+ float32 each.*raise features.min_visitors"
    with pytest.raises(StoreError, match=rf"MODEL-TOO-LARGE.*{rows}"):
        train_bundle(store, made, CONFIG)
    with pytest.raises(StoreError, match="MODEL-TOO-LARGE"):
        train_bundle(store, made, CONFIG, past=first)
    with pytest.raises(StoreError, match="MODEL-TOO-LARGE"):
        stage.help_train(store, made, CONFIG)
