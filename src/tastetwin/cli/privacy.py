"""What people may ask of us: ``opt-out``, ``opt-in``, ``forget``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tastetwin import console
from tastetwin.cli.options import ClientOption, ConfigOption, JsonOption, StoreOption, say, settings_of
from tastetwin.errors import UsageError

UsersArgument = Annotated[list[str] | None, typer.Argument(help="The source's user ids.", metavar="USER")]
FromOption = Annotated[Path | None, typer.Option("--from", help="A text file of user ids, one a line.", metavar="FILE")]


def opt_out(
    store: StoreOption, users: UsersArgument = None, from_: FromOption = None, as_json: JsonOption = False
) -> None:
    """Show these users to nobody, from now on: in no list, export, query, vector or report.

    Lists that are out already are cleaned as they are read; the next run has no vector of these users, and unless
    train.learn_from_opted_out is set does not learn from them. Users who are not known yet may opt out too.

    Example: `tastetwin opt-out 42 --store store/`
    """
    from tastetwin.api import TasteTwin

    named = _named(users, from_)
    TasteTwin(store).opt_out(*named)
    say({"opted_out": len(named)}, as_json)


def opt_in(
    store: StoreOption, users: UsersArgument = None, from_: FromOption = None, as_json: JsonOption = False
) -> None:
    """Take an opt-out back: these users are in the lists of the next run again.

    Example: `tastetwin opt-in 42 --store store/`
    """
    from tastetwin.api import TasteTwin

    named = _named(users, from_)
    TasteTwin(store).opt_in(*named)
    say({"opted_in": len(named)}, as_json)


def forget(
    store: StoreOption,
    users: UsersArgument = None,
    from_: FromOption = None,
    database: Annotated[
        list[str] | None, typer.Option("--database", help="An address of `load --to` to erase them from, too.")
    ] = None,
    client: ClientOption = None,
    home: Annotated[
        Path | None, typer.Option("--home", help="Of `serve`: the app's lists, too.", metavar="DIR")
    ] = None,
    config: ConfigOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be rewritten and removed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Erase these users from everything in the store, and keep them out of it.

    From the first moment they are shown to nobody. Every place is searched and cleaned; a receipt in the store's folder
    receipts says what was found where and what remains. Collecting the same source again does not bring them back.
    Topics that were pushed to get tombstones; the app's lists (app.state, or those of --home) are cleaned. Killed or
    stopped, the same command finishes the work. Not while a run is in progress.

    Example: `tastetwin forget 42 --store store/ --dry-run`
    """
    from tastetwin.api import TasteTwin

    named = _named(users, from_)
    tt = TasteTwin(store, settings_of(config))
    receipt = tt.forget(*named, dry_run=dry_run, databases=database or (), client=client, home=home)
    if as_json:
        console.print_json(receipt)
        return
    rows = [[str(value) for value in vars(entry).values()] for entry in receipt.places]
    title = f"{len(receipt.users)} to be forgotten (nothing done)" if dry_run else f"{len(receipt.users)} forgotten"
    console.print_table(title, ["place", "files searched", "found", "rewritten", "removed"], [row[:-1] for row in rows])
    # Sentences beside five columns would leave no terminal room for either.
    console.print_table("\nand what remains", ["place", ""], [(row[0], row[-1]) for row in rows if row[-1]])


def _named(users: list[str] | None, from_: Path | None) -> list[str]:
    """Every user named; raises UsageError USERS-FILE when the file cannot be read, NO-USERS when there is none."""
    try:
        lines = [] if from_ is None else from_.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            "USERS-FILE", place=str(from_), value=str(error), rule="a text file, one user id a line", fix="mend it"
        ) from error
    named = [name for each in (*(users or []), *lines) if (name := each.strip())]  # as the gate takes ids in
    if not named:
        rule, fix = "at least one user id", "name one, or give --from"
        raise UsageError("NO-USERS", place="command line", value="nobody", rule=rule, fix=fix)
    return named
