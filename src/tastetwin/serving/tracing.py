"""OpenTelemetry traces: a span a request, named by method and route template. Off unless there is somewhere to go."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from tastetwin.errors import MissingExtra

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span

ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"


class Tracing:
    """Spans of one service; the SDK's own variables (``OTEL_TRACES_SAMPLER``, ...) say which and how many."""

    def __init__(self, service: str, processor: SpanProcessor) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = TracerProvider(resource=Resource.create({"service.name": f"tastetwin-{service}"}))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("tastetwin")
        self._extract = TraceContextTextMapPropagator().extract
        self._kind = SpanKind.SERVER

    def begin(self, method: str, route: str, traceparent: str | None) -> Span:
        """A span below the caller's, if they sent one."""
        return self._tracer.start_span(
            f"{method} {route}",
            context=self._extract({"traceparent": traceparent}) if traceparent else None,
            kind=self._kind,
            attributes={"http.request.method": method, "http.route": route},
        )

    def close(self) -> None:
        """Send what is still here."""
        self._provider.shutdown()


def traceparent_of(span: Span) -> str:
    """What the next tier is to be told, for its spans to lie below this one."""
    at = span.get_span_context()
    return f"00-{at.trace_id:032x}-{at.span_id:016x}-{at.trace_flags:02x}"


def end(span: Span, status: int) -> None:
    """Close a request's span."""
    from opentelemetry.trace import StatusCode

    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_status(StatusCode.ERROR)
    span.end()


def tracing_from_environment(service: str) -> Tracing | None:
    """Traces sent by OTLP over HTTP, if ``OTEL_EXPORTER_OTLP_ENDPOINT`` says where to.

    Raises:
        MissingExtra: it does, without opentelemetry (``tastetwin[serve]``).
    """
    if not os.environ.get(ENDPOINT):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingExtra.of(str(error.name), "serve") from None
    return Tracing(service, BatchSpanProcessor(OTLPSpanExporter()))
