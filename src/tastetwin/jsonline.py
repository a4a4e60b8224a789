"""One line of bytes to one JSON object, strictly (RFC 8259), or a reason why not.

The standard library's parser is used because it shows duplicate keys and keeps long integers apart; orjson takes the
last of two equal keys and turns a 30-digit integer into a nearby float without a word.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, NoReturn

EXTENDED: Final = frozenset({"$oid", "$date", "$numberInt", "$numberLong", "$numberDouble", "$numberDecimal"})
"""An object of one of these keys alone is a value: MongoDB Extended JSON v2, as ``mongoexport`` writes it."""
MAX_DEPTH: Final = 32
"""Nesting allowed; the outermost object is depth 1."""
BLANK: Final = " \t\r\n"
_INT64_DIGITS: Final = 20
# An unterminated string swallows the rest, so that a hostile line is scanned once.
_STRUCTURE: Final = re.compile(rb'"(?:[^"\\]|\\.?)*+"?|[\[\]{}]', re.DOTALL)
_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")


class Refused(Exception):
    """The line is not accepted; the argument is the reason code."""

    @property
    def reason(self) -> str:
        """The code in the quarantine."""
        return str(self.args[0])


def parse_line(line: bytes) -> dict[str, Any]:
    """The JSON object in ``line``; integers beyond 20 characters come back as floats, ``EXTENDED`` values as what they
    wrap.

    Raises:
        Refused: invalid_utf8, too_deep, non_finite_literal, duplicate_key, truncated, syntax, trailing_data,
            not_an_object, lone_surrogate.
    """
    try:
        text = line.decode().strip(BLANK)
    except UnicodeDecodeError:
        raise Refused("invalid_utf8") from None
    if line.count(b"[") + line.count(b"{") > MAX_DEPTH:
        _check_depth(line)
    try:
        value, end = _DECODER.raw_decode(text)
    except json.JSONDecodeError as error:
        cut = error.pos >= len(text) or error.msg.startswith("Unterminated")
        raise Refused("truncated" if cut else "syntax") from None
    if end != len(text):
        raise Refused("trailing_data")
    if not isinstance(value, dict):
        raise Refused("not_an_object")
    if _SURROGATE.search(text):
        _check_surrogates(value)
    return value


def _check_depth(line: bytes) -> None:
    depth = 0
    for token in _STRUCTURE.finditer(line):
        byte = token[0][0]
        depth += (byte in b"[{") - (byte in b"]}")
        if depth > MAX_DEPTH:
            raise Refused("too_deep")


def _check_surrogates(value: dict[str, Any]) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Refused("lone_surrogate") from None


def _object(pairs: list[tuple[str, Any]]) -> Any:
    if len(pairs) == 1 and pairs[0][0] in EXTENDED:
        return pairs[0][1]
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Refused("duplicate_key")
    return found


def _integer(text: str) -> int | float:
    # int() takes quadratic time; nothing beyond int64 is ever kept, and a float that large never passes for one.
    return int(text) if len(text) <= _INT64_DIGITS else float(text)


def _literal(text: str) -> NoReturn:
    raise Refused("non_finite_literal")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_constant=_literal)
