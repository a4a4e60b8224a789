"""From a user's favors, as the source names them, to a taste history in vocabulary rows.

The same function serves the batch (through the engine), ``embed`` and, online, a history sent with a request.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tastetwin.features.histories import UNKNOWN_DAY, Histories
from tastetwin.features.vocabulary import NO_ROW, PlaceRows
from tastetwin.schema import LIKE_CONTENTS, LIKED_AT, RATING, REVIEW_PLACE, TIME, USER, VISITED

HISTORY: Final = pa.schema(
    [
        pa.field(USER, pa.string(), nullable=False),
        pa.field("places", pa.list_(pa.int32())),
        pa.field("visits", pa.list_(pa.float32())),
        pa.field("ratings", pa.list_(pa.float32())),
        pa.field("days", pa.list_(pa.int32())),
        pa.field("favors", pa.int32()),
    ]
)
"""history: one row per user with a favor; parallel lists, see ``Histories``; an empty list where no place is usable."""

UNKNOWN_TIME: Final = -(1 << 63)
"""Microseconds that stand for a time nobody knows, before every other."""
DAY: Final = 86_400_000_000
"""Microseconds."""


def history_table(favors: pa.Table, place_rows: PlaceRows) -> pa.Table:
    """``HISTORY`` rows of ``USER_FAVOR`` rows, in their order."""
    return pa.Table.from_batches([to_arrow(*taste_histories(favors, place_rows))])


def taste_histories(favors: pa.Table, place_rows: PlaceRows) -> tuple[Histories, npt.NDArray[np.int32]]:
    """The taste histories of ``USER_FAVOR`` rows, in their order, and [n_users] how many favors each user has.

    Repeated favors of a place (or of one fallback group) become one entry: visits add up, the last time and the mean
    rating stay. A rating is told relative to the user's own mean. Users with no usable place get an empty history.
    """
    reviews = _events(favors.column("review_list"), REVIEW_PLACE, VISITED, RATING)
    likes = _events(favors.column("like_list"), LIKE_CONTENTS, LIKED_AT, None)
    user = np.concatenate([reviews[0], likes[0]])
    row = place_rows.of(pa.concat_arrays([reviews[1], likes[1]]))
    time = np.concatenate([reviews[2], likes[2]])
    rating = np.concatenate([reviews[3], likes[3]])
    user_ids = np.array(favors.column(USER).to_pylist(), dtype=object)
    favor_counts = np.bincount(user, minlength=favors.num_rows).astype(np.int32)
    return from_events(user_ids, user, row, time, rating), favor_counts


def from_events(
    user_ids: npt.NDArray[np.object_],
    user: npt.NDArray[np.int64],
    row: npt.NDArray[np.int32],
    time: npt.NDArray[np.int64],
    rating: npt.NDArray[np.float32],
) -> Histories:
    """The histories of [n_users] users with [n_events] favors.

    Args:
        user_ids: in the order wanted.
        user: whose favor it is, 0 .. n_users - 1; of one user's at one time, the later in this order is the later.
        row: vocabulary rows; ``NO_ROW`` where the place is not usable.
        time: microseconds since 1970 UTC, or ``UNKNOWN_TIME``.
        rating: NaN where unknown.
    """
    n = len(user_ids)
    with np.errstate(invalid="ignore"):  # what is beyond float32 is infinite, and infinite less infinite unknown
        rating = rating - _means(user, rating, n)[user]
    usable = np.flatnonzero(row != NO_ROW)
    in_order = usable[np.lexsort((time[usable], user[usable]))]
    return Histories(user_ids, *_collapse(user[in_order], row[in_order], time[in_order], rating[in_order], n))


def _events(
    column: pa.ChunkedArray, place: str, time: str, rating: str | None
) -> tuple[npt.NDArray[np.int64], pa.Array, npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """[n_events] user positions, place ids, times in microseconds and ratings of a list column."""
    lists = column.combine_chunks()
    user = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    events = lists.flatten()
    places = events.field(place).cast(pa.string())
    times = pc.fill_null(events.field(time).cast(TIME).cast(pa.int64()), UNKNOWN_TIME).to_numpy(zero_copy_only=False)
    if rating is None:
        return user, places, times, np.full(len(user), np.nan, dtype=np.float32)
    ratings = pc.fill_null(events.field(rating).cast(pa.float32()), float("nan")).to_numpy(zero_copy_only=False)
    return user, places, times, ratings


def _means(group: npt.NDArray[np.int64], values: npt.NDArray[np.float32], n: int) -> npt.NDArray[np.float32]:
    """[n] mean of the values of each group that are not NaN; NaN where there is none."""
    known = ~np.isnan(values)
    total = np.bincount(group[known], values[known], minlength=n)
    count = np.bincount(group[known], minlength=n)
    means: npt.NDArray[np.float64] = np.divide(total, count, out=np.full(n, np.nan), where=count > 0)
    return means.astype(np.float32)


def _collapse(
    user: npt.NDArray[np.int64],
    row: npt.NDArray[np.int32],
    time: npt.NDArray[np.int64],
    rating: npt.NDArray[np.float32],
    n_users: int,
) -> tuple[
    npt.NDArray[np.int64],
    npt.NDArray[np.int32],
    npt.NDArray[np.float32],
    npt.NDArray[np.float32],
    npt.NDArray[np.int32],
]:
    """Offsets, places, visits, ratings, days of events sorted by user and time."""
    by_place = np.lexsort((row, user))  # stable: within (user, place) time still ascends
    starts = np.flatnonzero(
        np.diff(user[by_place], prepend=-1).astype(bool) | np.diff(row[by_place], prepend=-1).astype(bool)
    )
    group = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(by_place))))
    last = by_place[np.append(starts[1:], len(by_place)) - 1] if len(starts) else by_place
    mean = _means(group, rating[by_place], len(starts))
    visits = np.bincount(group, minlength=len(starts)).astype(np.float32)
    order = np.argsort(last)  # events are sorted by user, then time: so are their last occurrences
    last = last[order]
    counts = np.bincount(user[last], minlength=n_users)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    when = time[last]
    days = np.where(when == UNKNOWN_TIME, UNKNOWN_DAY, when // DAY).astype(np.int32)
    return offsets, row[last].astype(np.int32), visits[order], mean[order], days


def to_arrow(histories: Histories, favors: npt.NDArray[np.int32]) -> pa.RecordBatch:
    """``HISTORY`` rows of histories and their users' favor counts."""
    offsets = pa.array(histories.offsets, pa.int32())
    lists = (histories.places, histories.visits, histories.ratings, histories.days)
    arrays = [pa.ListArray.from_arrays(offsets, pa.array(values)) for values in lists]
    return pa.record_batch([pa.array(histories.user_ids, pa.string()), *arrays, pa.array(favors)], schema=HISTORY)


def from_arrow(table: pa.Table) -> Histories:
    """Histories of ``HISTORY`` rows, in their order."""
    lists = [table.column(name).combine_chunks() for name in ("places", "visits", "ratings", "days")]
    lengths = pc.list_value_length(lists[0]).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    places, visits, ratings, days = (values.flatten().to_numpy(zero_copy_only=False) for values in lists)
    return Histories(
        np.array(table.column(USER).to_pylist(), dtype=object),
        offsets,
        places.astype(np.int32),
        visits.astype(np.float32),
        ratings.astype(np.float32),
        days.astype(np.int32),
    )
