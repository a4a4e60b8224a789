"""Before the first step: who learns, who chooses, and the linear views, in full and without each fold of users."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from tastetwin.config import TrainConfig
from tastetwin.features.histories import Histories, Vocabulary
from tastetwin.model.batches import cut_catalogue
from tastetwin.model.encoder import Encoder, LinearViews, Shape
from tastetwin.model.fits import Fits
from tastetwin.model.linear import csls, fit_ials, strength_matrix
from tastetwin.model.views import N_OTHER_BAGS, LinearTables, align, fit_tables, kinds_of_place
from tastetwin.model.workers import Arrays, Workers

FOLDS: Final = 3
ALPHAS: Final = (10.0, 30.0, 100.0)
MIN_VIEW: Final = 3
"""Places each half of a user needs to be a training pair."""
VALIDATION_SHARE: Final = 0.2
MAX_VALIDATION: Final = 1_000

_FIT: Final = "fit-{number}"
"""Name of a fit where it is kept; 0 is that on all users, the others are those without a fold."""
_ALPHA: Final = "fit-alpha"

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """Everything a training step needs; made once, the same for the same data, config and seed."""

    histories: Histories
    vocabulary: Vocabulary
    config: TrainConfig
    fold: npt.NDArray[np.int64]
    learners: npt.NDArray[np.int64]
    validators: npt.NDArray[np.int64]
    views: list[LinearViews]
    """Per fold, fitted without its users."""

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


def prepare(
    histories: Histories,
    vocabulary: Vocabulary,
    config: TrainConfig,
    group: Workers,
    tell: Tell,
    fits: Fits | None = None,
) -> tuple[Plan, Encoder]:
    """Fit the linear views (process 0 does) but those in ``fits``, and build the untrained encoder on them."""
    rng = np.random.default_rng([config.seed, 0])
    fold = rng.permutation(histories.n_users) % FOLDS
    learners, validators = _split_validation(histories, rng)
    fitted = fit_views(histories, vocabulary, fold, config, tell, fits or Fits()) if group.rank == 0 else []
    arrays = group.share({f"{at}/{name}": x for at, one in enumerate(fitted) for name, x in _as_arrays(one).items()})
    full, *parts = (_from_arrays(arrays, f"{at}/") for at in range(FOLDS + 1))
    torch.manual_seed(config.seed)
    encoder = Encoder(shape_of(config), vocabulary, full, starting_weights(full))
    encoder.log_temperature.data.fill_(math.log(config.temperature))
    plan = Plan(histories, vocabulary, config, fold, learners, validators, [LinearViews(part) for part in parts])
    return plan, encoder


def shape_of(config: TrainConfig) -> Shape:
    """The encoder's shape, by the settings."""
    return Shape(config.dim, config.width, config.layers, config.heads, config.dropout)


def starting_weights(tables: LinearTables) -> Tensor:
    """[number of views] as in *full linear*: histograms count half of all the others together."""
    n_histograms = len(tables.bag_sizes) - N_OTHER_BAGS
    n_others = N_OTHER_BAGS + len(tables.unwhiten)
    histograms = [0.5] * n_histograms
    return torch.tensor([n_others**-0.5] * N_OTHER_BAGS + histograms + [n_others**-0.5] * len(tables.unwhiten))


