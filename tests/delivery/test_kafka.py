"""A compacted topic holds exactly the published lists, whatever was pushed before and wherever a push was killed.

The broker is librdkafka's own mock cluster: the real protocol over TCP, without a controller (no topics are made by
it, none of their settings are told) and without compaction, which the reader here does itself. What needs a real
cluster runs where ``TASTETWIN_TEST_KAFKA`` names one, as HOST:PORT.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("confluent_kafka")

from tastetwin.delivery.kafka import Address, Topic, read_client
from tastetwin.delivery.publish import roll_back
from tastetwin.delivery.push import FOLDER, HELD, Pushed, push, read_record, targets, tombstones
from tastetwin.delivery.sql import query
from tastetwin.errors import StoreError, UsageError
from tastetwin.privacy.opt_out import opt_in, opt_out
from tastetwin.runs import publish, published_run
from tastetwin.store import Store
from tastetwin.tables import read_files
from tests import handmade
from tests.delivery.topics import Cluster, Reader
from tests.test_cli import Shell, shell  # noqa: F401

pytestmark = pytest.mark.slow

Lists = Mapping[str, Sequence[str]]

HOSTILE: Final = ["", "\x00", "é", "e\u0301", "골목", "\U0010ffff", '"}', "\\", "a\nb", "a" * 256, "0", "00", " "]
FIRST: Final[Lists] = {"ann": ["bob", "cid", ""], "bob": ["ann"], "": ["ann", "골목"], "골목": ["", "bob"]}
SECOND: Final[Lists] = {"ann": ["bob", "cid", ""], "bob": ["cid"], "cid": ["bob"], "": ["ann"]}
"""Since FIRST: ann is the same, bob and "" changed, cid is new, 골목 is gone."""


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return Cluster()


class Service:
    """A store, a topic, and who reads it."""

    def __init__(self, store: Store, cluster: Cluster) -> None:
        self.store, self.target = store, cluster.topic()
        self.topic = Topic(Address.of(self.target), {"linger.ms": "0"})
        self.reader = Reader(cluster.brokers, Address.of(self.target).topic)
        self._runs = 0

    def publish(self, lists: Lists, buckets: int = handmade.BUCKETS) -> str:
        self._runs += 1
        run = handmade.run_with_lists(self.store, f"g{self._runs}", lists, buckets=buckets)
        return publish(self.store, run.run_id).run_id

    def push(self, **how: Any) -> Pushed:
        return push(self.store, self.target, self.topic, **how)

    def sent(self) -> dict[bytes, bytes | None]:
        """What came since the last time, each key once."""
        before = len(self.reader.messages)
        self.reader.read()
        new = self.reader.messages[before:]
        assert len(dict(new)) == len(new), "nobody is told twice in a push"
        return dict(new)

    def assert_topic_is_what_is_published(self, k: int = 10) -> None:
        """By the view that planners see, row by row."""
        found = {key: [(t["idno"], t["rank"], t["percentile"]) for t in value["twins"]]
                 for key, value in self.reader.read().items()}  # fmt: skip
        rows = query(self.store, "SELECT idno, payload.twins AS twins FROM result").to_pylist()
        assert found == {
            row["idno"].encode(): [
                (twin["twin_idno"], rank, int(twin["percentile"])) for rank, twin in enumerate(row["twins"][:k], 1)
            ]
            for row in rows
        }


@pytest.fixture
def service(tmp_path: Path, cluster: Cluster) -> Iterator[Service]:
    made = Service(Store.create(tmp_path / "store"), cluster)
    yield made
    made.reader.close()


# -- what is sent -----------------------------------------------------------------------------------------------------


def test_a_value_is_the_list_with_its_run_and_without_scores(service: Service) -> None:
    """Written out, since clients in other languages rely on it; a score would tell one user how close another lives."""
    run = service.publish({"골목": ["", "bob"]})
    assert service.push() == Pushed(service.target, run, values=1, tombstones=0, unchanged=0)
    twins = '[{"idno":"","rank":1,"percentile":99},{"idno":"bob","rank":2,"percentile":98}]'
    value = f'{{"schema":1,"run_id":"{run}","logical_date":"2026-06-01","twins":{twins}}}'
    assert service.sent() == {"골목".encode(): value.encode()}


def test_only_changed_lists_are_sent_and_who_left_gets_a_tombstone(service: Service) -> None:
    """First everything, then what differs, then nothing."""
    service.publish(FIRST)
    service.push()
    assert service.sent().keys() == {user.encode() for user in FIRST}
    service.assert_topic_is_what_is_published()
    run = service.publish(SECOND)
    assert service.push() == Pushed(service.target, run, values=3, tombstones=1, unchanged=1)
    sent = service.sent()
    assert sent.keys() == {b"bob", b"cid", b"", "골목".encode()} and sent["골목".encode()] is None
    service.assert_topic_is_what_is_published()
    assert service.push() == Pushed(service.target, run, values=0, tombstones=0, unchanged=4)
    assert service.sent() == {}


def test_a_run_that_was_rolled_back_leaves_the_topic(service: Service) -> None:
    """Its new users too."""
    service.publish(FIRST), service.push()
    service.publish(SECOND), service.push()
    service.reader.read()
    roll_back(service.store)
    assert (service.push().values, len(service.sent())) == (3, 4)
    service.assert_topic_is_what_is_published()


def test_the_same_lists_in_another_run_are_not_sent_again(service: Service) -> None:
    """A day without events; also when the number of buckets was changed meanwhile."""
    service.publish(FIRST), service.push()
    service.publish(FIRST, buckets=3)
    assert service.push().unchanged == 4
    service.publish(SECOND, buckets=5), service.push()
    service.assert_topic_is_what_is_published()


def test_another_order_or_another_length_is_a_change(service: Service) -> None:
    """Readers would see it."""
    service.publish({"ann": ["bob", "cid"], "bob": ["ann"]}), service.push()
    service.publish({"ann": ["cid", "bob"], "bob": ["ann"]})
    assert service.push().values == 1
    assert service.push(k=1).values == 1
    service.assert_topic_is_what_is_published(k=1)


def test_full_sends_everything_once_more(service: Service) -> None:
    """For a topic that was made anew; the same bytes."""
    service.publish(FIRST), service.push()
    before = service.sent()
    assert (service.push(full=True).values, service.sent()) == (4, before)


def test_a_user_s_messages_stay_in_order(service: Service) -> None:
    """All in one partition, an empty id's too, for which librdkafka would draw one: a tombstone must not come first."""
    service.publish({user: ["ann"] for user in HOSTILE})
    for _ in range(8):
        service.push(full=True)
    service.reader.read()
    assert len(service.reader.messages) == 8 * len(HOSTILE) and len(service.reader.places) == len(HOSTILE)


