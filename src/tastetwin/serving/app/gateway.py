"""What the app asks of the model gateway, and what it makes of answers that are none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Final, TypeVar

from tastetwin.client import Call, GatewayError
from tastetwin.client.schemas import MAX_EXCLUDED
from tastetwin.errors import StoreError, TasteTwinError
from tastetwin.serving.door import RequestContext

T = TypeVar("T")
NOBODY: Final = frozenset({"UNKNOWN-USER"})
"""Codes of whoever has no twins, whatever the reason."""
NO_PLACE: Final = frozenset({"NO-KNOWN-PLACE", "FAVOR-REFUSED"})
"""Codes of a place without people."""
EXCLUDED_BYTES: Final = 1 << 18
"""Of the ids that one question excludes: it has to pass the gateway's door."""
MARGIN_SECONDS: Final = 0.05
"""Kept of a request's time, to answer that there was no answer."""
_PASSING: Final = (0, 429, 503)
"""Statuses that another try may get past."""
STATUSES: Final = {"GATEWAY-UNREACHABLE": 503, "BACKEND-UNAVAILABLE": 503, "GATEWAY-TIMEOUT": 504}


def call_of(context: RequestContext) -> Call:
    """How to ask on behalf of a request: within its time, under its id."""
    left = context.deadline - asyncio.get_running_loop().time() - MARGIN_SECONDS
    return Call(timeout=max(0.0, left), request_id=context.request_id, traceparent=context.traceparent)


async def answer_of(answer: Awaitable[T], nothing: frozenset[str] = frozenset()) -> T | None:
    """The gateway's answer; None where it refused by one of the codes ``nothing``.

    Raises:
        StoreError: GATEWAY-UNREACHABLE, BACKEND-UNAVAILABLE, GATEWAY-TIMEOUT; GATEWAY-REFUSED when it does not
            understand us.
    """
    try:
        return await answer
    except GatewayError as error:
        if error.problem.code in nothing:
            return None
        raise _told(error) from error


def _told(error: GatewayError) -> TasteTwinError:
    """What the product's client may know: nothing of addresses inside."""
    if error.status == 504 or error.problem.code == "GATEWAY-TIMEOUT":
        return StoreError("GATEWAY-TIMEOUT", place="model gateway", rule="an answer in time", fix="try again later")
    if error.problem.code == "BACKEND-UNAVAILABLE":
        return StoreError(error.problem.code, place="model backend", rule="one that answers", fix="try again later")
    if error.status in _PASSING:
        return StoreError("GATEWAY-UNREACHABLE", place="model gateway", rule="one that answers", fix="try again later")
    rule = f"an answer, not {error.status} {error.problem.code}"
    return StoreError("GATEWAY-REFUSED", place="model gateway", rule=rule, fix="see the gateway's log, and its key")


def excludable(users: Sequence[str]) -> list[str]:
    """As many of these as one question may exclude."""
    kept, room = [], EXCLUDED_BYTES
    for user in users[:MAX_EXCLUDED]:
        room -= len(user.encode()) + 3
        if room >= 0:
            kept.append(user)
    return kept
