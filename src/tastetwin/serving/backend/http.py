"""The protocol's HTTP routes, as a bare ASGI application: what a framework adds costs more than the model's door."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

import orjson

from tastetwin.config import BackendConfig
from tastetwin.errors import TasteTwinError, UsageError
from tastetwin.serving.backend.model import OUTPUT
from tastetwin.serving.backend.refusals import INTERNAL, bad_input, status_of, too_large
from tastetwin.serving.backend.service import SERVER, Service
from tastetwin.serving.exchange import Message, Receive, Send
from tastetwin.serving.protocol import JSON, infer_response, read_infer_request
from tastetwin.serving.readiness import Readiness

Headers = Mapping[str, str]
Answer = tuple[int, Headers, bytes]

MILLISECONDS: Final = "x-timeout-ms"
"""Header of a request: its deadline, where the message itself names none."""
PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"
BYTES_OF_A_FAVOR: Final = 80
"""In JSON, with every number at its longest."""
HEAD_BYTES: Final = 1 << 16
LONGEST_LENGTH: Final = 20
"""Digits of a body's length, leading zeros included: the parser takes any number of those, and ``int`` does not."""
_LOG: Final = logging.getLogger(__name__)


def body_limit(config: BackendConfig) -> int:
    """Bytes of a request, at most: what the largest allowed one takes in JSON."""
    return config.max_rows * config.max_length * BYTES_OF_A_FAVOR + HEAD_BYTES


class Application:
    """ASGI 3. A subclass answers; this reads and writes, and turns errors into the protocol's."""

    def __init__(self, readiness: Readiness, limit: int) -> None:
        """No body is longer than ``limit`` bytes; while ``readiness`` drains, answers close their connection."""
        self._readiness, self._limit = readiness, limit

    async def answer(self, method: str, path: list[str], headers: Headers, body: bytes) -> Answer:
        """Status, headers and body, of a request's parts of the path and headers in lower case.

        Raises:
            TasteTwinError: what is to be refused.
        """
        raise NotImplementedError

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            body = await _body(headers, receive, self._limit)
            status, more, sent = await self.answer(scope["method"], scope["path"][1:].split("/"), headers, body)
        except TasteTwinError as error:
            status, more, sent = refusal(error)
        except _Gone:
            return
        except Exception:
            _LOG.exception("request failed")
            status, more, sent = INTERNAL.http, {"content-type": JSON}, b'{"error":"internal error"}'
        await send({"type": "http.response.start", "status": status, "headers": self._raw(more, len(sent))})
        await send({"type": "http.response.body", "body": sent})

    def _raw(self, headers: Headers, length: int) -> list[tuple[bytes, bytes]]:
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        if self._readiness.draining:
            raw.append((b"connection", b"close"))
        return [*raw, (b"content-length", b"%d" % length)]


class Http(Application):
    """``/v2`` and ``/metrics``."""

    def __init__(self, service: Service, limit: int) -> None:
        super().__init__(service.readiness, limit)
        self._service = service

    async def answer(self, method: str, path: list[str], headers: Headers, body: bytes) -> Answer:
        """See ``Application``."""
        match path:
            case ["v2", "models", name, "infer"]:
                return await self._infer(method, name, "", headers, body)
            case ["v2", "models", name, "versions", version, "infer"] if version:
                return await self._infer(method, name, version, headers, body)
            case ["v2", "models", name, *rest]:
                _allow(method, "GET")
                return self._model(name, rest)
            case ["v2"]:
                _allow(method, "GET")
                return _json(SERVER)
            case ["v2", "health", "live"]:
                return _json({"live": True})
            case ["v2", "health", "ready"]:
                return _json({"ready": self._readiness.ready}, 200 if self._readiness.ready else 503)
            case ["metrics"]:
                return 200, {"content-type": PROMETHEUS}, self._service.metrics.text()
        raise no_route(path)

    async def _infer(self, method: str, name: str, version: str, headers: Headers, body: bytes) -> Answer:
        _allow(method, "POST")
        try:
            request = read_infer_request(headers, body)
            answered, vectors = await self._service.infer(name, version, request, _seconds(headers))
        except Exception as error:
            self._service.failed(error)
            raise
        asked = {OUTPUT: request.binary(OUTPUT)}
        return 200, *infer_response(name, answered, {OUTPUT: vectors}, asked, request.id)

    def _model(self, name: str, rest: list[str]) -> Answer:
        match rest:
            case []:
                return _json(self._service.metadata(name, ""))
            case ["ready"]:
                return self._ready(name, "")
            case ["versions", version] if version:
                return _json(self._service.metadata(name, version))
            case ["versions", version, "ready"] if version:
                return self._ready(name, version)
        raise no_route(["v2", "models", name, *rest])

    def _ready(self, name: str, version: str) -> Answer:
        version = self._service.repository.get(name, version).model.version
        return _json({"name": name, "version": version, "ready": True})


def refusal(error: TasteTwinError) -> Answer:
    """The protocol's error, and beside it the problem as our other tiers have it."""
    status = status_of(error).http
    headers = {"content-type": JSON} | ({"retry-after": "1"} if status == 503 else {})
    return status, headers, orjson.dumps({"error": str(error), "problem": vars(error.problem)})


def no_route(path: list[str]) -> UsageError:
    """No such address."""
    shown = f"/{'/'.join(path)}"[:100]
    return UsageError("NO-ROUTE", place=shown, rule="a route of the Open Inference Protocol v2", fix="see: GET /v2")


def _allow(method: str, allowed: str) -> None:
    if method != allowed and not (method == "HEAD" and allowed == "GET"):
        raise UsageError("NO-METHOD", place="method", value=method[:20], rule=allowed)


def _json(value: object, status: int = 200) -> Answer:
    return status, {"content-type": JSON}, orjson.dumps(value)


def _seconds(headers: Headers) -> float | None:
    text = headers.get(MILLISECONDS)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise bad_input(f"header {MILLISECONDS}", text, "milliseconds, an integer from 0 on")
    return int(text) / 1_000


class _Gone(Exception):
    """The client has left before its request was whole."""


async def _body(headers: Headers, receive: Receive, limit: int) -> bytes:
    if headers.get("content-encoding", "identity") != "identity":
        raise bad_input("header content-encoding", headers["content-encoding"], "a body that is not compressed")
    said = headers.get("content-length", "0")
    if said.isdigit() and (len(said) > LONGEST_LENGTH or int(said) > limit):
        raise too_large("body", f"{said[:20]} bytes", limit, "backend.max_rows")
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise too_large("body", f"{size} bytes and more", limit, "backend.max_rows")
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)
