"""Fresh favors in Redis: trouble is told, never passed over."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

pytest.importorskip("lmdb")
pytest.importorskip("redis")

import redis

from tastetwin.errors import StoreError
from tastetwin.features.favors import landed
from tastetwin.privacy.opt_out import name_of
from tastetwin.serving.gateway import fresh_redis
from tests.serving.gateway.fresh_logs import Opened, review, users_of
from tests.serving.redis_server import RedisServer, running_redis  # noqa: F401


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
        landed(review(1), review(3)),
        functools.reduce(landed, map(review, (1, 2, 3))),  # it may have been done although the answer was lost
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
