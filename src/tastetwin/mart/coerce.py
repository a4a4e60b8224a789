"""The one coercion table: for every field of every kind, how a JSON value becomes the column's value, or why it cannot.

A required value (user, place) that cannot be used refuses the line; an optional one becomes null and is counted. A
review whose rating was made null is marked, since it says less than one that never had a rating.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final
from zoneinfo import ZoneInfo

from tastetwin import schema
from tastetwin.jsonline import Refused
from tastetwin.mart.rules import EPOCH, MICROSECOND, GateRules
from tastetwin.schema import Kind

MAX_TEXT: Final = 256
"""Characters of an id or a name."""
SENTINELS: Final = frozenset({"", "null", "none", "nan"})
"""Words that exporters write for "no value", in any case."""
EXACT_FLOAT: Final = float(1 << 53)
"""Below it every integral float is one integer only."""

_NUMBER: Final = re.compile(r"[+-]?\d{1,64}(\.\d{0,64})?([eE][+-]?\d{1,4})?", re.ASCII)
_INTEGER: Final = re.compile(r"[+-]?\d{1,19}", re.ASCII)
_INFINITE: Final = frozenset({"inf", "infinity", "+inf", "+infinity", "-inf", "-infinity"})
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_DATETIME: Final = re.compile(
    r"(\d{4})(-?)(\d\d)\2(\d\d)"
    r"(?:[T ]?(\d\d):?(\d\d)(?::?(\d\d)(?:[.,](\d{1,9}))?)?(?: ?(?:(Z)|([+-])(\d\d):?(\d\d)?))?)?",
    re.ASCII | re.IGNORECASE,
)
_COMPACT_LENGTHS: Final = (8, 14)
"""Digits of YYYYMMDD and YYYYMMDDhhmmss; epoch times since 1973 have 9 to 10, 12 to 13 or 15 to 16."""
_EPOCH_UNITS: Final = ((1e11, 1_000_000), (1e14, 1_000), (1e17, 1))
"""(below this magnitude, microseconds per unit): seconds, milliseconds, microseconds."""

Change = tuple[str, str]
"""("clipped" or "dropped", reason): what was done to a value that stayed."""


class Unusable(Exception):
    """The value cannot be used; the argument is the reason code."""

    @property
    def reason(self) -> str:
        """Part of the counter's name."""
        return str(self.args[0])


Coerce = Callable[[Any, GateRules, list[Change]], Any]


def text(value: object, rules: GateRules, changes: list[Change]) -> str:
    """An id, name or code as text: stripped, 1 to 256 characters, without control characters.

    Integers within int64 and integral floats below 2**53 become their decimal digits.

    Raises:
        Unusable: missing (sentinel words too), type, too_long, control, out_of_range, not_integral, not_finite.
    """
    if isinstance(value, str):
        return _clean(value.strip())
    return str(_integral(value))


def _clean(word: str) -> str:
    if len(word) <= 4 and word.lower() in SENTINELS:
        raise Unusable("missing")
    if len(word) > MAX_TEXT:
        raise Unusable("too_long")
    if not word.isprintable() and _CONTROL.search(word):
        raise Unusable("control")
    return word


def _is_sentinel(word: str) -> bool:
    return word.lower() in SENTINELS


