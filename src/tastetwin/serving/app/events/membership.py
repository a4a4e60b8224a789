"""The consumer, in one thread: what is held, committed, and whether it may still be believed.

A process that was stopped for longer than its session (SIGSTOP, a sleeping machine) wakes up believing that it holds
partitions that are somebody else's by now. So a gap in our own clock beyond ``lease`` makes the membership doubtful,
and until the group has taken a commit of ours nothing more is to have an effect.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as Received

from tastetwin.errors import StoreError
from tastetwin.serving.app.events.lanes import Lane
from tastetwin.serving.app.events.topics import opened

LOOK_SECONDS: Final = 1.0
"""Between two looks at where partitions end."""
STILL_SECONDS: Final = 0.2
"""Of a poll that takes nothing."""
_LOG: Final = logging.getLogger(__name__)


class Membership:
    """All methods but ``trusted`` and ``alive`` are called from one thread at a time.

    Args:
        settings: see ``consumer_settings``.
        topic: of events.
        settle: called when lanes are to be given up, so that what is under way is finished or dropped; after it, none
            of them has an effect any more.
    """

    def __init__(self, settings: dict[str, Any], topic: str, settle: Callable[[Sequence[Lane]], None]) -> None:
        self.lanes: dict[int, Lane] = {}
        self._settle = settle
        self._lease = float(settings["session.timeout.ms"]) / 2_000
        self._seen, self._looked = time.monotonic(), 0.0
        self._doubtful = False
        self._still = False
        self._topic = topic
        self._consumer = opened({**settings, "error_cb": _hear})
        self._consumer.subscribe([topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)

    def turn(self, most: int, seconds: float, still: bool) -> list[Received]:
        """Commit what is done, and take up to ``most`` messages within ``seconds``; ``still`` takes none.

        Raises:
            StoreError: KAFKA-UNREACHABLE when the member cannot go on, such as one whose instance has a double.
        """
        self.alive()
        if not self._commit(self.lanes.values()):
            self._doubtful = False  # nothing was read yet that could have an effect
        self._stand_still(still)
        found = self._consumer.consume(most, STILL_SECONDS if still else seconds)
        self.alive()
        self._look()
        return [message for message in found if _is_message(message) and message.partition() in self.lanes]

    def leave(self) -> None:
        """Commit what is done and leave the group."""
        self._commit(self.lanes.values())
        self._consumer.close()

    def trusted(self) -> bool:
        """Whether what is held is ours as far as can be known. From any thread."""
        return not self._doubtful and time.monotonic() - self._seen < self._lease

    def alive(self) -> None:
        """The process runs. From any thread."""
        now = time.monotonic()
        if now - self._seen > self._lease:
            self._doubtful = True
        self._seen = now

    # -- in that thread -----------------------------------------------------------------------------------------------

    def _commit(self, lanes: Iterable[Lane]) -> bool:
        """What is done, where it is news, or doubtful whether the group still knows us; whether it was asked."""
        marks = [(lane, lane.done) for lane in lanes if lane.done is not None and (lane.behind or self._doubtful)]
        if not marks:
            return False
        offsets = [TopicPartition(lane.topic, lane.partition, done) for lane, done in marks]
        try:
            told = self._consumer.commit(offsets=offsets, asynchronous=False)
            failed = [each.error for each in told or () if each.error is not None]
        except KafkaException as error:
            failed = [error.args[0]]
        self._doubtful = bool(failed)
        if failed:
            # Tried again at the next turn, in which librdkafka also tells us if partitions are lost.
            _LOG.warning("not committed: %s", failed[0].name())
            return True
        for lane, done in marks:
            lane.committed = done
        return True

    def _stand_still(self, still: bool) -> None:
        if still:
            self._consumer.pause(self._consumer.assignment())  # those that were assigned meanwhile too
        elif self._still:
            self._consumer.resume(self._consumer.assignment())
        self._still = still

    def _look(self) -> None:
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        for lane in self.lanes.values():
            found = self._consumer.get_watermark_offsets(TopicPartition(lane.topic, lane.partition), cached=True)
            lane.high = max(lane.high, found[1] if found else 0)

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.lanes |= {each.partition: Lane(each.topic, each.partition) for each in partitions}
        _LOG.info("%d partitions came, %d held", len(partitions), len(self.lanes))

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        lanes = self._taken_out(partitions)
        self._settle(lanes)
        self._commit(lanes)
        _LOG.info("%d partitions given up, %d held", len(partitions), len(self.lanes))

    def _lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for lane in self._taken_out(partitions):
            lane.gone = True
        _LOG.warning("%d partitions lost, %d held", len(partitions), len(self.lanes))

    def _taken_out(self, partitions: Sequence[TopicPartition]) -> list[Lane]:
        return [self.lanes.pop(each.partition) for each in partitions if each.partition in self.lanes]


def _is_message(message: Received) -> bool:
    error = message.error()
    if error is None:
        return True
    _check(error)
    _LOG.warning("the cluster says %s", error.name())
    return False


def _check(error: KafkaError) -> None:
    if error.fatal():
        raise StoreError(
            "KAFKA-UNREACHABLE",
            place="app.brokers",
            value=error.name(),
            rule="a member that the group goes on with",
            fix="start again; with --instance, one process of each name",
        )


def _hear(error: KafkaError) -> None:
    """Of brokers that come and go; librdkafka tries again."""
    _LOG.info("a broker says %s", error.name())
