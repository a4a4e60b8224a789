"""Generations and runs written by hand, and a little store whose every row is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa

from tastetwin.analysis.evidence import Visitors
from tastetwin.analysis.standing import EXPOSURE
from tastetwin.analysis.visitors import write_visitors
from tastetwin.evaluation.reports import report_path
from tastetwin.features.histories import Vocabulary
from tastetwin.features.stage import PLACE_ROWS
from tastetwin.features.taste import HISTORY
from tastetwin.features.user_favor import USER_FAVOR
from tastetwin.features.vocabulary import write_vocabulary
from tastetwin.generations import FOLDERS, STAGES, FileEntry, Manifest, Stage, finish
from tastetwin.runs import Run, RunStatus, StageRecord, new_run, publish, write_run
from tastetwin.schema import PLACES, QUARANTINE, RESULT, TWINS, VECTORS
from tastetwin.store import Store
from tastetwin.tables import bucket_name, bucket_of, put_table

DAY: Final = "2026-06-01"
BUCKETS: Final = 7
"""By bucket the users are hal, bob and dot, cid, ann, gus: not in the order of their ids."""
MIN_FAVORS: Final = 2

USERS: Final = {"ann": "abc", "bob": "abd", "cid": "a", "dot": "ce", "gus": "df", "hal": "bc"}
"""User -> places, a letter each, oldest first; cid has too few."""
FAVORS: Final = {"ann": 7, "bob": 4, "cid": 1, "dot": 2, "gus": 2, "hal": 2}
HOMES: Final = {"ann": "r1", "bob": "r1", "cid": "r1", "dot": "r2", "gus": None, "hal": "r1"}
"""Of b and c, hal's, one lies in each region: the first region."""
LISTS: Final = {
    "ann": [("bob", 0.75, 99.0), ("dot", 0.5, 75.0)],
    "bob": [("ann", 0.75, 99.0)],
    "dot": [("ann", 0.5, 75.0), ("gus", 0.25, 50.0)],
    "gus": [("dot", 0.25, 50.0)],
}
"""User -> (twin, score, percentile), closest first; hal may be shown nobody."""
SAYS_ALL: Final[dict[str, Any]] = {"analyze": {"sensitive_categories": []}}
NAMES: Final = {"a": "Blue Kitchen", "c": "Old House"}

NOON: Final = datetime(2026, 5, 1, 12)
RAW: Final = "lake/c/reviews.jsonl"
"""A file of the lake, with a secret in it."""
REPORT: Final = "<!DOCTYPE html><p>fine"

Tables = Mapping[str, Sequence[pa.Table]]


