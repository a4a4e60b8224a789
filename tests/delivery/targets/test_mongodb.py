"""What only MongoDB is asked, of a wire-protocol peer in process: half-done work, and what the server may answer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest

from tastetwin.delivery.load import load_published, roll_back_loaded
from tastetwin.delivery.targets.mongodb import LEASE_MS
from tastetwin.errors import StoreError, TasteTwinError, UsageError
from tastetwin.progress import Progress
from tastetwin.store import Store
from tests.delivery.targets.conftest import MONGODB_URI, publish_lists, told, until
from tests.delivery.targets.mongo_peer import Peer
from tests.delivery.targets.test_every_target import FIRST, SECOND, code
from tests.sources.mongo_peer import Document, serving


@pytest.fixture
def peer() -> Iterator[Peer]:
    with serving(Peer()) as found:
        assert isinstance(found, Peer)
        yield found


def shown(peer: Peer) -> set[str]:
    return set(peer.held[peer.views["result"]])


@pytest.mark.slow
def test_a_load_cut_off_at_any_command_leaves_one_run_whole_and_the_next_mends_it(peer: Peer, store: Store) -> None:
    """There is no transaction: the view alone decides, and what was half done is dropped or finished by the next."""
    publish_lists(store, FIRST, "d1")
    load_published(store, peer.uri)
    publish_lists(store, SECOND, "d2")
    runs = {frozenset(FIRST), frozenset(SECOND)}
    for point in range(1, 100):
        before, seen = (dict(peer.views), {name: dict(rows) for name, rows in peer.held.items()}), 0

        def strike(command: Document, point: int = point) -> Document | None:
            nonlocal seen
            seen += 1
            return {} if seen >= point else None  # and nothing gets through after it

        peer.strike = strike
        with suppress(StoreError):
            load_published(store, peer.uri)
        peer.strike = lambda command: None
        if seen < point:
            break
        assert shown(peer) in runs
        run_out(peer)
        load_published(store, peer.uri)
        assert shown(peer) == set(SECOND)
        assert len(peer.held) == 3, "two versions, and the notes on them"
        roll_back_loaded(store, peer.uri)
        assert shown(peer) == set(FIRST)
        peer.views, peer.held = before
    assert point > 20


def run_out(peer: Peer) -> None:
    """Ten minutes go by."""
    for note in peer.held["result_versions"].values():
        if "until" in note:
            note["until"] -= timedelta(milliseconds=LEASE_MS)


def test_the_lock_of_a_killed_load_runs_out(peer: Peer, store: Store) -> None:
    """Nobody is there to give it back; until then the next load is told so."""
    publish_lists(store, FIRST, "d1")
    with suppress(KeyboardInterrupt):
        load_published(store, peer.uri, progress=killed(peer))
    peer.strike = lambda command: None
    assert code(load_published, store, peer.uri) == "DATABASE-BUSY"
    run_out(peer)
    load_published(store, peer.uri)
    assert shown(peer) == set(FIRST)


def killed(peer: Peer) -> Progress:
    """From here on nothing reaches the server."""

    def tell(*_: object) -> None:
        peer.strike = lambda command: {}
        raise KeyboardInterrupt

    return tell


@pytest.mark.parametrize("rows", [2, 3])
def test_a_load_that_lost_its_lock_writes_no_more_and_shows_nothing(peer: Peer, store: Store, rows: int) -> None:
    """It slept through its lease, and another has begun: the two must not drop each other's collections."""
    publish_lists(store, FIRST, "d1")

    def tell(done: int, *_: object) -> None:
        if done == rows:
            peer.held["result_versions"]["lock"] |= {"owner": "another", "until": datetime.max}

    with pytest.raises(StoreError) as caught:
        load_published(store, peer.uri, progress=tell)
    assert caught.value.problem.code == "DATABASE-BUSY"
    assert not peer.views
    assert [len(found) for name, found in peer.held.items() if name != "result_versions"] == [rows]
    assert peer.held["result_versions"]["lock"]["owner"] == "another"


def test_a_load_whose_lock_is_gone_does_not_take_it_again(peer: Peer, store: Store) -> None:
    """It is free, but another load may have come, dropped our collection, and gone."""
    publish_lists(store, FIRST, "d1")

    def tell(*_: object) -> None:
        peer.held["result_versions"].pop("lock", None)

    assert code(lambda: load_published(store, peer.uri, progress=tell)) == "DATABASE-BUSY"
    assert not peer.views and "lock" not in peer.held["result_versions"]


