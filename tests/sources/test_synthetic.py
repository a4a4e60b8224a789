"""The synthetic town is the known answer of every other test: its own answer must be right."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tastetwin.errors import StoreError, UsageError
from tastetwin.schema import Kind
from tastetwin.sources.synthetic import DIRT, TownConfig, TownReport, write_day, write_town
from tastetwin.sources.synthetic_text import PartWriter, digits, times
from tastetwin.sources.synthetic_world import BLOCK_USERS, Choices, World

CONFIG = TownConfig(users=600, places=300, mean_favors=20, dirt_share=0.2, seed=3)
CLEAN = replace(CONFIG, dirt_share=0.0)
USER_OF: dict[Kind, str] = {"reviews": "user_idno", "likes": "user_idno"}
PLACE_OF: dict[Kind, str] = {"reviews": "review_place_id", "likes": "like_contentsid", "places": "place_id"}
TIME_OF: dict[Kind, str] = {"reviews": "review_visited_date", "likes": "like_regymdt"}


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> TownReport:
    return write_town(CONFIG, tmp_path_factory.mktemp("dirty") / "town")


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> TownReport:
    return write_town(CLEAN, tmp_path_factory.mktemp("clean") / "town")


def content(folder: Path, kind: Kind) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.glob(f"{kind}-*.jsonl")))


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def records(folder: Path, kind: Kind) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content(folder, kind).splitlines()]


def refuse(literal: str) -> None:
    raise ValueError(literal)


def read(line: bytes, kind: Kind) -> dict[str, Any] | None:
    """The slow, plain reader: the line's record, or None where it must be refused."""
    try:
        record = json.loads(line.decode("utf-8"), parse_constant=refuse)
        json.dumps(record, ensure_ascii=False).encode("utf-8")
    except ValueError:
        return None
    if not isinstance(record, dict):
        return None
    ids = [record.get(column.get(kind, PLACE_OF[kind])) for column in (USER_OF, PLACE_OF)]
    return record if all(isinstance(value, int) or (isinstance(value, str) and value) for value in ids) else None


def is_null(record: dict[str, Any], column: str) -> bool:
    value = record.get(column)
    return value is None or value in ("bad", "yesterday", "north")


def is_outlier(record: dict[str, Any], column: str) -> bool:
    value = record.get(column)
    return value == 999 or (isinstance(value, str) and value[:4] in ("1970", "2099"))


def events(folder: Path) -> Iterator[tuple[str, str]]:
    for kind in ("reviews", "likes"):
        for record in records(folder, kind):
            yield record["user_idno"], record[PLACE_OF[kind]]


@pytest.mark.parametrize("kind", DIRT)
def test_dirt_report_counts_what_a_slow_reader_finds(dirty: TownReport, kind: Kind) -> None:
    """Tests of the line gate take these counts as the truth."""
    told = json.loads((dirty.truth / "dirt.json").read_text())[kind]
    lines = content(dirty.folder, kind).split(b"\n")[:-1]
    read_lines = [read(line, kind) for line in lines if line]
    accepted = [record for record in read_lines if record is not None]
    found = {
        "lines": len(read_lines),
        "blank": lines.count(b""),
        "accepted": len(accepted),
        "refused": read_lines.count(None),
        "nulls": {column: sum(is_null(record, column) for record in accepted) for column in told["nulls"]},
        "outliers": {column: sum(is_outlier(record, column) for record in accepted) for column in told["outliers"]},
    }
    assert found == {key: told[key] for key in found}
    assert told == asdict(dirty.kinds[kind])


@pytest.mark.parametrize("kind", DIRT)
def test_each_kind_of_dirt_is_counted_by_its_trace(dirty: TownReport, clean: TownReport, kind: Kind) -> None:
    """A sum may be right although two counts are wrong; these traces are unmistakable."""
    told, data = dirty.kinds[kind].dirt, content(dirty.folder, kind)
    lines = data.split(b"\n")[:-1]
    assert told["invalid-utf8"] == data.count(b"\xff")
    assert told["lone-surrogate"] == data.count(b"\\ud800")
    assert told["nan-literal"] == data.count(b": NaN")
    assert told["infinity-literal"] == data.count(b": Infinity")
    assert told["carriage-return"] == data.count(b"\r\n")
    assert told["two-documents"] == data.count(b"} {")
    assert told["not-an-object"] == sum(line.startswith(b"[") for line in lines)
    assert told["truncated"] == sum(line != b"" and line.rstrip(b"\r")[-1:] not in b"}]" for line in lines)
    copies = Counter(line for line in lines if line) & Counter(
        dict.fromkeys(content(clean.folder, kind).split(b"\n"), 9)
    )
    assert told["duplicate"] == sum(count - 1 for count in copies.values())
    assert told[f"{PLACE_OF[kind]}-number"] == sum(
        isinstance(record[PLACE_OF[kind]], int) for line in lines if line and (record := read(line, kind))
    )


