"""The one door of a server: an ASGI middleware through which every request comes in and every answer goes out.

In this order, cheapest first: request id; is there such a route; who asks, and may they; how often; is there room; how
large; is all of it here, and is there still room. Only then does the inner app hear of it. It is bare ASGI, since each
layer of a framework costs as much as all of this.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, Protocol

from starlette.requests import ClientDisconnect

from tastetwin.client.schemas import TIMEOUT_HEADER
from tastetwin.errors import StoreError, TasteTwinError, UsageError
from tastetwin.serving import refusals, tracing
from tastetwin.serving.arriving import Arriving, whole_again
from tastetwin.serving.exchange import Exchange, Receive, Send
from tastetwin.serving.keys import Caller
from tastetwin.serving.policy import LIVE, READY, Policy, Route
from tastetwin.serving.rates import Rates
from tastetwin.serving.readiness import Readiness
from tastetwin.serving.refusals import Refused
from tastetwin.serving.telemetry import Telemetry

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
CONTEXT: Final = "tastetwin"
"""Where in the ASGI scope the inner app finds its ``RequestContext``."""
UNLISTED: Final = Route("-", "(none)", None, ())
CLIENT_LEFT: Final = 499
"""Status of requests whose caller was gone before the answer; as in nginx, only for metrics and logs."""
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_TRACEPARENT: Final = re.compile(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_TIMEOUT: Final = TIMEOUT_HEADER.encode()
_MILLISECONDS: Final = re.compile(rb"[0-9]{1,9}")
_SMALL: Final = 6
"""Digits of the length of a body that is read and thrown away rather than its connection closed."""
_LONGEST: Final = 20
"""Digits of a length, leading zeros included: the parser takes any number of those, and ``int`` does not."""
_BODILESS: Final = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})


@dataclass(frozen=True)
class Limits:
    """What one server takes."""

    max_body: int
    """Bytes of a request's body."""
    in_flight: int
    """Requests worked on at once, from when their bodies are whole; further ones are refused."""
    seconds: float
    """For the whole of a request, body and answer included."""


@dataclass(slots=True)
class RequestContext:
    """What the door knows of a request; the inner app finds it by ``context``."""

    request_id: str
    caller: Caller | None
    """None on routes that are open to all."""
    route: str
    """The template."""
    params: Mapping[str, str]
    """Values of the template's named segments, percent-decoded."""
    deadline: float
    """In ``loop.time()`` seconds: the server's, or the caller's where they told an earlier one."""
    traceparent: str | None
    """To be sent to the next tier."""


def context(scope: Mapping[str, Any]) -> RequestContext:
    """Of a request that came through a ``Door``."""
    found: RequestContext = scope[CONTEXT]
    return found


class Callers(Protocol):
    """Who is behind a key; ``serving.keys.Keys`` is one."""

    def caller(self, presented: str) -> Caller | None:
        """Whose key that is; None for an unknown one. Raises StoreError when nobody can be told from anybody."""


