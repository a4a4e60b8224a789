"""How the consumer is set up, and what of it nobody may change."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from tastetwin.config import AppConfig
from tastetwin.delivery.kafka import read_client
from tastetwin.errors import UsageError

BROKERS: Final = re.compile(r"[^/@?#\s,]+:\d+(,[^/@?#\s,]+:\d+)*")
FIXED: Final[dict[str, Any]] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "partition.assignment.strategy": "cooperative-sticky",
}
"""What the promise rests on: nothing is committed but by us, and what a member keeps goes on during a rebalance."""
NAMED: Final = frozenset({"group.id", "group.instance.id", *FIXED})
DEFAULTS: Final[dict[str, Any]] = {
    "client.id": "tastetwin-events",
    "auto.offset.reset": "earliest",
    "session.timeout.ms": 45_000,
    "heartbeat.interval.ms": 3_000,
    "log_level": 2,  # what goes wrong is told by our own lines
}


def brokers_of(config: AppConfig) -> str:
    """Where the cluster is.

    Raises:
        UsageError: KAFKA-ADDRESS.
    """
    if config.brokers is None or not BROKERS.fullmatch(config.brokers):
        raise UsageError(
            "KAFKA-ADDRESS",
            place="app.brokers",
            value=(config.brokers or "").rpartition("@")[2],
            rule="HOST:PORT[,HOST:PORT...], without user and password",
            fix="set app.brokers; credentials go into the file of --client",
        )
    return config.brokers


def client_of(path: Path | None) -> dict[str, str]:
    """Further settings of librdkafka, for consumer and producer.

    Raises:
        UsageError: KAFKA-CLIENT.
    """
    client = read_client(path)
    wrong = sorted(NAMED & client.keys())
    if wrong:
        raise UsageError(
            "KAFKA-CLIENT",
            place=str(path),
            value=", ".join(wrong),
            rule=f"not {', '.join(sorted(NAMED))}",
            fix="take them out; the group is app.group, the instance --instance",
        )
    return client


def consumer_settings(brokers: str, group: str, instance: str | None, client: dict[str, str]) -> dict[str, Any]:
    """For ``confluent_kafka.Consumer``; ``instance`` names a static member."""
    static = {} if instance is None else {"group.instance.id": instance}
    return {**DEFAULTS, **client, **FIXED, **static, "bootstrap.servers": brokers, "group.id": group}
