"""train: fit the encoder on everybody but the held-out users; the result is a model bundle."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tastetwin.config import Config
from tastetwin.errors import MissingExtra, StoreError
from tastetwin.features.histories import Histories, Vocabulary
from tastetwin.features.holdout import choose_holdout
from tastetwin.features.stage import read_histories
from tastetwin.features.vocabulary import read_vocabulary, write_vocabulary
from tastetwin.model.files import MODEL, RECORD, VOCABULARY, WEIGHTS
from tastetwin.model.mirror import Mirror
from tastetwin.progress import Progress, silent
from tastetwin.runs import FOLDERS, FileEntry, Made, Manifest, Plan, begin, entry_of, make
from tastetwin.store import Store

if TYPE_CHECKING:
    from tastetwin.model.prepare import Tell
    from tastetwin.model.train import OnStep, Trained


def train_bundle(
    store: Store, features: Manifest, config: Config, *, again: bool = False, progress: Progress = silent
) -> Manifest:
    """A bundle fitted on the users of ``features``, held-out users left aside.

    Interrupted training goes on from its last checkpoint, kept in the store until the bundle is finished.

    Args:
        store: holds everything.
        features: the day's histories and vocabulary.
        config: sections ``train``, ``evaluate`` (who is held out) and ``features.min_favors`` are used.
        again: make it once more even if it is finished.
        progress: told the phase, and in training the steps done.

    Raises:
        InputError: TRAIN-NO-USERS when nobody has enough favors.
        MissingExtra: without the 'train' extra.
    """
    plan = _plan(features, config)
    manifest = make(store, plan, lambda folder: _write(store, features, config, folder, progress), again=again)
    store.remove(_checkpoints(manifest.folder))
    return manifest


def help_train(store: Store, features: Manifest, config: Config, *, again: bool = False) -> None:
    """Take part in the ``train_bundle`` of process 0, as any other process that ``torchrun`` started; writes nothing.

    Raises:
        InputError: TRAIN-NO-USERS when nobody has enough favors.
        MissingExtra: without the 'train' extra.
    """
    plan = _plan(features, config)
    _, finished = begin(store, plan.stage, plan.logical_date, plan.inputs(), again=again)
    if finished is None:
        _fit(*_learn_from(store, features, config), config, None, lambda *_: None, lambda _: None)


def _plan(features: Manifest, config: Config) -> Plan:
    holdout = config.evaluate.model_dump(mode="json", include={"holdout_share", "max_holdout", "min_places", "seed"})
    settings = {
        "train": config.train.model_dump(mode="json"),
        "holdout": holdout,
        "min_favors": config.features.min_favors,
    }
    return Plan("train", features.logical_date, {"features": features}, settings)


def _checkpoints(folder: str) -> str:
    """Beside the bundle, since an unfinished generation's folder is emptied when it is begun again."""
    return folder.replace(FOLDERS["train"], "checkpoints", 1)


def _write(store: Store, features: Manifest, config: Config, folder: str, progress: Progress) -> Made:
    histories, vocabulary, mask = _learn_from(store, features, config)
    with tempfile.TemporaryDirectory(prefix="tastetwin-") as aside:
        with _kept(store, _checkpoints(folder), Path(aside)) as (checkpoints, saved):

            def on_step(step: int, of: int, loss: float) -> None:
                saved()
                progress(step, of, "training")

            def tell(phase: str) -> None:
                progress(0, None, phase)

            trained = _fit(histories, vocabulary, mask, config, checkpoints, on_step, tell)
        progress(0, None, "exporting")
        tables = _write_bundle(store, trained, vocabulary, folder, Path(aside))
    counts = {"training_users": trained.record.training_users, "held_out": int(mask.sum())}
    return tables, {"counts": counts, "validation_mrr": trained.record.validation_mrr}


def _learn_from(
    store: Store, features: Manifest, config: Config
) -> tuple[Histories, Vocabulary, npt.NDArray[np.bool_]]:
    """The day's histories and vocabulary, and who is held out."""
    histories, _ = read_histories(store, features, config.features.min_favors)
    vocabulary = read_vocabulary(store, features.paths("vocabulary")[0])
    return histories, vocabulary, choose_holdout(histories, config.evaluate, config.evaluate.seed)


@contextmanager
def _kept(store: Store, folder: str, aside: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A folder of this machine for checkpoints, and what to call when there may be a new one in it."""
    if store.is_local:
        yield Path(store.make_folder(folder)), lambda: None
        return
    mirror = Mirror(store, folder, aside)
    try:
        yield aside, mirror.update
    except StoreError as error:
        raise mirror.placed(error) from error


def _fit(
    histories: Histories,
    vocabulary: Vocabulary,
    holdout: npt.NDArray[np.bool_],
    config: Config,
    checkpoints: Path | None,
    on_step: OnStep,
    tell: Tell,
) -> Trained:
    try:
        from tastetwin.model.train import train
    except ImportError as error:
        raise MissingExtra.of(error.name or "torch", "train") from error
    users = np.flatnonzero(holdout)
    return train(histories, vocabulary, config.train, users, checkpoints, on_step, tell)


def _write_bundle(
    store: Store, trained: Trained, vocabulary: Vocabulary, folder: str, aside: Path
) -> dict[str, list[FileEntry]]:
    """The files of the bundle, made on this machine and copied to the store."""
    from tastetwin.model.export import export_onnx, export_weights

    export_onnx(trained.encoder, aside / MODEL)
    export_weights(trained.encoder, aside / WEIGHTS)
    for name in (MODEL, WEIGHTS):
        with (aside / name).open("rb") as source, store.open_write(f"{folder}/{name}") as target:
            shutil.copyfileobj(source, target, 4 << 20)
    store.write_json(f"{folder}/{RECORD}", asdict(trained.record))
    return {
        "model": [entry_of(store, f"{folder}/{MODEL}")],
        "weights": [entry_of(store, f"{folder}/{WEIGHTS}")],
        "record": [entry_of(store, f"{folder}/{RECORD}")],
        "vocabulary": [write_vocabulary(store, f"{folder}/{VOCABULARY}", vocabulary)],
    }
