"""Texts that name somebody of whom only a hash is known, and raw lines without them."""

from __future__ import annotations

import gzip
import io
import json

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tastetwin.errors import InputError
from tastetwin.privacy.mentions import mentions
from tastetwin.privacy.opt_out import OptOuts, name_of
from tastetwin.privacy.screen import Screen
from tests.privacy.haunted import ODD, line

IDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp", "Zs"]), min_size=1, max_size=30)


def packed(data: bytes, name: str) -> bytes:
    if name.endswith(".zst"):
        return zstandard.ZstdCompressor().compress(data)
    return gzip.compress(data) if name.endswith(".gz") else data


def unpacked(data: bytes, name: str) -> bytes:
    if name.endswith(".zst"):
        return zstandard.ZstdDecompressor().decompressobj(read_across_frames=True).decompress(data)
    return gzip.decompress(data) if name.endswith(".gz") else data


def people(*users: str) -> OptOuts:
    return OptOuts(frozenset(map(name_of, users)))


@pytest.mark.parametrize(
    "text",
    [
        "u1", " u1 ", "a,u1,3.5", "a\tu1", '{"user_idno": "u1", "rev', '{"user_idno":u1}', "the first 'u1' with", "u1!",
        '["u2", "u1"]', "user=u1&x", "no json u1", '\\"u1\\"', '{"user_idno":"\\u0075\\u0031"', '"u1',
    ],
)  # fmt: skip
def test_an_id_is_found_where_a_reader_would_find_it(text: str) -> None:
    """Lines that nobody can parse hold ids as well, and go to quarantine with an excerpt."""
    assert mentions(text, people("u1"))
    assert not mentions(text, people("u10", "u", "1", "u2u1"))


@pytest.mark.parametrize("broken", [b"\xffu1", b"u1\xff", b"u\xff1", b"\xc3u1\xe2\x82"], ids=repr)
@pytest.mark.parametrize("line", [b'{"user_idno": "%s", "like_contentsid": "p"}', b"%s,p", b"liked by %s"], ids=repr)
def test_bytes_that_are_no_text_hide_no_id(line: bytes, broken: bytes) -> None:
    """A line with such a byte is refused and kept with its excerpt, and a reader sees at once whose it is."""
    assert mentions((line % broken).decode(errors="replace"), people("u1"))


@pytest.mark.parametrize("text", ["u10", "xu1", "u1x", '"u10"', "u-1", "u_1", "u1.5", "", '"u2"'])
def test_a_longer_word_is_another_id(text: str) -> None:
    """Forgetting u1 must not touch u10."""
    assert not mentions(text, people("u1"))


@given(IDS, st.booleans(), st.integers(0, 12))
def test_any_id_is_found_in_a_json_line_cut_off_behind_it(user: str, ascii_only: bool, cut: int) -> None:
    """Whatever is in it, escaped or not: a truncated last line is the usual refused line."""
    text = json.dumps({"a": 'say "x"', "user_idno": user, "review_place_id": "p"}, ensure_ascii=ascii_only)
    assert mentions(text[: len(text) - cut], people(user.strip()))


@given(IDS.filter(lambda user: user.strip() == user))
def test_of_two_lines_only_theirs_becomes_blanks_of_its_length(user: str) -> None:
    """Offsets in the quarantine still lead to the right line."""
    screen = Screen(people(user))
    theirs, other = line(user), line("x" + user)
    assert screen.line(theirs, "reviews") == b" " * (len(theirs) - 1) + b"\n"
    assert screen.line(other, "reviews") == other
    assert screen.held_back == 1


@pytest.mark.parametrize(
    "written", ['"42"', "42", "42.0", '" 42 "', '"\\u0034\\u0032"', '{"$oid": "42"}', '{"$numberLong": "42"}']
)
def test_a_user_is_known_however_the_source_writes_the_id(written: str) -> None:
    """As the gate reads it: stripped text, integers as their digits."""
    raw = f'{{"user_idno": {written}, "review_place_id": "p"}}\r\n'.encode()
    assert Screen(people("42")).line(raw, "reviews") == b" " * (len(raw) - 2) + b"\r\n"


def test_a_number_that_is_no_user_id_stays() -> None:
    """Users, places and ratings may share their numbers."""
    raw = b'{"user_idno": 7, "review_place_id": 5, "review_rating": 5, "review_id": "5"}\n'
    assert Screen(people("5")).line(raw, "reviews") == raw
    place = b'{"place_id": 5, "place_name": "5"}\n'
    assert Screen(people("5")).line(place, "places") == place


