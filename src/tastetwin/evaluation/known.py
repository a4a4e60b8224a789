"""Tasks whose answer is known from elsewhere: friendships of the source, and the planted taste of a synthetic town.

Neither is ever tuned on: friends are often met rather than alike, and a planted town is as kind as we made it.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from tastetwin.evaluation.dataset import Truth
from tastetwin.evaluation.metrics import score_blocks

PAIRS: Final = 200_000
"""Random pairs drawn where not all are looked at."""


def friends_auc(
    vectors: npt.NDArray[np.float32], user_ids: npt.NDArray[np.object_], friends: npt.NDArray[np.object_], seed: int
) -> tuple[float, float]:
    """(AUC, MRR) of friendship from similarity alone; NaN without a pair of known users.

    AUC: the chance that a pair of friends is closer than a random pair. MRR: the mean, over users, of the reciprocal
    rank of the nearest friend among everybody. ``vectors`` [n, d] are unit rows of ``user_ids`` [n]; ``friends`` [m, 2]
    pairs of ids, of which those without a vector are passed over.
    """
    pairs = _positions(friends, user_ids)
    if not len(pairs):
        return float("nan"), float("nan")
    close = _cosines(vectors, pairs)
    strangers = _random_pairs(len(vectors), seed)
    ranks = rankdata(np.concatenate([close, _cosines(vectors, strangers)]))[: len(close)]
    auc = (ranks.sum() - len(close) * (len(close) + 1) / 2) / (len(close) * len(strangers))
    return float(auc), _nearest_friend(vectors, pairs)


def _nearest_friend(vectors: npt.NDArray[np.float32], pairs: npt.NDArray[np.int64]) -> float:
    both = np.concatenate([pairs, pairs[:, ::-1]])
    both = both[np.argsort(both[:, 0], kind="stable")]
    users, starts = np.unique(both[:, 0], return_index=True)
    friends = np.split(both[:, 1], starts[1:])
    reciprocals = []
    for start, cosine in score_blocks(vectors[users], vectors):
        for row, scores in enumerate(cosine):
            best = scores[friends[start + row]].max()
            reciprocals.append(1 / max(1, (scores >= best).sum() - 1))  # the user is nearest of all and not counted
    return float(np.mean(reciprocals))


def planted_taste(
    vectors: npt.NDArray[np.float32],
    user_ids: npt.NDArray[np.object_],
    popularity: npt.NDArray[np.float64],
    truth: Truth,
    seed: int,
) -> float:
    """Partial Spearman correlation of similarity with that of true taste, home and popularity held fixed.

    Over random pairs: all are ranked; what same home and a like liking for popular places explain is regressed out of
    both; the rest is correlated. NaN where one of them is constant. ``vectors`` [n, d] are unit rows of ``user_ids``
    [n], all known to ``truth``; ``popularity`` [n] is the mean log popularity of each user's places.
    """
    where = {user: row for row, user in enumerate(truth.user_ids)}
    rows = np.array([where[user] for user in user_ids])
    taste = truth.taste[rows] / np.linalg.norm(truth.taste[rows], axis=1, keepdims=True)
    pairs = _random_pairs(len(vectors), seed)
    homes = truth.homes[rows]
    same_home = (homes[pairs[:, 0]] == homes[pairs[:, 1]]).astype(float)
    alike = rankdata(-np.abs(popularity[pairs[:, 0]] - popularity[pairs[:, 1]]))
    controls = np.stack([np.ones(len(pairs)), same_home, alike], axis=1)
    found, true = (rankdata(_cosines(each, pairs)) for each in (vectors, taste))
    left, right = (each - controls @ np.linalg.lstsq(controls, each, rcond=None)[0] for each in (found, true))
    if np.ptp(found) == 0 or np.ptp(true) == 0:
        return float("nan")
    return float((left @ right) / np.sqrt((left @ left) * (right @ right)))


def _positions(pairs: npt.NDArray[np.object_], user_ids: npt.NDArray[np.object_]) -> npt.NDArray[np.int64]:
    where = {user: row for row, user in enumerate(user_ids)}
    found = [(where[a], where[b]) for a, b in pairs if a in where and b in where and a != b]
    return np.array(found, np.int64).reshape(-1, 2)


def _random_pairs(n: int, seed: int) -> npt.NDArray[np.int64]:
    generator = np.random.default_rng(seed)
    first = generator.integers(0, n, PAIRS)
    return np.stack([first, (first + generator.integers(1, n, PAIRS)) % n], axis=1)


def _cosines(vectors: npt.NDArray[np.float32], pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    return np.asarray(np.einsum("ij,ij->i", vectors[pairs[:, 0]], vectors[pairs[:, 1]]), np.float32)
