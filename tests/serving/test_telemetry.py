"""What a server tells of itself, and what it must never tell."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tastetwin.errors import StoreError, UsageError
from tastetwin.serving.tracing import ENDPOINT, Tracing, tracing_from_environment
from tests.serving.doors import AS_ANN, TWINS, World, ok, person

CANARY = "canary4711"
QUOTING = [
    KeyError(CANARY),
    UsageError("UNKNOWN-USER", place=CANARY, value=CANARY, rule=""),
    StoreError("STORE-DAMAGED", place=CANARY, value=CANARY, rule=""),
]


def numbers(world: World) -> dict[str, float]:
    lines = [line.rpartition(" ") for line in world.metrics.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines if "_created" not in name}


def test_answers_are_counted_by_template_method_and_status() -> None:
    """A label per path would be a series per user, until Prometheus ends."""
    world = World()

    async def scene() -> None:
        for user in ("u1", "u2", "u3"):
            await world.ask("GET", f"/v1/models/taste/users/{user}")
        for method in ("GET", "BREW", "POST"):
            await world.ask(method, f"/nowhere/{method}")
        await world.ask(headers={})

    asyncio.run(scene())
    found = numbers(world)
    route = 'method="GET",route="/v1/models/{model}/users/{user}",status="200"'
    assert found[f"tastetwin_requests_total{{{route}}}"] == 3
    assert found['tastetwin_requests_total{method="-",route="(none)",status="404"}'] == 3
    assert found['tastetwin_refused_total{reason="HTTP-ROUTE"}'] == 3
    assert found['tastetwin_refused_total{reason="HTTP-KEY"}'] == 1
    assert found['tastetwin_request_seconds_count{route="/v1/models/{model}/users/{user}"}'] == 3
    assert found["tastetwin_requests_in_flight"] == 0


def test_seconds_are_those_of_the_clock() -> None:
    """A histogram is what alerts are made of."""

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        world.now += 0.3
        await ok(scope, receive, send)

    world = World(inner)
    asyncio.run(world.ask())
    found = numbers(world)
    bucket = 'tastetwin_request_seconds_bucket{le="%s",route="/v1/models/{model}/twins"}'
    assert (found[bucket % "0.25"], found[bucket % "0.5"]) == (0, 1)
    assert world.lines[0]["ms"] == 300.0


def test_a_line_says_who_asked_what_and_how_it_went() -> None:
    """One line a request, JSON, fields that can be searched."""
    world = World()
    asyncio.run(world.ask(headers=AS_ANN | {"x-request-id": "r-1"}))
    line = world.lines[0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", line.pop("timestamp"))
    assert line == {
        "event": "request", "level": "info", "service": "gateway", "request_id": "r-1", "method": "POST",
        "route": "/v1/models/{model}/twins", "status": 200, "ms": 0.0, "caller": "ann", "code": "",
    }  # fmt: skip


def test_a_share_of_requests_is_logged_the_same_in_every_tier() -> None:
    """A request that one tier logs and the next does not cannot be followed."""
    one, other = World(log_share=0.2), World(log_share=0.2)

    async def scene() -> None:
        for world in (one, other):
            for number in range(1_000):
                await world.ask(headers=AS_ANN | {"x-request-id": f"r-{number}"})

    asyncio.run(scene())
    ids = [[line["request_id"] for line in world.lines] for world in (one, other)]
    assert ids[0] == ids[1] and 140 < len(ids[0]) < 260


def test_failures_are_logged_whatever_the_share() -> None:
    """The one in a thousand is the one that is looked for; refusals under load are not failures."""

    async def fails(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError(CANARY)

    world = World(fails, log_share=0.0)
    asyncio.run(world.ask(headers=AS_ANN | {"x-request-id": "r-1"}))
    asyncio.run(world.ask(headers={}))
    failed, request = world.lines
    assert (failed["event"], failed["level"], failed["errors"]) == ("failed", "error", ["builtins.ValueError"])
    assert failed["trace"][-1].endswith(" fails") and "test_telemetry.py" in failed["trace"][-1]
    assert (request["status"], request["code"]) == (500, "HTTP-INTERNAL")
    assert {line["request_id"] for line in world.lines} == {"r-1"}


def spans() -> tuple[Tracing, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    return Tracing("gateway", SimpleSpanProcessor(exporter)), exporter


@pytest.mark.parametrize("error", [None, *QUOTING], ids=repr)
def test_nothing_of_a_user_is_in_logs_metrics_or_traces(error: Exception | None) -> None:
    """Ids come in paths, queries, bodies, headers and error messages, and must come out in none of the three."""
    tracing, exporter = spans()

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        if error is not None:
            raise error
        await ok(scope, receive, send)

    world = World(inner, person("ann", "twins"), tracing=tracing)
    hostile = {
        "user-agent": CANARY,
        "referer": CANARY,
        "cookie": CANARY,
        "traceparent": CANARY,
        "x-request-id": f"{CANARY} ",
    }

    async def scene() -> None:
        for headers in (
            AS_ANN,
            {"x-api-key": CANARY},
            {"authorization": f"Bearer {CANARY}"},
            {"authorization": CANARY},
        ):
            for method, path in (
                ("GET", f"/v1/models/{CANARY}/users/{CANARY}"),
                ("POST", TWINS),
                (CANARY, f"/{CANARY}"),
            ):
                await world.ask(method, path, dict(headers) | hostile, [CANARY.encode()])

    asyncio.run(scene())
    said = (
        world.log.getvalue().decode()
        + world.metrics
        + "".join(span.to_json() for span in exporter.get_finished_spans())
    )
    assert len(world.lines) >= 12 and exporter.get_finished_spans()
    assert CANARY not in said
    assert "key-of-ann" not in said


def test_a_span_lies_below_the_callers_and_the_next_tier_below_it() -> None:
    """One trace shows all three tiers."""
    tracing, exporter = spans()
    world = World(tracing=tracing)
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    answer = asyncio.run(world.ask(headers=AS_ANN | {"traceparent": trace}))
    (span,) = exporter.get_finished_spans()
    assert span.name == "POST /v1/models/{model}/twins"
    assert span.parent is not None and f"{span.parent.span_id:016x}" == "b" * 16
    assert span.context is not None and f"{span.context.trace_id:032x}" == "a" * 32
    assert json.loads(answer.body)["trace"] == f"00-{'a' * 32}-{span.context.span_id:016x}-01"
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST", "http.route": "/v1/models/{model}/twins", "http.response.status_code": 200,
    }  # fmt: skip


def test_the_status_of_an_error_is_in_its_span() -> None:
    """The error becomes an answer after the app, and the span is that of the answer."""
    tracing, exporter = spans()

    async def fails(scope: Any, receive: Any, send: Any) -> None:
        raise StoreError("STORE-DAMAGED", place="p", rule="r")

    asyncio.run(World(fails, tracing=tracing).ask())
    (span,) = exporter.get_finished_spans()
    assert (span.attributes or {})["http.response.status_code"] == 503 and not span.status.is_ok


def test_traces_are_off_unless_there_is_somewhere_to_send_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Off costs nothing, and nothing connects anywhere by itself."""
    monkeypatch.delenv(ENDPOINT, raising=False)
    assert tracing_from_environment("gateway") is None
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:1")
    tracing = tracing_from_environment("gateway")
    assert tracing is not None
    tracing.close()


def test_metrics_have_a_listener_of_their_own() -> None:
    """On the public port they would tell everybody how busy we are."""
    world, sent = World(), []

    async def send(message: Any) -> None:
        sent.append(message)

    async def scene() -> None:
        await world.ask()
        for path in ("/metrics", "/other"):
            await world.telemetry.metrics({"type": "http", "method": "GET", "path": path}, None, send)
        assert (await world.ask("GET", "/metrics")).status == 404

    asyncio.run(scene())
    assert [sent[0]["status"], sent[2]["status"]] == [200, 404]
    assert b"tastetwin_requests_total{" in sent[1]["body"]
