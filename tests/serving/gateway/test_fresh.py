"""One contract for every log of fresh favors, and what each of them promises beyond it."""

from __future__ import annotations

import functools
import itertools
import math
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("lmdb")
redis = pytest.importorskip("redis")

from tastetwin.config import GatewayConfig
from tastetwin.errors import StoreError, UsageError
from tastetwin.features.favors import Favors, Like, Review, landed, merged
from tastetwin.privacy.opt_out import name_of
from tastetwin.serving.gateway import fresh_redis
from tastetwin.serving.gateway.fresh import FreshLog, MemoryLog, key_of, said_by_run
from tastetwin.serving.gateway.fresh_lmdb import CURRENT, LmdbLog
from tests.serving.gateway import fresh_logs
from tests.serving.gateway.fresh_logs import Opened, like, review
from tests.serving.redis_server import RedisServer

PROCESSES: Final = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.serving.gateway.fresh_logs", "tastetwin.serving.gateway.fresh_lmdb"])
ANOTHER: Final = itertools.count()


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    server = RedisServer()
    yield server
    server.kill()


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


def users_of(log: FreshLog, cursor: int = 0) -> list[str]:
    return [record.user for record in log.since(cursor)[0]]


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
        assert all(record.favors == functools.reduce(merged, came[record.user]) for record in returned)
    records, _ = log.since(cursor)
    assert {each.user: each.favors for each in records} == {
        user: functools.reduce(merged, parts) for user, parts in came.items()
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
    assert found[-1].favors == merged(review(1), review(4))


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
    assert log.since(0)[0][1].favors == merged(review(2), review(4))
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
    wanted = functools.reduce(merged, map(review, [*range(250), *range(1_000, 1_250)]))
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


# -- LMDB -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "fresh"


def test_whatever_was_acknowledged_is_there_after_kill_9(folder: Path) -> None:
    """An event that was acknowledged is never sent again."""
    shuffled, first, acknowledged = random.Random(5), 0, 0
    for _ in range(15):
        here, there = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=fresh_logs.add_until_killed, args=(str(folder), first, there))
        process.start()
        there.close()
        for _ in range(shuffled.randrange(1, 12)):
            acknowledged = here.recv()
        time.sleep(shuffled.random() * 0.01)
        process.kill()
        process.join(10)
        while here.poll():
            try:
                acknowledged = here.recv()
            except EOFError:
                break
        first = acknowledged + 1
        log = Opened(str(folder)).log
        reviews = {each.review_id for record in log.since(0)[0] for each in record.favors.reviews}
        likes = {each.at for record in log.since(0)[0] for each in record.favors.likes}
        log.close()
        assert {f"r{at}" for at in range(first)} <= reviews
        assert {like(at).likes[0].at for at in range(first)} <= likes
    assert first > 30, "the processes did add"


def test_every_add_is_synced(folder: Path) -> None:
    """What kill -9 cannot show: a power cut takes what only the page cache had."""
    log = LmdbLog(folder, 1 << 20, Any)  # type: ignore[arg-type]
    flags = log._current().env.flags()
    assert (flags["sync"], flags["metasync"], flags["writemap"], flags["map_async"]) == (True, True, False, False)
    log.close()


def test_a_full_log_refuses_whole_requests_and_goes_on_after_pruning(folder: Path) -> None:
    """The caller must know that events were not kept, and old ones must stay readable."""
    log = Opened(str(folder), 1).log
    with pytest.raises(StoreError) as raised:
        for at in itertools.count():
            log.add_many({f"{at}-{n}": review(n, "p" * 200) for n in range(50)}, float(at))
    assert raised.value.problem.code == "FRESH-FULL"
    users = users_of(log)
    assert users == [f"{done}-{n}" for done in range(at) for n in range(50)]
    log.prune(at - 1.0)
    assert users_of(log) == users[-50:]
    log.add_many({f"{at}-{n}": review(n, "p" * 200) for n in range(50)}, float(at))
    log.close()


