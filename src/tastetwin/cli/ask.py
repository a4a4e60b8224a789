"""Verbs that ask the published run: ``similar``, ``embed``, ``export``, ``sql``, ``page``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from tastetwin import console
from tastetwin.cli.options import ConfigOption, DateOption, JsonOption, StoreOption, day_of, say, settings_of

SQL_ROWS: Final = 200
SQL_CELL: Final = 100
"""Rows and characters of a value that ``sql`` shows to people; ``--json`` leaves nothing out."""


def similar(
    user: Annotated[str, typer.Argument(help="The source's user id.")],
    store: StoreOption,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many twins.")] = 10,
    near: Annotated[
        bool | None,
        typer.Option("--near/--far", help="Search afresh: those of one area first, or those who live elsewhere."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """The twins of a user from the published run, and the evidence: what both share.

    Example: `tastetwin similar 42 --store store/ -k 5 --far`
    """
    from tastetwin.analysis.lookup import TwinLists, as_json_row
    from tastetwin.runs import published_run
    from tastetwin.store import Store

    opened = Store.open(store)
    published = published_run(opened)
    lists = TwinLists(opened, published)
    twins = lists.twins(user, k) if near is None else lists.near(user, k) if near else lists.far(user, k)
    if near is not None and not lists.has_home_part:
        console.err.print("this run has no home part: near and far are the same", markup=False)
    if as_json:
        rows = [as_json_row(twin) for twin in twins]
        console.print_json({"user_idno": user, "run_id": published.run_id, "twins": rows})
        return
    console.print_twins(f"twins of {user} (run {published.run_id})", twins)


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

    settings = settings_of(config)
    opened = Store.open(store)
    engine = connect(settings.engine.remote, settings.engine.partitions)
    found = encode(engine, opened, source, day_of(date_), settings)
    write_parquet(found.vectors, to)
    said = {"encoded": found.vectors.num_rows, "unusable": found.unusable, "lines": found.lines, "to": str(to)}
    say(said, as_json)


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
    say({"what": what, "to": str(to), "bytes" if what == "report" else "rows": written}, as_json)


def sql(
    statement: Annotated[
        str, typer.Argument(help="DuckDB SQL over result, twins, exposure, user_favor, place, quarantine, runs")
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
    shown = found.slice(0, SQL_ROWS).to_pylist(maps_as_pydicts="lossy")
    rows = [[console.shortened(value, SQL_CELL) for value in row.values()] for row in shown]
    more = "" if found.num_rows <= SQL_ROWS else f", the first {SQL_ROWS} shown; --json prints all"
    console.print_table(f"{found.num_rows:,} rows{more}", found.column_names, rows)


def page(
    store: StoreOption,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes any that is free.")] = 8000,
    host: Annotated[str, typer.Option(help="The one name or address that it listens on and answers to.")] = "127.0.0.1",
) -> None:
    """A web page of the published run: search, twins, pairs, taste map, health, and what the next run changes.

    It is for planners inside: whoever reaches it sees every user, as with `similar` and `sql`, and may publish the
    run that awaits approval. Ctrl-C ends it.

    Example: `tastetwin page --store store/`
    """
    from tastetwin.page.serve import serve
    from tastetwin.store import Store

    serve(Store.open(store), host, port, lambda at: console.err.print(f"{at}  (for planners inside)", markup=False))
