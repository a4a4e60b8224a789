"""``run`` and its stages one by one; ``demo`` and ``town``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tastetwin import console
from tastetwin.cli.history import say_run
from tastetwin.cli.options import (
    AgainOption,
    ConfigOption,
    DateOption,
    JsonOption,
    RunDateOption,
    SourceOption,
    StoreOption,
    day_of,
    say,
    settings_of,
)

if TYPE_CHECKING:
    from tastetwin.generations import Stage


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


def town(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    users: Annotated[int, typer.Option(min=10, max=10_000_000, help="How many users.")] = 2_000,
    dirt: Annotated[float, typer.Option(min=0, max=0.5, help="Share of dirty lines.")] = 0.02,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")] = 1,
    day: Annotated[int | None, typer.Option(min=1, help="Only what comes so many days later.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a synthetic town: raw events with planted taste, and the truth beside it.

    Example: `tastetwin town /tmp/town --users 100000`
    """
    from tastetwin.sources.synthetic import TownConfig, write_day, write_town

    config = TownConfig(users=users, dirt_share=dirt, seed=seed)
    report = write_town(config, folder) if day is None else write_day(config, day, folder)
    said = {"folder": str(report.folder), "truth": str(report.truth), "users": report.users, "places": report.places}
    said |= {"events": report.events, "bytes": report.bytes}
    say(said, as_json)


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

    settings = settings_of(config)
    day = day_of(date_)
    with console.Reporting() as reporter:
        done = run_day(Store.create(store), source, day, settings, again=again, reporter=reporter)
    say_run(store, done, as_json)


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

    settings = settings_of(config)
    day = day_of(date_)
    with console.Reporting() as reporter:
        done = run_stage(Store.create(store), "collect", day, settings, source=source, again=again, reporter=reporter)
    say_run(store, done, as_json)


def stage_verb(stage: Stage, what: str) -> Callable[..., None]:
    """The verb of one of the later stages, which all take the same options."""

    def verb(
        store: StoreOption,
        date_: RunDateOption = None,
        config: ConfigOption = None,
        again: AgainOption = False,
        as_json: JsonOption = False,
    ) -> None:
        do_stage(stage, store, date_, config, again, as_json)

    verb.__doc__ = f"{what}\n\nExample: `tastetwin {stage} --store store/`"
    return verb


def do_stage(stage: Stage, store: str, date_: str | None, config: Path | None, again: bool, as_json: bool) -> None:
    """Go on with a run by one stage."""
    from tastetwin.model.ranks import rank
    from tastetwin.pipeline import help_train, run_stage
    from tastetwin.runs import parse_date
    from tastetwin.store import Store

    settings = settings_of(config)
    day = None if date_ is None else parse_date(date_)
    if stage == "train" and rank() > 0:
        help_train(Store.open(store), day, settings, again=again)
        return
    with console.Reporting() as reporter:
        done = run_stage(Store.open(store), stage, day, settings, again=again, reporter=reporter)
    say_run(store, done, as_json)
