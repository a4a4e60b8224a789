"""What several verbs share: options, and how settings, dates and answers are read and told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tastetwin import console
from tastetwin.errors import MissingExtra

if TYPE_CHECKING:
    from tastetwin.config import Config
    from tastetwin.store import Store
    from tastetwin.tracking.tell import Tracking

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
ClientOption = Annotated[
    Path | None, typer.Option("--client", help="Settings of librdkafka, name=value a line.", metavar="FILE")
]
AgainOption = Annotated[bool, typer.Option("--again", help="Do it once more even if it is finished.")]

GATEWAY_KEY: Final = "TASTETWIN_GATEWAY_KEY"
"""Where a key for the gateway is looked for if no file is named."""


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around imports: what is not installed is named with the extra that brings it.

    Raises:
        MissingExtra: a package of others is not there.
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").split(".")[0] == "tastetwin":
            raise  # a mistake of ours
        raise MissingExtra.of(str(error.name), extra) from None


def settings_of(path: Path | None) -> Config:
    """The settings in force."""
    from tastetwin.settings import load

    return load(path)


def tracking_of(store: Store, path: Path | None) -> Tracking:
    """Whom the settings name, to be told what readers see.

    Raises:
        MissingExtra: without mlflow or tensorboard where the settings name them.
    """
    from tastetwin.tracking.tell import Tracking, require

    settings = settings_of(path)
    require(settings.tracking)
    return Tracking(store, settings)


def key_of(path: Path | None) -> str:
    """The key for the gateway: a file's only line, or the environment's."""
    from tastetwin.errors import UsageError

    try:
        key = (os.environ.get(GATEWAY_KEY, "") if path is None else path.read_text(encoding="ascii")).strip()
    except (OSError, UnicodeDecodeError) as error:
        key, why = "", getattr(error, "strerror", None) or "not text"
    else:
        why = "" if key.isascii() and key.isprintable() and " " not in key else "not a key"
    if not key or why:
        place = GATEWAY_KEY if path is None else str(path)
        rule = "an API key for the model gateway, and nothing else"
        raise UsageError("GATEWAY-KEY", place=place, value=why, rule=rule, fix="see: tastetwin keys add")
    return key


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
