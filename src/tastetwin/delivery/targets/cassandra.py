"""Cassandra: a table per version, and in ``result_versions`` the row that names the one to read.

Replacing that one row is the swap. There is no transaction around a load: what a killed one left is dropped by the
next. The lock is a row of the same table, taken by a lightweight transaction; that of a killed load expires.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from tastetwin.delivery.targets.base import LOST, Version, bad_address, failed, renewed
from tastetwin.delivery.targets.encode import json_lists
from tastetwin.errors import MissingExtra
from tastetwin.masks import masked
from tastetwin.schema import RESULT

try:
    from cassandra import ConsistencyLevel, DriverException, OperationTimedOut
    from cassandra.auth import PlainTextAuthProvider
    from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable, Session
    from cassandra.concurrent import execute_concurrent_with_args
    from cassandra.policies import DCAwareRoundRobinPolicy
    from cassandra.query import tuple_factory
except ImportError as error:
    raise MissingExtra.of("cassandra-driver", "cassandra") from error

LEASE_SECONDS: Final = 600
"""How long a killed load keeps others out; a living one renews its lock."""
CONCURRENCY: Final = 64
"""Writes under way at a time."""
SCAN_ROWS: Final = 1_000
"""Of a page, when a whole table is read."""
_NAME: Final = re.compile(r"[a-z]\w{0,19}", re.ASCII)
"""A table of ours has 27 characters more, and Cassandra's names at most 48."""
_VERSION: Final = r"_\d{4}_\d\d_\d\d_\d+_[0-9a-f]{12}"
_COLUMNS: Final = ("idno", "logical_date", "favors", "places", "home_region", "twins")
_TYPES: Final = "idno text PRIMARY KEY, logical_date text, favors int, places int, home_region text, twins text"


@contextmanager
def open_cassandra(address: str, table: str) -> Iterator[Cassandra]:
    """The keyspace that the address names; see ``base.open_target``."""
    parts = urlsplit(address)
    keyspace = parts.path[1:]
    if not (keyspace and _NAME.fullmatch(table)) or parts.query:
        raise bad_address("a keyspace, no option but ?table=, and a lower-case name of 20 characters at most")
    place = f"{masked(address)}, {table}"
    named = parts.netloc.rpartition("@")[2].split(",")
    hosts = [host.rpartition("]")[0].lstrip("[") or host.partition(":")[0] for host in named]
    user, password = (unquote(part or "") for part in (parts.username, parts.password))
    profile = ExecutionProfile(
        DCAwareRoundRobinPolicy(),
        consistency_level=ConsistencyLevel.LOCAL_QUORUM,
        request_timeout=60,
        row_factory=tuple_factory,
    )
    cluster = Cluster(
        hosts,
        port=_port(parts.netloc),
        auth_provider=PlainTextAuthProvider(user, password) if user else None,
        protocol_version=4,
        schema_metadata_enabled=False,
        token_metadata_enabled=False,
        execution_profiles={EXEC_PROFILE_DEFAULT: profile},
    )
    with cluster, _coded_errors(place):
        try:
            session = cluster.connect(keyspace)
        except NoHostAvailable:
            raise failed("DATABASE-UNREACHABLE", place, "no server answered, or none lets the user in") from None
        target = Cassandra(session, keyspace, place, table)
        target.lock()
        try:
            with renewed(target.renew):
                yield target
        finally:
            target.unlock()


def _port(netloc: str) -> int:
    ports = re.findall(r":(\d+)(?:,|$)", netloc.rpartition("@")[2])
    return int(ports[0]) if ports else 9042


