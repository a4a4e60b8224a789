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
from contextlib import suppress
from typing import Annotated, NoReturn

import typer

from tastetwin import __version__, console
from tastetwin.cli import ask, bench, databases, evaluation, events, history, job, keys, privacy, settings
from tastetwin.cli import push as pushing
from tastetwin.cli.serve import serve_app
from tastetwin.errors import EXIT_INTERRUPTED, StoreError, TasteTwinError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Who shares my taste? From raw reviews and likes to every user's twin list.

    First look: `tastetwin demo`. Your events, then one user's twins:

    Example: `tastetwin run --source events/ --store store/`

    Example: `tastetwin similar 42 --store store/`
    """,
)
config_app = typer.Typer(no_args_is_help=True, help="The settings in force.")


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        console.out.print(__version__)
        raise typer.Exit


# In the order of --help.
app.command()(job.demo)
app.command()(job.town)
app.command()(job.run)
app.command()(job.collect)
app.command("mart")(
    job.stage_verb("mart", "Clean the day's raw lines into typed tables; refused lines go to quarantine with a reason.")
)
app.command("features")(
    job.stage_verb("features", "Build user_favor and place, the vocabulary, and every user's taste history.")
)
app.command("train")(job.stage_verb("train", "Fit the encoder; the result is a model bundle."))
app.command("analyze")(job.stage_verb("analyze", "Encode all users and make every user's twin list."))
app.command()(evaluation.evaluate)
app.command("deliver")(job.stage_verb("deliver", "Publish the lists, if the gate agrees."))
app.command()(history.runs)
app.command()(history.metrics)
app.command()(ask.similar)
app.command()(ask.compare)
app.command("why-not")(ask.why_not)
app.command()(ask.embed)
app.command()(ask.export)
app.command()(ask.sql)
app.command()(ask.page)
app.command()(pushing.push)
app.command()(databases.load)
app.command("opt-out")(privacy.opt_out)
app.command("opt-in")(privacy.opt_in)
app.command()(history.diff)
app.command()(privacy.forget)
app.command()(history.promote)
app.command()(history.rollback)
config_app.command("show")(settings.show)
app.add_typer(config_app, name="config")
app.add_typer(serve_app, name="serve")
app.command("bench-serve")(bench.bench_serve)
app.add_typer(keys.app, name="keys")
app.add_typer(events.app, name="events")


def main() -> NoReturn:
    """Run a command; every failure becomes one clear message and a documented exit code."""
    stopped: list[int] = []
    console.set_up_logs()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, functools.partial(_stop, stopped))
    code = _exit_code(stopped)
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
    except BrokenPipeError:
        return 1
    except (SystemExit, KeyboardInterrupt) as end:
        code = EXIT_INTERRUPTED if isinstance(end, KeyboardInterrupt) else end.code
        if code in (EXIT_INTERRUPTED, 128 + signal.SIGTERM):
            _say_interrupted(end)
        return code if isinstance(code, int) else 0 if code is None else 1
    except Exception as error:
        if stopped:
            _say_interrupted(error)
            return 128 + stopped[0]
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            place = str(error.filename or "the disk")
            return _fail(StoreError("DISK-FULL", place=place, rule="space is left", fix="free some space"))
        console.print_unexpected(error)
        return 1
    return 0


def _say_interrupted(end: BaseException) -> None:
    """With what those it passed on its way out have noted: what is kept, and how to go on."""
    console.tell(": ".join(["interrupted", *getattr(end, "__notes__", [])]))


def _fail(error: TasteTwinError) -> int:
    if "--json" in sys.argv:
        console.print_json({"error": {**vars(error.problem), "exit_code": error.exit_code}})
    console.print_error(error)
    return error.exit_code
