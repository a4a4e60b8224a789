"""A Kafka cluster in this process, and a consumer that compacts."""

from __future__ import annotations

import json
import uuid
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition

Held = dict[bytes, dict[str, Any]]


class Reader:
    """A consumer that compacts: the last value of every key, and how many messages came."""

    def __init__(self, brokers: str, topic: str) -> None:
        group = {"bootstrap.servers": brokers, "group.id": uuid.uuid4().hex, "log_level": 2}
        group |= {"fetch.wait.max.ms": 5, "fetch.error.backoff.ms": 5}
        self._consumer = Consumer(group)
        partitions = self._consumer.list_topics(topic, timeout=10).topics[topic].partitions
        self._next = {number: TopicPartition(topic, number, 0) for number in partitions}
        self._consumer.assign(list(self._next.values()))
        self.last: dict[bytes, bytes | None] = {}
        self.messages: list[tuple[bytes, bytes | None]] = []
        self.places: set[tuple[bytes, int]] = set()
        """Keys and the partitions in which they were found."""

    def read(self) -> Held:
        """Everything up to now: key -> value, tombstones and their keys left out."""
        ends = {number: self._consumer.get_watermark_offsets(at, timeout=10)[1] for number, at in self._next.items()}
        while any(self._next[number].offset < end for number, end in ends.items()):
            message = self._consumer.poll(10)
            assert message is not None and message.error() is None, "the cluster went silent"
            self._next[int(message.partition() or 0)].offset = int(message.offset() or 0) + 1
            key = message.key()
            assert isinstance(key, bytes), "a compacted topic refuses a message without key"
            self.last[key] = message.value()
            self.messages.append((key, message.value()))
            self.places.add((key, int(message.partition() or 0)))
        return {key: json.loads(value) for key, value in self.last.items() if value is not None}

    def close(self) -> None:
        self._consumer.close()


class Cluster:
    """A mock cluster of three brokers in this process; other processes reach it."""

    def __init__(self) -> None:
        self._owner = Producer({"test.mock.num.brokers": 3, "log_level": 2})
        brokers = self._owner.list_topics(timeout=10).brokers.values()
        self.brokers = ",".join(f"127.0.0.1:{broker.port}" for broker in brokers)

    def topic(self) -> str:
        """The address of a new topic."""
        name = f"twins-{uuid.uuid4().hex}"
        self._owner.list_topics(name, timeout=10)
        return f"kafka://{self.brokers}/{name}"
