"""The gateway's API: which routes there are, what each takes and gives, and how a request becomes an answer.

Bare ASGI behind the ``Door``: requests are checked by the models of ``schemas``, answers are written as they are made.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, Generic

import orjson
from prometheus_client import CollectorRegistry, Counter, Histogram
from pydantic import BaseModel

from tastetwin.client import schemas
from tastetwin.errors import TasteTwinError, UsageError
from tastetwin.serving.api import PAGES, Body, body_of, read
from tastetwin.serving.door import RequestContext, Scope, context
from tastetwin.serving.exchange import Receive, Send, respond
from tastetwin.serving.gateway.answers import Json
from tastetwin.serving.gateway.encode import Call
from tastetwin.serving.gateway.gateway import Gateway
from tastetwin.serving.gateway.outputs import Outputs, key_of
from tastetwin.serving.gateway.versions import Version
from tastetwin.serving.policy import Policy
from tastetwin.serving.swagger import Page, respond_page
from tastetwin.serving.turns import turn

BASE: Final = "/v1/models"
VERSION_HEADER: Final = b"tastetwin-version"
STATUSES: Final[Mapping[str, int]] = {
    "UNKNOWN-USER": 404,
    "UNKNOWN-MODEL": 404,
    "UNKNOWN-VERSION": 404,
    "BACKEND-UNAVAILABLE": 503,
    "OPT-OUTS-UNKNOWN": 503,
    "DEADLINE-EXCEEDED": 504,
}
_LOG: Final = logging.getLogger(__name__)
SHOWN: Final = 100
"""Characters of what somebody sent that an error repeats."""


@dataclass(frozen=True)
class Asked(Generic[Body]):
    """A request that was let in and read."""

    gateway: Gateway
    version: Version
    body: Body
    context: RequestContext

    @property
    def call(self) -> Call:
        """What is passed on to whatever is done for it."""
        return Call(self.context.deadline, self.context.request_id)

    @property
    def with_scores(self) -> bool:
        """Whether the caller may see scores."""
        return self.context.caller is not None and "score" in self.context.caller.scopes

    def limit(self, name: str, value: int, most: int) -> None:
        """Refuse more than the configuration allows.

        Raises:
            UsageError: TOO-MANY.
        """
        if value > most:
            raise UsageError("TOO-MANY", place=name, value=value, rule=f"at most {most}", fix="ask for fewer at once")


@dataclass(frozen=True)
class Endpoint(Generic[Body]):
    """One question of the API."""

    verb: str
    scope: str
    summary: str
    takes: type[Body]
    gives: type[BaseModel]
    answer: Callable[[Asked[Body]], Awaitable[Json]]
    sticky: Callable[[Body], str]
    """Whose request it is: that somebody stays with a version."""

    @property
    def template(self) -> str:
        """Of its path."""
        return f"{BASE}/{{model}}/{self.verb}"


async def _embed(asked: Asked[schemas.EmbedRequest]) -> Json:
    asked.limit("items", len(asked.body.items), asked.gateway.config.gateway.max_batch)
    return {"items": await asked.gateway.service.embed(asked.version, asked.body.items, asked.call)}


async def _twins(asked: Asked[schemas.TwinsRequest]) -> Json:
    asked.limit("k", asked.body.k, asked.gateway.config.gateway.max_k)
    return await asked.gateway.service.twins(asked.version, asked.body, asked.with_scores, asked.call)


async def _twins_batch(asked: Asked[schemas.TwinsBatchRequest]) -> Json:
    settings, body = asked.gateway.config.gateway, asked.body
    asked.limit("k", body.k, settings.max_k)
    asked.limit("users", len(body.users), settings.max_batch)
    return {"items": await asked.gateway.service.twins_batch(asked.version, body, asked.with_scores, asked.call)}


async def _explain(asked: Asked[schemas.PairRequest]) -> Json:
    return await asked.gateway.service.explain(asked.version, asked.body, asked.call)


async def _compare(asked: Asked[schemas.PairRequest]) -> Json:
    return await asked.gateway.service.compare(asked.version, asked.body, asked.with_scores, asked.call)


async def _favors(asked: Asked[schemas.FavorsRequest]) -> Json:
    settings, body = asked.gateway.config.gateway, asked.body
    asked.limit("k", body.k, settings.max_k)
    asked.limit("events", len(body.events), EVENTS_PER_ITEM * settings.max_batch)
    wanted = schemas.Wanted(k=body.k, evidence=False) if body.k else None
    took = asked.gateway.service.add_favors(asked.version, body.events, wanted, asked.with_scores, asked.call)
    return {"items": await took}


async def _opt_out(asked: Asked[schemas.UserRequest]) -> Json:
    await asked.gateway.service.opt_out(asked.body.user)
    return {"user": asked.body.user, "opted_out": True}


EVENTS_PER_ITEM: Final = 4
SHADOWS: Final = 16
"""Requests that shadows answer at once; further ones they do not see."""

EMBED: Final[Endpoint[Any]] = Endpoint(
    "embed", "embed", "Taste vectors of histories", schemas.EmbedRequest, schemas.EmbedAnswer, _embed, lambda _: ""
)
TWINS: Final[Endpoint[Any]] = Endpoint(
    "twins",
    "twins",
    "The twins of a user, or of a history sent along",
    schemas.TwinsRequest,
    schemas.TwinsAnswer,
    _twins,
    lambda body: body.user or "",
)
ENDPOINTS: Final[tuple[Endpoint[Any], ...]] = (
    EMBED,
    TWINS,
    Endpoint(
        "twins/batch",
        "twins",
        "The twins of several users",
        schemas.TwinsBatchRequest,
        schemas.TwinsBatchAnswer,
        _twins_batch,
        lambda body: body.users[0],
    ),
    Endpoint(
        "explain",
        "twins",
        "What two users share",
        schemas.PairRequest,
        schemas.ExplainAnswer,
        _explain,
        lambda body: body.user,
    ),
    Endpoint(
        "compare",
        "twins",
        "What two users share and what they do not",
        schemas.PairRequest,
        schemas.CompareAnswer,
        _compare,
        lambda body: body.user,
    ),
    Endpoint(
        "favors",
        "favors",
        "Take in what users did just now",
        schemas.FavorsRequest,
        schemas.FavorsAnswer,
        _favors,
        lambda body: body.events[0].user,
    ),
    Endpoint(
        "opt-out",
        "opt-out",
        "Show a user to nobody from now on",
        schemas.UserRequest,
        schemas.OptOutAnswer,
        _opt_out,
        lambda body: body.user,
    ),
)


def policy() -> Policy:
    """Which scope each route needs."""
    open_to_all: dict[tuple[str, str], str | None] = {("GET", page): None for page in PAGES}
    asked: dict[tuple[str, str], str | None] = {("POST", each.template): each.scope for each in ENDPOINTS}
    return Policy({**open_to_all, ("GET", BASE): "twins", **asked})


class Api:
    """The inner app."""

    def __init__(self, gateway: Gateway, pages: Mapping[str, Page], kept: Outputs, shadows: Shadows) -> None:
        """Answer from a gateway.

        Args:
            gateway: entered.
            pages: ready answers by path.
            kept: answers that depend on nothing but the request and the version.
            shadows: whoever answers unseen.
        """
        self._gateway, self._pages, self._kept, self._shadows = gateway, pages, kept, shadows
        self._endpoints = {each.template: each for each in ENDPOINTS}

    @property
    def ready(self) -> bool:
        """Whether a load balancer should send requests here."""
        return self._gateway.ready

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        asked = context(scope)
        endpoint = self._endpoints.get(asked.route)
        if endpoint is not None:
            return await respond(send, await self._answer(endpoint, scope, await body_of(receive), asked))
        if asked.route == BASE:
            return await respond(send, orjson.dumps(self._gateway.described()))
        await respond_page(send, self._pages[asked.route])

    async def _answer(self, endpoint: Endpoint[Any], scope: Scope, raw: bytes, asked: RequestContext) -> bytes:
        _check_model(asked.params["model"], self._gateway.config.app.model)
        named = next((value.decode("latin-1") for name, value in scope["headers"] if name == VERSION_HEADER), None)
        if endpoint not in (EMBED, TWINS):
            return await self._made(endpoint, self._asked(endpoint, read(endpoint.takes, raw), named, asked))
        key = self._key(endpoint, raw, named, asked)
        (ready,) = self._kept.get([key])
        if ready is None:
            body = read(endpoint.takes, raw)
            ready = await self._made(endpoint, self._asked(endpoint, body, named, asked))
            if endpoint is EMBED or body.user is None:  # nobody's in particular: the same for all who ask the same
                self._kept.put([(key, ready)])
        return ready

    def _asked(self, endpoint: Endpoint[Any], body: Any, named: str | None, asked: RequestContext) -> Asked[Any]:
        version = self._gateway.choose(endpoint.sticky(body).encode("utf-8", "surrogatepass"), named)
        return Asked(self._gateway, version, body, asked)

    def _key(self, endpoint: Endpoint[Any], raw: bytes, named: str | None, asked: RequestContext) -> bytes:
        """Of all that an answer to whoever it may be depends on."""
        version, today = self._gateway.choose(b"", named).name, datetime.now(UTC).date()
        if endpoint is EMBED:
            return key_of(f"{version} {today}", raw)  # what is of the future today is not tomorrow
        self._gateway.service.denied.check()
        scores = asked.caller is not None and "score" in asked.caller.scopes
        return key_of(f"{version} {today} {scores} {self._gateway.service.moment()}", raw)

    async def _made(self, endpoint: Endpoint[Any], asked: Asked[Any]) -> bytes:
        await turn()  # what is kept needs none: a round of the loop costs as much as such an answer
        said = await endpoint.answer(asked)
        if endpoint is TWINS:
            self._shadows.see(asked, said)
        if endpoint.gives is not schemas.OptOutAnswer:
            said = self._gateway.service.origin(asked.version) | said
        return orjson.dumps(said, option=orjson.OPT_SERIALIZE_NUMPY)


class Shadows:
    """Versions that answer some requests too, unseen: how their lists differ is measured before anybody gets them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._overlap = Histogram(
            "tastetwin_gateway_shadow_overlap",
            "Share of the list that the shadow's has too",
            ["version"],
            registry=registry,
            buckets=[at / 10 for at in range(11)],
        )
        self._failed = Counter(
            "tastetwin_gateway_shadow_failures", "Requests that only the shadow could not answer", ["version"],
            registry=registry,
        )  # fmt: skip
        self._tasks: set[asyncio.Task[None]] = set()

    def see(self, asked: Asked[schemas.TwinsRequest], said: Json) -> None:
        """Let shadows answer a request that was answered; at most ``SHADOWS`` at a time."""
        key = (asked.body.user or asked.context.request_id).encode("utf-8", "surrogatepass")
        for version in asked.gateway.shadows(key, asked.version):
            if len(self._tasks) < SHADOWS:
                task = asyncio.create_task(self._answer(replace(asked, version=version), said))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _answer(self, asked: Asked[schemas.TwinsRequest], said: Json) -> None:
        try:
            theirs = await _twins(asked)
        except Exception as error:  # a version that is broken is what shadows are there to find
            self._failed.labels(asked.version.name).inc()
            if not isinstance(error, TasteTwinError):
                _LOG.error("%s in the shadow %s", type(error).__name__, asked.version.name)
            return
        mine, others = ({twin["user"] for twin in each["twins"]} for each in (said, theirs))
        self._overlap.labels(asked.version.name).observe(len(mine & others) / max(len(mine), 1))


def _check_model(named: str, known: str) -> None:
    if named != known:
        value = named[:SHOWN]
        raise UsageError(
            "UNKNOWN-MODEL", place="path", value=value, rule=f"the model {known}", fix=f"{BASE}/{known}/..."
        )
