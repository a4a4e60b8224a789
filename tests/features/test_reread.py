"""Yesterday's model is asked about today's users: every place must be read as the row that model knows it by."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from tastetwin.features.histories import Histories, Vocabulary
from tastetwin.features.reread import reread
from tastetwin.features.vocabulary import assign_rows, empty_vocabulary, grow
from tests.features.test_vocabulary import described, visits

PLACES = described(
    [
        ("a", [1], "r"),
        ("b", [1], "r"),
        ("c", [2], "r"),
        ("d", [1], None),
        ("e", None, None),
        ("f", [1], "r"),
        ("g", [9], None),
    ]
)
OLD = grow(empty_vocabulary(), PLACES, visits({"a": 3, "b": 1, "c": 1, "e": 3}), 3)
NEW = grow(OLD, PLACES, visits(dict.fromkeys("abcdefg", 3)), 3)


def history(vocabulary: Vocabulary, users: list[str]) -> Histories:
    """One user a word, a place a letter, oldest first; the n-th favor of a user has n visits and happened on day n."""
    rows = assign_rows(vocabulary, PLACES)
    flat = rows.of(pa.array(list("".join(users)), pa.string()))
    counts = np.concatenate([np.arange(1, len(word) + 1) for word in users] or [np.zeros(0, int)])
    offsets = np.cumsum([0, *map(len, users)]).astype(np.int64)
    ids = np.array([f"u{number}" for number in range(len(users))], object)
    return Histories(ids, offsets, flat, counts.astype(np.float32), counts.astype(np.float32), counts.astype(np.int32))


def told(histories: Histories, vocabulary: Vocabulary, user: int) -> list[tuple[str, float, int]]:
    at = range(histories.offsets[user], histories.offsets[user + 1])
    return [
        (str(vocabulary.place_ids[histories.places[i]]), float(histories.visits[i]), int(histories.days[i])) for i in at
    ]


def test_new_places_are_read_as_the_groups_the_older_vocabulary_has() -> None:
    """b and f are both cafés in r to it, and one entry; e, of which nothing is known, kept its row."""
    found = reread(history(NEW, ["abcf", "e", "gdc"]), NEW, OLD)
    assert told(found, OLD, 0) == [("a", 1, 1), ("~2/r", 3, 3), ("~1/r", 6, 4)]
    assert told(found, OLD, 1) == [("e", 1, 1)]
    assert told(found, OLD, 2) == [("~1/", 2, 2), ("~2/r", 3, 3)], "of g's kind there was no place yet"
    assert found.user_ids.tolist() == ["u0", "u1", "u2"]


@given(st.lists(st.permutations("abcdefg").map("".join), max_size=5))
@settings(max_examples=50, deadline=None)
def test_the_same_vocabulary_changes_nothing(users: list[str]) -> None:
    """Today's model is asked by the same function."""
    before = history(NEW, users)
    after = reread(before, NEW, NEW)
    for name in ("offsets", "places", "visits", "ratings", "days"):
        assert getattr(after, name).tolist() == getattr(before, name).tolist(), name
