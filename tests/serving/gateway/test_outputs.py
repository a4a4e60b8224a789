"""The prediction-output store: one contract for memory, LMDB and Redis, and what befalls each of them."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import lmdb
import orjson
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from tastetwin.config import GatewayConfig
from tastetwin.errors import StoreError, UsageError
from tastetwin.serving.gateway import outputs_redis
from tastetwin.serving.gateway.outputs import MemoryOutputs, OutputMetrics, Outputs, key_of, open_outputs, seal, unseal
from tastetwin.serving.gateway.outputs_lmdb import LmdbOutputs
from tastetwin.serving.gateway.outputs_redis import PREFIX, RedisOutputs
from tests.serving.redis_server import RedisServer, running_redis  # noqa: F401

MEGABYTE = 1 << 20
ROOT = Path(__file__).parents[3]


def key(at: int) -> bytes:
    return key_of("v", b"%d" % at)


def value(at: int, size: int = 768) -> bytes:
    return random.Random(at).randbytes(size)


@dataclass
class Subject:
    """A store, its failures, and a way to spoil what it keeps; nobody else writes to a process's memory."""

    store: Outputs
    registry: CollectorRegistry
    spoil: Callable[[bytes, bytes], object] | None = None

    def failures(self, action: str) -> float:
        name = "tastetwin_gateway_outputs_failures_total"
        return self.registry.get_sample_value(name, {"action": action}) or 0.0


def lmdb_subject(folder: Path, size: int = 4 * MEGABYTE) -> Subject:
    registry = CollectorRegistry()
    store = LmdbOutputs(folder, size, OutputMetrics(registry))

    def spoil(name: bytes, data: bytes) -> None:
        with store._env.begin(write=True) as transaction:
            for database in store._databases:
                transaction.put(name, data, db=database)

    return Subject(store, registry, spoil)


def redis_subject(server: RedisServer) -> Subject:
    registry = CollectorRegistry()
    client = redis.Redis.from_url(server.url)
    client.flushall()
    return Subject(
        RedisOutputs(server.url, OutputMetrics(registry)),
        registry,
        lambda name, data: client.set(PREFIX + name, data),
    )


@pytest.fixture(params=["memory", "lmdb", "redis"])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    if request.param == "memory":
        made = Subject(MemoryOutputs(4 * MEGABYTE), CollectorRegistry())
    elif request.param == "lmdb":
        made = lmdb_subject(tmp_path / "outputs")
    else:
        made = redis_subject(request.getfixturevalue("redis_server"))
    yield made
    made.store.close()


# -- the contract ---------------------------------------------------------------------------------------------------


def test_what_was_put_comes_back_in_the_order_of_the_keys(subject: Subject) -> None:
    """Somebody else's vector would be somebody else's twins."""
    subject.store.put([(key(at), value(at)) for at in range(20)])
    asked = [19, 99, 3, 3, 0]
    assert subject.store.get([key(at) for at in asked]) == [value(19), None, value(3), value(3), value(0)]


def test_nothing_asked_and_nothing_put_is_no_error(subject: Subject) -> None:
    subject.store.put([])
    assert subject.store.get([]) == [] and subject.failures("get") == subject.failures("put") == 0


def test_the_last_put_of_a_key_counts(subject: Subject) -> None:
    subject.store.put([(key(1), value(1)), (key(1), value(2))])
    subject.store.put([(key(2), value(1)), (key(2), b"")])
    assert subject.store.get([key(1), key(2)]) == [value(2), b""]


def test_values_of_any_bytes_up_to_two_kilobytes_survive(subject: Subject) -> None:
    """A vector is bytes like any others: zeros, text, nothing."""
    values = [b"", b"\0" * 768, b"{}", *(value(at, at * 100) for at in range(1, 21))]
    subject.store.put([(key(at), each) for at, each in enumerate(values)])
    assert subject.store.get([key(at) for at in range(len(values))]) == values


@pytest.mark.parametrize(
    "damage", ["flipped", "short", "long", "empty", "no header", "other key"], ids=lambda name: name.replace(" ", "-")
)
@pytest.mark.parametrize("subject", ["lmdb", "redis"], indirect=True)
def test_a_damaged_value_is_a_miss(subject: Subject, damage: str) -> None:
    """A wrong vector would answer wrongly for as long as it is kept."""
    assert subject.spoil is not None
    good = seal(key(1), value(1))
    spoilt = {
        "flipped": good[:100] + bytes([good[100] ^ 1]) + good[101:],
        "short": good[:-1],
        "long": good + b"\0",
        "empty": b"",
        "no header": good[:5],
        "other key": seal(key(2), value(2)),
    }[damage]
    subject.store.put([(key(at), value(at)) for at in (1, 2)])
    subject.spoil(key(1), spoilt)
    assert subject.store.get([key(1), key(2)]) == [None, value(2)]


