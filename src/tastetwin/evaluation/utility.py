"""Neighbour utility: do the places of a user's twins tell which places the user will visit for the first time?

A list of people is worth as much as what one learns from it. Events are cut in time; twins are found by what came
before; the places of the twins, each weighted by its twin's similarity, rank the places that the user has not visited
yet; the truth is the user's first visits after the cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import scipy.sparse as sp

from tastetwin.evaluation.dataset import Dataset, first_of, split_by_time
from tastetwin.evaluation.metrics import CSLS_NEIGHBOURS, score_blocks
from tastetwin.features.histories import Histories, Vocabulary
from tastetwin.features.holdout import uniform_hashes
from tastetwin.features.home import home_regions
from tastetwin.model.linear import Ials, histories_matrix

PAST_SHARE: Final = 0.8
DAY_SHARE: Final = 0.01
"""More than most services see in a day."""
MIN_PAST: Final = 3
DEPTH: Final = 20
NEIGHBOURS: Final = (20, 50, 100)
"""Lengths of twin lists tried, with and without CSLS; the best on the validation users is reported on the others."""
VALIDATION_SHARE: Final = 0.3

Floats = npt.NDArray[np.float32]
ScoreBlocks = Callable[[], Iterator[tuple[int, Floats]]]
"""Yields (first user, [users, n_rows] scores of places; higher = visited sooner)."""


@dataclass(frozen=True)
class Future:
    """Users with a past and a future."""

    past: Histories
    """[n] everybody's favors before the cut, at least ``MIN_PAST`` distinct places each."""
    matrix: sp.csr_matrix
    """[n, n_rows] binary, of the past."""
    visits: sp.csr_matrix
    """[n, n_rows] binary: first visits after the cut, to places that somebody had visited before it."""
    vocabulary: Vocabulary

    @property
    def judged(self) -> npt.NDArray[np.int64]:
        """Positions of the users with at least one first visit."""
        return np.flatnonzero(np.diff(self.visits.indptr))

    def validation(self, seed: int) -> npt.NDArray[np.bool_]:
        """[n_judged] the users by whom the length of lists, and CSLS or not, are chosen."""
        hashes = uniform_hashes(self.past.user_ids[self.judged], seed, b"utility")
        return np.asarray(hashes < VALIDATION_SHARE)


def cut_in_time(dataset: Dataset) -> Future:
    """The dataset before and after the cut."""
    earlier, later = split_by_time(dataset.favors, PAST_SHARE)
    past = dataset.histories(earlier)
    past = past.select(np.flatnonzero(past.lengths() >= MIN_PAST))
    n_rows = dataset.vocabulary.n_rows
    matrix = histories_matrix(past, n_rows)
    after = dataset.histories(later)
    at = {user: row for row, user in enumerate(after.user_ids)}
    rows = np.array([at.get(user, after.n_users) for user in past.user_ids], np.int64)
    future = sp.vstack([histories_matrix(after, n_rows), sp.csr_matrix((1, n_rows), dtype=np.float32)]).tocsr()[rows]
    known = np.asarray(matrix.sum(axis=0)).ravel() > 0
    news = (future - future.multiply(matrix)).multiply(known[None, :].astype(np.float32)).tocsr()
    news.eliminate_zeros()
    return Future(past, matrix, news, dataset.vocabulary)


def a_day_later(dataset: Dataset, future: Future) -> Histories:
    """[n] the users of ``future.past`` when the next favors are past, too: ``DAY_SHARE`` of all."""
    earlier, later = split_by_time(dataset.favors, PAST_SHARE)
    day = first_of(later, round(DAY_SHARE * len(dataset.favors)))
    histories, known = dataset.histories(pa.concat_tables([earlier, day])), {*future.past.user_ids}
    return histories.select(np.flatnonzero([user in known for user in histories.user_ids]))


def cosines_of_others(vectors: Any) -> Iterator[tuple[int, Floats]]:
    """``score_blocks`` of everybody with everybody else; -inf with themselves."""
    for start, cosine in score_blocks(vectors, vectors):
        rows = np.arange(len(cosine))
        cosine[rows, start + rows] = -np.inf
        yield start, cosine


