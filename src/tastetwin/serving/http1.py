"""uvicorn's HTTP/1.1 connections, with the bounds that they lack and an end that loses no request."""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD: Final = 64 << 10
"""Bytes of a request line and its headers. httptools has no limit of its own and would keep whatever comes."""
HEAD_SECONDS: Final = 10.0
"""For the head of a request to arrive, or the first byte of a new connection. uvicorn waits for ever."""
FIRST_SECONDS: Final = 1.0
"""For the first byte of a new connection while the server ends."""
TAKE_SECONDS: Final = 30.0
"""For an answer to be taken. uvicorn keeps it for as long as the connection lasts."""
REST_SECONDS: Final = 10.0
"""For the rest of a request that was answered before it was whole."""
MAX_PIPELINED: Final = 32
"""Requests of one connection that wait for an earlier one's answer. 256 KiB hold 14,000, of some kB each once read."""
_NOWHERE: Final[Any] = deque(maxlen=0)
"""Where trailers go: uvicorn would put them among the headers, without end."""
_TOO_LARGE: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Http1(HttpToolsProtocol):
    """One connection."""

    _head_since: float | None = None
    _head_bytes = 0
    _begun = False
    _is_whole = True
    _rest_since: float | None = None
    _untaken_since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A new connection: its first request is awaited."""
        super().connection_made(_Joining(transport, self.loop))  # type: ignore[arg-type]
        self._head_since = self.loop.time()

    def on_message_begin(self) -> None:
        """The first byte of a request came.

        Raises:
            OverflowError: for the parser, which ends the connection.
        """
        if len(self.pipeline) >= MAX_PIPELINED:
            raise OverflowError
        super().on_message_begin()
        self._head_since = self.loop.time()
        self._head_bytes = 0
        self._begun, self._is_whole, self._rest_since = True, False, None

    def on_headers_complete(self) -> None:
        """The head is complete; how long and how large the rest may be is the door's business."""
        self._head_since = None
        self._begun = False
        super().on_headers_complete()
        self.headers = _NOWHERE

    def on_message_complete(self) -> None:
        """The last byte of a request came."""
        self._is_whole, self._rest_since = True, None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """A request was answered, perhaps before all of it came: what is left is thrown away, but not for ever."""
        super().on_response_complete()
        if not self._is_whole:
            self._rest_since = self.loop.time()

    def send_400_response(self, msg: str) -> None:
        """The parser gave up; in the middle of others' answers nothing can be said."""
        if self.pipeline:
            self.transport.abort()
        else:
            super().send_400_response(msg)

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
        """End a connection that takes too long to say what it wants, or to take what it asked for."""
        if _is_over(self._head_since, HEAD_SECONDS, now) or _is_over(self._rest_since, REST_SECONDS, now):
            self.transport.close()
        if not self.transport.get_write_buffer_size():
            self._untaken_since = None
        elif self._untaken_since is None:
            self._untaken_since = now
        elif _is_over(self._untaken_since, TAKE_SECONDS, now):
            self.transport.abort()

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


class Server(uvicorn.Server):
    """Ends connections that are slow, once a second; signals are not its business."""

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, Http1):
                    connection.close_if_slow(now)
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them to the process."""
        yield


def _is_over(since: float | None, seconds: float, now: float) -> bool:
    return since is not None and now - since > seconds


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
