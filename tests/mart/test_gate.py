"""One bad line never costs a good line, each refusal has a reason, and memory is bounded."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tastetwin.config import CollectConfig, MartConfig
from tastetwin.errors import InputError
from tastetwin.mart import fast
from tastetwin.mart.gate import GateRules, Split, gate_split, plan_splits
from tastetwin.mart.lines import open_path
from tastetwin.schema import MART, QUARANTINE, Kind
from tests.mart.hostile import ACCEPTED, GOOD, REFUSED, TIME, line

Rows = Counter[str]


def rules_of(zone: str = "UTC", **mart: Any) -> GateRules:
    return GateRules.of(MartConfig(**mart), CollectConfig(source_timezone=zone), date(2020, 1, 1))


RULES = rules_of()


def rows_of(batch: pa.RecordBatch) -> Rows:
    """Rows as tuples, times as integers; repr keeps -0.0 and 0.0, 1 and 1.0 apart."""
    times = [column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column for column in batch.columns]
    return Counter(map(repr, zip(*(column.to_pylist() for column in times), strict=True))) if times else Counter()


def run(splits: list[Split], rules: GateRules = RULES) -> tuple[Rows, Rows, Counter[str]]:
    accepted: Rows = Counter()
    refused: Rows = Counter()
    counts: Counter[str] = Counter()
    for split in splits:
        for batch in gate_split(split, rules):
            assert batch.accepted.schema == MART[split.kind]
            assert batch.quarantined.schema == QUARANTINE
            assert batch.accepted.num_rows + batch.quarantined.num_rows == batch.counts["lines_read"]
            accepted += rows_of(batch.accepted)
            refused += rows_of(batch.quarantined)
            counts += batch.counts
    return accepted, refused, counts


def run_bytes(data: bytes, folder: Path, kind: Kind = "reviews", rules: GateRules = RULES) -> Any:
    path = folder / "reviews.jsonl"
    path.write_bytes(data)
    return run(plan_splits(kind, str(path), len(data), 1 << 30), rules)


def expected_row(changes: dict[str, Any], refused: bool = False) -> str:
    return repr((*(GOOD | {"review_visited_date": TIME} | changes).values(), refused))


CROWD = b"".join(line(review_id=f"r{n}") + b"\n" for n in range(100))
"""Enough plain lines that the vectorised path is at work around the line in question."""


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("crowd", [b"\n", CROWD], ids=["alone", "in a crowd"])
def test_a_hostile_line_is_refused_for_its_reason_and_costs_nobody_else(
    name: str, crowd: bytes, tmp_path: Path
) -> None:
    """Stock readers lose the file, or change good rows without a word."""
    bad, reason = REFUSED[name]
    accepted, refused, counts = run_bytes(crowd + bad + b"\n" + line() + b"\n", tmp_path)
    assert accepted == Counter([expected_row({})]) + Counter(
        expected_row({"review_id": f"r{n}"}) for n in range(100 if crowd == CROWD else 0)
    )
    digest, excerpt = hashlib.sha256(bad).hexdigest(), bad[:200].decode(errors="replace")
    path = str(tmp_path / "reviews.jsonl")
    assert list(refused) == [repr(("reviews", path, len(crowd), len(bad), reason, digest, excerpt))]
    assert counts[f"quarantined.{reason}"] == counts["quarantined"] == 1


@pytest.mark.parametrize("name", ACCEPTED)
@pytest.mark.parametrize("crowd", [b"\n", CROWD], ids=["alone", "in a crowd"])
def test_an_odd_but_usable_line_gives_the_known_row(name: str, crowd: bytes, tmp_path: Path) -> None:
    """A bad rating or time must not cost the visit; what became null is counted by reason."""
    odd, changes, noted = ACCEPTED[name]
    accepted, refused, counts = run_bytes(crowd + odd + b"\n", tmp_path)
    given = [note for note in noted if note.startswith("nulled.review_rating.") and not note.endswith(".missing")]
    known = expected_row(changes, refused=bool(given))
    crowd_rows = Counter(expected_row({"review_id": f"r{n}"}) for n in range(100 if crowd == CROWD else 0))
    assert accepted - crowd_rows == Counter([known])
    assert not refused
    assert {key for key in counts if "." in key} == set(noted)
    assert counts["ratings_refused"] == len(given)
    rated = changes.get("review_rating", "as in the good line") is not None
    assert counts["ratings"] == crowd_rows.total() + rated + len(given)


@pytest.mark.parametrize(
    ("data", "accepted", "refused"),
    [
        (b"", 0, 0),
        (b"\n\r\n \t \n\n", 0, 0),
        (line(), 1, 0),
        (b"\xef\xbb\xbf" + line() + b"\r\n\r\n" + line() + b"\r\n", 2, 0),
        (b"\xef\xbb\xbf", 0, 0),
        (line() + b"\n" + line()[:-1], 1, 1),
        (line(review_rating=1) + b"\n" + b"".join(line(review_rating=str(n % 5)) + b"\n" for n in range(500)), 501, 0),
    ],
    ids=["empty", "only blank", "no newline at the end", "BOM, CRLF, blank", "only BOM", "cut off", "type change"],
)
def test_blank_lines_are_not_lines_and_the_ends_of_a_file_are_kept(
    data: bytes, accepted: int, refused: int, tmp_path: Path
) -> None:
    """A byte order mark costs other readers the first row, a missing newline the last."""
    counts = run_bytes(data, tmp_path)[2]
    assert (counts["accepted"], counts["quarantined"]) == (accepted, refused)


def corpus() -> bytes:
    """Every line of the corpus, good crowds in between, offsets of all kinds, no newline at the end."""
    odd = [each[0] for each in REFUSED.values()] + [each[0] for each in ACCEPTED.values()]
    parts = [b"\xef\xbb\xbf" + CROWD, *(each + b"\n" for each in odd), b"\n", CROWD, b"\r\n", line()]
    return b"".join(parts)


@pytest.mark.parametrize("split_bytes", [7, 1 << 10, 4099, 1 << 16])
def test_any_cut_of_a_file_gives_the_same_rows(split_bytes: int, tmp_path: Path) -> None:
    """A line lost or doubled at a cut would show only at scale."""
    data = corpus() if split_bytes > 7 else CROWD[:3000]
    whole = run_bytes(data, tmp_path)
    path = str(tmp_path / "reviews.jsonl")
    assert run(plan_splits("reviews", path, len(data), split_bytes)) == whole


@pytest.mark.parametrize("cap", [1 << 10, 1 << 20])
def test_a_line_at_the_cap_is_read_and_one_above_is_refused(cap: int, tmp_path: Path) -> None:
    """The cap is a number in the configuration; off by one, it would hang on where a chunk ends."""
    pad = cap - len(line(extra=""))
    data = line(extra="x" * pad) + b"\n" + line(extra="x" * (pad + 1)) + b"\n" + line()
    accepted, refused, _ = run_bytes(data, tmp_path, rules=rules_of(max_line_bytes=cap))
    assert accepted.total() == 2
    digest = hashlib.sha256(line(extra="x" * (pad + 1))[:cap]).hexdigest()
    [row] = refused
    assert "'line_too_long'" in row and f", {cap + 1}, {cap + 1}, " in row and digest in row


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files_give_the_same_rows_at_the_same_offsets(suffix: str, tmp_path: Path) -> None:
    """Compression is the source's affair; so are files made of several members or frames."""
    data = corpus()
    pack = gzip.compress if suffix == ".gz" else zstandard.ZstdCompressor().compress
    path = tmp_path / f"reviews.jsonl{suffix}"
    path.write_bytes(pack(data[:10_001]) + pack(data[10_001:]))
    splits = plan_splits("reviews", str(path), path.stat().st_size, 1 << 16)
    assert len(splits) == 1
    accepted, refused, counts = run(splits)
    plain_accepted, plain_refused, plain_counts = run_bytes(data, tmp_path)
    assert (accepted, counts) == (plain_accepted, plain_counts)
    assert Counter(key.replace(suffix, "") for key in refused.elements()) == plain_refused


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "not compressed"])
def test_a_damaged_compressed_file_is_a_coded_error(suffix: str, damage: str, tmp_path: Path) -> None:
    """A stream that ends early looks like a short file to many readers: silent loss."""
    pack = gzip.compress if suffix == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress
    whole = pack(b"".join(line(review_id=f"{n * 7919 % 10_007}") + b"\n" for n in range(5000)))
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 0x55]) + whole[middle + 1 :]
    data = {"cut": whole[:-20], "flipped": flipped, "not compressed": CROWD}[damage]
    path = tmp_path / f"reviews.jsonl{suffix}"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"SOURCE-DAMAGED: .*reviews\.jsonl"):
        run([Split("reviews", str(path), 0, len(data), "gzip" if suffix == ".gz" else "zstd")])


