"""The command line: ``tastetwin VERB``. Each verb is a few lines around a public function; nothing is computed here.

Exit codes: 0 done; 1 unexpected; 2 the request; 3 the source's data; 4 the store or the engine; 5 the gate refused;
6 an extra is missing; 130 interrupted; 143 ended by SIGTERM.
"""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
import traceback
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from tastetwin import __version__, console
from tastetwin.errors import EXIT_INTERRUPTED, StoreError, TasteTwinError

if TYPE_CHECKING:
    from tastetwin.config import Config
    from tastetwin.runs import Run, Stage

SQL_ROWS = 200
SQL_CELL = 100
"""Rows and characters of a value that ``sql`` shows to people; ``--json`` leaves nothing out."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Who shares my taste? From raw reviews and likes to every user's twin list.",
)
config_app = typer.Typer(no_args_is_help=True, help="The settings in force.")
app.add_typer(config_app, name="config")

StoreOption = Annotated[str, typer.Option("--store", help="Folder or URL that holds everything.", metavar="DIR")]
SourceOption = Annotated[
    str, typer.Option("--source", help="Folder with reviews*.jsonl, likes*.jsonl, places*.jsonl; or mongodb://...")
]
DateOption = Annotated[
    str | None, typer.Option("--date", help="Logical date.", metavar="YYYY-MM-DD", show_default="today, in UTC")
]
RunDateOption = Annotated[
    str | None,
    typer.Option("--date", help="Logical date.", metavar="YYYY-MM-DD", show_default="that of the newest run"),
]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML or TOML file of settings.", metavar="FILE")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
AgainOption = Annotated[bool, typer.Option("--again", help="Do it once more even if it is finished.")]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        console.out.print(__version__)
        raise typer.Exit


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--folder", help="Where town and store go.")] = Path("demo"),
    users: Annotated[int, typer.Option(min=200, max=200_000, help="Users of the synthetic town.")] = 2_000,
    seed: Annotated[int, typer.Option(min=0, help="Another seed makes another town.")] = 1,
) -> None:
    """The whole daily job on a synthetic town: twins of one user, the evaluation, a report.

    Example: `tastetwin demo`
    """
    from tastetwin.demo import run_demo

    run_demo(folder, users, seed)


@app.command()
def town(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    users: Annotated[int, typer.Option(min=10, max=10_000_000, help="How many users.")] = 2_000,
    dirt: Annotated[float, typer.Option(min=0, max=0.5, help="Share of dirty lines.")] = 0.02,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Write a synthetic town: raw events with planted taste, and the truth beside it.

    Example: `tastetwin town /tmp/town --users 100000`
    """
    from tastetwin.sources.synthetic import TownConfig, write_town

    report = write_town(TownConfig(users=users, dirt_share=dirt, seed=seed), folder)
    said = {"folder": str(report.folder), "truth": str(report.truth), "users": report.users, "places": report.places}
    said |= {"events": report.events, "bytes": report.bytes}
    _say(said, as_json)


@app.command()
def run(
    source: SourceOption,
    store: StoreOption,
    date_: DateOption = None,
    config: ConfigOption = None,
    again: AgainOption = False,
    as_json: JsonOption = False,
) -> None:
    """The daily job: collect, mart, features, train, analyze, evaluate, deliver.

    Example: `tastetwin run --source events/ --store store/ --date 2026-11-22`
    """
    from tastetwin.pipeline import run_day
    from tastetwin.store import Store

    settings = _settings(config)
    day = _day(date_)
    with _Reporting() as reporter:
        done = run_day(Store.create(store), source, day, settings, again=again, reporter=reporter)
    _say_run(store, done, as_json)


@app.command()
def collect(
    source: SourceOption,
    store: StoreOption,
    date_: DateOption = None,
    config: ConfigOption = None,
    again: AgainOption = False,
    as_json: JsonOption = False,
) -> None:
    """Land the raw events of one day in the lake, byte for byte; begins a run.

    Example: `tastetwin collect --source events/ --store store/ --date 2026-11-22`
    """
    from tastetwin.pipeline import run_stage
    from tastetwin.store import Store

    settings = _settings(config)
    day = _day(date_)
    with _Reporting() as reporter:
        done = run_stage(Store.create(store), "collect", day, settings, source=source, again=again, reporter=reporter)
    _say_run(store, done, as_json)