def test_every_kind_of_dirt_occurs_and_its_share_is_as_stated(dirty: TownReport) -> None:
    """Dirt that a test town never shows is never tested."""
    for kind in ("reviews", "likes"):
        told = dirty.kinds[kind]
        assert all(told.dirt[dirt.name] > 0 for dirt in DIRT[kind])
        assert sum(told.dirt.values()) == pytest.approx(CONFIG.dirt_share * told.lines, rel=0.1)


def test_dirt_leaves_the_other_lines_as_they_were(dirty: TownReport, clean: TownReport) -> None:
    """Runs with and without dirt can be compared: the same events lie beneath."""
    for kind in DIRT:
        before = Counter(content(clean.folder, kind).splitlines())
        after = Counter(content(dirty.folder, kind).splitlines())
        kept = sum((before & after).values())
        told = dirty.kinds[kind]
        untouched = told.dirt["duplicate"] + told.dirt["blank"]
        carriage_returns = told.dirt["carriage-return"]  # splitlines takes them off
        assert kept == sum(before.values()) - sum(told.dirt.values()) + untouched + carriage_returns


def test_a_town_without_dirt_has_only_clean_lines(clean: TownReport) -> None:
    """Ids, ratings and times all lie in their ranges and name users and places that exist."""
    users = set(pq.read_table(clean.truth / "users.parquet")["user_idno"].to_pylist())
    places = set(pq.read_table(clean.truth / "places.parquet")["place_id"].to_pylist())
    first, last = CLEAN.until - timedelta(days=CLEAN.days - 1), CLEAN.until
    assert {record["place_id"] for record in records(clean.folder, "places")} == places
    for kind in ("reviews", "likes"):
        rows = records(clean.folder, kind)
        assert clean.kinds[kind].refused == 0 and clean.kinds[kind].lines == len(rows)
        assert {row["user_idno"] for row in rows} <= users
        assert {row[PLACE_OF[kind]] for row in rows} <= places
        assert all(first <= datetime.fromisoformat(row[TIME_OF[kind]]).date() <= last for row in rows)
    reviews = records(clean.folder, "reviews")
    assert {row["review_rating"] for row in reviews} <= {half / 2 for half in range(1, 11)}
    assert len({row["review_id"] for row in reviews}) == len(reviews)


def test_folder_holds_the_three_kinds_and_nothing_else(dirty: TownReport) -> None:
    """The truth must not lie where a source could be read from."""
    assert sorted(path.name for path in dirty.folder.iterdir()) == [f"{kind}-00000.jsonl" for kind in sorted(DIRT)]
    assert sorted(path.name for path in dirty.truth.iterdir()) == ["dirt.json", "places.parquet", "users.parquet"]
    assert dirty.truth.parent == dirty.folder.parent
    assert len(list(dirty.folder.parent.iterdir())) == 2


def test_same_seed_gives_the_same_bytes_and_another_seed_others(dirty: TownReport, tmp_path: Path) -> None:
    """A benchmark or bug report names a town by its configuration alone."""
    again, other = write_town(CONFIG, tmp_path / "again"), write_town(replace(CONFIG, seed=4), tmp_path / "other")
    assert digest(again.folder) == digest(dirty.folder)
    assert digest(again.truth) == digest(dirty.truth)
    assert all(digest(other.folder)[name] != hash_ for name, hash_ in digest(dirty.folder).items())


def test_parts_are_bounded_and_cut_between_lines(dirty: TownReport, tmp_path: Path) -> None:
    """However the files are cut, together they are the same bytes."""
    report = write_town(CONFIG, tmp_path / "town", part_bytes=50_000)
    parts = list(report.folder.glob("*.jsonl"))
    assert len(parts) > 20
    assert all(0 < path.stat().st_size <= 50_000 and path.read_bytes().endswith(b"\n") for path in parts)
    assert all(content(report.folder, kind) == content(dirty.folder, kind) for kind in DIRT)


