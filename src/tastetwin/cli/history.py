"""What ran and what readers see: ``runs``, ``promote``, ``rollback``.

*Published* is the one run that readers see; *delivered* are those that went so far and could be published again.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tastetwin import console
from tastetwin.cli.options import JsonOption, StoreOption, say

if TYPE_CHECKING:
    from tastetwin.runs import Run
    from tastetwin.store import Store

ERRORS: Final = 10
"""Errors that ``runs`` shows to people, of the newest runs that have one; ``--json`` leaves nothing out."""
_COUNTS: Final = ("lines_read", "quarantined", "users", "users_served")
_HEADERS: Final = ("run", "status", "started\n(UTC)", "secs", "lines", "quarantined", "users", "served")


def runs(store: StoreOption, as_json: JsonOption = False) -> None:
    """Every run: id, status, start, duration, its funnel of lines and users, and what went wrong.

    A run is *running*, *open* (begun stage by stage, the next one awaited), *delivered* (can be published again),
    *published* (what readers see), *refused* by the gate, *failed*, or *interrupted*. Where a process was killed, the
    next one to work on the store notes it.

    Example: `tastetwin runs --store store/ --json`
    """
    from tastetwin.runs import funnel, list_runs
    from tastetwin.store import Store

    opened = Store.open(store)
    shown = _published_id(opened)
    found = list_runs(opened)
    if as_json:
        console.print_json([_as_json(one, shown) for one in found])
        return
    rows = [
        [
            one.run_id,
            _status(one, shown),
            one.started_at[5:16].replace("T", " "),
            round(sum(record.seconds for record in one.stages.values())),
            *(funnel(one).get(name) for name in _COUNTS),
        ]
        for one in found
    ]
    console.print_table("", _HEADERS, rows)
    failed = [one for one in found if one.error]
    if len(failed) > ERRORS:
        console.out.print(f"\n{len(failed) - ERRORS} older errors left out, see --json", markup=False)
    for one in failed[-ERRORS:]:
        console.out.print(f"\n{one.run_id} {_status(one, shown)}: {one.error}", markup=False)


def promote(
    run_id: Annotated[str, typer.Argument(help="A delivered run, see: tastetwin runs")],
    store: StoreOption,
    as_json: JsonOption = False,
) -> None:
    """Publish an earlier delivered run.

    Example: `tastetwin promote 2026-11-21.1 --store store/`
    """
    from tastetwin.delivery.publish import promote_run
    from tastetwin.store import Store

    opened = Store.open(store)
    with opened.writing():
        say({"published": promote_run(opened, run_id).run_id}, as_json)


def rollback(
    store: StoreOption,
    to: Annotated[
        str | None, typer.Option("--to", help="In this database instead, see: tastetwin load", metavar="ADDRESS")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Publish the run that readers saw before.

    With `--to`, readers of that database see what they saw before, and the store's published run stays.

    Example: `tastetwin rollback --store store/`
    """
    from tastetwin.delivery.publish import roll_back
    from tastetwin.store import Store

    opened = Store.open(store)
    if to is not None:
        from tastetwin.delivery.load import roll_back_loaded

        say(asdict(roll_back_loaded(opened, to)), as_json)
        return
    with opened.writing():
        say({"published": roll_back(opened).run_id}, as_json)


def say_run(store: str, run: Run, as_json: bool) -> None:
    """What a run has come to."""
    from tastetwin.store import Store

    opened = Store.open(store)
    shown = _published_id(opened)
    if as_json:
        console.print_json(_as_json(run, shown))
        return
    console.out.print(f"run {run.run_id}: {_status(run, shown)}", markup=False)
    if "evaluate" in run.stages:
        from tastetwin.evaluation.stage import report_path

        console.out.print(f"report: {opened.path(report_path(run.run_id))}", markup=False)


def _published_id(store: Store) -> str | None:
    from tastetwin.runs import published

    pointer = published(store)
    return None if pointer is None else pointer.run_id


def _status(run: Run, published: str | None) -> str:
    return "published" if run.run_id == published else run.status


def _as_json(run: Run, published: str | None) -> dict[str, Any]:
    from tastetwin.generations import STAGES
    from tastetwin.runs import funnel

    counts = funnel(run)
    headline = ("lines_read", "accepted", "quarantined", "ratings_refused", "users", "users_served")
    reasons = {name.split(".", 1)[1]: n for name, n in counts.items() if name.startswith("quarantined.")}
    return {
        "run_id": run.run_id,
        "logical_date": run.logical_date,
        "status": run.status,
        "published": run.run_id == published,
        "started_at": run.started_at,
        "error": run.error,
        "seconds": {stage: run.stages[stage].seconds for stage in STAGES if stage in run.stages},
        "funnel": {**{name: counts.get(name) for name in headline}, "quarantined_by_reason": reasons},
        "counts": counts,
        "generations": {stage: record.generation for stage, record in run.stages.items()},
    }
