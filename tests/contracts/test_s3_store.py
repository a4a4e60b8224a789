"""Stores and sources on S3: refusals that a reader can act on, and the whole daily job over the protocol."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final

import pyarrow.fs as pafs
import pytest

from tastetwin import filesystems
from tastetwin.config import Config
from tastetwin.delivery.lost import Lost, lost_rows
from tastetwin.engine import Engine
from tastetwin.errors import StoreError, TasteTwinError
from tastetwin.filesystems import S3
from tastetwin.generations import FOLDERS, STAGES
from tastetwin.mart.stage import build_mart
from tastetwin.runs import list_runs, published
from tastetwin.sources.files import Folder
from tastetwin.sources.synthetic import TownConfig, write_day, write_town
from tastetwin.store import Store
from tests import handmade
from tests.conftest import Mart
from tests.contracts.conftest import S3Server
from tests.world import QUICK

pytestmark = pytest.mark.slow

TOWN: Final = TownConfig(users=200, seed=3)
DAYS: Final = (TOWN.until, TOWN.until + timedelta(days=1))


def refusal(url: str) -> StoreError:
    with pytest.raises(StoreError) as caught:
        Store.create(url)
    return caught.value


# -- what can go wrong at the door -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://", "s3://BUCKET/FOLDER"),
        ("s3://key:pa55w0rd@bucket/store", "AWS_"),
        ("gs://bucket/store", "gcsfs"),
        ("nosuch://bucket/store", "nosuch"),
    ],
)
def test_an_address_without_a_file_system_says_what_is_missing(url: str, says: str) -> None:
    """A typo, a package that is not installed, a password where it would end up in logs: one code, one sentence."""
    for enter in (Store, Folder):
        with pytest.raises(TasteTwinError) as caught:
            enter(url)
        assert caught.value.problem.code == {Store: "STORE-ADDRESS", Folder: "SOURCE-SCHEME"}[enter]
        assert says in caught.value.problem.value
        assert "pa55w0rd" not in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "allowed", "region", "says"),
    [
        ("http://127.0.0.1:9", "", "us-east-1", "AWS_ALLOW_HTTP"),
        ("127.0.0.1:9", "true", "us-east-1", "http(s)://"),
        ("https://127.0.0.1:9", "", "", "AWS_REGION"),
    ],
)
def test_an_endpoint_that_the_engine_would_refuse_is_refused_at_the_door(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, allowed: str, region: str, says: str
) -> None:
    """The embedded engine opens the files by itself, stages later, and would fail there with a stack trace."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ALLOW_HTTP", allowed)
    monkeypatch.setenv("AWS_REGION", region)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    problem = refusal("s3://bucket/store").problem
    assert problem.code == "STORE-ADDRESS"
    assert says in problem.value


def test_a_bucket_that_is_not_there_is_named(s3: str) -> None:
    """We make folders, not buckets: those have owners, regions and rules."""
    problem = refusal(f"s3://absent-{uuid.uuid4()}/store").problem
    assert problem.code == "STORE-UNREADABLE"
    assert "NO_SUCH_BUCKET" in problem.value


def test_nobody_at_the_endpoint_is_told_at_once(monkeypatch: pytest.MonkeyPatch, s3: str) -> None:
    """A wrong port must not look like an empty store, nor like a hanging program."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
    for enter in (Store.open, Folder):
        with pytest.raises(TasteTwinError) as caught:
            enter(s3)
        assert caught.value.problem.code in ("STORE-UNREADABLE", "SOURCE-UNREADABLE")
        assert "connect" in caught.value.problem.value


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch, s3: str) -> None:
    """The time-outs are ours and finite, also where the connection itself succeeds."""
    monkeypatch.setattr(filesystems, "REQUEST_SECONDS", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        problem = refusal(s3).problem
    assert problem.code == "STORE-UNREADABLE"
    assert "Timeout" in problem.value


@pytest.fixture
def guarded(s3: str, s3_server: S3Server) -> Iterator[str]:
    """The same server, asking who is there."""

    def unasked(requests: bytes) -> None:
        address = f"http://{s3_server.host}/moto-api/reset-auth"
        request = urllib.request.Request(address, requests, {"Content-Type": "text/plain"}, method="POST")
        urllib.request.urlopen(request, timeout=10).close()

    unasked(b"0")
    yield s3
    unasked(b"inf")


def test_keys_that_the_server_refuses_do_not_make_a_store_look_absent(guarded: str) -> None:
    """A store that is taken for a new one would be begun afresh."""
    for enter in (Store.create, Store.open):
        with pytest.raises(StoreError) as caught:
            enter(guarded)
        assert caught.value.problem.code == "STORE-UNREADABLE"
        assert "credentials" in caught.value.problem.fix


@pytest.mark.parametrize("start_seconds", [0.0, 0.1])
def test_a_put_during_which_a_signal_arrives_is_whole(s3: str, start_seconds: float) -> None:
    """The pointer to the published run is such a put; SIGTERM between opening and writing must not empty it, nor may
    the put go on behind the caller's back where the signal meets a thread that is still being started."""
    store = Store.create(s3)
    store.write_bytes("f", b"old")
    real, real_start = S3.open, threading.Thread.start

    def start(self: threading.Thread) -> None:
        real_start(self)
        time.sleep(start_seconds)

    def opened(self: S3, *arguments: Any, **more: Any) -> Any:
        handle = real(self, *arguments, **more)
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(2 * start_seconds)
        return handle

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(S3, "open", opened)
            patch.setattr(threading.Thread, "start", start)
            store.write_bytes("f", b"new")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert store.open_read("f").read() == b"new"


