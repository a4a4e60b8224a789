"""Dead letters: counted, and sent back to where they came from.

The topic is read from its beginning up to its end of now; receipts in it say which letters were sent back already.
Killed in between, a letter may be sent back twice: the gateway counts the same event once.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka import Message as Received

from tastetwin.errors import StoreError
from tastetwin.serving.app.events.letters import Letter, open_letter, read_receipt, receipt, send_back
from tastetwin.serving.app.events.message import headers_of
from tastetwin.serving.app.events.outbox import Outbox
from tastetwin.serving.app.events.topics import SECONDS, opened, partitions

AT_ONCE: Final = 500
_TABLES: Final = """
CREATE TABLE letter (name TEXT PRIMARY KEY, reason TEXT, attempts INT, omitted INT, lane INT, at INT) WITHOUT ROWID;
CREATE TABLE receipt (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE VIEW known AS SELECT *, name NOT IN (SELECT name FROM receipt) AS open FROM letter;
"""


class Dead:
    """The letters in a topic.

    It may hold more than memory does. So of each letter only what is counted is kept, and where in the topic it lies,
    in a file of SQLite's own, which is gone with the process.
    """

    def __init__(self, brokers: str, client: dict[str, str], topic: str) -> None:
        self._brokers, self._client, self._topic = brokers, client, topic
        self._ends: dict[int, int] = {}
        self._index = sqlite3.connect("", isolation_level=None)
        with _room():
            self._index.executescript(_TABLES)

    def add(self, message: Received) -> None:
        """Take in a message of the topic; the same letter again is the letter."""
        headers = headers_of(message)
        returned = read_receipt(headers)
        letter = open_letter(message.key(), message.value(), headers)
        with _room():
            if returned is not None:
                self._index.execute("INSERT OR IGNORE INTO receipt VALUES (?)", (":".join(map(str, returned)),))
            if letter is not None:
                row = (letter.reason, letter.attempts, letter.omitted, message.partition(), message.offset())
                self._index.execute("REPLACE INTO letter VALUES (?, ?, ?, ?, ?, ?)", (_name(letter), *row))

    def ask(self, query: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Rows of ``known``, a row per letter; ``open`` are those not sent back yet."""
        with _room():
            yield from self._index.execute(query, values)

    def open(self) -> Iterator[Letter]:
        """Those not sent back yet, in the order in which they were written, read from the topic once more."""
        query = "SELECT 1 FROM known WHERE open AND name = ? AND lane = ? AND at = ?"
        for message in self.messages():
            letter = open_letter(message.key(), message.value(), headers_of(message))
            if letter and any(self.ask(query, _name(letter), message.partition(), message.offset())):
                yield letter

    def messages(self) -> Iterator[Received]:
        """Partition by partition, the letters of a user in order, up to where the topic ended the first time."""
        settings = {**self._client, "bootstrap.servers": self._brokers, "group.id": "tastetwin-dead", "log_level": 2}
        consumer = opened(settings | {"enable.auto.commit": False, "enable.auto.offset.store": False})
        try:
            for number in partitions(consumer, self._brokers, self._topic):
                place = TopicPartition(self._topic, number)
                low, high = consumer.get_watermark_offsets(place, timeout=SECONDS)
                end = self._ends.setdefault(number, high)
                if low < end:
                    consumer.assign([TopicPartition(self._topic, number, low)])
                    yield from _until(consumer, self._brokers, self._topic, end)
        except KafkaException as error:
            raise _unreachable(self._brokers, self._topic, error.args[0].name()) from error
        finally:
            consumer.close()


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
    """All of the topic, up to now, in memory that does not grow with it.

    Raises:
        UsageError: KAFKA-CLIENT.
        StoreError: KAFKA-UNREACHABLE, KAFKA-NO-TOPIC; DISK-FULL where the machine has no room for the index.
    """
    dead = Dead(brokers, client, topic)
    for message in dead.messages():
        dead.add(message)
    return dead


def count(dead: Dead, most: int) -> list[dict[str, Any]]:
    """By reason: letters, those open, and of the open ones those tried ``most`` times."""
    query = "SELECT reason, count(*), sum(open), sum(open AND attempts >= ?) FROM known GROUP BY reason ORDER BY reason"
    return [dict(zip(("reason", "letters", "open", "exhausted"), row, strict=True)) for row in dead.ask(query, most)]


def replay(outbox: Outbox, dead: Dead, topic: str, reasons: Collection[str], most: int) -> Replayed:
    """Send open letters back, of ``reasons`` (empty = all), that were tried fewer than ``most`` times.

    Raises:
        StoreError: KAFKA-UNDELIVERED; the same again goes on from there. KAFKA-UNREACHABLE.
    """

    def fate(reason: str, attempts: int, omitted: bool) -> str:
        if reasons and reason not in reasons:
            return "others"
        return "exhausted" if attempts >= most else "omitted" if omitted else "sent"

    fates = Counter(fate(*row) for row in dead.ask("SELECT reason, attempts, omitted FROM known WHERE open"))
    if fates["sent"]:
        todo = (each for each in dead.open() if fate(each.reason, each.attempts, each.omitted) == "sent")
        fates["sent"] = 0
        while part := list(islice(todo, AT_ONCE)):
            outbox.send([send_back(letter) for letter in part])
            outbox.send([receipt(letter, topic) for letter in part])
            fates["sent"] += len(part)
    return Replayed(fates["sent"], fates["exhausted"], fates["omitted"], fates["others"])


def _name(letter: Letter) -> str:
    return ":".join(map(str, letter.origin))


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise StoreError(
            "DISK-FULL",
            place="the folder for temporary files",
            value=str(error),
            rule="it has room for some 100 bytes of each dead letter",
            fix="free some space there, or name another one in SQLITE_TMPDIR",
        ) from error


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