class Door:
    """ASGI 3 middleware around ``inner``; ``http`` is guarded, ``lifespan`` goes through, nothing else gets in.

    Args:
        inner: the app; finds a ``RequestContext`` in the scope.
        policy: routes and scopes.
        keys: who is who.
        limits: on bodies, time and number.
        telemetry: what is told of it all.
        readiness: answered at /healthz and /readyz; once it drains, answers close their connection.
        statuses: error code -> HTTP status, for errors of ours that callers are told in full. Others: 400 for a
            UsageError, in full; 503 for a StoreError and 500 for the rest, by their code only.
        clock: seconds, for rates and durations.
    """

    def __init__(
        self,
        inner: App,
        policy: Policy,
        keys: Callers,
        limits: Limits,
        telemetry: Telemetry,
        readiness: Readiness,
        statuses: Mapping[str, int] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._inner, self._policy, self._keys = inner, policy, keys
        self._limits, self._telemetry, self._readiness = limits, telemetry, readiness
        self._statuses = statuses or {}
        self._clock = clock
        self._rates = Rates()
        self._deadlines = Deadlines(limits.seconds)
        self._arriving = Arriving(limits.in_flight, limits.max_body)
        self._prefix, self._numbers = os.urandom(6).hex().encode(), count(1)
        self.in_flight = 0
        telemetry.in_flight.set_function(lambda: self.in_flight)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._inner(scope, receive, send)
            return
        began = self._clock()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        exchange = Exchange(receive, send, self._request_id(headers), self._readiness)
        route, caller = UNLISTED, None
        try:
            found = self._policy.match(scope["method"], scope["path"])
            if found is None:
                raise Refused(self._nothing_there(scope["path"], headers, began))
            route = found[0]
            if route.scope is not None:
                caller = self._admit(route.scope, headers, began)
            elif route.template == LIVE or route.template == READY:
                return await exchange.healthy(route.template == LIVE or self._readiness.ready)
            await self._pass_on(scope, headers, exchange, route, found[1], caller)
        except Refused as refused:
            await exchange.refuse(refused.refusal, _is_unread(refused.refusal, scope, headers))
        finally:
            if exchange.span is not None:
                tracing.end(exchange.span, exchange.status)
            name = "" if caller is None else caller.name
            self._telemetry.answered(
                exchange.request_id,
                route.method,
                route.template,
                exchange.status,
                self._clock() - began,
                name,
                exchange.code,
            )

    def _request_id(self, headers: dict[bytes, bytes]) -> bytes:
        given = headers.get(b"x-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given
        return b"%b-%x" % (self._prefix, next(self._numbers))

    def _nothing_there(self, path: str, headers: dict[bytes, bytes], now: float) -> refusals.Refusal:
        """Only whoever may go there by another method is told that one can: to all others there is nothing."""
        routes = self._policy.at(path)
        try:
            caller = self._caller(headers) if routes else None
        except Refused:
            caller = None
        scopes = frozenset() if caller is None else caller.scopes | {None}
        allowed = sorted(route.method for route in routes if route.scope in scopes)
        if caller is None or not allowed:
            return refusals.NO_ROUTE
        wait = self._rates.wait(caller, now)
        return refusals.too_often(wait) if wait else refusals.no_method(allowed)

    def _admit(self, scope: str, headers: dict[bytes, bytes], now: float) -> Caller:
        """Who asks, if they may and not too often."""
        caller = self._caller(headers)
        if caller is None:
            raise Refused(refusals.NO_KEY)
        if scope not in caller.scopes:
            raise Refused(refusals.no_scope(scope))
        wait = self._rates.wait(caller, now)
        if wait:
            raise Refused(refusals.too_often(wait))
        return caller

    def _caller(self, headers: dict[bytes, bytes]) -> Caller | None:
        """Who asks. No key, one of the wrong form and an unknown one are alike."""
        presented = headers.get(b"authorization")
        if presented is None:
            key = headers.get(b"x-api-key", b"")
        else:
            key = presented[7:] if presented[:7].lower() == b"bearer " else b""
        try:
            return self._keys.caller(key.decode("latin-1"))
        except StoreError as error:
            raise Refused(refusals.of_error(error, {})) from None

    async def _pass_on(
        self,
        scope: Scope,
        headers: dict[bytes, bytes],
        exchange: Exchange,
        route: Route,
        params: Mapping[str, str],
        caller: Caller | None,
    ) -> None:
        self._check_room()
        receive = exchange.receive
        most = self._limits.max_body if caller is not None else 0  # nobody waits for what nobody answers for
        has_body = _has_body(scope["method"], headers, most)
        given = headers.get(b"traceparent")
        trace = given.decode() if given is not None and _TRACEPARENT.fullmatch(given) else None
        task = asyncio.current_task()
        assert task is not None
        due = min(self._deadlines.enter(task), _patience(headers))
        asked = RequestContext(exchange.request_id.decode(), caller, route.template, params, due, trace)
        if self._telemetry.tracing is not None:
            exchange.span = self._telemetry.tracing.begin(route.method, route.template, trace)
            asked.traceparent = tracing.traceparent_of(exchange.span)
        try:
            if has_body:
                receive = whole_again(await self._arriving.whole(receive, most), receive)
            scope[CONTEXT] = asked
            await self._work(scope, receive, exchange.send)
        except asyncio.CancelledError:
            raise Refused(self._cut_off(task)) from None
        except ClientDisconnect:
            exchange.status = CLIENT_LEFT
            return
        except Exception as error:
            raise self._refused(error, exchange.request_id, route) from None
        finally:
            self._deadlines.leave(task)
        await exchange.release()

    async def _work(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._check_room()  # once more: others came while the body did
        self.in_flight += 1
        try:
            await self._inner(scope, receive, send)
        finally:
            self.in_flight -= 1

    def _check_room(self) -> None:
        if self.in_flight >= self._limits.in_flight:
            raise Refused(refusals.BUSY)

    def _cut_off(self, task: asyncio.Task[Any]) -> refusals.Refusal:
        """Why the request was cancelled: by its deadline, or by the server, whose time to end it is."""
        if self._deadlines.is_over(task):
            task.uncancel()
            return refusals.TOO_LATE
        return refusals.ENDING

    def _refused(self, error: Exception, request_id: bytes, route: Route) -> Refused:
        """What to answer. The error itself ends here: the server would log its message, with whatever that quotes."""
        if isinstance(error, Refused):
            return error
        told = refusals.of_error(error, self._statuses) if isinstance(error, TasteTwinError) else refusals.INTERNAL
        if told.code not in self._statuses and not isinstance(error, UsageError):
            self._telemetry.failed(request_id, route.template, error)
        return Refused(told)


def _has_body(method: str, headers: Mapping[bytes, bytes], most: int) -> bool:
    """Whether there may be one. The HTTP parser holds it to the length that is told.

    Raises:
        Refused: HTTP-BODY.
    """
    length = headers.get(b"content-length")
    if b"transfer-encoding" in headers or length is None:
        return b"transfer-encoding" in headers or method not in _BODILESS
    if not (length.isdigit() and len(length) <= _LONGEST and int(length) <= most):
        raise Refused(refusals.TOO_LARGE)
    return True


def _patience(headers: Mapping[bytes, bytes]) -> float:
    """Until when the caller waits, in ``loop.time()`` seconds; for ever if they do not say."""
    told = headers.get(_TIMEOUT, b"")
    return asyncio.get_running_loop().time() + int(told) / 1_000 if _MILLISECONDS.fullmatch(told) else math.inf


def _is_unread(refusal: refusals.Refusal, scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
    """Whether so much of a body may still come that it is better not waited for."""
    if refusal is refusals.TOO_LARGE:
        return True
    length = headers.get(b"content-length", b"0")
    known = b"transfer-encoding" not in headers and length.isdigit()
    return CONTEXT not in scope and not (known and len(length) < _SMALL)


class Deadlines:
    """One timer for all requests. They have equally long, so the oldest is always due first."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._due: dict[asyncio.Task[Any], float] = {}
        self._over: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, task: asyncio.Task[Any]) -> float:
        """Cancel the task unless it leaves in time; returns when, in ``loop.time()`` seconds."""
        loop = asyncio.get_running_loop()
        due = loop.time() + self._seconds
        self._due[task] = due
        if self._timer is None:
            self._timer = loop.call_at(due, self._sweep)
        return due

    def leave(self, task: asyncio.Task[Any]) -> None:
        """The task is done."""
        self._due.pop(task, None)
        self._over.discard(task)

    def is_over(self, task: asyncio.Task[Any]) -> bool:
        """Whether it was the deadline that cancelled the task."""
        return task in self._over

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        for task, due in list(self._due.items()):
            if due > loop.time():
                self._timer = loop.call_at(due, self._sweep)
                return
            del self._due[task]
            self._over.add(task)
            task.cancel()
