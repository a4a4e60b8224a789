"""Fit the encoder: linear views first, then what a residual and a transformer can add to them.

The factors of a linear fit have seen both halves of every user they were fitted on, so nothing honest can be learned
on top of them. Hence folds: a user's linear views come, in training, from a fit on the *other* folds, rotated onto the
full fit. Two views of a user are cut by one random partition of the catalogue per batch, so that neither a positive nor
a negative pair shares a place and only taste can tell them apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tastetwin.config import TrainConfig
from tastetwin.errors import InputError
from tastetwin.features.histories import FIRST_PLACE_ROW, Histories, Vocabulary
from tastetwin.model import checkpoint
from tastetwin.model.batches import Batch, cut_catalogue, length_buckets, pad
from tastetwin.model.encoder import Encoder, LinearViews, Shape, strength
from tastetwin.model.linear import csls, fit_ials, strength_matrix
from tastetwin.model.objectives import masked_place, two_view_contrast
from tastetwin.model.views import LinearTables, align, fit_tables

FOLDS: Final = 3
ALPHAS: Final = (10.0, 30.0, 100.0)
MIN_VIEW: Final = 3
"""Places each half of a user needs to be a training pair."""
VALIDATION_SHARE: Final = 0.2
MAX_VALIDATION: Final = 1_000
VALIDATION_CUTS: Final = 6
GATES: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
MASKED_WEIGHT: Final = 0.1
TRAIN_LENGTH: Final = 32
CANDIDATES: Final = 4_096
WARMUP_SHARE: Final = 0.1
ROLLBACK_AFTER: Final = 3
PROJECTION_SAMPLE: Final = 50_000
_ENCODE_TOKENS: Final = 16_384

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


@dataclass(frozen=True)
class Trained:
    """An encoder ready to be exported."""

    encoder: Encoder
    record: Record

    @torch.no_grad()
    def encode(self, histories: Histories, max_length: int) -> npt.NDArray[np.float32]:
        """[n_users, dim] unit vectors by torch; the daily job encodes with the exported model."""
        vectors = np.zeros((histories.n_users, int(self.encoder.projection.shape[1])), np.float32)
        for users in length_buckets(histories.lengths(), _ENCODE_TOKENS, max_length):
            vectors[users] = self.encoder(*tensors(pad(histories, users, max_length))).numpy()
        return vectors


@dataclass(frozen=True)
class _Plan:
    """Everything a training step needs; made once, the same for the same data, config and seed."""

    histories: Histories
    vocabulary: Vocabulary
    config: TrainConfig
    fold: npt.NDArray[np.int64]
    learners: npt.NDArray[np.int64]
    validators: npt.NDArray[np.int64]
    views: list[LinearViews]

    def schedule(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        """Batches of user positions, each of one fold, in random order."""
        rng = np.random.default_rng([self.config.seed, 1, epoch])
        shuffled = rng.permutation(self.learners)
        batches: list[npt.NDArray[np.int64]] = []
        for fold in range(FOLDS):
            mine = shuffled[self.fold[shuffled] == fold]
            pieces = math.ceil(len(mine) / self.config.batch_users)
            batches.extend(np.array_split(mine, pieces) if pieces else [])
        return [batches[i] for i in rng.permutation(len(batches))]


def train(
    histories: Histories,
    vocabulary: Vocabulary,
    config: TrainConfig,
    holdout: npt.NDArray[np.int64] | None = None,
    checkpoint_dir: Path | None = None,
    on_step: OnStep = lambda step, total, loss: None,
) -> Trained:
    """Fit on all users but ``holdout`` (positions); resumes exactly from ``checkpoint_dir`` if that holds a checkpoint.

    ``on_step(steps done, steps in all, loss)`` is called after each step. Raises ``InputError`` without any history,
    ``StoreError`` if the checkpoint belongs to other data or another config.
    """
    users = np.setdiff1d(np.arange(histories.n_users), holdout if holdout is not None else [])
    if len(users) == 0 or len(histories.places) == 0:
        raise InputError(
            "TRAIN-NO-USERS",
            place="train",
            value=f"{histories.n_users} eligible users, {len(users)} to learn from",
            rule="at least one user with features.min_favors places the model can know, not held out; a place with "
            "fewer than features.min_visitors visitors is known only by its category and region in places*.jsonl",
            fix="give more events or a places file, or lower features.min_visitors or features.min_favors",
        )
    chosen = histories.select(users)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    record = Record(training_users=len(users), fingerprint=checkpoint.fingerprint(chosen, vocabulary))
    plan, encoder = _prepare(chosen, vocabulary, config, record)
    _fit(plan, encoder, record, checkpoint_dir, on_step)
    encoder.eval()
    _choose_gates(plan, encoder, record)
    _project(plan, encoder)
    record.view_weights = encoder.log_weights.exp().tolist()
    record.temperature = float(encoder.log_temperature.detach().exp())
    return Trained(encoder, record)


def _prepare(
    histories: Histories, vocabulary: Vocabulary, config: TrainConfig, record: Record
) -> tuple[_Plan, Encoder]:
    """Fit the linear views, in full and without each fold, and build the untrained encoder on them."""
    rng = np.random.default_rng([config.seed, 0])
    fold = rng.permutation(histories.n_users) % FOLDS
    learners, validators = _split_validation(histories, rng)
    matrix = strength_matrix(histories, vocabulary.n_rows)
    record.alpha = _tune_alpha(histories, vocabulary, fold, config.seed)
    record.validation_users = len(validators)
    full = fit_tables(matrix, vocabulary, record.alpha, config.seed)
    views = []
    for number in range(FOLDS):
        rest = matrix[fold != number] if (fold != number).any() else matrix
        views.append(LinearViews(align(fit_tables(rest, vocabulary, record.alpha, config.seed), full)))
    torch.manual_seed(config.seed)
    shape = Shape(config.dim, config.width, config.layers, config.heads, config.dropout)
    encoder = Encoder(shape, vocabulary, full, starting_weights(full))
    encoder.log_temperature.data.fill_(math.log(config.temperature))
    return _Plan(histories, vocabulary, config, fold, learners, validators, views), encoder


def starting_weights(tables: LinearTables) -> Tensor:
    """[number of views] as in *full linear*: histograms count half of all the others together."""
    n_histograms = len(tables.bag_sizes) - 3
    n_others = 3 + len(tables.unwhiten)
    histograms = [0.5] * n_histograms
    return torch.tensor([n_others**-0.5] * 3 + histograms + [n_others**-0.5] * len(tables.unwhiten))


def _split_validation(
    histories: Histories, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Users to learn from and users to choose by, both long enough to be cut in two."""
    eligible = rng.permutation(np.flatnonzero(histories.lengths() >= 2 * MIN_VIEW))
    size = min(int(len(eligible) * VALIDATION_SHARE), MAX_VALIDATION)
    return np.sort(eligible[size:]), np.sort(eligible[:size])


