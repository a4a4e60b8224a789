"""One model backend that speaks Open Inference Protocol v2 over HTTP: a call, a health check, what the answers mean.

=================  ===========  =======================  ======================
outcome of a call  asked again  to the breaker           raised at the end
=================  ===========  =======================  ======================
vectors                         success
404                yes          nothing                  ``BackendUnavailable``
400, 413, 422      no           success                  ``BackendRefused``
429, 503, 504      yes          nothing: it is busy      ``BackendUnavailable``
502                yes          failure                  ``BackendUnavailable``
another status     no           failure                  ``BackendUnavailable``
broken off, bad    yes          failure                  ``BackendUnavailable``
deadline passed    no           failure, if it had time  ``DeadlineExceeded``
its share passed   yes          failure, if it had time  ``BackendUnavailable``
=================  ===========  =======================  ======================

A call has its share of a request's time where another backend could be asked with the rest: one that is stopped, or cut
off without a word, would have all of it. 404 says that the version is not there (any more): the next health check will
see so too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tastetwin.client.retries import bare
from tastetwin.errors import MissingExtra, StoreError, TasteTwinError, UsageError
from tastetwin.masks import masked
from tastetwin.serving.gateway.breaker import Breaker, Clock
from tastetwin.serving.protocol import read_infer_response

try:
    import aiohttp
    from yarl import URL
except ImportError as error:
    raise MissingExtra.of("aiohttp", "serve") from error

Floats = npt.NDArray[np.float32]

MODEL: Final = "taste"
OUTPUT: Final = "vector"
CHECK_SECONDS: Final = 1.0
"""That a health check may take."""
UNHEARD: Final = 3
"""Health checks in a row without an answer that take a backend out: a busy one is not a dead one."""
REFUSALS: Final = (400, 413, 422)
"""Statuses that speak of what was sent. Others of 4xx do of who sent it, or where: a proxy's, say."""
BUSY: Final = (429, 503, 504)
PATIENCE: Final = 0.1
"""A call that had less time than this, in seconds, and did not make it, says nothing about the backend."""
STALLED: Final = 0.02
"""A time-out that comes so many seconds late does not either: the answer may have been there."""
_VERDICTS: Final = {"ok": True, "refused": True, "failed": False}
_SECONDS: Final = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class BackendUnavailable(StoreError):
    """No backend gave vectors; another answer than the model's is needed."""


class BackendRefused(StoreError):
    """The backend says that the request is wrong; asking again would not help."""


class DeadlineExceeded(StoreError):
    """The time for the request is over."""


class Failed(Exception):
    """A call gave no vectors; ``again``: another one may."""

    def __init__(self, outcome: str, why: str, *, again: bool) -> None:
        super().__init__(why)
        self.outcome, self.again = outcome, again


@dataclass(frozen=True)
class Request:
    """What all calls for one request share."""

    version: str
    rows: int
    """Histories, and so vectors."""
    headers: dict[str, str]
    body: bytes
    deadline: float
    """In seconds of the event loop's clock."""


class BackendMetrics:
    """How the backends do."""

    def __init__(self, registry: CollectorRegistry) -> None:
        name = "tastetwin_gateway_backend"
        self.calls = Counter(f"{name}_calls", "Calls of backends", ["backend", "outcome"], registry=registry)
        self.retries = Counter(f"{name}_retries", "Calls made again, or not made", ["result"], registry=registry)
        self.retries.labels("not made")  # an alert waits for the first
        self.breaker = Gauge(f"{name}_breaker", "0 closed, 1 half open, 2 open", ["backend"], registry=registry)
        self.ready = Gauge(f"{name}_versions_ready", "Versions that it has ready", ["backend"], registry=registry)
        self.seconds = Histogram(
            f"{name}_seconds", "Seconds of a call", ["backend"], registry=registry, buckets=_SECONDS
        )


