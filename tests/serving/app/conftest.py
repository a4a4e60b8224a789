"""An app in this process, in front of a gateway that can be made to misbehave."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from tastetwin.config import AppConfig
from tastetwin.serving.app.http import STATUSES, Api, endpoints, policy
from tastetwin.serving.app.serve import limits, opened
from tastetwin.serving.app.state import State
from tastetwin.serving.app.state_sqlite import SqliteState
from tastetwin.serving.app.tokens import AppCallers, Tokens
from tastetwin.serving.door import Door
from tastetwin.serving.keys import Keys, add_key
from tastetwin.serving.readiness import Readiness
from tastetwin.serving.server import Lifespan
from tastetwin.serving.telemetry import Telemetry
from tests.serving.gateways import KEY, Gateway, Reply, listening, request, served

SECRET = "s" * 40


@dataclass
class Product:
    """The app, and whoever asks it."""

    url: str
    gateway: Gateway
    server_key: str
    other_key: str
    """With every scope but the app's."""
    tokens: Tokens
    log: io.BytesIO
    door: Door
    inner: Lifespan[Api]

    @property
    def state(self) -> State:
        api = self.inner.api
        assert api is not None
        return api._app.state

    def token(self, user: str = "u42", seconds: int = 60) -> str:
        return self.tokens.make(user, seconds)

    def reply(self, method: str, path: str, key: str, body: Any = None, **headers: str) -> Reply:
        shown = {"authorization": f"Bearer {key}"} if key else {}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return request(self.url, method, path, {**shown, **named}, None if body is None else orjson.dumps(body))

    def ask(self, method: str, path: str, key: str | None = None, body: Any = None) -> tuple[int, Any]:
        """Status and answer; as user u42 unless another key or token is named."""
        said = self.reply(method, path, self.token() if key is None else key, body)
        return said.status, said.json()


@contextmanager
def product(gateway: Gateway, folder: Path, **settings: Any) -> Iterator[Product]:
    config = AppConfig(
        gateway=gateway.url, **{"user_per_second": 1e5, "user_burst": 100_000, "place_people": True, **settings}
    )
    keys = folder / "keys.json"
    server = add_key(keys, "shop", ["app"], 1e5, 100_000)
    other = add_key(keys, "other", ["embed", "twins", "score", "favors", "opt-out"], 1e5, 100_000)
    tokens = Tokens([SECRET], config.user_per_second, config.user_burst)
    log = io.BytesIO()
    inner = Lifespan(lambda: opened(config, KEY, tokens))
    callers, telemetry = AppCallers(Keys(keys), tokens), Telemetry("app", log)
    door = Door(inner, policy(endpoints(config)), callers, limits(config), telemetry, Readiness(), STATUSES)
    with served(door, "on") as url:
        yield Product(url, gateway, server, other, tokens, log, door, inner)


def _people() -> dict[str, list[str]]:
    return {"u42": ["u7", "u8", "u9"], "u7": ["u42"], "lonely": []}


@pytest.fixture(scope="session")
def _shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    with listening(Gateway()) as gateway, product(gateway, tmp_path_factory.mktemp("shop")) as running:
        yield running


@pytest.fixture
def gateway(_shop: Product) -> Gateway:
    """As good as new."""
    running = _shop.gateway
    running.people, running.places, running.asked = _people(), {"p1": ["u8", "u42", "u9"]}, []
    running.faults, running.always, running.seconds = [], None, 0.0
    return running


@pytest.fixture
def shop(_shop: Product, gateway: Gateway) -> Product:
    """As good as new."""
    assert isinstance(_shop.state, SqliteState)
    _shop.state._database.execute("DELETE FROM entry")
    _shop.log.truncate(_shop.log.seek(0))
    return _shop
