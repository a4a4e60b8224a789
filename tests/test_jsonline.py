"""Lines of JSON beyond what the gate's hostile corpus asks."""

from __future__ import annotations

import pytest

from tastetwin.jsonline import MAX_DEPTH, Refused, parse_line


@pytest.mark.parametrize("name", ["$oid", "$date", "$numberInt", "$numberLong", "$numberDouble", "$numberDecimal"])
def test_what_mongoexport_wraps_is_what_is_inside(name: str) -> None:
    """Anywhere, also one within the other; an object of more keys is an object."""
    assert parse_line(b'{"a": {"%s": "5"}, "b": [{"%s": 7}]}' % ((name.encode(),) * 2)) == {"a": "5", "b": [7]}
    assert parse_line(b'{"a": {"$date": {"%s": "5"}}}' % name.encode()) == {"a": "5"}
    assert parse_line(b'{"a": {"%s": "5", "x": 1}}' % name.encode()) == {"a": {name: "5", "x": 1}}


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_the_deepest_line_is_read_and_a_deeper_one_is_not(opening: bytes, closing: bytes) -> None:
    """The outermost object is depth 1; brackets within texts and side by side are no depth."""

    def nested(depth: int) -> bytes:
        return b'{"a":' + opening * (depth - 1) + b"0" + closing * (depth - 1) + b"}"

    assert parse_line(nested(MAX_DEPTH))
    with pytest.raises(Refused, match="too_deep"):
        parse_line(nested(MAX_DEPTH + 1))
    assert parse_line(b'{"a": "' + b"[{" * 99 + b'", "b": [' + b"[]," * 99 + b"0]}")


@pytest.mark.parametrize(
    ("written", "read"),
    [("9" * 20, 10**20 - 1), ("-" + "9" * 19, 1 - 10**19), ("1" * 21, float("1" * 21)), ("9" * 5_000, float("inf"))],
)
def test_an_integer_beyond_any_column_is_a_float(written: str, read: float) -> None:
    """Of more than 4,300 digits Python makes no integer at all."""
    found = parse_line(f'{{"a": {written}}}'.encode())["a"]
    assert found == read and type(found) is type(read)


def test_a_pair_of_surrogates_is_a_letter() -> None:
    """Half of the world's exporters escape emoji so."""
    assert parse_line(b' {"a": "\\ud83c\\udf5c"} \r\n') == {"a": "\N{STEAMING BOWL}"}