def _tune_alpha(histories: Histories, vocabulary: Vocabulary, fold: npt.NDArray[np.int64], seed: int) -> float:
    """The iALS weight by which users of fold 0 find their other half best, fitted on the other folds."""
    users = np.flatnonzero((fold == 0) & (histories.lengths() >= 2 * MIN_VIEW))[:MAX_VALIDATION]
    rest = strength_matrix(histories.select(np.flatnonzero(fold != 0)), vocabulary.n_rows)
    if len(users) < 2 or rest.nnz == 0:
        return ALPHAS[1]
    halves = _halves(histories, users, vocabulary.n_rows, np.random.default_rng([seed, 3]))
    matrices = [strength_matrix(half, vocabulary.n_rows) for half in halves]
    scores = []
    for alpha in ALPHAS:
        ials = fit_ials(rest, 32, alpha, seed=seed)
        scores.append(twin_mrr(*(ials.fold_in(matrix) for matrix in matrices)))
    return ALPHAS[int(np.argmax(scores))]


def _halves(
    histories: Histories, users: npt.NDArray[np.int64], n_rows: int, rng: np.random.Generator
) -> tuple[Histories, Histories]:
    """Both views of the users under one fresh partition of the catalogue; users with a short half are left out."""
    a, b = cut_catalogue(histories, users, rng.random(n_rows) < 0.5)
    long_enough = np.flatnonzero((a.lengths() >= MIN_VIEW) & (b.lengths() >= MIN_VIEW))
    return a.select(long_enough), b.select(long_enough)


