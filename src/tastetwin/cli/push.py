"""``push``: the published lists to where others read them."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from typing import Annotated

import typer

from tastetwin import console
from tastetwin.cli.options import ClientOption, JsonOption, StoreOption, say


def push(
    to: Annotated[
        str, typer.Option("--to", help="kafka://HOST:PORT/TOPIC, or more brokers with commas.", metavar="ADDRESS")
    ],
    store: StoreOption,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many twins of each list.")] = 10,
    full: Annotated[bool, typer.Option("--full", help="Send what is there already, too.")] = False,
    client: ClientOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, and send nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Send to a compacted Kafka topic the published lists that it does not hold yet; tombstones for users who left.

    Stopped or killed at any point, the same command goes on from there.

    Example: `tastetwin push --to kafka://localhost:9092/twins --store store/`
    """
    from tastetwin.delivery.kafka import Address, Topic, read_client
    from tastetwin.delivery.push import push as send
    from tastetwin.store import Store

    opened = Store.open(store)
    topic = Topic(Address.of(to), read_client(client))
    with nullcontext() if dry_run else opened.writing():
        note = None if dry_run else topic.prepare()
        if note is not None:
            console.tell(note)
        said = asdict(send(opened, to, None if dry_run else topic, k=k, full=full))
    say(said, as_json)
