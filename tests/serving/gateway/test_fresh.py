"""One contract for every log of fresh favors."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("lmdb")
pytest.importorskip("redis")

import redis

from tastetwin.config import GatewayConfig
from tastetwin.errors import UsageError
from tastetwin.features.favors import Favors, Like, Review, landed
from tastetwin.privacy.opt_out import name_of
from tastetwin.serving.gateway import fresh_redis
from tastetwin.serving.gateway.fresh import FreshLog, MemoryLog, key_of, said_by_run
from tests.serving.gateway import fresh_logs
from tests.serving.gateway.fresh_logs import PROCESSES, Opened, like, review, users_of
from tests.serving.redis_server import RedisServer, running_redis  # noqa: F401

ANOTHER: Final = itertools.count()


@pytest.fixture(params=["memory", "lmdb", "redis"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    """Of an empty log."""
    if request.param == "memory":
        return None
    if request.param == "lmdb":
        return str(tmp_path / "fresh")
    server: RedisServer = request.getfixturevalue("redis_server")
    redis.Redis.from_url(server.url).flushall()
    return server.url


@pytest.fixture
def opened(address: str | None) -> Iterator[Opened]:
    made = Opened(address)
    yield made
    made.log.close()


@pytest.fixture
def log(opened: Opened) -> FreshLog:
    return opened.log


# -- the contract -----------------------------------------------------------------------------------------------------

TIMES = st.none() | st.integers(0, 3)
PLACES = st.sampled_from(["p", "q", "골목", "\x00"])
REVIEWS = st.builds(
    Review, st.sampled_from([None, "1", "2"]), PLACES, st.sampled_from([None, 0.1, 4.5]), TIMES, st.booleans()
)
LIKES = st.builds(Like, PLACES, st.sampled_from([None, "d"]), TIMES)
FAVORS = st.builds(
    lambda reviews, likes: landed(Favors(tuple(reviews), tuple(likes))),
    st.lists(REVIEWS, max_size=3),
    st.lists(LIKES, max_size=2),
)
USERS = st.sampled_from(["a", "b", "골목" * 300, "\x00", ""])


@given(requests=st.lists(st.dictionaries(USERS, FAVORS, min_size=1), max_size=5))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_record_is_all_that_came_merged_in_order(log: FreshLog, requests: list[dict[str, Favors]]) -> None:
    """Online and batch must agree on what a user likes, or twins would jump overnight."""
    own = f"{next(ANOTHER)}:"
    came: dict[str, list[Favors]] = {}
    _, cursor = log.since(0)
    for request in requests:
        returned = log.add_many({own + user: favors for user, favors in request.items()}, 5.0)
        for user, favors in request.items():
            came.setdefault(own + user, []).append(favors)
        assert [record.user for record in returned] == [own + user for user in request]
        assert all(record.favors == functools.reduce(landed, came[record.user]) for record in returned)
    records, _ = log.since(cursor)
    assert {each.user: each.favors for each in records} == {
        user: functools.reduce(landed, parts) for user, parts in came.items()
    }
    assert [each.number for each in records] == sorted({each.number for each in records})


def test_twice_is_once(log: FreshLog) -> None:
    """Events are delivered at least once."""
    first = log.add_many({"a": review(1)}, 1.0)[0]
    again = log.add_many({"a": review(1)}, 2.0)[0]
    assert (again.favors, again.arrived) == (first.favors, 2.0) and again.number > first.number
    assert log.since(0)[0] == [again]


def test_an_event_that_is_read_late_does_not_make_the_record_older(log: FreshLog) -> None:
    """Gateways' clocks differ; pruning must not take what came last."""
    log.add_many({"a": review(1)}, 9.0)
    assert log.add_many({"a": review(2)}, 3.0)[0].arrived == 9.0


def test_since_gives_each_changed_user_once_in_the_order_of_the_last_change(log: FreshLog) -> None:
    """A gateway reads in what others kept; a user twice would be encoded twice, or the older one last."""
    log.add_many({"a": review(1), "b": review(2)}, 1.0)
    _, cursor = log.since(0)
    assert log.since(cursor) == ([], cursor)
    log.add_many({"c": review(3)}, 1.0)
    log.add_many({"a": review(4)}, 1.0)
    assert users_of(log) == ["b", "c", "a"]
    found, beyond = log.since(cursor)
    assert [record.user for record in found] == ["c", "a"] and beyond > cursor
    assert found[-1].favors == landed(review(1), review(4))


def test_nothing_added_changes_nothing(log: FreshLog) -> None:
    log.add_many({"a": review(1)}, 1.0)
    before = log.since(0)
    assert log.add_many({}, 2.0) == [] and log.since(0) == before


