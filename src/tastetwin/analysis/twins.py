"""Every user's twin list: the K closest users who may be shown, closest first."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tastetwin.analysis.hubness import density, draw_bank
from tastetwin.analysis.index import SLACK, ApproximateIndex, ExactIndex, Floats, Ints, Shown, rank, top_k
from tastetwin.analysis.scale import ScoreScale, random_pair_scores
from tastetwin.config import AnalyzeConfig
from tastetwin.progress import Progress, silent

BLOCK: Final = 8192
"""Queries searched at a time: bounds memory, changes no result of the exact search."""
_TUNING_QUERIES: Final = 1000


@dataclass(frozen=True)
class SearchFacts:
    """How the lists were made; goes into the manifest."""

    index: str
    """faiss factory string."""
    probes: int
    """Cells looked into per query; 0 for the exact search."""
    recall: float
    """recall@k against the exact search on a sample of users; 1 for the exact search."""
    shown: int
    """Users who may appear in lists."""
    hidden_duplicates: int
    """Users who have a list but appear in nobody's, because an earlier account has the same places."""

    def to_json(self) -> dict[str, Any]:
        """Small JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Twins:
    """The lists. Higher score = closer: ``cos(x, y) - (r(x) + r(y)) / 2``, the same seen from either side.

    r is the mean cosine to the nearest ``csls_neighbours`` users (``hubness.density``); 0 when that is off, and then
    the score is the cosine.
    """

    neighbours: npt.NDArray[np.int32]
    """[n_users, k] positions of the twins, closest first, ties by position; -1 where there is nobody left."""
    scores: Floats
    """[n_users, k]; -inf where there is nobody left."""
    scale: ScoreScale
    """What a score is worth among random pairs."""
    facts: SearchFacts


def find_twins(
    vectors: Floats,
    config: AnalyzeConfig,
    labels: Ints | None = None,
    may_be_shown: npt.NDArray[np.bool_] | None = None,
    progress: Progress = silent,
    block: int = BLOCK,
) -> Twins:
    """The twins of every user.

    Args:
        vectors: [n_users, dim] unit vectors, in the ascending order of user ids.
        config: k, exact or approximate search, hubness correction, seed.
        labels: [n_users] see ``duplicates.duplicate_labels``: users of one label are never shown to each other, and
            only the first of them who may be shown is shown to others. None: everybody has their own.
        may_be_shown: [n_users] False for users who may be in nobody's list (opted out). None: all may.
        progress: told of users done.
        block: queries at a time.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    n = len(vectors)
    labels = np.arange(n, dtype=np.int64) if labels is None else labels
    allowed = np.arange(n) if may_be_shown is None else np.flatnonzero(may_be_shown)
    members = _first_of_each(labels, allowed)
    bank = draw_bank(members, config.csls_bank, config.seed)
    densities = density(vectors, labels, bank, config.csls_neighbours)
    shown = Shown(vectors[members], densities[members] / np.float32(2), labels[members])
    index, recall = _choose_index(vectors, labels, shown, config)
    neighbours, scores = _all_lists(index, vectors, labels, config.k, block, progress)
    scores -= densities[:, None] / np.float32(2)
    return Twins(
        np.where(neighbours >= 0, members.astype(np.int32)[neighbours] if len(members) else -1, np.int32(-1)),
        scores,
        _scale(vectors, densities, config.seed),
        SearchFacts(index.name, _probes(index), recall, len(members), len(allowed) - len(members)),
    )


def _first_of_each(labels: Ints, allowed: Ints) -> Ints:
    _, first = np.unique(labels[allowed], return_index=True)
    return np.sort(allowed[first])


def _scale(vectors: Floats, densities: Floats, seed: int) -> ScoreScale:
    scores = random_pair_scores(vectors, densities, seed) if len(vectors) > 1 else np.zeros(1, np.float32)
    return ScoreScale.of(scores)


def _probes(index: ExactIndex | ApproximateIndex) -> int:
    return index.probes if isinstance(index, ApproximateIndex) else 0


def _choose_index(
    vectors: Floats, labels: Ints, shown: Shown, config: AnalyzeConfig
) -> tuple[ExactIndex | ApproximateIndex, float]:
    """Exact for few users; else the approximate one with the fewest probes that reach ``config.recall``."""
    if shown.size <= config.exact_below:
        return ExactIndex(shown), 1.0
    drawn = np.random.default_rng(config.seed).permutation(len(vectors))[:_TUNING_QUERIES]
    queries, query_labels = np.ascontiguousarray(vectors[drawn]), labels[drawn]
    truth, _ = top_k(ExactIndex(shown), queries, query_labels, config.k)
    index = ApproximateIndex(shown, config.seed)
    return index, tune_probes(index, queries, query_labels, truth, config.recall)


def tune_probes(index: ApproximateIndex, queries: Floats, labels: Ints, truth: Floats, recall: float) -> float:
    """Raise ``index.probes`` in steps of about a quarter until the recall is reached; returns the sample's recall.

    Reached means by one standard error of the sample more than asked: all users are to have it, not just the sample.

    Args:
        index: its ``probes`` is set.
        queries: [m, dim] a sample of users.
        labels: [m] their labels.
        truth: [m, k] scores of their exact lists.
        recall: to be reached; with all cells probed, whatever is reached then is returned.
    """
    k = truth.shape[1]
    index.probes = 0
    while True:
        index.probes = min(index.cells, index.probes + max(1, index.probes // 4))
        _, found = index.candidates(queries, min(k + SLACK, index.shown.size))
        shares = recalls(rank(index.shown, queries, labels, found, k)[0], truth)
        error = float(shares.std() / np.sqrt(len(shares)))
        if shares.mean() - error >= recall or index.probes == index.cells:
            return float(shares.mean())


def recalls(scores: Floats, truth: Floats) -> npt.NDArray[np.float64]:
    """[m] share of each true list [m, k] found, by scores: another user at the same score is as good."""
    wanted = np.isfinite(truth)
    last = np.min(truth, axis=1, where=wanted, initial=np.inf)
    hits = np.isfinite(scores) & (scores >= last[:, None])
    lengths = wanted.sum(axis=1)
    return np.asarray(np.where(lengths == 0, 1.0, hits.sum(axis=1) / np.maximum(lengths, 1)))


def _all_lists(
    index: ExactIndex | ApproximateIndex, vectors: Floats, labels: Ints, k: int, block: int, progress: Progress
) -> tuple[npt.NDArray[np.int32], Floats]:
    """Positions in the index side and scores of everybody's list, a block of queries at a time."""
    n = len(vectors)
    neighbours, scores = np.full((n, k), -1, np.int32), np.full((n, k), -np.inf, np.float32)
    order = _query_order(index, vectors, block)
    for start in range(0, n, block):
        users = order[start : start + block]
        scores[users], neighbours[users] = top_k(index, vectors[users], labels[users], k)
        progress(min(n, start + block), n)
    return neighbours, scores


def _query_order(index: ExactIndex | ApproximateIndex, vectors: Floats, block: int) -> Ints:
    if isinstance(index, ExactIndex):
        return np.arange(len(vectors), dtype=np.int64)
    return index.cell_order(vectors, block)