def test_an_opt_out_is_a_tombstone_and_a_changed_list_at_the_next_push(service: Service) -> None:
    """No new run is needed; taken back, the lists are as they were. Who has nobody left has an empty list."""
    service.publish(FIRST), service.push()
    service.sent()
    opt_out(service.store, ["ann"])
    assert service.push() == Pushed(service.target, published_run(service.store).run_id, 2, 1, 1)
    sent = service.sent()
    assert sent[b"ann"] is None and b"ann" not in b"".join(value or b"" for value in sent.values())
    assert json.loads(sent[b"bob"] or b"")["twins"] == []
    service.assert_topic_is_what_is_published()
    assert service.push().unchanged == 3 and service.sent() == {}
    opt_in(service.store, ["ann"])
    assert service.push().values == 3
    service.assert_topic_is_what_is_published()


def test_who_has_opted_out_is_never_sent(service: Service) -> None:
    """Neither as a key with a value nor within a list, on the first push of a run that was made before."""
    service.publish(FIRST)
    opt_out(service.store, ["골목", "bob"])
    service.push()
    sent = service.sent()
    assert sent.keys() == {b"ann", b""}
    assert not any(name in (value or b"") for value in sent.values() for name in ("골목".encode(), b"bob"))
    service.assert_topic_is_what_is_published()


def test_a_dry_run_counts_and_leaves_no_trace(service: Service) -> None:
    """Nobody is asked, nothing is sent or noted."""
    run = service.publish(FIRST)
    before = service.store.files("")
    assert push(service.store, service.target, None) == Pushed(service.target, run, 4, 0, 0)
    assert service.store.files("") == before and service.sent() == {}