def test_a_full_disk_has_its_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looks after the machine is told what to do."""
    import lmdb

    log = Opened(str(folder)).log

    def full(*_: object) -> None:
        raise lmdb.DiskError("mdb_txn_commit: No space left on device")

    monkeypatch.setattr("tastetwin.serving.gateway.fresh_lmdb._File.put", full)
    with pytest.raises(StoreError) as raised:
        log.add_many({"a": review(1)}, 1.0)
    assert raised.value.problem.code == "DISK-FULL"
    monkeypatch.undo()
    assert log.add_many({"a": review(1)}, 1.0)[0].number == 1
    log.close()


def bytes_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.mark.parametrize("drop", [lambda log: log.remove([name_of("u-5-secret")]), lambda log: log.prune(50.0)])
def test_nothing_of_the_forgotten_is_left_in_any_file(folder: Path, drop: Callable[[FreshLog], None]) -> None:
    """Pages that LMDB freed keep their content: to delete a key is not to forget."""
    log = Opened(str(folder)).log
    for at in range(40):  # grows, so that copies of it lie in many pages
        log.add_many({f"u-{n}-secret": review(at, f"place-of-{n}-") for n in range(at % 7, 10)}, float(at))
    log.add_many({f"u-{n}-secret": like(99) for n in range(10) if n != 5}, 99.0)
    before = bytes_in(folder)
    assert before.count(b"u-5-secret") > 1 and b"place-of-5-" in before
    drop(log)
    left = bytes_in(folder)
    key = key_of(name_of("u-5-secret"))
    assert b"u-5-secret" not in left and b"place-of-5-" not in left and key not in left
    assert b"u-6-secret" in left and len(users_of(log)) == 9
    log.close()


def test_the_old_file_is_overwritten_before_it_is_removed(folder: Path) -> None:
    """A removed file's blocks keep what was in them."""
    log = Opened(str(folder)).log
    log.add_many({"u-5-secret": review(1)}, 1.0)
    os.link(folder / "log-1" / "data.mdb", folder / "kept")
    log.remove([name_of("u-5-secret")])
    assert not (folder / "log-1").exists() and not any((folder / "kept").read_bytes())
    log.close()


def test_a_rewriting_that_was_broken_off_leaves_the_log_as_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the new file is in force, or after it is and the old one lies there yet."""
    log = Opened(str(folder)).log
    log.add_many({"a": review(1), "b": review(2)}, 1.0)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for place in ("_point", "_shred_others"):
        monkeypatch.setattr(LmdbLog, place, killed)
        with pytest.raises(KeyboardInterrupt):
            log.remove([name_of("a")])
        monkeypatch.undo()
    # The first two were stopped before anything changed; now the old file stays although another is in force.
    point = LmdbLog._point

    def and_killed(self: LmdbLog, name: str) -> None:
        point(self, name)
        raise KeyboardInterrupt

    assert users_of(log) == ["a", "b"]
    monkeypatch.setattr(LmdbLog, "_point", and_killed)
    with pytest.raises(KeyboardInterrupt):
        log.remove([name_of("a")])
    monkeypatch.undo()
    assert users_of(log) == ["b"]
    log.close()
    again = Opened(str(folder)).log
    assert users_of(again) == ["b"] and len(list(folder.glob("log-*"))) == 1
    again.close()


def test_other_processes_follow_to_the_new_file(folder: Path) -> None:
    """One gateway forgets somebody while others go on adding: into the file in force, not into the removed one."""
    log = Opened(str(folder)).log
    log.add_many({"a": review(1), "b": review(2)}, 1.0)
    adding = PROCESSES.Process(target=fresh_logs.add_for_all, args=(str(folder), ["c", "d"], 100, 200))
    adding.start()
    removed = 0
    while adding.is_alive():
        log.add_many({f"gone-{removed}": review(removed)}, 1.0)
        log.remove([name_of(f"gone-{removed}")])
        removed += 1
    adding.join(10)
    assert adding.exitcode == 0 and removed > 1
    wanted = functools.reduce(merged, map(review, range(100, 300)))
    assert {each.user: each.favors for each in log.since(0)[0]} == {
        "a": review(1),
        "b": review(2),
        "c": wanted,
        "d": wanted,
    }
    log.close()


@pytest.mark.parametrize("keeps", [0, 100, 4_096, 9_000])
def test_a_file_cut_off_is_refused_and_ends_no_process(folder: Path, keeps: int) -> None:
    """A look past the end of a mapped file would be a bus error."""
    log = Opened(str(folder)).log
    for at in range(30):
        log.add_many({f"{at}-{n}": review(n, "p" * 300) for n in range(20)}, 1.0)
    log.close()
    with (folder / "log-1" / "data.mdb").open("r+b") as file:
        file.truncate(keeps)
    with pytest.raises(StoreError) as raised:
        log = Opened(str(folder)).log
        log.since(0)
    assert raised.value.problem.code == "FRESH-DAMAGED"


def test_garbage_in_place_of_the_file_is_refused(folder: Path) -> None:
    """The log is told to be damaged; it is not taken for an empty one."""
    Opened(str(folder)).log.close()
    (folder / "log-1" / "data.mdb").write_bytes(random.Random(3).randbytes(20_000))
    with pytest.raises(StoreError) as raised:
        Opened(str(folder))
    assert raised.value.problem.code == "FRESH-DAMAGED"


def test_a_folder_that_cannot_be_made_is_refused_at_the_start(tmp_path: Path) -> None:
    """Not at the first event."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError) as raised:
        Opened(str(tmp_path / "file"))
    assert raised.value.problem.code == "STORE-UNWRITABLE"


