"""What a logical day brought, from the records and tables of its mart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

import numpy as np
import pyarrow as pa

from tastetwin.evaluation.drift import Intake, Mix
from tastetwin.evaluation.gate import Finding
from tastetwin.features.stage import read_place_rows
from tastetwin.generations import Manifest, is_finished, read_manifest
from tastetwin.schema import LIKE_CONTENTS, REVIEW_PLACE
from tastetwin.store import Store
from tastetwin.tables import read_files

DAYS: Final = 7
"""Days looked back at, so that each day of the week is among them."""
SAMPLED_EVENTS: Final = 200_000
_PLACES: Final = {"reviews": REVIEW_PLACE, "likes": LIKE_CONTENTS}
_REFUSED: Final = "quarantined."
_UNREADABLE: Final = ("nulled", "dropped")
MIN_UNREADABLE: Final = 20
"""Fewer values than this say nothing about how a source writes a field."""
MAX_UNREADABLE: Final = 0.2
"""Of a kind's lines: slips are fewer; ratings of one to seven, read as up to five, are more."""


def read_intake(store: Store, features: Manifest) -> Intake:
    """What the day of these features brought; the places of a sample of its events."""
    mart = mart_of(store, features)
    past = list(_before(store, mart))
    kinds = {kind: [_lines(day).get(kind, 0) for day in past] for kind in _PLACES} if past else {}
    places = pa.chunked_array([column for kind in _PLACES for column in _places(store, mart, kind)], pa.string())
    rows = read_place_rows(store, features.paths("place_row")[0]).of(places)
    return Intake(_lines(mart), kinds, fate_of(mart), np.asarray(rows, np.int32))


def mart_of(store: Store, features: Manifest) -> Manifest:
    """The mart that features were made from."""
    return read_manifest(store, "mart", features.parents["mart"])


def fate_of(mart: Manifest) -> Mix:
    """Lines accepted, and refused by reason, on the mart's day."""
    counts: dict[str, int] = mart.facts["counts"]
    refused = {name.removeprefix(_REFUSED): n for name, n in counts.items() if name.startswith(_REFUSED)}
    return {"accepted": counts["accepted"], **refused}


def unreadable(mart: Manifest) -> Iterator[Finding]:
    """Fields that the source writes in a form of its own: what the day's lines say there is lost, line by line."""
    for kind, counts in mart.facts["kinds"].items():
        lost: dict[str, Counter[str]] = {}
        for name, n in counts.items():
            verb, *rest = name.split(".")
            if verb in _UNREADABLE and rest[1] != "missing":
                lost.setdefault(rest[0], Counter())[rest[1]] += n
        for field, reasons in sorted(lost.items()):
            share = reasons.total() / max(1, counts["accepted"])
            if reasons.total() >= MIN_UNREADABLE and share > MAX_UNREADABLE:
                worst = ", ".join(f"{reason} {n:,}" for reason, n in reasons.most_common())
                said = f"{field} cannot be read in many of {counts['accepted']:,} lines of {kind} ({worst})"
                yield Finding("VALUES-UNREADABLE", "warn", share, MAX_UNREADABLE, said)


def _before(store: Store, mart: Manifest) -> Iterator[Manifest]:
    """The marts of the days before that are still kept, latest first; not the first, which holds all of the past."""
    for _ in range(DAYS):
        previous = mart.parents.get("previous")
        if previous is None or not is_finished(store, "mart", previous):
            return
        mart = read_manifest(store, "mart", previous)
        if "previous" in mart.parents:
            yield mart


def _lines(mart: Manifest) -> dict[str, int]:
    return {kind: counts.get("lines_read", 0) for kind, counts in mart.facts["kinds"].items()}


def _places(store: Store, mart: Manifest, kind: str) -> Iterator[pa.Array]:
    """The place ids of the day's new rows, file by file (each holds some users') until they are enough."""
    found, schema = 0, pa.schema([pa.field(_PLACES[kind], pa.string())])
    for entry in mart.tables.get(f"{kind}/{mart.logical_date}", []):
        if found >= SAMPLED_EVENTS:
            return
        table = read_files(store, [entry.path], schema)
        found += table.num_rows
        yield from table.column(0).chunks
