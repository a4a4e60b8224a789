"""``events``: messages that could not be used, counted and sent back."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from tastetwin import console
from tastetwin.cli.options import ClientOption, ConfigOption, JsonOption, say, settings_of

app = typer.Typer(no_args_is_help=True, help="Events that could not be used: dead letters in Kafka.")
FromOption = Annotated[
    str | None,
    typer.Option("--from", help="Topic of dead letters.", metavar="TOPIC", show_default="app.dead_letter_topic"),
]
AttemptsOption = Annotated[
    int, typer.Option("--max-attempts", min=1, help="Letters that were tried so often stay where they are.")
]


@app.command()
def dead(
    from_: FromOption = None,
    max_attempts: AttemptsOption = 3,
    client: ClientOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count dead letters by reason: all, those not sent back yet, and of these the ones tried too often.

    Example: `tastetwin events dead --config settings.yaml`
    """
    from tastetwin.serving.app.events.replay import count, read_dead
    from tastetwin.serving.app.events.settings import brokers_of, client_of

    settings = settings_of(config).app
    found = read_dead(brokers_of(settings), client_of(client), from_ or settings.dead_letter_topic)
    rows = count(found, max_attempts)
    if as_json:
        console.print_json({"reasons": rows})
        return
    columns = ["reason", "letters", "open", "exhausted"]
    console.print_table("", columns, [[row[column] for column in columns] for row in rows])


@app.command()
def replay(
    from_: FromOption = None,
    reason: Annotated[
        list[str] | None, typer.Option("--reason", help="Of this reason alone; again for more.", show_default="all")
    ] = None,
    max_attempts: AttemptsOption = 3,
    client: ClientOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send dead letters back to the topic that they came from, once their cause is mended.

    Example: `tastetwin events replay --reason place_missing`
    """
    from tastetwin.serving.app.events.outbox import Outbox
    from tastetwin.serving.app.events.replay import read_dead
    from tastetwin.serving.app.events.replay import replay as send_back
    from tastetwin.serving.app.events.settings import brokers_of, client_of

    settings = settings_of(config).app
    brokers, options, topic = brokers_of(settings), client_of(client), from_ or settings.dead_letter_topic
    found = read_dead(brokers, options, topic)
    say(asdict(send_back(Outbox(brokers, options), found, topic, reason or (), max_attempts)), as_json)
