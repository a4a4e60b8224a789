"""The twins of one vector among everybody the gateway knows: the search of the run, a user at a time.

``analysis.twins`` makes everybody's lists with the same score, ``cos - (r + r) / 2``, and the same rules but one: the
exposure cap is a rule of the day, and what is answered in between is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tastetwin.analysis.index import SLACK, Floats, Ints, from_keys, pair_dots, sort_keys
from tastetwin.serving.gateway.pack import Near
from tastetwin.serving.gateway.people import Mask, People

DEEPER: Final = 4
"""How much deeper the next search goes for a list that is still short."""


@dataclass(frozen=True)
class Asker:
    """Whose list is wanted."""

    vector: Floats
    """[dim] unit vector, as lists are searched by."""
    home: int
    """Index of the home region, -1 where unknown."""
    own: frozenset[int] = frozenset()
    """Positions that are the asker's; empty for somebody the gateway does not know."""
    excluded: frozenset[int] = frozenset()
    """Positions never to be shown, the asker's included."""


def closest(people: People, asker: Asker, k: int) -> Near:
    """The ``k`` closest people who may be shown to the asker; fewer only where nobody is left."""
    size = people.pack.index.size
    excluded = np.fromiter(asker.excluded, np.int64, len(asker.excluded))
    depth = min(2 * k + SLACK + len(excluded), size)
    while True:
        found = _ranked(people, asker, excluded, depth)
        if len(found.people) >= k or depth >= size:
            r = np.float32(people.pack.crowding_of(asker.vector, asker.own) / 2)
            return Near(found.people[:k], found.scores[:k] - r)
        depth = min(depth * DEEPER, size)


def _ranked(people: People, asker: Asker, excluded: Ints, depth: int) -> Near:
    """Everybody found within ``depth`` who may be shown, by ``cos - r / 2``, ties by position."""
    pack = people.pack
    proposed = np.asarray(pack.members[pack.index.candidates(asker.vector, depth)], np.int64)
    known = proposed[~people.is_replaced(proposed)]
    scores = pair_dots(asker.vector[None], pack.vectors, known[None])[0] - pack.crowding[known] / np.float32(2)
    since, closeness, homes = people.fresh(asker.vector)
    found = np.concatenate([known, since])
    allowed = _of_region(np.concatenate([pack.homes[known], homes]), asker.home, pack.manifest.region)
    allowed &= ~people.hidden[found] & ~np.isin(found, excluded)
    keys = np.sort(sort_keys(np.concatenate([scores, closeness])[allowed].astype(np.float32), found[allowed]))
    ordered, at = from_keys(keys)
    return Near(at, ordered)


def _of_region(homes: npt.NDArray[np.int32], mine: int, region: str) -> Mask:
    """As ``pairs.PairRules``: twins of any home region, of the asker's own, or of another."""
    if region == "any":
        return np.ones(len(homes), bool)
    return np.asarray(homes == mine if region == "same" else (homes != mine) | (mine < 0))


def listed(people: People, position: int, excluded: frozenset[int], k: int) -> Near | None:
    """The first ``k`` of the run's own list of a person, without whom it must not show; None where too few are left.

    A list that names everybody it could is as long as it gets.
    """
    stored = people.pack.stored_list(position)
    allowed = ~people.hidden[stored.people] & ~np.isin(stored.people, list(excluded))
    kept = np.flatnonzero(allowed)[:k]
    if len(kept) < k and len(stored.people) == people.pack.manifest.k:
        return None
    return Near(stored.people[kept], stored.scores[kept])