def test_whoever_is_removed_is_gone_and_may_come_back_as_somebody_new(log: FreshLog) -> None:
    """To forget somebody is to forget everything; and their numbers must not be taken for old ones."""
    gone = log.add_many({"a": review(1), "b": review(2), "c": like(3)}, 1.0)
    _, cursor = log.since(0)
    log.remove([name_of("b"), name_of("nobody")])
    assert users_of(log) == ["a", "c"]
    back = log.add_many({"b": review(9)}, 2.0)[0]
    assert back.favors == review(9) and back.number > max(record.number for record in gone)
    assert users_of(log, cursor) == ["b"]


def test_removing_everybody_leaves_numbers_ascending(log: FreshLog) -> None:
    """A number given twice would let a late vector undo a newer one."""
    before = log.add_many({"a": review(1)}, 1.0)[0].number
    log.remove([name_of("a")])
    assert log.since(0)[0] == [] and log.add_many({"a": review(1)}, 1.0)[0].number > before


def test_pruned_is_what_nothing_was_added_to_since(log: FreshLog) -> None:
    """What the published run has says nothing new; what came yesterday may not be in it yet."""
    log.add_many({"old": review(1), "grows": review(2)}, 10.0)
    log.add_many({"edge": review(3)}, 20.0)
    log.add_many({"grows": review(4)}, 30.0)
    log.prune(20.0)
    assert users_of(log) == ["edge", "grows"]
    log.prune(20.0)
    assert log.since(0)[0][1].favors == landed(review(2), review(4))
    log.prune(math.inf)
    assert log.since(0)[0] == []


def test_a_run_has_what_arrived_until_two_days_before_its_end() -> None:
    """Of the last day the source may have delivered something late."""
    assert said_by_run("1970-01-03") == 86_400.0


@pytest.mark.parametrize("address", ["lmdb", "redis"], indirect=True)
def test_processes_that_add_at_once_lose_nothing(address: str, opened: Opened) -> None:
    """Two gateways take events of one user in at the same moment."""
    users = ["a", "b"]
    adding = [PROCESSES.Process(target=fresh_logs.add_for_all, args=(address, users, at, 250)) for at in (0, 1_000)]
    for each in adding:
        each.start()
    cursor, seen = 0, dict.fromkeys(users, 0)
    while any(each.is_alive() for each in adding):
        records, cursor = opened.log.since(cursor)
        assert [record.number for record in records] == sorted(record.number for record in records)
        for record in records:
            assert record.number > seen[record.user]
            seen[record.user] = record.number
    for each in adding:
        each.join(10)
        assert each.exitcode == 0
    records, _ = opened.log.since(0)
    wanted = functools.reduce(landed, map(review, [*range(250), *range(1_000, 1_250)]))
    assert {record.user: record.favors for record in records} == dict.fromkeys(users, wanted)


@pytest.mark.parametrize("address", ["lmdb", "redis"], indirect=True)
def test_what_was_added_is_there_when_opened_again(address: str, opened: Opened) -> None:
    """A restart of the gateway must not cost anybody a favor."""
    added = opened.log.add_many({"a": review(1), "골목": like(2)}, 1.5)
    opened.log.close()
    again = Opened(address)
    assert again.log.since(0)[0] == added
    again.log.close()


@pytest.mark.parametrize("spoilt", [b"", b"\x00" * 60, b"x" * 10], ids=["empty", "zeros", "short"])
@pytest.mark.parametrize("address", ["lmdb", "redis"], indirect=True)
def test_a_damaged_record_is_left_out_and_counted(address: str, opened: Opened, spoilt: bytes) -> None:
    """One bad sector must not keep the gateway from starting, nor make up favors."""
    opened.log.add_many({"a": review(1), "b": review(2)}, 1.0)
    _spoil(opened.log, key_of(name_of("a")), spoilt)
    assert users_of(opened.log) == ["b"] and opened.damaged == 1
    assert opened.log.add_many({"a": review(3)}, 1.0)[0].favors == review(3)
    assert users_of(opened.log) == ["b", "a"]
    _spoil(opened.log, key_of(name_of("b")), spoilt)
    opened.log.remove([name_of("b")])
    assert users_of(opened.log) == ["a"]


def _spoil(log: Any, key: bytes, value: bytes) -> None:
    if isinstance(log, fresh_redis.RedisLog):
        log._client.hset(fresh_redis.KEYS[0], key, value)
        return
    file = log._current()
    with file.env.begin(write=True) as transaction:
        transaction.put(key, value, db=file.records)


# -- by address -------------------------------------------------------------------------------------------------------


def test_without_an_address_nothing_is_kept() -> None:
    """For trying things out."""
    assert isinstance(Opened(None).log, MemoryLog)
    assert GatewayConfig().fresh is None


@pytest.mark.parametrize(
    "address", ["http://user:s3cret@host/", "redis://:s3cret@host:port/0", "redis://:s3cret@host/0?nonsense=1"]
)
def test_an_address_of_nothing_is_refused_without_its_password(address: str) -> None:
    """Errors are logged."""
    with pytest.raises(UsageError) as raised:
        Opened(address)
    assert raised.value.problem.code == "FRESH-ADDRESS" and "s3cret" not in str(raised.value)
