"""Every kind of database behind one face: where it is, what its readers see, and which tables it holds."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import psycopg
import pyarrow as pa
import pymongo
import pytest
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile
from cassandra.policies import RoundRobinPolicy
from cassandra.query import dict_factory
from pgserver.postgres_server import get_server
from psycopg import sql

from tastetwin.generations import STAGES
from tastetwin.runs import Run, publish
from tastetwin.schema import RESULT
from tastetwin.store import Store
from tests import handmade
from tests.delivery.targets import cassandra_peer as cassandra_peers
from tests.delivery.targets.mongo_peer import Peer
from tests.sources.mongo_peer import serving

Seen = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Served:
    """A database of a server of its own kind, empty at first."""

    address: str
    seen: Callable[[], Seen]
    """User -> the other columns, asked for as a service would ask."""
    versions: Callable[[], int]
    """How many tables of lists it holds, shown or not."""


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The socket's folder of a real PostgreSQL 16."""
    with tempfile.TemporaryDirectory(prefix="tastetwin-pg-") as folder:
        found = get_server(folder)
        found.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf();")  # clients are killed here, not machines
        yield found.get_uri().partition("host=")[2]
        found.cleanup()


_NUMBERS: Final = itertools.count()


@contextmanager
def postgresql(server: str) -> Iterator[Served]:
    name = f"town_{next(_NUMBERS)}"
    with psycopg.connect(host=server, user="postgres", dbname="postgres", autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        address = f"postgresql://postgres@/{name}?host={server}"

        def seen() -> Seen:
            with psycopg.connect(address) as reader:
                return _rows(reader.execute("SELECT * FROM result")) if _exists(reader) else {}

        def versions() -> int:
            with psycopg.connect(address) as reader:
                return len(reader.execute("SELECT FROM pg_tables WHERE tablename LIKE 'result%'").fetchall())

        yield Served(address, seen, versions)
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _exists(reader: psycopg.Connection[Any]) -> bool:
    return reader.execute("SELECT to_regclass('result')").fetchone() != (None,)


def _rows(cursor: psycopg.Cursor[Any]) -> Seen:
    names = [column.name for column in cursor.description or ()]
    rows = [dict(zip(names, row, strict=True)) for row in cursor]
    return {row.pop("idno"): {**row, "logical_date": row["logical_date"].isoformat()} for row in rows}


@contextmanager
def mongodb(uri: str) -> Iterator[Served]:
    client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(uri)
    town = client.get_default_database()

    def seen() -> Seen:
        return {row.pop("_id"): row for row in town["result"].find()}

    def versions() -> int:
        return sum(name.startswith("result_2") for name in town.list_collection_names())

    yield Served(uri, seen, versions)
    client.close()


@contextmanager
def mongodb_peer() -> Iterator[Served]:
    with serving(Peer()) as peer, mongodb(peer.uri) as found:
        yield found


@contextmanager
def mongodb_server() -> Iterator[Served]:
    """In a database of its own."""
    address = urlsplit(os.environ[MONGODB_URI])._replace(path=f"/tastetwin_test_{os.getpid()}").geturl()
    with mongodb(address) as found:
        yield found
        pymongo.MongoClient(address).drop_database(urlsplit(address).path[1:])


@contextmanager
def cassandra(address: str) -> Iterator[Served]:
    parts = urlsplit(address)
    profile = ExecutionProfile(RoundRobinPolicy(), row_factory=dict_factory)
    options = {
        "protocol_version": 4,
        "schema_metadata_enabled": False,
        "execution_profiles": {EXEC_PROFILE_DEFAULT: profile},
    }
    with Cluster([parts.hostname], port=parts.port or 9042, **options) as cluster:
        session = cluster.connect(parts.path[1:])

        def tables() -> list[str]:
            query = session.prepare("SELECT table_name FROM system_schema.tables WHERE keyspace_name = ?")
            return [row["table_name"] for row in session.execute(query, (parts.path[1:],))]

        def seen() -> Seen:
            if "result_versions" not in tables():
                return {}
            pointer = session.prepare("SELECT shown FROM result_versions WHERE name = ?")
            shown = [row["shown"] for row in session.execute(pointer, ("result",))]
            columns = "idno, logical_date, favors, places, home_region, twins"
            rows = session.execute(session.prepare(f"SELECT {columns} FROM {shown[0]}")) if shown else []
            return {row.pop("idno"): {**row, "twins": json.loads(row["twins"])} for row in rows}

        yield Served(address, seen, lambda: sum(name.startswith("result_2") for name in tables()))


@contextmanager
def cassandra_peer() -> Iterator[Served]:
    with cassandra_peers.serving(cassandra_peers.Peer()) as peer, cassandra(peer.address) as found:
        yield found


@contextmanager
def cassandra_server() -> Iterator[Served]:
    """In a keyspace of its own."""
    parts, name = urlsplit(os.environ[CASSANDRA_URI]), f"tastetwin_test_{os.getpid()}"
    with Cluster([parts.hostname], port=parts.port or 9042) as cluster:
        admin = cluster.connect()
        admin.execute(
            f"CREATE KEYSPACE {name} WITH replication = {{'class': 'SimpleStrategy', 'replication_factor': 1}}"
        )
        with cassandra(parts._replace(path=f"/{name}").geturl()) as found:
            yield found
        admin.execute(f"DROP KEYSPACE {name}")


MONGODB_URI: Final = "TASTETWIN_TEST_MONGODB_URI"
CASSANDRA_URI: Final = "TASTETWIN_TEST_CASSANDRA_URI"
KINDS: Final = {
    "mongodb-peer": mongodb_peer,
    "cassandra-peer": cassandra_peer,
    **({"mongodb-server": mongodb_server} if MONGODB_URI in os.environ else {}),
    **({"cassandra-server": cassandra_server} if CASSANDRA_URI in os.environ else {}),
}


@pytest.fixture(params=["postgresql", *KINDS])
def database(request: pytest.FixtureRequest) -> Iterator[Served]:
    kind = request.param
    with KINDS[kind]() if kind in KINDS else postgresql(request.getfixturevalue("server")) as found:
        yield found


def until(so: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not so():
        assert time.monotonic() < end, "not within 10 s"
        time.sleep(0.005)


def told(error: BaseException | None) -> str:
    """All that a traceback of an error would show of messages."""
    said = ""
    while error is not None:
        said += str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return said


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store that knows the handmade users; what is published there is two results without twins."""
    made = Store.create(tmp_path / "store")
    handmade.publish_by_hand(made)
    return made


def twin(name: str, score: float = 0.5) -> dict[str, Any]:
    return {"twin_idno": name, "score": score, "percentile": 99.0, "taste": score, "home": 0.0, "chance": 0.25}


def payload(*twins: dict[str, Any], **more: Any) -> dict[str, Any]:
    given = {"logical_date": handmade.DAY, "favors": 7, "places": 3, "home_region": "r1", "twins": list(twins)}
    return {**given, **more}


def publish_lists(store: Store, lists: dict[str, dict[str, Any]], name: str) -> Run:
    """A further run of the handmade users with these results, in two files, published."""
    rows = [{"idno": user, "payload": found} for user, found in lists.items()]
    parts = [pa.Table.from_pylist(rows[at::2], RESULT) for at in range(2)]
    handmade.generation(store, "deliver", name, {"result": parts})
    stages = dict(zip(STAGES, [*"cmftae", name], strict=True))
    run = handmade.run_of(store, stages)
    publish(store, run.run_id)
    return run