def test_two_topics_are_told_apart(service: Service, cluster: Cluster) -> None:
    """What is in one says nothing of the other."""
    service.publish(FIRST), service.push()
    other = cluster.topic()
    assert push(service.store, other, Topic(Address.of(other), {})).values == 4
    assert sorted(targets(service.store)) == sorted([service.target, other])
    record = read_record(service.store, other)
    assert record is not None and record.run_id == published_run(service.store).run_id


@given(st.lists(st.tuples(st.integers(0, 1 << 32), st.sampled_from(["run", "back", "out", "in", "push", "break"])),
                min_size=1, max_size=12))  # fmt: skip
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_happens_the_next_push_makes_the_topic_what_is_published(
    cluster: Cluster, tmp_path: Path, steps: list[tuple[int, str]]
) -> None:
    """Runs with hostile ids, rollbacks, opt-outs, pushes that break off anywhere between two messages."""
    service = Service(Store.create(tmp_path / uuid.uuid4().hex), cluster)
    service.publish(some_lists(random.Random(0)))
    for seed, step in steps:
        take_step(service, random.Random(seed), step)
    service.push()
    service.assert_topic_is_what_is_published()
    assert service.push().values == 0
    service.reader.close()


def some_lists(chance: random.Random) -> dict[str, list[str]]:
    users = chance.sample(HOSTILE, chance.randint(1, len(HOSTILE)))
    return {user: chance.sample(HOSTILE, chance.randint(1, 4)) for user in users}


def take_step(service: Service, chance: random.Random, step: str) -> None:
    if step == "run":
        service.publish(some_lists(chance), buckets=chance.randint(1, 4))
    elif step == "back":
        try:
            roll_back(service.store)
        except UsageError as error:
            assert error.problem.code == "NO-PREVIOUS"
    elif step in ("out", "in"):
        (opt_out if step == "out" else opt_in)(service.store, chance.sample(HOSTILE, 2))
    elif step == "push":
        service.push()
    else:
        with suppress(ConnectionAbortedError):
            push(service.store, service.target, Breaking(service.topic, chance.randint(0, 6)), full=True)


class Breaking:
    """A topic that is cut off after some messages, without a word of which arrived."""

    def __init__(self, topic: Topic, after: int) -> None:
        self._topic, self._left = topic, after

    def send(self, messages: Iterable[tuple[bytes, bytes | None]]) -> int:
        todo = list(messages)
        now, self._left = todo[: self._left], self._left - len(todo)
        self._topic.send(now)
        if self._left <= 0:
            raise ConnectionAbortedError
        return len(todo)


# -- killed -----------------------------------------------------------------------------------------------------------

MANY: Final = [f"user {number}" for number in range(120)]
POINTS: Final = int(os.environ.get("KILL_POINTS", "14"))


def test_a_push_killed_anywhere_loses_nothing_and_is_finished_by_the_same_command(
    service: Service, tmp_path: Path
) -> None:
    """kill -9 before or after any write to the store or any message, with messages under way; then another run may be
    published before the next attempt. Old users have to go, new ones to come, opt-outs to hold."""
    chance = random.Random(7)
    killed = 0
    for point in range(POINTS):
        service.publish({user: chance.sample(MANY, 3) for user in chance.sample(MANY, 60)}, buckets=2)
        (opt_in if point % 3 else opt_out)(service.store, chance.sample(MANY, 3))
        ended = struck(service, at=chance.randint(1, 130))
        killed += ended == -9
        assert ended in (-9, 0), ended
        if point % 2:
            continue  # the next attempt is for another run
        assert struck(service, at=0) == 0
        service.assert_topic_is_what_is_published()
    assert struck(service, at=0) == 0
    service.assert_topic_is_what_is_published()
    assert killed >= POINTS // 2, "kills did happen"


STRIKE: Final = """
import os, random, signal, sys, time
from confluent_kafka import Producer
from tastetwin.delivery import kafka, push
from tastetwin.store import Store

root, target, at = sys.argv[1], sys.argv[2], int(sys.argv[3])
chance, count = random.Random(at), 0

def counted(work):
    def do(*arguments, **named):
        global count
        for before in (True, False):
            if not before:
                done = work(*arguments, **named)
            count += 1
            if count == at:
                time.sleep(chance.choice([0, 0.002, 0.02]))  # librdkafka's own thread may send meanwhile
                os.kill(os.getpid(), signal.SIGKILL)
        return done
    return do

class Watched(Producer):
    produce = counted(Producer.produce)

kafka.Producer = Watched
Store.write_bytes = counted(Store.write_bytes)
topic = kafka.Topic(kafka.Address.of(target), {"linger.ms": "1"})
push.push(Store.open(root), target, topic)
"""


