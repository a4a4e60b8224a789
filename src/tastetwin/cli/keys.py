"""API keys of the servers: ``keys add``, ``keys list``, ``keys remove``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tastetwin import console
from tastetwin.cli.options import JsonOption, say

app = typer.Typer(no_args_is_help=True, help="API keys of the servers.")
FileOption = Annotated[Path, typer.Option("--file", help="Where hashes of keys are kept.", metavar="FILE")]


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Of whoever will use the key; it is in logs.")],
    scope: Annotated[
        list[str],
        typer.Option("--scope", help="What the key may do: embed, twins, score, favors, opt-out, app; again for more."),
    ],
    file: FileOption,
    per_second: Annotated[float, typer.Option("--per-second", help="Requests per second, in the long run.")] = 100.0,
    burst: Annotated[int, typer.Option("--burst", help="Requests at once, at most.")] = 200,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it, this once: only its hash is kept.

    Example: `tastetwin keys add shop --scope twins --file keys.json`
    """
    from tastetwin.serving.keys import add_key

    key = add_key(file, name, scope, per_second, burst)
    say({"name": name, "key": key}, as_json)


@app.command("list")
def list_(file: FileOption, as_json: JsonOption = False) -> None:
    """Who has a key, and what it may do.

    Example: `tastetwin keys list --file keys.json`
    """
    from tastetwin.serving.keys import read_keys

    columns = ["name", "scopes", "per_second", "burst", "created"]
    rows = [entry.model_dump(include=set(columns)) for entry in read_keys(file)]
    if as_json:
        console.print_json({"keys": rows})
        return
    console.print_table(
        "", columns, [[", ".join(v) if isinstance(v := row[c], list) else v for c in columns] for row in rows]
    )


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="Whose key no longer counts.")],
    file: FileOption,
    as_json: JsonOption = False,
) -> None:
    """Take a key out. Servers that read the file know within two seconds.

    Example: `tastetwin keys remove shop --file keys.json`
    """
    from tastetwin.serving.keys import remove_key

    remove_key(file, name)
    say({"removed": name}, as_json)