def test_nobody_else_may_read_the_folder(folder: Path) -> None:
    """It says who liked what."""
    Opened(str(folder)).log.close()
    private = [folder, *(path for path in folder.rglob("*") if path.name in (CURRENT, "lock", "data.mdb"))]
    assert [path for path in private[:1] if path.stat().st_mode & 0o077] == []
    assert [path for path in private if path.name == "data.mdb" and path.stat().st_mode & 0o077] == []


# -- Redis ------------------------------------------------------------------------------------------------------------


def test_a_redis_that_does_not_answer_is_an_error_without_its_password(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event is not acknowledged unless it is kept."""
    monkeypatch.setattr(fresh_redis, "SECONDS", 0.2)
    log = Opened(redis_server.url).log
    log.add_many({"a": review(1)}, 1.0)
    redis_server.pause()
    try:
        for call in (
            lambda: log.add_many({"a": review(2)}, 1.0),
            lambda: log.since(0),
            lambda: log.remove([name_of("a")]),
        ):
            with pytest.raises(StoreError) as raised:
                call()
            assert raised.value.problem.code == "FRESH-UNREACHABLE" and "s3cret" not in str(raised.value)
    finally:
        redis_server.go_on()
    assert log.add_many({"a": review(3)}, 1.0)[0].favors in (
        merged(review(1), review(3)),
        functools.reduce(merged, map(review, (1, 2, 3))),  # it may have been done although the answer was lost
        review(3),  # and so may the removal
    )
    log.close()


def test_nobody_at_the_address_is_the_same_error() -> None:
    """And the gateway starts to say so itself, rather than the client's own exception."""
    log = Opened("redis://:s3cret@127.0.0.1:1/0").log
    with pytest.raises(StoreError) as raised:
        log.add_many({"a": review(1)}, 1.0)
    assert raised.value.problem.code == "FRESH-UNREACHABLE" and "s3cret" not in str(raised.value)


def test_a_redis_that_is_killed_has_what_it_acknowledged(redis_server: RedisServer, tmp_path: Path) -> None:
    """With an append-only file, synced at every write, Redis keeps its part."""
    server = RedisServer(tmp_path)
    log = Opened(server.url).log
    added = [log.add_many({f"u{at % 5}": review(at)}, 1.0)[0] for at in range(50)]
    server.kill()
    server.start()
    assert log.since(0)[0] == added[-5:]
    server.kill()
    log.close()


def test_a_redis_without_memory_left_refuses_with_its_code(redis_server: RedisServer, tmp_path: Path) -> None:
    """It must not be taken for a network's trouble: sending again does not help."""
    server = RedisServer(None, "--maxmemory", "2mb")
    log = Opened(server.url).log
    with pytest.raises(StoreError) as raised:
        for at in range(500):
            log.add_many({f"{at}-{n}": review(n, "p" * 200) for n in range(50)}, 1.0)
    assert raised.value.problem.code == "FRESH-FULL"
    server.kill()
    log.close()


def test_numbers_go_on_after_redis_lost_everything(redis_server: RedisServer) -> None:
    """Gateways that run would take what is new for old."""
    log = Opened(redis_server.url).log
    before = log.add_many({"a": review(1)}, 1.0)[0].number
    _, cursor = log.since(0)
    redis.Redis.from_url(redis_server.url).flushall()
    assert log.add_many({"a": review(2)}, 1.0)[0].number > before and users_of(log, cursor) == ["a"]
    log.close()


def test_more_than_a_page_is_read_whole(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis is asked in pages."""
    redis.Redis.from_url(redis_server.url).flushall()
    monkeypatch.setattr(fresh_redis, "PAGE", 7)
    log = Opened(redis_server.url).log
    log.add_many({f"{n}": review(n) for n in range(20)}, 1.0)
    assert users_of(log) == [f"{n}" for n in range(20)]
    log.remove([name_of(f"{n}") for n in range(15)])
    assert users_of(log) == [f"{n}" for n in range(15, 20)]
    log.close()


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
