"""The door for events: what one message of the topic says, or why it cannot be used.

A message's value is one JSON object: a review or a like by the source's field names, with ``user_idno``, as in a line
of reviews.jsonl or likes.jsonl. Which of the two it is: by the field ``kind`` (``review`` or ``like``) where there is
one, else by the place field it has, ``review_place_id`` or ``like_contentsid``. Its key is the user's id, so that one
user's events are in one partition and keep their order; events are read by what is in them, never by the key.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import Message as Received
from pydantic import ValidationError

from tastetwin.client.schemas import FavorEvent
from tastetwin.jsonline import Refused, parse_line
from tastetwin.mart.coerce import Unusable, text
from tastetwin.mart.rules import GateRules
from tastetwin.schema import LIKE_CONTENTS, REVIEW_PLACE, USER
from tastetwin.serving.app.events.lanes import Lane

Headers = list[tuple[str, bytes | None]]
KIND: Final = "kind"


@dataclass(slots=True, eq=False)
class Message:
    """A message from its arrival until it is done with."""

    lane: Lane
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    at: int
    """When it was written, milliseconds since 1970; 0 = not known."""
    event: FavorEvent | None = None
    reason: str = ""
    """Why it is a dead letter; empty = it is none."""


def receive(raw: Received, lane: Lane) -> Message:
    """Copy what is needed."""
    return Message(lane, raw.offset() or 0, raw.key(), raw.value(), headers_of(raw), max(raw.timestamp()[1], 0))


def headers_of(raw: Received) -> Headers:
    """Of a message; none where confluent-kafka cannot read them, which a name that is not UTF-8 suffices for."""
    try:
        found: Any = raw.headers()
        return list(found or ())
    except (SystemError, UnicodeDecodeError):  # asked again, it would give out a broken list
        return []


def read(messages: Iterable[Message], rules: GateRules, most: int) -> None:
    """Fill in ``event`` or ``reason`` of each; ``most`` bytes are read of none."""
    for message in messages:
        try:
            message.event = read_event(message.value, rules, most)
        except Refused as refused:
            message.reason = refused.reason


def read_event(value: bytes | None, rules: GateRules, most: int) -> FavorEvent:
    """What a message says.

    Raises:
        Refused: no_value, too_large, kind_missing, kind_unknown, ``user_<reason>``, event; those of ``parse_line``.
    """
    if not value:
        raise Refused("no_value")
    if len(value) > most:
        raise Refused("too_large")
    fields = parse_line(value)
    user = _user(fields.pop(USER, None), rules)
    kind = _kind(fields)
    try:
        return FavorEvent(user=user, review=fields) if kind == "review" else FavorEvent(user=user, like=fields)
    except ValidationError:
        raise Refused("event") from None


def _user(value: object, rules: GateRules) -> str:
    """The id as the mart would have it: " 42", 42 and "42" are one user."""
    if value is None:
        raise Refused("user_missing")
    try:
        return text(value, rules, [])
    except Unusable as unusable:
        raise Refused(f"user_{unusable.reason}") from None


def _kind(fields: dict[str, Any]) -> str:
    said = fields.pop(KIND, None)
    if said is not None:
        if said not in ("review", "like"):
            raise Refused("kind_unknown")
        return str(said)
    if (REVIEW_PLACE in fields) == (LIKE_CONTENTS in fields):
        raise Refused("kind_missing")
    return "review" if REVIEW_PLACE in fields else "like"
