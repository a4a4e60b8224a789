"""Favors that came since the run: kept, so that neither a restart nor another gateway loses them.

One record a user: all that came, merged as the mart merges what lands on one day. Once the run that has them is
published they say nothing new, and go.

Three logs of one contract: this process's memory, LMDB (``fresh_lmdb``: all gateways of a machine share a folder),
Redis (``fresh_redis``: several machines).
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final, Protocol

import orjson
from prometheus_client import CollectorRegistry, Counter

from tastetwin.config import GatewayConfig
from tastetwin.features.favors import Favors, Like, Review, landed
from tastetwin.privacy.opt_out import name_of
from tastetwin.serving.addresses import is_redis
from tastetwin.serving.gateway.outputs import unseal

KEPT_DAYS: Final = 1
"""Favors of the day before the run's last are kept yet: the source may have delivered them late."""

_ARRIVED: Final = struct.Struct("<d")


@dataclass(frozen=True)
class FreshRecord:
    """What came of one user."""

    user: str
    favors: Favors
    arrived: float
    """When the last of it came, seconds since 1970."""
    number: int
    """Of its last change: ascends over all users."""


class FreshLog(Protocol):
    """Records by user, and in the order of their last change. What ``add_many`` returned from is kept.

    Calls may come from any thread, and wait for a disk or a network: they are made beside the event loop. All but
    ``close`` raise StoreError: FRESH-UNREACHABLE, FRESH-FULL, DISK-FULL, FRESH-DAMAGED, STORE-UNWRITABLE; of an
    ``add_many`` that raised, nothing or, where an answer was lost, everything is kept: adding it again is right.
    A record that cannot be read is left out and counted.
    """

    def add_many(self, came: Mapping[str, Favors], arrived: float) -> list[FreshRecord]:
        """Merge what came into the records of its users, at once; returns the whole of each, in the same order."""

    def since(self, cursor: int) -> tuple[list[FreshRecord], int]:
        """Records of which the number is beyond ``cursor`` (0 = all), ascending, and the cursor for next time."""

    def remove(self, names: Collection[str]) -> None:
        """Forget the users whose ids have these hashes (``opt_out.name_of``)."""

    def prune(self, before: float) -> None:
        """Drop records that nothing was added to since then, seconds since 1970."""

    def close(self) -> None:
        """Give back what is held open."""


class FreshMetrics:
    """What the log could not read."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.damaged = Counter(
            "tastetwin_gateway_fresh_damaged", "Damaged records of fresh favors that were met", registry=registry
        )

    def unsealed(self, key: bytes, sealed: bytes | None) -> bytes | None:
        """What a log has under a key; None where there is nothing, or what is damaged, which is counted."""
        content = unseal(key, sealed)
        if content is None and sealed is not None:
            self.damaged.inc()
        return content


def open_fresh(settings: GatewayConfig, metrics: FreshMetrics) -> FreshLog:
    """The log that ``gateway.fresh`` names.

    Raises:
        UsageError: FRESH-ADDRESS when it is neither a folder nor a Redis address.
        StoreError: STORE-UNWRITABLE, FRESH-DAMAGED of a folder; a Redis is not asked yet.
        MissingExtra: the client of that log is not installed.
    """
    address = settings.fresh
    if not address:
        return MemoryLog()
    if is_redis(address, "FRESH-ADDRESS", "gateway.fresh"):
        from tastetwin.serving.gateway.fresh_redis import RedisLog

        return RedisLog(address, metrics)
    from tastetwin.serving.gateway.fresh_lmdb import LmdbLog

    return LmdbLog(address, settings.fresh_mb << 20, metrics)


def key_of(name: str) -> bytes:
    """[16] key of the record of whose id hashes to ``name``: whoever is to be forgotten is found without the id."""
    return bytes.fromhex(name)


def said_by_run(logical_date: str) -> float:
    """Before which moment a record must have arrived for the run of that date to have all of it."""
    day = date.fromisoformat(logical_date) - timedelta(days=KEPT_DAYS)
    return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()


def grown(known: FreshRecord | None, user: str, new: Favors, arrived: float, number: int) -> FreshRecord:
    """A user's record after ``new`` came."""
    if known is None:
        return FreshRecord(user, new, arrived, number)
    return FreshRecord(user, landed(known.favors, new), max(arrived, known.arrived), number)


def dump(record: FreshRecord) -> bytes:
    """All but the number: when the last of it came, then the rest as JSON."""
    reviews, likes = ([tuple(each) for each in part] for part in record.favors)
    return _ARRIVED.pack(record.arrived) + orjson.dumps([record.user, reviews, likes])


def load(content: bytes, number: int) -> FreshRecord:
    """What ``dump`` wrote."""
    user, reviews, likes = orjson.loads(content[_ARRIVED.size :])
    favors = Favors(tuple(Review(*each) for each in reviews), tuple(Like(*each) for each in likes))
    return FreshRecord(user, favors, arrived_of(content), number)


def arrived_of(content: bytes) -> float:
    """``arrived`` of what ``dump`` wrote."""
    return float(_ARRIVED.unpack_from(content)[0])


class MemoryLog:
    """Of this process alone, for as long as it lives: for trying things out."""

    def __init__(self) -> None:
        self._records: dict[str, FreshRecord] = {}
        """By ``name_of`` the user, in the order of their numbers."""
        self._last = 0
        self._lock = threading.Lock()

    def add_many(self, came: Mapping[str, Favors], arrived: float) -> list[FreshRecord]:
        """As ``FreshLog`` says."""
        with self._lock:
            return [self._add(user, new, arrived) for user, new in came.items()]

    def _add(self, user: str, new: Favors, arrived: float) -> FreshRecord:
        name = name_of(user)
        self._last += 1
        record = grown(self._records.pop(name, None), user, new, arrived, self._last)
        self._records[name] = record
        return record

    def since(self, cursor: int) -> tuple[list[FreshRecord], int]:
        """As ``FreshLog`` says."""
        with self._lock:
            return [record for record in self._records.values() if record.number > cursor], self._last

    def remove(self, names: Collection[str]) -> None:
        """As ``FreshLog`` says."""
        with self._lock:
            for name in names:
                self._records.pop(name, None)

    def prune(self, before: float) -> None:
        """As ``FreshLog`` says."""
        with self._lock:
            self._records = {name: record for name, record in self._records.items() if record.arrived >= before}

    def close(self) -> None:
        """Nothing is open."""
