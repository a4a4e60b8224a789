"""What only PostgreSQL is asked: a real server 16, its readers, its rights, and clients that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from typing import Any, Final

import orjson
import psycopg
import pytest

from tastetwin import TasteTwin
from tastetwin.delivery.load import load_published, roll_back_loaded
from tastetwin.delivery.targets import postgresql
from tastetwin.errors import StoreError, TasteTwinError
from tastetwin.runs import publish
from tastetwin.store import Store
from tests import handmade
from tests.delivery.targets import conftest
from tests.delivery.targets.conftest import Served, payload, publish_lists, told, twin
from tests.delivery.targets.test_every_target import FIRST, SECOND, code

pytestmark = pytest.mark.slow

SECRETS: Final = ("pa55", "w0rd")


@pytest.fixture
def database(server: str) -> Iterator[Served]:
    with conftest.postgresql(server) as found:
        yield found


@contextmanager
def session(database: Served, **more: Any) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database.address, autocommit=True, **more) as found:
        yield found


def test_a_planner_and_a_service_ask_in_one_line(database: Served, store: Store) -> None:
    """The queries of docs/how-to/databases.md."""
    publish_lists(store, FIRST, "d1")
    load_published(store, database.address)
    with session(database) as reader:
        one = reader.execute("SELECT * FROM result WHERE idno = 'ann'").fetchone()
        assert one is not None and one[:2] == ("ann", date.fromisoformat(handmade.DAY))
        listed = reader.execute(
            "SELECT twin.* FROM result, jsonb_to_recordset(twins)"
            " AS twin (twin_idno text, score real, percentile real, taste real, home real) WHERE idno = 'ann'"
        ).fetchall()
        assert listed == [("bob", 0.5, 99.0, 0.5, 0.0), ("dot", 0.5, 99.0, 0.5, 0.0)]
        reader.execute("SET enable_seqscan = off")
        plan: Any = reader.execute("EXPLAIN (FORMAT JSON) SELECT * FROM result WHERE idno = 'ann'").fetchone()
        assert "Index" in plan[0][0]["Plan"]["Node Type"], "the view must let the primary key answer"


def test_readers_in_a_loop_see_no_error_and_no_mix_during_20_swaps(database: Served, store: Store) -> None:
    """Each statement sees one run, whole; and so does each transaction that has begun to read."""
    runs = [publish_lists(store, {f"u{n}": payload(home_region=name) for n in range(50)}, name) for name in "xy"]
    stop, problems, seen = threading.Event(), list[str](), set[str]()

    def read(level: str) -> None:
        try:
            with psycopg.connect(database.address) as reader:
                while not stop.is_set():
                    with reader.transaction():
                        reader.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
                        found = [_regions(reader) for _ in range(2)]
                    problems.extend(f"{level}: {each}" for each in found if len(each) != 1 or each[0][1] != 50)
                    problems.extend([f"{level}: changed within"] if found[0] != found[1] else [])
                    seen.update(each[0][0] for each in found)
        except Exception as error:
            problems.append(f"{level}: {error!r}")

    load_published(store, database.address)
    readers = [threading.Thread(target=read, args=(level,)) for level in ("READ COMMITTED", "REPEATABLE READ")]
    for reader in readers:
        reader.start()
    for n in range(20):
        publish(store, runs[n % 2].run_id)
        load_published(store, database.address) if n % 4 < 2 else roll_back_loaded(store, database.address)
    stop.set()
    for reader in readers:
        reader.join()
    assert not problems
    assert seen == {"x", "y"}


def _regions(reader: psycopg.Connection[Any]) -> list[tuple[str, int]]:
    return reader.execute("SELECT home_region, count(*) FROM result GROUP BY 1").fetchall()


def test_a_snapshot_older_than_the_load_finds_the_new_table_full(database: Served, store: Store) -> None:
    """A report that began before the load reads its first row after the swap; an empty table would be a lie."""
    publish_lists(store, FIRST, "d1")
    load_published(store, database.address)
    publish_lists(store, SECOND, "d2")
    with psycopg.connect(database.address) as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT 1 FROM pg_class").fetchall()
        load_published(store, database.address)
        assert {row[0] for row in reader.execute("SELECT idno FROM result")} == set(SECOND)


def test_a_swap_keeps_grants_and_views_of_others(database: Served, store: Store) -> None:
    """A service reads with a role of its own, and somebody has built on the view."""
    publish_lists(store, FIRST, "d1")
    load_published(store, database.address)
    with role(database, "service") as address:
        with session(database) as owner:
            owner.execute("GRANT SELECT ON result TO service")
            owner.execute("CREATE VIEW fans AS SELECT idno, jsonb_array_length(twins) AS n FROM result")
            owner.execute("GRANT SELECT ON fans TO service")
        for _ in range(2):
            publish_lists(store, SECOND, "d2")
            load_published(store, database.address)
            with psycopg.connect(address) as reader:
                assert reader.execute("SELECT idno FROM result ORDER BY 1").fetchall() == [("ann",), ("gus",)]
                assert reader.execute("SELECT * FROM fans ORDER BY 1").fetchall() == [("ann", 1), ("gus", 2)]


@contextmanager
def role(database: Served, name: str) -> Iterator[str]:
    """The address for a role that may do nothing yet."""
    with session(database) as owner:
        owner.execute(f"CREATE ROLE {name} LOGIN")
        try:
            yield database.address.replace("postgres@", f"{name}@")
        finally:
            owner.execute(f"DROP OWNED BY {name}")
            owner.execute(f"DROP ROLE {name}")


def test_a_reader_who_does_not_let_go_holds_off_the_swap_and_no_other_reader(
    database: Served, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The load gives up with a code and leaves the old lists; later it succeeds."""
    monkeypatch.setattr(postgresql, "SWAP_TRIES", 2)
    publish_lists(store, FIRST, "d1")
    load_published(store, database.address)
    publish_lists(store, SECOND, "d2")
    with psycopg.connect(database.address) as idle:
        idle.execute("SELECT * FROM result").fetchall()
        assert code(load_published, store, database.address) == "DATABASE-BUSY"
        assert database.seen() == FIRST
    load_published(store, database.address)
    assert database.seen() == SECOND