def test_an_absent_file_is_a_coded_error(tmp_path: Path) -> None:
    """The place and the fix, not a traceback from a worker."""
    with pytest.raises(InputError, match="SOURCE-UNREADABLE"):
        run([Split("reviews", str(tmp_path / "no.jsonl"), 0, 10, "none")])


def test_remote_paths_open_through_fsspec() -> None:
    """The lake may live in an object store; memory:// stands in for it."""
    import fsspec

    with fsspec.open("memory://lake/reviews.jsonl", "wb") as handle:
        handle.write(CROWD)
    counts = run(plan_splits("reviews", "memory://lake/reviews.jsonl", len(CROWD), 4096))[2]
    assert counts["accepted"] == 100


def test_a_40_mb_line_costs_no_more_than_its_cap(tmp_path: Path) -> None:
    """One runaway line must not kill the worker; peak memory is read from a process of its own."""
    path = tmp_path / "reviews.jsonl"
    small = line() + b"\n"
    path.write_bytes(small * 10 + b'{"user_idno": "' + b"x" * (40 << 20) + b'"}\n' + small * 10)
    code = f"""
import resource, sys
sys.path[:0] = {sys.path!r}
from tests.mart.test_gate import RULES, run, plan_splits
splits = plan_splits("reviews", {str(path)!r}, {path.stat().st_size}, 16 << 20)
run(splits[:1][:0])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
counts = run(splits)[2]
print(counts["accepted"], counts["quarantined.line_too_long"],
      resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    accepted, refused, kib = map(int, done.stdout.split())
    assert (accepted, refused) == (20, 1)
    assert kib < 36 << 10


# -- the vectorised path against the line-by-line path -----------------------------------------------------------

EXPORTED = (
    {"_id": {"$oid": "5f"}}
    | GOOD
    | {
        "user_idno": {"$oid": "5f"},
        "review_visited_date": {"$date": "2013-03-20T23:00:00.5Z"},
    }
)
"""As ``mongoexport`` writes it."""
SEEDS: dict[Kind, list[dict[str, Any]]] = {
    "reviews": [
        EXPORTED,
        GOOD,
        GOOD | {"user_idno": 42, "review_place_id": 7},
        GOOD | {"review_rating": "4.5", "extra": True},
    ],
    "likes": [
        {"user_idno": "u", "like_regymdt": "2013-02-28T01:02:03", "like_displayid": "place", "like_contentsid": "c"},
        {"user_idno": "u", "like_regymdt": "2013-02-28T01:02:03.5Z", "like_displayid": None, "like_contentsid": 9},
    ],
    "places": [
        {
            "place_id": "p",
            "place_category_code_list": [1, 22],
            "place_dongcode": "g30_-98",
            "place_name": "골목 Café",
            "place_lat": 30.25,
            "place_lon": -97.7,
        },
        {"place_id": 3, "place_category_code_list": [], "place_dongcode": 11680, "place_lat": 1, "place_lon": -0.0},
    ],
    "follows": [
        {"user_idno": "u", "other_idno": 9, "relation_regymdt": "2013-02-28T01:02:03", "relation_ended": True},
        {"user_idno": "u", "other_idno": "v", "relation_ended": None},
    ],
    "blocks": [{"user_idno": 1, "other_idno": 2, "relation_ended": False}],
}
VALUES: list[Any] = [
    None, True, False, 0, -0.0, 1, 5, 5.1, -1, 1e300, 2**53, 2**63, 10**30, "", " ", "u", " u", "u ", "null",
    "NaN", "none",
    "4.5", "-0", "0", "007", "1e5", "u" * 256, "u" * 257, "사" * 100, "\u3000", "\u00a0x", "x\u0085y", "\x7f", "\u2028",
    "a\nb", 'a"b', "a\\b", "😀", "2013-02-29T00:00:00", "2012-02-29T00:00:00", "2013-04-31T00:00:00",
    "2013-03-31T02:30:00", "2013-10-27T02:30:00", "2013-12-31T23:59:59", "2020-01-03T00:00:00", "2020-01-03T00:00:01",
    "1999-12-31T23:59:59", "2000-01-01 00:00:00", "2013-03-20T23:00:00.1234567", "2013-03-20T23:00:60", "2013-03-20",
    "2013-03-20T23:00:00+02:00", 1363820400, [], [1], [1, None], ["2"], [10**30], [-0.0, -3], [[1]], {}, {"a": 1},
    {"$oid": "u"}, {"$oid": " u"}, {"$oid": "null"}, {"$oid": None}, {"$date": "2013-03-20T23:00:00Z"},
    {"$date": "2013-03-20T23:00:00"}, {"$date": None}, {"$numberLong": "5"}, [{"$numberInt": "5"}],
    {"$oid": {"$oid": "u"}},
]  # fmt: skip
RAW: list[bytes] = [
    b"NaN", b"1e400", b"-0", b"-0.0", b"04", b"4.", b".5", b"1" * 18, b"1" * 19, b"1" * 30, b"0.1234567890123456",
    b"123456789012345.123456789012345", b'"\xff"', b'"\xc2\x80"', b'"\xed\xa0\x80"', b'"\xf4\x90\x80\x80"',
    b'"\xe3\x80\x80"', b'"\xc0\x80"', rb'"\u0041"', rb'"\ud800"', b'"\x00"', b'"\t"', b"tru", b"[1,2 ]", b"[ 1]",
    b"[01]",
    b"[1,]", b"[1]]", b"{}", b'"a","b"', b'"a":1', b"",
]  # fmt: skip


@st.composite
def files(draw: st.DrawFn) -> tuple[Kind, bytes]:
    """A crowd of one or two shapes with spoilt lines among it."""
    kind = draw(st.sampled_from(list(SEEDS)))
    records = draw(st.lists(st.sampled_from(SEEDS[kind]), min_size=1, max_size=2))
    separators = draw(st.sampled_from([(", ", ": "), (",", ":"), (",  ", ": ")]))
    crowd = [json.dumps(each, ensure_ascii=False, separators=separators).encode() for each in records] * 40
    spoilt = draw(st.lists(spoilt_line(kind, separators), min_size=1, max_size=12))
    lines = draw(st.permutations(spoilt)) + crowd
    lines = lines[::2] + lines[1::2]
    end = draw(st.sampled_from([b"\n", b"\r\n"]))
    return kind, end.join(lines) + draw(st.sampled_from([b"", end]))


@st.composite
def spoilt_line(draw: st.DrawFn, kind: Kind, separators: tuple[str, str]) -> bytes:
    record = dict(draw(st.sampled_from(SEEDS[kind])))
    key = draw(st.sampled_from([*record, "extra"]))
    how = draw(st.sampled_from(["value", "raw", "bytes", "double", "drop", "order", "twice"]))
    if how == "value":
        record[key] = draw(st.sampled_from(VALUES))
    elif how == "drop":
        record.pop(key, None)
    elif how == "order":
        record = dict(draw(st.permutations(list(record.items()))))
    elif how == "raw":
        record[key] = "@@"
    line = json.dumps(record, ensure_ascii=draw(st.booleans()), separators=separators).encode()
    if how == "raw":
        return line.replace(b'"@@"', draw(st.sampled_from(RAW)))
    if how == "double":
        return line[:-1] + b", " + json.dumps({key: draw(st.sampled_from(VALUES))}).encode()[1:]
    if how == "twice":
        return line + draw(st.sampled_from([b"", b" ", b"\r", b","])) + line
    if how == "bytes":
        for _ in range(draw(st.integers(1, 3))):
            at = draw(st.integers(0, len(line) - 1))
            line = line[:at] + draw(st.binary(max_size=2)) + line[at + draw(st.integers(0, 2)) :]
    return line


ZONES = st.sampled_from(["UTC", "Asia/Seoul", "Europe/Berlin"])


@settings(max_examples=250, deadline=None)
@given(file=files(), zone=ZONES, outlier=st.sampled_from(["keep", "clip", "null"]))
def test_the_vectorised_path_changes_nothing(
    file: tuple[Kind, bytes], zone: str, outlier: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Speed must not buy another answer: rows, refusals and counts equal those of the line-by-line path alone."""
    folder = tmp_path_factory.mktemp("gate")
    rules = rules_of(zone, rating_outlier=outlier)
    both = run_bytes(file[1], folder, file[0], rules)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast, "WORTHWHILE", 1 << 62)
        assert run_bytes(file[1], folder, file[0], rules) == both


