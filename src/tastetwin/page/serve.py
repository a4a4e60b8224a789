"""Start the server: the socket first, so that a port that is taken is told at once."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable

from tastetwin.errors import MissingExtra, UsageError
from tastetwin.store import Store


def serve(
    store: Store, host: str, port: int, tell: Callable[[str], None], moved: Callable[[], None] = lambda: None
) -> None:
    """Serve the pages of a store until the process is stopped.

    ``tell`` hears the address once it answers, ``moved`` of each publication.

    Raises:
        MissingExtra: without fastapi, uvicorn or jinja2 (``tastetwin[page]``).
        UsageError: PAGE-ADDRESS when that address cannot be listened on, or is every address of the machine;
            NOT-PUBLISHED.
    """
    try:
        import uvicorn

        from tastetwin.page.app import create_app
    except ImportError as error:
        raise MissingExtra.of(str(error.name), "page") from None
    with _listening(host, port) as bound:
        app = create_app(store, host, moved)
        shown = f"[{host}]" if ":" in host else host
        tell(f"http://{shown}:{bound.getsockname()[1]}/")
        config = uvicorn.Config(app, log_level="warning", server_header=False, proxy_headers=False)
        uvicorn.Server(config).run(sockets=[bound])


def _listening(host: str, port: int) -> socket.socket:
    try:
        if _is_every_address(host):
            raise OSError("every address of this machine has no one name that a request can be checked by")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(
            "PAGE-ADDRESS",
            place=f"{host} port {port}",
            value=str(error),
            rule="one name or address of this machine, and a port that is free",
            fix="another --port or --host; --port 0 takes any that is free",
        ) from error


def _is_every_address(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return not host