KILLED: Final = """
import os, signal, sys
import psycopg
from tastetwin.delivery.load import load_published
from tastetwin.store import Store

left = int(sys.argv[3])

def struck(original):
    def method(self, *arguments, **more):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *arguments, **more)
    return method

psycopg.Connection.execute = struck(psycopg.Connection.execute)
psycopg.Copy.write = struck(psycopg.Copy.write)
psycopg.Copy.__exit__ = struck(psycopg.Copy.__exit__)
psycopg.Transaction.__exit__ = struck(psycopg.Transaction.__exit__)
load_published(Store.open(sys.argv[1]), sys.argv[2])
"""


def test_a_load_killed_before_any_of_its_statements_leaves_the_old_lists(database: Served, store: Store) -> None:
    """kill -9 at every statement, copied block and commit; the next load cleans up and succeeds."""
    publish_lists(store, FIRST, "d1")
    load_published(store, database.address)
    publish_lists(store, SECOND, "d2")
    point = 0
    while True:
        point += 1
        command = [sys.executable, "-c", KILLED, store.root, database.address, str(point)]
        ended = subprocess.run(command, capture_output=True, timeout=120, check=False)
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
        assert database.seen() == FIRST
        assert database.versions() == 1
    assert point > 15
    assert database.seen() == SECOND
    assert database.versions() == 2


def test_a_user_without_rights_is_told_what_the_server_says(database: Served, store: Store) -> None:
    publish_lists(store, FIRST, "d1")
    with role(database, "stranger") as address:
        with pytest.raises(StoreError) as caught:
            load_published(store, address)
        assert caught.value.problem.code == "DATABASE-REFUSED"
        assert caught.value.problem.value == "permission denied for schema public"


def test_a_loader_needs_no_more_than_a_schema_of_its_own(database: Served, store: Store) -> None:
    """Not superuser: docs/how-to/databases.md says what to grant."""
    with role(database, "loader") as address, session(database) as owner:
        owner.execute("CREATE SCHEMA taste AUTHORIZATION loader")
        for name, lists in (("d1", FIRST), ("d2", SECOND)):
            publish_lists(store, lists, name)
            load_published(store, f"{address}&table=taste.result")
        assert [row[0] for row in owner.execute("SELECT idno FROM taste.result ORDER BY 1")] == ["ann", "gus"]


def test_a_table_of_somebody_else_is_left_alone(database: Served, store: Store) -> None:
    publish_lists(store, FIRST, "d1")
    with session(database) as owner:
        owner.execute("CREATE TABLE result (theirs int)")
        assert code(load_published, store, database.address) == "DATABASE-OTHER"
        assert owner.execute("SELECT count(*) FROM result").fetchone() == (0,)


@contextmanager
def at_every(database: Served, tag: str, body: str) -> Iterator[None]:
    """The server does something of its own whenever a command of this tag ends."""
    with session(database) as owner:
        owner.execute(f"CREATE FUNCTION intrude() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN {body} END$$")
        owner.execute(f"CREATE EVENT TRIGGER it ON ddl_command_end WHEN TAG IN ('{tag}') EXECUTE FUNCTION intrude()")
        yield
        owner.execute("DROP EVENT TRIGGER it")


