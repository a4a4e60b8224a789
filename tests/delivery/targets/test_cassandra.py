"""What only Cassandra is asked, of a node's protocol peer in process: half-done work, and what the node may answer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

import orjson
import pytest

from tastetwin.delivery.load import load_published, roll_back_loaded
from tastetwin.delivery.targets.base import open_target
from tastetwin.errors import StoreError, TasteTwinError
from tastetwin.store import Store
from tests.delivery.targets.cassandra_peer import Peer, Refused, serving
from tests.delivery.targets.conftest import CASSANDRA_URI, publish_lists, told, until
from tests.delivery.targets.test_every_target import FIRST, SECOND, code

NOTES = "result_versions"


@pytest.fixture
def peer() -> Iterator[Peer]:
    with serving(Peer()) as found:
        yield found


def shown(peer: Peer) -> set[str]:
    table = peer.tables[NOTES][b"result"]["shown"].decode()
    return {key.decode() for key in peer.tables[table]}


def run_out(peer: Peer) -> None:
    """Ten minutes go by."""
    peer.tables[NOTES].pop(b"lock", None)


def test_a_load_refused_from_any_statement_on_leaves_one_run_whole_and_the_next_mends_it(
    peer: Peer, store: Store
) -> None:
    """There is no transaction: one row decides, and what was half done is dropped or finished by the next."""
    publish_lists(store, FIRST, "d1")
    load_published(store, peer.address)
    publish_lists(store, SECOND, "d2")
    for point in range(1, 100):
        before = {name: dict(rows) for name, rows in peer.tables.items()}, dict(peer.columns)
        seen = 0

        def strike(statement: str, point: int = point) -> None:
            nonlocal seen
            seen += 1
            if seen >= point:
                raise Refused(0x2100, "no")

        peer.strike = strike
        with suppress(StoreError):
            load_published(store, peer.address)
        peer.strike = lambda statement: None
        if seen < point:
            break
        assert shown(peer) in (set(FIRST), set(SECOND))
        run_out(peer)
        load_published(store, peer.address)
        assert shown(peer) == set(SECOND)
        assert len(peer.tables) == 3, "two versions, and the notes on them"
        roll_back_loaded(store, peer.address)
        assert shown(peer) == set(FIRST)
        peer.tables, peer.columns = before
    assert point > 12


@pytest.mark.parametrize("rows", [2, 3])
def test_a_load_that_lost_its_lock_writes_no_more_and_shows_nothing(peer: Peer, store: Store, rows: int) -> None:
    """It slept through its lease, and another has begun: the two must not drop each other's tables."""
    publish_lists(store, FIRST, "d1")

    def tell(done: int, *_: object) -> None:
        if done == rows:
            peer.tables[NOTES][b"lock"] = {"name": b"lock", "owner": b"another"}

    with pytest.raises(StoreError) as caught:
        load_published(store, peer.address, progress=tell)
    assert caught.value.problem.code == "DATABASE-BUSY"
    assert [len(found) for name, found in peer.tables.items() if name != NOTES] == [rows]
    assert peer.tables[NOTES] == {b"lock": {"name": b"lock", "owner": b"another"}}


def test_a_load_whose_lock_ran_out_does_not_take_it_again(peer: Peer, store: Store) -> None:
    """It is free, but another load may have come, dropped our table, and gone."""
    publish_lists(store, FIRST, "d1")
    assert code(lambda: load_published(store, peer.address, progress=lambda *_: run_out(peer))) == "DATABASE-BUSY"
    assert peer.tables[NOTES] == {}


