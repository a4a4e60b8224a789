"""One command serves a store by all tiers, keeps them up, and takes all of them down."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tastetwin.config import AppConfig, Config, GatewayConfig, ServeConfig
from tastetwin.errors import StoreError
from tastetwin.serving.keys import Keys
from tastetwin.serving.together import METRICS, RESTARTS, Home, Tier, all_tiers
from tests.serving.processes import started
from tests.world import Journey

pytestmark = pytest.mark.slow

READY = re.compile("ready: model")
KEY = re.compile(r"tt_[A-Za-z0-9_-]+")


def free_ports(n: int) -> int:
    """The first of n ports in a row that nobody listens on."""
    for first in range(31_000, 60_000, 7):
        held = []
        try:
            for port in range(first, first + n):
                held.append(socket.create_server(("127.0.0.1", port)))
        except OSError:
            continue
        else:
            return first
        finally:
            for each in held:
                each.close()
    raise AssertionError("no free ports")


def ask(url: str, key: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def words_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def test_from_a_store_to_a_user_s_twins_by_one_command(copied: Journey, tmp_path: Path) -> None:
    """A tier that dies comes back, and nothing is left behind at the end."""
    port = free_ports(3 + METRICS)
    home = tmp_path / "home"
    arguments = ["serve", "--store", copied.store.root, "--home", str(home), "--port", str(port)]
    with started(arguments, {"TASTETWIN_SERVE__DRAIN_SECONDS": "0"}) as server:
        server.wait_for(READY)
        key = server.wait_for(KEY)
        user = copied.tt.twins().column("user_idno")[0].as_py()
        token = ask(f"http://127.0.0.1:{port + 2}/v1/tokens", key, {"user": user, "seconds": 60})["token"]
        twins = ask(f"http://127.0.0.1:{port + 2}/v1/me/twins", token)
        assert twins["people"]
        for number in (1, 2):
            with urllib.request.urlopen(f"http://127.0.0.1:{port + number + METRICS}/metrics", timeout=10) as said:
                assert b"tastetwin_requests_total" in said.read()
        tiers = children(server.process.pid)
        gateway = next(pid for pid in tiers if "gateway" in words_of(pid))
        os.kill(gateway, signal.SIGKILL)
        server.wait_for(re.compile(r"gateway ended \(exit -9\); started again"))
        until = time.monotonic() + 30
        while True:
            try:
                assert ask(f"http://127.0.0.1:{port + 2}/v1/me/twins", token) == twins
                break
            except (urllib.error.URLError, ConnectionError):
                assert time.monotonic() < until, server.lines
                time.sleep(0.2)
        tiers = children(server.process.pid)
        assert len(tiers) == 3
        assert server.end() == 0
        assert not [pid for pid in tiers if Path(f"/proc/{pid}").exists()]
    assert key not in (home / "keys.json").read_text()


def test_nobody_is_left_behind_however_it_ends(copied: Journey, tmp_path: Path) -> None:
    """Killed with -9 the command cannot end its tiers; they would go on to hold the ports."""
    port = str(free_ports(3 + METRICS))
    arguments = ["serve", "--store", copied.store.root, "--home", str(tmp_path / "home"), "--port", port]
    with started(arguments) as server:
        server.wait_for(READY)
        tiers = children(server.process.pid)
        assert len(tiers) == 3
        server.end(signal.SIGKILL)
        until = time.monotonic() + 30
        while any(Path(f"/proc/{pid}").exists() for pid in tiers):
            assert time.monotonic() < until
            time.sleep(0.1)


def test_what_is_wrong_is_told_before_anything_is_made(copied: Journey, tmp_path: Path) -> None:
    """A port that is taken: one error, no home, no key that is shown once."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1] - 1
        arguments = ["serve", "--store", copied.store.root, "--home", str(tmp_path / "home"), "--port", str(port)]
        with started(arguments) as server:
            server.wait_for(re.compile("SERVE-ADDRESS"))
            ports = [port, port + 1, port + 2, port + 1 + METRICS, port + 2 + METRICS]
            server.wait_for(re.compile(f"rule: all of these ports are free: {', '.join(map(str, ports))}$"))
            server.wait_for(re.compile("fix: .* --port$"))
            assert server.process.wait(30) == 2
    assert not (tmp_path / "home").exists()