@pytest.mark.parametrize(
    ("tag", "body", "expected"),
    [
        ("CREATE TABLE", "RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full';", "DATABASE-FULL"),
        ("ALTER TABLE", "PERFORM pg_terminate_backend(pg_backend_pid());", "DATABASE-BROKEN-OFF"),
        ("CREATE VIEW", "PERFORM pg_terminate_backend(pg_backend_pid());", "DATABASE-BROKEN-OFF"),
    ],
)
def test_a_full_disk_and_a_lost_connection_have_codes_and_change_nothing(
    database: Served, store: Store, tag: str, body: str, expected: str
) -> None:
    """Raised by the server itself, in the midst of a load."""
    publish_lists(store, FIRST, "d1")
    load_published(store, database.address)
    publish_lists(store, SECOND, "d2")
    with at_every(database, tag, body):
        assert code(load_published, store, database.address) == expected
        assert database.seen() == FIRST
        assert database.versions() == 1
    load_published(store, database.address)
    assert database.seen() == SECOND


@pytest.mark.parametrize(
    "change", ["DELETE FROM %s WHERE idno = ''dot''", "UPDATE %s SET favors = 8", "UPDATE %s SET twins = ''[]''"]
)
def test_lists_that_are_not_what_was_sent_are_not_shown(database: Served, store: Store, change: str) -> None:
    """Rows are counted, and some read back and compared, before the swap; dot is not among those."""
    publish_lists(store, SECOND, "d1")
    load_published(store, database.address)
    publish_lists(store, FIRST, "d2")
    spoil = (
        f"EXECUTE format('{change}', (SELECT max(relname) FROM pg_class WHERE relkind = 'r' AND relname ~ '^result'));"
    )
    with at_every(database, "ALTER TABLE", spoil):
        assert code(load_published, store, database.address) == "DATABASE-CHECK"
    assert database.seen() == SECOND
    assert database.versions() == 1


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://someone:pa55w0rd@{host}/absent",
        "postgresql://someone:pa55@w0rd@127.0.0.1/town",
        "postgresql://someone:pa55/w0rd@127.0.0.1/town",
        "postgresql://someone:pa55?w0rd@127.0.0.1/town",
        "postgresql://someone:pa55:w0rd@127.0.0.1:1/town",
        "postgresql://someone:pa55w0rd@127.0.0.1:1/town?connect_timeout=2",
        "postgresql://127.0.0.1:1/town?password=pa55w0rd",
        "postgresql://127.0.0.1:1/town?pa55=w0rd",
        "postgresql://someone:pa55w0rd",
        "pa55://w0rd",
    ],
)
def test_nothing_tells_a_password(store: Store, server: str, address: str) -> None:
    """libpq's own messages quote pieces of an address it cannot read."""
    publish_lists(store, FIRST, "d1")
    with pytest.raises(TasteTwinError) as caught:
        load_published(store, address.format(host=server.replace("/", "%2F")))
    assert not [secret for secret in SECRETS if secret in told(caught.value)]
    assert caught.value.problem.code in ("DATABASE-ADDRESS", "DATABASE-UNREACHABLE")


def test_what_is_said_and_kept_of_an_address_is_not_its_password(database: Served, store: Store) -> None:
    publish_lists(store, FIRST, "d1")
    loaded = TasteTwin(store.root).load(database.address.replace("postgres@", "postgres:pa55w0rd@"))
    assert "pa55" not in str(loaded)
    kept = [path for path in store.files("") if b"pa55w0rd" in store.open_read(path).read()]
    assert not kept


def test_a_password_may_come_from_the_environment(
    database: Served, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libpq reads PGUSER, PGPASSWORD and PGSERVICE by itself; nothing of ours stands in the way."""
    publish_lists(store, FIRST, "d1")
    monkeypatch.setenv("PGUSER", "postgres")
    monkeypatch.setenv("PGPASSWORD", "unused")
    assert load_published(store, database.address.replace("postgres@", "")).rows == len(FIRST)


def test_the_verbs_say_what_they_did(database: Served, store: Store) -> None:
    """load --dry-run, load, rollback --to: JSON for a scheduler, exit codes as documented."""
    publish_lists(store, FIRST, "d1")
    arguments = ["--to", database.address, "--store", store.root, "--json"]
    plan, first = _json("load", "--dry-run", *arguments), _json("load", *arguments)
    assert (plan["rows"], plan["dry_run"]) == (3, True) == (first["rows"], not first["dry_run"])
    publish_lists(store, SECOND, "d2")
    second = _json("load", *arguments)
    assert second["previous"] == first["run_id"]
    assert _json("rollback", *arguments)["run_id"] == first["run_id"]
    assert database.seen() == FIRST


def _json(*arguments: str) -> Any:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "tastetwin", *arguments]
    return orjson.loads(subprocess.run(command, capture_output=True, check=True, timeout=60, env=env).stdout)


def test_rows_of_many_batches_arrive_whole(database: Served, store: Store) -> None:
    """More rows than fit one batch, from several files, in no order."""
    lists = {f"{n * 7919 % 100_003:06d}": payload(*(twin(f"t{m}", m / 7) for m in range(3))) for n in range(3_000)}
    publish_lists(store, lists, "d1")
    assert load_published(store, database.address).rows == 3_000
    assert set(database.seen()) == set(lists)
