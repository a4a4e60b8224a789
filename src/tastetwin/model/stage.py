"""train: the day's encoder, fitted on everybody but the users set aside or carried on from an earlier day's bundle."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from tastetwin import __version__
from tastetwin.config import Config, TrainConfig
from tastetwin.errors import MissingExtra
from tastetwin.features.histories import Histories, Vocabulary
from tastetwin.features.holdout import aside_limit, choose_holdout, set_aside
from tastetwin.features.stage import read_histories
from tastetwin.features.vocabulary import read_vocabulary, write_vocabulary
from tastetwin.generations import FOLDERS, FileEntry, Made, Manifest, Plan, begin, entry_of, make
from tastetwin.model.files import MODEL, RECORD, VOCABULARY, WEIGHTS
from tastetwin.model.past import FullTraining, full_training, goes_on, why_in_full
from tastetwin.privacy.opt_out import OptOuts, read_opt_outs
from tastetwin.progress import Progress, silent
from tastetwin.provenance import source_digest
from tastetwin.store import Store

if TYPE_CHECKING:
    from tastetwin.model.encoder import Encoder
    from tastetwin.model.prepare import Tell
    from tastetwin.model.train import OnStep, Trained


def train_bundle(
    store: Store,
    features: Manifest,
    config: Config,
    *,
    past: Manifest | None = None,
    again: bool = False,
    progress: Progress = silent,
    watch: OnStep = lambda done, total, loss: None,
) -> Manifest:
    """A bundle fitted on the users of ``features``, held-out users left aside.

    Learned weights go on from ``past`` unless ``past.why_in_full`` has a reason against it. Interrupted training goes
    on from its last checkpoint, kept in the store until the bundle is finished. ``past`` is the bundle that readers saw
    on the latest earlier day. Sections ``train``, ``evaluate`` (who is held out) and ``features.min_favors`` are used.
    ``progress`` is told the phase, and in training the steps done; ``watch`` is called after each step with steps done,
    steps in all and the loss, and must not raise.

    Raises:
        InputError: TRAIN-NO-USERS when nobody has enough favors.
        MissingExtra: without the 'train' extra.
        StoreError: OPT-OUTS-DAMAGED; MODEL-TOO-LARGE, before anything is fitted.
    """
    opt_outs = _left_out(store, config)
    plan = _plan(features, past, opt_outs, config)

    def work(folder: str) -> Made:
        return _write(store, plan, opt_outs, config, folder, progress, watch)

    manifest = make(store, plan, work, again=again)
    store.remove(_checkpoints(manifest.folder))
    return manifest


def help_train(
    store: Store, features: Manifest, config: Config, *, past: Manifest | None = None, again: bool = False
) -> None:
    """Take part in the ``train_bundle`` of process 0, as any other process that ``torchrun`` started; writes nothing.

    Raises:
        InputError: TRAIN-NO-USERS when nobody has enough favors.
        MissingExtra: without the 'train' extra.
        StoreError: MODEL-TOO-LARGE, as process 0.
    """
    opt_outs = _left_out(store, config)
    plan = _plan(features, past, opt_outs, config)
    _, finished = begin(store, plan.stage, plan.logical_date, plan.inputs(), again=again)
    if finished is None:
        day = _today(store, plan, opt_outs, config)
        _require_room(day, config)
        if day.why_in_full is not None:
            _fit(day, config, None, lambda *_: None, lambda _: None)


def _plan(features: Manifest, past: Manifest | None, opt_outs: OptOuts, config: Config) -> Plan:
    holdout = config.evaluate.model_dump(mode="json", include={"holdout_share", "max_holdout", "min_places", "seed"})
    settings = {
        "train": config.train.model_dump(mode="json"),
        "holdout": holdout,
        "min_favors": config.features.min_favors,
        "opted_out": opt_outs.digest(),
    }
    return Plan("train", features.logical_date, {"features": features, "past": past}, settings)


def _left_out(store: Store, config: Config) -> OptOuts:
    """Users who opted out, unless they are to be learnt from."""
    return OptOuts(frozenset()) if config.train.learn_from_opted_out else read_opt_outs(store)


def _checkpoints(folder: str) -> str:
    """Beside the bundle, since an unfinished generation's folder is emptied when it is begun again."""
    return folder.replace(FOLDERS["train"], "checkpoints", 1)


