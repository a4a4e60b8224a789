"""Write the synthetic town: raw events in the source's shape, and beside them the truth that made them.

``write_town(config, folder)`` writes the whole past up to the town's logical date; ``write_day(config, 1, folder)`` the
events of the next day alone, with its new users and new places, and so on. A folder holds ``reviews-00000.jsonl``,
``likes-00000.jsonl``, ``places-00000.jsonl`` and nothing else. Beside a folder ``town`` lies ``town-truth``:

- ``users.parquet``: ``user_idno``, ``taste`` (list<float>, sums to 1), ``taste_group`` (its largest entry),
  ``home_region``, ``activity`` (favors planted over the town's ``days``); every user by that day.
- ``places.parquet``: ``place_id``, ``taste``, ``taste_group``, ``region``, ``popularity``; every place by that day.
- ``dirt.json``: per kind of file the lines written, how many a reader must accept and refuse, the values that must
  become null, and the count of each kind of dirt (see ``DIRT``).
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tastetwin import schema
from tastetwin.errors import StoreError, UsageError
from tastetwin.schema import KINDS, Kind
from tastetwin.sources.synthetic_text import (
    DIRT,
    FIRST_CATEGORY,
    FIRST_PLACE,
    FIRST_REGION,
    FIRST_USER,
    Ints,
    Lines,
    PartWriter,
    like_lines,
    review_lines,
    soil,
)
from tastetwin.sources.synthetic_world import (
    Catalogue,
    Events,
    Residents,
    Stream,
    Taste,
    TownConfig,
    World,
    stream,
)

__all__ = ["DIRT", "TownConfig", "TownReport", "truth_folder", "write_day", "write_town"]

PART_BYTES: Final = 256 << 20
PLACES_AT_A_TIME: Final = 50_000
NAMES: Final = ("Blue", "Old", "Little", "Café", "Green", "Corner", "Grüne", "골목")
HOUSES: Final = ("Kitchen", "House", "Garden", "Bistro", "Table", "Diner", "Stube", "식당")

TRUE_USERS: Final = pa.schema(
    [
        pa.field(schema.USER, pa.string()),
        pa.field("taste", pa.list_(pa.float32())),
        pa.field("taste_group", pa.int32()),
        pa.field("home_region", pa.string()),
        pa.field("activity", pa.int32()),
    ]
)
TRUE_PLACES: Final = pa.schema(
    [
        pa.field(schema.PLACE, pa.string()),
        pa.field("taste", pa.list_(pa.float32())),
        pa.field("taste_group", pa.int32()),
        pa.field("region", pa.string()),
        pa.field("popularity", pa.float64()),
    ]
)


@dataclass(frozen=True)
class KindReport:
    """What was written of one kind of file, and what a reader must make of it."""

    lines: int
    """Lines, blank ones aside."""
    blank: int
    accepted: int
    refused: int
    nulls: dict[str, int]
    """By column: values that cannot be read and must become null."""
    outliers: dict[str, int]
    """By column: absurd values, left to the reader's rule."""
    dirt: dict[str, int]
    """By name of the dirt: how often it was written."""


@dataclass(frozen=True)
class TownReport:
    """What ``write_town`` or ``write_day`` wrote."""

    folder: Path
    truth: Path
    users: int
    """Users in town by that day, with or without events on it."""
    places: int
    events: int
    """Reviews and likes before dirt."""
    bytes: int
    kinds: dict[Kind, KindReport]


def truth_folder(folder: Path) -> Path:
    """Where the truth of a town's folder lies: beside it, where no reader of the source looks."""
    return folder.with_name(f"{folder.name}-truth")


def write_town(config: TownConfig, folder: Path, part_bytes: int = PART_BYTES) -> TownReport:
    """Write all events up to ``config.until`` into ``folder``, which must be new or empty.

    Files are cut into parts of at most ``part_bytes``; their concatenation does not depend on it. The folder appears
    when it is complete. Raises UsageError (TOWN-FOLDER), StoreError (TOWN-WRITE).
    """
    return _publish(World(config), folder, part_bytes)


