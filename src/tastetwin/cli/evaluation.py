"""``evaluate``: a run of a store, or every method on a source."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tastetwin import console
from tastetwin.cli.job import do_stage
from tastetwin.cli.options import AgainOption, ConfigOption, JsonOption, day_of, settings_of

if TYPE_CHECKING:
    from tastetwin.config import Config
    from tastetwin.evaluation.benchmark import Benchmark, Measurement

_SEEDS: Final = 5
_KEEP: Final = "benchmark-results"
_DATE: Final = "that of the newest run; with --source today, in UTC"


def evaluate(
    store: Annotated[str | None, typer.Option("--store", help="Judge a run of this store.", metavar="DIR")] = None,
    source: Annotated[str | None, typer.Option("--source", help="Measure all methods on this folder instead.")] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, max=100, help="With --source: how many splits.", show_default=str(_SEEDS))
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(
            "--keep", help="With --source: where results are kept as they come.", metavar="DIR", show_default=_KEEP
        ),
    ] = None,
    date_: Annotated[
        str | None,
        typer.Option("--date", metavar="YYYY-MM-DD", help="Logical date.", show_default=_DATE),
    ] = None,
    config: ConfigOption = None,
    again: AgainOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure the run against baselines and the published run; write the report.

    With `--source events/`, the full benchmark in place of a run: seven tasks, every baseline, several splits; minutes
    for a small town, hours for a city. Stopped, it shows what it has, and the same command goes on from there. No store
    is needed or changed.

    Example: `tastetwin evaluate --store store/`
    """
    from tastetwin.errors import UsageError

    if (store is None) == (source is None):
        rule = "either a store, whose run is judged, or a source, on which methods are measured"
        raise UsageError("EVALUATE-WHAT", place="evaluate", value="neither or both", rule=rule, fix="give one of them")
    if store is not None:
        _refuse_with_store({"--seeds": seeds, "--keep": keep})
        do_stage("evaluate", store, date_, config, again, as_json)
        return
    assert source is not None
    settings, day = settings_of(config), day_of(date_)
    _benchmark(_measurement(source, day, settings, seeds or _SEEDS, keep or Path(_KEEP), again), as_json)


def _refuse_with_store(given: dict[str, Any]) -> None:
    from tastetwin.errors import UsageError

    for option, value in given.items():
        if value is not None:
            rule, fix = "goes with --source, not with --store", f"leave {option} out"
            raise UsageError("EVALUATE-WHAT", place=option, value=value, rule=rule, fix=fix)


def _measurement(source: str, day: date, settings: Config, seeds: int, keep: Path, again: bool) -> Measurement:
    from tastetwin.engine import connect
    from tastetwin.evaluation.benchmark import Measurement
    from tastetwin.evaluation.dataset import load_dataset

    engine = connect(settings.engine.remote, settings.engine.partitions)
    dataset = load_dataset(engine, source, day, settings)
    return Measurement(dataset, settings, seeds, tell=console.tell, keep=keep, again=again)


def _benchmark(measurement: Measurement, as_json: bool) -> None:
    try:
        found = measurement.run()
    except (KeyboardInterrupt, SystemExit) as stop:
        steps = measurement.steps
        console.tell("stopped; this is what there is:" if steps.done else "stopped before the first result")
        if steps.done:
            _show(measurement.found(), as_json)
        stop.add_note(f"{len(steps.done)} of {len(steps.plan)} steps are kept; the same command goes on from there")
        raise
    _show(found, as_json)


def _show(found: Benchmark, as_json: bool) -> None:
    from tastetwin.evaluation.tables import as_tables

    if as_json:
        console.print_json(found)
        return
    for title, columns, rows in as_tables(found):
        if rows:
            console.print_table(f"\n{title}", columns, rows)
