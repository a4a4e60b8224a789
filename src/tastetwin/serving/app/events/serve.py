"""The consumer's process: put together, run, ended. Beside it a listener for metrics and health."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final

from tastetwin.config import Config
from tastetwin.delivery.kafka import Address, Topic
from tastetwin.mart.rules import GateRules
from tastetwin.serving.app.events.metrics import Metrics
from tastetwin.serving.app.events.outbox import Outbox
from tastetwin.serving.app.events.pump import Pump
from tastetwin.serving.app.events.settings import brokers_of, client_of, consumer_settings
from tastetwin.serving.app.events.taking import Favors
from tastetwin.serving.app.events.topics import check_topics
from tastetwin.serving.door import App, Scope
from tastetwin.serving.exchange import TEXT, Receive, Send, respond
from tastetwin.serving.life import Served, address_of, bind, run
from tastetwin.serving.policy import LIVE, READY
from tastetwin.serving.readiness import Readiness
from tastetwin.serving.server import Lifespan
from tastetwin.serving.telemetry import Telemetry
from tastetwin.serving.tracing import tracing_from_environment

GRACE_SECONDS: Final = 5.0
"""For answers to whoever asks for metrics."""

Gateway = Callable[[], AbstractAsyncContextManager[Favors]]
"""Opens a client of the gateway, within the event loop."""


@dataclass(frozen=True)
class Member:
    """How one process takes part."""

    log: BinaryIO
    """Where lines go."""
    host: str = "127.0.0.1"
    metrics_port: int = 0
    client: Path | None = None
    """File of librdkafka's settings."""
    instance: str | None = None
    """Name of a static member: it may be away for its session's time without a rebalance."""


def serve_events(config: Config, gateway: Gateway, member: Member, tell: Callable[[str], None]) -> None:
    """Consume until the process is told to end; ``tell`` hears where metrics are once it consumes.

    Raises:
        UsageError: SERVE-ADDRESS, KAFKA-ADDRESS, KAFKA-CLIENT, CONFIG-VALUE.
        StoreError: KAFKA-UNREACHABLE, KAFKA-NO-TOPIC, KAFKA-NOT-COMPACTED; later KAFKA-UNDELIVERED.
    """
    brokers, client = brokers_of(config.app), client_of(member.client)
    check_topics(brokers, client, [config.app.events_topic, config.app.dead_letter_topic])
    note = Topic(Address(brokers, config.app.twins_topic), client).prepare()
    if note is not None:
        tell(note)
    bound = bind(member.host, member.metrics_port)
    telemetry = Telemetry("events", member.log, 0.0, tracing_from_environment("events"))
    readiness, metrics = Readiness(), Metrics(telemetry.registry)
    consumer = consumer_settings(brokers, config.app.group, member.instance, client)

    @asynccontextmanager
    async def consuming() -> AsyncIterator[App]:
        async with gateway() as opened:
            rules = GateRules.of(config.mart, config.collect, datetime.now(UTC).date())
            pump = Pump(config.app, consumer, Outbox(brokers, client), opened, rules, metrics)
            running = asyncio.create_task(pump.run())
            running.add_done_callback(_end_process)
            yield _health(telemetry, readiness)
            pump.stop()
            await running

    told = f"events are consumed; {address_of(bound)}/metrics"
    run(Served(Lifespan(consuming), bound), [], readiness, 0.0, GRACE_SECONDS, lambda: tell(told))
    telemetry.close()


def _health(telemetry: Telemetry, readiness: Readiness) -> App:
    """What answers beside the consumer."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in (LIVE, READY):
            return await respond(send, b"", TEXT, status=200 if scope["path"] == LIVE or readiness.ready else 503)
        await telemetry.metrics(scope, receive, send)

    return answer


def _end_process(running: asyncio.Task[None]) -> None:
    """A consumer that failed takes its process along; whoever runs it starts it again."""
    if not running.cancelled() and running.exception() is not None:
        signal.raise_signal(signal.SIGTERM)
