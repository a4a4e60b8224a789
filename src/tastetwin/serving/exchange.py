"""One request and its answer on their way through the door."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from tastetwin.serving.readiness import Readiness
from tastetwin.serving.refusals import INTERNAL, SECURITY, Headers, Refusal

if TYPE_CHECKING:
    from opentelemetry.trace import Span

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
JSON: Final = b"application/json"
TEXT: Final = b"text/plain"
_LINGER_BYTES: Final = 8 << 20
_LINGER_SECONDS: Final = 1.0
_CLOSE: Final = (b"connection", b"close")


class Exchange:
    """What was answered, and the headers that every answer has."""

    __slots__ = ("_held", "_readiness", "_send", "code", "receive", "request_id", "span", "started", "status")

    def __init__(self, receive: Receive, send: Send, request_id: bytes, readiness: Readiness) -> None:
        self.receive, self._send = receive, send
        self.request_id, self._readiness = request_id, readiness
        self.started = False
        self.status = 0
        self.code = ""
        self.span: Span | None = None
        self._held: list[Message] | None = None

    def send(self, message: Message) -> Awaitable[None]:
        """For the inner app. No coroutine of its own: there are two messages to every answer.

        An answer of 500 is held back: frameworks send one of their own and then raise what it was about, and the
        error is answered better by the door.
        """
        if self.started:
            return self._send(message)
        if self._held is None and message["type"] == "http.response.start":
            self.status = message["status"]
            if self.status != 500:
                return self._start(message)
            self._held = []
        if self._held is not None:
            self._held.append(message)
        return _nothing()

    def _start(self, message: Message, closes: bool = False) -> Awaitable[None]:
        self.started = True
        headers: Headers = [*message.get("headers", ()), *SECURITY, (b"x-request-id", self.request_id)]
        if closes or self._readiness.draining:
            headers.append(_CLOSE)
        message["headers"] = headers
        return self._send(message)

    async def release(self) -> None:
        """The inner app returned: send what was held back after all."""
        if self._held is not None:
            first, *rest = self._held
            await self._start(first)
            for message in rest:
                await self._send(message)
        elif not self.started:
            await self.refuse(INTERNAL)

    async def refuse(self, refusal: Refusal, unread: bool = False) -> None:
        """Answer without the inner app, or in its stead; an answer that has begun is left unfinished.

        ``unread``: a large body may be on its way, which is not waited for: the connection ends.
        """
        self.code = refusal.code
        if self.started:
            return
        self.status = refusal.status
        headers, body = refusal.response(self.request_id)
        start: Message = {"type": "http.response.start", "status": refusal.status, "headers": headers}
        await self._start(start, closes=unread)
        if unread:
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
            await self._linger()
            body = b""
        await self._send({"type": "http.response.body", "body": body})

    async def _linger(self) -> None:
        """Read on for a moment before the connection is closed: closed at once, the caller who still writes would see
        it reset, and never the answer."""
        left = _LINGER_BYTES
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                while left > 0:
                    message = await self.receive()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return
        except TimeoutError:
            return

    async def healthy(self, yes: bool) -> None:
        """The answer to a probe."""
        self.status = 200 if yes else 503
        body = b"ok\n" if yes else b"not ready\n"
        await respond(self.send, body, TEXT, status=self.status)


async def respond(
    send: Send, body: bytes, kind: bytes = JSON, more: Sequence[tuple[bytes, bytes]] = (), status: int = 200
) -> None:
    """A whole answer; ``more``: headers besides type and length."""
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _nothing() -> None:
    """A message was kept, not sent."""
