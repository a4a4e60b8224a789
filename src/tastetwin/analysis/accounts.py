"""Accounts that are one person's, or nobody's: near-identical histories, farms around one place, bursts.

The top of a raw similarity list is full of them. Accounts of one *cluster* never meet, and one of them is shown to
others; an account that fits the pattern of a program is shown to nobody. All of them keep their own list.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from tastetwin.analysis.index import Ints
from tastetwin.config import ListsConfig
from tastetwin.features.histories import UNKNOWN_DAY, Histories, Vocabulary

Mask = npt.NDArray[np.bool_]
Hashes = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]
Edges = tuple[Ints, Ints]

MIN_PLACES: Final = 5
"""With fewer places, two people who share them all are no surprise."""
FARM_VISITS: Final = 3
FARM_PLACES: Final = 10
"""An account lives for one place with at least so many visits there, most of all it has, and at most so many places."""
SOURCE_DAY_SHARE: Final = 0.1
"""Of the ordinary users, from which on a day that holds most of what they have is the source's (an import), and says
nothing of anybody; people who are new are fewer than that a day."""
_BANDS: Final = 12
_ROWS: Final = 4
"""MinHash: two histories are compared if 4 hashes agree in one of 12 bands: 99.99 % of pairs with a Jaccard overlap of
.9, 99.8 % of .8, one in 50 of .2."""


def duplicate_edges(histories: Histories, vocabulary: Vocabulary, overlap: float) -> Edges:
    """Pairs of users (the earlier one first) whose sets of places overlap by at least that Jaccard, and not by chance.

    Candidates by MinHash and banding (Broder 1997; Leskovec, Rajaraman & Ullman 2014, ch. 3), each then compared in
    full with the first two of its band; equal sets are always found. Fallback groups stand for many places, so only
    users with ``MIN_PLACES`` places of their own right are compared.

    Where a source has a dozen places, many people have the same five. So what a pair shares must be rarer than one pair
    in all: the product of each shared place's share of the visitors below 1 / pairs. Copies do not make their places
    common, since accounts with equal sets count as one visitor.
    """
    user_of = np.repeat(np.arange(histories.n_users), histories.lengths())
    named = np.bincount(user_of[~vocabulary.is_group[histories.places]], minlength=histories.n_users)
    compared = np.flatnonzero(named >= MIN_PLACES)
    if not len(compared):
        return compared, compared
    chosen = histories.select(compared)
    pairs = np.unique(np.concatenate([_candidates(band) for band in _bands(chosen)]), axis=0)
    alike, rarity = _in_common(chosen, pairs[:, 0], pairs[:, 1])
    possible = max(len(compared) * (len(compared) - 1) / 2, 1)
    near = pairs[(alike >= overlap) & (rarity > np.log(possible))]
    return compared[near[:, 0]], compared[near[:, 1]]


def _bands(histories: Histories) -> list[Hashes]:
    """[n_users] per band a hash of four MinHashes; of users with at least one place each."""
    starts = histories.offsets[:-1]
    seeds = np.arange(1, _BANDS * _ROWS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    bands = []
    for band in range(_BANDS):
        key = np.zeros(histories.n_users, np.uint64)
        for seed in seeds[band * _ROWS : (band + 1) * _ROWS]:
            least = np.minimum.reduceat(_mixed(histories.places.astype(np.uint64) + seed), starts)
            key = _mixed(key ^ least)
        bands.append(key)
    return bands


def _candidates(band: Hashes) -> Ints:
    """[m, 2] each user with the first and with the one before of those with the same key."""
    order = np.argsort(band, kind="stable")
    new = np.diff(band[order], prepend=band[order[:1]] ^ np.uint64(1)).astype(bool)
    first = order[np.flatnonzero(new)][np.cumsum(new) - 1]
    with_first = np.stack([first[~new], order[~new]], axis=1)
    with_before = np.stack([np.roll(order, 1)[~new], order[~new]], axis=1)
    return np.concatenate([with_first, with_before])


def _in_common(histories: Histories, first: Ints, second: Ints) -> tuple[Floats, Floats]:
    """[m] of pairs of users: shared places over all places, and the sum of the shared places' rarity.

    A place's rarity is -ln of the share of all different sets of places that it is in; one set more, without it, keeps
    a source of nothing but copies from having no rare place.
    """
    import scipy.sparse as sp

    n_users, n_rows = histories.n_users, int(histories.places.max()) + 1
    ones = np.ones(len(histories.places), np.int32)
    visits = sp.csr_matrix((ones, histories.places, histories.offsets), shape=(n_users, n_rows))
    sets = np.add.reduceat(_mixed(histories.places.astype(np.uint64)), histories.offsets[:-1])
    _, different = np.unique(sets, return_index=True)
    visitors = np.asarray(visits[different].sum(axis=0)).ravel()
    rarity = np.log((len(different) + 1) / np.maximum(visitors, 1))
    shared = visits[first].multiply(visits[second]).tocsr()
    n_shared, lengths = np.diff(shared.indptr), histories.lengths()
    return n_shared / (lengths[first] + lengths[second] - n_shared), shared @ rarity


def _mixed(x: Hashes) -> Hashes:
    """splitmix64 (Steele, Lea & Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def farm_edges(histories: Histories, vocabulary: Vocabulary, accounts: int) -> Edges:
    """Pairs (the first of the farm, another of it) of accounts that live for one and the same place.

    A farm are at least ``accounts`` of them, and at least half of the place's visitors: a place that others go to as
    well, however faithful some are, is none. Nor is a fallback group, which stands for many places.
    """
    n, user_of = histories.n_users, np.repeat(np.arange(histories.n_users), histories.lengths())
    order = np.lexsort((histories.visits, user_of))  # the last one of a user is the most visited
    has = np.flatnonzero(histories.lengths())
    favorite = order[histories.offsets[has + 1] - 1]
    total = np.bincount(user_of, histories.visits, minlength=n)[has]
    most = histories.visits[favorite]
    single = ~vocabulary.is_group[histories.places[favorite]]
    devoted = single & (most >= FARM_VISITS) & (most > total / 2) & (histories.lengths()[has] <= FARM_PLACES)
    users, places = has[devoted], histories.places[favorite[devoted]]
    visitors = np.bincount(histories.places)
    place, first, member, size = np.unique(places, return_index=True, return_inverse=True, return_counts=True)
    farm = (size >= accounts) & (2 * size >= visitors[place])
    inside = farm[member]
    return users[first[member[inside]]], users[inside]


def bursts(histories: Histories, places: int) -> Mask:
    """[n_users] whose history has at least so many ``places`` of one day, and those are most of all it has.

    Not where that day holds most of what many ordinary users have: then their source wrote it so.
    """
    lengths = histories.lengths()
    user_of = np.repeat(np.arange(histories.n_users), lengths)
    dated = histories.days != UNKNOWN_DAY
    keys = user_of[dated] << 32 | (histories.days[dated].astype(np.int64) & 0xFFFFFFFF)
    keys, counts = np.unique(keys, return_counts=True)
    users, days = keys >> 32, keys & 0xFFFFFFFF
    mostly = 2 * counts > lengths[users]
    large = mostly & (counts >= places)
    found = np.zeros(histories.n_users, bool)
    found[users[large]] = True
    ordinary = (lengths >= MIN_PLACES) & ~found
    of_day, together = np.unique(days[mostly & ordinary[users]], return_counts=True)
    imported = of_day[together > SOURCE_DAY_SHARE * ordinary.sum()]
    found[users[large & np.isin(days, imported)]] = False
    return found


def cluster_labels(histories: Histories, vocabulary: Vocabulary, rules: ListsConfig) -> Ints:
    """[n_users] the position of the first user (by id) of each one's cluster; most users' own position."""
    import scipy.sparse as sp
    from scipy.sparse.csgraph import connected_components

    edges = [
        duplicate_edges(histories, vocabulary, rules.duplicate_overlap),
        farm_edges(histories, vocabulary, rules.farm_accounts),
    ]
    first, second = (np.concatenate([edge[side] for edge in edges]) for side in (0, 1))
    n = histories.n_users
    graph = sp.coo_matrix((np.ones(len(first), np.int8), (first, second)), shape=(n, n))
    _, component = connected_components(graph, directed=False)
    _, at = np.unique(component, return_index=True)
    labels: Ints = at[component].astype(np.int64)
    return labels
