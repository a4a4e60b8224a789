"""Plain lines taken many at a time, outside Python and its lock; every other line is left to the line-by-line path.

Most files are written by one program: the same keys in the same order, plain values. A *template* is learnt from a
line that the line-by-line path understands, and becomes a regular expression (RE2, linear time) so strict that a line
it matches can only mean one thing: each key at most once, UTF-8 checked byte by byte, no escapes, numbers that are
exact, calendar dates that exist. Matching lines go through pyarrow's JSON reader together. Rows that a rule touches (an
outlier, a sentinel word, a time out of range) are sent back as well, so that the line-by-line path stays the only
authority and the only one that counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from tastetwin.jsonline import EXTENDED, Refused, parse_line
from tastetwin.mart import coerce
from tastetwin.mart.coerce import MAX_TEXT, REQUIRED, SENTINELS, TABLE, Coerce
from tastetwin.mart.rules import GateRules
from tastetwin.schema import MART, RATING_REFUSED, Kind

Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]
Rows = np.ndarray[tuple[int], np.dtype[np.int64]]

WORTHWHILE: Final = 32
"""Fewer lines than this are cheaper line by line."""
_PROBES: Final = 3
_ROUNDS: Final = 3

_INTEGER: Final = r"(?:0|-?[1-9][0-9]{0,17})"
_NUMBER: Final = r"-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,15})?"
# No white space and no control character at either end, in any script (U+0085, U+00A0, U+1680, U+2000.. are excluded by
# their first bytes); inside, any valid UTF-8 but control characters, quote and backslash.
_EDGE: Final = r"(?:[!#-\[\]-~]|[\xc3-\xdf][\x80-\xbf]|[\xe4-\xec][\x80-\xbf][\x80-\xbf]|\xed[\x80-\x9f][\x80-\xbf])"
_INNER: Final = (
    r"(?:[ !#-\[\]-~]|\xc2[\xa0-\xbf]|[\xc3-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]"
    r"|[\xe1-\xec\xee\xef][\x80-\xbf][\x80-\xbf]|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf][\x80-\xbf]"
    r"|[\xf1-\xf3][\x80-\xbf][\x80-\xbf][\x80-\xbf]|\xf4[\x80-\x8f][\x80-\xbf][\x80-\xbf])"
)
_TEXT: Final = rf'"{_EDGE}(?:{_INNER}*{_EDGE})?"'
# 29 February is left to the line-by-line path: RE2 cannot tell leap years.
_TIME: Final = (
    r"(?:19|20)[0-9][0-9]-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)"
    r"|(?:0[13578]|1[02])-31)[T ](?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?"
)
_OID: Final = rf'\{{"\$oid": ?{_TEXT}\}}'
_SCALAR: Final = rf"(?:{_TEXT}|\"\"|{_NUMBER}|true|false|{_OID})"
_PLAIN_KEY: Final = re.compile(r"[A-Za-z0-9_]{1,64}")

_DAY_MICROSECONDS: Final = 86_400_000_000


@dataclass(frozen=True)
class Shape:
    """How one field is written: its RE2 grammar and the type pyarrow reads it as."""

    pattern: str
    type: pa.DataType


_SHAPES: Final[dict[str, Shape]] = {
    "text": Shape(_TEXT, pa.string()),
    "integer": Shape(_INTEGER, pa.int64()),
    "number": Shape(_NUMBER, pa.float64()),
    "quoted number": Shape(f'"{_NUMBER}"', pa.string()),
    "time": Shape(f'"{_TIME}"', pa.string()),
    "zulu": Shape(f'"{_TIME}Z"', pa.string()),
    "$oid": Shape(_OID, pa.struct([("$oid", pa.string())])),
    "$date": Shape(rf'\{{"\$date": ?"{_TIME}Z"\}}', pa.struct([("$date", pa.string())])),
    "flag": Shape(r"(?:true|false)", pa.bool_()),
    "codes": Shape(rf"\[(?:{_INTEGER}(?:, ?{_INTEGER})*)?\]", pa.list_(pa.int64())),
}

Template = tuple[tuple[str, str], ...]
"""(key, name of its shape) in the order of the line; "" for a key the kind does not know."""


def take_plain(lines: pa.Array, kind: Kind, rules: GateRules) -> tuple[list[pa.RecordBatch], Rows]:
    """The rows of the lines that are plain, and the positions, ascending, of the lines that are not.

    ``lines`` are binary, one line each, with or without its newline, none longer than the cap; rows are of
    ``MART[kind]``.
    """
    rest: Rows = np.arange(len(lines), dtype=np.int64)
    taken: list[pa.RecordBatch] = []
    tried: set[Template] = set()
    while len(rest) >= WORTHWHILE and len(tried) < _ROUNDS:
        subset = lines if len(rest) == len(lines) else lines.take(pa.array(rest))
        template = next((each for each in _learn(subset, kind) if each not in tried), None)
        if template is None:
            break
        tried.add(template)
        found = pc.match_substring_regex(subset, _pattern(template)).to_numpy(zero_copy_only=False)
        if found.sum() < WORTHWHILE:
            continue
        batch, suspect = _read(subset.filter(pa.array(found)), template, kind, rules)
        taken.append(batch.filter(pa.array(~suspect)))
        found[np.flatnonzero(found)[suspect]] = False
        rest = rest[~found]
    return taken, rest


def _learn(lines: pa.Array, kind: Kind) -> Iterator[Template]:
    for at in np.linspace(0, len(lines) - 1, _PROBES, dtype=int):
        line = lines[int(at)].as_py()
        try:
            parse_line(line)
        except Refused:
            continue
        template = _template(json.loads(line), kind)
        if template is not None:
            yield template


def _template(record: dict[str, Any], kind: Kind) -> Template | None:
    found = []
    for key, value in record.items():
        shape = _shape(TABLE[kind].get(key), value)
        if shape is None or not _PLAIN_KEY.fullmatch(key):
            return None
        found.append((key, shape))
    return tuple(found) if all(field in record for field in REQUIRED[kind]) else None


def _shape(rule: Coerce | None, value: object) -> str | None:
    """The shape of values like this one; None where only the line-by-line path can read them."""
    if isinstance(value, dict):
        return _wrapped(rule, value)
    if rule is None:
        return None if isinstance(value, list) else ""
    if rule is coerce.codes:
        return "codes" if value is None or isinstance(value, list) else None
    if rule is coerce.flag:
        return "flag" if value is None or isinstance(value, bool) else None
    if rule is coerce.moment:
        if value is not None and not isinstance(value, str):
            return None
        return "zulu" if value is not None and value.endswith("Z") else "time"
    if rule is coerce.text:
        return "integer" if isinstance(value, int) else "text"
    return "quoted number" if isinstance(value, str) else "number"


def _wrapped(rule: Coerce | None, value: dict[str, Any]) -> str | None:
    """As ``_shape`` of an object: one of the two ``jsonline.EXTENDED`` that every export of MongoDB has."""
    if value.keys() == {"$oid"}:
        return "" if rule is None else "$oid" if rule is coerce.text else None
    return "$date" if value.keys() == {"$date"} and rule is coerce.moment else None


@lru_cache(maxsize=256)
def _pattern(template: Template) -> str:
    first, *others = (f'"{key}": ?(?:null|{_SHAPES[shape].pattern if shape else _SCALAR})' for key, shape in template)
    return r"\A\{ ?" + first + "".join(f"(?:, ?{pair})?" for pair in others) + r" ?\}\r?\n?\z"


def _read(lines: pa.Array, template: Template, kind: Kind, rules: GateRules) -> tuple[pa.RecordBatch, Mask]:
    """The lines' rows, and which of them are not to be trusted."""
    shapes = {key: shape for key, shape in template if shape}
    schema = pa.schema([(key, _SHAPES[shape].type) for key, shape in shapes.items()])
    data = _joined(lines)
    try:
        table = pj.read_json(
            pa.BufferReader(data),
            read_options=pj.ReadOptions(use_threads=False, block_size=data.size + 1),
            parse_options=pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
    except pa.ArrowInvalid:
        return _nothing(len(lines), kind)
    if table.num_rows != len(lines):
        return _nothing(len(lines), kind)
    suspect: Mask = np.zeros(len(lines), dtype=bool)
    columns = []
    for field in MART[kind]:
        if field.name in shapes:
            column, doubt = _finish(table[field.name].combine_chunks(), shapes[field.name], field.name, kind, rules)
            suspect |= doubt
        elif field.name == RATING_REFUSED:  # what is refused is suspect
            column = pa.repeat(False, len(lines))
        else:
            column = pa.nulls(len(lines), field.type)
        columns.append(column)
    # A null in a column that must not have any is a row to be refused; it leaves with the suspects.
    loose = pa.schema([pa.field(each.name, each.type) for each in MART[kind]])
    return pa.record_batch(columns, schema=loose), suspect


def _nothing(rows: int, kind: Kind) -> tuple[pa.RecordBatch, Mask]:
    loose = pa.schema([pa.field(each.name, each.type) for each in MART[kind]])
    return pa.record_batch([pa.nulls(rows, each.type) for each in loose], schema=loose), np.ones(rows, dtype=bool)


def _joined(lines: pa.Array) -> pa.Buffer:
    """The lines' bytes, one after the other; filtering has laid them out so."""
    offsets = np.frombuffer(lines.buffers()[1], np.int32)[lines.offset : lines.offset + len(lines) + 1]
    return lines.buffers()[2].slice(int(offsets[0]), int(offsets[-1] - offsets[0]))


def _finish(column: pa.Array, shape: str, field: str, kind: Kind, rules: GateRules) -> tuple[pa.Array, Mask]:
    rule = TABLE[kind][field]
    if shape in EXTENDED:
        column = pc.struct_field(column, shape)
    if rule in (coerce.codes, coerce.flag):
        return column, np.zeros(len(column), dtype=bool)
    if rule is coerce.moment:
        return _times(column, shape, rules)
    if rule is coerce.text:
        doubt = _doubtful_text(column) if shape != "integer" else np.zeros(len(column), dtype=bool)
        column = column.cast(pa.string())
        return column, doubt | column.is_null().to_numpy(zero_copy_only=False) if field in REQUIRED[kind] else doubt
    numbers = pc.add(column.cast(pa.float64()), 0.0)  # -0.0 becomes 0.0
    low, high = _range(rule, rules)
    return numbers, _true(pc.or_(pc.less(numbers, low), pc.greater(numbers, high)))


def _range(rule: Coerce, rules: GateRules) -> tuple[float, float]:
    if rule is coerce.rating:
        return (-np.inf, np.inf) if rules.rating_outlier == "keep" else (rules.rating_min, rules.rating_max)
    limit = coerce.LIMITS[rule]
    return -limit, limit


def _true(flags: pa.Array) -> Mask:
    found: Mask = flags.fill_null(False).to_numpy(zero_copy_only=False)
    return found


def _doubtful_text(column: pa.Array) -> Mask:
    """Sentinel words, and texts that may be above the cap (it counts characters, this bytes)."""
    length = pc.binary_length(column).fill_null(8).to_numpy(zero_copy_only=False)
    doubt: Mask = length > MAX_TEXT
    short = np.flatnonzero(length <= max(map(len, SENTINELS)))
    if len(short):
        words = pc.ascii_lower(column.take(pa.array(short)))
        doubt[short] |= _true(pc.is_in(words, value_set=pa.array(sorted(SENTINELS))))
    return doubt


def _times(column: pa.Array, shape: str, rules: GateRules) -> tuple[pa.Array, Mask]:
    null = column.is_null().to_numpy(zero_copy_only=False)
    zone = None if shape == "time" else "UTC"
    stamps = column.cast(pa.timestamp("us", zone)).cast(pa.int64())
    local = stamps.fill_null(rules.earliest).to_numpy()
    doubt: Mask = np.zeros(len(column), dtype=bool)
    shift: Any = 0
    if zone is None and rules.zone != "UTC":
        shift, doubt = _shifts(local, rules.zone)
    instants = local - shift
    doubt |= (instants < rules.earliest) | (instants > rules.latest)
    return pa.array(instants, pa.int64(), mask=null).cast(pa.timestamp("us")), doubt & ~null


def _shifts(local: Rows, zone: str) -> tuple[Rows, Mask]:
    """Microseconds by which each local time is ahead of UTC, and whether the zone's clock changes near that day."""
    days, which = np.unique(local // _DAY_MICROSECONDS, return_inverse=True)
    shifts = [_shift_of_day(int(day), zone) for day in days]
    known = np.array([shift or 0 for shift in shifts], dtype=np.int64)
    changing = np.array([shift is None for shift in shifts], dtype=bool)
    return known[which], changing[which]


@lru_cache(maxsize=1 << 16)
def _shift_of_day(day: int, zone: str) -> int | None:
    """The zone's offset on a day since 1970-01-01, or None on a day on which it changes."""
    start = datetime(1970, 1, 1) + timedelta(days=day)
    info = ZoneInfo(zone)
    offsets = {(start + timedelta(minutes=30 * step)).replace(tzinfo=info).utcoffset() for step in range(49)}
    if len(offsets) > 1 or None in offsets:
        return None
    return next(each for each in offsets if each is not None) // timedelta(microseconds=1)