def twin_mrr(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """Mean reciprocal rank of row i of ``b`` among all rows of ``b`` for row i of ``a``, by CSLS; ties share a rank."""
    scores = csls(a, b)
    own = np.diag(scores)[:, None]
    ranks = 1 + (scores > own).sum(axis=1) + ((scores == own).sum(axis=1) - 1) / 2
    return float((1 / ranks).mean()) if len(ranks) else 0.0


def tensors(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The encoder's arguments."""
    return (
        torch.from_numpy(batch.places),
        torch.from_numpy(batch.visits),
        torch.from_numpy(batch.ratings),
        torch.from_numpy(batch.ages),
    )


def _fit(plan: _Plan, encoder: Encoder, record: Record, folder: Path | None, on_step: OnStep) -> None:
    """The loop: step, count what went wrong, checkpoint."""
    config = plan.config
    parameters = dict(encoder.named_parameters())
    fast = [parameters[name] for name in ("log_weights", "log_temperature")]
    slow = [value for name, value in parameters.items() if name not in ("log_weights", "log_temperature")]
    optimizer = torch.optim.AdamW(
        [{"params": slow, "scale": 1.0}, {"params": fast, "scale": 10.0, "weight_decay": 0.0}],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    state = checkpoint.TrainingState(encoder, optimizer, record, _identity(config, record))
    step = state.resume(folder) if folder is not None else 0
    per_epoch = len(plan.schedule(0))
    total, failures = per_epoch * config.epochs, 0
    while step < total:
        users = plan.schedule(step // per_epoch)[step % per_epoch]
        loss = _step(plan, encoder, optimizer, users, step, total)
        step += 1
        failures = 0 if math.isfinite(loss) else failures + 1
        if failures:
            record.skipped_steps += 1
        else:
            record.losses.append(loss)
        if failures == ROLLBACK_AFTER and folder is not None:
            state.roll_back(folder)
        if folder is not None and step % config.checkpoint_steps == 0 and not failures:
            state.save(folder, step)
        on_step(step, total, loss)


def _identity(config: TrainConfig, record: Record) -> dict[str, Any]:
    """What must not change between a checkpoint and its resumption."""
    return {**config.model_dump(exclude={"threads", "checkpoint_steps"}), "fingerprint": record.fingerprint}


def _step(
    plan: _Plan,
    encoder: Encoder,
    optimizer: torch.optim.Optimizer,
    users: npt.NDArray[np.int64],
    step: int,
    total: int,
) -> float:
    """One update from one batch; returns the loss, and leaves the weights alone if that is not finite."""
    encoder.train()
    torch.manual_seed(plan.config.seed * 1_000_003 + step)
    for group in optimizer.param_groups:
        group["lr"] = plan.config.learning_rate * group["scale"] * _schedule(step, total)
    loss = _loss(plan, encoder, users, np.random.default_rng([plan.config.seed, 2, step]))
    optimizer.zero_grad()
    if not torch.isfinite(loss):
        return float("nan")
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
    if not torch.isfinite(norm):
        return float("nan")
    optimizer.step()
    return float(loss.detach())


def _schedule(step: int, total: int) -> float:
    """Linear warm-up, then cosine to zero."""
    warmup = max(1, int(total * WARMUP_SHARE))
    return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / total)))


def _loss(plan: _Plan, encoder: Encoder, users: npt.NDArray[np.int64], rng: np.random.Generator) -> Tensor:
    """Two-view contrast of the linear part and of the sequence view, plus the masked places."""
    views = plan.views[plan.fold[users[0]]]
    halves = _halves(plan.histories, users, plan.vocabulary.n_rows, rng)
    if halves[0].n_users < 2:
        return sum((p.sum() * 0 for p in encoder.parameters()), torch.tensor(0.0))
    everyone = np.arange(halves[0].n_users)
    sides = [tensors(pad(_sample(half, rng), everyone, plan.config.max_length)) for half in halves]
    temperature = encoder.log_temperature.exp().clamp(0.01, 1)
    linears, sequences, masked = [], [], torch.tensor(0.0)
    for places, visits, ratings, ages in sides:
        strengths = strength(visits, places)
        with torch.no_grad():
            parts, bags = views(places, strengths), views.bags[places]
        linear = encoder.linear(parts)
        linears.append(_unit(linear + encoder.residual(linear)))
        hidden = (torch.rand(places.shape) < plan.config.mask_share) & (places >= FIRST_PLACE_ROW)
        states = encoder.sequence.tokens(bags, places, ratings, ages, hidden)
        sequences.append(encoder.sequence(states, strengths))
        masked = masked + _masked_loss(encoder, views, states, places, hidden, rng) / 2
    contrast = two_view_contrast(linears[0], linears[1], temperature)
    return contrast + two_view_contrast(sequences[0], sequences[1], temperature) + MASKED_WEIGHT * masked


def _sample(half: Histories, rng: np.random.Generator) -> Histories:
    """At most ``TRAIN_LENGTH`` random places of each user, order kept: a few long histories would pad all others."""
    owners = np.repeat(np.arange(half.n_users), half.lengths())
    shuffled = np.lexsort((rng.random(len(owners)), owners))
    place_in_user = np.arange(len(owners)) - half.offsets[owners]
    kept = np.sort(shuffled[place_in_user < TRAIN_LENGTH])
    lengths = np.minimum(half.lengths(), TRAIN_LENGTH)
    return half.keep(kept, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), half.user_ids)


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=1)


