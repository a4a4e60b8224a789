"""A small world whose taste is known: users and places have hidden vectors, users favor the places near them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from tastetwin.config import EvaluateConfig
from tastetwin.evaluation.evaluate import HeldOut, evaluate
from tastetwin.evaluation.health import ServedUsers
from tastetwin.evaluation.records import Evaluation
from tastetwin.evaluation.tasks import PseudoUsers, disjoint_pairs
from tastetwin.features.histories import FIRST_PLACE_ROW, UNKNOWN_DAY, Histories, Vocabulary
from tastetwin.features.holdout import choose_holdout
from tastetwin.features.home import home_regions

CONFIG = EvaluateConfig(holdout_share=0.3, bootstrap=200)
CATEGORIES, REGIONS = 8, 4


def make_histories(rows_of: dict[str, list[int]]) -> Histories:
    """Histories from user id -> vocabulary rows."""
    ids = sorted(rows_of)
    places = np.asarray([row for user in ids for row in rows_of[user]], np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(rows_of[user]) for user in ids])]).astype(np.int64)
    ones, unknown = np.ones(len(places), np.float32), np.full(len(places), np.nan, np.float32)
    days = np.full(len(places), UNKNOWN_DAY, np.int32)
    return Histories(np.asarray(ids, object), offsets, places, ones, unknown, days)


def make_vocabulary(places: int, regions: npt.NDArray[np.int32], categories: npt.NDArray[np.int32]) -> Vocabulary:
    """Reserved rows and ``places`` places with one category each."""
    rows = FIRST_PLACE_ROW + places
    reserved = [0] * (FIRST_PLACE_ROW + 1)
    return Vocabulary(
        np.asarray([""] * FIRST_PLACE_ROW + [f"p{i}" for i in range(places)], object),
        np.zeros(rows, bool),
        np.concatenate([reserved, np.arange(1, places + 1)]).astype(np.int64),
        categories,
        np.concatenate([[-1] * FIRST_PLACE_ROW, regions]).astype(np.int32),
        np.arange(CATEGORIES),
        np.asarray([f"r{i}" for i in range(REGIONS)], object),
        np.full((rows, 2), np.nan, np.float32),
    )


@dataclass(frozen=True)
class World:
    """Everything an evaluation needs, and the truth."""

    histories: Histories
    vocabulary: Vocabulary
    taste: npt.NDArray[np.float32]
    """[n_users, 8] unit rows: the vectors a perfect model would give."""
    holdout: npt.NDArray[np.bool_]
    pseudo: PseudoUsers

    @property
    def train(self) -> Histories:
        """The users not held out."""
        return self.histories.select(np.flatnonzero(~self.holdout).astype(np.int64))


def unit(x: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Rows at unit length."""
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)


@cache
def world(users: int = 500, places: int = 300, seed: int = 0) -> World:
    """Users favor 12 to 30 places, drawn by taste."""
    generator = np.random.default_rng(seed)
    taste, kinds = unit(generator.standard_normal((users, 8))), unit(generator.standard_normal((places, 8)))
    wish = 6 * taste @ kinds.T + generator.gumbel(size=(users, places)) * 0.7
    rows_of = {
        f"user{u:04}": [int(p) + FIRST_PLACE_ROW for p in np.argsort(-wish[u])[: generator.integers(12, 31)]]
        for u in range(users)
    }
    histories = make_histories(rows_of)
    regions = generator.integers(0, REGIONS, places).astype(np.int32)
    vocabulary = make_vocabulary(places, regions, np.argmax(kinds, axis=1).astype(np.int32))
    holdout = choose_holdout(histories, CONFIG, CONFIG.seed)
    pseudo = disjoint_pairs(histories, holdout, vocabulary, CONFIG, CONFIG.seed)
    return World(histories, vocabulary, taste, holdout, pseudo)


def noisy(vectors: npt.NDArray[np.float32], noise: float, seed: int) -> npt.NDArray[np.float32]:
    """What an imperfect model makes of true taste; noise 0 is perfect, large noise is a random model."""
    return unit(vectors + noise * unit(np.random.default_rng(seed).standard_normal(vectors.shape)))


@dataclass(frozen=True)
class ModelRun:
    """What a run hands to the evaluation; tests spoil one part of it."""

    a: npt.NDArray[np.float32]
    b: npt.NDArray[np.float32]
    vectors: npt.NDArray[np.float32]
    twins: npt.NDArray[np.int32]


def nearest(vectors: npt.NDArray[np.float32], k: int = 20) -> npt.NDArray[np.int32]:
    """[n, k] exact twins by cosine."""
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :k].astype(np.int32)


def model_run(seed: int, noise: float = 0.6, planted: World | None = None) -> ModelRun:
    """A model that sees true taste through noise."""
    planted = planted or world()
    truth = dict(zip(planted.histories.user_ids, planted.taste, strict=True))
    held_out = np.asarray([truth[user] for user in planted.pseudo.a.user_ids])
    vectors = noisy(planted.taste, noise, 7_000 + seed)
    a, b = noisy(held_out, noise, 1_000 + seed), noisy(held_out, noise, 4_000 + seed)
    return ModelRun(a, b, vectors, nearest(vectors))


def evaluated(run: ModelRun, planted: World | None = None, baselines: tuple[str, ...] = ()) -> Evaluation:
    """The evaluation of a run beside the published one, ``model_run(0)``; by default without baselines."""
    from tastetwin.evaluation.baselines import BASELINES

    planted = planted or world()
    before = model_run(seed=0, planted=planted) if planted.pseudo.n_users else run
    held_out = HeldOut(planted.train, planted.vocabulary, planted.pseudo, run.a, run.b, (before.a, before.b))
    served = ServedUsers(
        planted.histories,
        home_regions(planted.histories, planted.vocabulary),
        planted.vocabulary.region_codes,
        run.vectors,
    )
    return evaluate(held_out, served, run.twins, CONFIG, baselines={name: BASELINES[name] for name in baselines})
