"""The mart stage over a dirty town: every line accounted for, the same bytes again, and bad days that stay out."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tastetwin import generations, schema
from tastetwin.config import Config, MartConfig
from tastetwin.engine import Engine
from tastetwin.errors import InputError
from tastetwin.generations import Manifest
from tastetwin.mart.merge import LAYOUTS
from tastetwin.mart.stage import build_mart
from tastetwin.privacy.opt_out import deny
from tastetwin.schema import KINDS, QUARANTINE
from tastetwin.sources.collect import collect
from tastetwin.sources.synthetic import TownReport
from tastetwin.store import Store
from tastetwin.tables import put_table, read_files
from tests.conftest import DIRTY, Mart

CONFIG = Config(mart=MartConfig(max_quarantine_share=1.0))


def build(engine: Engine, store: Store, source: Path, config: Config = CONFIG, again: bool = False) -> Manifest:
    lake = collect(store, str(source), DIRTY.until, config=config.collect)
    return build_mart(engine, store, lake, None, config, again=again)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.create(tmp_path_factory.mktemp("mart") / "store")


@pytest.fixture(scope="module")
def built(engine: Engine, store: Store, town: TownReport) -> Manifest:
    return build(engine, store, town.folder)


def contents(store: Store, mart: Manifest) -> Iterator[tuple[str, str, bytes]]:
    """(table, file name, bytes) of everything but the quarantine, whose rows name source files."""
    for table in sorted(mart.tables):
        for path in mart.paths(table) if table != "quarantine" else ():
            with store.open_read(path) as handle:
                yield table, path.rsplit("/", 1)[-1], handle.read()


def test_the_funnel_is_exactly_what_was_planted(built: Manifest, town: TownReport) -> None:
    """Every planted defect is met once: refused lines, nulled values, and nothing else."""
    assert set(built.facts["kinds"]) == set(town.kinds)
    for kind, planted in town.kinds.items():
        found = built.facts["kinds"][kind]
        assert (found["lines_read"], found["accepted"], found["quarantined"]) == (
            planted.lines, planted.accepted, planted.refused,
        )  # fmt: skip
        # The town writes a bad text, null or no key at all; only the first is a value that had to be made null.
        written = {n: planted.dirt[n] for n in planted.dirt if n.endswith(("-bad", "-999", "-1970", "-2099"))}
        nulled = sum(count for name, count in found.items() if name.startswith("nulled."))
        assert nulled == sum(written.values())
        if kind == "reviews":
            assert found["ratings_refused"] == sum(n for name, n in written.items() if name.startswith("review_rating"))


def test_the_quarantine_holds_every_refused_line(engine: Engine, store: Store, built: Manifest) -> None:
    """A reader can count the table and get the funnel's number, by kind and reason."""
    from tastetwin.tables import read_table

    rows = read_table(store, built, "quarantine", QUARANTINE).to_pylist()
    assert len(rows) == built.facts["counts"]["quarantined"] > 0
    for row in rows[:50]:
        with store.open_read(row["source"]) as handle:
            handle.seek(row["offset"])
            line = handle.read(row["length"] + 1)
        assert line.endswith(b"\n") and line[:-1].decode(errors="replace")[:100] == row["excerpt"][:100]


def test_a_forced_re_run_gives_the_same_bytes(engine: Engine, store: Store, built: Manifest, town: TownReport) -> None:
    """Without this no bug can be reproduced and no re-run trusted."""
    second = build(engine, store, town.folder, again=True)
    assert second.generation == f"{built.generation}-2" and second.digest() == built.digest()
    assert list(contents(store, second)) == list(contents(store, built))


