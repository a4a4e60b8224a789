"""A server from its socket to its end.

SIGTERM or SIGINT: ``/readyz`` says 503 at once, so that load balancers send no more; for ``drain_seconds`` everything
is still answered, and each answer closes its connection; then nothing is accepted any more, what was accepted is
finished within ``grace_seconds``, the app shuts down, and the process ends with 0. A further signal ends the step that
the server is in.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final, NamedTuple

import uvicorn
import uvloop

from tastetwin.errors import UsageError
from tastetwin.serving.http1 import Http1, Server
from tastetwin.serving.readiness import Readiness

KEEP_ALIVE_SECONDS: Final = 75
"""An idle connection stays open for longer than load balancers keep theirs (60 s): the side that closes first is not
the one that might be sent a request at that moment."""
BACKLOG: Final = 2_048
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Served(NamedTuple):
    """An app, and the socket that it answers on."""

    app: Any
    bound: socket.socket


def bind(host: str, port: int) -> socket.socket:
    """A socket to listen on; port 0 takes any that is free.

    It is bound and not listened on: until the server answers, whoever comes is refused at once and asks elsewhere. In
    the kernel's queue they would wait for as long as a model takes to load.

    Raises:
        UsageError: SERVE-ADDRESS when it is taken, or not of this machine.
    """
    bound = None
    try:
        bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if bound.family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((host, port))
    except OSError as error:
        if bound is not None:
            bound.close()
        raise no_address(host, port, error.strerror or str(error)) from error
    return bound


def address_of(bound: socket.socket) -> str:
    """Where a bound socket is asked, as a URL."""
    host, port = bound.getsockname()[:2]
    return f"http://{bracketed(host)}:{port}"


def bracketed(host: str) -> str:
    """A host as it stands in a URL."""
    return f"[{host}]" if ":" in host else host


def no_address(host: str, port: int, value: str) -> UsageError:
    """Nobody can listen there."""
    return UsageError(
        "SERVE-ADDRESS",
        place=f"{host} port {port}",
        value=value,
        rule="an address of this machine, and a port that is free",
        fix="another host or port; 0 takes any that is free",
    )


def run(
    main: Served,
    others: Sequence[Served],
    readiness: Readiness,
    drain_seconds: float,
    grace_seconds: float,
    tell: Callable[[], None] = lambda: None,
) -> None:
    """Serve until a signal; returns when all is finished.

    Args:
        main: the app whose requests count.
        others: such as metrics; they answer until ``main`` has ended.
        readiness: set here, told by the app's ``Door``.
        drain_seconds: between "not ready" and the end of accepting; as long as load balancers take to notice.
        grace_seconds: for what was accepted.
        tell: called once requests are answered.

    Raises:
        Exception: whatever the start of an app raised.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_Life(main, others, readiness, grace_seconds).live(drain_seconds, tell))


class _Life:
    def __init__(self, main: Served, others: Sequence[Served], readiness: Readiness, grace_seconds: float) -> None:
        self._main, *self._others = (_Server(each, grace_seconds) for each in (main, *others))
        self._readiness = readiness
        self._signalled = asyncio.Event()

    async def live(self, drain_seconds: float, tell: Callable[[], None]) -> None:
        with self._listening_to_signals():
            running = [server.start() for server in (self._main, *self._others)]
            try:
                await self._serve_until_told(running, tell)
                await self._drain(drain_seconds)
                await self._finish(running[0])
            finally:
                self._readiness.started = False
                for server in (self._main, *self._others):
                    server.should_exit = True
                await asyncio.gather(*running)
        await self._main.is_up()

    async def _serve_until_told(self, running: list[asyncio.Task[None]], tell: Callable[[], None]) -> None:
        for server in (self._main, *self._others):
            await server.is_up()
        self._readiness.started = True
        tell()
        told = asyncio.ensure_future(self._signalled.wait())
        await asyncio.wait([told, *running], return_when=asyncio.FIRST_COMPLETED)
        told.cancel()

    async def _drain(self, seconds: float) -> None:
        self._readiness.draining = True
        self._signalled.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._signalled.wait(), seconds)

    async def _finish(self, running: asyncio.Task[None]) -> None:
        """Everything accepted is answered, unless a signal comes."""
        self._signalled.clear()
        self._main.should_exit = True
        told = asyncio.ensure_future(self._signalled.wait())
        await asyncio.wait([told, running], return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        self._main.force_exit = not running.done()

    @contextmanager
    def _listening_to_signals(self) -> Iterator[None]:
        """Ours for as long as we serve; before and after, those of the command line (which leave by an exception)."""
        loop = asyncio.get_running_loop()

        def hear(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._signalled.set)

        before = {number: signal.signal(number, hear) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Server(Server):
    """uvicorn that tells why an app did not start, and loses nothing when it ends."""

    def __init__(self, served: Served, grace_seconds: float) -> None:
        self._app, self._bound = served
        self._failure: BaseException | None = None
        config = uvicorn.Config(
            self._heard,
            interface="asgi3",
            http=Http1,
            ws="none",
            lifespan="auto",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=grace_seconds,  # type: ignore[arg-type]
        )
        super().__init__(config)
        self._up = asyncio.Event()

    def start(self) -> asyncio.Task[None]:
        return asyncio.ensure_future(self._until_closed())

    async def is_up(self) -> None:
        """Raises what the app's start raised, or later its end."""
        await self._up.wait()
        if self._failure is not None:
            raise self._failure

    async def _until_closed(self) -> None:
        try:
            await self.serve(sockets=[self._bound])
        except SystemExit as error:  # uvicorn's way to say that the app did not start
            self._failure = self._failure or RuntimeError(f"the app did not start ({error.code})")
        finally:
            self._up.set()

    def _heard(self, scope: Any, receive: Any, send: Any) -> Any:
        return self._app(scope, receive, send) if scope["type"] != "lifespan" else self._lifespan(scope, receive, send)

    async def _lifespan(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            self._failure = error
            raise

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._up.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._accept_the_last()
        await super().shutdown(sockets)

    async def _accept_the_last(self) -> None:
        """Whoever is in the kernel's queue was let in: closed with the socket, they would see a reset.

        A twin of the socket keeps it open while the loop lets go of its own.
        """
        twin = self._bound.dup()
        twin.setblocking(False)
        for server in self.servers:
            server.close()
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        waiting: list[socket.socket] = []
        with suppress(BlockingIOError):
            while True:
                waiting.append(twin.accept()[0])
        twin.close()
        self._bound.close()
        for each in waiting:
            await loop.connect_accepted_socket(self._connection, each)

    def _connection(self) -> Http1:
        return Http1(self.config, self.server_state, self.lifespan.state)
