"""Fit the encoder: linear views first, then what a residual and a transformer can add to them.

The factors of a linear fit have seen both halves of every user they were fitted on, so nothing honest can be learned
on top of them. Hence folds: a user's linear views come, in training, from a fit on the *other* folds, rotated onto the
full fit. Two views of a user are cut by one random partition of the catalogue per batch, so that neither a positive nor
a negative pair shares a place and only taste can tell them apart.

``prepare`` fits the views, ``step`` holds one update, ``finish`` chooses what is served; here they are put together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from tastetwin.config import TrainConfig
from tastetwin.errors import InputError
from tastetwin.features.histories import Histories, Vocabulary
from tastetwin.model import checkpoint, finish, step
from tastetwin.model.encoder import Encoder
from tastetwin.model.fits import Fits
from tastetwin.model.hardware import Hardware, choose
from tastetwin.model.pace import schedule
from tastetwin.model.prepare import Plan, Tell, prepare
from tastetwin.model.workers import Workers, workers
from tastetwin.provenance import source_digest
from tastetwin.store import Store

ROLLBACK_AFTER: Final = 3

OnStep = Callable[[int, int, float], None]


@dataclass
class Record:
    """What happened in training; goes into the bundle."""

    alpha: float = 0.0
    view_weights: list[float] = field(default_factory=list)
    temperature: float = 0.0
    gates: list[float] = field(default_factory=list)
    validation_mrr: dict[str, float] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    skipped_steps: int = 0
    rollbacks: int = 0
    training_users: int = 0
    validation_users: int = 0
    fingerprint: str = ""
    likeness_to_past: float | None = None
    """Mean cosine of what it and the earlier day's encoder make of the same histories; None without one."""
    ran_on: list[dict[str, Any]] = field(default_factory=list)
    """What steps were computed by: processes (which decide the dropout), device, precision, each ``since`` a number of
    steps done; one entry, unless a resumed training found other ones. Empty where weights were carried on."""

    def runs_on(self, since: int, processes: int, hardware: Hardware) -> None:
        """Note what computes the steps from now on, if it is not what did before."""
        now = {"processes": processes, "device": hardware.device.type, "precision": hardware.precision}
        if not self.ran_on or {**self.ran_on[-1], **now} != self.ran_on[-1]:
            self.ran_on.append({"since": since, **now})

    def describe(self, encoder: Encoder) -> None:
        """What is served of an encoder, and at which weights."""
        self.alpha, self.gates = encoder.views.alpha, encoder.gates.tolist()
        self.view_weights = encoder.log_weights.exp().tolist()
        self.temperature = float(encoder.log_temperature.detach().exp())


@dataclass(frozen=True)
class Trained:
    """An encoder ready to be exported, on the CPU."""

    encoder: Encoder
    record: Record

    def encode(self, histories: Histories, max_length: int) -> npt.NDArray[np.float32]:
        """[n_users, dim] unit vectors, see ``finish.encode``."""
        return finish.encode(self.encoder, histories, max_length)


def train(
    histories: Histories,
    vocabulary: Vocabulary,
    config: TrainConfig,
    holdout: npt.NDArray[np.int64] | None = None,
    checkpoints: Store | None = None,
    on_step: OnStep = lambda step, total, loss: None,
    tell: Tell = lambda phase: None,
) -> Trained:
    """Fit on all users but ``holdout`` (positions); resumes from what ``checkpoints`` holds, exactly on a CPU.

    ``on_step(steps done, steps in all, loss)`` is called after each step, ``tell(what)`` when another phase begins.
    Under ``torchrun`` every process calls this with the same arguments; only process 0 reads and writes checkpoints,
    chooses gates and fills the record. Raises ``InputError`` TRAIN-NO-USERS without any history, NO-CUDA;
    ``StoreError`` if the checkpoint belongs to other data, another config or other code.
    """
    users = np.setdiff1d(np.arange(histories.n_users), holdout if holdout is not None else [])
    if len(users) == 0 or len(histories.places) == 0:
        raise InputError(
            "TRAIN-NO-USERS",
            place="train",
            value=f"{histories.n_users} eligible users, {len(users)} to learn from",
            rule="at least one user with features.min_favors places the model can know, not held out; a place with "
            "fewer than features.min_visitors visitors is known only by its category and region in places*.jsonl, and "
            "a review rated below features.min_rating is no favor",
            fix="give more events or a places file, or lower features.min_visitors, min_favors or min_rating",
        )
    hardware = choose(config)
    chosen = histories.select(users)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    record = Record(training_users=len(users), fingerprint=checkpoint.fingerprint(chosen, vocabulary))
    with workers() as group:
        own = checkpoints if group.rank == 0 else None
        identity = _identity(config, record)
        if own is not None:
            checkpoint.require_own(own, identity)
        plan, encoder = prepare(chosen, vocabulary, config, group, tell, Fits(own, identity))
        record.validation_users = len(plan.validators)
        for module in (encoder, *plan.views):
            module.to(hardware.device)
        _Loop(plan, encoder, record, group, hardware, own).run(on_step, tell)
        _finish(plan, encoder.eval(), record, group, tell)
    return Trained(encoder.cpu(), record)


