"""What is sent: every message confirmed by all in-sync replicas, or the process ends and begins again from the commit.

A broker that is away is waited for without limit: messages of a key keep their order, which they would not if one were
given up and sent again after the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import Message as Delivered

from tastetwin.delivery.kafka import FIXED
from tastetwin.errors import StoreError
from tastetwin.serving.app.events.letters import Outgoing, shrunk

DEFAULTS: Final[dict[str, Any]] = {
    "client.id": "tastetwin-events",
    "compression.type": "zstd",
    "linger.ms": 5,
    "message.timeout.ms": 0,
    "message.max.bytes": 100_000_000,  # a dead letter is as long as what came; the topic decides
    "log_level": 2,
}


class Doubtful(Exception):
    """What was to be sent may be somebody else's to send."""


class Outbox:
    """A producer. ``send`` is called from one thread at a time."""

    def __init__(self, brokers: str, client: dict[str, str]) -> None:
        self._brokers = brokers
        self._producer = Producer({**DEFAULTS, **client, **FIXED, "bootstrap.servers": brokers})
        self._stopped = False

    def send(self, messages: Iterable[Outgoing], ours: Callable[[], bool] = lambda: True) -> None:
        """Returns once every message is confirmed; ``ours`` is asked before each whether it may still be sent.

        Raises:
            Doubtful: it may not; some may be there.
            StoreError: KAFKA-UNDELIVERED when one will not be; others may be there.
        """
        todo = list(messages)
        while todo:
            reports = _Reports()
            for message in todo:
                if not ours():
                    raise Doubtful
                self._produce(message, reports)
            while self._producer.flush(0.5) and not self._stopped:
                pass
            if reports.failure or self._stopped:
                raise self._undelivered(reports.failure or "the process ends")
            todo = [shrunk(message) for message in reports.too_large]

    def stop(self) -> None:
        """Wait no longer; from any thread."""
        self._stopped = True

    def _produce(self, message: Outgoing, reports: _Reports) -> None:
        topic, key, value, headers, _ = message
        while not self._stopped:
            try:
                return self._producer.produce(
                    topic, value=value, key=key, headers=list(headers), on_delivery=reports.of(message)
                )
            except BufferError:  # more than librdkafka takes at once
                self._producer.poll(0.1)
            except KafkaException as error:
                return reports.hear(message, error.args[0])

    def _undelivered(self, said: str) -> StoreError:
        return StoreError(
            "KAFKA-UNDELIVERED",
            place=f"kafka://{self._brokers}",
            value=said,
            rule="every message is confirmed, else nothing of its batch is committed",
            fix="mend the cause and start again: it goes on from what was committed",
        )


class _Reports:
    """What the cluster said of the messages."""

    def __init__(self) -> None:
        self.failure = ""
        self.too_large: list[Outgoing] = []

    def of(self, message: Outgoing) -> Any:
        def hear(error: KafkaError | None, delivered: Delivered) -> None:
            if error is not None:
                self.hear(message, error)

        return hear

    def hear(self, message: Outgoing, error: KafkaError) -> None:
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE and message.may_shrink:
            self.too_large.append(message)
        else:
            self.failure = self.failure or error.str()