def struck(service: Service, at: int) -> int:
    """Push in a process of its own that kills itself at one of its operations (0 = at none); its exit code."""
    command = [sys.executable, "-c", STRIKE, service.store.root, service.target, str(at)]
    return subprocess.run(command, timeout=120).returncode


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "localhost:9092/twins",
        "kafka://localhost/twins",
        "kafka://localhost:9092/",
        "kafka://localhost:9092/a b",
        "kafka://me:hunter2@localhost:9092/t",
        f"kafka://localhost:9092/{'a' * 250}",
    ],
)
def test_an_address_that_is_none_is_refused_and_no_password_repeated(target: str) -> None:
    with pytest.raises(UsageError) as caught:
        Address.of(target)
    assert caught.value.problem.code == "KAFKA-ADDRESS" and "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", ["acks=1", "enable.idempotence = false", "nonsense", "bootstrap.servers=x", b"\xff"])
def test_a_client_file_cannot_undo_the_promise(tmp_path: Path, text: str | bytes) -> None:
    file = tmp_path / "client.properties"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match="KAFKA-CLIENT"):
        read_client(file)


def test_a_client_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "client.properties"
    file.write_text("# ours\n\nsasl.password = a=b \nlinger.ms=5\n")
    assert read_client(file) == {"sasl.password": "a=b", "linger.ms": "5"} and read_client(None) == {}
    with pytest.raises(UsageError, match="KAFKA-CLIENT"):
        Topic(Address("localhost:1", "t"), {"no.such.setting": "1"})
    with pytest.raises(UsageError, match="KAFKA-CLIENT"):
        read_client(tmp_path / "absent")


