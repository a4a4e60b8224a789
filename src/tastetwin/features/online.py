"""One user's taste history, the same to the bit as ``taste_histories`` makes, at a fraction of its cost.

The batch's array kernels take a few hundred microseconds however little they are given. One user has some thirty favors:
a loop over them is done before the first kernel has begun, and, user by user, for many users too.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tastetwin.features.favors import UNKNOWN_TIME, Favors
from tastetwin.features.histories import UNKNOWN_DAY, Histories
from tastetwin.features.vocabulary import NO_ROW

_DAY: Final = 86_400_000_000
_NO_ROW: Final = int(NO_ROW)
_UNKNOWN_DAY: Final = int(UNKNOWN_DAY)


class UserHistory(NamedTuple):
    """One user's part of ``Histories``; each [n_places], oldest first."""

    places: npt.NDArray[np.int32]
    visits: npt.NDArray[np.float32]
    ratings: npt.NDArray[np.float32]
    days: npt.NDArray[np.int32]


def history_of(favors: Favors, rows_of: Callable[[Sequence[str]], Sequence[int]]) -> UserHistory:
    """The taste history of one user's favors; of no places where none is usable.

    Args:
        favors: those that count (``favored``), each kind in the order of ``USER_FAVOR``.
        rows_of: place ids -> vocabulary rows, ``NO_ROW`` where nothing is known; ``PlaceIndex.of``.
    """
    reviews, likes = favors
    ids = [review.place_id for review in reviews]
    ids += [like.place_id for like in likes]
    times = [UNKNOWN_TIME if review.at is None else review.at for review in reviews]
    times += [UNKNOWN_TIME if like.at is None else like.at for like in likes]
    ratings = _relative([math.nan if review.rating is None else review.rating for review in reviews])
    ratings += [math.nan] * len(likes)
    rows = rows_of(ids)
    found: dict[int, tuple[int, float, int, int]] = {}
    for at in sorted(range(len(ids)), key=times.__getitem__):
        if (row := rows[at]) != _NO_ROW:
            visits, total, rated, _ = found.pop(row, _NOTHING)  # taken out and put last
            rating = ratings[at]
            if rating == rating:
                total += rating
                rated += 1
            found[row] = (visits + 1, total, rated, times[at])
    return _arrays(found)


_NOTHING: Final = (0, 0.0, 0, 0)


def _relative(ratings: list[float]) -> list[float]:
    """Ratings minus their mean; NaN where unknown. Rounded wherever the batch's float32 arrays round."""
    given = array("f", ratings).tolist()
    total, count = 0.0, 0
    for rating in given:  # one after another: the built-in sum compensates in some versions
        if rating == rating:
            total += rating
            count += 1
    if not count:
        return given
    own = array("f", (total / count,))[0]
    return array("f", [rating - own for rating in given]).tolist()


def _arrays(found: dict[int, tuple[int, float, int, int]]) -> UserHistory:
    """Of rows -> (visits, sum of relative ratings, how many there were, last time)."""
    entries = found.values()
    return UserHistory(
        np.array(list(found), np.int32),
        np.array([visits for visits, _, _, _ in entries], np.float32),
        np.array([total / rated if rated else math.nan for _, total, rated, _ in entries], np.float32),
        np.array([_UNKNOWN_DAY if at == UNKNOWN_TIME else at // _DAY for _, _, _, at in entries], np.int32),
    )


def joined_histories(user_ids: Sequence[str], histories: Sequence[UserHistory]) -> Histories:
    """Histories of the given users, in their order."""
    lengths = [len(history.places) for history in histories]
    places, visits, ratings, days = zip(*histories, strict=True) if histories else ((), (), (), ())
    return Histories(
        np.array(user_ids, object),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.concatenate([_NO_PLACES, *places]),
        np.concatenate([_NO_NUMBERS, *visits]),
        np.concatenate([_NO_NUMBERS, *ratings]),
        np.concatenate([_NO_PLACES, *days]),
    )


_NO_PLACES: Final = np.empty(0, np.int32)
_NO_NUMBERS: Final = np.empty(0, np.float32)