def generation(
    store: Store,
    stage: Stage,
    name: str,
    tables: Tables | None = None,
    *,
    day: str = DAY,
    keeps: Mapping[str, list[FileEntry]] | None = None,
    facts: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Manifest:
    """A finished generation with these tables, a bucket each, and files it ``keeps`` from elsewhere."""
    folder = f"{FOLDERS[stage]}/{name}"
    store.make_folder(folder)
    written = {
        table: [put_table(store, f"{folder}/{table}/{bucket_name(at)}", rows) for at, rows in enumerate(parts)]
        for table, parts in (tables or {}).items()
    }
    files = {**written, **(keeps or {})}
    return finish(store, Manifest(stage, name, day, {}, dict(settings or {}), files, dict(facts or {})))


def run_of(store: Store, generations: Mapping[Stage, str], *, day: str = DAY, status: RunStatus = "delivered") -> Run:
    """A run that made these generations."""
    stages: dict[str, StageRecord] = {stage: StageRecord(name, 1.5) for stage, name in generations.items()}
    return write_run(store, replace(new_run(store, date.fromisoformat(day)), status=status, stages=stages))


def vocabulary() -> Vocabulary:
    """Rows 2 .. 7 are a .. f: a and b noodles (100) in r1, c and e cafés (200) in r2, nothing known of d and f.

    Row 8 is the group of noodles in r1, row 9 that of anything in r2.
    """
    return Vocabulary(
        np.array(["", "", *"abcdef", "~100/r1", "~/r2"], object),
        np.arange(10) >= 8,
        np.array([0, 0, 0, 1, 2, 3, 3, 4, 4, 5, 5]),
        np.array([0, 0, 1, 1, 0], np.int32),
        np.array([-1, -1, 0, 0, 1, -1, 1, -1, 0, 1], np.int32),
        np.array([100, 200]),
        np.array(["r1", "r2"], object),
        np.full((10, 2), np.nan, np.float32),
    )


def row_of(place: str) -> int:
    """The vocabulary row of a place."""
    return 2 + "abcdef".index(place)


def bucketed(table: pa.Table, buckets: int = BUCKETS) -> list[pa.Table]:
    """The rows of a table of users, in the order they have, by bucket."""
    bucket = np.array([bucket_of(user, buckets) for user in table.column(0).to_pylist()])
    return [table.take(pa.array(np.flatnonzero(bucket == number))) for number in range(buckets)]


def history() -> pa.Table:
    """``HISTORY`` of everybody."""
    rows = [
        {
            "user_idno": user,
            "places": [row_of(place) for place in places],
            "visits": [1.0] * len(places),
            "ratings": [0.0] * len(places),
            "days": [20_000] * len(places),
            "favors": FAVORS[user],
        }
        for user, places in USERS.items()
    ]
    return pa.Table.from_pylist(rows, HISTORY)


def worth_of(score: float) -> tuple[float, float, float]:
    """Taste and home part (without hubs the score is the similarity; a quarter of it is home) and the chance, half."""
    return 0.75 * score, 0.25 * score, 0.5 * score


def twins() -> pa.Table:
    """``TWINS`` of everybody; see ``worth_of``."""
    rows = [
        (user, rank, *twin, *worth_of(twin[1])) for user, found in LISTS.items() for rank, twin in enumerate(found, 1)
    ]
    return pa.Table.from_pylist([dict(zip(TWINS.names, row, strict=True)) for row in rows], TWINS)


def ranked(lists: Mapping[str, Sequence[str]]) -> pa.Table:
    """``TWINS`` of these users; who comes n-th has percentile 100.75 - n, and the last rows come first."""
    rows = [
        {"user_idno": user, "rank": rank, "twin_idno": twin, "score": 1 / rank, "percentile": 100.75 - rank}
        for user, twins in lists.items()
        for rank, twin in enumerate(twins, 1)
    ]
    return pa.Table.from_pylist(rows[::-1], TWINS)


def ranked_results(lists: Mapping[str, Sequence[str]], day: str = DAY) -> pa.Table:
    """``RESULT`` of the same."""
    rows = [
        {
            "idno": user,
            "payload": {
                "logical_date": day,
                "twins": [
                    {"twin_idno": twin, "score": 1 / rank, "percentile": 100.75 - rank}
                    for rank, twin in enumerate(twins, 1)
                ],
            },
        }
        for user, twins in lists.items()
    ]
    return pa.Table.from_pylist(rows, RESULT)


def run_with_lists(
    store: Store, name: str, lists: Mapping[str, Sequence[str]], *, buckets: int = BUCKETS, day: str = DAY
) -> Run:
    """A delivered run with these lists: user -> twins, the closest first."""
    facts = {"buckets": buckets}
    generation(store, "analyze", name, {"twins": bucketed(ranked(lists), buckets)}, facts=facts)
    generation(store, "deliver", name, {"result": bucketed(ranked_results(lists, day), buckets)}, facts=facts)
    for stage in STAGES:
        if stage not in ("analyze", "deliver"):
            generation(store, stage, name)
    return run_of(store, dict.fromkeys(STAGES, name), day=day)


def vectors() -> pa.Table:
    """``VECTORS`` of the eligible: one axis each."""
    eligible = [user for user, places in USERS.items() if len(places) >= MIN_FAVORS]
    rows = np.eye(len(eligible), dtype=np.float32).tolist()
    return pa.table([pa.array(eligible), pa.array(rows, VECTORS.field("vector").type)], schema=VECTORS)


def exposure() -> pa.Table:
    """``EXPOSURE`` of the eligible: nobody is hidden."""
    eligible = sorted(user for user, places in USERS.items() if len(places) >= MIN_FAVORS)
    shown = [sum(user == twin for found in LISTS.values() for twin, *_ in found) for user in eligible]
    rows = [(user, lists, None, None, 0.0, 0.5, HOMES[user]) for user, lists in zip(eligible, shown, strict=True)]
    return pa.Table.from_pylist([dict(zip(EXPOSURE.names, row, strict=True)) for row in rows], EXPOSURE)


def places() -> pa.Table:
    """``PLACES`` that the source described; d and f it did not."""
    known = {"a": (100, "r1"), "b": (100, "r1"), "c": (200, "r2"), "e": (200, "r2")}
    rows = [
        {
            "place_id": place,
            "place_category_code_list": [code],
            "place_dongcode": region,
            "place_name": NAMES.get(place),
        }
        for place, (code, region) in known.items()
    ]
    return pa.Table.from_pylist(rows, PLACES)


def features(store: Store, name: str = "f", **more: Any) -> Manifest:
    """The features of ``USERS``."""
    read_as = {**{place: row_of(place) for place in "abcdef"}, "rare": 8}
    rows = [{"place_id": place, "row": row, "visitors": 1} for place, row in read_as.items()]
    keeps = {"vocabulary": [write_vocabulary(store, f"features/{name}/vocabulary.parquet", vocabulary())]}
    tables = {
        "history": bucketed(history()),
        "place": [places()],
        "place_row": [pa.Table.from_pylist(rows, PLACE_ROWS)],
    }
    return generation(
        store, "features", name, {**tables, **more.pop("tables", {})}, keeps=keeps, facts={"buckets": BUCKETS}, **more
    )


def analysis(store: Store, name: str = "a", **more: Any) -> Manifest:
    """``LISTS``; ten people of a thousand favor place a and the categories and regions, nine any other place."""
    visitors = Visitors(1_000, np.array([0, 0, 10, *[9] * 7]), np.array([10, 10]), np.array([10, 10]))
    keeps = {"visitors": [write_visitors(store, f"analysis/{name}/visitors.parquet", visitors)]}
    tables = {"twins": bucketed(twins()), "vectors": bucketed(vectors()), "exposure": [exposure()]}
    return generation(
        store,
        "analyze",
        name,
        tables,
        keeps=keeps,
        facts={"buckets": BUCKETS},
        **{"settings": {"min_favors": MIN_FAVORS, **SAYS_ALL}, **more},
    )


def publish_by_hand(store: Store) -> Run:
    """A run of the handmade users, published: two results, one favor, a refused line; then a run that failed."""
    generation(store, "collect", "c")
    store.write_bytes(RAW, b"word\nopen sesame\n")
    generation(store, "mart", "m", {"quarantine": [quarantine()]})
    features(store, tables={"user_favor": [user_favor()]})
    generation(store, "train", "t")
    analysis(store)
    generation(store, "evaluate", "e")
    generation(store, "deliver", "d", {"result": [results()]})
    run = run_of(store, dict(zip(STAGES, "cmftaed", strict=True)))
    store.write_bytes(report_path(run.run_id), REPORT.encode())
    publish(store, run.run_id)
    run_of(store, {"collect": "c"}, status="failed")
    return run


def quarantine() -> pa.Table:
    """A refused line."""
    row = ("reviews", "reviews.jsonl", 70, 3, "not-json", "00", "{:(")
    return pa.Table.from_pylist([dict(zip(QUARANTINE.names, row, strict=True))], QUARANTINE)


def user_favor() -> pa.Table:
    """One favor of ann's."""
    review = {"review_id": "r1", "review_rating": 4.5, "review_visited_date": NOON, "review_place_id": "a"}
    row = {"user_idno": "ann", "like_list": [], "like_stat_list": [], "review_list": [review]}
    return pa.Table.from_pylist([row], USER_FAVOR)


def results() -> pa.Table:
    """Two results."""
    rows = [
        {"idno": user, "payload": {"logical_date": DAY, "places": len(USERS[user]), "twins": []}}
        for user in ("ann", "bob")
    ]
    return pa.Table.from_pylist(rows, RESULT)
