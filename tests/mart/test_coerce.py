"""The coercion table, value by value."""

from __future__ import annotations

from collections import Counter
from datetime import date
from typing import Any

import pytest

from tastetwin import schema
from tastetwin.config import CollectConfig, MartConfig
from tastetwin.errors import UsageError
from tastetwin.mart.coerce import REQUIRED, TABLE, Unusable, codes, coerce_record, flag, latitude, moment, rating
from tastetwin.mart.rules import GateRules

DAY = date(2020, 1, 1)


def rules(zone: str = "UTC", **mart: Any) -> GateRules:
    return GateRules.of(MartConfig(**mart), CollectConfig(source_timezone=zone), DAY)


def micros(iso: str) -> int:
    import numpy as np

    return int(np.datetime64(iso, "us").astype(np.int64))


@pytest.mark.parametrize("kind", schema.KINDS)
def test_the_table_covers_each_column_of_the_mart_in_order(kind: schema.Kind) -> None:
    """A row is a tuple in this order; a swapped pair would put one column's values under another's name."""
    derived = [schema.RATING_REFUSED] if kind == "reviews" else []
    assert [*TABLE[kind], *derived] == schema.MART[kind].names
    assert set(REQUIRED[kind]) == {field.name for field in schema.MART[kind] if not field.nullable}


@pytest.mark.parametrize(("rule", "expected"), [("keep", 9.0), ("clip", 5.0)])
def test_an_outlier_is_kept_or_clipped_by_rule(rule: str, expected: float) -> None:
    """The rule is written in the configuration, and clipping is not silent."""
    changes: list[tuple[str, str]] = []
    assert rating("9", rules(rating_outlier=rule), changes) == expected
    assert changes == ([("clipped", "out_of_range")] if rule == "clip" else [])


@pytest.mark.parametrize(
    ("record", "rule", "refused"),
    [
        ({}, "null", False),
        ({"review_rating": None}, "null", False),
        ({"review_rating": " NaN "}, "null", False),
        ({"review_rating": 4.5}, "null", False),
        ({"review_rating": -50}, "null", True),
        ({"review_rating": "bad"}, "null", True),
        ({"review_rating": True}, "null", True),
        ({"review_rating": "bad"}, "keep", True),
        ({"review_rating": 10**400}, "keep", True),
        ({"review_rating": -50}, "keep", False),
        ({"review_rating": -50}, "clip", False),
    ],
)
def test_a_rating_that_cannot_be_used_is_told_apart_from_none(record: dict[str, Any], rule: str, refused: bool) -> None:
    """A review without a rating is a visit, and visits are favors; minus fifty must not become one."""
    line = {"user_idno": "u", "review_place_id": "p", **record}
    row = coerce_record(line, "reviews", rules(rating_outlier=rule), Counter())
    assert dict(zip(schema.REVIEWS.names, row, strict=True))[schema.RATING_REFUSED] is refused


def test_the_latest_time_hangs_on_the_logical_date_not_on_the_clock() -> None:
    """A backfill of an old day must give what that day's run gave."""
    assert moment("2020-01-03T00:00:00", rules(), []) == micros("2020-01-03")
    with pytest.raises(Unusable, match="future"):
        moment("2020-01-03T00:00:00.000001", rules(), [])
    assert moment("2000-01-01", rules(), []) == micros("2000-01-01")
    with pytest.raises(Unusable, match="too_early"):
        moment("1999-12-31T23:59:59", rules(), [])


@pytest.mark.parametrize(
    ("written", "utc"),
    [
        ("2019-07-01T09:00:00", "2019-07-01T00:00:00"),
        ("2019-07-01T09:00:00Z", "2019-07-01T09:00:00"),
        ("2019-07-01T09:00:00-0130", "2019-07-01T10:30:00"),
        ("2019-07-01", "2019-06-30T15:00:00"),
    ],
)
def test_times_without_an_offset_are_in_the_source_zone(written: str, utc: str) -> None:
    """Nine hours wrong would move a dinner to another day."""
    assert moment(written, rules("Asia/Seoul"), []) == micros(utc)


@pytest.mark.parametrize(
    ("value", "utc"),
    [
        (10**11 - 1, None),
        (10**11, "1973-03-03T09:46:40"),
        (1_546_300_800, "2019-01-01"),
        (1_546_300_800_000, "2019-01-01"),
        (10**14 - 1, None),
        (10**14, "1973-03-03T09:46:40"),
        (1_546_300_800_000_000, "2019-01-01"),
    ],
)
def test_the_unit_of_an_epoch_is_told_by_its_magnitude(value: int, utc: str | None) -> None:
    """Seconds, milliseconds, microseconds: one unit wrong is a visit in 1970 or in the year 5138."""
    earlier = rules(earliest="1970-01-01")
    for written in (value, float(value)):
        if utc is None:
            with pytest.raises(Unusable, match="future"):
                moment(written, earlier, [])
        else:
            assert moment(written, earlier, []) == micros(utc)
    with pytest.raises(Unusable, match="out_of_range"):
        moment(10**17, earlier, [])


