"""The vocabulary: grows, never moves a row, and reads a stranger as the group it belongs to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from tastetwin.features.histories import FIRST_PLACE_ROW, Vocabulary
from tastetwin.features.vocabulary import (
    NO_ROW,
    assign_rows,
    empty_vocabulary,
    grow,
    read_vocabulary,
    write_vocabulary,
)
from tastetwin.schema import PLACES
from tastetwin.store import Store

Place = tuple[str, list[int] | None, str | None]


def described(rows: list[Place]) -> pa.Table:
    empty = {"place_name": None, "place_lat": None, "place_lon": None}
    full = [{"place_id": p, "place_category_code_list": c, "place_dongcode": r, **empty} for p, c, r in rows]
    return pa.Table.from_pylist(full, PLACES)


def visits(counts: dict[str, int]) -> pa.Table:
    schema = pa.schema([("place_id", pa.string()), ("visitors", pa.int64())])
    return pa.table([sorted(counts), [counts[place] for place in sorted(counts)]], schema=schema)


TOWN = described(
    [
        ("known", [101, 7], "r1"),
        ("rare", [101], "r1"),
        ("far", [101], "r9"),
        ("bare", None, "r1"),
        ("nowhere", [101], None),
        ("blank", [], None),
        ("odd", [555], "r1"),
        ("new town", [555], "r5"),
    ]
)
SEEN = visits({"known": 3, "rare": 2, "bare": 1, "blank": 1, "undescribed": 9, "nowhere": 1})


def read_as(vocabulary: Vocabulary, places: pa.Table) -> dict[str, str | None]:
    """Place id -> the id of the row it is read as."""
    found = assign_rows(vocabulary, places)
    ids = found.place_ids.to_pylist()
    return {
        p: None if row == NO_ROW else str(vocabulary.place_ids[row]) for p, row in zip(ids, found.rows, strict=True)
    }


def says(vocabulary: Vocabulary, row: int) -> tuple[list[int], str | None]:
    """Category codes and region code of a row."""
    at = slice(*vocabulary.category_offsets[row : row + 2])
    region = vocabulary.regions[row]
    codes = [int(code) for code in vocabulary.category_codes[vocabulary.categories[at]]]
    return codes, None if region < 0 else str(vocabulary.region_codes[region])


def test_a_rare_place_is_read_as_its_most_specific_group() -> None:
    """Category and region, else category, else region, else nothing."""
    assert read_as(grow(empty_vocabulary(), TOWN, SEEN, 3), TOWN) == {
        "known": "known",
        "rare": "~101/r1",
        "far": "~101/",
        "bare": "~/r1",
        "nowhere": "~101/",
        "blank": None,
        "odd": "~/r1",
        "new town": None,
    }


def test_rows_say_what_their_places_are() -> None:
    vocabulary = grow(empty_vocabulary(), TOWN, SEEN, 3)
    rows = {str(place): row for row, place in enumerate(vocabulary.place_ids) if row >= FIRST_PLACE_ROW}

    assert {place: says(vocabulary, row) for place, row in rows.items()} == {
        "known": ([101, 7], "r1"),
        "undescribed": ([], None),
        "~101/r1": ([101], "r1"),
        "~101/": ([101], None),
        "~/r1": ([], "r1"),
    }
    assert [str(vocabulary.place_ids[row]).startswith("~") for row in rows.values()] == [
        bool(vocabulary.is_group[row]) for row in rows.values()
    ]


def test_a_correction_of_a_place_reaches_its_row() -> None:
    """A wrong category of the first day would else stay for ever; its row, which models know it by, stays."""
    first = grow(empty_vocabulary(), TOWN, SEEN, 3)
    moved = described([("known", [7], "r2"), ("~101/r1", [9], "r9")])
    second = grow(first, moved, SEEN, 3)
    row = first.place_ids.tolist().index("known")
    assert second.place_ids[row] == "known" and says(second, row) == ([7], "r2")
    group = first.place_ids.tolist().index("~101/r1")
    assert says(second, group) == ([101], "r1"), "what a group is does not depend on a place with its name"


def test_a_place_that_is_named_like_a_group_is_not_the_group() -> None:
    """Ids are the source's; one that happens to read "~101/r1" must neither double the row nor take it over."""
    town = described([("~101/r1", [7], "r2"), ("known", [101], "r1")])
    vocabulary = grow(empty_vocabulary(), town, visits({"~101/r1": 9, "known": 9}), 3)
    assert vocabulary.place_ids.tolist().count("~101/r1") == 1
    assert read_as(vocabulary, town) == {"~101/r1": "~7/r2", "known": "known"}


