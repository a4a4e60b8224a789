"""The model repository extension, on a listener of its own: which bundles there are, load, unload."""

from __future__ import annotations

import asyncio
from typing import Final

import orjson

from tastetwin.errors import UsageError
from tastetwin.serving.backend.http import Answer, Application, Headers, no_route
from tastetwin.serving.backend.refusals import bad_input, unknown_model
from tastetwin.serving.backend.repository import NAME, Repository
from tastetwin.serving.protocol import JSON
from tastetwin.serving.readiness import Readiness

LIMIT: Final = 1 << 16
"""Bytes of a request."""


class Admin(Application):
    """``/v2/repository``."""

    def __init__(self, repository: Repository, readiness: Readiness, limit: int) -> None:
        super().__init__(readiness, limit)
        self._repository = repository

    async def answer(self, method: str, path: list[str], headers: Headers, body: bytes) -> Answer:
        """See ``Application``."""
        if method != "POST":
            raise UsageError("NO-METHOD", place="method", value=method[:20], rule="POST")
        value = _object(body)
        match path:
            case ["v2", "repository", "index"]:
                return await self._index(value.get("ready", False) is True)
            case ["v2", "repository", "models", name, "load" | "unload" as what]:
                if name != NAME:
                    raise unknown_model(name, "")
                version = _version(value)
                await (self._repository.load if what == "load" else self._repository.unload)(version)
                return 200, {"content-type": JSON}, b"{}"
        raise no_route(path)

    async def _index(self, only_ready: bool) -> Answer:
        known = await asyncio.to_thread(self._repository.index)
        shown = [each for each in known if not only_ready or each["state"] == "READY"]
        return 200, {"content-type": JSON}, orjson.dumps(shown)


def _object(body: bytes) -> dict[str, object]:
    try:
        value = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as error:
        raise bad_input("body", error, "one JSON object, or nothing") from error
    if not isinstance(value, dict):
        raise bad_input("body", type(value).__name__, "one JSON object, or nothing")
    return value


def _version(value: dict[str, object]) -> str:
    parameters = value.get("parameters")
    version = parameters.get("version") if isinstance(parameters, dict) else None
    if not isinstance(version, str):
        raise bad_input("parameters.version", version, "a bundle's id, as text")
    return version
