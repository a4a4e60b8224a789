"""mart: the lake's raw lines of one day become typed, cleansed tables, one stated grain each, plus the quarantine."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import date
from typing import Any, Final

from tastetwin.config import Config
from tastetwin.engine import Engine
from tastetwin.errors import InputError
from tastetwin.generations import FileEntry, Made, Manifest, Plan, entry_of, make
from tastetwin.mart.gate import GateRules, Split, plan_splits
from tastetwin.mart.merge import merge
from tastetwin.mart.staging import stage_lines
from tastetwin.privacy.opt_out import read_forgotten
from tastetwin.progress import Progress, silent
from tastetwin.schema import KINDS, QUARANTINE, RATING, Kind
from tastetwin.store import Store
from tastetwin.tables import read_files

_SCALE_LINES: Final = 20
"""Fewer unusable ratings than this say nothing about a scale."""
_NULLED: Final = f"nulled.{RATING}."


def build_mart(
    engine: Engine,
    store: Store,
    lake: Manifest,
    previous: Manifest | None,
    config: Config,
    *,
    again: bool = False,
    progress: Progress = silent,
) -> Manifest:
    """The mart as of the lake's logical date.

    ``previous`` is the mart of the latest earlier day, whose rows are carried on; ``progress`` is told lines read so
    far.

    Raises:
        StoreError: OPT-OUTS-DAMAGED, as who was forgotten must be known.
        InputError: QUARANTINE-SHARE when more lines were refused than ``mart.max_quarantine_share`` allows;
            RATING-SCALE when most ratings cannot be used.
        AssertionError: never for bad data; when accepted, refused and forgotten lines do not add up to the lines
            read.
    """
    settings = {"mart": config.mart.model_dump(mode="json"), "collect": config.collect.model_dump(mode="json")}
    plan = Plan("mart", lake.logical_date, {"collect": lake, "previous": previous}, settings)

    def work(folder: str) -> Made:
        return _write(engine, store, lake, previous, config, folder, progress)

    return make(store, plan, work, again=again)


def _write(
    engine: Engine,
    store: Store,
    lake: Manifest,
    previous: Manifest | None,
    config: Config,
    folder: str,
    progress: Progress,
) -> Made:
    day = lake.logical_date
    rules = replace(GateRules.of(config.mart, config.collect, date.fromisoformat(day)), forgotten=read_forgotten(store))
    counts = stage_lines(engine, store, _splits(store, lake, config), rules, f"{folder}/staging", progress)
    refused = store.files(f"{folder}/staging/quarantine")
    facts = _account(counts, config.mart.max_quarantine_share, _example(store, refused))
    tables: dict[str, list[FileEntry]] = {}
    for kind in KINDS:
        staged = store.files(f"{folder}/staging/{kind}")
        tables |= merge(engine, store, kind, staged, previous, day, folder)
    tables["quarantine"] = _keep_quarantine(store, folder)
    store.remove(f"{folder}/staging")
    return tables, facts


def _splits(store: Store, lake: Manifest, config: Config) -> list[Split]:
    return [
        split
        for kind in KINDS
        for entry in lake.tables.get(kind, [])
        for split in plan_splits(kind, entry.path, entry.bytes, config.mart.split_bytes)
    ]


def _example(store: Store, files: list[str]) -> str:
    """Where to find one refused line; "" where none was refused. Never the line itself: errors end up in logs."""
    if not files:
        return ""
    first = read_files(store, files[:1], QUARANTINE).slice(0, 1).to_pylist()[0]
    return f"{first['source']}, byte {first['offset']}, {first['reason']}"


def _account(counts: dict[Kind, Counter[str]], limit: float, example: str) -> dict[str, Any]:
    total: Counter[str] = sum(counts.values(), Counter())
    lines, accepted, refused = total["lines_read"], total["accepted"], total["quarantined"]
    if accepted + refused + total["forgotten"] != lines:
        raise AssertionError(
            f"accepted {accepted} + quarantined {refused} + {total['forgotten']} != lines read {lines}"
        )
    if refused > limit * lines:
        worst = ", ".join(f"{reason} {n}" for reason, n in total.most_common() if reason.startswith("quarantined."))
        raise InputError(
            "QUARANTINE-SHARE",
            place=example,
            value=f"{refused} of {lines} lines refused ({worst})",
            rule=f"at most {limit:.0%} may be refused (mart.max_quarantine_share)",
            fix="one JSON object a line, fields named as in docs/how-to/own-data.md; or raise the limit if this share "
            "is expected",
        )
    _check_scale(counts.get("reviews", Counter()))
    always = {"lines_read": lines, "accepted": accepted, "quarantined": refused}
    return {
        "counts": dict(sorted({**total, **always}.items())),
        "kinds": {k: dict(sorted(c.items())) for k, c in counts.items()},
    }


def _check_scale(reviews: Counter[str]) -> None:
    """Whether the ratings can be read at all: of a wrong scale the best ones would be lost, one by one."""
    given, refused = reviews["ratings"], reviews["ratings_refused"]
    if refused < _SCALE_LINES or 2 * refused <= given:
        return
    reasons = ", ".join(
        f"{name.rsplit('.', 1)[1]} {n}" for name, n in reviews.most_common() if name.startswith(_NULLED)
    )
    raise InputError(
        "RATING-SCALE",
        place=RATING,
        value=f"{refused} of {given} ratings cannot be used ({reasons})",
        rule="most ratings are numbers between mart.rating_min and mart.rating_max",
        fix="set these two to the source's scale; mart.rating_outlier says what becomes of single ratings outside",
    )


def _keep_quarantine(store: Store, folder: str) -> list[FileEntry]:
    """Move the workers' quarantine files out of staging."""
    kept = []
    for path in store.files(f"{folder}/staging/quarantine"):
        target = f"{folder}/quarantine/{path.rsplit('/', 1)[-1]}"
        store.make_folder(f"{folder}/quarantine")
        store.fs.mv(store.path(path), store.path(target))
        kept.append(entry_of(store, target))
    return kept