def test_ids_never_heard_of_have_no_row() -> None:
    rows = assign_rows(grow(empty_vocabulary(), TOWN, SEEN, 3), TOWN)
    assert rows.of(pa.array(["known", "never", "blank"]))[1:].tolist() == [NO_ROW, NO_ROW]


names = st.sampled_from(["a", "b", "c", "d", "e", "f", "~1/r", "é/é"])
day = st.tuples(
    st.dictionaries(names, st.integers(1, 5)),
    st.dictionaries(
        names,
        st.tuples(
            st.none() | st.lists(st.integers(1, 3), max_size=2), st.none() | st.sampled_from(["r", "s", "a/b", ""])
        ),
    ),
)


@given(st.lists(day, max_size=4), st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_no_row_ever_moves(days: list[tuple[dict[str, int], dict[str, Place]]], min_visitors: int) -> None:
    """A model trained yesterday must read today's rows as it learnt them."""
    vocabulary = empty_vocabulary()
    for seen, places in days:
        table = described([(place, categories, region) for place, (categories, region) in sorted(places.items())])  # type: ignore[misc]
        before, vocabulary = vocabulary, grow(vocabulary, table, visits(seen), min_visitors)
        n = before.n_rows
        assert vocabulary.place_ids[:n].tolist() == before.place_ids.tolist()
        assert vocabulary.is_group[:n].tolist() == before.is_group.tolist()
        undescribed = [row for row in range(n) if before.is_group[row] or before.place_ids[row] not in places]
        assert [says(vocabulary, row) for row in undescribed] == [says(before, row) for row in undescribed]
        assert vocabulary.category_codes[: len(before.category_codes)].tolist() == before.category_codes.tolist()
        assert vocabulary.region_codes[: len(before.region_codes)].tolist() == before.region_codes.tolist()
        ids = vocabulary.place_ids[FIRST_PLACE_ROW:].tolist()
        assert len(set(ids)) == len(ids)
        own = {place for place, count in seen.items() if count >= min_visitors and not place.startswith("~")}
        assert own <= set(ids)


@given(st.lists(day, max_size=3))
@settings(max_examples=40, deadline=None)
def test_a_vocabulary_survives_its_file(days: list[tuple[dict[str, int], dict[str, Place]]]) -> None:
    vocabulary = empty_vocabulary()
    for seen, places in days:
        table = described([(place, categories, region) for place, (categories, region) in sorted(places.items())])  # type: ignore[misc]
        vocabulary = grow(vocabulary, table, visits(seen), 1)
    store = Store("memory://vocabulary")
    write_vocabulary(store, "v.parquet", vocabulary)
    again = read_vocabulary(store, "v.parquet")
    for name in vars(vocabulary):
        mine, found = getattr(vocabulary, name), getattr(again, name)
        assert np.array_equal(found, mine, equal_nan=mine.dtype.kind == "f") and found.dtype == mine.dtype, name


def test_the_same_growth_gives_the_same_bytes(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    shuffled = TOWN.take(np.random.default_rng(1).permutation(len(TOWN)))
    one = write_vocabulary(store, "1", grow(empty_vocabulary(), TOWN, SEEN, 3))
    two = write_vocabulary(store, "2", grow(empty_vocabulary(), shuffled, SEEN, 3))
    assert one.sha256 == two.sha256


def located(rows: list[tuple[str, str | None, float | None, float | None]]) -> pa.Table:
    full = [
        {"place_id": p, "place_category_code_list": [1], "place_dongcode": r, "place_lat": lat, "place_lon": lon}
        for p, r, lat, lon in rows
    ]
    return pa.Table.from_pylist(full, PLACES)


def test_places_keep_their_coordinates_and_groups_lie_amid_their_region() -> None:
    town = located([("a", "r1", 10.0, 179.0), ("b", "r1", 10.0, -179.0), ("c", "r2", None, 5.0), ("d", None, 1.0, 2.0)])
    vocabulary = grow(empty_vocabulary(), town, visits({"a": 9, "b": 1, "c": 9, "d": 9}), 3)
    at = dict(zip(vocabulary.place_ids, vocabulary.coordinates.tolist(), strict=True))
    assert at["a"] == [10, 179] and at["d"] == [1, 2]
    assert np.isnan(at["c"][0]) and at["c"][1] == 5
    assert abs(at["~1/r1"][0] - 10) < 0.01 and abs(abs(at["~1/r1"][1]) - 180) < 1e-4, "across the date line"
    assert np.isnan([at["~1/r2"], at["~1/"], at[""]]).all()
    moved = located([("a", "r1", 11.0, 100.0)])
    later = grow(vocabulary, moved, visits({"a": 9}), 3)
    assert later.coordinates[list(later.place_ids).index("a")].tolist() == [11, 100]
    assert np.array_equal(later.coordinates[:3], vocabulary.coordinates[:3], equal_nan=True)
