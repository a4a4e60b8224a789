"""Whether the topics are there: a consumer of one that is not would wait in silence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from confluent_kafka import Consumer, KafkaException

from tastetwin.errors import StoreError, UsageError

SECONDS: Final = 10.0
"""How long a question to the cluster may take."""


def opened(settings: dict[str, Any]) -> Consumer:
    """A consumer; nothing is connected yet.

    Raises:
        UsageError: KAFKA-CLIENT when librdkafka knows no such setting.
    """
    try:
        return Consumer(settings)
    except (KafkaException, ValueError, TypeError) as error:
        raise UsageError(
            "KAFKA-CLIENT", place="--client", value=str(error), rule="settings of librdkafka", fix="mend the file"
        ) from error


def check_topics(brokers: str, client: dict[str, str], topics: Sequence[str]) -> None:
    """See that they are there.

    Raises:
        UsageError: KAFKA-CLIENT.
        StoreError: KAFKA-UNREACHABLE, KAFKA-NO-TOPIC.
    """
    consumer = opened({**client, "bootstrap.servers": brokers, "group.id": "tastetwin-check", "log_level": 2})
    try:
        for topic in topics:
            partitions(consumer, brokers, topic)
    finally:
        consumer.close()


def partitions(consumer: Consumer, brokers: str, topic: str) -> list[int]:
    """Of a topic.

    Raises:
        StoreError: KAFKA-UNREACHABLE, KAFKA-NO-TOPIC.
    """
    place = f"kafka://{brokers}/{topic}"
    try:
        found = consumer.list_topics(timeout=SECONDS).topics.get(topic)
    except KafkaException as error:
        raise StoreError(
            "KAFKA-UNREACHABLE",
            place=place,
            value=error.args[0].name(),
            rule="a Kafka cluster answers there",
            fix="check app.brokers and --client",
        ) from error
    if found is None or not found.partitions:
        raise StoreError(
            "KAFKA-NO-TOPIC",
            place=place,
            rule="topics of events and of dead letters are made before",
            fix=f"kafka-topics --bootstrap-server {brokers} --create --topic {topic}",
        )
    return sorted(found.partitions)
