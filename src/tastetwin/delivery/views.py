"""The planner's ready views: what would otherwise be a page of SQL, each with a question it answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

import pyarrow as pa

from tastetwin.evaluation.measures import Measure, read_measures
from tastetwin.generations import STAGES
from tastetwin.runs import Run, funnel, kept_manifest, list_runs, published
from tastetwin.schema import (
    CATEGORIES,
    LAT,
    LIKE_CONTENTS,
    LIKED_AT,
    LON,
    NAME,
    PLACE,
    RATING,
    REGION,
    REVIEW_PLACE,
    TIME,
    USER,
    VISITED,
)
from tastetwin.store import Store

FAVORS: Final = pa.schema(
    [
        pa.field(USER, pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("favored_at", TIME),
        pa.field(PLACE, pa.string(), nullable=False),
        pa.field(NAME, pa.string()),
        pa.field(CATEGORIES, pa.list_(pa.int64())),
        pa.field(REGION, pa.string()),
        pa.field(LAT, pa.float64()),
        pa.field(LON, pa.float64()),
        pa.field(RATING, pa.float64()),
    ]
)
"""favors: one row per favor (``kind`` is ``review`` or ``like``), with what the source says of its place."""

_OF_A_RUN: Final = [
    pa.field("run_id", pa.string(), nullable=False),
    pa.field("logical_date", pa.string(), nullable=False),
]

RUNS: Final = pa.schema(
    [
        *_OF_A_RUN,
        pa.field("status", pa.string(), nullable=False),
        pa.field("published", pa.bool_(), nullable=False),
        pa.field("started_at", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("seconds", pa.map_(pa.string(), pa.float64())),
        pa.field("funnel", pa.map_(pa.string(), pa.int64())),
    ]
)
"""runs: one row per run, oldest first; ``published`` is the one that readers see."""

FUNNEL: Final = pa.schema(
    [
        *_OF_A_RUN,
        pa.field("stage", pa.string(), nullable=False),
        pa.field("step", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("count", pa.int64(), nullable=False),
    ]
)
"""funnel: one row per run, step and reason, stages in order; ``reason`` is null in a step's total, and says of what is
``quarantined``, ``nulled`` or ``hidden`` why."""

HEALTH: Final = pa.schema(
    [
        *_OF_A_RUN,
        pa.field("area", pa.string(), nullable=False),
        pa.field("measure", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("high", pa.float64()),
        pa.field("limit", pa.string()),
        pa.field("threshold", pa.float64()),
        pa.field("passed", pa.bool_()),
        pa.field("code", pa.string()),
        pa.field("meaning", pa.string(), nullable=False),
    ]
)
"""health: one row per evaluated run and measure; ``limit`` is ``most`` or ``least``, ``high`` the upper 95 % bound,
which is what is judged where there is one. Null where the gate has no limit, or had too little to judge by."""

QUALITY: Final = pa.schema(
    [
        *_OF_A_RUN,
        pa.field("task", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("csls", pa.bool_(), nullable=False),
        *(pa.field(name, pa.float64(), nullable=False) for name in ("mrr", "mrr_low", "mrr_high")),
        *(pa.field(name, pa.float64(), nullable=False) for name in ("recall_10", "recall_10_low", "recall_10_high")),
    ]
)
"""quality: one row per evaluated run, twin test and method, with 95 % intervals."""

READY: Final[dict[str, pa.Schema]] = {
    "favors": FAVORS,
    "runs": RUNS,
    "funnel": FUNNEL,
    "health": HEALTH,
    "quality": QUALITY,
}

QUESTIONS: Final[dict[str, tuple[str, str]]] = {
    "result": (
        "What does the service show user 42?",
        "SELECT idno, payload.* FROM result WHERE idno = '42'",
    ),
    "twins": (
        "Whose list is user 42 in, and how high?",
        "SELECT user_idno, rank, percentile FROM twins WHERE twin_idno = '42' ORDER BY rank LIMIT 20",
    ),
    "exposure": (
        "Why are people shown to nobody, and how many are they?",
        "SELECT hidden, count(*) AS users FROM exposure WHERE lists = 0 GROUP BY hidden ORDER BY users DESC",
    ),
    "favors": (
        "Which places do user 42 and the closest twin both favor?",
        "SELECT DISTINCT place_id, place_name FROM favors WHERE user_idno = '42' AND place_id IN (SELECT f.place_id "
        "FROM twins t JOIN favors f ON f.user_idno = t.twin_idno WHERE t.user_idno = '42' AND t.rank = 1)",
    ),
    "user_favor": (
        "How many reviews and likes stand behind user 42's list?",
        "SELECT len(review_list) AS reviews, len(like_list) AS likes FROM user_favor WHERE user_idno = '42'",
    ),
    "place": (
        "Which regions have the most places?",
        "SELECT place_dongcode, count(*) AS places FROM place GROUP BY place_dongcode ORDER BY places DESC LIMIT 10",
    ),
    "quarantine": (
        "Which lines were refused today, and where do they lie?",
        "SELECT kind, reason, source, \"offset\" FROM quarantine ORDER BY reason LIMIT 20",
    ),
    "runs": (
        "How long did each stage of the last runs take?",
        "SELECT run_id, status, published, seconds FROM runs ORDER BY started_at DESC LIMIT 7",
    ),
    "funnel": (
        "How do lines read, lines refused and users served change from day to day?",
        "SELECT logical_date, run_id, step, count FROM funnel WHERE step IN ('lines_read', 'quarantined', "
        "'users_served') AND reason IS NULL ORDER BY run_id",
    ),
    "health": (
        "What did not pass in the published run?",
        "SELECT area, measure, value, \"limit\", threshold FROM health JOIN runs USING (run_id) "
        "WHERE published AND NOT passed",
    ),
    "quality": (
        "Does the model still find twins as well as last week?",
        "SELECT run_id, mrr, mrr_low, mrr_high FROM quality WHERE task = 'disjoint' AND method = 'model' AND csls "
        "ORDER BY run_id",
    ),
}  # fmt: skip
"""View -> a question that it answers, and the statement that asks it."""

FAVORS_SQL: Final = f"""
    WITH favor AS (
        SELECT {USER}, 'review' AS kind, event.{VISITED} AS favored_at, event.{REVIEW_PLACE} AS {PLACE},
               event.{RATING} AS {RATING}
        FROM (SELECT {USER}, unnest(review_list) AS event FROM user_favor)
        UNION ALL
        SELECT {USER}, 'like', event.{LIKED_AT}, event.{LIKE_CONTENTS}, NULL
        FROM (SELECT {USER}, unnest(like_list) AS event FROM user_favor)
    )
    SELECT {", ".join(FAVORS.names)} FROM favor LEFT JOIN place USING ({PLACE})
