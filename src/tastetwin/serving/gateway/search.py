"""The twins of a few vectors among everybody the gateway knows: the search of the run, for some users at a time.

``analysis.twins`` makes everybody's lists with the same score, ``cos - (r + r) / 2``, and the same rules but one: the
exposure cap is a rule of the day, and what is answered in between is not counted. No list depends on which others are
made with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from tastetwin.analysis.index import ROUNDING, SLACK, Floats, Ints, pair_dots, row_dots, sort_keys
from tastetwin.serving.gateway.pack import Near, Positions
from tastetwin.serving.gateway.people import Fresh, Mask, People

DEEPER: Final = 4
"""How much deeper the next search goes for a list that is still short."""
_STEP: Final = 16
"""Depths are multiples of it, so that those who exclude a few more or less are searched for together."""
_CELLS: Final = 1 << 20
"""Pairs looked at together, at most, as long as those of one asker are no more."""
_OWNER: Final = 32
"""Bits of a position, beneath the number of the asker."""


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
    crowding: np.float32 | None = None
    """r, where it is known."""


@dataclass(frozen=True)
class _Found:
    """Pairs of an asker and somebody who may be shown to them."""

    owners: Ints
    """[m] numbers of the askers."""
    people: Ints
    """[m] positions."""
    homes: Positions
    """[m] index of the home region of whom is shown."""
    scores: Floats
    """[m] ``cos - r / 2``, r of whom is shown."""

    def at(self, which: Ints | Mask) -> _Found:
        """These of them."""
        return _Found(self.owners[which], self.people[which], self.homes[which], self.scores[which])


def closest(people: People, asker: Asker, k: int) -> Near:
    """The ``k`` closest people who may be shown to the asker; fewer only where nobody is left."""
    return closest_each(people, [asker], k)[0]


def closest_each(people: People, askers: Sequence[Asker], k: int) -> list[Near]:
    """``closest`` of each asker."""
    size, found = people.pack.index.size, [_NOBODY] * len(askers)
    depths = {at: _depth(2 * k + SLACK + len(asker.excluded), size) for at, asker in enumerate(askers)}
    while depths:
        depth = min(depths.values())
        group = [at for at, wanted in depths.items() if wanted == depth]
        for at, near in zip(group, _ranked(people, [askers[at] for at in group], k, depth), strict=True):
            if len(near.people) >= k or depth >= size:
                found[at] = near
                del depths[at]
            else:
                depths[at] = _depth(depth * DEEPER, size)
    halves = _crowding(people, askers) / np.float32(2)
    return [Near(near.people, near.scores - half) for near, half in zip(found, halves, strict=True)]


_NOBODY: Final = Near(np.empty(0, np.int64), np.empty(0, np.float32))


def _depth(wanted: int, size: int) -> int:
    return min(-(-wanted // _STEP) * _STEP, size)


def _crowding(people: People, askers: Sequence[Asker]) -> Floats:
    """[n] r of the askers."""
    told = np.array([np.nan if asker.crowding is None else asker.crowding for asker in askers], np.float32)
    unknown = [at for at, asker in enumerate(askers) if asker.crowding is None]
    if unknown:
        vectors = np.stack([askers[at].vector for at in unknown])
        told[unknown] = people.pack.crowding_of(vectors, [askers[at].own for at in unknown])
    return told


def _ranked(people: People, askers: Sequence[Asker], k: int, depth: int) -> list[Near]:
    """For each asker the first ``k``, by ``cos - r / 2``, ties by position, of whom is found within ``depth``."""
    fresh = people.fresh()
    together = max(1, _CELLS // max(1, depth, len(fresh.people)))
    lists: list[Near] = []
    for start in range(0, len(askers), together):
        part = askers[start : start + together]
        vectors = np.stack([asker.vector for asker in part])
        found = _in_order(_allowed(people, part, _of_run(people, vectors, depth)))
        if len(fresh.people):
            since = _since(fresh, vectors, _least(found, len(part), k))
            found = _in_order(_joined(found, _allowed(people, part, since)))
        lists += _cut(found, len(part), k)
    return lists


def _of_run(people: People, vectors: Floats, depth: int) -> _Found:
    """Whom the index proposes, those left out of whom the run's vector no longer stands."""
    pack = people.pack
    at = pack.index.candidates(vectors, depth)
    members = np.ascontiguousarray(pack.members[at], np.int64)
    scores = pair_dots(vectors, pack.vectors, members) - pack.crowding[members] / np.float32(2)
    owners, ranks = np.nonzero((at >= 0) & ~people.is_replaced(members))
    found = members[owners, ranks]
    return _Found(owners, found, pack.homes[found], scores[owners, ranks])


def _since(fresh: Fresh, vectors: Floats, least: Floats) -> _Found:
    """Those with favors since the run of whom the score is, but for rounding, not below [n] ``least``."""
    half = fresh.crowding / np.float32(2)
    near = vectors @ fresh.vectors.T - half
    owners, at = np.nonzero((near > (least - ROUNDING)[:, None]) & fresh.shown)
    scores = row_dots(vectors[owners], fresh.vectors[at]) - half[at]
    return _Found(owners, fresh.people[at], fresh.homes[at], scores)


def _least(found: _Found, askers: int, k: int) -> Floats:
    """[askers] score of the k-th found, in order; -inf where there are fewer."""
    starts = np.searchsorted(found.owners, np.arange(askers + 1))
    full = np.flatnonzero(starts[1:] - starts[:-1] >= k)
    least = np.full(askers, -np.inf, np.float32)
    least[full] = found.scores[starts[full] + k - 1]
    return least


def _allowed(people: People, askers: Sequence[Asker], found: _Found) -> _Found:
    """Those who may be shown to the asker: not hidden, not excluded, of a region that the run's rule allows."""
    allowed = ~people.hidden[found.people]
    region = people.pack.manifest.region
    if region != "any":
        mine = np.array([asker.home for asker in askers])[found.owners]
        allowed &= _of_region(found.homes, mine, region)
    excluded = sorted(owner << _OWNER | each for owner, asker in enumerate(askers) for each in asker.excluded)
    if excluded:
        allowed &= ~_among(found.owners << _OWNER | found.people, np.array(excluded))
    return found.at(allowed)


def _among(keys: Ints, listed: Ints) -> Mask:
    """[m] whether a key is one of those listed, at least one, ascending."""
    return np.asarray(listed[np.searchsorted(listed, keys).clip(max=len(listed) - 1)] == keys)


def _of_region(homes: npt.NDArray[np.int32], mine: Ints, region: str) -> Mask:
    """As ``pairs.PairRules``: twins of the asker's own home region, or of another."""
    return np.asarray(homes == mine if region == "same" else (homes != mine) | (mine < 0))


def _joined(first: _Found, second: _Found) -> _Found:
    return _Found(
        np.concatenate([first.owners, second.owners]),
        np.concatenate([first.people, second.people]),
        np.concatenate([first.homes, second.homes]),
        np.concatenate([first.scores, second.scores]),
    )


def _in_order(found: _Found) -> _Found:
    """By asker, then score, highest first, then position."""
    return found.at(np.lexsort((sort_keys(found.scores, found.people), found.owners)))


def _cut(found: _Found, askers: int, k: int) -> list[Near]:
    starts = np.searchsorted(found.owners, np.arange(askers + 1)).tolist()
    return [Near(found.people[a : min(b, a + k)], found.scores[a : min(b, a + k)]) for a, b in pairwise(starts)]


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
