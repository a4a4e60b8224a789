"""What ran and what readers see: ``runs``, ``metrics``, ``diff``, ``promote``, ``rollback``.

*Published* is the one run that readers see; *delivered* are those that went so far and could be published again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tastetwin import console
from tastetwin.cli.options import ConfigOption, JsonOption, StoreOption, needs, say, tracking_of

if TYPE_CHECKING:
    from tastetwin.delivery.diff import ListDiff
    from tastetwin.runs import Run
    from tastetwin.store import Store

ERRORS: Final = 10
"""Errors that ``runs`` shows to people, of the newest runs that have one; ``--json`` leaves nothing out."""
_COUNTS: Final = ("lines_read", "quarantined", "users", "users_served")
_HEADERS: Final = ("run", "status", "started\n(UTC)", "secs", "lines", "quarantined", "users", "served")


def runs(store: StoreOption, as_json: JsonOption = False) -> None:
    """Every run: id, status, start, duration, its funnel of lines and users, and what went wrong.

    A run is *running*, *open* (begun stage by stage, the next one awaited), *delivered* (can be published;
    AWAITS-APPROVAL or EVENTS-LOST below says which one is to be looked at first), *published* (what readers see),
    *refused* by the gate, *failed*, or *interrupted*. Where a process was killed, the next one to work on the store
    notes it.

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


def metrics(
    store: StoreOption,
    output: Annotated[
        Path | None, typer.Option("--output", help="Replace this file whole.", metavar="FILE", show_default="stdout")
    ] = None,
) -> None:
    """What the published and the newest run have come to, for Prometheus: a file for its node exporter.

    Example: `tastetwin metrics --store store/ --output tastetwin.prom`
    """
    with needs("serve"):
        from tastetwin.delivery.metrics import run_metrics
    from tastetwin.delivery.export import whole
    from tastetwin.store import Store

    text = run_metrics(Store.open(store))
    if output is None:
        console.out.print(text.decode(), end="", markup=False, emoji=False)
        return
    with whole(output) as aside:
        aside.write_bytes(text)


def diff(
    store: StoreOption,
    run_id: Annotated[str | None, typer.Argument(help="A run that has lists.", show_default="the newest")] = None,
    with_: Annotated[
        str | None, typer.Option("--with", help="The run to compare it with.", show_default="the published one")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """What readers would see change if a run were published, to a depth of ten twins.

    A published run is compared with the one that readers saw before it.

    Example: `tastetwin diff 2026-11-22.1 --store store/`
    """
    from tastetwin.delivery.diff import count_leaks, diff_runs, runs_to_compare
    from tastetwin.privacy.opt_out import read_opt_outs
    from tastetwin.store import Store

    opened = Store.open(store)
    run, other = runs_to_compare(opened, run_id, with_)
    opt_outs = read_opt_outs(opened)
    found = diff_runs(opened, run, other, opt_outs)
    leaks = count_leaks(opened, run, opt_outs) if "deliver" in run.stages else None
    if as_json:
        console.print_json({**asdict(found), "leaks": leaks})
        return
    for title, columns, rows in _tables(found, leaks):
        if rows:
            console.print_table(title, columns, rows)


def _tables(found: ListDiff, leaks: int | None) -> Iterator[tuple[str, Sequence[str], Sequence[Sequence[object]]]]:
    yield f"run {found.run_id} beside {found.with_run}", ("", ""), _facts(found, leaks)
    shares = [users / max(1, sum(found.churn)) for users in found.churn]
    churn = [
        (changed, users, f"{share:.1%}", "█" * round(40 * share))
        for changed, (users, share) in enumerate(zip(found.churn, shares, strict=True))
    ]
    yield f"\nusers by how many of {found.depth} twins change", ("changed", "users", "share", ""), churn
    most = [(each.user_idno, each.changed, " ".join(each.before), " ".join(each.after)) for each in found.most_changed]
    yield "\nlists that change most", ("user", "changed", "before", "after"), most
    exposure = [(each.user_idno, each.before, each.after) for each in found.gained + found.lost]
    yield "\nin more, and in fewer lists", ("user", "lists before", "after"), exposure


def _facts(found: ListDiff, leaks: int | None) -> list[tuple[str, object]]:
    return [
        ("users before", found.users_before),
        ("users after", found.users_after),
        ("appear", found.appeared),
        ("vanish", found.vanished),
        ("Jaccard", found.jaccard),
        ("entries kept", found.kept),
        ("entries left", found.left),
        ("entries new", found.new),
        ("lists changed by more than half, or gone", f"{found.changed_share:.1%}"),
        ("delivered entries of users who opted out", leaks),
    ]


def promote(
    run_id: Annotated[str, typer.Argument(help="A delivered run, see: tastetwin runs")],
    store: StoreOption,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Publish an earlier delivered run.

    Example: `tastetwin promote 2026-11-21.1 --store store/`
    """
    from tastetwin.delivery.publish import promote_run
    from tastetwin.store import Store

    tracking = tracking_of(opened := Store.open(store), config)
    with opened.writing():
        say({"published": promote_run(opened, run_id).run_id}, as_json)
    tracking.follow()


def rollback(
    store: StoreOption,
    to: Annotated[
        str | None, typer.Option("--to", help="In this database instead, see: tastetwin load", metavar="ADDRESS")
    ] = None,
    config: ConfigOption = None,
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
    tracking = tracking_of(opened, config)
    with opened.writing():
        say({"published": roll_back(opened).run_id}, as_json)
    tracking.follow()


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
        from tastetwin.evaluation.reports import report_path
        from tastetwin.evaluation.stage import verdict_of
        from tastetwin.generations import read_manifest

        judged = read_manifest(opened, "evaluate", run.generation("evaluate"))
        for each in verdict_of(judged).findings:
            console.out.print(f"{each.severity}: {each.code}: {each.sentence}", markup=False)
        console.out.print(f"report: {opened.url(report_path(run.run_id))}", markup=False)


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
