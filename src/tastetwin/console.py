"""What a person sees on the terminal: progress, tables, errors. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import os
import re
import sys
import textwrap
import time
import traceback
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import orjson
from rich.cells import cell_len, set_cell_size
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
from tastetwin.generations import Stage
from tastetwin.progress import Progress
from tastetwin.runs import Reporter, StageRecord

if TYPE_CHECKING:
    from tastetwin.analysis.lookup import Twin

UNITS: Final[dict[Stage, str]] = {
    "collect": "bytes",
    "mart": "lines",
    "features": "users",
    "train": "steps",
    "analyze": "users",
    "evaluate": "methods",
    "deliver": "users",
}
LOG: Final = "TASTETWIN_LOG"
"""Environment variable: with ``json`` every line on stderr is an object, else people are told in words."""
_LOG_EVERY: Final = 10.0
_UNBROKEN: Final = 24
"""Columns up to this many characters wide are never folded."""
_ABSENT: Final = "-"
_GLUE: Final = "\N{NO-BREAK SPACE}"
"""Where ``textwrap`` breaks no line."""
_NUMBER: Final = re.compile(r"-?\d[\d,]*(\.\d+)?(e-?\d+)?")
HOW_TO_READ: Final = "chance that a twin has one's next place: docs/explanation/scores.md"
NOT_TOLD: Final = '"-": too few people to measure it by'
GOES_ON: Final = "what is published is untouched, the same command goes on from here"

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """One JSON document on stdout; named tuples as objects."""
    option = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
    sys.stdout.write(orjson.dumps(value, default=lambda named: named._asdict(), option=option).decode() + "\n")


def tell(what: str) -> None:
    """A line about what is being done, on stderr."""
    if is_shipped():
        _log().info(what)
    else:
        err.print(what, markup=False, soft_wrap=True)


def is_shipped() -> bool:
    """Whether stderr is read by a program: then every line is a JSON object."""
    return os.environ.get(LOG) == "json"


def set_up_logs() -> None:
    """What libraries have to say goes where our own lines go, and has their form."""
    if is_shipped():
        from tastetwin.logs import log_as_json

        log_as_json()


def _log() -> Any:
    """Lines say which run and stage they are of, where there is one."""
    import structlog

    from tastetwin.logs import json_logger

    return json_logger(sys.stderr.buffer, service="tastetwin", **structlog.contextvars.get_contextvars())


def print_twins(title: str, twins: Iterable[Twin]) -> None:
    """A twin list, and how to read it; where the evidence does not fit beside the numbers, it stands below them."""
    rows = [
        (str(twin.rank), twin.twin_idno, _per_cent(twin.chance), f"{twin.percentile:.2f}", twin.evidence.sentence)
        for twin in twins
    ]
    columns = ("rank", "twin_idno", "chance", "percentile", "evidence")
    widths = [max(map(cell_len, column)) for column in zip(columns, *rows, strict=True)]
    if sum(widths) + 2 * len(widths) - 2 <= _room():
        print_table(title, columns, rows)
    else:
        out.print(Text(title, style="bold"))
        for row, style in ((columns, "bold"), *((row, "") for row in rows)):
            numbers = (set_cell_size(cell, width) if place == 1 else cell.rjust(width)
                       for place, (cell, width) in enumerate(zip(row[:4], widths, strict=False)))  # fmt: skip
            out.print(Text("  ".join(numbers) + "\n" + " " * (widths[0] + 2) + row[4], style=style))
    untold = [NOT_TOLD] if any(row[2] == _ABSENT for row in rows) else []
    out.print(Text("\n".join([HOW_TO_READ, *untold]), style="dim"))


def _per_cent(chance: float | None) -> str:
    """ "-" where there was not enough data to measure it."""
    return _ABSENT if chance is None else f"{100 * chance:.3g} %"


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
    room = _room()
    table.collapse_padding = least + 2 * gaps > room
    gaps *= 1 if table.collapse_padding else 2
    table.width = max(least, min(sum(widths), room - gaps)) + gaps
    if title:
        out.print(Text(title, style="bold"))
    out.print(table)


def _room() -> int:
    """Characters in a line."""
    return out.width if out.is_terminal or "COLUMNS" in os.environ else sys.maxsize


def shortened(value: object, most: int) -> str:
    """A value as tables show it; long ones end in an ellipsis."""
    text = _shown(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _are_numbers(values: Sequence[str]) -> bool:
    return bool(values) and all(value == _ABSENT or _NUMBER.fullmatch(value) for value in values)


def _shown(value: object) -> str:
    if value is None:
        return _ABSENT
    if isinstance(value, dict | list):
        return orjson.dumps(_rounded(value), default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:,}" if isinstance(value, int) else str(_rounded(value))


def _rounded(value: object) -> object:
    """Floats to the four digits that somebody reads, inside lists and structs too."""
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    if not isinstance(value, float):
        return value
    return round(value, 4) if abs(value) >= 1 else float(f"{value:.4g}")


def print_error(error: TasteTwinError) -> None:
    """The code, then what, the rule and the fix on lines of their own."""
    problem = error.problem
    if is_shipped():
        _log().error("failed", **{**vars(problem), "exit_code": error.exit_code})
        return
    found = f"{problem.place}: {problem.value}" if problem.value else problem.place
    err.print(Text.assemble((f"{problem.code}  ", "bold red"), found), soft_wrap=True)
    for label, text in (("rule", problem.rule), ("fix", problem.fix)):
        if text:
            err.print(Text.assemble((f"  {label}: ", "dim"), text), soft_wrap=True)


def print_unexpected(error: Exception) -> None:
    """A mistake of ours, with where it happened."""
    if is_shipped():
        from tastetwin.logs import origin

        _log().critical("unexpected", **origin(error))
    else:
        traceback.print_exception(error)


class _Rate(ProgressColumn):
    """Units per second, over the whole stage, or over its phase where it has several."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {task.fields['unit']}/s" if speed else "", style="cyan")