def _stage_command(stage: Stage, what: str) -> None:
    """A verb for one of the later stages, which all take the same options."""

    def command(
        store: StoreOption,
        date_: RunDateOption = None,
        config: ConfigOption = None,
        again: AgainOption = False,
        as_json: JsonOption = False,
    ) -> None:
        _run_stage(stage, store, date_, config, again, as_json)

    app.command(stage, help=f"{what}\n\nExample: `tastetwin {stage} --store store/`")(command)


def _run_stage(stage: Stage, store: str, date_: str | None, config: Path | None, again: bool, as_json: bool) -> None:
    from tastetwin.pipeline import run_stage
    from tastetwin.runs import parse_date
    from tastetwin.store import Store

    settings = _settings(config)
    day = None if date_ is None else parse_date(date_)
    with _Reporting() as reporter:
        done = run_stage(Store.open(store), stage, day, settings, again=again, reporter=reporter)
    _say_run(store, done, as_json)


_stage_command("mart", "Clean the day's raw lines into typed tables; refused lines go to quarantine with a reason.")
_stage_command("features", "Build user_favor and place, the vocabulary, and every user's taste history.")
_stage_command("train", "Fit the encoder; the result is a model bundle.")
_stage_command("analyze", "Encode all users and make every user's twin list.")


@app.command()
def evaluate(
    store: Annotated[str | None, typer.Option("--store", help="Judge a run of this store.", metavar="DIR")] = None,
    source: Annotated[str | None, typer.Option("--source", help="Measure all methods on this folder instead.")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="With --source: how many splits.")] = 5,
    date_: RunDateOption = None,
    config: ConfigOption = None,
    again: AgainOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure the run against baselines and the published run; write the report.

    With `--source events/`, the full benchmark in place of a run: seven tasks, every baseline, several splits; minutes
    for a small town, hours for a city. No store is needed or changed.

    Example: `tastetwin evaluate --store store/`
    """
    from tastetwin.errors import UsageError

    if (store is None) == (source is None):
        rule = "either a store, whose run is judged, or a source, on which methods are measured"
        raise UsageError("EVALUATE-WHAT", place="evaluate", value="neither or both", rule=rule, fix="give one of them")
    if store is not None:
        _run_stage("evaluate", store, date_, config, again, as_json)
        return
    from tastetwin.engine import connect
    from tastetwin.evaluation.benchmark import as_tables, run_benchmark
    from tastetwin.evaluation.dataset import load_dataset

    assert source is not None
    settings = _settings(config)
    engine = connect(settings.engine.remote, settings.engine.partitions)
    dataset = load_dataset(engine, source, _day(date_), settings)
    found = run_benchmark(dataset, settings, seeds, tell=lambda what: console.err.print(what, markup=False))
    if as_json:
        console.print_json(found.to_json())
        return
    for title, columns, rows in as_tables(found):
        console.print_table(title, columns, rows)


_stage_command("deliver", "Publish the lists, if the gate agrees.")


@app.command()
def runs(store: StoreOption, as_json: JsonOption = False) -> None:
    """Every run: id, date, status, durations and its funnel of lines and users.

    A run is *running*, *open* (begun stage by stage, the next one awaited), *delivered*, *published* (what readers
    see), *refused* by the gate, *failed*, or *interrupted*. Where a process was killed, the next one to work on the
    store notes it.

    Example: `tastetwin runs --store store/ --json`
    """
    from tastetwin.runs import funnel, list_runs, published
    from tastetwin.store import Store

    opened = Store.open(store)
    pointer = published(opened)
    shown = None if pointer is None else pointer.run_id
    found = list_runs(opened)
    if as_json:
        console.print_json([_run_json(one, shown) for one in found])
        return
    counts = ("lines_read", "accepted", "quarantined", "users", "users_served")
    rows = [
        [
            one.run_id,
            "published" if one.run_id == shown else one.status,
            round(sum(record.seconds for record in one.stages.values())),
            *(funnel(one).get(name) for name in counts),
        ]
        for one in found
    ]
    headers = ["lines", "accepted", "quarantined", "users", "served"]
    console.print_table("", ["run", "status", "seconds", *headers], rows)


@app.command()
def similar(
    user: Annotated[str, typer.Argument(help="The source's user id.")],
    store: StoreOption,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many twins.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """The twins of a user from the published run, and why.

    Example: `tastetwin similar 42 --store store/ -k 5`
    """
    from tastetwin.analysis.lookup import TwinLists, as_json_row
    from tastetwin.runs import published_run
    from tastetwin.store import Store

    opened = Store.open(store)
    published = published_run(opened)
    twins = TwinLists(opened, published).twins(user, k)
    if as_json:
        rows = [as_json_row(twin) for twin in twins]
        console.print_json({"user_idno": user, "run_id": published.run_id, "twins": rows})
        return
    rows_shown = [
        (twin.rank, twin.twin_idno, f"{twin.score:z.3f}", f"{twin.percentile:.2f}", twin.evidence.sentence)
        for twin in twins
    ]
    title = f"twins of {user} (run {published.run_id})"
    console.print_table(title, ["rank", "twin_idno", "score", "percentile", "why"], rows_shown)


@app.command()
def embed(
    source: Annotated[str, typer.Argument(help="Any raw source folder.", metavar="SOURCE_DIR")],
    store: StoreOption,
    to: Annotated[Path, typer.Option("--to", help="A .parquet file.")],
    date_: DateOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Encode the users of any raw source folder with the published model; no training.

    Example: `tastetwin embed other_events/ --store store/ --to vectors.parquet`
    """
    from tastetwin.delivery.embed import embed as encode
    from tastetwin.delivery.export import write_parquet
    from tastetwin.engine import connect
    from tastetwin.store import Store

    settings = _settings(config)
    opened = Store.open(store)
    engine = connect(settings.engine.remote, settings.engine.partitions)
    found = encode(engine, opened, source, _day(date_), settings)
    write_parquet(found.vectors, to)
    said = {"encoded": found.vectors.num_rows, "unusable": found.unusable, "lines": found.lines, "to": str(to)}
    _say(said, as_json)