class _Loop:
    """The steps of one training: step, count what went wrong, checkpoint."""

    def __init__(
        self, plan: Plan, encoder: Encoder, record: Record, group: Workers, hardware: Hardware, store: Store | None
    ) -> None:
        self.plan, self.record, self.group, self.hardware, self.store = plan, record, group, hardware, store
        self.optimizer = _optimizer(encoder, plan.config)
        self.state = checkpoint.TrainingState(encoder, self.optimizer, record, _identity(plan.config, record))
        self.encoder, self.model = encoder, group.together(step.Objective(encoder, hardware))
        self.per_epoch = len(plan.schedule(0))
        self.total = min(self.per_epoch * plan.config.epochs, plan.config.max_steps)

    def run(self, on_step: OnStep, tell: Tell) -> None:
        """From the last checkpoint, or the start, to the end."""
        done = self.state.resume(self.store) if self.store is not None else 0
        done, failures = self.state.spread(self.group, done), 0
        self.record.runs_on(done, self.group.world, self.hardware)
        tell(f"going on from step {done}" if done else "training")
        with closing(self._drawn(done)) as drawn:
            for users, batch in drawn:
                loss = self._step(users, batch, done)
                done += 1
                failures = 0 if math.isfinite(loss) else failures + 1
                if failures:
                    self.record.skipped_steps += 1
                else:
                    self.record.losses.append(loss)
                if failures == ROLLBACK_AFTER:
                    self._roll_back(done)
                if self.store is not None and done % self.plan.config.checkpoint_steps == 0 and not failures:
                    self.state.save(self.store, done)
                on_step(done, self.total, loss)

    def _drawn(self, done: int) -> Generator[tuple[npt.NDArray[np.int64], step.Draw | None]]:
        """Users of each batch and what was drawn of them; the next is drawn while one is computed."""
        last: tuple[npt.NDArray[np.int64], Future[step.Draw | None]] | None = None
        with ThreadPoolExecutor(1, "draw", self.hardware.enter) as thread:
            for number, users in enumerate(self._batches(done), done):
                coming = thread.submit(step.draw, self.plan, users, number, self.group, self.hardware.device)
                if last is not None:
                    yield last[0], last[1].result()
                last = users, coming
            if last is not None:
                yield last[0], last[1].result()

    def _batches(self, done: int) -> Iterator[npt.NDArray[np.int64]]:
        while done < self.total:
            epoch, before = divmod(done, self.per_epoch)
            batches = self.plan.schedule(epoch)[before : before + self.total - done]
            yield from batches
            done += len(batches)

    def _step(self, users: npt.NDArray[np.int64], batch: step.Draw | None, done: int) -> float:
        """One update, or none (loss 0) where too few users of the batch can be cut in two."""
        if batch is None:
            return 0.0
        self.encoder.train()
        torch.manual_seed((self.plan.config.seed * 1_000_003 + done) * self.group.world + self.group.rank)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.config.learning_rate * group["scale"] * schedule(done, self.total)
        views = self.plan.views[self.plan.fold[users[0]]]
        return step.update(self.model, self.optimizer, views, batch, self.group)

    def _roll_back(self, done: int) -> None:
        if self.store is not None:
            self.state.roll_back(self.store)
        self.state.spread(self.group, done)


def _optimizer(encoder: Encoder, config: TrainConfig) -> torch.optim.Optimizer:
    parameters = dict(encoder.named_parameters())
    fast = [parameters.pop(name) for name in ("log_weights", "log_temperature")]
    return torch.optim.AdamW(
        [{"params": list(parameters.values()), "scale": 1.0}, {"params": fast, "scale": 10.0, "weight_decay": 0.0}],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
    )


def _identity(config: TrainConfig, record: Record) -> dict[str, Any]:
    """What must not change between a checkpoint and its resumption."""
    how = {"threads", "checkpoint_steps", "device"}
    return {**config.model_dump(exclude=how), "fingerprint": record.fingerprint, "sources": source_digest()}


def _finish(plan: Plan, encoder: Encoder, record: Record, group: Workers, tell: Tell) -> None:
    """Process 0 chooses gates and projection, and tells the others."""
    if group.rank == 0:
        tell("choosing gates")
        record.validation_mrr = finish.choose_gates(plan, encoder)
        tell("projecting")
        finish.project(plan, encoder)
    chosen = {"gates": encoder.gates, "projection": encoder.projection, "prior": encoder.prior}
    told = group.share({name: value.cpu().numpy() for name, value in chosen.items()})
    for name, value in chosen.items():
        value.copy_(torch.from_numpy(told[name]))
    record.describe(encoder)