def _split_validation(
    histories: Histories, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Users to learn from and users to choose by, both long enough to be cut in two."""
    eligible = rng.permutation(np.flatnonzero(histories.lengths() >= 2 * MIN_VIEW))
    size = min(int(len(eligible) * VALIDATION_SHARE), MAX_VALIDATION)
    return np.sort(eligible[size:]), np.sort(eligible[:size])


def fit_views(
    histories: Histories,
    vocabulary: Vocabulary,
    fold: npt.NDArray[np.int64],
    config: TrainConfig,
    tell: Tell,
    fits: Fits,
) -> list[LinearTables]:
    """The fit on all users, then those without each fold, turned onto it; each is kept in ``fits`` when it is finished.

    The fits run side by side, each on one thread, so that their number changes nothing in the result.
    """
    with _side_by_side(config.threads or torch.get_num_threads()) as pool:
        kept = [fits.read(_FIT.format(number=number)) for number in range(FOLDS + 1)]
        found = {number: _from_arrays(arrays) for number, arrays in enumerate(kept) if arrays is not None}
        missing = [number for number in range(FOLDS + 1) if number not in found]
        if missing:
            alpha = _kept_alpha(histories, vocabulary, fold, config.seed, pool, tell, fits)
            matrix, kinds = strength_matrix(histories, vocabulary.n_rows), kinds_of_place(vocabulary)
            parts = {number: _without(matrix, fold == number - 1) if number else matrix for number in missing}

            def fit(number: int) -> LinearTables:
                arrays = _as_arrays(fit_tables(parts[number], vocabulary, kinds, alpha, config.seed))
                fits.keep(_FIT.format(number=number), arrays)
                return _from_arrays(arrays)

            coming = pool.map(fit, missing)
            for number in missing:
                tell(f"fitting linear views {number + 1}/{FOLDS + 1}")
                found[number] = next(coming)
        return [found[0], *pool.map(lambda number: align(found[number], found[0]), range(1, FOLDS + 1))]


def _kept_alpha(
    histories: Histories,
    vocabulary: Vocabulary,
    fold: npt.NDArray[np.int64],
    seed: int,
    pool: ThreadPoolExecutor,
    tell: Tell,
    fits: Fits,
) -> float:
    if (kept := fits.read(_ALPHA)) is not None:
        return float(kept["alpha"])
    tell("tuning linear views")
    alpha = _tune_alpha(histories, vocabulary, fold, seed, pool)
    fits.keep(_ALPHA, {"alpha": np.array(alpha)})
    return alpha


@contextmanager
def _side_by_side(threads: int) -> Iterator[ThreadPoolExecutor]:
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        yield pool


def _without(matrix: sp.csr_matrix, users: npt.NDArray[np.bool_]) -> sp.csr_matrix:
    """The rows of the other users; all of them where there are none."""
    return matrix if users.all() else matrix[~users]


def _tune_alpha(
    histories: Histories, vocabulary: Vocabulary, fold: npt.NDArray[np.int64], seed: int, pool: ThreadPoolExecutor
) -> float:
    """The iALS weight by which users of fold 0 find their other half best, fitted on the other folds."""
    users = np.flatnonzero((fold == 0) & (histories.lengths() >= 2 * MIN_VIEW))[:MAX_VALIDATION]
    rest = strength_matrix(histories.select(np.flatnonzero(fold != 0)), vocabulary.n_rows)
    if len(users) < 2 or rest.nnz == 0:
        return ALPHAS[1]
    cut = halves(histories, users, np.random.default_rng([seed, 3]))
    a, b = (strength_matrix(half, vocabulary.n_rows) for half in cut)

    def score(alpha: float) -> float:
        ials = fit_ials(rest, 32, alpha, seed=seed)
        return twin_mrr(ials.fold_in(a), ials.fold_in(b))

    return ALPHAS[int(np.argmax(list(pool.map(score, ALPHAS))))]


def halves(histories: Histories, users: npt.NDArray[np.int64], rng: np.random.Generator) -> tuple[Histories, Histories]:
    """Both views of the users under one fresh partition of the catalogue; users with a short half are left out."""
    a, b = cut_catalogue(histories, users, rng)
    long_enough = np.flatnonzero((a.lengths() >= MIN_VIEW) & (b.lengths() >= MIN_VIEW))
    return a.select(long_enough).recentred(), b.select(long_enough).recentred()


def twin_mrr(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """Mean reciprocal rank of row i of ``b`` among all rows of ``b`` for row i of ``a``, by CSLS; ties share a rank."""
    scores = csls(a, b)
    own = np.diag(scores)[:, None]
    ranks = 1 + (scores > own).sum(axis=1) + ((scores == own).sum(axis=1) - 1) / 2
    return float((1 / ranks).mean()) if len(ranks) else 0.0


def _as_arrays(tables: LinearTables) -> Arrays:
    """By name, for ``Workers.share`` and ``Fits``; contiguous, so that what is read back lies in memory as it did."""
    known = {"bags": tables.bags, "bag_sizes": np.array(tables.bag_sizes)}
    backs = {f"unwhiten/{at}": back for at, back in enumerate(tables.unwhiten)}
    named = {**known, "factors": tables.factors, **backs, "alpha": np.array(tables.alpha)}
    return {name: np.asarray(array, order="C") for name, array in named.items()}


def _from_arrays(arrays: Arrays, prefix: str = "") -> LinearTables:
    bags, sizes, factors, alpha = (arrays[f"{prefix}{name}"] for name in ("bags", "bag_sizes", "factors", "alpha"))
    backs = tuple(arrays[name] for name in sorted(arrays) if name.startswith(f"{prefix}unwhiten/"))
    return LinearTables(bags, tuple(sizes.tolist()), factors, backs, float(alpha))