def _write(
    store: Store, plan: Plan, opt_outs: OptOuts, config: Config, folder: str, progress: Progress, watch: OnStep
) -> Made:
    day = _today(store, plan, opt_outs, config)
    _require_room(day, config)
    with tempfile.TemporaryDirectory(prefix="tastetwin-") as aside:
        if day.why_in_full is None:
            progress(0, None, "carrying on")
            trained = _carry_on(day, config)
        else:
            own = f"{_checkpoints(folder)}/{source_digest()[:12]}"  # what other code began is begun anew
            trained = _train(Store(store.url(own)), day, config, progress, watch)
        progress(0, None, "exporting")
        tables = _write_bundle(store, trained, day.vocabulary, folder, Path(aside))
    full = _full_training(plan, day)
    counts = {
        "training_users": trained.record.training_users,
        "held_out": day.held_out,
        "days_since_full_training": full.days_before(plan.logical_date),
    }
    noted = ("likeness_to_past", "validation_mrr", "ran_on")
    facts = {name: getattr(trained.record, name) for name in noted}
    return tables, {"counts": counts, "full_training": asdict(full), **facts}


@dataclass(frozen=True)
class _Day:
    """What a day's bundle is made from."""

    histories: Histories
    """Of all eligible users."""
    vocabulary: Vocabulary
    aside: npt.NDArray[np.bool_]
    """Users that nothing is learnt from."""
    aside_limit: float
    """See ``FullTraining``."""
    held_out: int
    past: Encoder | None
    """The encoder of an earlier day; None where there is none, or today's places do not go on from its own."""
    why_in_full: str | None
    """Why its learned weights are not carried on."""

    def learners(self) -> Histories:
        """Those of all others."""
        return self.histories.select(np.flatnonzero(~self.aside))


def _today(store: Store, plan: Plan, opt_outs: OptOuts, config: Config) -> _Day:
    features, past = plan.parents["features"], plan.parents["past"]
    assert features is not None
    histories = read_histories(store, features, config.features.min_favors)
    vocabulary = read_vocabulary(store, features.paths("vocabulary")[0])
    rules = config.evaluate
    held_out = choose_holdout(histories, rules, rules.seed)
    why = why_in_full(past, plan.logical_date, histories.n_users, bool(held_out.any()), plan.settings)
    limit = aside_limit(histories, rules, rules.seed)
    if why is None and past is not None:
        limit = full_training(past).aside_limit
    aside = set_aside(histories, limit, rules.seed)
    day = _Day(
        histories,
        vocabulary,
        aside | opt_outs.of(histories.user_ids),
        limit,
        int((held_out & aside).sum()),
        None if past is None else _restored(store, past, vocabulary),
        why,
    )
    return day if why is not None or _fits(day) else replace(day, why_in_full=_OTHER_PLACES)


_OTHER_PLACES: Final = "other places, or other kinds of place, than the earlier bundle's, or too few"


def _fits(day: _Day) -> bool:
    with _needs_torch():
        from tastetwin.model.carry import can_carry_on
    return day.past is not None and can_carry_on(day.past, day.learners(), day.vocabulary)


def _require_room(day: _Day, config: Config) -> None:
    with _needs_torch():
        from tastetwin.model.export import require_room
    require_room(int((~day.aside).sum()), day.vocabulary, config.train.width)


def _restored(store: Store, bundle: Manifest, vocabulary: Vocabulary) -> Encoder | None:
    if bundle.code_version != __version__:
        return None
    own = read_vocabulary(store, bundle.paths("vocabulary")[0])
    if not goes_on(own, vocabulary):
        return None
    with _needs_torch():
        from safetensors.torch import load

        from tastetwin.model.carry import restore
    weights = load(store.read_bytes(bundle.paths("weights")[0]))
    alpha = store.read_json(bundle.paths("record")[0])["alpha"]
    return restore(weights, alpha, own, TrainConfig(**bundle.settings["train"]))


def _full_training(plan: Plan, day: _Day) -> FullTraining:
    """The training that the day's learned weights come from."""
    if day.why_in_full is not None:
        return FullTraining(plan.logical_date, day.why_in_full, day.histories.n_users, day.aside_limit)
    past = plan.parents["past"]
    assert past is not None
    return full_training(past)


def _carry_on(day: _Day, config: Config) -> Trained:
    with _needs_torch():
        from tastetwin.model.carry import carry_on
    assert day.past is not None
    return carry_on(day.past, day.learners(), day.vocabulary, config.train)


def _train(checkpoints: Store, day: _Day, config: Config, progress: Progress, watch: OnStep) -> Trained:
    def on_step(step: int, of: int, loss: float) -> None:
        progress(step, of, "training")
        watch(step, of, loss)

    trained = _fit(day, config, checkpoints, on_step, lambda phase: progress(0, None, phase))
    if day.past is not None:
        from tastetwin.model.carry import turn_onto

        turn_onto(trained, day.past, day.learners(), config.train)
    return trained


def _fit(day: _Day, config: Config, checkpoints: Store | None, on_step: OnStep, tell: Tell) -> Trained:
    with _needs_torch():
        from tastetwin.model.train import train
    aside = np.flatnonzero(day.aside)
    return train(day.histories, day.vocabulary, config.train, aside, checkpoints, on_step, tell)


@contextmanager
def _needs_torch() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise MissingExtra.of(error.name or "torch", "train") from error


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
