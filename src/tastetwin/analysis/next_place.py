"""Who has the place that a user favors next: what ``chance`` is measured on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from tastetwin.analysis.chance import Pairs
from tastetwin.analysis.index import Floats, Ints, Vectors
from tastetwin.analysis.scale import ScoreScale
from tastetwin.features.histories import Histories, Vocabulary

NEAREST: Final = 200
STRANGERS: Final = 1_000
"""Others that each user is compared with: the nearest, and a sample of the rest."""
_AT_A_TIME: Final = 64
_TILE: Final = 1 << 17
"""Vectors multiplied at a time: the same sums, to the bit, however the vectors are stored."""

Encode = Callable[[Histories], Floats]


def next_place_pairs(
    histories: Histories,
    vocabulary: Vocabulary,
    users: Ints,
    encode: Encode,
    vectors: Vectors,
    densities: Floats,
    scale: ScoreScale,
    neighbours: int,
    seed: int,
) -> Pairs:
    """Each of ``users`` without their last place, and others who have it or have not.

    Args:
        histories: of everybody, [n].
        vocabulary: what their places are.
        users: positions of those to ask about; training must not have seen them.
        encode: histories -> unit vectors, in the space of ``vectors``.
        vectors: [n, dim] everybody's, of the whole history.
        densities: [n] see ``hubness.density``.
        scale: what a score is worth.
        neighbours: how many a user's own density is measured on; 0 = densities are off.
        seed: of the others drawn.
    """
    last = next_places(histories, vocabulary)
    users = users[last[users] >= 0]
    before = without(histories, last[users]).select(users)
    users, before = users[before.lengths() > 0], before.select(np.flatnonzero(before.lengths() > 0))
    owners = _owners(histories)
    lengths, rng = histories.lengths(), np.random.default_rng(seed)
    parts: list[tuple[npt.NDArray[np.generic], ...]] = []
    for number, (user, cosines) in enumerate(_cosines(users, encode(before), vectors)):
        others, weights = sample_others(cosines - densities / np.float32(2), rng)
        mine = np.sort(cosines)[-1 - neighbours : -1].mean() if neighbours else np.float32(0)
        scores = (cosines[others] - (densities[others] + mine) / 2).astype(np.float32)
        hit = np.isin(others, owners(histories.places[last[user]]))
        parts.append((np.full(len(others), number), scale.percentile(scores), lengths[others], hit, weights))
    return Pairs(*(np.concatenate(part) for part in zip(*parts, strict=True))) if parts else nobody()


def nobody() -> Pairs:
    """No pair at all."""
    none = np.empty(0)
    return Pairs(none.astype(np.int64), none.astype(np.float32), none.astype(np.int64), none.astype(bool), none)


def _cosines(users: Ints, asked: Floats, vectors: Vectors) -> Iterator[tuple[int, Floats]]:
    """Each user with the [n] cosines of everybody; infinite with themselves, whom nothing is asked about."""
    for start in range(0, len(users), _AT_A_TIME):
        queries = asked[start : start + _AT_A_TIME]
        tiles = (vectors[at : at + _TILE] for at in range(0, len(vectors), _TILE))
        block = np.concatenate([queries @ tile.T for tile in tiles], axis=1)
        for user, row in zip(users[start : start + _AT_A_TIME], block, strict=True):
            row[user] = np.inf
            yield int(user), row


def _owners(histories: Histories) -> Callable[[int], Ints]:
    """Vocabulary row -> positions of the users who have it."""
    user_of = np.repeat(np.arange(histories.n_users), histories.lengths())
    order = np.argsort(histories.places, kind="stable")
    starts = np.searchsorted(histories.places[order], np.arange(int(histories.places.max(initial=0)) + 2))
    return lambda row: user_of[order[starts[row] : starts[row + 1]]]


def next_places(histories: Histories, vocabulary: Vocabulary) -> Ints:
    """[n_users] where in ``histories.places`` the last place is that was favored once; -1 where there is none.

    Fallback groups stand for many places and are none.
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
    """Others to compare a user with, by their [n] scores, and how many each stands for.

    The ``NEAREST`` of them, and ``STRANGERS`` drawn from the rest. The user's own score is infinite, and is left out.
    """
    n = len(scores)
    order = np.argpartition(-scores, min(NEAREST, n - 1))
    near, far = order[: NEAREST + 1], order[NEAREST + 1 :]
    near = near[np.isfinite(scores[near])]
    drawn = rng.choice(far, min(STRANGERS, len(far)), replace=False)
    share = len(far) / max(len(drawn), 1)
    return np.concatenate([near, drawn]), np.concatenate([np.ones(len(near)), np.full(len(drawn), share)])
