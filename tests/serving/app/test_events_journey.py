"""The real tiers in a row: an event in Kafka, and the user's twin list in Kafka knows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

pytest.importorskip("confluent_kafka")

from tastetwin.config import AppConfig, Config
from tastetwin.delivery.pack import pack_folder
from tastetwin.features.ids import IdIndex
from tastetwin.runs import published_run
from tastetwin.serving.keys import add_key
from tests.serving.app.members import Process
from tests.serving.app.mock_kafka import MockKafka
from tests.world import Journey


@contextmanager
def served(log: Path, *arguments: str, **settings: str) -> Iterator[str]:
    """``tastetwin serve ...`` in a process; its address, once it answers."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "tastetwin", "serve", *arguments, "--port", "0"],
            env={**os.environ, **settings}, stdout=out, stderr=out,
        )  # fmt: skip
    try:
        end = time.monotonic() + 60
        while not (found := [word for word in log.read_text().split() if word.startswith("http://")]):
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield found[0]
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
def test_a_user_s_new_favors_change_the_list_in_the_topic(copied: Journey, tmp_path: Path) -> None:
    """Backend, gateway and consumer as they are run; a bad event of the same user becomes a dead letter."""
    cluster, root = MockKafka(), str(copied.store.root)
    topics = {
        "events_topic": cluster.topic("e"),
        "twins_topic": cluster.topic("t"),
        "dead_letter_topic": cluster.topic("d"),
    }
    config = Config(app=AppConfig(brokers=cluster.brokers, group="g", **topics))
    key = add_key(tmp_path / "keys.json", "events", ["favors"], 1e6, 1_000_000)
    with ExitStack() as stack:
        backend = stack.enter_context(served(tmp_path / "backend", "backend", "--store", root))
        backends = {"TASTETWIN_GATEWAY__BACKENDS": json.dumps([backend])}
        keys = ["--keys", str(tmp_path / "keys.json")]
        gateway = stack.enter_context(served(tmp_path / "gateway", "gateway", "--store", root, *keys, **backends))
        folder = Path(root) / pack_folder(published_run(copied.store).run_id)
        people, places = IdIndex.open(folder / "people"), IdIndex.open(folder / "places")
        user = people.name(3)
        favors = [{"user_idno": user, "like_contentsid": places.name(at)} for at in range(30)]
        bad = {"user_idno": user, "like_contentsid": "x" * 300}
        cluster.write(config.app.events_topic, [(user.encode(), json.dumps(e).encode(), []) for e in [*favors, bad]])
        member = Process(config, gateway, tmp_path, key=key)
        stack.callback(member.kill)
        end = time.monotonic() + 40
        while sum(cluster.committed(config.app.events_topic, "g").values()) < 31:
            assert time.monotonic() < end, member.told()
            time.sleep(0.1)
        assert member.end() == 0
    message = cluster.read(config.app.twins_topic)[-1]
    value = json.loads(message.value() or b"")
    run = published_run(copied.store)
    assert message.key() == user.encode() and value["version"] == run.run_id
    assert value["watermark"]["offset"] == 29 and user not in value["twins"] and len(value["twins"]) == 20
    assert all(people.position(each) >= 0 for each in value["twins"])
    dead = dict(cluster.read(config.app.dead_letter_topic)[0].headers() or [])
    assert dead["tastetwin-reason"] == b"place_too_long"
    assert user not in member.told() and user not in (tmp_path / "gateway").read_text()
