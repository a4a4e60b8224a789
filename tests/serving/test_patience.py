"""A caller who says how long they wait: nothing is done for them after that."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest

from tastetwin.client.schemas import TIMEOUT_HEADER
from tastetwin.serving.door import Door, Limits, context
from tastetwin.serving.exchange import respond
from tastetwin.serving.policy import Policy
from tastetwin.serving.readiness import Readiness
from tastetwin.serving.telemetry import Telemetry


class Nobody:
    """No key is any good, and none is needed."""

    def caller(self, presented: str) -> None:
        return None


def time_left(told: str | None) -> float:
    """That the inner app is given, of five seconds."""
    left: list[float] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        left.append(context(scope).deadline - asyncio.get_running_loop().time())
        await respond(send, b"{}")

    async def receive() -> Any:
        return {"type": "http.request"}

    async def send(message: Any) -> None: ...

    headers = [] if told is None else [(TIMEOUT_HEADER.encode(), told.encode())]
    telemetry = Telemetry("app", io.BytesIO())
    door = Door(inner, Policy({("GET", "/"): None}), Nobody(), Limits(100, 10, 5.0), telemetry, Readiness())
    asyncio.run(door({"type": "http", "method": "GET", "path": "/", "headers": headers}, receive, send))
    return left[0]


@pytest.mark.parametrize(
    ("told", "most"),
    [(None, 5.0), ("250", 0.25), ("0", 0.0), ("999999999", 5.0), ("-1", 5.0), ("1e3", 5.0), ("", 5.0), ("9" * 50, 5.0)],
)
def test_the_earlier_end_counts(told: str | None, most: float) -> None:
    """Never later than the server's own; what is no number is passed over."""
    assert most - 1.0 < time_left(told) <= most
