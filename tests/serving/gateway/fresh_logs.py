"""Logs of fresh favors for tests, and what other processes do with them."""

from __future__ import annotations

import itertools
from multiprocessing.connection import Connection
from typing import Final

from prometheus_client import CollectorRegistry

from tastetwin.config import GatewayConfig
from tastetwin.features.favors import Favors, Like, Review
from tastetwin.serving.gateway.fresh import FreshLog, FreshMetrics, open_fresh

MEGABYTES: Final = 64


class Opened:
    """A log, and what it counted."""

    def __init__(self, address: str | None, megabytes: int = MEGABYTES) -> None:
        self.registry = CollectorRegistry()
        settings = GatewayConfig(fresh=address, fresh_mb=megabytes)
        self.log: FreshLog = open_fresh(settings, FreshMetrics(self.registry))

    @property
    def damaged(self) -> float:
        return self.registry.get_sample_value("tastetwin_gateway_fresh_damaged_total") or 0.0


def review(number: int, place: str = "p", rating: float | None = 4.0) -> Favors:
    return Favors((Review(f"r{number}", place, rating, 1_790_000_000_000_000 + number, False),), ())


def like(number: int, place: str = "p") -> Favors:
    return Favors((), (Like(place, None, 1_790_000_000_000_000 + number),))


def add_for_all(address: str, users: list[str], first: int, calls: int) -> None:
    """In a process of its own: one favor more for each user, call after call."""
    log = Opened(address).log
    for at in range(first, first + calls):
        log.add_many({user: review(at) for user in users}, float(at))
    log.close()


def add_until_killed(address: str, first: int, told: Connection) -> None:
    """In a process of its own: tells every number that was acknowledged."""
    log = Opened(address).log
    for at in itertools.count(first):
        log.add_many({f"user-{at % 7}": review(at), f"user-{at % 3}-other": like(at)}, float(at))
        told.send(at)


def add_once(address: str, user: str, number: int) -> None:
    """In a process of its own."""
    log = Opened(address).log
    log.add_many({user: review(number)}, float(number))
    log.close()