@pytest.mark.parametrize("files", [1, 7])
def test_neither_order_nor_number_of_files_nor_split_size_matter(
    engine: Engine, store: Store, built: Manifest, town: TownReport, tmp_path: Path, files: int
) -> None:
    """The same lines, however they arrive, are the same mart, byte for byte."""
    for kind in KINDS:
        data = b"".join(path.read_bytes() for path in sorted(town.folder.glob(f"{kind}*")))
        lines = data.splitlines(keepends=True)
        random.Random(files).shuffle(lines)
        for number in range(files):
            part = b"".join(lines[number::files])
            zipped = number % 2 == 1
            name = f"{kind}-{number}.jsonl" + (".gz" if zipped else "")
            (tmp_path / name).write_bytes(gzip.compress(part) if zipped else part)
    config = Config(mart=MartConfig(max_quarantine_share=1.0, split_bytes=1 << 16))
    assert list(contents(store, build(engine, store, tmp_path, config))) == list(contents(store, built))


def test_too_many_refused_lines_stop_the_day(engine: Engine, town: TownReport, tmp_path: Path) -> None:
    """A broken exporter must not replace good data by a tenth of it."""
    store = Store.create(tmp_path / "store")
    strict = Config(mart=MartConfig(max_quarantine_share=0.01))
    with pytest.raises(InputError) as caught:
        build(engine, store, town.folder, strict)
    assert caught.value.problem.code == "QUARANTINE-SHARE" and "user_missing" in caught.value.problem.value
    assert not any(generations.is_finished(store, "mart", name) for name in store.names("mart"))


def reviews_rated(ratings: list[Any]) -> dict[str, list[dict[str, Any]]]:
    return {"reviews.jsonl": [{"user_idno": f"u{n}", "review_place_id": "p", "review_rating": r}
                              for n, r in enumerate(ratings)]}  # fmt: skip


def test_a_scale_that_is_not_the_configured_one_stops_the_day(mart: Mart) -> None:
    """Of ratings up to 10, read as up to 5, the best ones would be lost without a word."""
    with pytest.raises(InputError) as caught:
        mart.day(1, reviews_rated([4, 5, *[8, 9] * 10]))
    assert caught.value.problem.code == "RATING-SCALE" and "out_of_range 20" in caught.value.problem.value
    assert "mart.rating_max" in caught.value.problem.rule


@pytest.mark.parametrize("ratings", [["bad"] * 19, ["bad"] * 20 + [4] * 20, [None] * 40])
def test_single_bad_ratings_cost_nobody_the_day(mart: Mart, ratings: list[Any]) -> None:
    """They are marked and counted, however absurd; a source without ratings has no scale."""
    made = mart.day(1, reviews_rated(ratings))
    assert made.facts["counts"].get("ratings_refused", 0) == ratings.count("bad")
    assert [row["review_rating_refused"] for row in mart.rows("reviews")].count(True) == ratings.count("bad")


def test_a_mart_from_before_the_mark_is_carried_on(mart: Mart, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores outlive versions: its rows stay, and those that come again replace them."""
    without = [field for field in schema.REVIEWS if field.name != schema.RATING_REFUSED]
    first = mart.day(1, reviews_rated([4, None]))
    for entry in [entry for name, files in first.tables.items() if name.startswith("reviews") for entry in files]:
        table = read_files(mart.store, [entry.path], pa.schema([*without, (schema.LANDED, pa.string())]))
        put_table(mart.store, entry.path, table)
    again = [{"user_idno": "u0", "review_place_id": "p", "review_rating": 4}]
    second = mart.day(
        2, {"reviews.jsonl": [{"user_idno": "new", "review_place_id": "p", "review_rating": "bad"}, *again]}
    )
    found = mart.engine.read(mart.store, second.paths("reviews"), LAYOUTS["reviews"].schema).toArrow().to_pylist()
    marks = {row["user_idno"]: row["review_rating_refused"] for row in found}
    assert marks == {"u0": None, "u1": None, "new": True} and len(found) == 3


def test_a_damaged_file_is_told_with_its_code(mart: Mart) -> None:
    """The engine wraps a worker's exception; the user must still read which file to replace."""
    random_ids = random.Random(1)
    lines = [{"user_idno": str(random_ids.random()), "review_place_id": "p"} for _ in range(2000)]
    cut = gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode())[:-3000]
    with pytest.raises(InputError) as caught:
        mart.day(1, {"reviews.jsonl.gz": cut})
    assert caught.value.problem.code == "SOURCE-DAMAGED" and "reviews.jsonl.gz" in caught.value.problem.place
    assert not any(generations.is_finished(mart.store, "mart", name) for name in mart.store.names("mart"))


