"""Bodies on their way to a server: read before anything is worked on, so that who sends slowly holds up nobody else."""

from __future__ import annotations

from typing import Final

from starlette.requests import ClientDisconnect

from tastetwin.serving import refusals
from tastetwin.serving.exchange import Message, Receive
from tastetwin.serving.refusals import Refused

OWN: Final = 1 << 10
"""Bytes that a body on its way counts besides what came of it."""


class Arriving:
    """All bodies that are not whole yet, and the memory that they take together."""

    def __init__(self, bodies: int, most: int) -> None:
        """Room for so many ``bodies`` of ``most`` bytes, or for more smaller ones."""
        self._room = bodies * (most + OWN)
        self.held = 0
        """Bytes."""

    async def whole(self, receive: Receive, most: int) -> bytes:
        """A request's body of at most so many bytes, once all of it is here.

        Raises:
            Refused: HTTP-BODY when it is too large; HTTP-BUSY when there is no room.
            ClientDisconnect: the caller left.
        """
        first, is_last = _read(await receive(), most)
        if is_last:
            return first
        body, counted = bytearray(first), 0  # no list of parts: each byte could be one
        try:
            while not is_last:
                counted = self._hold(OWN + len(body), counted)
                part, is_last = _read(await receive(), most - len(body))
                body += part
        finally:
            self.held -= counted
        return bytes(body)

    def _hold(self, size: int, before: int) -> int:
        if self.held + size - before > self._room:
            raise Refused(refusals.BUSY)
        self.held += size - before
        return size


def whole_again(body: bytes, receive: Receive) -> Receive:
    """Where an app reads a body that was read already, and then whatever comes after it."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return left.pop() if left else await receive()

    return again


def _read(message: Message, most: int) -> tuple[bytes, bool]:
    """What came of a body, and whether that was all."""
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    part: bytes = message.get("body", b"")
    if len(part) > most:
        raise Refused(refusals.TOO_LARGE)
    return part, not message.get("more_body", False)
