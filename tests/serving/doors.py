"""A door with everything that its tests want to turn, and a caller without a network."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from tastetwin.serving.door import Door, Limits
from tastetwin.serving.keys import Caller
from tastetwin.serving.policy import Policy
from tastetwin.serving.readiness import Readiness
from tastetwin.serving.telemetry import Telemetry
from tastetwin.serving.tracing import Tracing

ROUTES: Final[dict[tuple[str, str], str | None]] = {
    ("GET", "/docs"): None,
    ("POST", "/v1/models/{model}/twins"): "twins",
    ("GET", "/v1/models/{model}/users/{user}"): "twins",
    ("POST", "/v1/models/{model}/embed"): "embed",
    ("PUT", "/v1/opt-outs/{user}"): "opt-out",
}
TWINS: Final = "/v1/models/taste/twins"
LIMITS: Final = Limits(max_body=1000, in_flight=4, seconds=5.0)
Headers = Mapping[str, str]


class People:
    """Callers by key, in memory."""

    def __init__(self, *callers: Caller) -> None:
        self.callers = {f"key-of-{caller.name}": caller for caller in callers}

    def caller(self, presented: str) -> Caller | None:
        return self.callers.get(presented)


def person(name: str, *scopes: str, per_second: float = 1e6, burst: int = 1_000_000) -> Caller:
    return Caller(name, frozenset(scopes), per_second, burst)


ANN: Final = person("ann", "twins")
BOB: Final = person("bob", "embed", "opt-out")
AS_ANN: Final = {"authorization": "Bearer key-of-ann"}


@dataclass
class Answer:
    """What came back."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    ended: bool = False

    def header(self, name: str) -> str | None:
        found = [value for each, value in self.headers if each == name]
        assert len(found) < 2, f"{name} twice"
        return found[0] if found else None

    @property
    def error(self) -> dict[str, str]:
        error: dict[str, str] = json.loads(self.body)["error"]
        return error


async def ok(scope: Any, receive: Any, send: Any) -> None:
    """An inner app that reads what it is sent, and says how much that was and what the door told it."""
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    asked = scope["tastetwin"]
    said = {"size": size, "params": asked.params, "route": asked.route, "trace": asked.traceparent}
    body = orjson.dumps({**said, "id": asked.request_id, "caller": asked.caller and asked.caller.name})
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body})


class World:
    """One door, its log and its metrics."""

    def __init__(
        self,
        inner: Any = ok,
        *callers: Caller,
        limits: Limits = LIMITS,
        statuses: Mapping[str, int] | None = None,
        keys: Any = None,
        log_share: float = 1.0,
        tracing: Tracing | None = None,
    ) -> None:
        self.now = 0.0
        self.log = io.BytesIO()
        self.telemetry = Telemetry("gateway", self.log, log_share, tracing)
        self.readiness = Readiness()
        self.door = Door(
            inner,
            Policy(ROUTES),
            keys or People(*(callers or (ANN, BOB))),
            limits,
            self.telemetry,
            self.readiness,
            statuses,
            lambda: self.now,
        )

    async def ask(
        self, method: str = "POST", path: str = TWINS, headers: Headers = AS_ANN, body: Iterable[bytes] = (b"",)
    ) -> Answer:
        """One request; each part of the body is a message, as of an upload without its length."""
        answer, parts = Answer(), list(body)

        async def receive() -> dict[str, Any]:
            part = parts.pop(0) if parts else b""
            return {"type": "http.request", "body": part, "more_body": bool(parts)}

        async def send(message: Any) -> None:
            assert not answer.ended
            if message["type"] == "http.response.start":
                assert not answer.status
                answer.status = message["status"]
                answer.headers = [(name.decode(), value.decode()) for name, value in message["headers"]]
            else:
                answer.body += message.get("body", b"")
                answer.ended = not message.get("more_body", False)

        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        scope = {"type": "http", "method": method, "path": path, "headers": raw, "query_string": b""}
        await self.door(scope, receive, send)
        return answer

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    @property
    def metrics(self) -> str:
        return self.telemetry.render().decode()