@pytest.mark.parametrize("nothing", [b"", b"\n \n"])
def test_a_day_without_events_is_a_mart_without_rows(mart: Mart, nothing: bytes) -> None:
    """A holiday is no failure, and its funnel says zero rather than nothing."""
    built = mart.day(1, {"reviews.jsonl": nothing})
    assert [built.facts["counts"][name] for name in ("lines_read", "accepted", "quarantined")] == [0, 0, 0]
    assert mart.rows("reviews") == mart.rows("likes") == mart.rows("places") == []


@pytest.mark.parametrize(
    ("name", "line", "kind"),
    [
        ("likes.jsonl", {"user_idno": "u", "like_contentsid": "p"}, "likes"),
        ("reviews.jsonl", {"user_idno": "u", "review_place_id": "p"}, "reviews"),
    ],
)
def test_one_kind_alone_is_enough(mart: Mart, name: str, line: dict[str, str], kind: str) -> None:
    """Check-ins have no likes, like-only services no reviews."""
    mart.day(1, {name: [line]})
    assert {each: len(mart.rows(each)) for each in KINDS} == {each: int(each == kind) for each in KINDS}


@pytest.mark.parametrize("odd", ["a b", "a[1]b", "a*b", "a{x,y}b", "a%20b", "골목", "a=b", "_a", ".a", "a#b?c", "a::b"])
def test_a_store_may_lie_in_any_folder(engine: Engine, tmp_path: Path, odd: str) -> None:
    """Engines take paths for globs and URLs; a folder's name is neither."""
    (tmp_path / odd).mkdir()
    mart = Mart(engine, tmp_path / odd, Config())
    mart.day(1, {"reviews.jsonl": [{"user_idno": "u", "review_id": "1", "review_place_id": "p"}]})
    mart.day(2, {"reviews.jsonl": [{"user_idno": "u", "review_id": "1", "review_place_id": "q"}]})
    assert [row["review_place_id"] for row in mart.rows("reviews")] == ["q"]


def test_times_are_judged_by_the_logical_date(mart: Mart) -> None:
    """A re-run next year must find the same future as the first run did."""
    late = {"user_idno": "u", "review_place_id": "p", "review_visited_date": "2026-06-03T00:00:01"}
    assert date.today() > date(2026, 6, 3)
    mart.day(1, {"reviews.jsonl": [late]})
    assert mart.rows("reviews")[0]["review_visited_date"] is None


def test_what_got_past_the_screen_is_dropped_by_the_gate_and_counted(mart: Mart) -> None:
    """Landed before somebody was forgotten, on a store without a lock: on both paths, refused lines included."""
    mart.config = CONFIG
    reviews = [{"user_idno": f"u{n % 4}", "review_id": f"r{n}", "review_place_id": "p"} for n in range(200)]
    refused = [b'{"user_idno": "u1", "rev', b"so, u1, there", b"so, u10, there", b'{"user_idno": "u1"}']
    odd = b'{"user_idno": " u1 ", "review_place_id": "p", "review_rating": "x"}'
    lines = b"\n".join([json.dumps(each).encode() for each in reviews] + refused + [odd])
    lake = mart.land(date(2026, 6, 1), {"reviews.jsonl": lines, "places.jsonl": [{"place_id": "u1"}]})
    deny(mart.store, ["u1"])
    made = build_mart(mart.engine, mart.store, lake, None, mart.config)
    counts = made.facts["counts"]
    assert (counts["lines_read"], counts["forgotten"], counts["quarantined"]) == (206, 54, 1)
    assert counts["accepted"] + counts["quarantined"] + counts["forgotten"] == counts["lines_read"]
    assert {row["user_idno"] for row in mart.rows("reviews", made)} == {"u0", "u2", "u3"}
    assert [row["place_id"] for row in mart.rows("places", made)] == ["u1"], "places are nobody"
    assert [row["excerpt"] for row in read_files(mart.store, made.paths("quarantine"), QUARANTINE).to_pylist()] == [
        "so, u10, there"
    ]