class Cassandra:
    """``base.Target``; ``SELECT shown FROM result_versions WHERE name = 'result'`` says which table to ask.

    Statements have names of tables put into them, for CQL binds none (nosec B608): letters, digits and ``_``, as
    ``_NAME`` and ``Version.name`` see to. All values are bound.
    """

    def __init__(self, session: Session, keyspace: str, place: str, name: str) -> None:
        self._session, self._keyspace, self._table, self.place = session, keyspace, name, place
        self._notes = f"{name}_versions"
        self._owner = uuid.uuid4().hex
        self._session.execute(
            f"CREATE TABLE IF NOT EXISTS {self._notes} (name text PRIMARY KEY, shown text, kept text, owner text)"
        )

    def lock(self) -> None:
        """Hold off other loads of this table, from now for ``LEASE_SECONDS``.

        Raises:
            StoreError: DATABASE-BUSY when another load has the lock.
        """
        lease = f"USING TTL {LEASE_SECONDS}"
        take = f"INSERT INTO {self._notes} (name, owner) VALUES ('lock', ?) IF NOT EXISTS {lease}"  # nosec B608
        if not self._do(take, self._owner)[0][0]:
            raise failed("DATABASE-BUSY", self.place, "another load is under way, or was killed minutes ago")

    def renew(self) -> None:
        """Hold the lock from now for ``LEASE_SECONDS``; once lost it is not taken again, for others may have been here.

        Raises:
            StoreError: DATABASE-BUSY when it is lost.
        """
        lease = f"USING TTL {LEASE_SECONDS}"
        renew = f"UPDATE {self._notes} {lease} SET owner = ? WHERE name = 'lock' IF owner = ?"  # nosec B608
        if not self._do(renew, self._owner, self._owner)[0][0]:
            raise failed("DATABASE-BUSY", self.place, LOST)

    def unlock(self) -> None:
        """Let others load; where the server is out of reach, time does it."""
        with suppress(DriverException, NoHostAvailable):
            self._do(f"DELETE FROM {self._notes} WHERE name = 'lock' IF owner = ?", self._owner)  # nosec B608

    def versions(self) -> list[Version]:
        """As the pointer's row says."""
        found = self._do(f"SELECT kept FROM {self._notes} WHERE name = ?", self._table)  # nosec B608
        return [Version(**each) for each in json.loads(found[0][0])] if found else []

    def load(self, version: Version, batches: Iterable[pa.Table]) -> int:
        """Rows one by one, many at a time; acknowledged by a quorum."""
        self._drop_all_but(self.versions())
        table = self._name(version)
        self._session.execute(f"CREATE TABLE {table} ({_TYPES})")
        marks = ", ".join("?" for _ in _COLUMNS)
        insert = self._session.prepare(f"INSERT INTO {table} ({', '.join(_COLUMNS)}) VALUES ({marks})")  # nosec B608
        insert.is_idempotent = True
        for batch in batches:
            self.renew()
            execute_concurrent_with_args(self._session, insert, _rows(batch), concurrency=CONCURRENCY)
        return sum(1 for _ in self._scan(f"SELECT idno FROM {table}"))  # nosec B608

    def read(self, version: Version, users: Sequence[str]) -> pa.Table:
        """As the columns say."""
        query = f"SELECT {', '.join(_COLUMNS)} FROM {self._name(version)} WHERE idno = ?"  # nosec B608
        rows = [row for user in users for row in self._do(query, user)]
        plain = [(*row[:-1], json.loads(row[-1], parse_int=float)) for row in rows]
        return pa.Table.from_pylist(
            [{"idno": idno, "payload": dict(zip(_COLUMNS[1:], rest, strict=True))} for idno, *rest in plain], RESULT
        )

    def people(self, version: Version) -> Iterator[str]:
        """One scan of the table."""
        for idno, text in self._scan(f"SELECT idno, twins FROM {self._name(version)}"):  # nosec B608
            yield from (idno, *(twin["twin_idno"] for twin in json.loads(text)))

    def erase(self, version: Version, users: Sequence[str]) -> None:
        """A row each, and one scan of the table for the lists of others."""
        table, gone = self._name(version), set(users)
        delete = self._session.prepare(f"DELETE FROM {table} WHERE idno = ?")  # nosec B608
        execute_concurrent_with_args(self._session, delete, [(user,) for user in gone], concurrency=CONCURRENCY)
        update = self._session.prepare(f"UPDATE {table} SET twins = ? WHERE idno = ?")  # nosec B608
        for idno, text in self._scan(f"SELECT idno, twins FROM {table}"):  # nosec B608
            twins = json.loads(text)
            left = [twin for twin in twins if twin["twin_idno"] not in gone]
            if len(left) < len(twins):
                self._session.execute(update, (json.dumps(left, ensure_ascii=False), idno))

    def show(self, versions: Sequence[Version]) -> None:
        """One row says which table is shown and which are kept."""
        self.renew()
        kept = json.dumps([asdict(version) for version in versions])
        update = f"UPDATE {self._notes} SET shown = ?, kept = ? WHERE name = ?"  # nosec B608
        self._do(update, self._name(versions[0]), kept, self._table)
        self._drop_all_but(versions)

    def _drop_all_but(self, versions: Sequence[Version]) -> None:
        kept = {self._name(version) for version in versions}
        query = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ?"
        for (name,) in self._do(query, self._keyspace):
            if re.fullmatch(re.escape(self._table) + _VERSION, name) and name not in kept:
                self._session.execute(f"DROP TABLE {name}")

    def _scan(self, query: str) -> Iterator[tuple[Any, ...]]:
        statement = self._session.prepare(query)
        statement.fetch_size = SCAN_ROWS
        yield from self._session.execute(statement)

    def _do(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        return list(self._session.execute(self._session.prepare(query), values))

    def _name(self, version: Version) -> str:
        return f"{self._table}_{version.name}"


def _rows(batch: pa.Table) -> list[tuple[Any, ...]]:
    payload = batch.combine_chunks().column("payload").combine_chunks()
    columns = [payload.field(name) for name in _COLUMNS[1:-1]]
    lists = [batch.column("idno"), *columns, json_lists(payload.field("twins"))]
    return list(zip(*(column.to_pylist() for column in lists), strict=True))


@contextmanager
def _coded_errors(place: str) -> Iterator[None]:
    try:
        yield
    except (NoHostAvailable, OperationTimedOut) as error:
        raise failed("DATABASE-BROKEN-OFF", place, type(error).__name__) from error
    except DriverException as error:
        raise failed("DATABASE-REFUSED", place, str(error).split("\n")[0]) from error