def _integral(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unusable("type")
    if isinstance(value, float):
        if not math.isfinite(value):
            raise Unusable("not_finite")
        if abs(value) >= EXACT_FLOAT:
            raise Unusable("out_of_range")
        if not value.is_integer():
            raise Unusable("not_integral")
        return int(value)
    if not -(1 << 63) <= value < 1 << 63:
        raise Unusable("out_of_range")
    return value


def number(value: object) -> float:
    """A finite number, or one written as text (``4.5``, no decimal comma); never -0.0.

    Raises:
        Unusable: type, missing, unparsable, not_finite.
    """
    if isinstance(value, str):
        word = value.strip()
        if _is_sentinel(word):
            raise Unusable("missing")
        if not _NUMBER.fullmatch(word):
            raise Unusable("not_finite" if word.lower() in _INFINITE else "unparsable")
        value = word
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise Unusable("type")
    try:
        result = float(value) + 0.0
    except OverflowError:  # an integer of more digits than ``jsonline`` lets through
        raise Unusable("not_finite") from None
    if not math.isfinite(result):
        raise Unusable("not_finite")
    return result


def rating(value: object, rules: GateRules, changes: list[Change]) -> float:
    """A rating; outside the source's scale it is kept, clipped or made null by rule.

    Raises:
        Unusable: out_of_range, or as ``number``.
    """
    found = number(value)
    if rules.rating_min <= found <= rules.rating_max or rules.rating_outlier == "keep":
        return found
    if rules.rating_outlier == "null":
        raise Unusable("out_of_range")
    changes.append(("clipped", "out_of_range"))
    return min(max(found, rules.rating_min), rules.rating_max) + 0.0


def latitude(value: object, rules: GateRules, changes: list[Change]) -> float:
    """Degrees north, -90 to 90.

    Raises:
        Unusable: out_of_range, or as ``number``.
    """
    return _within(number(value), LIMITS[latitude])


def longitude(value: object, rules: GateRules, changes: list[Change]) -> float:
    """Degrees east, -180 to 180.

    Raises:
        Unusable: out_of_range, or as ``number``.
    """
    return _within(number(value), LIMITS[longitude])


def _within(found: float, limit: float) -> float:
    if abs(found) > limit:
        raise Unusable("out_of_range")
    return found


LIMITS: Final[dict[Coerce, float]] = {latitude: 90.0, longitude: 180.0}
"""Degrees either side of zero."""


def moment(value: object, rules: GateRules, changes: list[Change]) -> int:
    """Microseconds since 1970 UTC of an ISO 8601 date or time, or of an epoch number in s, ms or us by magnitude.

    Times without an offset are in the source's zone (the first of two equal local times); digits beyond microseconds
    are cut off.

    Raises:
        Unusable: type, missing, unparsable, not_finite, out_of_range (no such epoch unit), too_early, future.
    """
    found = _written_time(value.strip(), rules) if isinstance(value, str) else _epoch(value)
    if found < rules.earliest:
        raise Unusable("too_early")
    if found > rules.latest:
        raise Unusable("future")
    return found


def _epoch(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unusable("type")
    if isinstance(value, float) and not math.isfinite(value):
        raise Unusable("not_finite")
    for below, microseconds in _EPOCH_UNITS:
        if abs(value) < below:
            return round(value * microseconds)
    raise Unusable("out_of_range")


def _written_time(word: str, rules: GateRules) -> int:
    if _is_sentinel(word):
        raise Unusable("missing")
    if _NUMBER.fullmatch(word) and not (word.isdecimal() and len(word) in _COMPACT_LENGTHS):
        return _epoch(int(word) if word.isdecimal() else float(word))
    match = _DATETIME.fullmatch(word)
    if match is None:
        raise Unusable("unparsable")
    year, _, month, day, hour, minute, second, fraction, zulu, sign, zone_hour, zone_minute = match.groups()
    try:
        local = datetime(
            int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0),
            int((fraction or "")[:6].ljust(6, "0")),
        )  # fmt: skip
        offset = timedelta(hours=int(zone_hour or 0), minutes=int(zone_minute or 0))
        zone = timezone(-offset if sign == "-" else offset) if sign else UTC if zulu else ZoneInfo(rules.zone)
        return (local.replace(tzinfo=zone) - EPOCH) // MICROSECOND
    except (ValueError, OverflowError):
        raise Unusable("unparsable") from None


def codes(value: object, rules: GateRules, changes: list[Change]) -> list[int]:
    """Category codes, in order; a single code is a list of one; bad elements are dropped and noted.

    Raises:
        Unusable: for a single value that is no code: type, missing, unparsable, out_of_range, ...
    """
    if not isinstance(value, list):
        return [_code(value)]
    kept = []
    for each in value:
        try:
            kept.append(_code(each))
        except Unusable as unusable:
            changes.append(("dropped", unusable.reason))
    return kept


def _code(value: object) -> int:
    if value is None:
        raise Unusable("missing")
    if not isinstance(value, str):
        return _integral(value)
    word = value.strip()
    if _is_sentinel(word):
        raise Unusable("missing")
    if not _INTEGER.fullmatch(word):
        raise Unusable("unparsable")
    return _integral(int(word))


def flag(value: object, rules: GateRules, changes: list[Change]) -> bool:
    """True or false, also written 1 and 0, or as one of ``FLAGS`` in any case.

    Raises:
        Unusable: type, missing, unparsable, out_of_range.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        word = value.strip().lower()
        if _is_sentinel(word):
            raise Unusable("missing")
        if word not in FLAGS:
            raise Unusable("unparsable")
        return FLAGS[word]
    number = _integral(value)
    if number not in (0, 1):
        raise Unusable("out_of_range")
    return number == 1


FLAGS: Final = {
    **dict.fromkeys(("true", "yes", "y", "t", "1"), True),
    **dict.fromkeys(("false", "no", "n", "f", "0"), False),
}
"""Words for true and false."""

_RELATION: Final[dict[str, Coerce]] = {
    schema.USER: text,
    schema.OTHER: text,
    schema.RELATED_AT: moment,
    schema.ENDED: flag,
}

TABLE: Final[dict[Kind, dict[str, Coerce]]] = {
    "reviews": {
        schema.REVIEW_ID: text,
        schema.USER: text,
        schema.RATING: rating,
        schema.VISITED: moment,
        schema.REVIEW_PLACE: text,
    },
    "likes": {schema.USER: text, schema.LIKED_AT: moment, schema.LIKE_DISPLAY: text, schema.LIKE_CONTENTS: text},
    "places": {
        schema.PLACE: text,
        schema.CATEGORIES: codes,
        schema.REGION: text,
        schema.NAME: text,
        schema.LAT: latitude,
        schema.LON: longitude,
    },
    "follows": _RELATION,
    "blocks": _RELATION,
}
"""Field -> coercion, in the order of ``schema.MART``, whose further columns no line carries."""

REQUIRED: Final[dict[Kind, dict[str, str]]] = {
    "reviews": {schema.USER: "user", schema.REVIEW_PLACE: "place"},
    "likes": {schema.USER: "user", schema.LIKE_CONTENTS: "place"},
    "places": {schema.PLACE: "place"},
    "follows": {schema.USER: "user", schema.OTHER: "other"},
    "blocks": {schema.USER: "user", schema.OTHER: "other"},
}
"""Field -> the word that begins its refusal (``user_missing``); looked at in this order."""


def coerce_record(record: dict[str, Any], kind: Kind, rules: GateRules, counts: Counter[str]) -> tuple[Any, ...]:
    """One row of ``schema.MART[kind]``, times in microseconds; adds to ``counts`` only if the line is accepted.

    Raises:
        Refused: ``user_<reason>``, ``place_<reason>`` or ``other_<reason>``.
    """
    row: dict[str, Any] = {field: _required(record.get(field), role, rules) for field, role in REQUIRED[kind].items()}
    for field, coerce in TABLE[kind].items():
        if field not in row:
            row[field] = _optional(record.get(field), field, coerce, rules, counts)
    found = tuple(row[field] for field in TABLE[kind])
    return (*found, _is_refused(record.get(schema.RATING), row[schema.RATING])) if kind == "reviews" else found


def _is_refused(written: object, taken: float | None) -> bool:
    """Whether a rating was given and could not be used."""
    silent = written is None or (isinstance(written, str) and _is_sentinel(written.strip()))
    return taken is None and not silent


def _required(value: object, role: str, rules: GateRules) -> str:
    if value is None:
        raise Refused(f"{role}_missing")
    try:
        return text(value, rules, [])
    except Unusable as unusable:
        raise Refused(f"{role}_{unusable.reason}") from None


def _optional(value: object, field: str, coerce: Coerce, rules: GateRules, counts: Counter[str]) -> Any:
    if value is None:
        return None
    changes: list[Change] = []
    try:
        result = coerce(value, rules, changes)
    except Unusable as unusable:
        counts[f"nulled.{field}.{unusable.reason}"] += 1
        return None
    for verb, reason in changes:
        counts[f"{verb}.{field}.{reason}"] += 1
    return result
