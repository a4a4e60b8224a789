"""Every user's twin list: the K closest users who may be shown, closest first."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tastetwin.analysis.cells import Cells
from tastetwin.analysis.hubness import density, draw_bank
from tastetwin.analysis.index import Floats, Ints
from tastetwin.analysis.scale import ScoreScale, random_pair_scores
from tastetwin.analysis.search import BLOCK, Users, search_all
from tastetwin.config import AnalyzeConfig
from tastetwin.progress import Progress, silent


@dataclass(frozen=True)
class SearchFacts:
    """How the lists were made; goes into the manifest."""

    cells: int
    """k-means cells of the shown users; 0 for the exact search."""
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
    cells = None if n * len(members) <= config.exact_below**2 else Cells.fit(vectors, members, config.seed)
    users = Users(vectors, labels, cells)
    densities = density(users, draw_bank(members, config.csls_bank, config.seed), config)
    lists = search_all(users, members, densities[members] / np.float32(2), config.k, config, block, progress)
    return Twins(
        lists.neighbours,
        lists.scores - densities[:, None] / np.float32(2),
        _scale(vectors, densities, config.seed),
        SearchFacts(cells.size if cells else 0, lists.probes, lists.recall, len(members), len(allowed) - len(members)),
    )


def _first_of_each(labels: Ints, allowed: Ints) -> Ints:
    _, first = np.unique(labels[allowed], return_index=True)
    return np.sort(allowed[first])


def _scale(vectors: Floats, densities: Floats, seed: int) -> ScoreScale:
    scores = random_pair_scores(vectors, densities, seed) if len(vectors) > 1 else np.zeros(1, np.float32)
    return ScoreScale.of(scores)
