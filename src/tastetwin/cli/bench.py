"""``bench-serve``: a load test for a gateway of one's own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from tastetwin import console
from tastetwin.cli.options import GATEWAY_KEY, JsonOption, key_of
from tastetwin.errors import StoreError


def bench_serve(
    url: Annotated[str, typer.Argument(help="Of a model gateway, such as http://127.0.0.1:8102")],
    rate: Annotated[float, typer.Option(help="Requests a second.")] = 50.0,
    seconds: Annotated[float, typer.Option(help="For how long.")] = 10.0,
    mix: Annotated[
        str, typer.Option(help="Weights of twins, twins_batch, explain, compare, models.", metavar="NAME=WEIGHT,...")
    ] = "twins=8,explain=1,compare=1",
    users: Annotated[Path | None, typer.Option(help="Whose twins: one id a line.", metavar="FILE")] = None,
    store: Annotated[
        str | None, typer.Option(help="Or: everybody with a list in the published run.", metavar="DIR")
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(help="File with an API key.", show_default=f"the key itself in {GATEWAY_KEY}", metavar="FILE"),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds for one request.")] = 5.0,
    seed: Annotated[int, typer.Option(help="Of when and what is asked.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Load a gateway at a rate that does not wait for answers, and tell how it stood that.

    Example: `tastetwin bench-serve http://127.0.0.1:8102 --store store/ --key key.txt --rate 200`
    """
    from tastetwin.client.load import Plan, load, read_mix

    plan = Plan(_users(users, store), rate, seconds, read_mix(mix), seed)
    found = vars(asyncio.run(load(url, key_of(key), plan, timeout)))
    if not found["outcomes"].get("200"):
        raise nothing_answered(url, found["outcomes"])
    if as_json:
        console.print_json(found)
        return
    outcomes = ", ".join(f"{name}: {count:,}" for name, count in found["outcomes"].items())
    console.print_table(
        "", ["", ""], [[name, _shown(value)] for name, value in {**found, "outcomes": outcomes}.items()]
    )


def nothing_answered(url: str, outcomes: dict[str, int]) -> StoreError:
    """Of a load under which no question had an answer: it measured nothing."""
    return StoreError(
        "LOAD-UNANSWERED",
        place=url,
        value=", ".join(f"{name}: {count:,}" for name, count in outcomes.items()),
        rule="some questions are answered with 200",
        fix="check the address, and the key's scopes and rate",
    )


def _shown(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value


def _users(file: Path | None, store: str | None) -> list[str]:
    from tastetwin.errors import UsageError

    if (file is None) == (store is None):
        raise UsageError("LOAD-TEST", place="users", rule="either --users FILE or --store DIR", fix="name one of them")
    if store is not None:
        from tastetwin.api import TasteTwin

        users: list[str] = TasteTwin(store).twins()["user_idno"].unique().to_pylist()
        return users
    assert file is not None
    try:
        return list(dict.fromkeys(file.read_text(encoding="utf-8").split()))
    except (OSError, UnicodeDecodeError) as error:
        value = getattr(error, "strerror", None) or "not text"
        raise UsageError("LOAD-TEST", place=str(file), value=value, rule="one id a line", fix="name another") from error