@app.command()
def export(
    what: Annotated[str, typer.Argument(help="twins, vectors or report", metavar="twins|vectors|report")],
    store: StoreOption,
    to: Annotated[Path, typer.Option("--to", help="twins: .parquet or .csv; vectors: .parquet; report: .html")],
    as_json: JsonOption = False,
) -> None:
    """Write the published twins, vectors or report to a file.

    Example: `tastetwin export twins --store store/ --to twins.parquet`
    """
    from tastetwin.delivery.export import export_published
    from tastetwin.store import Store

    written = export_published(Store.open(store), what, to)
    _say({"what": what, "to": str(to), "bytes" if what == "report" else "rows": written}, as_json)


@app.command()
def sql(
    statement: Annotated[
        str, typer.Argument(help="DuckDB SQL over result, twins, user_favor, place, quarantine, runs")
    ],
    store: StoreOption,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a row.")] = False,
) -> None:
    """Ask the published tables anything.

    Example: `tastetwin sql "SELECT idno, payload.* FROM result WHERE idno = '42'" --store store/`
    """
    from tastetwin.delivery.sql import json_lines, query
    from tastetwin.store import Store

    found = query(Store.open(store), statement)
    if as_json:
        for line in json_lines(found):
            sys.stdout.write(line.decode() + "\n")
        return
    shown = found.slice(0, SQL_ROWS)
    rows = [[console.shortened(value, SQL_CELL) for value in row.values()] for row in shown.to_pylist()]
    more = "" if found.num_rows <= SQL_ROWS else f", the first {SQL_ROWS} shown; --json prints all"
    console.print_table(f"{found.num_rows:,} rows{more}", found.column_names, rows)


