"""``config show``: the settings in force."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from tastetwin import console
from tastetwin.cli.options import ConfigOption, JsonOption


def show(
    config: ConfigOption = None,
    origin: Annotated[bool, typer.Option("--origin", help="Also where each value comes from.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Every setting and its value.

    Example: `tastetwin config show --origin --config settings.yaml`
    """
    from tastetwin.settings import origins

    found = list(origins(config))
    if as_json:
        console.print_json({key: {"value": value, "origin": where} for key, value, where, _ in found})
        return
    columns = ["key", "value", "origin", "meaning"] if origin else ["key", "value", "meaning"]
    rows = [
        [key, _written(value), where, says] if origin else [key, _written(value), says]
        for key, value, where, says in found
    ]
    console.print_table("settings", columns, rows)


def _written(value: object) -> str:
    """As a settings file would have it, so that a line can be copied into one."""
    return (
        json.dumps(value, ensure_ascii=False) if value is None or isinstance(value, bool | list | dict) else str(value)
    )