def _masked_loss(
    encoder: Encoder, views: LinearViews, states: Tensor, places: Tensor, hidden: Tensor, rng: np.random.Generator
) -> Tensor:
    """Guess the hidden places among them and a random part of the catalogue."""
    n_rows = len(views.bags)
    drawn = torch.from_numpy(rng.integers(FIRST_PLACE_ROW, n_rows, min(n_rows, CANDIDATES)))
    candidates, positions = torch.unique(torch.cat([places[hidden], drawn]), return_inverse=True)
    rows = encoder.sequence.embed_places(views.bags[candidates], candidates)
    return masked_place(encoder.sequence.guess(states[hidden]), rows, positions[: int(hidden.sum())])


@torch.no_grad()
def _parts(plan: _Plan, encoder: Encoder, half: Histories, fold: int) -> tuple[Tensor, Tensor, Tensor]:
    """(linear, residual, sequence) of histories, by the linear views fitted without ``fold``."""
    views = plan.views[fold]
    places, visits, ratings, ages = tensors(pad(half, np.arange(half.n_users), plan.config.max_length))
    strengths = strength(visits, places)
    linear = encoder.linear(views(places, strengths))
    states = encoder.sequence.tokens(views.bags[places], places, ratings, ages, None)
    return linear, encoder.residual(linear), encoder.sequence(states, strengths)


def _choose_gates(plan: _Plan, encoder: Encoder, record: Record) -> None:
    """How much of residual and sequence view to serve, by the twin test on users the weights have not seen."""
    trials: list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = []
    for cut in range(VALIDATION_CUTS):
        rng = np.random.default_rng([plan.config.seed, 4, cut])
        sides: list[list[tuple[Tensor, ...]]] = [[], []]
        partition_seed = rng.integers(2**32)
        for fold in range(FOLDS):
            users = plan.validators[plan.fold[plan.validators] == fold]
            halves = _halves(plan.histories, users, plan.vocabulary.n_rows, np.random.default_rng(partition_seed))
            for side, half in zip(sides, halves, strict=True):
                side.append(_parts(plan, encoder, half, fold))
        trials.append(tuple(tuple(torch.cat(p) for p in zip(*side, strict=True)) for side in sides))  # type: ignore[arg-type]
    for residual in GATES:
        for sequence in GATES:
            encoder.gates.copy_(torch.tensor([residual, sequence]))
            with torch.no_grad():
                mrr = [twin_mrr(encoder.fuse(*a).numpy(), encoder.fuse(*b).numpy()) for a, b in trials]
            record.validation_mrr[f"{residual}/{sequence}"] = float(np.mean(mrr)) if mrr else 0.0
    best = max(record.validation_mrr, key=lambda key: record.validation_mrr[key])
    record.gates = [float(gate) for gate in best.split("/")]
    encoder.gates.copy_(torch.tensor(record.gates))


@torch.no_grad()
def _project(plan: _Plan, encoder: Encoder) -> None:
    """Set the projection to the strongest directions of the training users' wide vectors (uncentred PCA), and the
    prior to their mean direction."""
    rng = np.random.default_rng([plan.config.seed, 5])
    users = np.sort(rng.permutation(plan.histories.n_users)[:PROJECTION_SAMPLE])
    wide = [
        encoder.wide(*tensors(pad(plan.histories, piece, plan.config.max_length)))
        for piece in np.array_split(users, max(1, len(users) // 512))
    ]
    stacked = torch.cat(wide).double()
    encoder.prior.copy_(_unit(stacked.mean(dim=0, keepdim=True))[0])
    _, vectors = torch.linalg.eigh(stacked.T @ stacked)
    encoder.projection.copy_(vectors.flip(1)[:, : encoder.projection.shape[1]])