# -- the whole job -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Twice:
    """Two days of one town from the same bucket, in a store on S3 and in one on a disk."""

    remote: str
    local: str
    source: str
    config: Path
    environment: dict[str, str]

    def stores(self, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, Store]:
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        return Store.open(self.remote), Store.open(self.local)

    def both(self, *words: str) -> list[str]:
        """What a verb prints, asked of the one and of the other."""
        return [tastetwin(self.environment, *words, "--store", store) for store in (self.remote, self.local)]


def tastetwin(environment: dict[str, str], *words: str) -> str:
    """A command as a user gives it: a process of its own, all settings of S3 in its environment."""
    # Threads that wait for each other are all that a town of this size could use more of.
    done = subprocess.run(
        [sys.executable, "-m", "tastetwin", *words], env=os.environ | environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def twice(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Twice:
    folder, name = tmp_path_factory.mktemp("twice"), uuid.uuid4()
    write_town(TOWN, folder / "day-0")
    write_day(TOWN, 1, folder / "day-1")
    bucket = f"{s3_server.bucket}/{name}"
    for number in range(len(DAYS)):
        pafs.copy_files(
            str(folder / f"day-{number}"), f"{bucket}/day-{number}", pafs.LocalFileSystem(), s3_server.client()
        )
    config = folder / "quick.yaml"
    config.write_text(QUICK.model_dump_json(), encoding="utf-8")
    made = Twice(f"s3://{bucket}/store", str(folder / "store"), f"s3://{bucket}/day", config, s3_server.environment)
    for number, day in enumerate(DAYS):
        made.both("run", "--source", f"{made.source}-{number}", "--date", str(day), "--config", str(config))
    return made


def test_every_file_of_two_days_is_the_same_on_s3_as_on_a_disk(twice: Twice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a store is must not show in anything it holds: same names, same bytes, manifests included."""
    remote, local = twice.stores(monkeypatch)
    assert [run.status for run in list_runs(remote)] == ["delivered"] * len(DAYS)
    found, wanted = ({name: each.sha256(name) for name in _generations(each)} for each in (remote, local))
    assert {name.split("/")[0] for name in wanted} == set(FOLDERS.values())
    assert found == wanted


def _generations(store: Store) -> list[str]:
    return [name for name in store.files("") if name.split("/")[0] in FOLDERS.values()]


def test_the_answers_are_the_same_too(twice: Twice, tmp_path: Path) -> None:
    """``sql``, ``similar``, ``export`` and ``embed`` read in different ways: Arrow, the engine, a model by URL."""
    remote, local = twice.both("sql", "SELECT * FROM result ORDER BY idno", "--json")
    assert remote == local
    user = json.loads(local.splitlines()[0])["idno"]
    remote, local = twice.both("similar", user, "--json")
    assert json.loads(remote) == json.loads(local)
    assert len(json.loads(remote)["twins"]) == 10
    for verb in (["export", "vectors"], ["embed", f"{twice.source}-0", "--date", str(DAYS[0])]):
        files = [tmp_path / f"{verb[0]}-{number}.parquet" for number in range(2)]
        for to, store in zip(files, (twice.remote, twice.local), strict=True):
            tastetwin(twice.environment, *verb, "--to", str(to), "--store", store)
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_run_again_on_s3_finds_its_finished_work_and_readers_can_go_back(
    twice: Twice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished work is found by its name, and the pointer is one object."""
    store, _ = twice.stores(monkeypatch)
    day: date = DAYS[1]
    words = ["--source", f"{twice.source}-1", "--date", str(day), "--config", str(twice.config)]
    tastetwin(twice.environment, "run", *words, "--store", twice.remote)
    before, after = (run.stages for run in list_runs(store)[-2:])
    unpublished = STAGES[: STAGES.index("evaluate")]  # from there on a run depends on what readers see
    assert [after[stage].generation for stage in unpublished] == [before[stage].generation for stage in unpublished]
    now = published(store)
    assert now is not None and now.run_id == f"{day}.2"
    tastetwin(twice.environment, "rollback", "--store", twice.remote)
    now = published(store)
    assert now is not None and now.run_id == f"{day}.1"


def test_what_a_later_landing_left_out_is_found_on_s3(s3: str, engine: Engine, tmp_path: Path) -> None:
    """The marts of both runs are compared where they lie, by the engine's own reading and by ours."""
    mart = Mart(engine, tmp_path, Config())
    mart.store = Store.create(s3)
    rows = [{"user_idno": user, "review_id": "1", "review_place_id": "p"} for user in ("ann", "bob", "cid")]
    made = []
    for files in ({"reviews-a.jsonl": rows[:1], "reviews-b.jsonl": rows[1:]}, {"reviews-b.jsonl": rows[1:]}):
        lake = mart.land(DAYS[0], files)
        built = build_mart(engine, mart.store, lake, None, mart.config)
        made.append(handmade.run_of(mart.store, {"mart": built.generation}, day=DAYS[0].isoformat()))
    assert lost_rows(lambda: engine, mart.store, *made) == [Lost("reviews", DAYS[0].isoformat(), 1, 3)]
