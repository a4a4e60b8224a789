"""Who has the place that a user favors next: what ``chance`` is measured on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tastetwin.analysis.chance import Pairs
from tastetwin.analysis.index import Floats, Ints, Vectors
from tastetwin.analysis.pairs import PairRules
from tastetwin.analysis.scale import ScoreScale
from tastetwin.features.histories import Histories, Vocabulary

NEAREST: Final = 200
STRANGERS: Final = 1_000
"""Others that each user is compared with: the nearest, and a sample of the rest."""
_COSINES: Final = 1 << 24
"""Held at a time: bounds memory."""
_TILE: Final = 1 << 17
"""Vectors multiplied at a time: the same sums, to the bit, however the vectors are stored."""

Encode = Callable[[Histories], Floats]


@dataclass(frozen=True)
class Everybody:
    """The n users whose lists are made, as the lists see them."""

    vectors: Vectors
    """[n, dim] of the whole histories."""
    labels: Ints
    """[n] users of one label never meet (``accounts.cluster_labels``)."""
    members: Ints
    """Positions of those who may be in lists."""
    bank: Ints
    """Positions that densities are measured against (``hubness.draw_bank``)."""
    neighbours: int
    """On how many of the bank a density is measured; 0 = densities are off."""
    densities: Floats
    """[n] see ``hubness.density``."""
    scale: ScoreScale
    """What a score is worth."""
    rules: PairRules
    """Who may be in whose list."""


def next_place_pairs(
    histories: Histories, vocabulary: Vocabulary, users: Ints, encode: Encode, town: Everybody, seed: int
) -> Pairs:
    """Each of ``users`` without their last place, and others who have it or have not.

    ``users`` are positions among the [n] ``histories``, and training must not have seen them; ``encode`` makes unit
    vectors in the space of the town's; ``seed`` is that of the others drawn.
    """
    last = next_places(histories, vocabulary)
    users = users[last[users] >= 0]
    before = without(histories, last[users]).select(users)
    users, before = users[before.lengths() > 0], before.select(np.flatnonzero(before.lengths() > 0))
    owners = _owners(histories)
    lengths, rng = histories.lengths(), np.random.default_rng(seed)
    parts: list[tuple[npt.NDArray[np.generic], ...]] = []
    for number, (user, cosines) in enumerate(_cosines(users, encode(before), town.vectors)):
        met = town.members[town.labels[town.members] != town.labels[user]]
        met = met[town.rules.of_list(user, met)]
        chosen, weights = sample_others(cosines[met] - town.densities[met] / np.float32(2), rng)
        others = met[chosen]
        scores = (cosines[others] - (town.densities[others] + _density(town, user, cosines)) / 2).astype(np.float32)
        hit = np.isin(others, owners(histories.places[last[user]]))
        parts.append((np.full(len(others), number), town.scale.percentile(scores), lengths[others], hit, weights))
    return Pairs(*(np.concatenate(part) for part in zip(*parts, strict=True))) if parts else nobody()


def _density(town: Everybody, user: int, cosines: Floats) -> float:
    """``hubness.density`` of the vector with these cosines, in whose list the ``user``'s label is not."""
    bank = town.bank[town.labels[town.bank] != town.labels[user]]
    near = min(town.neighbours, len(bank))
    return float(np.partition(cosines[bank], -near)[-near:].mean()) if near else 0.0


def nobody() -> Pairs:
    """No pair at all."""
    none = np.empty(0)
    return Pairs(none.astype(np.int64), none.astype(np.float32), none.astype(np.int64), none.astype(bool), none)


def _cosines(users: Ints, asked: Floats, vectors: Vectors) -> Iterator[tuple[int, Floats]]:
    """Each user with the [n] cosines of everybody."""
    size = max(_COSINES // max(len(vectors), 1), 1)
    for start in range(0, len(users), size):
        queries = asked[start : start + size]
        tiles = (vectors[at : at + _TILE] for at in range(0, len(vectors), _TILE))
        block = np.concatenate([queries @ tile.T for tile in tiles], axis=1)
        for user, row in zip(users[start : start + size], block, strict=True):
            yield int(user), row


def _owners(histories: Histories) -> Callable[[int], Ints]:
    """Vocabulary row -> positions of the users who have it."""
    user_of = np.repeat(np.arange(histories.n_users), histories.lengths())
    order = np.argsort(histories.places, kind="stable")
    starts = np.searchsorted(histories.places[order], np.arange(int(histories.places.max(initial=0)) + 2))
    return lambda row: user_of[order[starts[row] : starts[row + 1]]]


def next_places(histories: Histories, vocabulary: Vocabulary) -> Ints:
    """[n_users] where in ``histories.places`` the last place is that was favored once; -1 where there is none.

    Fallback groups stand for many places and are none: the chance is that of a place that enough people visit to have a
    row of its own.
    """
    once = np.flatnonzero((histories.visits == 1) & ~vocabulary.is_group[histories.places])
    last = np.full(histories.n_users, -1, np.int64)
    last[np.searchsorted(histories.offsets, once, "right") - 1] = once  # ascending: the last one stays
    return last


def without(histories: Histories, favors: Ints) -> Histories:
    """The histories less the given favors (positions in ``places``)."""
    wanted = np.ones(len(histories.places), bool)
    wanted[favors] = False
    return histories.filter(wanted)


def sample_others(scores: Floats, rng: np.random.Generator) -> tuple[Ints, npt.NDArray[np.float64]]:
    """Others to compare a user with, by their [n] scores: positions, and how many each stands for.

    The ``NEAREST`` of them, and ``STRANGERS`` drawn from the rest.
    """
    order = np.argpartition(-scores, NEAREST) if len(scores) > NEAREST else np.arange(len(scores))
    near, far = order[:NEAREST], order[NEAREST:]
    drawn = rng.choice(far, min(STRANGERS, len(far)), replace=False)
    share = len(far) / max(len(drawn), 1)
    return np.concatenate([near, drawn]), np.concatenate([np.ones(len(near)), np.full(len(drawn), share)])
