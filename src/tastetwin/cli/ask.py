"""Verbs that ask the published run: ``similar``, ``embed``, ``export``, ``sql``, ``page``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from tastetwin import console
from tastetwin.cli.options import (
    ConfigOption,
    DateOption,
    JsonOption,
    StoreOption,
    day_of,
    say,
    settings_of,
    tracking_of,
)
from tastetwin.errors import UsageError

if TYPE_CHECKING:
    from tastetwin.analysis.pair import Comparison

LanguageOption = Annotated[str, typer.Option("--language", help="Of the evidence: en or ko.", metavar="en|ko")]
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
    niche: Annotated[
        bool | None,
        typer.Option("--niche/--mainstream", help="Of the first 5 k in the list, those of unusual or of common taste."),
    ] = None,
    language: LanguageOption = "en",
    as_json: JsonOption = False,
) -> None:
    """The twins of a user from the published run, and the evidence: what both share.

    Example: `tastetwin similar 42 --store store/ -k 5 --far`
    """
    from tastetwin.analysis.lookup import TwinLists, as_json_row
    from tastetwin.analysis.sentences import language_of
    from tastetwin.runs import published_run
    from tastetwin.store import Store

    opened = Store.open(store)
    published = published_run(opened)
    lists = TwinLists(opened, published, language_of(language))
    asked = {
        (None, None): lists.twins,
        (True, None): lists.near,
        (False, None): lists.far,
        (None, True): lists.niche,
        (None, False): lists.mainstream,
    }.get((near, niche))
    if asked is None:
        raise UsageError("TWO-DIALS", place="similar", value="both", rule="one dial at a time", fix="leave one out")
    twins = asked(user, k)
    if near is not None and not lists.has_home_part:
        console.err.print("this run has no home part: near and far are the same", markup=False)
    if as_json:
        rows = [as_json_row(twin) for twin in twins]
        console.print_json({"user_idno": user, "run_id": published.run_id, "twins": rows})
        return
    console.print_twins(f"twins of {user} (run {published.run_id})", twins)


def compare(
    user: Annotated[str, typer.Argument(help="The source's user id.")],
    other: Annotated[str, typer.Argument(help="Another one.")],
    store: StoreOption,
    language: LanguageOption = "en",
    as_json: JsonOption = False,
) -> None:
    """What two users have in common, what they have not, and without which visits they would not match.

    Example: `tastetwin compare 42 43 --store store/`
    """
    from tastetwin.api import TasteTwin

    found = TasteTwin(store).compare(user, other, language=language)
    if as_json:
        console.print_json({"user_idno": user, "other_idno": other, **asdict(found)})
        return
    console.print_table(f"{user} and {other}", ["", ""], comparison_rows(user, other, found))


def why_not(
    user: Annotated[str, typer.Argument(help="The source's user id: whose list.")],
    other: Annotated[str, typer.Argument(help="Who may be in it.")],
    store: StoreOption,
    as_json: JsonOption = False,
) -> None:
    """Why another user is not in a user's list: every condition in turn, and whether it holds.

    Example: `tastetwin why-not 42 43 --store store/`
    """
    from tastetwin.api import TasteTwin

    steps = TasteTwin(store).why_not(user, other)
    if as_json:
        console.print_json({"user_idno": user, "other_idno": other, "steps": [asdict(step) for step in steps]})
        return
    rows = [["yes" if step.holds else "no", step.condition, step.said] for step in steps]
    console.print_table(f"{other} in the list of {user}", ["holds", "condition", ""], rows)


def comparison_rows(user: str, other: str, found: Comparison) -> list[list[str]]:
    """A comparison, a line a fact."""
    chance = "too little data, or of another version" if found.chance is None else f"{100 * found.chance:.3g} %"
    ahead = [
        ", ".join(f"{each.key} (+{100 * each.weight:.0f} %)" for each in more) for more in (found.more, found.less)
    ]
    return [
        ["both", found.agree.sentence],
        [f"{user} has more of", f"categories {ahead[0]}" if ahead[0] else "nothing that may be named"],
        [f"{other} has more of", f"categories {ahead[1]}" if ahead[1] else "nothing that may be named"],
        [f"chance that {other} has the next place of {user}", chance],
        ["closer than", f"{found.percentile:.2f} % of random pairs"],
        ["of the similarity", f"taste {found.taste:.2f}, home area {found.home:.2f}"],
        [f"rank of {other} for {user}", f"{found.rank:,}"],
        [f"rank of {user} for {other}", f"{found.rank_back:,}"],
        [f"without which visits of {user}", _without(found, other)],
    ]


def _without(found: Comparison, other: str) -> str:
    without = found.without
    if without is None:
        return f"{other} is too far down to begin with"
    if not without.visits:
        return f"no few visits that may be named would put {other} beyond the first {without.beyond}"
    return f"{', '.join(without.visits)}: {other} would be at rank {without.rank:,}"


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
    unusable = found.unusable if as_json else len(found.unusable)
    said = {"encoded": found.vectors.num_rows, "unusable": unusable, "lines": found.lines, "to": str(to)}
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
        str,
        typer.Argument(
            help="DuckDB SQL over result, twins, exposure, favors, user_favor, place, quarantine, runs, funnel, "
            "health, quality"
        ),
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
    rows_in_words = "1 row" if found.num_rows == 1 else f"{found.num_rows:,} rows"
    console.print_table(rows_in_words + more, found.column_names, rows)


def page(
    store: StoreOption,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes any that is free.")] = 8000,
    host: Annotated[str, typer.Option(help="The one name or address that it listens on and answers to.")] = "127.0.0.1",
    config: ConfigOption = None,
) -> None:
    """A web page of the published run: search, twins, pairs, taste map, health, and what the next run changes.

    It is for planners inside: whoever reaches it sees every user, as with `similar` and `sql`, and may publish the
    run that awaits approval. Ctrl-C ends it.

    Example: `tastetwin page --store store/`
    """
    from tastetwin.page.serve import serve
    from tastetwin.store import Store

    opened = Store.open(store)
    follow = tracking_of(opened, config).follow
    serve(opened, host, port, lambda at: console.err.print(f"{at}  (for planners inside)", markup=False), follow)
