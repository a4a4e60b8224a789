"""Dead letters: messages that cannot be used, as they came, with where they came from and why.

Headers say it; key and value are the original's bytes. A receipt, in the same topic, says that a letter was sent back
to where it came from: nothing in the topic is ever moved.
"""

from __future__ import annotations

import re
import time
from typing import Final, NamedTuple

from tastetwin import __version__
from tastetwin.serving.app.events.message import Headers, Message

PREFIX: Final = "tastetwin-"
ATTEMPTS: Final = PREFIX + "attempts"
FIRST_SEEN: Final = PREFIX + "first-seen"
OMITTED: Final = PREFIX + "omitted"
"""In place of a value that the topic does not take: its length. The original is at its offset for as long as it is."""
RECEIPT: Final = PREFIX + "receipt"
SHORT: Final = 4_096
"""Bytes of a key, and of the original's headers together, that any topic takes."""
_MOMENT: Final = re.compile(rb"[0-9TZ:-]{20}")
_NAME: Final = re.compile(r"(.+):(\d{1,18}):(\d{1,18})", re.ASCII)


class Outgoing(NamedTuple):
    """A message to be sent."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    may_shrink: bool = False
    """Whether it says enough without its value, where the topic takes no such length."""


class Origin(NamedTuple):
    """Which message a letter is about: the letter's name. The same one twice is one letter."""

    topic: str
    partition: int
    offset: int


class Letter(NamedTuple):
    """A dead letter, as read back."""

    origin: Origin
    reason: str
    attempts: int
    first_seen: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    """The original's own."""
    omitted: bool


def bury(message: Message, topic: str) -> Outgoing:
    """The dead letter of a message that has a reason."""
    said = dict(message.headers)
    own: Headers = [
        (PREFIX + "topic", message.lane.topic.encode()),
        (PREFIX + "partition", b"%d" % message.lane.partition),
        (PREFIX + "offset", b"%d" % message.offset),
        (PREFIX + "reason", message.reason.encode()),
        (ATTEMPTS, b"%d" % (_number(said.get(ATTEMPTS)) + 1)),
        (PREFIX + "version", __version__.encode()),
        (FIRST_SEEN, _moment(said.get(FIRST_SEEN))),
    ]
    return Outgoing(topic, message.key, message.value, [*_foreign(message.headers), *own], may_shrink=True)


def shrunk(letter: Outgoing) -> Outgoing:
    """Where the topic does not take as much: without the value, and without a key or headers that are as long."""
    own = [each for each in letter.headers if each[0].startswith(PREFIX)]
    others = _foreign(letter.headers)
    key = letter.key if len(letter.key or b"") <= SHORT else None
    kept = others if sum(len(name) + len(value or b"") for name, value in others) <= SHORT else []
    return Outgoing(letter.topic, key, b"", [*kept, *own, (OMITTED, b"%d" % len(letter.value or b""))])


def open_letter(key: bytes | None, value: bytes | None, headers: Headers) -> Letter | None:
    """What was buried; None for a message that is no letter."""
    said = dict(headers)
    topic = said.get(PREFIX + "topic")
    if topic is None or RECEIPT in said:
        return None
    return Letter(
        Origin(_text(topic), _number(said.get(PREFIX + "partition")), _number(said.get(PREFIX + "offset"))),
        _text(said.get(PREFIX + "reason")),
        _number(said.get(ATTEMPTS)),
        _text(said.get(FIRST_SEEN)),
        key,
        value,
        _foreign(headers),
        OMITTED in said,
    )


def send_back(letter: Letter) -> Outgoing:
    """The original once more; it remembers how often it was tried."""
    counted: Headers = [(ATTEMPTS, b"%d" % letter.attempts), (FIRST_SEEN, letter.first_seen.encode())]
    return Outgoing(letter.origin.topic, letter.key, letter.value, [*letter.headers, *counted])


def receipt(letter: Letter, topic: str) -> Outgoing:
    """That a letter was sent back."""
    topic_of, partition, offset = letter.origin
    return Outgoing(topic, letter.key, b"", [(RECEIPT, f"{topic_of}:{partition}:{offset}".encode())])


def read_receipt(headers: Headers) -> Origin | None:
    """Which letter was sent back; None for a message that is no receipt."""
    found = _NAME.fullmatch(_text(dict(headers).get(RECEIPT)))
    return None if found is None else Origin(found[1], int(found[2]), int(found[3]))


def _foreign(headers: Headers) -> Headers:
    return [(name, value) for name, value in headers if not name.startswith(PREFIX)]


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")


def _number(value: bytes | None) -> int:
    """Headers are anybody's to write."""
    return int(value) if value is not None and value.isdigit() and len(value) < 19 else 0


def _moment(said: bytes | None) -> bytes:
    """As ``_now`` wrote it; now, where it is not known or somebody else's."""
    return said if said is not None and _MOMENT.fullmatch(said) else _now()


def _now() -> bytes:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()).encode()
