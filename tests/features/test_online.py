"""One user's taste history, beside the batch's, to the bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tastetwin.features import online
from tastetwin.features.favors import Favors, Like, Review
from tastetwin.features.histories import Histories
from tastetwin.features.online import histories_of, history_of, joined_histories
from tastetwin.features.taste import taste_histories
from tastetwin.features.user_favor import USER_FAVOR
from tastetwin.features.vocabulary import PlaceRows

DAY = 86_400_000_000
ROWS = {"p1": 2, "p2": 3, "p3": 3, "p4": 4, "p5": 1_000_000, "nothing": -1}
PLACES = PlaceRows(pa.array(list(ROWS)), np.array(list(ROWS.values()), np.int32))

times = st.one_of(
    st.sampled_from([None, -DAY - 1, -DAY, -1, 0, DAY - 1, DAY, -(2**63) + 1, 2**63 - 1]),
    st.integers(-(10**17), 10**17),
)
places = st.sampled_from([*ROWS, "never heard of", "~1/2"])
ratings = st.one_of(
    st.sampled_from([None, float("nan"), 1.0, 3.3, 4.1, 0.1, -0.0, 5e-324, 1e-46, 16777217.0, 1e300]),
    st.floats(-10, 10),
)
reviews = st.builds(Review, st.none(), places, ratings, times, st.booleans())
likes = st.builds(Like, places, st.sampled_from([None, "main"]), times)
favors = st.builds(Favors, st.lists(reviews, max_size=12).map(tuple), st.lists(likes, max_size=8).map(tuple))


def rows_of(place_ids: Sequence[str]) -> list[int]:
    return [ROWS.get(place, -1) for place in place_ids]


def table(users: Sequence[Favors]) -> pa.Table:
    """``USER_FAVOR`` of the same favors in the same order."""
    rows = [
        {
            "user_idno": f"u{number}",
            "like_list": [
                {"like_regymdt": like.at, "like_displayid": like.display_id, "like_contentsid": like.place_id}
                for like in user.likes
            ],
            "like_stat_list": [],
            "review_list": [
                {
                    "review_id": review.review_id,
                    "review_rating": review.rating,
                    "review_visited_date": review.at,
                    "review_place_id": review.place_id,
                }
                for review in user.reviews
            ],
        }
        for number, user in enumerate(users)
    ]
    return pa.Table.from_pylist(rows, USER_FAVOR)


def same(found: Histories, wanted: Histories) -> None:
    """Bit for bit, types and NaNs included."""
    for name in ("offsets", "places", "visits", "ratings", "days"):
        ours, theirs = getattr(found, name), getattr(wanted, name)
        assert ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes(), name
    assert found.user_ids.dtype == wanted.user_ids.dtype and found.user_ids.tolist() == wanted.user_ids.tolist()


@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")  # infinity minus infinity, in the batch too
@given(st.lists(favors, max_size=5))
@settings(max_examples=400, deadline=None)
def test_histories_equal_the_batch_to_the_bit(users: list[Favors]) -> None:
    """The same favors must give the same vector online as at night: ties, NaNs, repeats, years before 1970."""
    wanted, _ = taste_histories(table(users), PLACES)
    ids = [f"u{number}" for number in range(len(users))]
    same(joined_histories(ids, [history_of(user, rows_of) for user in users]), wanted)
    with pytest.MonkeyPatch.context() as monkeypatch:
        for many in (0, 1_000):
            monkeypatch.setattr(online, "_MANY", many)
            same(histories_of(ids, users, rows_of), wanted)


def test_a_history_can_be_checked_by_eye() -> None:
    """Both twins could be wrong together: two visits of a fallback group, a like, ratings about the mean of 3."""
    user = Favors(
        (
            Review("a", "p2", 2.0, None, False),
            Review("b", "p1", 5.0, 3 * DAY, False),
            Review("c", "p3", None, 4 * DAY, False),
            Review("d", "nothing", 2.0, 5 * DAY, False),
        ),
        (Like("p4", None, -1), Like("p3", None, 9 * DAY)),
    )
    found = history_of(user, rows_of)
    assert found.places.tolist() == [4, 2, 3]
    assert found.visits.tolist() == [1, 1, 3]
    np.testing.assert_array_equal(found.ratings, [np.nan, 2, -1])
    assert found.days.tolist() == [-1, 3, 9]


def test_nobody_and_nothing_have_histories_of_the_right_types() -> None:
    """An empty history is sent to the encoder like any other."""
    for users in ([], [Favors()], [Favors()] * 40):
        found = histories_of(["u"] * len(users), users, rows_of)
        wanted, _ = taste_histories(table(users), PLACES)
        assert found.n_users == len(users)
        same(
            Histories(
                wanted.user_ids, *(getattr(found, n) for n in ("offsets", "places", "visits", "ratings", "days"))
            ),
            wanted,
        )
