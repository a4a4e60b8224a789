"""The pool of model backends: spread, retries within a budget, deadlines.

A call goes to the backend with the fewest calls in flight among those that have the version ready and whose breaker
lets it. What an outcome means is said in ``backend``.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Self

import aiohttp
import numpy as np
import numpy.typing as npt

from tastetwin.client.retries import RetryBudget
from tastetwin.config import GatewayConfig
from tastetwin.serving.gateway.backend import (
    OUTPUT,
    Backend,
    BackendMetrics,
    BackendRefused,
    BackendUnavailable,
    DeadlineExceeded,
    Failed,
    Request,
)
from tastetwin.serving.gateway.breaker import Clock
from tastetwin.serving.protocol import infer_request

__all__ = ["BackendMetrics", "BackendRefused", "BackendUnavailable", "Backends", "DeadlineExceeded"]

Floats = npt.NDArray[np.float32]
Tensors = Mapping[str, npt.NDArray[Any]]

ATTEMPTS: Final = 4
"""Calls for one request, at most."""
BACK_OFF: Final = 0.01
"""Seconds that the first retry waits, at most; twice as long each time, and a random part of it."""
CHECK_EVERY: Final = 0.5
"""Seconds between health checks of a backend."""
CONNECT_SECONDS: Final = 0.25
"""That a connection may take."""
SHARE: Final = 0.5
"""Of the time left that a call may take while another backend could be asked with the rest."""
KEEP_ALIVE: Final = 4.0
"""Seconds that an idle connection is kept: less than servers do, for one that they close meanwhile costs a retry."""


class Backends:
    """The backends at ``urls``; open as an async context."""

    def __init__(
        self, urls: Sequence[str], settings: GatewayConfig, metrics: BackendMetrics, clock: Clock = time.monotonic
    ) -> None:
        """Prepare; nothing is connected yet.

        Raises:
            UsageError: BACKEND-ADDRESS.
        """
        self._settings, self._metrics = settings, metrics
        self._backends = [Backend(url, metrics, clock) for url in urls]
        self._budget = RetryBudget(settings.retry_share, clock)
        self._wanted: frozenset[str] = frozenset()
        self._watchers: list[asyncio.Task[None]] = []
        self._looking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
        )
        self._watchers = [asyncio.create_task(self._watch(each)) for each in self._backends]
        return self

    async def __aexit__(self, *error: object) -> None:
        tasks = [*self._watchers, *([] if self._looking is None else [self._looking])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._session.close()

    async def want(self, versions: Collection[str]) -> None:
        """Calls will be for these versions from now on; looks at once which backends have them ready."""
        self._wanted = frozenset(versions)
        await asyncio.gather(*(each.check(self._session, self._wanted) for each in self._backends))

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
        return await self._insist(Request(version, rows, headers, body, min(deadline, latest)))

    async def _insist(self, request: Request) -> Floats:
        tried: set[Backend] = set()
        failed: Failed | None = None
        for attempt in range(ATTEMPTS):
            if failed is not None and not await self._may_retry(attempt, request, tried):
                break
            backend = await self._find(request, tried)
            if backend is None:
                break
            tried.add(backend)
            try:
                return await backend.infer(self._session, request, self._until(request, tried))
            except Failed as error:
                failed = error.with_traceback(None)  # which would lead back to this frame, and so to itself
                if not error.again:
                    break
        raise _unavailable(request.version, failed) from failed

    async def _may_retry(self, attempt: int, request: Request, tried: set[Backend]) -> bool:
        """Waits a random while where there is a backend to ask, money for it and time."""
        if await self._find(request, tried) is None:
            return False
        loop = asyncio.get_running_loop()
        delay = random.uniform(0, BACK_OFF * 2 ** (attempt - 1))
        allowed = loop.time() + delay < request.deadline and self._budget.retry()
        self._metrics.retries.labels("made" if allowed else "not made").inc()
        if allowed:
            await asyncio.sleep(delay)
        return allowed

    def _until(self, request: Request, tried: set[Backend]) -> float:
        """When to give a call up. Not early where nobody else is there or no retry is left: it would be for nothing."""
        if not self._budget.allows() or not any(each not in tried for each in self._usable(request.version)):
            return request.deadline
        now = asyncio.get_running_loop().time()
        return now + SHARE * (request.deadline - now)

    async def _find(self, request: Request, tried: set[Backend]) -> Backend | None:
        """Whom to ask. Where nobody seems to be there one looks again: a backend may be ready for longer than it takes
        until the next check, and all that is lost is the time of one."""
        backend = self._pick(request.version, tried)
        if backend is None and asyncio.get_running_loop().time() < request.deadline:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self.want(self._wanted))
            await asyncio.wait([self._looking], timeout=CONNECT_SECONDS)
            backend = self._pick(request.version, tried)
        return backend

    def _pick(self, version: str, tried: set[Backend]) -> Backend | None:
        usable = self._usable(version)
        usable = [each for each in usable if each not in tried] or usable
        return min(usable, key=lambda each: (each.in_flight, random.random()), default=None)

    def _usable(self, version: str) -> list[Backend]:
        return [each for each in self._backends if version in each.ready and each.breaker.allows()]

    async def _watch(self, backend: Backend) -> None:
        while True:
            await backend.check(self._session, self._wanted)
            await asyncio.sleep(CHECK_EVERY * random.uniform(0.8, 1.2))


def _unavailable(version: str, failed: Failed | None) -> BackendUnavailable:
    return BackendUnavailable(
        "BACKEND-UNAVAILABLE",
        place=f"version {version}",
        value="no backend has it ready" if failed is None else str(failed),
        rule="a backend answers with vectors",
        fix="see /metrics of the gateway, tastetwin_gateway_backend_*, and the backends' logs",
    )
