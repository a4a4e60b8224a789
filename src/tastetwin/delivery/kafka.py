"""A compacted Kafka topic that values are pushed to: every message is confirmed, or the push fails.

At least once: a producer that is killed may have sent what nobody noted. That is harmless, since the last value of a
key is all that a compacted topic keeps, and the same push sends the same bytes again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tastetwin.errors import MissingExtra, StoreError, UsageError

try:
    from confluent_kafka import KafkaError, KafkaException, Message, Producer
    from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType
except ImportError as error:
    raise MissingExtra.of("confluent_kafka", "kafka") from error

ADDRESS: Final = re.compile(r"kafka://(?P<brokers>[^/@?#\s]+:\d+)/(?P<topic>[A-Za-z0-9._-]{1,249})")
FIXED: Final[dict[str, Any]] = {"acks": "all", "enable.idempotence": True, "partitioner": "murmur2"}
"""What the promise rests on. The default partitioner draws one for an empty key, so that a tombstone could pass its
value by; murmur2 is also what Java producers use."""
DEFAULTS: Final[dict[str, Any]] = {
    "client.id": "tastetwin",
    "compression.type": "zstd",
    "linger.ms": 50,
    "message.timeout.ms": 120_000,
    "log_level": 2,  # what goes wrong is told by our own errors
}
SECONDS: Final = 10.0
"""How long a question to the cluster may take."""
_POLLED: Final = 1_000
"""Messages between two looks at the delivery reports."""

Keyed = tuple[bytes, bytes | None]
"""Key and value; None is a tombstone."""


@dataclass(frozen=True)
class Address:
    """Where a topic is."""

    brokers: str
    topic: str

    @classmethod
    def of(cls, target: str) -> Address:
        """Read ``kafka://HOST:PORT[,HOST:PORT...]/TOPIC``.

        Raises:
            UsageError: KAFKA-ADDRESS.
        """
        found = ADDRESS.fullmatch(target)
        if found is None:
            raise UsageError(
                "KAFKA-ADDRESS",
                place="--to",
                value=target.rpartition("@")[2],
                rule="kafka://HOST:PORT[,HOST:PORT...]/TOPIC, without user and password",
                fix="check --to; credentials go into the file of --client",
            )
        return cls(found["brokers"], found["topic"])


def read_client(path: Path | None) -> dict[str, str]:
    """Further settings of the client, one ``name=value`` a line, as librdkafka names them.

    Raises:
        UsageError: KAFKA-CLIENT when the file cannot be read or sets what the promise rests on.
    """
    if path is None:
        return {}
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise _bad_client(str(path), str(error)) from error
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    names = [name.strip() if sign else "a line without =" for name, sign, _ in pairs]
    wrong = [name for name in names if name in ("a line without =", "bootstrap.servers", *FIXED)]
    if wrong:
        raise _bad_client(str(path), ", ".join(wrong))
    return {name.strip(): value.strip() for name, _, value in pairs}


def _bad_client(place: str, value: str) -> UsageError:
    return UsageError(
        "KAFKA-CLIENT",
        place=place,
        value=value,
        rule=f"lines of name=value, names of librdkafka, but not {', '.join(FIXED)} or bootstrap.servers",
        fix="mend the file, e.g. security.protocol=SASL_SSL",
    )


class Topic:
    """A topic to send to."""

    def __init__(self, address: Address, client: dict[str, str]) -> None:
        """Prepare a producer; nothing is connected yet.

        Raises:
            UsageError: KAFKA-CLIENT when librdkafka knows no such setting.
        """
        self.address = address
        self._said = ""
        self._settings = {**DEFAULTS, **client, **FIXED, "bootstrap.servers": address.brokers}
        try:
            self._producer = Producer({**self._settings, "error_cb": self._hear})
        except (KafkaException, ValueError, TypeError) as error:
            raise _bad_client("--client", str(error)) from error

    def _hear(self, error: KafkaError) -> None:
        self._said = error.str()

    def prepare(self) -> str | None:
        """See that the topic is there and compacted; makes it where it is absent. Returns what could not be asked.

        Raises:
            StoreError: KAFKA-UNREACHABLE, KAFKA-NO-TOPIC, KAFKA-NOT-COMPACTED.
        """
        try:
            cluster = self._producer.list_topics(timeout=SECONDS)
        except KafkaException as error:
            value = self._said or error.args[0].str()
            raise self._error("KAFKA-UNREACHABLE", value, "a Kafka cluster answers there", "check --to") from error
        asked = cluster.controller_id in cluster.brokers
        if self.address.topic not in cluster.topics:
            self._create(asked)
            return None
        try:
            policy = self._policy() if asked else None
        except (KafkaException, TimeoutError) as error:
            self._said, policy = str(error), None
        if policy is None:
            return f"whether {self.address.topic} is compacted could not be asked: {self._said or 'no controller'}"
        if policy != "compact":
            raise self._error(
                "KAFKA-NOT-COMPACTED",
                f"cleanup.policy={policy}",
                "lists that do not change are not sent again, so the topic must keep the last value of every key",
                f"kafka-configs --alter --entity-type topics --entity-name {self.address.topic} "
                "--add-config cleanup.policy=compact",
            )
        return None

    def _create(self, asked: bool) -> None:
        topic = NewTopic(self.address.topic, config={"cleanup.policy": "compact"})
        try:
            if not asked:
                raise KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))
            AdminClient(self._settings_of_admin()).create_topics([topic])[self.address.topic].result(SECONDS)
        except (KafkaException, TimeoutError) as error:
            raise self._error(
                "KAFKA-NO-TOPIC",
                str(error),
                "a compacted topic, made before or by the first push",
                f"kafka-topics --bootstrap-server {self.address.brokers} --create --topic {self.address.topic}"
                " --config cleanup.policy=compact",
            ) from error

    def _policy(self) -> str:
        resource = ConfigResource(ResourceType.TOPIC, self.address.topic)
        found = AdminClient(self._settings_of_admin()).describe_configs([resource])[resource].result(SECONDS)
        return str(found["cleanup.policy"].value)

    def _settings_of_admin(self) -> dict[str, Any]:
        return {name: value for name, value in self._settings.items() if name not in FIXED}

    def send(self, messages: Iterable[Keyed]) -> int:
        """Send, and wait until every one is confirmed by all in-sync replicas; returns how many.

        Raises:
            StoreError: KAFKA-UNDELIVERED when one was not; others may be there.
        """
        reports, sent = _Reports(), 0
        try:
            for key, value in messages:
                self._produce(key, value, reports)
                sent += 1
                if sent % _POLLED == 0:
                    self._producer.poll(0)
                if reports.failure:
                    break
            while self._producer.flush(1.0):  # in pieces, so that ctrl-C is heard
                pass
        except KafkaException as error:
            reports.failure = error.args[0].str()
        if reports.failure or reports.confirmed != sent:
            self._producer.purge()
            raise self._error(
                "KAFKA-UNDELIVERED",
                f"{reports.confirmed} messages confirmed, then: {reports.failure or 'no report'} {self._said}".rstrip(),
                "every message is confirmed, else the push does not count",
                "mend the cause, then the same command; a message that is too large needs another message.max.bytes, "
                "in the topic and in --client, or a smaller -k",
            )
        return sent

    def _produce(self, key: bytes, value: bytes | None, reports: _Reports) -> None:
        while True:
            try:
                return self._producer.produce(self.address.topic, value=value, key=key, on_delivery=reports.hear)
            except BufferError:  # more than librdkafka takes at once
                self._producer.poll(0.1)

    def _error(self, code: str, value: str, rule: str, fix: str) -> StoreError:
        place = f"kafka://{self.address.brokers}/{self.address.topic}"
        return StoreError(code, place=place, value=value, rule=rule, fix=fix)


class _Reports:
    """What the cluster said of the messages."""

    def __init__(self) -> None:
        self.confirmed = 0
        self.failure = ""

    def hear(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.confirmed += 1
        else:
            self.failure = self.failure or error.str()
