"""What a database must be able to do, and how one is opened by its address."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Final, Protocol

import pyarrow as pa

from tastetwin.errors import StoreError, UsageError

TABLE: Final = "result"
RENEW_SECONDS: Final = 60.0
"""Between two renewals of a lock that runs out: a tenth of what it lasts."""
LOST: Final = "the lock was lost: for minutes the server heard nothing of this load"
_HOST: Final = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(:\d*)?")


@dataclass(frozen=True)
class Version:
    """One complete table of lists in a database."""

    run_id: str
    contents: str
    """First 12 hex digits of the digest of the run's ``result``: runs of different stores may share an id."""
    opted_out: str
    """First 12 hex digits of the digest of the opt-outs of which nobody is in this table."""

    @property
    def name(self) -> str:
        """What its table is told apart by, fit for an identifier."""
        return re.sub(r"\W", "_", f"{self.run_id}_{self.contents}")


class Target(Protocol):
    """An opened database, held by this process alone for as long as it is open.

    All methods raise StoreError DATABASE-REFUSED, DATABASE-FULL, DATABASE-BROKEN-OFF.
    """

    place: str
    """The address, without user and password."""

    def versions(self) -> list[Version]:
        """Complete versions: what readers see first, then what they saw before; empty before the first load."""

    def load(self, version: Version, batches: Iterable[pa.Table]) -> int:
        """Write a version that no reader sees, from tables of ``schema.RESULT``; returns the rows the database counts.

        What a killed load left of it is removed first.
        """

    def read(self, version: Version, users: Sequence[str]) -> pa.Table:
        """``schema.RESULT``: the rows of these users in a version, in any order."""

    def people(self, version: Version) -> Iterator[str]:
        """Everybody who has a row in a version or is in a list there, some of them more than once."""

    def erase(self, version: Version, users: Sequence[str]) -> None:
        """Remove the rows of these users from a version, and the users from everybody's lists."""

    def show(self, versions: Sequence[Version]) -> None:
        """Make readers see the first of these versions, from one moment to the next; keep the others, drop all else.

        The last thing asked of an opened target. Raises StoreError DATABASE-BUSY when readers leave no moment for it.
        """


def open_target(address: str) -> AbstractContextManager[Target]:
    """The database at ``postgresql://``, ``mongodb://`` or ``cassandra://``, of which ``?table=`` names the table.

    Raises:
        UsageError: DATABASE-ADDRESS.
        MissingExtra: for the driver.
        StoreError: DATABASE-UNREACHABLE, DATABASE-BUSY when another load is under way, DATABASE-REFUSED,
            DATABASE-OTHER when something else goes by that name.
    """
    scheme = address.partition("://")[0]
    if scheme in ("postgresql", "postgres"):
        from tastetwin.delivery.targets.postgresql import open_postgresql

        return open_postgresql(*split_table(address))
    if scheme in ("mongodb", "mongodb+srv"):
        from tastetwin.delivery.targets.mongodb import open_mongodb

        return open_mongodb(*split_table(address))
    if scheme == "cassandra":
        from tastetwin.delivery.targets.cassandra import open_cassandra

        return open_cassandra(*split_table(address))
    raise bad_address("an unknown scheme, or none")


@contextmanager
def renewed(renew: Callable[[], None]) -> Iterator[None]:
    """Keep a lock that runs out for as long as the block works: one scan or command may take longer than it lasts.

    A renewal that fails is tried again. That the lock is lost, the block hears when it renews it itself, as it must
    before it writes more.
    """
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(RENEW_SECONDS):
            with suppress(Exception):
                renew()

    thread = threading.Thread(target=beat, name="tastetwin-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def split_table(address: str) -> tuple[str, str]:
    """The address without its ``table=``, and the table.

    Raises:
        UsageError: DATABASE-ADDRESS where a driver would take pieces of a password for something else, and show them.
    """
    head, _, query = address.partition("?")
    server, _, path = head.partition("://")[2].partition("/")
    if server.count("@") > 1 or "@" in path + query:
        raise bad_address("an @ too many")
    if not all(_HOST.fullmatch(host) for host in server.rpartition("@")[2].split(",")):
        raise bad_address("a port that is no number")
    options = [option for option in query.split("&") if option]
    table = [option.removeprefix("table=") for option in options if option.startswith("table=")]
    rest = "&".join(option for option in options if not option.startswith("table="))
    return f"{head}?{rest}" if rest else head, table[-1] if table else TABLE


def bad_address(value: str) -> UsageError:
    """The address makes no sense, so no part of it is known to be harmless."""
    return UsageError(
        "DATABASE-ADDRESS",
        place="--to",
        value=value,
        rule="postgresql://, mongodb:// or cassandra://[user[:password]@]host[:port]/database[?table=result]",
        fix="check --to; special characters are percent-encoded",
    )


def failed(code: str, place: str, value: str) -> StoreError:
    """What a database, or the way to it, did not do."""
    rule, fix = _FAILURES[code]
    return StoreError(code, place=place, value=value, rule=rule, fix=fix)


_FAILURES: Final = {
    "DATABASE-UNREACHABLE": ("a server answers there and lets the user in", "check host, port, user and password"),
    "DATABASE-BROKEN-OFF": (
        "the connection holds until all is done",
        "run the same command again",
    ),
    "DATABASE-REFUSED": ("the user may create, fill and drop tables there", "see what the server says"),
    "DATABASE-FULL": ("the server has room for one more version", "free some space there, then run the command again"),
    "DATABASE-BUSY": ("one load at a time, and a moment between readers", "run the same command again later"),
    "DATABASE-OTHER": ("nothing, or what tastetwin load has made", "name another table: ?table=..."),
    "DATABASE-CHECK": ("what was loaded is what was sent", "run the same command again"),
    "DATABASE-NO-PREVIOUS": ("an earlier version is kept", "promote an earlier run in the store, then load it"),
}
"""Code -> rule and fix."""
