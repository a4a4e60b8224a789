"""Finished linear fits, nearly all of what a training of millions costs, are not fitted again after a crash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import orjson
import pytest
import torch

from tastetwin.model import prepare
from tastetwin.model.stage import train_bundle
from tastetwin.model.train import Trained, train
from tastetwin.model.views import fit_tables
from tastetwin.store import Store
from tests.model import towns
from tests.model.test_checkpoint import CONFIG, KILLED_AT, WHOLE, KilledError, counted, features, killed_at, remote

__all__ = ["remote"]

SHORT: Final = CONFIG.model_copy(update={"epochs": 1})


def learn(folder: Path | None, seed: int = 2) -> Trained:
    store = None if folder is None else Store(folder)
    return train(towns.histories(60, 40, 4, 12, seed=seed), towns.vocabulary(40), SHORT, None, store)


def same(one: Trained, other: Trained) -> bool:
    first, second = one.encoder.state_dict(), other.encoder.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was fitted, in order."""
    done: list[str] = []

    def noting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*given: Any) -> Any:
            done.append(name)
            return real(*given)

        return noted

    monkeypatch.setattr(prepare, "fit_tables", noting("fit", fit_tables))
    monkeypatch.setattr(prepare, "_tune_alpha", noting("alpha", prepare._tune_alpha))
    return done


def test_a_resumed_training_fits_nothing_again_and_makes_the_same_bundle(remote: Store, fitted: list[str]) -> None:
    """A crash costs a checkpoint interval, not the days before the first step."""
    made = features(remote)
    with pytest.raises(KilledError):
        train_bundle(remote, made, WHOLE, progress=killed_at(KILLED_AT))
    assert fitted == ["alpha", *["fit"] * 4]
    fitted.clear()
    steps: list[int] = []
    resumed = train_bundle(remote, made, WHOLE, progress=counted(steps))
    assert fitted == [] and steps[0] == 9
    assert remote.files("checkpoints") == []
    assert resumed.digest() == train_bundle(remote, made, WHOLE, again=True).digest()


def test_killed_between_fits_only_the_unfinished_ones_are_fitted(
    tmp_path: Path, fitted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is kept when it is finished, not all of them at the end."""
    counting = vars(prepare)["fit_tables"]

    def killed(*given: Any) -> Any:
        if fitted.count("fit") == 2:
            raise KilledError
        return counting(*given)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(prepare, "fit_tables", killed)
        learn(tmp_path)
    fitted.clear()
    resumed = learn(tmp_path)
    assert fitted == ["fit", "fit"]
    assert same(resumed, learn(None))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def other_code(path: Path) -> None:
    content = orjson.loads(path.read_bytes())
    content["identity"]["sources"] = "other"
    path.write_bytes(orjson.dumps(content))


@pytest.mark.parametrize(
    ("name", "damage", "anew"),
    [
        ("fit-1.safetensors", flip, ["fit"]),
        ("fit-0.safetensors", lambda path: path.write_bytes(path.read_bytes()[:100]), ["fit"]),
        ("fit-2.safetensors", lambda path: path.write_bytes(path.with_name("fit-3.safetensors").read_bytes()), ["fit"]),
        ("fit-3.safetensors", Path.unlink, ["fit"]),
        ("fits.json", lambda path: path.write_bytes(b"{"), ["alpha", *["fit"] * 4]),
        ("fits.json", lambda path: path.write_bytes(b"[1]"), ["alpha", *["fit"] * 4]),
        ("fits.json", other_code, ["alpha", *["fit"] * 4]),
    ],
    ids=["a bit", "cut off", "another fit", "gone", "no JSON", "no object", "other code"],
)
def test_what_is_damaged_or_of_other_code_is_fitted_anew(
    kept: Path, tmp_path: Path, fitted: list[str], name: str, damage: Callable[[Path], Any], anew: list[str]
) -> None:
    """A model on spoilt tables would come out without a word."""
    for path in kept.iterdir():
        if path.name.startswith("fit"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    damage(tmp_path / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tastetwin.model.train._Loop.run", lambda *given: None)
        unlearnt, wanted = learn(tmp_path), fitted.copy()
        fitted.clear()
        assert same(unlearnt, learn(None)) and wanted == anew


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the fits of one training."""
    folder = tmp_path_factory.mktemp("kept")
    learn(folder)
    return folder


def test_fits_of_other_data_are_not_believed(kept: Path, tmp_path: Path, fitted: list[str]) -> None:
    """They are of other people, and of the same shape."""
    for path in kept.iterdir():
        if path.name.startswith("fit"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    other = learn(tmp_path, seed=3)
    assert fitted == ["alpha", *["fit"] * 4]
    assert same(other, learn(None, seed=3))