@given(st.binary(max_size=64), st.binary(max_size=64), st.data())
def test_a_seal_opens_for_what_was_sealed_and_nothing_else(name: bytes, content: bytes, data: st.DataObject) -> None:
    """Whatever one byte becomes, it shows."""
    sealed = seal(name, content)
    assert unseal(name, sealed) == content
    at = data.draw(st.integers(0, len(sealed) - 1))
    change = data.draw(st.integers(1, 255))
    assert unseal(name, sealed[:at] + bytes([sealed[at] ^ change]) + sealed[at + 1 :]) is None


def test_keys_tell_version_and_content_apart() -> None:
    """ab + c and a + bc are two questions."""
    pairs = [("ab", b"c"), ("a", b"bc"), ("abc", b""), ("", b"abc"), ("ab", b"d")]
    assert len({key_of(*pair) for pair in pairs}) == len(pairs)
    assert all(len(key_of(*pair)) == 16 for pair in pairs) and key_of("v", b"x") == key_of("v", b"x")


# -- memory ---------------------------------------------------------------------------------------------------------


def test_memory_keeps_the_recently_used_within_its_size() -> None:
    """Bounded, whatever the traffic."""
    store = MemoryOutputs(10 * (768 + 200))
    store.put([(key(at), value(at)) for at in range(10)])
    store.get([key(0)])
    store.put([(key(10), value(10)), (key(10), value(11)), (key(9), value(9))])
    found = store.get([key(at) for at in range(11)])
    assert [at for at in range(11) if found[at] is None] == [1]
    store.put([(key(99), value(0, 20_000))])
    assert store.get([key(99), key(10)]) == [None, None] and store._used == 0


# -- LMDB -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [20, 200, 900, 2_500])
def test_memory_takes_the_room_that_it_counts(length: int) -> None:
    """``gateway.outputs_mb`` is what an operator plans with; orjson's answers are longer than they say."""
    tracemalloc.start()
    try:
        store, before = MemoryOutputs(MEGABYTE), tracemalloc.get_traced_memory()[0]
        for number in range(6_000):
            store.put([(number.to_bytes(16, "little"), orjson.dumps("x" * length))])
        assert tracemalloc.get_traced_memory()[0] - before < 1.1 * MEGABYTE
    finally:
        tracemalloc.stop()


def test_a_full_folder_drops_the_old_and_keeps_the_new(tmp_path: Path) -> None:
    """The disk is bounded, and the store never stops taking what is asked today."""
    subject = lmdb_subject(tmp_path)
    for at in range(0, 20_000, 10):
        subject.store.put([(key(each), value(each)) for each in range(at, at + 10)])
        assert subject.store.get([key(at + 9)]) == [value(at + 9)]
    found = subject.store.get([key(at) for at in range(20_000)])
    kept = [at for at in range(20_000) if found[at] is not None]
    assert 1_500 < len(kept) < 6_000 and kept == list(range(kept[0], 20_000))
    assert all(found[at] == value(at) for at in kept) and subject.failures("put") == 0
    assert sum(path.stat().st_size for path in tmp_path.rglob("data.mdb")) <= 4 * MEGABYTE


def process_of(script: str, folder: Path) -> subprocess.Popen[str]:
    """The script in a process of its own; it says when it is ready."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    pipe = subprocess.PIPE
    words = [sys.executable, "-c", script, str(folder)]
    return subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=ROOT)


READER = """
import sys
from prometheus_client import CollectorRegistry
from tastetwin.serving.gateway.outputs import OutputMetrics
from tastetwin.serving.gateway.outputs_lmdb import LmdbOutputs
store = LmdbOutputs(sys.argv[1], 1 << 20, OutputMetrics(CollectorRegistry()))
with store._env.begin():
    sys.stdout.write("ready\\n")
    sys.stdout.flush()
    sys.stdin.readline()
