"""The pool of model backends: spread, health, retries within a budget, breakers, deadlines.

They speak Open Inference Protocol v2 over HTTP, so that another server that does may stand in. A call goes to the
backend with the fewest calls in flight among those that have the version ready and whose breaker lets it.

=================  ===========  =======================  ======================
outcome of a call  asked again  to the breaker           raised at the end
=================  ===========  =======================  ======================
vectors                         success
404                yes          nothing                  ``BackendUnavailable``
another 4xx        no           success                  ``BackendRefused``
503, 504           yes          nothing: it is busy      ``BackendUnavailable``
502                yes          failure                  ``BackendUnavailable``
another status     no           failure                  ``BackendUnavailable``
broken off, bad    yes          failure                  ``BackendUnavailable``
deadline passed    no           failure, if it had time  ``DeadlineExceeded``
=================  ===========  =======================  ======================

404 says that the version is not there (any more): the next health check will see so too.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tastetwin.config import GatewayConfig, masked
from tastetwin.errors import MissingExtra, StoreError, TasteTwinError, UsageError
from tastetwin.serving.gateway.breaker import Breaker, Clock, RetryBudget
from tastetwin.serving.protocol import infer_request, read_infer_response

try:
    import aiohttp
    from yarl import URL
except ImportError as error:
    raise MissingExtra.of("aiohttp", "serve") from error

Floats = npt.NDArray[np.float32]
Tensors = Mapping[str, npt.NDArray[Any]]

MODEL: Final = "taste"
OUTPUT: Final = "vector"
ATTEMPTS: Final = 4
"""Calls for one request, at most."""
BACK_OFF: Final = 0.01
"""Seconds that the first retry waits, at most; twice as long each time, and a random part of it."""
CHECK_EVERY: Final = 0.5
"""Seconds between health checks of a backend."""
CHECK_SECONDS: Final = 1.0
"""That a health check may take."""
UNHEARD: Final = 3
"""Health checks in a row without an answer that take a backend out: a busy one is not a dead one."""
CONNECT_SECONDS: Final = 0.25
"""That a connection may take."""
KEEP_ALIVE: Final = 4.0
"""Seconds that an idle connection is kept: less than servers do, for one that they close meanwhile costs a retry."""
PATIENCE: Final = 0.1
"""A call that had less time than this, in seconds, and did not make it, says nothing about the backend."""
_VERDICTS: Final = {"ok": True, "refused": True, "failed": False}
_SECONDS: Final = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class BackendUnavailable(StoreError):
    """No backend gave vectors; another answer than the model's is needed."""


class BackendRefused(StoreError):
    """The backend says that the request is wrong; asking again would not help."""


class DeadlineExceeded(StoreError):
    """The time for the request is over."""


class BackendMetrics:
    """How the backends do."""

    def __init__(self, registry: CollectorRegistry) -> None:
        name = "tastetwin_gateway_backend"
        self.calls = Counter(f"{name}_calls", "Calls of backends", ["backend", "outcome"], registry=registry)
        self.retries = Counter(f"{name}_retries", "Calls made again, or not made", ["result"], registry=registry)
        self.breaker = Gauge(f"{name}_breaker", "0 closed, 1 half open, 2 open", ["backend"], registry=registry)
        self.ready = Gauge(f"{name}_versions_ready", "Versions that it has ready", ["backend"], registry=registry)
        self.seconds = Histogram(
            f"{name}_seconds", "Seconds of a call", ["backend"], registry=registry, buckets=_SECONDS
        )


class _Backend:
    """One of them, as this process sees it."""

    def __init__(self, url: str, clock: Clock) -> None:
        self.url, self.name = url.rstrip("/"), masked(url)
        self.breaker = Breaker(clock)
        self.ready: frozenset[str] = frozenset()
        self.in_flight = 0
        self.unheard = 0

    def at(self, path: str) -> URL:
        return URL(f"{self.url}/v2/{path}", encoded=True)


class _Failed(Exception):
    """A call gave no vectors."""

    def __init__(self, outcome: str, why: str, *, again: bool) -> None:
        super().__init__(why)
        self.outcome, self.again = outcome, again


@dataclass(frozen=True)
class _Request:
    """What all calls for one request share; ``deadline`` in seconds of the event loop."""

    version: str
    rows: int
    headers: dict[str, str]
    body: bytes
    deadline: float