@settings(max_examples=50)
@given(st.lists(st.lists(st.integers(1, 30), min_size=1), min_size=1), st.integers(1, 40))
def test_part_writer_loses_no_byte(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[list[int]], size: int
) -> None:
    """Blocks may be larger or smaller than a part, and so may single lines."""
    folder = tmp_path_factory.mktemp("parts")
    data = [b"".join(b"x" * (length - 1) + b"\n" for length in block) for block in blocks]
    writer = PartWriter(folder, "reviews", size)
    for block in data:
        writer.write(block)
    writer.close()
    parts = [path.read_bytes() for path in sorted(folder.iterdir())]
    assert b"".join(parts) == b"".join(data)
    assert all(part.endswith(b"\n") and (len(part) <= size or part.count(b"\n") == 1) for part in parts)
    assert len(parts) == writer.parts and sum(map(len, parts)) == writer.bytes


def test_a_block_of_users_does_not_depend_on_the_others() -> None:
    """Blocks can be made alone, in any order, on any machine; a larger town begins with the smaller one."""
    small = World(TownConfig(users=BLOCK_USERS + 10, places=400, mean_favors=3))
    large = World(TownConfig(users=3 * BLOCK_USERS, places=400, mean_favors=3))
    for world in (large, small):
        world.events(1)
    for left, right in zip(small.events(0), large.events(0), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(vars(left).values(), vars(right).values(), strict=True))


def test_memory_does_not_grow_with_users(tmp_path: Path) -> None:
    """Ten million users must fit on a laptop: only one block of them is held at a time."""

    def peak(blocks: int) -> int:
        tracemalloc.start()
        write_town(TownConfig(users=blocks * BLOCK_USERS, places=400, mean_favors=4), tmp_path / str(blocks))
        largest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return largest

    peak(1)  # look-up tables are made once
    assert peak(8) < 1.3 * peak(2)


def test_users_of_one_taste_share_more_places_than_neighbours(clean: TownReport) -> None:
    """The planted answer must be findable: within one home region, dominant groups decide what is shared."""
    truth = pq.read_table(clean.truth / "users.parquet").to_pylist()
    visited = defaultdict(set)
    for user, place in events(clean.folder):
        visited[user].add(place)
    overlap: dict[bool, list[float]] = {True: [], False: []}
    for a, b in combinations([user for user in truth if user["activity"] >= 10], 2):
        if a["home_region"] == b["home_region"]:
            left, right = visited[a["user_idno"]], visited[b["user_idno"]]
            overlap[a["taste_group"] == b["taste_group"]].append(len(left & right) / len(left | right))
    assert np.mean(overlap[True]) > 1.3 * np.mean(overlap[False])


def test_taste_is_more_than_category(clean: TownReport) -> None:
    """Within one category, a user's favors still go to places of the own group."""
    groups = pq.read_table(clean.truth / "places.parquet")
    group_of = dict(zip(groups["place_id"].to_pylist(), groups["taste_group"].to_pylist(), strict=True))
    category_of = {row["place_id"]: row["place_category_code_list"][0] for row in records(clean.folder, "places")}
    users = pq.read_table(clean.truth / "users.parquet")
    taste_of = dict(zip(users["user_idno"].to_pylist(), users["taste"].to_pylist(), strict=True))
    in_category: dict[int, list[str]] = defaultdict(list)
    for place in group_of:
        in_category[category_of[place]].append(place)
    gains = []
    for user, place in events(clean.folder):
        taste = taste_of[user]
        peers = [taste[group_of[peer]] for peer in in_category[category_of[place]]]
        gains.append(taste[group_of[place]] - float(np.mean(peers)))
    assert np.mean(gains) > 0.05