"""


def test_a_process_killed_while_it_reads_does_not_stop_the_store(tmp_path: Path) -> None:
    """It pins dropped pages: writes fail, are counted, and come back once it is gone, for it never says goodbye."""
    subject = lmdb_subject(tmp_path, MEGABYTE)
    with process_of(READER, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for at in range(6_000):
            subject.store.put([(key(at), value(at))])
            subject.store.get([key(at)])
        assert subject.failures("put") > 0
        process.kill()
    for _ in range(2):
        subject.store.put([(key(-1), value(7))])
    assert subject.store.get([key(-1)]) == [value(7)]
    subject.store.close()


WORKER = """
import itertools, sys
from prometheus_client import CollectorRegistry
from tastetwin.serving.gateway.outputs import OutputMetrics
from tastetwin.serving.gateway.outputs_lmdb import LmdbOutputs
from tests.serving.gateway.test_outputs import key, value
store = LmdbOutputs(sys.argv[1], 4 << 20, OutputMetrics(CollectorRegistry()))
for at in itertools.count():
    store.put([(key(at), value(at))])
    assert store.get([key(at)])[0] in (None, value(at))
    if at == 50:
        sys.stdout.write("ready\\n")
        sys.stdout.flush()
        sys.stdin.readline()
"""


def test_processes_share_a_folder_and_one_killed_while_it_writes_harms_nobody(tmp_path: Path) -> None:
    """A gateway runs as several processes, and kill -9 comes at any moment."""
    subject = lmdb_subject(tmp_path)
    for _ in range(3):
        with process_of(WORKER, tmp_path) as process:
            assert process.stdin is not None and process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            assert subject.store.get([key(at) for at in range(50)]) == [value(at) for at in range(50)]
            process.stdin.write("go on\n")
            process.stdin.flush()
            for at in range(300):
                subject.store.put([(key(-at), value(at))])
            assert process.poll() is None, "it writes all the while"
            process.kill()
        subject.store.put([(key(-1), value(7))])
        assert subject.store.get([key(-1)]) == [value(7)]
    assert subject.failures("get") == 0  # a put may find the map full of pages that a killed reader held, once
    subject.store.close()


@pytest.mark.parametrize("damage", ["garbage", "truncated", "empty"])
def test_a_damaged_file_is_made_anew(tmp_path: Path, damage: str) -> None:
    """A cache that keeps its owner from starting is worse than none; a short file would even end the process."""
    subject = lmdb_subject(tmp_path)
    subject.store.put([(key(at), value(at)) for at in range(500)])
    subject.store.close()
    (path,) = tmp_path.rglob("data.mdb")
    data = path.read_bytes()
    path.write_bytes({"garbage": random.Random(1).randbytes(len(data)), "truncated": data[:8192], "empty": b""}[damage])
    subject = lmdb_subject(tmp_path)
    assert subject.store.get([key(at) for at in range(500)]) == [None] * 500
    subject.store.put([(key(1), value(1))])
    assert subject.store.get([key(1)]) == [value(1)]
    subject.store.close()


def test_outputs_outlive_the_process_but_not_the_boot(tmp_path: Path) -> None:
    """Nothing is synced: after a crash of the machine the file may be anything."""
    subject = lmdb_subject(tmp_path)
    subject.store.put([(key(1), value(1))])
    subject.store.close()
    subject = lmdb_subject(tmp_path)
    assert subject.store.get([key(1)]) == [value(1)]
    subject.store.close()
    (folder,) = tmp_path.iterdir()
    folder.rename(tmp_path / "boot-of-yesterday")
    subject = lmdb_subject(tmp_path)
    assert subject.store.get([key(1)]) == [None] and [each.name for each in tmp_path.iterdir()] == [folder.name]
    subject.store.close()


def test_a_folder_larger_than_it_may_be_is_made_anew(tmp_path: Path) -> None:
    """``outputs_mb`` is a promise about the disk, after a change too."""
    subject = lmdb_subject(tmp_path, 8 * MEGABYTE)
    subject.store.put([(key(at), value(at)) for at in range(4_000)])
    subject.store.close()
    lmdb_subject(tmp_path, MEGABYTE).store.close()
    assert sum(path.stat().st_size for path in tmp_path.rglob("data.mdb")) <= MEGABYTE


def test_the_folder_is_nobody_elses(tmp_path: Path) -> None:
    """Vectors are made of histories."""
    lmdb_subject(tmp_path / "outputs").store.close()
    assert (tmp_path / "outputs").stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.rglob("*.mdb"))


def test_its_owner_can_enter_the_folder_without_being_root(tmp_path: Path) -> None:
    """LMDB makes a folder with the mode of its files: root does not notice, every other user is locked out."""
    lmdb_subject(tmp_path / "outputs").store.close()
    assert {path.stat().st_mode & 0o700 for path in tmp_path.rglob("*") if path.is_dir()} == {0o700}


def test_a_folder_that_cannot_be_made_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="STORE-UNWRITABLE"):
        lmdb_subject(tmp_path / "file")


def test_a_store_in_trouble_is_a_miss_and_a_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No user waits for the cache to be mended."""
    subject = lmdb_subject(tmp_path)

    class Broken:
        def begin(self, **_: bool) -> None:
            raise lmdb.ReadersFullError("told to")

        def reader_check(self) -> None:
            raise lmdb.Error("told to")

    subject.store.close()
    monkeypatch.setattr(subject.store, "_env", Broken())
    subject.store.put([(key(1), value(1))])
    assert subject.store.get([key(1)]) == [None]
    assert (subject.failures("get"), subject.failures("put")) == (1, 1)


