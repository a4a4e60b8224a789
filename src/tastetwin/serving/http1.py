"""uvicorn's HTTP/1.1 connections, with the bounds that they lack and an end that loses no request."""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD: Final = 64 << 10
"""Bytes of a request line and its headers. httptools has no limit of its own and would keep whatever comes."""
HEAD_SECONDS: Final = 10.0
"""For the head of a request to arrive, or the first byte of a new connection. uvicorn waits for ever."""
FIRST_SECONDS: Final = 1.0
"""For the first byte of a new connection while the server ends."""
_TOO_LARGE: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Http1(HttpToolsProtocol):
    """One connection."""

    _head_since: float | None = None
    _head_bytes = 0
    _begun = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A new connection: its first request is awaited."""
        super().connection_made(_Joining(transport, self.loop))  # type: ignore[arg-type]
        self._head_since = self.loop.time()

    def on_message_begin(self) -> None:
        """The first byte of a request came."""
        super().on_message_begin()
        self._head_since = self.loop.time()
        self._head_bytes = 0
        self._begun = True

    def on_headers_complete(self) -> None:
        """The head is complete; how long and how large the rest may be is the door's business."""
        self._head_since = None
        self._begun = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Bytes came. A head that came in one piece is within what is read at once, 256 KiB."""
        before = self._head_since
        super().data_received(data)
        if before is not None and self._head_since == before:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD and not self.transport.is_closing():
                self.transport.write(_TOO_LARGE)
                self.transport.close()

    def close_if_slow(self, now: float) -> None:
        """End a connection that takes too long to say what it wants."""
        if self._head_since is not None and now - self._head_since > HEAD_SECONDS and not self.transport.is_closing():
            self.transport.close()

    def shutdown(self) -> None:
        """The server ends: close, but not before a request of which a part is here was answered.

        Who has only just connected is given a moment to ask.
        """
        if self.cycle is None:
            self.loop.call_later(FIRST_SECONDS, self._close_if_idle)
        elif self.cycle.response_complete:
            self._close_if_idle()
        else:
            super().shutdown()

    def _close_if_idle(self) -> None:
        answered = self.cycle is None or self.cycle.response_complete
        if answered and not self._begun and not self._unread() and not self.transport.is_closing():
            self.transport.close()

    def _unread(self) -> int:
        """Bytes that the kernel has and the loop has not read yet."""
        bound: Any = self.transport.get_extra_info("socket")
        try:
            return int(struct.unpack("i", fcntl.ioctl(bound.fileno(), termios.FIONREAD, b"\0" * 4))[0])
        except (OSError, ValueError):
            return 0


class _Joining:
    """A transport that sends what is written in one turn of the loop as one: an answer is a head and a body, and two
    system calls cost more than everything else that we do for a short one."""

    __slots__ = ("_loop", "_parts", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def _flush(self) -> None:
        if self._parts:
            data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._parts = []
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
