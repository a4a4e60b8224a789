"""An asyncio client of the model gateway: a method a question, typed on both sides."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from tastetwin.analysis.sentences import Language
from tastetwin.client import schemas
from tastetwin.client.retries import RetryBudget, bare, wait
from tastetwin.errors import MissingExtra, Problem, StoreError, UsageError

try:
    import aiohttp
except ImportError as error:
    raise MissingExtra.of("aiohttp", "client") from error

TIMEOUT: Final = 5.0
"""Seconds for a call, its retries and the waits between them included."""
CONNECT_TIMEOUT: Final = 1.0
"""Seconds for one try to connect."""
RETRIES: Final = 2
"""Further tries of one call, at most."""
RETRY_SHARE: Final = 0.1
"""Retries relative to calls, at most: a server in trouble gets a tenth more of them, not several times as many."""
CONNECTIONS: Final = 100
MAX_RETRY_AFTER: Final = 3_600.0

Event = dict[str, Any]
Answer = TypeVar("Answer", bound=BaseModel)


class GatewayError(StoreError):
    """The gateway refused, or did not answer.

    ``problem.code`` is the server's, such as UNKNOWN-USER; without an answer it is GATEWAY-UNREACHABLE, GATEWAY-TIMEOUT
    or, for an answer that is none, GATEWAY-ANSWER.
    """

    def __init__(self, problem: Problem, status: int, request_id: str = "", retry_after: float | None = None) -> None:
        super().__init__(problem.code, place=problem.place, value=problem.value, rule=problem.rule, fix=problem.fix)
        self.status = status
        """Of HTTP; 0 where no answer came."""
        self.request_id = request_id
        """Under which the server's log has the call; empty where it told none."""
        self.retry_after = retry_after
        """Seconds after which the server asks to be tried again."""


@dataclass(frozen=True)
class Call:
    """What one call does otherwise than its client."""

    timeout: float | None = None
    """Seconds; None = the client's."""
    request_id: str = ""
    """Under which all tiers log it; empty = the gateway makes one."""
    traceparent: str | None = None
    """W3C trace context."""
    version: str | None = None
    """To be answered by; None = the gateway chooses."""


