"""What several verbs share: options, and how settings, dates and answers are read and told."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tastetwin import console

if TYPE_CHECKING:
    from tastetwin.config import Config

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


def settings_of(path: Path | None) -> Config:
    """The settings in force."""
    from tastetwin.config import load

    return load(path)


def day_of(text: str | None) -> date:
    """The logical date; today in UTC where none is given."""
    from tastetwin.runs import parse_date

    return datetime.now(UTC).date() if text is None else parse_date(text)


def say(value: dict[str, Any], as_json: bool) -> None:
    """One line a fact, or JSON."""
    if as_json:
        console.print_json(value)
        return
    for name, shown in value.items():
        console.out.print(f"{name}: {shown}", markup=False)
