"""``load``: the published lists into a database."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from tastetwin.cli.options import JsonOption, StoreOption, say

ToOption = Annotated[
    str,
    typer.Option("--to", help="postgresql://user@host/db?table=result, mongodb://, cassandra://", metavar="ADDRESS"),
]


def load(
    to: ToOption,
    store: StoreOption,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Connect, say what would be done, write nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Load the published lists into a database from which services read.

    Loaded beside what readers see, checked, and shown from one moment to the next. The run shown before is kept:
    `tastetwin rollback --to ADDRESS` goes back to it. A run that is there already is not loaded again. Passwords need
    not be in the address: PGPASSWORD, ~/.pgpass and PGSERVICE work.

    Example: `tastetwin load --to postgresql://loader@db.internal/service --store store/`
    """
    from tastetwin.delivery.load import load_published, plan_load
    from tastetwin.store import Store

    opened = Store.open(store)
    done = plan_load(opened, to) if dry_run else load_published(opened, to)
    say({**asdict(done), "dry_run": dry_run}, as_json)