def write_day(config: TownConfig, day: int, folder: Path, part_bytes: int = PART_BYTES) -> TownReport:
    """Write the events of one day, ``day`` >= 1 days after ``config.until``, as ``write_town`` does.

    ``places`` lines are those of the places opened that day; the truth covers everybody and every place by then.
    """
    if day < 1:
        raise UsageError("TOWN-DAY", place="day", value=day, rule="a further day is 1 or more", fix="use write_town")
    return _publish(World(config, day), folder, part_bytes)


def _publish(world: World, folder: Path, part_bytes: int) -> TownReport:
    """Write aside, then rename; the truth first, so that no folder is ever without it."""
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError("TOWN-FOLDER", place=str(folder), rule="must be new or empty", fix="choose another folder")
    partial, truth = folder.with_name(f".{folder.name}.partial"), truth_folder(folder)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "source").mkdir(parents=True)
        (partial / "truth").mkdir()
        outputs = _write(world, partial, part_bytes)
        shutil.rmtree(truth, ignore_errors=True)
        (partial / "truth").rename(truth)
        (partial / "source").rename(folder)
    except OSError as error:
        rule, fix = "the town's folder can be written", "check its permissions and the space left"
        raise StoreError("TOWN-WRITE", place=str(folder), value=error, rule=rule, fix=fix) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return TownReport(
        folder,
        truth,
        world.config.population(world.day),
        len(world.catalogue),
        outputs["reviews"].clean + outputs["likes"].clean,
        sum(output.writer.bytes for output in outputs.values()),
        {kind: output.report() for kind, output in outputs.items()},
    )


class _Output:
    """The files of one kind while they are written, and what has gone into them."""

    def __init__(self, folder: Path, kind: Kind, part_bytes: int) -> None:
        self.kind = kind
        self.writer = PartWriter(folder, kind, part_bytes)
        self.clean = 0
        self.dirt: Counter[str] = Counter()

    def add(self, world: World, block: int, lines: Lines) -> None:
        """Spoil a share of the lines, and write all of them."""
        rng = stream(world.config, Stream.DIRT, world.day, KINDS.index(self.kind), block)
        pieces, dirt = soil(lines, self.kind, world.config.dirt_share, rng)
        self.writer.write(b"".join(pieces))
        self.clean += len(lines)
        self.dirt += dirt

    def report(self) -> KindReport:
        """Work out what a reader must make of the lines."""
        effects: Counter[str] = Counter()
        columns: dict[str, Counter[str]] = {"null": Counter(), "outlier": Counter()}
        for dirt in DIRT[self.kind]:
            effects[dirt.effect] += self.dirt[dirt.name]
            if dirt.effect in columns:
                columns[dirt.effect][dirt.column] += self.dirt[dirt.name]
        lines = self.clean + effects["duplicate"]
        return KindReport(
            lines=lines,
            blank=effects["blank"],
            accepted=lines - effects["refused"],
            refused=effects["refused"],
            nulls=dict(columns["null"]),
            outliers=dict(columns["outlier"]),
            dirt={dirt.name: self.dirt[dirt.name] for dirt in DIRT[self.kind]},
        )


