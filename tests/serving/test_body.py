"""How deep a body nests, beside a slow twin that parses it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tastetwin.errors import UsageError
from tastetwin.serving.body import check_depth

TEXTS = st.text(st.sampled_from('a"\\[]{}\n\u00e9,:'), max_size=8)
VALUES = st.recursive(
    TEXTS | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=12,
)


def depth(value: Any) -> int:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inside is None else 1 + max(map(depth, inside), default=0)


def passes(body: bytes, limit: int) -> bool:
    try:
        check_depth(body, limit)
    except UsageError as error:
        assert error.problem.code == "HTTP-DEPTH"
        return False
    return True


@given(VALUES, st.integers(0, 6), st.booleans())
def test_depth_is_what_a_parser_would_find(value: Any, limit: int, ascii_only: bool) -> None:
    """Brackets in strings, and escaped quotes before them, are how such a check is fooled."""
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert passes(body, limit) == (depth(value) <= limit)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'])
def test_a_hundred_thousand_levels_are_refused(opening: bytes) -> None:
    """Closed or not: a parser that recurses would end the process."""
    assert not passes(opening * 100_000, 16)
    assert not passes(b"[" * 100_000 + b"]" * 100_000, 16)


def test_many_flat_lists_are_no_depth() -> None:
    """A batch of histories is wide."""
    assert passes(json.dumps([{"a": [1, "x"]} for _ in range(10_000)]).encode(), 3)


@given(st.binary(max_size=60))
def test_what_is_no_json_raises_nothing_else(body: bytes) -> None:
    """The parser after it says what is wrong."""
    passes(body, 3)


@pytest.mark.parametrize("part", [b'\\"', b'"', b"\\", b'"\\', b'["', b'"[['])
def test_a_megabyte_of_anything_is_read_once(part: bytes) -> None:
    """A search for the end of each of half a million strings that have none would take hours."""
    for start in (b"[" * 17, b"[" * 17 + b'"'):
        passes(start + part * ((1 << 20) // len(part)), 16)