class BarReporter(Reporter):
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
            TextColumn("[dim]{task.fields[phase]}"),
            console=err,
            transient=True,
        )
        task = self._bars.add_task(stage, total=None, unit=UNITS[stage], phase="")
        self._bars.start()
        bars = self._bars

        def tell(done: int, total: int | None, phase: str = "", /) -> None:
            nonlocal task
            if phase != bars.tasks[0].fields["phase"]:
                bars.remove_task(task)
                task = bars.add_task(stage, total=None, unit=UNITS[stage], phase=phase)
            bars.update(task, completed=done, total=total)

        return tell

    def finished(self, stage: Stage, record: StageRecord) -> None:
        """Replace the bar by one line, or by as many as the counts fill, none torn from its name."""
        self.stop()
        head = Text.assemble(("✓ ", "green"), (f"{stage:<9}", "bold"), f" {record.seconds:6.1f} s  ")
        glued = _counts(record).replace(" ", _GLUE).replace("," + _GLUE, ", ")
        lines = textwrap.wrap(glued, max(1, err.width - len(head)), break_long_words=False)
        counts = ("\n" + " " * len(head)).join(lines).replace(_GLUE, " ")
        err.print(Text.assemble(head, (counts, "dim")))

    def stop(self) -> None:
        """Leave the terminal clean, however the stage ended."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


class LineReporter(Reporter):
    """Plain lines, for a log: when a stage or a phase of it begins, when it ends, every ten seconds between."""

    def started(self, stage: Stage) -> Progress:
        """Tell that the stage begins."""
        self._say(stage, "started")
        began = last = time.monotonic()
        before, doing = 0, ""

        def tell(done: int, total: int | None, phase: str = "", /) -> None:
            nonlocal began, last, before, doing
            now = time.monotonic()
            if phase != doing:
                began, last, before, doing = now, now, done, phase
                self._say(stage, phase)
            if now - last >= _LOG_EVERY:
                last = now
                of = "" if total is None else f" of {total}"
                self._say(stage, f"{done}{of} {UNITS[stage]}, {(done - before) / (now - began):,.3g}/s")

        return tell

    def finished(self, stage: Stage, record: StageRecord) -> None:
        """Tell how long it took and what it counted."""
        self._say(stage, f"finished in {record.seconds:.1f} s  {_counts(record)}")

    @staticmethod
    def _say(stage: Stage, what: str) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        sys.stderr.write(f"{stamp} {stage}: {what}\n")
        sys.stderr.flush()


class JsonReporter(LineReporter):
    """The same as JSON objects, for a log that is shipped; ``stage`` is a field of all of them."""

    def finished(self, stage: Stage, record: StageRecord) -> None:
        """Tell how long it took and what it counted."""
        _log().info("finished", seconds=record.seconds, generation=record.generation, counts=_headline(record))

    @staticmethod
    def _say(stage: Stage, what: str) -> None:
        _log().info(what)


class Reporting:
    """A reporter, bars on a terminal and lines anywhere else, that leaves the terminal clean whatever happens."""

    def __enter__(self) -> Reporter:
        lines = JsonReporter() if is_shipped() else LineReporter()
        self._reporter = BarReporter() if err.is_terminal and not is_shipped() else lines
        return self._reporter

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._reporter.stop()
        if error is not None:
            error.add_note(GOES_ON)


def _counts(record: StageRecord) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in _headline(record).items())


def _headline(record: StageRecord) -> dict[str, int]:
    """Counts but for details, which have a dot in their name and belong into ``runs``; ordered as when read again."""
    return {name: record.counts[name] for name in sorted(record.counts) if "." not in name}