def test_a_home_is_made_once(tmp_path: Path) -> None:
    """The owner's key is shown once and stays good; nobody else on the machine reads any of it."""
    first = Home.at(tmp_path / "home")
    assert first.new_key is not None
    again = Home.at(tmp_path / "home")
    assert again.new_key is None
    keys = Keys(again.keys)
    owner, app = keys.caller(first.new_key), keys.caller(again.gateway_key.read_text())
    assert owner is not None and app is not None
    assert "score" in owner.scopes and "score" not in app.scopes
    assert (tmp_path / "home").stat().st_mode & 0o077 == 0
    assert again.gateway_key.stat().st_mode & 0o077 == 0


def test_a_home_that_was_half_made_is_made_anew(tmp_path: Path) -> None:
    """Killed between the two files, nobody had seen a key."""
    Home.at(tmp_path / "home").gateway_key.unlink()
    assert Home.at(tmp_path / "home").new_key is not None


def test_a_full_disk_leaves_no_home_with_half_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The app would find an empty key, and the owner's would never have been shown."""
    home = tmp_path / "home"

    def full(descriptor: int) -> None:
        if "gateway.key" in Path(f"/proc/self/fd/{descriptor}").readlink().name:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(StoreError, match=r"KEYS-FILE.*No space"):
        patch.setattr("os.fsync", full)
        Home.at(home)
    assert Home.at(home).new_key is not None
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="KEYS-FILE"):
        Home.at(tmp_path / "file" / "home")


def test_events_are_served_where_there_are_brokers(tmp_path: Path) -> None:
    """Without Kafka there is nothing to consume."""
    home = Home.at(tmp_path / "home")
    without = all_tiers("store", home, Config(), None, 8101)
    with_brokers = all_tiers("store", home, Config(app=AppConfig(brokers="localhost:9092")), None, 8101)
    assert [tier.name for tier in without] == ["backend", "gateway", "app"]
    assert [tier.name for tier in with_brokers] == ["backend", "gateway", "app", "events"]


def test_what_is_set_wins_over_what_a_home_would_add(tmp_path: Path) -> None:
    """A Redis that gateways share must not be left aside for a folder, nor a drain that somebody asked for."""
    home, at = Home(tmp_path, None), ("http://127.0.0.1:1", "http://127.0.0.1:2")
    added = home.settings(Config(), *at)
    assert added["gateway"] == {"backends": [at[0]], "fresh": f"{tmp_path}/fresh", "outputs": f"{tmp_path}/outputs"}
    assert added["app"] == {"gateway": at[1], "state": f"{tmp_path}/state"}
    assert added["serve"] == added["backend"] == {"drain_seconds": 0}
    own = Config(gateway=GatewayConfig(fresh="redis://r/1"), serve=ServeConfig(drain_seconds=9))
    assert home.settings(own, *at)["gateway"]["fresh"] == "redis://r/1"
    assert home.settings(own, *at)["serve"] == {}


def test_a_tier_that_ends_again_and_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that is wrong would else be tried for ever, and nobody would read why. Each time is told."""
    said: list[str] = []
    tier = Tier("backend", ["backend", "--no-such-option"], "http://127.0.0.1:1/")
    tier.start()
    with pytest.raises(StoreError, match="TIER-ENDED"):
        for _ in range(RESTARTS + 1):
            assert tier.process is not None
            tier.process.wait(60)
            tier.revive(said.append)
    assert len(said) == RESTARTS
    assert all(re.fullmatch(r"backend ended \(exit -?\d+\); started again", each) for each in said)
