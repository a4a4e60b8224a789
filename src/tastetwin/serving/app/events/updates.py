"""A changed twin list, as the twins topic has it: compacted, keyed by user, the last one counts.

::

    key      user id, UTF-8
    value    {"schema":1,"user":"u42","version":"2026-11-22.1","bundle":"...","as_of":"2026-11-22",
              "watermark":{"topic":"tastetwin.events","partition":3,"offset":1207},"twins":["u7","u9"]}
    headers  tastetwin-id: the same for the same event, list version and bundle, however often it is sent

No value (a tombstone) means that there is no list: too few favors yet, or opted out. ``watermark`` is the last event of
the user that the list knows. Within one partition, a value counts only if its offset is higher than that of the value
one has: a member that was cut off for a while may, rarely, send one late, and after a crash the same may come again.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

import orjson

from tastetwin.client.schemas import FavorsItem, Origin
from tastetwin.serving.app.events.letters import PREFIX, Outgoing
from tastetwin.serving.app.events.message import Headers, Message

SCHEMA: Final = 1
ID: Final = PREFIX + "id"
WATERMARK: Final = PREFIX + "watermark"


def update(topic: str, origin: Origin, item: FavorsItem, last: Message) -> Outgoing:
    """What became of a user's events, of which ``last`` was the last one."""
    lane = last.lane
    user = item.user.encode()
    mark = f"{lane.topic}:{lane.partition}:{last.offset}".encode()
    headers: Headers = [(ID, _id(user, origin, mark)), (WATERMARK, mark)]
    if item.answer is None:
        return Outgoing(topic, user, None, headers)
    value = {
        "schema": SCHEMA,
        "user": item.user,
        "version": origin.version,
        "bundle": origin.bundle,
        "as_of": origin.as_of,
        "watermark": {"topic": lane.topic, "partition": lane.partition, "offset": last.offset},
        "twins": [twin.user for twin in item.answer.twins],
    }
    return Outgoing(topic, user, orjson.dumps(value), headers)


def _id(user: bytes, origin: Origin, mark: bytes) -> bytes:
    parts: Sequence[bytes] = (user, origin.version.encode(), origin.bundle.encode(), mark)
    return blake2b(b"\0".join(parts), digest_size=16).hexdigest().encode()
