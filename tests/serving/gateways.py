"""A model gateway made of a dictionary, behind a real socket: it can be slow, busy, broken or gone."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import orjson
import uvicorn
from starlette.requests import Request

Json = dict[str, Any]
ORIGIN: Final = {"model": "taste", "version": "run-1", "bundle": "bundle-1", "as_of": "2026-11-24"}
EVIDENCE: Final = {"sentence": "Both favor Noodles.", "places": ["p1"], "categories": [], "regions": []}
KEY: Final = "tt_key-for-the-gateway"


def problem(code: str) -> Json:
    return {"code": code, "place": "somewhere", "value": "", "rule": "a rule", "fix": "a fix"}


@dataclass(frozen=True)
class Said:
    """One answer."""

    status: int
    body: Any
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Gateway:
    """What it knows, what it was asked, and how it misbehaves."""

    people: dict[str, list[str]] = field(default_factory=dict)
    """Twins of each user."""
    places: dict[str, list[str]] = field(default_factory=dict)
    """Twins of a history of one place."""
    faults: list[Said] = field(default_factory=list)
    """Answered first, one a request."""
    always: Said | None = None
    """Answered to everything."""
    seconds: float = 0.0
    """Before each answer."""
    asked: list[tuple[str, Json, dict[str, str]]] = field(default_factory=list)
    """Path, body and headers of each request."""
    url: str = ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        raw = await Request(scope, receive).body()
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.asked.append((scope["path"], orjson.loads(raw or b"{}"), headers))
        await asyncio.sleep(self.seconds)
        said = self._say(*self.asked[-1])
        body = said.body if isinstance(said.body, bytes) else orjson.dumps(said.body)
        told = {"x-request-id": headers.get("x-request-id", "made-here"), **said.headers}
        fields = [(name.encode(), value.encode()) for name, value in told.items()]
        length = (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": said.status, "headers": [*fields, length]})
        await send({"type": "http.response.body", "body": body})

    def _say(self, path: str, body: Json, headers: dict[str, str]) -> Said:
        if self.faults:
            return self.faults.pop(0)
        if self.always is not None:
            return self.always
        if headers.get("authorization") != f"Bearer {KEY}":
            return refused(401, "HTTP-KEY")
        verb = path.removeprefix("/v1/").removeprefix("models/taste/").replace("/", "_").replace("-", "_")
        said: Said = getattr(self, f"_say_{verb}")(body)
        return said

    def _say_models(self, body: Json) -> Said:
        return Said(200, {"models": [{**ORIGIN, "people": 7, "dim": 2, "weight": 1.0}]})

    def _say_twins(self, body: Json) -> Said:
        if "user" in body:
            found, code, status = self.people.get(body["user"]), "UNKNOWN-USER", 404
        else:
            found, code, status = self.places.get(body["likes"][0]["like_contentsid"]), "NO-KNOWN-PLACE", 400
        if found is None:
            return refused(status, code)
        shown = [user for user in found if user not in body.get("exclude", [])]
        skip, k, wanted = body.get("skip", 0), body.get("k", 10), body.get("evidence", True)
        twins = [
            {"rank": rank, "user": user, "score": 0.9, "percentile": 99.0, "chance": 0.4}
            | ({"evidence": EVIDENCE} if wanted else {})
            for rank, user in enumerate(shown[: skip + k], start=1)
        ][skip:]
        return Said(200, {**ORIGIN, "source": "published", "stale": True, "age_seconds": 9.5, "twins": twins})

    def _say_twins_batch(self, body: Json) -> Said:
        items = [{"user": user, "error": problem("UNKNOWN-USER")} for user in body["users"]]
        return Said(200, {**ORIGIN, "items": items})

    def _say_embed(self, body: Json) -> Said:
        return Said(200, {**ORIGIN, "items": [{"vector": [0.6, 0.8], "places": 1} for _ in body["items"]]})

    def _say_explain(self, body: Json) -> Said:
        return Said(200, {**ORIGIN, "stale": True, "evidence": EVIDENCE})

    def _say_compare(self, body: Json) -> Said:
        more = [{"category": "c1", "ahead": 0.25}]
        return Said(200, {**ORIGIN, "stale": False, "evidence": EVIDENCE, "more": more, "less": []})

    def _say_favors(self, body: Json) -> Said:
        items = [
            {"user": each["user"], "taken": False, "error": problem("FAVOR-REFUSED")}
            if "bad" in {**each.get("like", {}), **each.get("review", {})}
            else {"user": each["user"], "places": 4}
            for each in body["events"]
        ]
        return Said(200, {**ORIGIN, "items": items})

    def _say_opt_out(self, body: Json) -> Said:
        return Said(200, {"user": body["user"], "opted_out": True})


def refused(status: int, code: str, **headers: str) -> Said:
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    return Said(status, {"error": problem(code), "request_id": "id-of-the-gateway"}, told)


BUSY: Final = refused(503, "HTTP-BUSY")


@contextmanager
def served(app: Any, lifespan: Literal["on", "off"]) -> Iterator[str]:
    """The address of an app, on a port of its own, from a thread."""
    bound = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="critical", lifespan=lifespan, timeout_graceful_shutdown=0)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])), daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
            assert thread.is_alive(), "it started"
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        bound.close()


@contextmanager
def listening(gateway: Gateway) -> Iterator[Gateway]:
    """A gateway that can be asked."""
    with served(gateway, "off") as gateway.url:
        yield gateway


def closed_port() -> str:
    """An address at which nobody answers."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return f"http://127.0.0.1:{bound.getsockname()[1]}"


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return orjson.loads(self.body)


def request(
    url: str, method: str, path: str, headers: dict[str, str] | None = None, body: bytes | None = None
) -> Reply:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    try:
        connection.request(method, path, body, headers or {})
        said = connection.getresponse()
        return Reply(said.status, {name.lower(): value for name, value in said.getheaders()}, said.read())
    finally:
        connection.close()
