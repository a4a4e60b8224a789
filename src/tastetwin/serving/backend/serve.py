"""The backend's process: sockets first, then the models, then ready; at SIGTERM not ready first, drain, close."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tastetwin.config import BackendConfig
from tastetwin.errors import MissingExtra, UsageError
from tastetwin.runs import published_run
from tastetwin.store import Store

try:
    import grpc.aio
    import uvicorn
    import uvloop

    from tastetwin.serving.backend.admin import LIMIT, Admin
    from tastetwin.serving.backend.batcher import Batcher
    from tastetwin.serving.backend.follow import follow
    from tastetwin.serving.backend.grpc_service import grpc_server
    from tastetwin.serving.backend.http import Application, Http, body_limit
    from tastetwin.serving.backend.metrics import Metrics
    from tastetwin.serving.backend.repository import Repository
    from tastetwin.serving.backend.service import Service
    from tastetwin.serving.http1 import Http1, Server
except ImportError as error:
    raise MissingExtra.of(str(error.name), "serve") from None

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Listen:
    """Where to listen; port 0 takes any that is free."""

    host: str = "127.0.0.1"
    port: int = 8101
    grpc_port: int | None = None
    """None = no gRPC."""
    admin_port: int | None = None
    """None = versions cannot be changed at run time."""
    admin_host: str = "127.0.0.1"


def serve_backend(store: Store, versions: Sequence[str], config: BackendConfig, listen: Listen, tell: Tell) -> None:
    """Serve bundles until SIGTERM or SIGINT; then what was accepted is answered first.

    Args:
        store: holds the bundles.
        versions: their ids; none = that of the published run, and of whatever run is published later.
        config: how to compute, and the limits.
        listen: addresses.
        tell: hears addresses once they answer, loads and unloads.

    Raises:
        UsageError: SERVE-ADDRESS when an address cannot be listened on; NOT-PUBLISHED, BAD-VERSION, NO-PROVIDER.
        StoreError: NO-GENERATION, DAMAGED, BAD-MODEL.
    """
    uvloop.run(_serve(store, list(versions), config, listen, tell))


async def _serve(store: Store, versions: list[str], config: BackendConfig, listen: Listen, tell: Tell) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    metrics = Metrics()
    repository = Repository(store, config, metrics, tell)
    batcher = Batcher(config, config.threads or _cpus(), metrics)
    service = Service(repository, batcher, metrics, config)
    async with _Listeners() as listeners:
        await listeners.http(Http(service, body_limit(config)), listen.host, listen.port, tell)
        if listen.admin_port is not None:
            await listeners.http(Admin(service, LIMIT), listen.admin_host, listen.admin_port, tell, "admin ")
        if listen.grpc_port is not None:
            await listeners.grpc(grpc_server(service), listen.host, listen.grpc_port, tell)
        for version in versions or [published_run(store).generation("train")]:
            await repository.load(version)
        following = None if versions else asyncio.create_task(follow(store, repository, tell))
        gc.collect()
        gc.freeze()  # what is there now stays: later collections need not walk through it (18 ms)
        service.is_ready = True
        tell("ready")
        await stopped.wait()
        service.is_ready, service.is_draining = False, True
        await asyncio.sleep(config.drain_seconds)
        if following is not None:
            following.cancel()
    batcher.close()


class _Listeners(contextlib.AsyncExitStack):
    """What listens; at the end every listener takes no more, and answers what it has taken."""

    async def http(self, app: Application, host: str, port: int, tell: Tell, what: str = "") -> None:
        bound = self.enter_context(_bound(host, port))
        options = uvicorn.Config(
            app,
            http=Http1,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_level="warning",
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,
        )
        server = _Server(options)
        task = asyncio.create_task(server.serve(sockets=[bound]))
        self.push_async_callback(server.end, task)
        tell(f"{what}http://{_shown(host)}:{bound.getsockname()[1]}")

    async def grpc(self, server: grpc.aio.Server, host: str, port: int, tell: Tell) -> None:
        try:
            taken = server.add_insecure_port(f"{_shown(host)}:{port}")
        except RuntimeError as error:
            raise _no_address(host, port, error) from error
        await server.start()
        self.push_async_callback(server.stop, 600)
        tell(f"grpc://{_shown(host)}:{taken}")


class _Server(Server):
    """One of several in the process."""

    async def end(self, task: asyncio.Task[None]) -> None:
        """Take no more connections, answer every request that was read, close."""
        self.should_exit = True
        await task


def _bound(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise _no_address(host, port, error) from error


def _no_address(host: str, port: int, error: Exception) -> UsageError:
    return UsageError(
        "SERVE-ADDRESS",
        place=f"{host} port {port}",
        value=error,
        rule="an address of this machine, and a port that is free",
        fix="another --port or --host; port 0 takes any that is free",
    )


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _cpus() -> int:
    return len(os.sched_getaffinity(0))
