"""What a server tells of itself: metrics, traces, and a log of one JSON object a line.

Routes are named by their template. No path, query, body or id of a user or place is in any of the three; a caller who
puts one into their own request id has it in the log.
"""

from __future__ import annotations

import zlib
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, BinaryIO, Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from tastetwin.errors import TasteTwinError
from tastetwin.logs import json_logger, origin
from tastetwin.serving.exchange import respond
from tastetwin.serving.tracing import Tracing

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
ALARMING: Final = (
    "HTTP-BUSY",
    "BACKEND-UNAVAILABLE",
    "OPT-OUTS-UNKNOWN",
    "FRESH-FULL",
    "FRESH-DAMAGED",
    "FRESH-UNREACHABLE",
    "DISK-FULL",
)
"""Counted from 0: the increase of a series that was not there cannot be seen, so an alert would miss the first."""


class Telemetry:
    """Metrics, log and traces of one service.

    Args:
        service: backend, gateway or app; in every line and span.
        log: where lines go, such as ``sys.stderr.buffer``.
        log_share: of answered requests that have a line; failures always have one. Which ones is decided by the
            request id, so all tiers log the same.
        tracing: None = no traces, at no cost.
    """

    def __init__(self, service: str, log: BinaryIO, log_share: float = 1.0, tracing: Tracing | None = None) -> None:
        self.registry = CollectorRegistry()
        self.tracing = tracing
        self._answers = _Answers()
        self.registry.register(self._answers)
        self._refused = Counter("tastetwin_refused", "Answers without the app.", ["reason"], registry=self.registry)
        for reason in ALARMING:
            self._refused.labels(reason)
        self.in_flight = Gauge("tastetwin_requests_in_flight", "Being worked on.", registry=self.registry)
        self._sampled = int(log_share * 2**32)
        self._log: Any = json_logger(log, service=service)

    def answered(
        self, request_id: bytes, method: str, route: str, status: int, seconds: float, caller: str, code: str
    ) -> None:
        """Count an answer, and perhaps log it. ``code`` is that of a refusal or error, else empty."""
        self._answers.count(route, method, status, seconds)
        if code:
            self._refused.labels(code).inc()
        if zlib.crc32(request_id) < self._sampled or (status >= 500 and code != "HTTP-BUSY"):
            self._log.info(
                "request", request_id=request_id.decode(), method=method, route=route, status=status,
                ms=round(seconds * 1e3, 3), caller=caller, code=code,
            )  # fmt: skip

    def failed(self, request_id: bytes, route: str, error: BaseException) -> None:
        """Log where an error came from; its message stays out, for it may quote a user's data."""
        said = {"code": error.problem.code, "rule": error.problem.rule} if isinstance(error, TasteTwinError) else {}
        self._log.error("failed", request_id=request_id.decode(), route=route, **origin(error), **said)

    def render(self) -> bytes:
        """All metrics, in the text format of Prometheus."""
        return generate_latest(self.registry)

    async def metrics(self, scope: Any, receive: Any, send: Any) -> None:
        """An ASGI app for a listener of its own: ``/metrics``, nothing else."""
        if scope["type"] != "http":
            return
        found = scope["path"] == "/metrics" and scope["method"] == "GET"
        body = self.render() if found else b""
        await respond(send, body, CONTENT_TYPE.encode(), status=200 if found else 404)

    def close(self) -> None:
        """Send what traces are still here."""
        if self.tracing is not None:
            self.tracing.close()


class _Answers(Collector):
    """Number and duration of answers. The library's own counters take three locks a request, and twice the time."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str, int], list[float]] = {}

    def count(self, route: str, method: str, status: int, seconds: float) -> None:
        """A series has the sum of seconds, then the number of answers in each bucket."""
        series = self._series.get((route, method, status))
        if series is None:
            series = self._series.setdefault((route, method, status), [0.0] * (len(SECONDS) + 2))
        series[0] += seconds
        series[bisect_left(SECONDS, seconds) + 1] += 1

    def collect(self) -> Iterator[Metric]:
        """For Prometheus: answers by route, method and status; durations by route."""
        answers = CounterMetricFamily("tastetwin_requests", "Answers.", labels=["route", "method", "status"])
        seconds = HistogramMetricFamily("tastetwin_request_seconds", "From headers to answer.", labels=["route"])
        routes: dict[str, list[float]] = {}
        for (route, method, status), series in list(self._series.items()):
            answers.add_metric([route, method, str(status)], sum(series[1:]))
            routes[route] = [a + b for a, b in zip(routes.get(route, [0.0] * len(series)), series, strict=True)]
        for route, (total, *buckets) in routes.items():
            names = [*map(floatToGoString, SECONDS), "+Inf"]
            seconds.add_metric([route], list(zip(names, accumulate(buckets), strict=True)), total)
        yield answers
        yield seconds
