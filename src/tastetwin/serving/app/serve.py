"""The app's process: put together, served, ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tastetwin.client import Client
from tastetwin.config import AppConfig, Config
from tastetwin.serving.app.http import STATUSES, Api, endpoints, policy
from tastetwin.serving.app.openapi import pages
from tastetwin.serving.app.routes import App
from tastetwin.serving.app.state import open_state
from tastetwin.serving.app.tokens import AppCallers, Tokens, signing_keys
from tastetwin.serving.door import Limits
from tastetwin.serving.keys import Keys
from tastetwin.serving.server import Guard, Lifespan, Listen, serve
from tastetwin.serving.telemetry import Telemetry
from tastetwin.serving.tracing import tracing_from_environment

MAX_BODY: Final = 1 << 16


@dataclass(frozen=True)
class Credentials:
    """What the app shows and what it checks."""

    keys: Path
    """API keys of the product's servers."""
    gateway_key: str = field(repr=False)
    secret: Path
    """Signs user tokens."""


def serve_app(config: Config, credentials: Credentials, listen: Listen, tell: Callable[[str], None]) -> None:
    """Serve until the process is told to end; ``tell`` hears the address once requests are answered.

    Raises:
        UsageError: SERVE-ADDRESS, GATEWAY-ADDRESS, STATE-ADDRESS.
        StoreError: KEYS-FILE, SECRET-FILE, STATE-UNAVAILABLE.
    """
    app = config.app
    telemetry = Telemetry("app", listen.log, config.serve.log_share, tracing_from_environment("app"))
    tokens = Tokens(signing_keys(credentials.secret), app.user_per_second, app.user_burst)
    inner = Lifespan(lambda: opened(app, credentials.gateway_key, tokens))
    guard = Guard(policy(endpoints(app)), AppCallers(Keys(credentials.keys), tokens), limits(app), STATUSES)
    serve(inner, guard, listen, config.serve, telemetry, lambda: inner.api is not None, tell)


def limits(config: AppConfig) -> Limits:
    """What the door lets in."""
    return Limits(MAX_BODY, config.in_flight, config.deadline_ms / 1_000)


@asynccontextmanager
async def opened(config: AppConfig, gateway_key: str, tokens: Tokens) -> AsyncIterator[Api]:
    """The API, with its connections and its state."""
    state = await asyncio.to_thread(open_state, config.state)
    try:
        async with Client(config.gateway, gateway_key, model=config.model) as client:
            yield Api(App(client, state, tokens, config), pages(endpoints(config)))
    finally:
        await asyncio.to_thread(state.close)