class Backend:
    """One of them, as this process sees it."""

    def __init__(self, url: str, metrics: BackendMetrics, clock: Clock) -> None:
        """At ``url``; nothing is connected yet.

        Raises:
            UsageError: BACKEND-ADDRESS.
        """
        self._url, self._name = _address(url).rstrip("/"), masked(url)
        self._metrics, self._clock = metrics, clock
        self.breaker = Breaker(clock)
        metrics.breaker.labels(self._name).set_function(lambda: self.breaker.state)
        self._seconds = metrics.seconds.labels(self._name)
        self.ready: frozenset[str] = frozenset()
        """Versions that it had ready when it was last asked."""
        self._paths: dict[str, str] = {}
        self.in_flight = 0
        self._unheard = 0

    async def infer(self, session: aiohttp.ClientSession, request: Request, until: float) -> Floats:
        """One call, given up at ``until``: the request's deadline, or earlier where another backend may be asked.

        Returns:
            [rows, dim] finite.

        Raises:
            Failed: it gave no vectors.
            BackendRefused: BACKEND-REFUSED.
            DeadlineExceeded: DEADLINE-EXCEEDED; without a call when it has passed already.
        """
        left = until - asyncio.get_running_loop().time()
        if left <= 0:
            raise _too_late(request.version)
        with self._counted(left, until):
            try:
                async with asyncio.timeout_at(until):
                    return await self._post(session, request, left)
            except aiohttp.ClientConnectorError as error:
                self.ready = frozenset()
                raise Failed("failed", "no connection", again=True) from bare(error)
            except aiohttp.ClientError as error:
                raise Failed("failed", f"broken off: {type(error).__name__}", again=True) from bare(error)
            except TimeoutError as error:
                if until < request.deadline:
                    raise Failed("slow", "no answer in its share of the time", again=True) from bare(error)
                raise _too_late(request.version) from bare(error)

    @contextmanager
    def _counted(self, left: float, until: float) -> Iterator[None]:
        """Around a call: tells the breaker and the metrics how it went."""
        began, start, outcome = self.breaker.begin(), self._clock(), "cancelled"
        self.in_flight += 1
        try:
            yield
            outcome = "ok"
        except Failed as error:
            outcome = error.outcome
            raise
        except BackendRefused:
            outcome = "refused"
            raise
        except DeadlineExceeded:
            outcome = "deadline"
            raise
        finally:
            self.in_flight -= 1
            rang_late = asyncio.get_running_loop().time() > until + STALLED  # it was we who had no time
            hung = outcome in ("deadline", "slow") and left >= PATIENCE and not rang_late
            self.breaker.end(began, False if hung else _VERDICTS.get(outcome))
            self._metrics.calls.labels(self._name, outcome).inc()
            self._seconds.observe(self._clock() - start)

    async def _post(self, session: aiohttp.ClientSession, request: Request, left: float) -> Floats:
        headers, body = with_timeout(request.headers, request.body, left)
        url = self._at(f"{self._paths.get(request.version) or _versioned(request.version)}/infer")
        async with session.post(url, data=body, headers=headers, allow_redirects=False) as response:
            answer = await response.read()
        if response.status == 200:
            return _vectors(response.headers, answer, request.rows)
        if response.status == 404:
            self.ready -= {request.version}
            raise Failed("absent", "status 404", again=True)
        if response.status in REFUSALS:
            raise _refused(request.version, response.status)
        outcome = "busy" if response.status in BUSY else "failed"
        raise Failed(outcome, f"status {response.status}", again=response.status in (502, *BUSY))

    async def check(self, session: aiohttp.ClientSession, wanted: Collection[str]) -> None:
        """Looks which of these versions it has ready."""
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                self.ready = await self._versions(session, wanted)
            self._unheard = 0
        except TimeoutError as error:
            bare(error)
            self._unheard += 1
            self.ready = frozenset() if self._unheard >= UNHEARD else self.ready
        except aiohttp.ClientError as error:
            bare(error)
            self.ready = frozenset()
        self._metrics.ready.labels(self._name).set(len(self.ready))

    async def _versions(self, session: aiohttp.ClientSession, wanted: Collection[str]) -> frozenset[str]:
        if not await _is_so(session, self._at("health/ready")):
            return frozenset()
        found = {each: await self._where(session, each) for each in wanted}
        self._paths = {version: path for version, path in found.items() if path is not None}
        return frozenset(self._paths)

    async def _where(self, session: aiohttp.ClientSession, version: str) -> str | None:
        """Path of a version that is ready. A server may know no versions (the protocol leaves it the choice; KServe's
        does not): there a bundle is asked for as a model of that name."""
        for path in (_versioned(version), f"models/{quote(version, safe='')}"):
            if await _is_so(session, self._at(f"{path}/ready")):
                return path
        return None

    def _at(self, path: str) -> URL:
        return URL(f"{self._url}/v2/{path}", encoded=True)


def _versioned(version: str) -> str:
    return f"models/{MODEL}/versions/{quote(version, safe='')}"


async def _is_so(session: aiohttp.ClientSession, url: URL) -> bool:
    """Some servers say no with status 200."""
    async with session.get(url, allow_redirects=False) as response:
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
        raise Failed("failed", "an unreadable answer", again=True) from error
    if vectors.dtype != np.float32 or vectors.ndim != 2 or len(vectors) != rows or not np.isfinite(vectors).all():
        raise Failed("failed", f"{vectors.dtype} {vectors.shape}, or not finite", again=True)
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