def test_where_no_cluster_answers_nothing_is_begun(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tastetwin.delivery.kafka.SECONDS", 1.0)
    with pytest.raises(StoreError, match="KAFKA-UNREACHABLE"):
        Topic(Address("127.0.0.1:1", "t"), {}).prepare()


def test_a_topic_that_is_not_there_and_cannot_be_made_is_said(cluster: Cluster) -> None:
    """The mock has no controller; a topic that producers make by themselves would not be compacted."""
    topic = Topic(Address(cluster.brokers, f"absent-{uuid.uuid4().hex}"), {})
    with pytest.raises(StoreError) as caught:
        topic.prepare()
    assert caught.value.problem.code == "KAFKA-NO-TOPIC"
    assert "--bootstrap-server 127.0.0.1:" in caught.value.problem.fix
    assert "cleanup.policy=compact" in caught.value.problem.fix


def test_what_cannot_be_asked_is_said(service: Service) -> None:
    assert "could not be asked" in str(service.topic.prepare())


def test_a_message_that_is_too_large_fails_the_push_and_the_next_one_heals_it(service: Service) -> None:
    """Nobody's list is left out in silence; what was sent before is sent again, since nobody knows how far it came."""
    long = {user: ["x" * 200 + str(number) for number in range(8)] for user in ("a", "b")}
    service.publish({**FIRST, **long})
    small = Topic(Address.of(service.target), {"message.max.bytes": "1000"})
    with pytest.raises(StoreError) as caught:
        push(service.store, service.target, small)
    assert caught.value.problem.code == "KAFKA-UNDELIVERED" and "too large" in caught.value.problem.value
    record = read_record(service.store, service.target)
    assert record is not None and record.run_id is None
    service.push()
    service.assert_topic_is_what_is_published()


def test_a_cluster_that_goes_away_fails_the_push(service: Service, tmp_path: Path) -> None:
    """Within the message's time; the same push to a cluster that is there does all."""
    service.publish(FIRST)
    away = Topic(Address("127.0.0.1:1", "t"), {"message.timeout.ms": "500"})
    with pytest.raises(StoreError, match="KAFKA-UNDELIVERED"):
        push(service.store, service.target, away)
    assert service.push().values == 4
    service.assert_topic_is_what_is_published()


def test_more_messages_than_the_queue_holds(service: Service) -> None:
    """librdkafka refuses what is too much at once; nothing of it is lost."""
    service.topic = Topic(Address.of(service.target), {"queue.buffering.max.messages": "5", "linger.ms": "0"})
    service.publish({user: ["ann"] for user in MANY})
    service.push()
    service.assert_topic_is_what_is_published()


# -- tombstones -------------------------------------------------------------------------------------------------------


def test_tombstones_are_sent_for_anybody_and_nothing_is_kept_of_them(service: Service) -> None:
    """For ``forget``: in no value, not among what the store remembers. Unknown users, too: nobody knows for sure."""
    service.publish(FIRST), service.push()
    service.sent()
    assert tombstones(service.store, service.target, service.topic, ["ann", "", "stranger", "ann", "\ud800"]) == 3
    assert service.sent() == {b"ann": None, b"": None, b"stranger": None}
    assert held(service) == {"bob", "골목"}
    opt_out(service.store, ["ann"])
    assert service.push().values == 2, "'' again, and bob, without her"


def held(service: Service) -> set[str]:
    paths = [path for path in service.store.files(FOLDER) if path.endswith(".parquet")]
    return set(read_files(service.store, paths, HELD)["user_idno"].to_pylist())


def test_tombstones_that_break_off_leave_it_open_what_the_topic_holds(service: Service) -> None:
    """Who is published is sent again by the next push, whether or not the tombstone had arrived."""
    service.publish(FIRST), service.push()
    with pytest.raises(ConnectionAbortedError):
        tombstones(service.store, service.target, Breaking(service.topic, 1), ["ann"])
    assert service.push().values == 1
    service.assert_topic_is_what_is_published()


def test_tombstones_before_the_first_push(service: Service) -> None:
    """A topic that another store pushed to, say."""
    assert tombstones(service.store, service.target, service.topic, ["ann"]) == 1
    assert service.sent() == {b"ann": None} and targets(service.store) == []


# -- the command ------------------------------------------------------------------------------------------------------


def test_push_says_what_it_sent(shell: Shell, service: Service, tmp_path: Path) -> None:  # noqa: F811
    """In JSON; what could not be asked goes to stderr."""
    run = service.publish(FIRST)
    (tmp_path / "client").write_text("linger.ms=0\n")
    where = ("--to", service.target, "--store", service.store.root, "--json", "--client", str(tmp_path / "client"))
    counts = {"target": service.target, "run_id": run, "values": 4, "tombstones": 0, "unchanged": 0}
    assert json.loads(shell("push", *where, "--dry-run").out) == counts
    done = shell("push", *where)
    assert json.loads(done.out) == counts and "could not be asked" in done.err
    service.assert_topic_is_what_is_published()
    assert json.loads(shell("push", *where, "--full").out)["values"] == 4
    assert shell("push", "--to", "nowhere", "--store", service.store.root, "--json").error["code"] == "KAFKA-ADDRESS"


# -- a real cluster ---------------------------------------------------------------------------------------------------


def test_on_a_real_cluster_the_topic_is_made_compacted_and_another_one_refused(tmp_path: Path) -> None:
    """What the mock cannot answer. Set TASTETWIN_TEST_KAFKA=HOST:PORT, of a cluster where topics may be made."""
    brokers = os.environ.get("TASTETWIN_TEST_KAFKA")
    if brokers is None:
        pytest.skip("no Kafka cluster: set TASTETWIN_TEST_KAFKA=HOST:PORT")
    from confluent_kafka.admin import AdminClient, NewTopic

    name = f"tastetwin-test-{uuid.uuid4().hex}"
    admin = AdminClient({"bootstrap.servers": brokers})
    try:
        topic = Topic(Address(brokers, name), {})
        assert topic.prepare() is None and topic.prepare() is None
        store = Store.create(tmp_path / "store")
        publish(store, handmade.run_with_lists(store, "g", FIRST).run_id)
        push(store, f"kafka://{brokers}/{name}", topic)
        reader = Reader(brokers, name)
        assert reader.read().keys() == {user.encode() for user in FIRST}
        reader.close()
        admin.create_topics([NewTopic(f"{name}-d", config={"cleanup.policy": "delete"})])[f"{name}-d"].result(30)
        with pytest.raises(StoreError, match="KAFKA-NOT-COMPACTED"):
            Topic(Address(brokers, f"{name}-d"), {}).prepare()
    finally:
        for future in admin.delete_topics([name, f"{name}-d"]).values():
            future.exception(30)
