"""From favors to taste histories, beside a slow twin in plain Python."""

from __future__ import annotations

import math
import warnings
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from tastetwin.features.histories import UNKNOWN_DAY, Histories
from tastetwin.features.taste import from_arrow, history_table, taste_histories, to_arrow
from tastetwin.features.user_favor import USER_FAVOR
from tastetwin.features.vocabulary import PlaceRows

ROWS = {"p1": 2, "p2": 3, "p3": 3, "p4": 4, "nothing": -1}
PLACES = PlaceRows(pa.array(list(ROWS)), np.array(list(ROWS.values()), np.int32))
EPOCH = datetime(1970, 1, 1)

times = st.sampled_from([None, *(timedelta(hours=hours) for hours in (-1, 0, 73, 74))])
places = st.sampled_from([*ROWS, "never heard of"])


def moment(after: timedelta | None) -> datetime | None:
    return None if after is None else EPOCH + after


review = st.builds(
    lambda t, p, r: {"review_id": None, "review_rating": r, "review_visited_date": moment(t), "review_place_id": p},
    times,
    places,
    st.sampled_from([None, 1.0, 2.0, 4.5]),
)
like = st.builds(lambda t, p: {"like_regymdt": moment(t), "like_displayid": "d", "like_contentsid": p}, times, places)
users = st.lists(
    st.fixed_dictionaries({"review_list": st.lists(review, max_size=6), "like_list": st.lists(like, max_size=4)}),
    max_size=5,
)


def table(rows: list[dict[str, Any]]) -> pa.Table:
    full = [{"user_idno": f"u{n}", "like_stat_list": [], "like_list": [], "review_list": [], **row}
            for n, row in enumerate(rows)]  # fmt: skip
    return pa.Table.from_pylist(full, USER_FAVOR)


def slow_twin(user: dict[str, Any]) -> list[tuple[int, int, float | None, int]]:
    """(row, visits, rating, day) of each place, by the last visit; among equal times in the order of the lists."""
    ratings = [each["review_rating"] for each in user["review_list"] if each["review_rating"] is not None]
    own = sum(ratings) / len(ratings) if ratings else 0.0
    events = [(e["review_visited_date"], e["review_place_id"], e["review_rating"]) for e in user["review_list"]]
    events += [(e["like_regymdt"], e["like_contentsid"], None) for e in user["like_list"]]
    events.sort(key=lambda event: datetime.min if event[0] is None else event[0])
    found: dict[int, list[tuple[datetime | None, float | None]]] = {}
    for when, place, rating in events:
        row = ROWS.get(place, -1)
        if row >= 0:
            found[row] = [*found.pop(row, []), (when, rating)]  # taken out and put last
    result = []
    for row, visits in found.items():
        known = [rating - own for _, rating in visits if rating is not None]
        last = visits[-1][0]
        day = int(UNKNOWN_DAY) if last is None else (last - EPOCH) // timedelta(days=1)
        result.append((row, len(visits), sum(known) / len(known) if known else None, day))
    return result


def told(histories: Histories, user: int) -> list[tuple[int, int, float | None, int]]:
    at = slice(histories.offsets[user], histories.offsets[user + 1])
    columns = (histories.places[at], histories.visits[at], histories.ratings[at], histories.days[at])
    return [
        (int(p), int(v), None if math.isnan(r) else round(float(r), 5), int(d))
        for p, v, r, d in zip(*columns, strict=True)
    ]


@given(users)
@settings(max_examples=300, deadline=None)
def test_histories_equal_the_slow_twin(rows: list[dict[str, Any]]) -> None:
    """Repeats, ties, unknown times and ratings, fallback rows and unknown places, all mixed."""
    histories, favors = taste_histories(table(rows), PLACES)
    wanted = [
        [(place, visits, None if rating is None else round(float(np.float32(rating)), 5), day)
         for place, visits, rating, day in slow_twin(row)] for row in rows
    ]  # fmt: skip
    assert [told(histories, user) for user in range(len(rows))] == wanted
    assert favors.tolist() == [len(row["review_list"]) + len(row["like_list"]) for row in rows]
    assert histories.user_ids.tolist() == [f"u{n}" for n in range(len(rows))]


@given(users)
@settings(max_examples=50, deadline=None)
def test_arrow_keeps_histories_as_they_are(rows: list[dict[str, Any]]) -> None:
    """The table is how a history travels from the workers to training; nothing may be rounded on the way."""
    histories, favors = taste_histories(table(rows), PLACES)
    batch = to_arrow(histories, favors)
    again = from_arrow(pa.Table.from_batches([batch]))
    for name in ("user_ids", "offsets", "places", "visits", "days"):
        assert getattr(again, name).tolist() == getattr(histories, name).tolist()
    np.testing.assert_array_equal(again.ratings, histories.ratings)
    assert history_table(table(rows), PLACES)["favors"].to_pylist() == favors.tolist()


def test_a_slice_of_a_table_is_read_as_a_slice() -> None:
    """Arrow slices share their buffers; a history read from the wrong offset would be somebody else's."""
    rows = [{"review_list": [{"review_place_id": place}]} for place in ("p1", "p2", "p4")]
    full, _ = taste_histories(table(rows), PLACES)
    part, _ = taste_histories(table(rows)[1:], PLACES)
    assert full.places.tolist() == [2, 3, 4] and part.places.tolist() == [3, 4]
    arrow = pa.Table.from_batches([to_arrow(full, np.ones(3, np.int32))])
    assert from_arrow(arrow[1:]).places.tolist() == [3, 4]


def test_ratings_beyond_float32_are_no_warning() -> None:
    """``mart.rating_outlier: keep`` keeps 1e300, too; what is said of it would be noise in every job's log."""
    events = [{"review_place_id": place, "review_rating": rating} for place, rating in (("p1", 1e300), ("p2", 3.0))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, _ = taste_histories(table([{"review_list": events}]), PLACES)
    assert np.isnan(found.ratings[0]) and found.ratings[1] == -np.inf