def test_the_lock_is_renewed_during_a_command_that_takes_longer_than_it_lasts(
    peer: Peer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Millions of documents are counted, or cleaned of somebody, by one command; another load would drop them."""
    publish_lists(store, FIRST, "d1")
    monkeypatch.setattr("tastetwin.delivery.targets.base.RENEW_SECONDS", 0.01)
    found: list[str] = []

    def strike(command: Document) -> None:
        if "aggregate" in command and not found:
            run_out(peer)
            until(lambda: peer.held["result_versions"]["lock"]["until"] > datetime.now(UTC).replace(tzinfo=None))
            found.append(code(load_published, store, peer.uri))

    peer.strike = strike
    load_published(store, peer.uri)
    assert found == ["DATABASE-BUSY"] and shown(peer) == set(FIRST)


@pytest.mark.parametrize(
    ("command", "reply", "expected"),
    [
        ("listCollections", {"ok": 0.0, "code": 13, "codeName": "Unauthorized", "errmsg": "no"}, "DATABASE-REFUSED"),
        ("insert", {"ok": 0.0, "code": 14031, "codeName": "OutOfDiskSpace", "errmsg": "no"}, "DATABASE-FULL"),
        ("insert", {"ok": 1.0, "n": 0, "writeErrors": [{"index": 0, "code": 14031, "errmsg": "no"}]}, "DATABASE-FULL"),
        ("insert", {"ok": 1.0, "n": 0, "writeConcernError": {"code": 64, "errmsg": "no"}}, "DATABASE-REFUSED"),
        ("collMod", {"ok": 0.0, "code": 13, "codeName": "Unauthorized", "errmsg": "no"}, "DATABASE-REFUSED"),
        ("aggregate", {"cursor": {"id": 0, "ns": "town.x", "firstBatch": [{"n": 1}]}, "ok": 1.0}, "DATABASE-CHECK"),
    ],
)
def test_what_the_server_answers_has_a_code_and_changes_nothing(
    peer: Peer, store: Store, command: str, reply: Document, expected: str
) -> None:
    """Rights, room, a majority that did not answer, and rows that got lost."""
    publish_lists(store, FIRST, "d1")
    load_published(store, peer.uri)
    publish_lists(store, SECOND, "d2")
    peer.strike = lambda asked: reply if next(iter(asked)) == command and "_versions" not in str(asked) else None
    assert code(load_published, store, peer.uri) == expected
    assert shown(peer) == set(FIRST)


def test_writes_are_acknowledged_by_a_majority(peer: Peer, store: Store) -> None:
    """Or a fail-over could take rows back that readers have been shown."""
    for name, lists in (("d1", FIRST), ("d2", SECOND)):
        publish_lists(store, lists, name)
        load_published(store, peer.uri)
    writes = [asked for asked in peer.asked if next(iter(asked)) in ("insert", "update", "delete", "create", "collMod")]
    assert writes and all(asked["writeConcern"] == {"w": "majority"} for asked in writes)


def test_a_collection_of_somebody_else_is_left_alone(peer: Peer, store: Store) -> None:
    publish_lists(store, FIRST, "d1")
    peer.held["result"] = {"1": {"_id": "1"}}
    assert code(load_published, store, peer.uri) == "DATABASE-OTHER"
    assert peer.held["result"] == {"1": {"_id": "1"}}


@pytest.mark.parametrize(
    "address",
    [
        "mongodb://someone:pa55w0rd@127.0.0.1:1/town?serverSelectionTimeoutMS=50",
        "mongodb://someone:pa55@w0rd@127.0.0.1/town",
        "mongodb://someone:pa55/w0rd@127.0.0.1/town",
        "mongodb://someone:pa55:w0rd@127.0.0.1/town",
        "mongodb://someone:pa55w0rd@127.0.0.1:1",
        "mongodb://127.0.0.1:1/town?serverSelectionTimeoutMS=50&authMechanism=pa55w0rd",
    ],
)
def test_nothing_tells_a_password(store: Store, address: str, recwarn: pytest.WarningsRecorder) -> None:
    """The driver's own messages quote pieces of an address that it cannot read."""
    publish_lists(store, FIRST, "d1")
    with pytest.raises(TasteTwinError) as caught:
        load_published(store, address)
    said = told(caught.value) + "".join(str(each.message) for each in recwarn)
    assert not [secret for secret in ("pa55", "w0rd") if secret in said]
    assert caught.value.problem.code in ("DATABASE-ADDRESS", "DATABASE-UNREACHABLE")


def test_a_user_without_a_password_is_told_what_is_missing(store: Store) -> None:
    """PostgreSQL takes such an address, so whoever comes from there writes it for MongoDB too."""
    publish_lists(store, FIRST, "d1")
    with pytest.raises(UsageError) as caught:
        load_published(store, "mongodb://loader@127.0.0.1:1/town")
    assert "password" in caught.value.problem.value


def test_every_promise_was_asked_of_a_real_server_too() -> None:
    """The peer is our own reading of the protocol; only a server can say that it is right."""
    if MONGODB_URI not in os.environ:
        pytest.skip(f"LOADS NOT TESTED AGAINST A REAL MONGODB: set {MONGODB_URI} to a server to write to")