def _write(world: World, partial: Path, part_bytes: int) -> dict[Kind, _Output]:
    """Fill ``partial/source`` and ``partial/truth``, one block of users after the other."""
    outputs: dict[Kind, _Output] = {kind: _Output(partial / "source", kind, part_bytes) for kind in DIRT}
    with ExitStack() as stack:
        for output in outputs.values():
            stack.enter_context(closing(output.writer))
        users = stack.enter_context(pq.ParquetWriter(partial / "truth" / "users.parquet", TRUE_USERS))
        for block in range(world.blocks):
            people, events = world.events(block)
            _add_events(outputs, world, block, events)
            users.write_table(_true_users(people))
        places = stack.enter_context(pq.ParquetWriter(partial / "truth" / "places.parquet", TRUE_PLACES))
        for rows in _slices(len(world.catalogue)):
            places.write_table(_true_places(world.catalogue, rows))
        first_new = len(world.catalogue) - world.config.new_places if world.day else 0  # whose line belongs here
        for number, rows in enumerate(_slices(len(world.catalogue), first_new)):
            outputs["places"].add(world, number, Lines.of_records(_place_records(world.catalogue, rows)))
    report = {kind: asdict(output.report()) for kind, output in outputs.items()}
    (partial / "truth" / "dirt.json").write_text(json.dumps(report, indent=1) + "\n")
    return outputs


def _add_events(outputs: dict[Kind, _Output], world: World, block: int, events: Events) -> None:
    reviews, likes = np.flatnonzero(~events.is_like), np.flatnonzero(events.is_like)
    numbers = (world.day * 10**5 + block) * 10**7 + np.arange(len(reviews))
    users, seconds, places = events.users, events.seconds, events.places
    review_table = review_lines(numbers, users[reviews], events.half_stars[reviews], seconds[reviews], places[reviews])
    like_table = like_lines(users[likes], seconds[likes], places[likes])
    outputs["reviews"].add(world, block, Lines.of_table(review_table))
    outputs["likes"].add(world, block, Lines.of_table(like_table))


def _slices(end: int, start: int = 0) -> Iterator[slice]:
    return (slice(first, min(first + PLACES_AT_A_TIME, end)) for first in range(start, end, PLACES_AT_A_TIME))


def _place_records(catalogue: Catalogue, rows: slice) -> list[dict[str, Any]]:
    numbers = range(rows.start, rows.stop)
    return [
        {
            schema.PLACE: str(FIRST_PLACE + number),
            schema.CATEGORIES: [FIRST_CATEGORY + category for category in categories if category >= 0],
            schema.REGION: str(FIRST_REGION + region),
            schema.NAME: f"{NAMES[number % len(NAMES)]} {HOUSES[number // len(NAMES) % len(HOUSES)]} {number}",
            schema.LAT: round(lat, 6),
            schema.LON: round(lon, 6),
        }
        for number, categories, region, lat, lon in zip(
            numbers,
            catalogue.categories[rows].tolist(),
            catalogue.regions[rows].tolist(),
            catalogue.lat[rows].tolist(),
            catalogue.lon[rows].tolist(),
            strict=True,
        )
    ]


def _true_users(people: Residents) -> pa.Table:
    columns = [
        _ids(people.first + np.arange(len(people)), FIRST_USER),
        _vectors(people.taste),
        pa.array(people.taste.argmax(axis=1), pa.int32()),
        _ids(people.homes, FIRST_REGION),
        pa.array(people.favors, pa.int32()),
    ]
    return pa.table(columns, schema=TRUE_USERS)


def _true_places(catalogue: Catalogue, rows: slice) -> pa.Table:
    columns = [
        _ids(np.arange(rows.start, rows.stop), FIRST_PLACE),
        _vectors(catalogue.taste[rows]),
        pa.array(catalogue.taste[rows].argmax(axis=1), pa.int32()),
        _ids(catalogue.regions[rows], FIRST_REGION),
        pa.array(catalogue.popularity[rows]),
    ]
    return pa.table(columns, schema=TRUE_PLACES)


def _ids(positions: Ints, first: int) -> pa.Array:
    """The source's ids, as text, of positions in the town."""
    return pa.array(positions + first).cast(pa.string())


def _vectors(rows: Taste) -> pa.Array:
    """list<float>, one list per row of float32 [n, width]."""
    ends = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
    return pa.ListArray.from_arrays(ends, rows.ravel())
