"""Logs of fresh favors for tests, and what other processes do with them."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry

from tastetwin.config import GatewayConfig
from tastetwin.errors import StoreError
from tastetwin.features.favors import Favors, Like, Review
from tastetwin.serving.gateway.fresh import FreshLog, FreshMetrics, open_fresh

MEGABYTES: Final = 64
PROCESSES: Final = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.serving.gateway.fresh_logs", "tastetwin.serving.gateway.fresh_lmdb"])


class Opened:
    """A log, and what it counted."""

    def __init__(self, address: str | None, megabytes: int = MEGABYTES) -> None:
        self.registry = CollectorRegistry()
        settings = GatewayConfig(fresh=address, fresh_mb=megabytes)
        self.log: FreshLog = open_fresh(settings, FreshMetrics(self.registry))

    @property
    def damaged(self) -> float:
        return self.registry.get_sample_value("tastetwin_gateway_fresh_damaged_total") or 0.0


def users_of(log: FreshLog, cursor: int = 0) -> list[str]:
    return [record.user for record in log.since(cursor)[0]]


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


def fill(address: str) -> None:
    """In a process of its own, on a disk of its own: add until it is full; all is there yet, and goes on with room."""
    ballast = Path(f"{address}.ballast")
    ballast.write_bytes(bytes(1 << 19))
    log = Opened(address).log
    for at in itertools.count():
        came = {f"{at}-{n}": review(n, "p" * 200) for n in range(50)}
        if _refused(functools.partial(log.add_many, came, float(at))):
            break
    wanted = [f"{done}-{n}" for done in range(at) for n in range(50)]
    assert at > 2 and [record.user for record in log.since(0)[0]] == wanted
    assert _refused(lambda: log.prune(1.0))
    assert len(list(Path(address).glob("log-*"))) == 1 and [each.user for each in log.since(0)[0]] == wanted
    ballast.unlink()
    log.prune(at - 1.0)
    assert [record.user for record in log.since(0)[0]] == wanted[-50:]
    log.close()


def _refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except StoreError as error:
        assert error.problem.code == "DISK-FULL", error
        return True
    return False


if __name__ == "__main__":
    fill(sys.argv[1])
