"""A few users' taste histories, the same to the bit as ``taste_histories`` makes, as fast as a request wants them.

The batch's array kernels take a few hundred microseconds however little they are given. One user has some thirty
favors: a loop over them is done before the kernels have begun. For many users at once the kernels win.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tastetwin.features.favors import Favors
from tastetwin.features.histories import UNKNOWN_DAY, Histories
from tastetwin.features.taste import DAY, UNKNOWN_TIME, from_events
from tastetwin.features.vocabulary import NO_ROW

RowsOf = Callable[[Sequence[str]], Sequence[int]]
"""Place ids -> vocabulary rows, ``NO_ROW`` where nothing is known: ``PlaceIndex.of``."""

_MANY: Final = 16
"""From so many users on, array kernels cost less than a loop."""
_NO_ROW: Final = int(NO_ROW)
_UNKNOWN_DAY: Final = int(UNKNOWN_DAY)
_Entry = tuple[int, float, int, int]
"""Visits of a place, the sum of their relative ratings, how many had one, the last time."""
_NOTHING: Final[_Entry] = (0, 0.0, 0, 0)


class UserHistory(NamedTuple):
    """One user's part of ``Histories``; each [n_places], oldest first."""

    places: npt.NDArray[np.int32]
    visits: npt.NDArray[np.float32]
    ratings: npt.NDArray[np.float32]
    days: npt.NDArray[np.int32]


def history_of(favors: Favors, rows_of: RowsOf) -> UserHistory:
    """The taste history of one user's favors; of no places where none is usable.

    ``favors`` are those that count (``favored``), each kind in the order of ``USER_FAVOR``; ``rows_of`` is asked once.
    """
    ids, times, given = _columns((favors,))
    ratings = _relative(given)
    rows = rows_of(ids)
    found: dict[int, _Entry] = {}
    for at in sorted(range(len(ids)), key=times.__getitem__):
        row = rows[at]
        if row != _NO_ROW:
            visits, total, rated, _ = found.pop(row, _NOTHING)  # taken out and put last
            rating = ratings[at]
            if rating == rating:
                total += rating
                rated += 1
            found[row] = (visits + 1, total, rated, times[at])
    return _arrays(found)


def _columns(users: Sequence[Favors]) -> tuple[list[str], list[int], list[float]]:
    """Place id, time and rating of all users' favors: all reviews, then all likes, as the batch lines them up."""
    reviews = [review for user in users for review in user.reviews]
    likes = [like for user in users for like in user.likes]
    ids = [review.place_id for review in reviews]
    ids += [like.place_id for like in likes]
    times = [UNKNOWN_TIME if (at := review.at) is None else at for review in reviews]
    times += [UNKNOWN_TIME if (at := like.at) is None else at for like in likes]
    ratings = [math.nan if (rating := review.rating) is None else rating for review in reviews]
    ratings += [math.nan] * len(likes)
    return ids, times, ratings


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


def _arrays(found: dict[int, _Entry]) -> UserHistory:
    entries = found.values()
    return UserHistory(
        np.array(list(found), np.int32),
        np.array([visits for visits, _, _, _ in entries], np.float32),
        np.array([total / rated if rated else math.nan for _, total, rated, _ in entries], np.float32),
        np.array([_UNKNOWN_DAY if at == UNKNOWN_TIME else at // DAY for _, _, _, at in entries], np.int32),
    )


def histories_of(user_ids: Sequence[str], favors: Sequence[Favors], rows_of: RowsOf) -> Histories:
    """``history_of`` each user, in their order."""
    if len(favors) < _MANY:
        return joined_histories(user_ids, [history_of(each, rows_of) for each in favors])
    ids, times, ratings = _columns(favors)
    counts = [len(user.reviews) for user in favors] + [len(user.likes) for user in favors]
    user = np.repeat(np.tile(np.arange(len(favors)), 2), np.array(counts, np.int64))
    rows = np.array(rows_of(ids), np.int32)
    with np.errstate(over="ignore"):  # beyond float32 is infinite, as in the batch
        rating = np.array(ratings, np.float64).astype(np.float32)
    return from_events(np.array(user_ids, object), user, rows, np.array(times, np.int64), rating)


def joined_histories(user_ids: Sequence[str], histories: Sequence[UserHistory]) -> Histories:
    """Histories of the given users, in their order."""
    ends = accumulate(len(history.places) for history in histories)
    places, visits, ratings, days = zip(_NONE, *histories, strict=True)
    return Histories(
        np.array(user_ids, object),
        np.array([0, *ends], np.int64),
        np.concatenate(places),
        np.concatenate(visits),
        np.concatenate(ratings),
        np.concatenate(days),
    )


_NONE: Final = _arrays({})