@pytest.mark.parametrize("kind", SEEDS)
@pytest.mark.parametrize("zone", ["UTC", "Asia/Seoul"])
def test_plain_lines_do_take_the_vectorised_path(kind: Kind, zone: str) -> None:
    """Without this, the test above could compare the line-by-line path with itself."""
    for record in SEEDS[kind]:
        lines = pa.array([json.dumps(record, ensure_ascii=False).encode() + b"\n"] * 64, pa.binary())
        taken, rest = fast.take_plain(lines, kind, rules_of(zone))
        assert (sum(batch.num_rows for batch in taken), len(rest)) == (64, 0), record


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=2000), repeat=st.integers(1, 40), kind=st.sampled_from(list(SEEDS)))
def test_random_bytes_never_raise_and_no_line_is_lost(
    data: bytes, repeat: int, kind: Kind, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """accepted + quarantined = lines read, and lines read = the lines that are there."""
    data = data.replace(b"~", b"\n") * repeat
    counts = run_bytes(data, tmp_path_factory.mktemp("gate"), kind)[2]
    body = data.removeprefix(b"\xef\xbb\xbf")
    assert counts["lines_read"] == sum(bool(each.strip(b" \t\r")) for each in body.split(b"\n"))
    assert counts["accepted"] + counts["quarantined"] == counts["lines_read"]


def test_the_gate_reads_through_the_opener_it_is_given() -> None:
    """Deletion ledgers and tests hand in bytes of their own."""
    opened: list[str] = []

    def opener(path: str) -> Any:
        opened.append(path)
        return open_path(__file__)

    counts: Counter[str] = Counter()
    for batch in gate_split(Split("reviews", "anything", 0, 100, "none"), RULES, opener):
        counts += batch.counts
    assert opened == ["anything"] and counts["accepted"] == 0 and counts["quarantined"] > 0