def test_the_lock_is_renewed_while_a_whole_table_is_read(
    peer: Peer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of millions of rows that takes longer than the lock lasts, and then another load would drop the table."""
    publish_lists(store, FIRST, "d1")
    load_published(store, peer.address)
    monkeypatch.setattr("tastetwin.delivery.targets.base.RENEW_SECONDS", 0.01)
    said: list[str] = []
    peer.strike = said.append

    def renewals() -> int:
        return sum(each.startswith(f"UPDATE {NOTES} USING TTL 600 SET owner") for each in said)

    with open_target(peer.address) as target:
        for _ in target.people(target.versions()[0]):
            before = renewals()
            until(lambda before=before: renewals() > before)  # type: ignore[misc]


def test_the_lock_expires_by_itself(peer: Peer, store: Store) -> None:
    """A killed load gives nothing back: each statement that takes or renews the lock says for how long."""
    publish_lists(store, FIRST, "d1")
    said: list[str] = []
    peer.strike = said.append
    load_published(store, peer.address)
    taken = [each for each in said if "owner" in each and each.startswith(("INSERT", "UPDATE"))]
    assert len(taken) > 2 and all("USING TTL 600" in each for each in taken)


@pytest.mark.parametrize(
    ("beginning", "failure", "expected"),
    [
        ("CREATE TABLE result_2", Refused(0x2100, "User has no CREATE permission"), "DATABASE-REFUSED"),
        ("INSERT INTO result_2", Refused(0x2200, "no"), "DATABASE-REFUSED"),
        ("SELECT idno", ConnectionError(), "DATABASE-BROKEN-OFF"),
        ("UPDATE result_versions SET shown", Refused(0x2100, "no"), "DATABASE-REFUSED"),
    ],
)
def test_what_the_node_answers_has_a_code_and_changes_nothing(
    peer: Peer, store: Store, beginning: str, failure: Exception, expected: str
) -> None:
    publish_lists(store, FIRST, "d1")
    load_published(store, peer.address)
    publish_lists(store, SECOND, "d2")

    def strike(statement: str) -> None:
        if statement.startswith(beginning):
            raise failure

    peer.strike = strike
    assert code(load_published, store, peer.address) == expected
    assert shown(peer) == set(FIRST)


def test_rows_that_did_not_arrive_are_not_shown(peer: Peer, store: Store) -> None:
    """They are counted by reading the whole table: a count(*) of millions would time out."""
    publish_lists(store, FIRST, "d1")

    def strike(statement: str) -> None:
        for name, rows in peer.tables.items():
            if statement.startswith("SELECT idno FROM") and name.startswith("result_2"):
                rows.pop(b"dot", None)

    peer.strike = strike
    assert code(load_published, store, peer.address) == "DATABASE-CHECK"
    assert b"result" not in peer.tables[NOTES]


def test_a_service_finds_a_list_by_the_pointer(peer: Peer, store: Store) -> None:
    """The two statements of docs/how-to/databases.md, read from what is stored."""
    publish_lists(store, FIRST, "d1")
    load_published(store, peer.address)
    table = peer.tables[NOTES][b"result"]["shown"].decode()
    twins = orjson.loads(peer.tables[table][b"ann"]["twins"])
    assert twins == FIRST["ann"]["twins"]


@pytest.mark.parametrize(
    "address",
    [
        "cassandra://someone:pa55w0rd@127.0.0.1:1/town",
        "cassandra://someone:pa55@w0rd@127.0.0.1/town",
        "cassandra://someone:pa55/w0rd@127.0.0.1/town",
        "cassandra://someone:pa55w0rd@127.0.0.1:1",
        "cassandra://127.0.0.1:1/town?password=pa55w0rd",
        "cassandra://127.0.0.1:1/town?table=pa55-w0rd",
        "cassandra://127.0.0.1:99999/town",
        "cassandra://someone:pa55w0rd@127.0.0.1:1/town;pa55",
    ],
)
def test_nothing_tells_a_password(store: Store, address: str) -> None:
    publish_lists(store, FIRST, "d1")
    with pytest.raises(TasteTwinError) as caught:
        load_published(store, address)
    assert not [secret for secret in ("pa55w", "w0rd") if secret in told(caught.value)]
    assert caught.value.problem.code in ("DATABASE-ADDRESS", "DATABASE-UNREACHABLE")


def test_every_promise_was_asked_of_a_real_server_too() -> None:
    """The peer is our own reading of the protocol; only a server can say that it is right."""
    if CASSANDRA_URI not in os.environ:
        pytest.skip(f"LOADS NOT TESTED AGAINST A REAL CASSANDRA: set {CASSANDRA_URI} to a server to write to")