class Client:
    """Asks a model gateway.

    Every call is idempotent (the same event twice counts once), so each is tried again when the connection fails or
    the server is overloaded (503), within its time and a budget of a tenth of all calls.

    Example::

        async with Client(url, key) as gateway:
            answer = await gateway.twins(user, k=3, language="en")
            for twin in answer.twins:
                print(twin.rank, twin.user, twin.evidence.sentence)

    Args:
        url: of the gateway, such as ``http://127.0.0.1:8102``.
        key: API key; never shown.
        timeout: seconds for a call with all its tries.
        connect_timeout: seconds for one try to connect.
        retries: further tries of one call, at most; 0 = none.
        connections: at most; further calls wait for one.
        model: name of the model at the gateway.

    Raises:
        UsageError: GATEWAY-ADDRESS.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        timeout: float = TIMEOUT,
        connect_timeout: float = CONNECT_TIMEOUT,
        retries: int = RETRIES,
        connections: int = CONNECTIONS,
        model: str = "taste",
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise UsageError("GATEWAY-ADDRESS", place="gateway", rule="http://HOST:PORT", fix="correct the address")
        self._url, self._key, self._timeout, self._retries = url.rstrip("/"), key, timeout, retries
        self._connect_timeout, self._connections = connect_timeout, connections
        self._base = f"{self._url}/v1/models/{quote(model, safe='')}"
        self._budget = RetryBudget(RETRY_SHARE, time.monotonic)
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"Client({self._url!r}, key='***')"

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections),
            headers={"authorization": f"Bearer {self._key}", "content-type": "application/json"},
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    # -- the gateway's routes -----------------------------------------------------------------------------------------

    async def models(self, *, call: Call | None = None) -> schemas.ModelsAnswer:
        """The versions that the gateway holds.

        Raises:
            GatewayError: as from every method.
            ValueError: from the others, for arguments that ``schemas`` refuses.
        """
        return await self._ask("", None, schemas.ModelsAnswer, call)

    async def embed(self, histories: Sequence[schemas.History], *, call: Call | None = None) -> schemas.EmbedAnswer:
        """The taste vector of each history."""
        return await self._ask("/embed", schemas.EmbedRequest(items=list(histories)), schemas.EmbedAnswer, call)

    async def twins(
        self,
        user: str | None = None,
        *,
        reviews: Sequence[Event] = (),
        likes: Sequence[Event] = (),
        k: int = 10,
        skip: int = 0,
        language: Language = "en",
        evidence: bool = True,
        exclude: Sequence[str] = (),
        viewer: str | None = None,
        call: Call | None = None,
    ) -> schemas.TwinsAnswer:
        """The twins of a user, or of a history of reviews and likes, which ``viewer`` will see; one of the two."""
        body = schemas.TwinsRequest(
            user=user, reviews=list(reviews), likes=list(likes), k=k, skip=skip, language=language,
            evidence=evidence, exclude=list(exclude), viewer=viewer,
        )  # fmt: skip
        return await self._ask("/twins", body, schemas.TwinsAnswer, call)

    async def twins_batch(
        self,
        users: Sequence[str],
        *,
        k: int = 10,
        skip: int = 0,
        language: Language = "en",
        evidence: bool = True,
        exclude: Sequence[str] = (),
        call: Call | None = None,
    ) -> schemas.TwinsBatchAnswer:
        """The twins of several users; whoever cannot be answered fails alone."""
        body = schemas.TwinsBatchRequest(
            users=list(users), k=k, skip=skip, language=language, evidence=evidence, exclude=list(exclude)
        )
        return await self._ask("/twins/batch", body, schemas.TwinsBatchAnswer, call)

    async def explain(
        self, user: str, other: str, *, language: Language = "en", call: Call | None = None
    ) -> schemas.ExplainAnswer:
        """What two users share."""
        body = schemas.PairRequest(user=user, other=other, language=language)
        return await self._ask("/explain", body, schemas.ExplainAnswer, call)

    async def compare(
        self, user: str, other: str, *, language: Language = "en", call: Call | None = None
    ) -> schemas.CompareAnswer:
        """What two users share, and what they do not."""
        body = schemas.PairRequest(user=user, other=other, language=language)
        return await self._ask("/compare", body, schemas.CompareAnswer, call)

    async def favors(
        self, events: Sequence[schemas.FavorEvent], *, k: int = 0, call: Call | None = None
    ) -> schemas.FavorsAnswer:
        """Take in what users did just now; ``k`` twins of each are answered."""
        return await self._ask("/favors", schemas.FavorsRequest(events=list(events), k=k), schemas.FavorsAnswer, call)

    async def opt_out(self, user: str, *, call: Call | None = None) -> schemas.OptOutAnswer:
        """Show a user to nobody from now on."""
        return await self._ask("/opt-out", schemas.UserRequest(user=user), schemas.OptOutAnswer, call)

    # -- how it asks --------------------------------------------------------------------------------------------------

    async def _ask(self, path: str, body: BaseModel | None, gives: type[Answer], call: Call | None) -> Answer:
        call = call or Call()
        url = f"{self._base}{path}" if path else f"{self._url}/v1/models"
        data = None if body is None else body.model_dump_json(exclude_defaults=True).encode()
        deadline = asyncio.get_running_loop().time() + (self._timeout if call.timeout is None else call.timeout)
        self._budget.request()
        tries = 0
        while True:
            tries += 1
            try:
                return await self._try(url, data, gives, _headers(call), deadline)
            except GatewayError as error:
                seconds = self._pause(error, tries, deadline)
                if seconds is None:
                    raise
            await asyncio.sleep(seconds)

    def _pause(self, error: GatewayError, tries: int, deadline: float) -> float | None:
        """Seconds until the next try; None where there is none."""
        if (error.problem.code != "GATEWAY-UNREACHABLE" and error.status != 503) or tries > self._retries:
            return None
        seconds = wait(tries, error.retry_after)
        in_time = asyncio.get_running_loop().time() + seconds < deadline
        return seconds if in_time and self._budget.retry() else None

    async def _try(
        self, url: str, data: bytes | None, gives: type[Answer], headers: dict[str, str], deadline: float
    ) -> Answer:
        assert self._session is not None, "async with Client(...)"
        left = max(0.0, deadline - asyncio.get_running_loop().time())
        sent = headers | {schemas.TIMEOUT_HEADER: str(int(left * 1_000))}
        limits = aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout)
        method = "GET" if data is None else "POST"
        try:
            async with (
                asyncio.timeout_at(deadline),
                self._session.request(
                    method, url, data=data, headers=sent, timeout=limits, allow_redirects=False
                ) as said,
            ):
                return _read(said, await said.read(), gives)
        except aiohttp.ServerTimeoutError as error:  # of the connection; a TimeoutError too
            bare(error)
            raise _no_answer("GATEWAY-UNREACHABLE", self._url, "connected in time") from None
        except TimeoutError as error:
            bare(error)
            raise _no_answer("GATEWAY-TIMEOUT", self._url, "an answer in time") from None
        except aiohttp.ClientError as error:
            name = type(bare(error)).__name__
            raise _no_answer("GATEWAY-UNREACHABLE", self._url, "a server that answers", name) from None


def _headers(call: Call) -> dict[str, str]:
    named = {"x-request-id": call.request_id, "traceparent": call.traceparent, "tastetwin-version": call.version}
    return {name: value for name, value in named.items() if value}


def _no_answer(code: str, url: str, rule: str, value: str = "") -> GatewayError:
    return GatewayError(Problem(code, url, value, rule, "see whether the gateway runs, and its log"), 0)


def _read(said: aiohttp.ClientResponse, body: bytes, gives: type[Answer]) -> Answer:
    request_id = said.headers.get("x-request-id", "")
    try:
        if said.status == 200:
            return gives.model_validate_json(body)
        refusal = schemas.Refusal.model_validate_json(body)
    except ValidationError:
        rule = "an answer as the API's description says"
        problem = Problem("GATEWAY-ANSWER", str(said.url.origin()), str(said.status), rule, "is that a model gateway?")
        raise GatewayError(problem, said.status, request_id, _retry_after(said)) from None
    problem = Problem(**refusal.error.model_dump())
    raise GatewayError(problem, said.status, refusal.request_id, _retry_after(said))


def _retry_after(said: aiohttp.ClientResponse) -> float | None:
    """In seconds; the form with a date is none of ours."""
    text = said.headers.get("retry-after", "")
    return min(float(text), MAX_RETRY_AFTER) if text.isascii() and text.isdigit() else None