def test_another_s_line_loses_only_what_nobody_reads() -> None:
    """A list of friends names them; the review itself is somebody else's."""
    raw = line("bob", review_rating=4.5, friends=["x", ODD], _id={"$oid": "7"})
    kept = Screen(people(ODD)).line(raw, "reviews")
    assert json.loads(kept) == {"user_idno": "bob", "review_place_id": "a", "review_rating": 4.5, "_id": {"$oid": "7"}}
    assert len(kept) == len(raw)


def test_what_nobody_reads_stays_where_it_mentions_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lake keeps the source's own bytes; and words that were looked up once are remembered, but not without end."""
    monkeypatch.setattr("tastetwin.privacy.screen._REMEMBERED", 20)
    screen = Screen(people("u1"))
    for number in range(100):
        raw = f'{{ "user_idno": "bob",  "friends": ["x{number}"] }}\n'.encode()
        assert screen.line(raw, "reviews") == raw
        assert 0 < len(screen._strangers) < 30
    assert screen.held_back == 0


@pytest.mark.parametrize("written", ["1e15", "-1e+300", "0.00001", "4.50", "9" * 5_000, '"골목식당"', '"\\"\\n"'])
def test_what_is_read_stays_as_it_was_written(written: str) -> None:
    """Longer, it would move all lines behind it; and no number may be too long for Python to read."""
    read = f'"user_idno":"bob","review_rating":{written}'
    raw = f'{{{read},"a":"u1"}}\n'.encode()
    assert Screen(people("u1")).line(raw, "reviews") == f"{{{read}}}".encode().ljust(len(raw) - 1) + b"\n"


def test_an_unreadable_line_too_long_to_be_looked_through_is_masked_and_still_refused() -> None:
    """It still counts among the refused: a broken source must not pass for a clean one."""
    raw = b"{" + b"x" * (1 << 18) + b"\n"
    masked = Screen(people("u1")).line(raw, "reviews")
    assert masked == b"#" * (len(raw) - 1) + b"\n"
    again = Screen(people("u1"))
    assert again.line(masked, "reviews") == masked and again.held_back == 0


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_a_line_too_long_to_be_read_is_masked_and_the_next_one_is_not(
    monkeypatch: pytest.MonkeyPatch, end: bytes
) -> None:
    """Memory stays bounded, no piece of it passes for a line of its own, and its neighbours lose nothing."""
    monkeypatch.setattr("tastetwin.privacy.screen._LONGEST_LINE", 64)
    fits, long = line("a")[:-1].ljust(63) + b"\n", b"u1 ".ljust(64 * 3 + 10, b"x") + end
    screen = Screen(people("u1"))
    found = b"".join(screen.lines(io.BytesIO(fits + long + (fits if end else b"")), "r.jsonl", "reviews"))
    assert found == fits + b"#" * (len(long) - len(end)) + end + (fits if end else b"")


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz", "r.jsonl.zst"])
def test_a_file_keeps_its_compression_and_every_other_byte(name: str) -> None:
    """Also without a newline at the end, with blank lines, and several streams one after the other."""
    raw = b"\xef\xbb\xbf" + line("a") + b"\n" + line(ODD) + b"\xff\n" + line("b")[:-1]
    sink = io.BytesIO()
    Screen(people(ODD)).copy(io.BytesIO(packed(raw[:60], name) + packed(raw[60:], name)), sink, name, "reviews")
    assert unpacked(sink.getvalue(), name) == raw.replace(line(ODD)[:-1], b" " * (len(line(ODD)) - 1))


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz", "r.jsonl.zst"])
def test_a_copy_made_again_is_the_same_to_the_byte(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A day that is collected again must have the same hash: neither the clock nor a file's name may be in it."""
    copies = []
    for now, named in ((1e9, "a"), (2e9, "b")):
        monkeypatch.setattr("time.time", lambda now=now: now)
        sink = io.BytesIO()
        sink.name = named
        Screen(people(ODD)).copy(io.BytesIO(packed(line("a"), name)), sink, name, "reviews")
        copies.append(sink.getvalue())
    assert copies[0] == copies[1]


def test_a_file_that_is_cut_off_is_damaged() -> None:
    """The same code as at the gate, which would find it next."""
    data = gzip.compress(line("a") * 1000)
    with pytest.raises(InputError) as caught:
        Screen(people("u1")).copy(io.BytesIO(data[:-20]), io.BytesIO(), "r.jsonl.gz", "reviews")
    assert caught.value.problem.code == "SOURCE-DAMAGED"
