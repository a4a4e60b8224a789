"""What a person sees on the terminal: progress, tables, errors. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

import orjson
from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from tastetwin.errors import TasteTwinError
from tastetwin.progress import Progress
from tastetwin.runs import Stage, StageRecord

UNITS: Final[dict[Stage, str]] = {
    "collect": "bytes",
    "mart": "lines",
    "features": "users",
    "train": "steps",
    "analyze": "users",
    "evaluate": "methods",
    "deliver": "users",
}
_LOG_EVERY: Final = 10.0
_UNBROKEN: Final = 24
"""Columns up to this many characters wide are never folded."""
_ABSENT: Final = "-"
_NUMBER: Final = re.compile(r"-?\d[\d,]*(\.\d+)?")

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY).decode() + "\n")


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table; numbers to the right. Values are shown as they are, never read as markup.

    Ids, dates and numbers are never broken over lines; only columns with longer values are folded, and nothing is left
    out. Away from a terminal every row is one line, for grep, unless COLUMNS says how wide to be.
    """
    cells = [[_shown(value) for value in row] for row in rows]
    table = Table(header_style="bold", box=None, pad_edge=False)
    widths = []
    for place, name in enumerate(columns):
        values = [row[place] for row in cells]
        widths.append(max(cell_len(text) for text in (*name.split("\n"), *values)))
        justify: Literal["right", "left"] = "right" if _are_numbers(values) else "left"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=widths[-1] <= _UNBROKEN)
    for row in cells:
        table.add_row(*map(Text, row))
    least, gaps = sum(min(width, _UNBROKEN) for width in widths), len(columns) - 1
    room = out.width if out.is_terminal or "COLUMNS" in os.environ else sys.maxsize
    table.collapse_padding = least + 2 * gaps > room
    gaps *= 1 if table.collapse_padding else 2
    table.width = max(least, min(sum(widths), room - gaps)) + gaps
    if title:
        out.print(Text(title, style="bold"))
    out.print(table)


def shortened(value: object, most: int) -> object:
    """Long values as text that ends in an ellipsis; others as they are."""
    text = str(value)
    return value if len(text) <= most else f"{text[: most - 1]}…"


def _are_numbers(values: Sequence[str]) -> bool:
    return bool(values) and all(value == _ABSENT or _NUMBER.fullmatch(value) for value in values)


def _shown(value: object) -> str:
    if value is None:
        return _ABSENT
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def print_error(error: TasteTwinError) -> None:
    """The code, then what, the rule and the fix on lines of their own."""
    problem = error.problem
    found = f"{problem.place}: {problem.value}" if problem.value else problem.place
    err.print(Text.assemble((f"{problem.code}  ", "bold red"), found), soft_wrap=True)
    for label, text in (("rule", problem.rule), ("fix", problem.fix)):
        if text:
            err.print(Text.assemble((f"  {label}: ", "dim"), text), soft_wrap=True)


class _Rate(ProgressColumn):
    """Units per second, over the whole stage."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {task.fields['unit']}/s" if speed else "", style="cyan")


class BarReporter:
    """Progress bars, for a terminal."""

    def __init__(self) -> None:
        self._bars: Bars | None = None

    def started(self, stage: Stage) -> Progress:
        """Show a bar for the stage."""
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn(f"[bold]{stage:<9}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            console=err,
            transient=True,
        )
        task = self._bars.add_task(stage, total=None, unit=UNITS[stage])
        self._bars.start()
        bars = self._bars
        return lambda done, total: bars.update(task, completed=done, total=total)

    def finished(self, stage: Stage, record: StageRecord) -> None:
        """Replace the bar by one line."""
        self.stop()
        err.print(
            Text.assemble(("✓ ", "green"), (f"{stage:<9}", "bold"), f" {record.seconds:6.1f} s  ", _counts(record))
        )

    def stop(self) -> None:
        """Leave the terminal clean, however the stage ended."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


class LineReporter:
    """Plain lines, for a log: one when a stage begins and ends, and one every ten seconds between."""

    def started(self, stage: Stage) -> Progress:
        """Tell that the stage begins."""
        self._say(stage, "started")
        began = last = time.monotonic()

        def tell(done: int, total: int | None) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _LOG_EVERY:
                last = now
                of = "" if total is None else f" of {total}"
                self._say(stage, f"{done}{of} {UNITS[stage]}, {done / (now - began):,.3g}/s")

        return tell

    def finished(self, stage: Stage, record: StageRecord) -> None:
        """Tell how long it took and what it counted."""
        self._say(stage, f"finished in {record.seconds:.1f} s  {_counts(record).plain}")

    def stop(self) -> None:
        """Nothing is left open."""

    @staticmethod
    def _say(stage: Stage, what: str) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        sys.stderr.write(f"{stamp} {stage}: {what}\n")
        sys.stderr.flush()


def reporter() -> BarReporter | LineReporter:
    """Bars on a terminal, lines anywhere else."""
    return BarReporter() if err.is_terminal else LineReporter()


def _counts(record: StageRecord) -> Text:
    """The headline counts; details have a dot in their name and belong into ``runs``."""
    shown = [f"{name} {count:,}" for name, count in record.counts.items() if "." not in name]
    return Text(", ".join(shown), style="dim")