class Backends:
    """The backends at ``urls``; open as an async context."""

    def __init__(
        self, urls: Sequence[str], settings: GatewayConfig, metrics: BackendMetrics, clock: Clock = time.monotonic
    ) -> None:
        """Prepare; nothing is connected yet.

        Raises:
            UsageError: BACKEND-ADDRESS.
        """
        self._settings, self._metrics, self._clock = settings, metrics, clock
        self._backends = [_Backend(_address(url), clock) for url in urls]
        self._budget = RetryBudget(settings.retry_share, clock)
        self._wanted: frozenset[str] = frozenset()
        self._watchers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
        )
        self._watchers = [asyncio.create_task(self._watch(each)) for each in self._backends]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        await self._session.close()

    async def want(self, versions: Collection[str]) -> None:
        """Calls will be for these versions from now on; looks at once which backends have them ready."""
        self._wanted = frozenset(versions)
        await asyncio.gather(*(self._check(each) for each in self._backends))

    def ready(self, version: str) -> int:
        """How many backends have the version ready."""
        return sum(version in each.ready for each in self._backends)

    async def infer(self, version: str, inputs: Tensors, deadline: float, request_id: str) -> Floats:
        """The vectors of some histories.

        Args:
            version: one of those that ``want`` was told.
            inputs: [n, length] each, by name.
            deadline: in seconds of the event loop's clock; at most ``gateway.deadline_ms`` from now.
            request_id: for the backend's log; fit for a header.

        Returns:
            [n, dim] finite.

        Raises:
            BackendUnavailable: BACKEND-UNAVAILABLE when no backend has the version ready, or calls failed.
            BackendRefused: BACKEND-REFUSED when a backend says that the request is wrong.
            DeadlineExceeded: DEADLINE-EXCEEDED.
        """
        latest = asyncio.get_running_loop().time() + self._settings.deadline_ms / 1_000
        headers, body = infer_request(inputs, [OUTPUT], request_id)
        if request_id:
            headers = {**headers, "x-request-id": request_id}
        rows = len(next(iter(inputs.values())))
        self._budget.request()
        return await self._insist(_Request(version, rows, headers, body, min(deadline, latest)))

    async def _insist(self, request: _Request) -> Floats:
        tried: set[_Backend] = set()
        failed: _Failed | None = None
        for attempt in range(ATTEMPTS):
            if failed is not None and not await self._may_retry(attempt, request, tried):
                break
            backend = self._pick(request.version, tried)
            if backend is None:
                break
            tried.add(backend)
            try:
                return await self._call(backend, request)
            except _Failed as error:
                failed = error
                if not error.again:
                    break
        raise _unavailable(request.version, failed) from failed

    async def _may_retry(self, attempt: int, request: _Request, tried: set[_Backend]) -> bool:
        """Waits a random while where there is a backend to ask, money for it and time."""
        if self._pick(request.version, tried) is None:
            return False
        loop = asyncio.get_running_loop()
        delay = random.uniform(0, BACK_OFF * 2 ** (attempt - 1))
        allowed = loop.time() + delay < request.deadline and self._budget.retry()
        self._metrics.retries.labels("made" if allowed else "not made").inc()
        if allowed:
            await asyncio.sleep(delay)
        return allowed

    def _pick(self, version: str, tried: set[_Backend]) -> _Backend | None:
        usable = [each for each in self._backends if version in each.ready and each.breaker.allows()]
        usable = [each for each in usable if each not in tried] or usable
        return min(usable, key=lambda each: (each.in_flight, random.random()), default=None)

    async def _call(self, backend: _Backend, request: _Request) -> Floats:
        left = request.deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise _too_late(request.version)
        with self._counted(backend, left):
            try:
                async with asyncio.timeout_at(request.deadline):
                    return await self._post(backend, request, left)
            except aiohttp.ClientConnectorError as error:
                backend.ready = frozenset()
                raise _Failed("failed", "no connection", again=True) from error
            except aiohttp.ClientError as error:
                raise _Failed("failed", f"broken off: {type(error).__name__}", again=True) from error
            except TimeoutError as error:
                raise _too_late(request.version) from error

    @contextmanager
    def _counted(self, backend: _Backend, left: float) -> Iterator[None]:
        """Around a call: tells the breaker and the metrics how it went."""
        began, start, outcome = backend.breaker.begin(), self._clock(), "cancelled"
        backend.in_flight += 1
        try:
            yield
            outcome = "ok"
        except _Failed as error:
            outcome = error.outcome
            raise
        except BackendRefused:
            outcome = "refused"
            raise
        except DeadlineExceeded:
            outcome = "deadline"
            raise
        finally:
            backend.in_flight -= 1
            hung = outcome == "deadline" and left >= PATIENCE
            backend.breaker.end(began, False if hung else _VERDICTS.get(outcome))
            self._metrics.calls.labels(backend.name, outcome).inc()
            self._metrics.seconds.labels(backend.name).observe(self._clock() - start)
            self._metrics.breaker.labels(backend.name).set(backend.breaker.state)

    async def _post(self, backend: _Backend, request: _Request, left: float) -> Floats:
        headers, body = with_timeout(request.headers, request.body, left)
        url = backend.at(f"models/{MODEL}/versions/{quote(request.version, safe='')}/infer")
        async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
            answer = await response.read()
        if response.status == 200:
            return _vectors(response.headers, answer, request.rows)
        if response.status == 404:
            backend.ready -= {request.version}
            raise _Failed("absent", "status 404", again=True)
        if 400 <= response.status < 500:
            raise _refused(request.version, response.status)
        outcome = "busy" if response.status in (503, 504) else "failed"
        raise _Failed(outcome, f"status {response.status}", again=response.status in (502, 503, 504))

    async def _watch(self, backend: _Backend) -> None:
        while True:
            await self._check(backend)
            await asyncio.sleep(CHECK_EVERY * random.uniform(0.8, 1.2))

    async def _check(self, backend: _Backend) -> None:
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                backend.ready = await self._versions(backend)
            backend.unheard = 0
        except TimeoutError:
            backend.unheard += 1
            backend.ready = frozenset() if backend.unheard >= UNHEARD else backend.ready
        except aiohttp.ClientError:
            backend.ready = frozenset()
        self._metrics.ready.labels(backend.name).set(len(backend.ready))
        self._metrics.breaker.labels(backend.name).set(backend.breaker.state)

    async def _versions(self, backend: _Backend) -> frozenset[str]:
        if not await self._is_so(backend.at("health/ready")):
            return frozenset()
        paths = {each: f"models/{MODEL}/versions/{quote(each, safe='')}/ready" for each in self._wanted}
        return frozenset([each for each, path in paths.items() if await self._is_so(backend.at(path))])

    async def _is_so(self, url: URL) -> bool:
        """Some servers say no with status 200."""
        async with self._session.get(url, allow_redirects=False) as response:
            body = await response.read()
        return response.status == 200 and b'"ready":false' not in body.replace(b" ", b"")


