"""Fresh favors in Redis: the gateways of several machines share them.

What Redis answered for is kept as durably as Redis keeps things: with ``appendonly yes`` and ``appendfsync always`` it
outlives a power cut of its machine, with ``everysec`` up to a second of it may be lost, and a replica that takes over
may lack what had not reached it. ``maxmemory-policy`` must be ``noeviction`` or a ``volatile-`` one.

Merging is done here: read, merge, and write if nobody wrote in between, by a script that Redis runs whole. Numbers
follow Redis's clock, so they ascend even past a loss of data, and no gateway takes what is new for old.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, TypeVar

from tastetwin.errors import MissingExtra, StoreError
from tastetwin.features.favors import Favors
from tastetwin.masks import masked
from tastetwin.privacy.opt_out import name_of
from tastetwin.serving.gateway.fresh import FreshMetrics, FreshRecord, dump, grown, key_of, load
from tastetwin.serving.gateway.outputs import seal
from tastetwin.serving.redis_client import ERRORS, client_of

try:
    from redis import OutOfMemoryError
except ImportError as error:
    raise MissingExtra.of("redis", "serve") from error

SECONDS: Final = 1.0
"""That one call may wait for the connection, and again for the answer."""
ATTEMPTS: Final = 200
"""To write before another gateway does; of all that try at once, one succeeds."""
PAGE: Final = 500
"""Records of one call: Redis answers nobody else meanwhile."""
KEYS: Final = ("tastetwin:{fresh}:records", "tastetwin:{fresh}:numbers", "tastetwin:{fresh}:last")
"""Hash of key -> sealed record, sorted set of key by number, the last number given; in one slot of a cluster."""

_READ: Final = """
local values = redis.call('HMGET', KEYS[1], unpack(ARGV))
local numbers = {}
for at, key in ipairs(ARGV) do numbers[at] = redis.call('ZSCORE', KEYS[2], key) or '' end
return {values, numbers}
"""
_WRITE: Final = """
for at = 1, #ARGV, 3 do
  if (redis.call('ZSCORE', KEYS[2], ARGV[at]) or '') ~= ARGV[at + 1] then return false end
end
local now = redis.call('TIME')
local number = math.max(tonumber(redis.call('GET', KEYS[3]) or 0), now[1] * 1000000 + now[2])
local given = {}
for at = 1, #ARGV, 3 do
  number = number + 1
  local text = string.format('%.0f', number)
  redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 2])
  redis.call('ZADD', KEYS[2], text, ARGV[at])
  table.insert(given, text)
end
redis.call('SET', KEYS[3], string.format('%.0f', number))
return given
"""
_SINCE: Final = """
local found = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])
local rows = {}
for at = 1, #found, 2 do
  rows[#rows + 1] = {found[at], found[at + 1], redis.call('HGET', KEYS[1], found[at])}
end
return rows
"""
_REMOVE: Final = """
for at = 1, #ARGV, 2 do
  if ARGV[at + 1] == '' or redis.call('ZSCORE', KEYS[2], ARGV[at]) == ARGV[at + 1] then
    redis.call('HDEL', KEYS[1], ARGV[at])
    redis.call('ZREM', KEYS[2], ARGV[at])
  end
end
"""
Answer = TypeVar("Answer")


class RedisLog:
    """A Redis server, by its address."""

    def __init__(self, address: str, metrics: FreshMetrics) -> None:
        """Prepare a client; nothing is connected yet.

        Raises:
            UsageError: FRESH-ADDRESS.
        """
        self._place, self._metrics = masked(address), metrics
        self._client = client_of(address, SECONDS, "FRESH-ADDRESS", "gateway.fresh")
        self._read, self._write, self._since, self._remove = map(
            self._client.register_script, (_READ, _WRITE, _SINCE, _REMOVE)
        )

    # -- the contract -------------------------------------------------------------------------------------------------

    def add_many(self, came: Mapping[str, Favors], arrived: float) -> list[FreshRecord]:
        """As ``FreshLog`` says."""
        keys = [key_of(name_of(user)) for user in came]
        for attempt in range(ATTEMPTS if keys else 0):
            sealed, numbers = self._call(lambda: self._read(KEYS, keys))
            known = [self._record(*row) for row in zip(keys, sealed, numbers, strict=True)]
            records = [
                grown(before, user, new, arrived, 0) for before, (user, new) in zip(known, came.items(), strict=True)
            ]
            given = self._try(keys, numbers, records)
            if given is not None:
                return [FreshRecord(r.user, r.favors, r.arrived, int(at)) for r, at in zip(records, given, strict=True)]
            time.sleep(random.random() * 0.001 * min(attempt, 20))
        if keys:
            raise self._unreachable("other gateways write to the same records all the time")
        return []

    def _try(self, keys: list[bytes], numbers: list[bytes], records: list[FreshRecord]) -> list[bytes] | None:
        """The numbers given; None where another gateway was first."""
        rows = zip(keys, numbers, records, strict=True)
        words = [word for key, number, record in rows for word in (key, number, seal(key, dump(record)))]
        given: list[bytes] | None = self._call(lambda: self._write(KEYS, words))
        return given

    def since(self, cursor: int) -> tuple[list[FreshRecord], int]:
        """As ``FreshLog`` says."""
        found: dict[bytes, FreshRecord] = {}
        while rows := self._page(cursor):
            for key, number, sealed in rows:
                record = self._record(key, sealed, number)
                found.pop(key, None)  # of one that changed between two pages, the last stands
                if record is not None:
                    found[key] = record
            cursor = int(rows[-1][1])
        return list(found.values()), cursor

    def _page(self, cursor: int) -> list[tuple[bytes, bytes, bytes | None]]:
        rows: list[tuple[bytes, bytes, bytes | None]] = self._call(lambda: self._since(KEYS, [cursor, PAGE]))
        return rows

    def remove(self, names: Collection[str]) -> None:
        """As ``FreshLog`` says; Redis's own files are free of them once it has rewritten its log."""
        self._drop([(key_of(name), b"") for name in names])

    def prune(self, before: float) -> None:
        """As ``FreshLog`` says."""
        records, _ = self.since(0)
        old = [record for record in records if record.arrived < before]
        self._drop([(key_of(name_of(record.user)), b"%d" % record.number) for record in old])

    def close(self) -> None:
        """As ``FreshLog`` says."""
        self._client.close()

    # -- calls --------------------------------------------------------------------------------------------------------

    def _drop(self, gone: Sequence[tuple[bytes, bytes]]) -> None:
        """Remove keys; those with a number only if they still have it."""
        for start in range(0, len(gone), PAGE):
            words = [word for pair in gone[start : start + PAGE] for word in pair]
            self._call(functools.partial(self._remove, KEYS, words))

    def _record(self, key: bytes, sealed: bytes | None, number: bytes) -> FreshRecord | None:
        """The record; None where there is none that can be read."""
        content = self._metrics.unsealed(key, sealed)
        return None if content is None else load(content, int(number))

    def _call(self, call: Callable[[], Answer]) -> Answer:
        try:
            return call()
        except OutOfMemoryError as error:
            raise StoreError(
                "FRESH-FULL",
                place=self._place,
                value="Redis has no memory left",
                rule="room for the favors that come in",
                fix="raise Redis's maxmemory, or publish a newer run",
            ) from error
        except ERRORS as error:
            raise self._unreachable(type(error).__name__) from error

    def _unreachable(self, value: str) -> StoreError:
        return StoreError(
            "FRESH-UNREACHABLE",
            place=self._place,
            value=value,
            rule="favors are taken in only if they are kept",
            fix="see that Redis runs and can be reached, then send the events again",
        )