def crowds(vectors: Any) -> Floats:
    """[n] how near everybody's nearest are, which CSLS takes off: mean cosine of ``CSLS_NEIGHBOURS`` others."""
    near = min(CSLS_NEIGHBOURS, vectors.shape[0] - 1)
    nearest = [np.partition(c, -near, axis=1)[:, -near:].mean(axis=1) for _, c in cosines_of_others(vectors)]
    return np.asarray(np.concatenate(nearest), np.float32)


def twins_places(future: Future, vectors: Any, neighbours: int, crowd: Floats | float = 0) -> ScoreBlocks:
    """Places by the similarity-weighted votes of each user's nearest ``neighbours`` users.

    ``vectors`` [n, d] are unit rows, dense or sparse; similarity is the dot product less half the twin's ``crowd`` [n]
    (CSLS with ``crowds``, in the order of each list; plain with 0), and negative ones do not vote.
    """

    def blocks() -> Iterator[tuple[int, Floats]]:
        for start, cosine in cosines_of_others(vectors):
            k = min(neighbours, cosine.shape[1] - 1)
            similarity = cosine - crowd / 2
            nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
            weights = np.maximum(np.take_along_axis(similarity, nearest, axis=1), 0)
            indptr = np.arange(0, nearest.size + 1, k)
            voters = sp.csr_matrix((weights.ravel(), nearest.ravel(), indptr), shape=cosine.shape)
            yield start, np.asarray((voters @ future.matrix).toarray(), np.float32)

    return blocks


def popularity(future: Future) -> ScoreBlocks:
    """The same places for everybody: the most visited."""
    counts = np.asarray(future.matrix.sum(axis=0), np.float32)
    return lambda: score_blocks(np.ones((future.past.n_users, 1), np.float32), counts.T)


def popularity_at_home(future: Future) -> ScoreBlocks:
    """The most visited places of the user's home region, then those of elsewhere."""
    counts = np.asarray(future.matrix.sum(axis=0), np.float32).ravel()
    homes = home_regions(future.past, future.vocabulary)

    def blocks() -> Iterator[tuple[int, Floats]]:
        for user, home in enumerate(homes):
            at_home = (future.vocabulary.regions == home) & (home >= 0)
            yield user, (counts * np.where(at_home, 1.0, 1e-6)).astype(np.float32)[None]

    return blocks


def item_knn(future: Future) -> ScoreBlocks:
    """Places that share visitors with the user's own: cosine of place columns, own by IDF (Sarwar et al. 2001)."""
    visitors = np.maximum(np.asarray(future.matrix.sum(axis=0)).ravel(), 1)
    columns = (future.matrix @ sp.diags_array((1 / np.sqrt(visitors)).astype(np.float32))).tocsr()
    cosine = (columns.T @ columns).tocsr()
    cosine.setdiag(0)
    idf = np.log1p(future.past.n_users / visitors).astype(np.float32)
    return lambda: score_blocks((future.matrix @ sp.diags_array(idf)).tocsr(), cosine)


def factors(future: Future, model: Ials) -> ScoreBlocks:
    """A factor model as a recommender of places."""
    users = model.solve(future.matrix)
    return lambda: score_blocks(users, model.items)


def ndcg_and_recall(future: Future, scores: ScoreBlocks) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """NDCG@20 (Järvelin & Kekäläinen 2002, binary gains) and recall@20, each [n_judged], among places still unseen."""
    judged = np.zeros(future.past.n_users, bool)
    judged[future.judged] = True
    ndcg, recall = [], []
    for start, block in scores():
        mine = np.flatnonzero(judged[start : start + len(block)])
        seen, wanted = (matrix[start + mine].toarray() > 0 for matrix in (future.matrix, future.visits))
        ranked = np.where(seen, -np.inf, block[mine])
        top = np.lexsort((wanted, -ranked), axis=1)[:, :DEPTH]  # of equal scores the wanted come last
        gains = np.take_along_axis(wanted, top, axis=1)
        discounts = 1 / np.log2(np.arange(2, top.shape[1] + 2))
        ideal = np.cumsum(discounts)[np.minimum(wanted.sum(axis=1), top.shape[1]) - 1]
        ndcg.append((gains * discounts).sum(axis=1) / ideal)
        recall.append(gains.sum(axis=1) / wanted.sum(axis=1))
    return np.concatenate(ndcg), np.concatenate(recall)