def with_timeout(headers: Mapping[str, str], body: bytes, seconds: float) -> tuple[dict[str, str], bytes]:
    """A request of ``infer_request`` that says how long its sender will wait, in microseconds, as Triton reads it.

    Put in front, since each call for the same tensors has less time left and they need not be written again.
    """
    part = b'{"parameters":{"timeout":%d},' % max(int(seconds * 1e6), 1)
    longer = len(part) - 1
    lengths = {
        name: str(int(value) + longer)
        for name, value in headers.items()
        if name.lower() == "inference-header-content-length"
    }
    return {**headers, **lengths}, part + body[1:]


def _vectors(headers: Mapping[str, str], body: bytes, rows: int) -> Floats:
    """[rows, dim] of an answer; one that cannot be used counts as broken off."""
    try:
        vectors = read_infer_response(headers, body)[OUTPUT]
    except (TasteTwinError, KeyError) as error:
        raise _Failed("failed", "an unreadable answer", again=True) from error
    if vectors.dtype != np.float32 or vectors.ndim != 2 or len(vectors) != rows or not np.isfinite(vectors).all():
        raise _Failed("failed", f"{vectors.dtype} {vectors.shape}, or not finite", again=True)
    return vectors


def _address(url: str) -> str:
    try:
        parts = URL(url)
        good = parts.scheme in ("http", "https") and bool(parts.host) and not parts.query_string and not parts.fragment
    except ValueError:
        good = False
    if good:
        return url
    raise UsageError(
        "BACKEND-ADDRESS",
        place="gateway.backends",
        value=masked(url),
        rule="http://host:port or https://host:port",
        fix="correct gateway.backends",
    )


def _unavailable(version: str, failed: _Failed | None) -> BackendUnavailable:
    return BackendUnavailable(
        "BACKEND-UNAVAILABLE",
        place=f"version {version}",
        value="no backend has it ready" if failed is None else str(failed),
        rule="a backend answers with vectors",
        fix="see /metrics of the gateway, tastetwin_gateway_backend_*, and the backends' logs",
    )


def _refused(version: str, status: int) -> BackendRefused:
    return BackendRefused(
        "BACKEND-REFUSED",
        place=f"version {version}",
        value=f"status {status}",
        rule="tensors that the version takes, within the backend's limits",
        fix="compare gateway.max_favors and gateway.max_batch with backend.max_length and backend.max_rows",
    )


def _too_late(version: str) -> DeadlineExceeded:
    return DeadlineExceeded(
        "DEADLINE-EXCEEDED",
        place=f"version {version}",
        rule="an answer within the request's time",
        fix="ask again later; or allow more: gateway.deadline_ms",
    )
