"""Dead letters: counted, and sent back to where they came from.

The topic is read from its beginning up to its end of now; receipts in it say which letters were sent back already.
Killed in between, a letter may be sent back twice: the gateway counts the same event once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka import Message as Received

from tastetwin.errors import StoreError
from tastetwin.serving.app.events.letters import Letter, Origin, open_letter, read_receipt, receipt, send_back
from tastetwin.serving.app.events.message import headers_of
from tastetwin.serving.app.events.outbox import Outbox
from tastetwin.serving.app.events.topics import SECONDS, opened, partitions

AT_ONCE: Final = 500


@dataclass
class Dead:
    """The letters in a topic."""

    letters: dict[Origin, Letter] = field(default_factory=dict)
    sent_back: set[Origin] = field(default_factory=set)

    def add(self, message: Received) -> None:
        """Take in a message of the topic."""
        headers = headers_of(message)
        returned = read_receipt(headers)
        if returned is not None:
            self.sent_back.add(returned)
        letter = open_letter(message.key(), message.value(), headers)
        if letter is not None:
            self.letters[letter.origin] = letter

    def open(self) -> list[Letter]:
        """Those not sent back yet, in the order in which they were written."""
        return [letter for origin, letter in self.letters.items() if origin not in self.sent_back]


@dataclass(frozen=True)
class Replayed:
    """What became of the open letters."""

    sent: int
    exhausted: int
    """Left: tried as often as allowed."""
    omitted: int
    """Left: the topic holds no value of theirs."""
    others: int
    """Left: of other reasons."""


def read_dead(brokers: str, client: dict[str, str], topic: str) -> Dead:
    """All of the topic, up to now.

    Raises:
        UsageError: KAFKA-CLIENT.
        StoreError: KAFKA-UNREACHABLE, KAFKA-NO-TOPIC.
    """
    settings = {**client, "bootstrap.servers": brokers, "group.id": "tastetwin-dead", "log_level": 2}
    consumer = opened(settings | {"enable.auto.commit": False, "enable.auto.offset.store": False})
    dead = Dead()
    try:
        for message in _messages(consumer, brokers, topic):
            dead.add(message)
    except KafkaException as error:
        raise _unreachable(brokers, topic, error.args[0].name()) from error
    finally:
        consumer.close()
    return dead


def count(dead: Dead, most: int) -> list[dict[str, Any]]:
    """By reason: letters, those open, and of the open ones those tried ``most`` times."""
    open_ = dead.open()
    all_, left, spent = (
        Counter(letter.reason for letter in letters)
        for letters in (dead.letters.values(), open_, [each for each in open_ if each.attempts >= most])
    )
    return [
        {"reason": reason, "letters": number, "open": left[reason], "exhausted": spent[reason]}
        for reason, number in sorted(all_.items())
    ]


def replay(outbox: Outbox, dead: Dead, topic: str, reasons: Collection[str], most: int) -> Replayed:
    """Send open letters back, of ``reasons`` (empty = all), that were tried fewer than ``most`` times.

    Raises:
        StoreError: KAFKA-UNDELIVERED; the same again goes on from there.
    """
    open_ = dead.open()
    mine = [letter for letter in open_ if not reasons or letter.reason in reasons]
    tried = [letter for letter in mine if letter.attempts < most]
    todo = [letter for letter in tried if not letter.omitted]
    for start in range(0, len(todo), AT_ONCE):
        part: Sequence[Letter] = todo[start : start + AT_ONCE]
        outbox.send([send_back(letter) for letter in part])
        outbox.send([receipt(letter, topic) for letter in part])
    return Replayed(len(todo), len(mine) - len(tried), len(tried) - len(todo), len(open_) - len(mine))


def _messages(consumer: Consumer, brokers: str, topic: str) -> Iterator[Received]:
    """Partition by partition: the letters of a user, in order."""
    for number in partitions(consumer, brokers, topic):
        low, high = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=SECONDS)
        if low >= high:
            continue
        consumer.assign([TopicPartition(topic, number, low)])
        yield from _until(consumer, brokers, topic, high)


def _until(consumer: Consumer, brokers: str, topic: str, end: int) -> Iterator[Received]:
    while True:
        message = consumer.poll(SECONDS)
        if message is None:
            raise _unreachable(brokers, topic, "silence")
        error = message.error()
        if error is not None:
            raise _unreachable(brokers, topic, error.name())
        if (message.offset() or 0) < end:
            yield message
        if (message.offset() or 0) >= end - 1:
            return


def _unreachable(brokers: str, topic: str, value: str) -> StoreError:
    return StoreError(
        "KAFKA-UNREACHABLE",
        place=f"kafka://{brokers}/{topic}",
        value=value,
        rule="the topic can be read up to its end",
        fix="check the cluster, then the same again",
    )