def test_homes_activity_and_popularity_are_as_planted(clean: TownReport) -> None:
    """Home share, long-tailed activity, one-favor users, Zipf popularity, places with one visitor."""
    users = pq.read_table(clean.truth / "users.parquet")
    places = pq.read_table(clean.truth / "places.parquet")
    home_of = dict(zip(users["user_idno"].to_pylist(), users["home_region"].to_pylist(), strict=True))
    region_of = dict(zip(places["place_id"].to_pylist(), places["region"].to_pylist(), strict=True))
    favors = list(events(clean.folder))
    assert np.mean([home_of[user] == region_of[place] for user, place in favors]) == pytest.approx(0.75, abs=0.02)
    activity = Counter(user for user, _ in favors)
    assert dict(activity) == dict(zip(users["user_idno"].to_pylist(), users["activity"].to_pylist(), strict=True))
    counts = np.sort(list(activity.values()))
    assert counts[0] == 1 and counts.mean() == pytest.approx(CLEAN.mean_favors, rel=0.15)
    assert counts[-len(counts) // 10 :].sum() > 0.3 * counts.sum()
    visitors = Counter(place for _, place in set(favors))
    assert sum(visitors[place] == 1 for place in visitors) >= 0.02 * CLEAN.n_places
    by_visits = np.sort(list(Counter(place for _, place in favors).values()))
    assert by_visits[-len(by_visits) // 10 :].sum() > 0.3 * by_visits.sum()


def test_a_further_day_holds_that_day_alone_with_some_new_users_and_places(clean: TownReport, tmp_path: Path) -> None:
    """Multi-day tests merge such increments; known users go on as they were."""
    day = write_day(CLEAN, 2, tmp_path / "day")
    rows = [(kind, row) for kind in TIME_OF for row in records(day.folder, kind)]
    on = {datetime.fromisoformat(row[TIME_OF[kind]]).date() for kind, row in rows}
    assert on == {CLEAN.until + timedelta(days=2)}
    known = pq.read_table(clean.truth / "users.parquet").to_pylist()
    by_then = pq.read_table(day.truth / "users.parquet").to_pylist()
    assert by_then[: len(known)] == known
    assert len(by_then) == day.users == CLEAN.users + 2 * CLEAN.new_users
    newest = {user["user_idno"] for user in by_then[-CLEAN.new_users :]}
    assert newest <= {row["user_idno"] for _, row in rows}
    assert len(rows) == pytest.approx(CLEAN.users * CLEAN.mean_favors / CLEAN.days, rel=0.5)
    assert len(records(day.folder, "places")) == CLEAN.new_places
    old_reviews = {row["review_id"] for row in records(clean.folder, "reviews")}
    assert not old_reviews & {row["review_id"] for kind, row in rows if kind == "reviews"}


def test_a_used_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    """A town must never be mixed with somebody's data."""
    (tmp_path / "reviews.jsonl").write_text("mine")
    with pytest.raises(UsageError, match="TOWN-FOLDER"):
        write_town(CLEAN, tmp_path)
    assert (tmp_path / "reviews.jsonl").read_text() == "mine"


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished or absent: half a town would pass for a small one."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PartWriter, "write", full)
    with pytest.raises(StoreError, match="No space left"):
        write_town(CLEAN, tmp_path / "town")
    assert list(tmp_path.iterdir()) == []


def test_wrong_values_are_named_together() -> None:
    """One message for all of them, not one at a time."""
    with pytest.raises(UsageError, match=r"users, dirt_share: 0, 1\.5"):
        TownConfig(users=0, dirt_share=1.5)
    with pytest.raises(UsageError, match="TOWN-DAY"):
        write_day(CLEAN, 0, Path("unused"))


@given(st.lists(st.integers(0, 10**16 - 1), min_size=1), st.integers(1, 16))
def test_digits_are_those_of_python(values: list[int], width: int) -> None:
    """Widths that are no multiple of the table's four digits included."""
    found = [bytes(row).decode() for row in digits(np.array(values), width)]
    assert found == [f"{value:0{width}d}"[-width:] for value in values]


@given(st.lists(st.integers(0, 2**32), min_size=1, max_size=20))
def test_times_are_those_of_numpy(seconds: list[int]) -> None:
    """The calendar (leap years too) is numpy's; the clock is a table of our own."""
    expected = np.datetime_as_string(np.array(seconds).astype("datetime64[s]")).tolist()
    assert [bytes(row).decode() for row in times(np.array(seconds))] == expected


def test_choices_follow_their_weights_and_skip_zeros() -> None:
    """Two distributions side by side: [1, 3] and [0, 1, 0]."""
    choices = Choices(np.array([1.0, 3.0, 0.0, 1.0, 0.0]), np.array([2, 5]))
    drawn = choices.draw(np.repeat([0, 1], 10_000), np.random.default_rng(1))
    assert np.mean(drawn[:10_000] == 0) == pytest.approx(0.25, abs=0.02)
    assert set(drawn[:10_000]) == {0, 1} and set(drawn[10_000:]) == {3}