# -- Redis ----------------------------------------------------------------------------------------------------------


def test_a_redis_that_dies_is_misses_and_comes_back(redis_server: RedisServer) -> None:
    """Its restart is nobody's incident."""
    now = [0.0]
    registry = CollectorRegistry()
    store = RedisOutputs(redis_server.url, OutputMetrics(registry), clock=lambda: now[0])
    subject = Subject(store, registry)
    store.put([(key(1), value(1))])
    redis_server.kill()
    try:
        assert store.get([key(1)]) == [None] and subject.failures("get") == 1
        store.put([(key(1), value(1))])
        assert store.get([key(1)]) == [None]
        assert subject.failures("get") + subject.failures("put") == 1, "left alone for a moment"
    finally:
        redis_server.start()
    now[0] += outputs_redis.PAUSE
    store.put([(key(1), value(1))])
    assert store.get([key(1)]) == [value(1)]
    store.close()


def test_a_redis_that_never_answers_costs_its_time_out_once() -> None:
    """A thousand requests do not each wait for a server that hangs."""
    listener = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def accept() -> None:
        try:
            while True:
                held.append(listener.accept()[0])
        except OSError:
            return

    threading.Thread(target=accept, daemon=True).start()
    registry = CollectorRegistry()
    store = RedisOutputs(f"redis://127.0.0.1:{listener.getsockname()[1]}", OutputMetrics(registry), clock=lambda: 0.0)
    assert [store.get([key(1)]) for _ in range(1_000)] == [[None]] * 1_000
    assert Subject(store, registry).failures("get") == 1
    listener.close()
    for each in held:
        each.close()


@pytest.mark.parametrize("wrong", ["password", "type"])
def test_a_redis_that_refuses_is_misses(redis_server: RedisServer, wrong: str) -> None:
    """A changed password, or another application's key of our name."""
    subject = redis_subject(redis_server)
    client = redis.Redis.from_url(redis_server.url)
    if wrong == "type":
        client.rpush(PREFIX + key(1), "theirs")
        assert subject.store.get([key(1)]) == [None]
    else:
        store = RedisOutputs(redis_server.url.replace("s3cret", "wrong"), OutputMetrics(CollectorRegistry()))
        assert store.get([key(1)]) == [None]
        store.close()
    subject.store.close()


def test_every_key_in_redis_expires(redis_server: RedisServer) -> None:
    """Vectors of a version that is long gone must not fill somebody's memory."""
    subject = redis_subject(redis_server)
    subject.store.put([(key(at), value(at)) for at in range(3)])
    client = redis.Redis.from_url(redis_server.url)
    assert [0 < client.ttl(name) <= outputs_redis.EXPIRY for name in client.scan_iter()] == [True] * 3
    subject.store.close()


# -- by configuration -----------------------------------------------------------------------------------------------


def test_the_setting_names_the_store(tmp_path: Path, redis_server: RedisServer) -> None:
    metrics = OutputMetrics(CollectorRegistry())
    kinds = {"": MemoryOutputs, str(tmp_path / "outputs"): LmdbOutputs, redis_server.url: RedisOutputs}
    for address, kind in kinds.items():
        store = open_outputs(GatewayConfig(outputs=address or None), metrics)
        assert isinstance(store, kind)
        store.close()


@pytest.mark.parametrize(
    "address",
    ["memcached://u:s3cret@h", "redis://u:s3cret@h:port/0", "redis://:s3cret@h/0?no_such=1", "redis://:s3cret@[::"],
)
def test_an_address_that_is_none_is_refused_without_telling_a_password(address: str) -> None:
    """Such errors end up in logs and tickets."""
    with pytest.raises(UsageError, match="OUTPUTS-ADDRESS") as caught:
        open_outputs(GatewayConfig(outputs=address), OutputMetrics(CollectorRegistry()))
    assert "s3cret" not in str(caught.value)
