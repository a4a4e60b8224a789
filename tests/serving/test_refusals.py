"""What callers are told of errors, ours and others, by bare apps and by frameworks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tastetwin.errors import GateRefused, StoreError, UsageError
from tests.serving.doors import TWINS, Answer, World


def ask(world: World) -> Answer:
    return asyncio.run(world.ask())


ERRORS = {
    "usage": (UsageError("UNKNOWN-USER", place="user", value="u1", rule="known"), 400, "known"),
    "listed": (UsageError("BUSY-MODEL", place="model", rule="free"), 409, "free"),
    "store": (StoreError("STORE-DAMAGED", place="/srv/secret", value="v", rule="r"), 503, "docs/reference/errors.md"),
    "listed store": (StoreError("STORE-BUSY", place="store", rule="not busy"), 502, "not busy"),
    "other of ours": (GateRefused("FEW-SERVED", place="/srv/secret", rule="r"), 500, "docs/reference/errors.md"),
    "not ours": (KeyError("user-4711"), 500, "no error in our code"),
}


@pytest.mark.parametrize("framework", ["bare", "starlette"])
@pytest.mark.parametrize("kind", ERRORS)
def test_errors_become_the_status_and_the_words_of_the_table(kind: str, framework: str) -> None:
    """The same, whether the app is bare or a framework answers 500 by itself; folders inside are never told."""
    error, status, rule = ERRORS[kind]

    async def bare(scope: Any, receive: Any, send: Any) -> None:
        raise error

    async def route(request: Request) -> JSONResponse:
        raise error

    inner = bare if framework == "bare" else Starlette(routes=[Route(TWINS, route, methods=["POST"])])
    world = World(inner, statuses={"BUSY-MODEL": 409, "STORE-BUSY": 502})
    answer = ask(world)
    assert (answer.status, rule in answer.error["rule"], answer.ended) == (status, True, True)
    assert answer.header("content-type") == "application/json"
    assert int(answer.header("content-length") or 0) == len(answer.body)
    for hidden in (b"secret", b"4711"):
        assert hidden not in answer.body + world.log.getvalue()


def test_a_500_that_the_app_meant_is_sent() -> None:
    """Held back until it is known that no exception follows, not lost."""

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": [(b"x-own", b"1")]})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await send({"type": "http.response.body", "body": b"b"})

    answer = ask(World(inner))
    assert (answer.status, answer.body, answer.header("x-own"), answer.ended) == (500, b"ab", "1", True)


def test_an_app_that_says_nothing_or_stops_half_way_raises_nothing() -> None:
    """What is raised would be logged by the server, with whatever it quotes."""

    async def silent(scope: Any, receive: Any, send: Any) -> None:
        return

    async def half(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise KeyError("user-4711")

    assert ask(World(silent)).error["code"] == "HTTP-INTERNAL"
    answer = ask(World(half))
    assert (answer.status, answer.ended) == (200, False)