@app.command()
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
        _say({"published": promote_run(opened, run_id).run_id}, as_json)


@app.command()
def rollback(store: StoreOption, as_json: JsonOption = False) -> None:
    """Publish the run that readers saw before.

    Example: `tastetwin rollback --store store/`
    """
    from tastetwin.delivery.publish import roll_back
    from tastetwin.store import Store

    opened = Store.open(store)
    with opened.writing():
        _say({"published": roll_back(opened).run_id}, as_json)


@config_app.command("show")
def config_show(
    config: ConfigOption = None,
    origin: Annotated[bool, typer.Option("--origin", help="Also where each value comes from.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Every setting and its value.

    Example: `tastetwin config show --origin --config settings.yaml`
    """
    from tastetwin.config import origins

    found = list(origins(config))
    if as_json:
        console.print_json({key: {"value": value, "origin": where} for key, value, where, _ in found})
        return
    columns = ["key", "value", "origin", "meaning"] if origin else ["key", "value", "meaning"]
    rows = [[key, str(value), where, says] if origin else [key, str(value), says] for key, value, where, says in found]
    console.print_table("settings", columns, rows)


# -- shared ----------------------------------------------------------------------------------------------------------


def _settings(path: Path | None) -> Config:
    from tastetwin.config import load

    return load(path)


def _day(text: str | None) -> date:
    from tastetwin.runs import parse_date

    return datetime.now(UTC).date() if text is None else parse_date(text)


class _Reporting:
    """A reporter that leaves the terminal clean whatever happens."""

    def __enter__(self) -> console.BarReporter | console.LineReporter:
        self._reporter = console.reporter()
        return self._reporter

    def __exit__(self, *_: object) -> None:
        self._reporter.stop()


def _say(value: dict[str, Any], as_json: bool) -> None:
    if as_json:
        console.print_json(value)
        return
    for name, shown in value.items():
        console.out.print(f"{name}: {shown}", markup=False)


def _run_json(run: Run, published: str | None) -> dict[str, Any]:
    from tastetwin.runs import STAGES, funnel

    counts = funnel(run)
    headline = ("lines_read", "accepted", "quarantined", "users", "users_served")
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


def _say_run(store: str, run: Run, as_json: bool) -> None:
    from tastetwin.runs import published
    from tastetwin.store import Store

    opened = Store.open(store)
    pointer = published(opened)
    value = _run_json(run, None if pointer is None else pointer.run_id)
    if as_json:
        console.print_json(value)
        return
    console.out.print(f"run {run.run_id}: {run.status}", markup=False)
    if "evaluate" in run.stages:
        from tastetwin.evaluation.stage import report_path

        console.out.print(f"report: {opened.path(report_path(run.run_id))}", markup=False)


def main() -> NoReturn:
    """Run a command; every failure becomes one clear message and a documented exit code."""
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, functools.partial(_stop, stopped))
    code = _exit_code(stopped)
    if code in (EXIT_INTERRUPTED, 128 + signal.SIGTERM):
        console.err.print("interrupted: what is published is untouched, the same command goes on from here")
    # The embedded engine takes SIGINT and SIGTERM for itself; waiting for its threads to end could take for ever.
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _stop(stopped: list[int], number: int, frame: object) -> NoReturn:
    """Leave by an exception, and remember why: the engine's client may turn it into one of its own."""
    stopped.append(number)
    raise SystemExit(128 + number)


def _exit_code(stopped: list[int]) -> int:
    try:
        app()
    except TasteTwinError as error:
        return _fail(error)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:
        if stopped:
            return 128 + stopped[0]
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            place = str(error.filename or "the disk")
            return _fail(StoreError("DISK-FULL", place=place, rule="space is left", fix="free some space"))
        traceback.print_exc()
        return 1
    return 0


def _fail(error: TasteTwinError) -> int:
    if "--json" in sys.argv:
        console.print_json({"error": {**vars(error.problem), "exit_code": error.exit_code}})
    console.print_error(error)
    return error.exit_code
