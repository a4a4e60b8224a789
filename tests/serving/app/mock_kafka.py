"""librdkafka's mock cluster with as many partitions as wanted, and without its wait of three seconds for a group.

By way of the C functions, which the Python package does not wrap. The cluster lives in this process; others reach it.
"""

from __future__ import annotations

import ctypes
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import confluent_kafka
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka import Message as Received

PARTITIONS: Final = 4
_END, _TOPIC, _VALUE, _FLAGS, _HEADER = (ctypes.c_int(number) for number in (0, 1, 4, 7, 9))
_COPY: Final = ctypes.c_int(2)


def _library() -> Any:
    folder = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
    library = ctypes.CDLL(str(next(folder.glob("librdkafka*.so*"))))
    library.rd_kafka_new.restype = ctypes.c_void_p
    library.rd_kafka_new.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
    library.rd_kafka_mock_cluster_new.restype = ctypes.c_void_p
    library.rd_kafka_mock_cluster_new.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    library.rd_kafka_mock_cluster_bootstraps.argtypes = [ctypes.c_void_p]
    library.rd_kafka_mock_topic_create.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int]
    library.rd_kafka_mock_group_initial_rebalance_delay_ms.argtypes = [ctypes.c_void_p, ctypes.c_int32]
    library.rd_kafka_mock_group_initial_rebalance_delay_ms.restype = None
    library.rd_kafka_mock_push_request_errors_array.argtypes = [
        ctypes.c_void_p, ctypes.c_int16, ctypes.c_size_t, ctypes.POINTER(ctypes.c_int),
    ]  # fmt: skip
    library.rd_kafka_mock_push_request_errors_array.restype = None
    return library


class MockKafka:
    """A cluster of three brokers."""

    PRODUCE: Final = 0
    """Number of that request in Kafka's protocol."""

    def __init__(self) -> None:
        self._library = _library()
        owner = self._library.rd_kafka_new(0, None, ctypes.create_string_buffer(512), 512)
        self._cluster = self._library.rd_kafka_mock_cluster_new(owner, 3)
        self._library.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, 0)
        self.brokers = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def topic(self, name: str, partitions: int = PARTITIONS) -> str:
        """A new topic; its name."""
        unique = f"{name}-{uuid.uuid4().hex[:8]}"
        assert self._library.rd_kafka_mock_topic_create(self._cluster, unique.encode(), partitions, 1) == 0
        return unique

    def fail(self, request: int, *errors: int) -> None:
        """The next requests of that kind are answered with these errors."""
        array = (ctypes.c_int * len(errors))(*errors)
        self._library.rd_kafka_mock_push_request_errors_array(self._cluster, request, len(errors), array)

    def write(self, topic: str, messages: Iterable[tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]]) -> None:
        """Key, value, headers of each."""
        producer = Producer(
            {"bootstrap.servers": self.brokers, "log_level": 2, "partitioner": "murmur2", "linger.ms": 0}
        )
        for key, value, headers in messages:
            producer.produce(topic, key=key, value=value, headers=list(headers))
        assert producer.flush(20) == 0

    def write_with_header(self, topic: str, value: bytes, name: bytes) -> None:
        """A message with a header of any name; the Python package writes none that is not UTF-8."""
        library, said = self._library, ctypes.create_string_buffer(512)
        library.rd_kafka_conf_new.restype = ctypes.c_void_p
        conf = ctypes.c_void_p(library.rd_kafka_conf_new())
        library.rd_kafka_conf_set(conf, b"bootstrap.servers", self.brokers.encode(), said, ctypes.c_size_t(512))
        producer = ctypes.c_void_p(library.rd_kafka_new(0, conf, said, 512))
        assert library.rd_kafka_producev(
            producer,
            *(_TOPIC, ctypes.c_char_p(topic.encode())),
            *(_VALUE, ctypes.c_char_p(value), ctypes.c_size_t(len(value))),
            *(_FLAGS, _COPY),
            *(_HEADER, ctypes.c_char_p(name), ctypes.c_char_p(b"h"), ctypes.c_ssize_t(1)),
            _END,
        ) == 0  # fmt: skip
        assert library.rd_kafka_flush(producer, 10_000) == 0
        library.rd_kafka_destroy(producer)

    def read(self, topic: str) -> list[Received]:
        """Everything up to now, each partition in order."""
        quick = {"fetch.wait.max.ms": 5, "fetch.error.backoff.ms": 5, "enable.auto.commit": False, "log_level": 2}
        consumer = Consumer({"bootstrap.servers": self.brokers, "group.id": uuid.uuid4().hex, **quick})
        found = []
        for number in consumer.list_topics(topic, timeout=10).topics[topic].partitions:
            end = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=10)[1]
            consumer.assign([TopicPartition(topic, number, 0)])
            at = 0
            while at < end:
                message = consumer.poll(10)
                assert message is not None and message.error() is None, "the cluster went silent"
                at = int(message.offset() or 0) + 1
                found.append(message)
        consumer.close()
        return found

    def committed(self, topic: str, group: str, partitions: int = PARTITIONS) -> dict[int, int]:
        """Partition -> offset."""
        consumer = Consumer({"bootstrap.servers": self.brokers, "group.id": group, "log_level": 2})
        found = consumer.committed([TopicPartition(topic, number) for number in range(partitions)], timeout=10)
        consumer.close()
        return {each.partition: max(each.offset, 0) for each in found}
