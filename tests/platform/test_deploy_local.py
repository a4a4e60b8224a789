"""Blue-green on this machine: real servers, Debian's HAProxy, and wrk to tell what clients notice."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from blue_green import Here, free_block
from tastetwin.config import Config, DeployConfig
from tastetwin.deploy.detached import Detached
from tastetwin.deploy.local import COLOURS, LocalTarget, _is_taken
from tastetwin.errors import StoreError
from tastetwin.serving.together import Home
from tests.deploy.contract import DeployContract, Only, Place, served
from tests.deploy.town import Town, make_town

MISSING = [name for name in ("haproxy", "wrk") if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"NOT TESTED: {MISSING} missing; make test-platform installs them"
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Town:
    """Read only."""
    return make_town(tmp_path_factory.mktemp("deploy"))


@dataclass(frozen=True)
class Local(Place):
    """See there."""

    here: Here

    def command(self, *words: str) -> subprocess.Popen[str]:
        return self.here.command(*words, stderr=subprocess.PIPE)

    def empty(self) -> None:
        self.target.stop()


@pytest.fixture(scope="module")
def place(runs: Town, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    """One for all tests: each begins with a deployment of the old run, whatever is there."""
    here = Here(runs.store, tmp_path_factory.mktemp("local") / "home", free_block())
    config = Config(deploy=DeployConfig(port=here.port, golden=5, check_seconds=0.2))
    target = LocalTarget(Home.at(here.home), runs.store, config)
    with target.alone():  # makes the folder
        pass
    yield Local(runs.store, runs.old, runs.new, runs.bad, target, here)
    target.stop()
    assert not running(here.home)


def running(home: Path) -> list[str]:
    """Whatever was started for a home, and lives."""
    found = []
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            try:
                words = (each / "cmdline").read_text().split("\0")
                if str(home) in " ".join(words) or (each / "cwd").resolve() == home / "deploy":
                    found.append(" ".join(words))
            except OSError:
                continue
    return found


class TestLocal(DeployContract):
    """The promises of every target."""

    back_from = (1, 3, 5, 6)
    killed_after = ("model", "switch", "remove-app")

    def test_whenever_it_is_killed_nothing_is_started_twice_and_the_end_is_the_same(self, place: Local) -> None:
        """Between two steps is not the only moment: a process may have been started and not yet looked at."""
        served(place, place.old)
        drawn = random.Random(7)
        for number in range(3):
            run = (place.new, place.old)[number % 2]
            killed = place.command("--run", run.run_id)
            time.sleep(drawn.uniform(1.0, 5.0))
            killed.send_signal(signal.SIGKILL)
            killed.communicate(timeout=60)
            served(place, run)
            assert len(running(place.here.home)) == 4, "backend, gateway, app and HAProxy"

    def test_two_commands_do_not_meet(self, place: Local) -> None:
        """They would take the same colour."""
        with place.target.alone(), pytest.raises(StoreError, match="DEPLOY-BUSY"), place.target.alone():
            pass

    def test_what_has_ended_is_started_again(self, place: Local) -> None:
        """Nobody watches over the processes, so the next deployment has to; HAProxy must know who answers."""
        served(place, place.old)
        for name in ("haproxy", "blue-gateway", "blue-backend"):
            os.kill(Detached(place.here.home / "deploy", name).pid() or 0, signal.SIGKILL)
        time.sleep(0.2)
        now = place.target.standing()
        assert (now.live, now.models, now.apps, now.balancer) == (
            place.old.run_id, {place.old.run_id: False}, {place.old.run_id: False}, False,
        )  # fmt: skip
        served(place, place.old)

    def test_a_port_that_somebody_else_has_is_not_taken_for_a_server_of_ours(self, place: Local) -> None:
        """Another home's backend would answer golden queries, and end whenever it likes."""
        served(place, place.old)
        ports = [place.here.port + first for first in COLOURS.values()]
        taken = next(port for port in ports if not _is_taken(port))
        with socket.create_server(("127.0.0.1", taken)), pytest.raises(StoreError, match=f"DEPLOY-NOT-READY.*{taken}"):
            place.deployment(place.new).all_steps()
        assert Only(place.old) == place.target.standing()

    def test_prometheus_is_told_where_what_runs_is_scraped(self, place: Local) -> None:
        """Colours take turns: without this, an alert goes off for the one that was ended."""
        served(place, place.old)
        served(place, place.new)
        found = json.loads((place.here.home / "deploy" / "targets.json").read_text())
        assert len(found) == 3 and len({each["labels"]["job"].rpartition("-")[0] for each in found}) == 1
        for each in found:
            with urllib.request.urlopen(f"http://{each['targets'][0]}/metrics", timeout=10) as said:
                assert b"tastetwin_" in said.read()

    def test_nobody_notices_three_deployments_of_which_one_is_spoilt(self, place: Local, tmp_path: Path) -> None:
        """The promise itself: no request of gateway or app fails. Twenty: benchmarks/blue_green.py."""
        served(place, place.old)
        _, loads = place.here.load(place.old, tmp_path / "wrk", 60)
        codes = [place.here.deploy("--run", run.run_id) for run in (place.new, place.bad, place.old)]
        found = [load.stop() for load in loads]
        assert codes == [0, 5, 0]
        assert Only(place.old) == place.target.standing()
        assert all(each["requests"] > 200 for each in found)
        assert [each["failed"] for each in found] == [0, 0]