@pytest.mark.parametrize(
    ("written", "utc"),
    [
        ("20190101", "2019-01-01"),
        ("20190101093000", "2019-01-01T09:30:00"),
        ("1546300800", "2019-01-01"),
        ("1546300800.123", "2019-01-01T00:00:00.123"),
        ("1.546e12", "2018-12-28T12:26:40"),
    ],
)
def test_only_digits_alone_are_a_compact_date(written: str, utc: str) -> None:
    """An epoch with a fraction has 14 characters, too."""
    assert moment(written, rules(), []) == micros(utc)


def test_each_change_of_a_value_that_stayed_is_counted_once() -> None:
    """The report says how many values are not the source's."""
    counts: Counter[str] = Counter()
    coerce_record({"place_id": "p", "place_category_code_list": [1, "x", "y", None]}, "places", rules(), counts)
    line = {"user_idno": "u", "review_place_id": "p", "review_rating": 9}
    coerce_record(line, "reviews", rules(rating_outlier="clip"), counts)
    assert counts == {
        "dropped.place_category_code_list.unparsable": 2,
        "dropped.place_category_code_list.missing": 1,
        "clipped.review_rating.out_of_range": 1,
    }


def test_of_two_equal_local_times_the_first_is_taken() -> None:
    """Clocks went back on 2019-11-03 in New York: 01:30 was first in summer time, UTC-4."""
    assert moment("2019-11-03T01:30:00", rules("America/New_York"), []) == micros("2019-11-03T05:30:00")


def test_categories_keep_their_good_elements_and_count_the_bad() -> None:
    """One odd code must not cost a place its others."""
    changes: list[tuple[str, str]] = []
    assert codes([3, "4", 5.0, None, True, "x", 10**30, [1]], rules(), changes) == [3, 4, 5]
    assert [reason for _, reason in changes] == ["missing", "type", "unparsable", "out_of_range", "type"]
    assert codes(7, rules(), []) == codes("7", rules(), []) == [7]
    assert codes([], rules(), []) == []


def test_a_coordinate_outside_the_globe_is_refused_and_minus_zero_is_zero() -> None:
    """Bytes of the mart must not differ between ways of writing the same number."""
    with pytest.raises(Unusable, match="out_of_range"):
        latitude(90.1, rules(), [])
    assert str(latitude("-0.0", rules(), [])) == "0.0"


def test_a_refused_line_counts_no_nulled_values() -> None:
    """Counts describe the rows that are there."""
    counts: Counter[str] = Counter()
    with pytest.raises(Exception, match="place_missing"):
        coerce_record({"user_idno": "u", "review_rating": "bad"}, "reviews", rules(), counts)
    assert not counts


@pytest.mark.parametrize(
    ("mart", "zone", "place"),
    [
        ({}, "Mars/Olympus", "collect.source_timezone"),
        ({"earliest": "yesterday"}, "UTC", "mart.earliest"),
        ({"rating_min": 6.0}, "UTC", "mart.rating_min"),
    ],
)
def test_impossible_rules_name_their_setting(mart: dict[str, Any], zone: str, place: str) -> None:
    """A typo in the configuration must not reach the workers."""
    with pytest.raises(UsageError, match=place):
        rules(zone, **mart)


FLAGS: list[tuple[object, bool]] = [
    *((value, True) for value in (True, 1, 1.0, "1", "true", "YES", " y ", "T")),
    *((value, False) for value in (False, 0, -0.0, "0", "False", "no", "N", "f")),
]


@pytest.mark.parametrize(("value", "meant"), FLAGS)
def test_a_flag_is_read_however_it_is_written(value: object, meant: bool) -> None:
    """By the exporter's word for it, not ours."""
    assert flag(value, rules(), []) is meant


@pytest.mark.parametrize(
    ("value", "reason"),
    [(2, "out_of_range"), ("", "missing"), ("null", "missing"), ("maybe", "unparsable"), ([], "type")],
)
def test_a_flag_that_says_neither_is_unusable(value: object, reason: str) -> None:
    """Null, not false by chance."""
    with pytest.raises(Unusable, match=reason):
        flag(value, rules(), [])
