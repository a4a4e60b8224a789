"""Every user's twin list: the K closest users who may be shown to them, closest first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tastetwin.analysis.cells import Cells
from tastetwin.analysis.fill import fill_lists
from tastetwin.analysis.hubness import density, draw_bank
from tastetwin.analysis.index import Floats, Ints, Vectors
from tastetwin.analysis.pairs import PairRules, no_rules
from tastetwin.analysis.scale import ScoreScale, random_pair_scores
from tastetwin.analysis.search import BLOCK, Users
from tastetwin.config import AnalyzeConfig, ListsConfig
from tastetwin.progress import Progress, silent

NO_CAP: Final = ListsConfig(exposure_cap=None)


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
    """Users who have a list but appear in nobody's, because an earlier account is the same person's."""
    searches: int
    """Searches until lists were full; each after the first was deeper, for those whose lists were still short."""
    short: int
    """Users whose list is shorter than k: nobody is left who may be shown to them and is in few enough lists."""
    max_exposure: int | None
    """In how many lists anybody may be; None = in any number."""


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
    densities: Floats
    """[n_users] r of everybody."""
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
    *,
    rules: PairRules | None = None,
    lists: ListsConfig = NO_CAP,
) -> Twins:
    """The twins of every user.

    Args:
        vectors: [n_users, dim] unit vectors, in the ascending order of user ids.
        config: k, exact or approximate search, hubness correction, seed.
        labels: [n_users] see ``accounts.cluster_labels``: users of one label are never shown to each other, and
            only the first of them who may be shown is shown to others. None: everybody has their own.
        may_be_shown: [n_users] False for users who may be in nobody's list. None: all may.
        progress: told of users done.
        block: queries at a time.
        rules: who may be shown to whom. None: everybody to everybody.
        lists: ``exposure_cap`` and ``mutual`` are used.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    n = len(vectors)
    labels = np.arange(n, dtype=np.int64) if labels is None else labels
    allowed = np.arange(n) if may_be_shown is None else np.flatnonzero(may_be_shown)
    members = first_of_each(labels, allowed)
    cells = None if n * len(members) <= config.exact_below**2 else Cells.fit(vectors, members, config.seed)
    users = Users(vectors, labels, cells)
    densities = density(users, draw_bank(members, config.csls_bank, config.seed), config)
    cap = max_exposure(lists.exposure_cap, config.k, n, len(members))
    room = np.full(n, n if cap is None else cap, np.int64)
    rules = rules or no_rules(n)
    filled = fill_lists(
        users, members, densities, room, rules, config, mutual=lists.mutual, block=block, progress=progress
    )
    facts = SearchFacts(
        cells=cells.size if cells else 0,
        probes=filled.first.probes,
        recall=filled.first.recall,
        shown=len(members),
        hidden_duplicates=len(allowed) - len(members),
        searches=filled.searches,
        short=int((filled.neighbours[:, -1] < 0).sum()),
        max_exposure=cap,
    )
    return Twins(filled.neighbours, filled.scores, densities, scale_of(vectors, densities, config.seed), facts)


def max_exposure(cap: float | None, k: int, users: int, shown: int) -> int | None:
    """In how many lists anybody may be: ``cap`` times the mean of those who may be shown; None = in any number."""
    return None if cap is None else int(np.ceil(cap * k * users / max(shown, 1)))


def first_of_each(labels: Ints, allowed: Ints) -> Ints:
    """Positions, ascending, of the first of each label among those ``allowed``."""
    _, first = np.unique(labels[allowed], return_index=True)
    return np.sort(allowed[first])


def scale_of(vectors: Vectors, densities: Floats, seed: int) -> ScoreScale:
    """What a score of these users is worth."""
    scores = random_pair_scores(vectors, densities, seed) if len(vectors) > 1 else np.zeros(1, np.float32)
    return ScoreScale.of(scores)
