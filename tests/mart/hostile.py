"""Lines that readers stumble over, each with the known answer: a refusal's reason, or the row that must come out."""

from __future__ import annotations

import json
from typing import Any, Final

GOOD: Final[dict[str, Any]] = {
    "review_id": "r1",
    "user_idno": "u1",
    "review_rating": 4.5,
    "review_visited_date": "2013-03-20T23:00:00",
    "review_place_id": "p1",
}


def line(**changes: Any) -> bytes:
    """The good review with some values replaced."""
    return json.dumps(GOOD | changes, ensure_ascii=False).encode()


def without(field: str) -> bytes:
    """The good review without a field."""
    return json.dumps({key: value for key, value in GOOD.items() if key != field}).encode()


def raw(field: str, value: bytes) -> bytes:
    """The good review with the bytes of one value replaced by others, JSON or not."""
    return line(**{field: "@"}).replace(b'"@"', value)


REFUSED: Final[dict[str, tuple[bytes, str]]] = {
    "NaN literal": (raw("review_rating", b"NaN"), "non_finite_literal"),
    "Infinity literal": (raw("review_rating", b"-Infinity"), "non_finite_literal"),
    "NaN in an unknown field": (raw("extra", b"NaN"), "non_finite_literal"),
    "invalid UTF-8 in an id": (raw("user_idno", b'"u\xff"'), "invalid_utf8"),
    "invalid UTF-8 in an unknown field": (raw("extra", b'"\xc0\xaf"'), "invalid_utf8"),
    "UTF-8 of a surrogate": (raw("user_idno", b'"\xed\xa0\x80"'), "invalid_utf8"),
    "lone surrogate": (raw("user_idno", rb'"\ud800"'), "lone_surrogate"),
    "lone surrogate in an unknown field": (raw("extra", rb'{"a": ["\uDC00"]}'), "lone_surrogate"),
    "truncated in a string": (line()[:-4], "truncated"),
    "truncated after a comma": (b'{"user_idno": "u1",', "truncated"),
    "duplicate key": (line()[:-1] + b', "user_idno": "u2"}', "duplicate_key"),
    "duplicate key, same value": (line()[:-1] + b', "user_idno": "u1"}', "duplicate_key"),
    "duplicate key, written with an escape": (line()[:-1] + rb', "user_idn\u006f": "u2"}', "duplicate_key"),
    "duplicate key deep inside": (raw("extra", b'{"a": {"b": 1, "b": 2}}'), "duplicate_key"),
    "nesting 100,000": (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too_deep"),
    "nesting 33": (raw("extra", b"[" * 32 + b"]" * 32), "too_deep"),
    "unclosed nesting": (b"[" * 100_000, "too_deep"),
    "NUL bytes": (b"\x00" * 10, "syntax"),
    "NUL in a string": (raw("user_idno", b'"u\x00"'), "syntax"),
    "two documents": (line() + line(), "trailing_data"),
    "two documents and a blank": (line() + b" " + line(), "trailing_data"),
    "two documents and a carriage return": (line() + b"\r" + line(), "trailing_data"),
    "comma at the end": (line() + b",", "trailing_data"),
    "byte order mark inside the file": (b"\xef\xbb\xbf" + line(), "syntax"),
    "a list": (b"[" + line() + b"]", "not_an_object"),
    "a string": (b'"u1"', "not_an_object"),
    "null": (b"null", "not_an_object"),
    "not JSON": (b"user_idno,review_place_id", "syntax"),
    "single quotes": (b"{'user_idno': 'u1'}", "syntax"),
    "leading zero": (raw("review_rating", b"04.5"), "syntax"),
    "no user": (without("user_idno"), "user_missing"),
    "null user": (line(user_idno=None), "user_missing"),
    "empty user": (line(user_idno=""), "user_missing"),
    "blank user": (line(user_idno=" \u3000"), "user_missing"),
    "sentinel user": (line(user_idno="None"), "user_missing"),
    "sentinel user NaN": (line(user_idno="NaN"), "user_missing"),
    "user is true": (line(user_idno=True), "user_type"),
    "user is a list": (line(user_idno=["u1"]), "user_type"),
    "user is an object": (line(user_idno={"id": "u1"}), "user_type"),
    "user is an object of two": (line(user_idno={"$oid": "u1", "id": 1}), "user_type"),
    "user is an object of an unknown wrapper": (line(user_idno={"$binary": "u1"}), "user_type"),
    "duplicate wrapper": (raw("user_idno", b'{"$oid": "u1", "$oid": "u1"}'), "duplicate_key"),
    "lone surrogate in a wrapper": (raw("user_idno", rb'{"$oid": "\ud800"}'), "lone_surrogate"),
    "a wrapped value": (b'{"$oid": "u1"}', "not_an_object"),
    "30-digit user": (raw("user_idno", b"123456789012345678901234567890"), "user_out_of_range"),
    "user just beyond int64": (raw("user_idno", b"9223372036854775808"), "user_out_of_range"),
    "5,000-digit user": (raw("user_idno", b"1" * 5000), "user_not_finite"),
    "float user beyond 2**53": (raw("user_idno", b"9007199254740992.0"), "user_out_of_range"),
    "fractional user": (line(user_idno=4.5), "user_not_integral"),
    "1e400 user": (raw("user_idno", b"1e400"), "user_not_finite"),
    "user of 257 characters": (line(user_idno="u" * 257), "user_too_long"),
    "control character in the user": (raw("user_idno", rb'"u\u001f1"'), "user_control"),
    "C1 control in the user": (line(user_idno="u\u0085u"), "user_control"),
    "no place": (without("review_place_id"), "place_missing"),
    "place is a list": (line(review_place_id=[]), "place_type"),
    "user and place missing": (b"{}", "user_missing"),
}

TIME: Final = 1_363_820_400_000_000
"""2013-03-20T23:00:00 UTC in microseconds."""

ACCEPTED: Final[dict[str, tuple[bytes, dict[str, Any], list[str]]]] = {
    "good": (line(), {}, []),
    "integer rating": (line(review_rating=4), {"review_rating": 4.0}, []),
    "rating as text": (line(review_rating=" 4.5 "), {}, []),
    "bad rating": (line(review_rating="bad"), {"review_rating": None}, ["nulled.review_rating.unparsable"]),
    "decimal comma": (line(review_rating="4,5"), {"review_rating": None}, ["nulled.review_rating.unparsable"]),
    "rating 1e400": (raw("review_rating", b"1e400"), {"review_rating": None}, ["nulled.review_rating.not_finite"]),
    "rating inf": (line(review_rating="inf"), {"review_rating": None}, ["nulled.review_rating.not_finite"]),
    "rating NaN text": (line(review_rating="NaN"), {"review_rating": None}, ["nulled.review_rating.missing"]),
    "rating true": (line(review_rating=True), {"review_rating": None}, ["nulled.review_rating.type"]),
    "rating 999": (line(review_rating=999), {"review_rating": None}, ["nulled.review_rating.out_of_range"]),
    "rating -1": (line(review_rating=-1), {"review_rating": None}, ["nulled.review_rating.out_of_range"]),
    "rating null": (line(review_rating=None), {"review_rating": None}, []),
    "rating absent": (without("review_rating"), {"review_rating": None}, []),
    "integer ids": (line(user_idno=42, review_place_id=-7), {"user_idno": "42", "review_place_id": "-7"}, []),
    "largest integer id": (line(user_idno=2**63 - 1), {"user_idno": "9223372036854775807"}, []),
    "integral float id": (line(user_idno=42.0), {"user_idno": "42"}, []),
    "exponent id": (raw("user_idno", b"4.2e1"), {"user_idno": "42"}, []),
    "long digits as text": (line(user_idno="1" * 30), {"user_idno": "1" * 30}, []),
    "stripped id": (line(user_idno=" u1\u3000"), {}, []),
    "escaped id": (raw("user_idno", rb'"\u00751"'), {}, []),
    "surrogate pair": (raw("user_idno", rb'"\ud83d\ude00"'), {"user_idno": "😀"}, []),
    "Hangul id": (line(user_idno="사용자"), {"user_idno": "사용자"}, []),
    "id of 256 characters": (line(user_idno="사" * 256), {"user_idno": "사" * 256}, []),
    "30-digit review id": (raw("review_id", b"1" * 30), {"review_id": None}, ["nulled.review_id.out_of_range"]),
    "carriage return": (line() + b"\r", {}, []),
    "white space around": (b" \t" + line() + b" ", {}, []),
    "no white space": (line().replace(b": ", b":").replace(b", ", b","), {}, []),
    "MongoDB's object id": (line(_id={"$oid": "5f"}, user_idno={"$oid": "u1"}), {}, []),
    "MongoDB's date": (line(review_visited_date={"$date": "2013-03-20T23:00:00Z"}), {}, []),
    "MongoDB's date before 1970 or after 9999 as it writes it": (
        line(review_visited_date={"$date": {"$numberLong": "1363820400000"}}),
        {},
        [],
    ),
    "MongoDB's numbers": (
        line(user_idno={"$numberLong": "42"}, review_rating={"$numberDouble": "4.5"}),
        {"user_idno": "42"},
        [],
    ),
    "MongoDB's decimal NaN": (
        line(review_rating={"$numberDecimal": "NaN"}),
        {"review_rating": None},
        ["nulled.review_rating.missing"],
    ),
    "unknown fields": (line(extra={"a": [1, None]}, other=None), {}, []),
    "nesting 32": (raw("extra", b"[" * 31 + b"]" * 31), {}, []),
    "brackets in a string": (raw("extra", b'"' + b"[" * 1000 + b'"'), {}, []),
    "other order": (json.dumps(dict(reversed(GOOD.items()))).encode(), {}, []),
    "zulu": (line(review_visited_date="2013-03-20T23:00:00Z"), {}, []),
    "offset": (line(review_visited_date="2013-03-21T08:00:00+09:00"), {}, []),
    "fraction": (line(review_visited_date="2013-03-20 23:00:00.5"), {"review_visited_date": TIME + 500_000}, []),
    "date": (line(review_visited_date="2013-03-20"), {"review_visited_date": TIME - 23 * 3_600_000_000}, []),
    "compact": (line(review_visited_date="20130320230000"), {}, []),
    "epoch seconds": (line(review_visited_date=1363820400), {}, []),
    "epoch milliseconds": (line(review_visited_date=1363820400000), {}, []),
    "epoch microseconds as text": (line(review_visited_date="1363820400000000"), {}, []),
    "epoch with fraction": (line(review_visited_date=1363820400.25), {"review_visited_date": TIME + 250_000}, []),
    **{
        f"time {name}": (
            line(review_visited_date=value),
            {"review_visited_date": None},
            [f"nulled.review_visited_date.{why}"],
        )
        for name, value, why in [
            ("30 February", "2013-02-30T00:00:00", "unparsable"),
            ("29 February of no leap year", "2013-02-29T00:00:00", "unparsable"),
            ("31 April", "2013-04-31T00:00:00", "unparsable"),
            ("hour 24", "2013-03-20T24:00:00", "unparsable"),
            ("yesterday", "yesterday", "unparsable"),
            ("empty", "", "missing"),
            ("1970", "1970-01-01T00:00:00", "too_early"),
            ("zero", 0, "too_early"),
            ("2099", "2099-12-31T00:00:00", "future"),
            ("nanoseconds", 10**18, "out_of_range"),
            ("false", False, "type"),
            ("object", {"at": 0}, "type"),
        ]
    },
}