"""  # nosec B608  # constants
"""``favors`` of the views ``user_favor`` and ``place``."""


def run_views(store: Store) -> dict[str, pa.Table]:
    """``runs``, ``funnel``, ``health`` and ``quality``: what the runs' records say. They name nobody."""
    runs = list_runs(store)
    pointer = published(store)
    shown = None if pointer is None else pointer.run_id
    judged = [(run, facts) for run in runs if (facts := _evaluated(store, run))]
    rows: dict[str, list[dict[str, Any]]] = {
        "runs": [_run(run, shown) for run in runs],
        "funnel": [row for run in runs for row in _funnel(run)],
        "health": [
            {**_of(run), **_health(each)}
            for run, facts in judged
            for each in read_measures(facts["verdict"].get("measures", []))
        ],
        "quality": [{**_of(run), **_quality(score)} for run, facts in judged for score in facts.get("quality", [])],
    }
    return {view: pa.Table.from_pylist(found, schema=READY[view]) for view, found in rows.items()}


def _evaluated(store: Store, run: Run) -> dict[str, Any]:
    """The facts of a run's evaluation; none before there is one, or once it is no longer kept."""
    manifest = kept_manifest(store, run, "evaluate")
    return manifest.facts if manifest and "verdict" in manifest.facts else {}


def _of(run: Run) -> dict[str, Any]:
    return {"run_id": run.run_id, "logical_date": run.logical_date}


def _run(run: Run, shown: str | None) -> dict[str, Any]:
    kept = {name: value for name, value in asdict(run).items() if name in RUNS.names}
    seconds = [(stage, record.seconds) for stage, record in run.stages.items()]
    return {**kept, "published": run.run_id == shown, "seconds": seconds, "funnel": list(funnel(run).items())}


def _funnel(run: Run) -> Iterator[dict[str, Any]]:
    for stage in STAGES:
        for name, count in run.stages[stage].counts.items() if stage in run.stages else ():
            step, _, reason = name.partition(".")
            yield {**_of(run), "stage": stage, "step": step, "reason": reason or None, "count": count}


def _health(measure: Measure) -> dict[str, Any]:
    limit = measure.limit
    said = {"limit": limit.at, "threshold": limit.threshold, "code": limit.code} if limit else {}
    names = {"area": measure.area, "measure": measure.name, "value": measure.value, "high": measure.high}
    return {**names, **said, "passed": measure.passed, "meaning": measure.meaning}


def _quality(score: dict[str, Any]) -> dict[str, Any]:
    intervals = {
        f"{name}{end}": score[name][key]
        for name in ("mrr", "recall_10")
        for end, key in (("", "value"), ("_low", "low"), ("_high", "high"))
    }
    return {**{name: score[name] for name in ("task", "method", "csls")}, **intervals}
