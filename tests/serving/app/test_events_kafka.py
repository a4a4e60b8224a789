"""Events in, twin lists out: nothing lost and nothing wrong, whatever is killed, stopped, spoilt or away.

The cluster is librdkafka's mock (the real protocol over TCP, groups with sessions that run out and commits refused to
members that were put out; no compaction, which the reader here does itself, by the watermark). Members are processes.
"""

from __future__ import annotations

import io
import json
import random
import signal
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

pytest.importorskip("confluent_kafka")

from confluent_kafka import KafkaError, Message

from tastetwin.config import AppConfig, Config
from tastetwin.errors import StoreError, UsageError
from tastetwin.serving.app.events.lanes import Lane
from tastetwin.serving.app.events.letters import bury, open_letter
from tastetwin.serving.app.events.message import Message as Event
from tastetwin.serving.app.events.outbox import Outbox
from tastetwin.serving.app.events.replay import Replayed, count, read_dead, replay
from tastetwin.serving.app.events.serve import Member, serve_events
from tests.serving.app.fake_gateway import BAD_PLACE, UNKNOWN, Adapter, FakeGateway
from tests.serving.app.members import CLIENT, SESSION_MS, Process
from tests.serving.app.mock_kafka import MockKafka
from tests.test_cli import Shell, shell  # noqa: F401

pytestmark = pytest.mark.slow

USERS: Final = 25
GROUP: Final = "g"
SHORT: Final = CLIENT.replace(str(SESSION_MS), "500").replace("300", "100")
"""Whoever is killed is missed soon: the mock lets no static member take its place before."""
POISON: Final[Mapping[str, bytes]] = {
    "truncated": b'{"user_idno":"u1"',
    "not_an_object": b"[]",
    "invalid_utf8": b"\xff\xfe",
    "no_value": b"",
    "too_large": b'{"user_idno":"u1","like_contentsid":"' + b"x" * 70_000 + b'"}',
    "too_deep": b'{"user_idno":"u1","like_contentsid":"p","x":' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    "user_missing": b'{"like_contentsid":"p"}',
    "kind_missing": b'{"user_idno":"u1"}',
    "place_bad": b'{"user_idno":"u1","like_contentsid":"bad"}',
}


@pytest.fixture(scope="module")
def cluster() -> MockKafka:
    return MockKafka()


def headers_of(message: Message) -> Any:
    return list(message.headers() or [])


def header(message: Message, name: str) -> str:
    return str(dict(headers_of(message))[name].decode())


class Town:
    """Topics, a gateway, members, and what the truth is."""

    def __init__(self, cluster: MockKafka, folder: Path) -> None:
        self.cluster, self.folder, self.gateway = cluster, folder, FakeGateway()
        self.events, self.twins, self.dead = (cluster.topic(name) for name in ("events", "twins", "dead"))
        self.config = Config(
            app=AppConfig(
                brokers=cluster.brokers,
                events_topic=self.events,
                twins_topic=self.twins,
                dead_letter_topic=self.dead,
                group=GROUP,
                events_batch=40,
                events_wait_ms=20,
            )
        )
        self.truth: dict[str, list[str]] = {}
        """User -> places, in order."""
        self.written = 0
        self.members: list[Process] = []

    def member(self, **more: Any) -> Process:
        self.members.append(Process(self.config, self.gateway.url, self.folder, **more))
        return self.members[-1]

    def write(self, numbers: Iterable[int]) -> None:
        """Numbered events of users in turn."""
        self.send((f"u{number % USERS}", f"p{number}") for number in numbers)

    def send(self, favors: Iterable[tuple[str, str]]) -> None:
        messages: list[Any] = []
        for at, (user, place) in enumerate(favors):
            if place != BAD_PLACE:
                self.truth.setdefault(user, []).append(place)
            field = "like_contentsid" if at % 2 else "review_place_id"
            messages.append((user.encode(), json.dumps({"user_idno": user, field: place}).encode(), []))
        self.put(messages)

    def put(self, messages: list[Any]) -> None:
        self.written += len(messages)
        self.cluster.write(self.events, messages)

    def wait(self, seconds: float = 40) -> None:
        """Until everything is committed."""
        until(lambda: sum(self.cluster.committed(self.events, GROUP).values()) == self.written, seconds, self.told)

    def told(self) -> str:
        return "\n".join(member.told()[-2_000:] for member in self.members[-2:])

    def lists(self) -> dict[str, Any]:
        """User -> last value, by the watermark; None for a tombstone."""
        last: dict[str, tuple[int, Any]] = {}
        for message in self.cluster.read(self.twins):
            mark = int(header(message, "tastetwin-watermark").rsplit(":", 1)[1])
            user = (message.key() or b"").decode()
            value = message.value()
            if mark > last.get(user, (-1, None))[0]:
                last[user] = (mark, json.loads(value) if value is not None else None)
        return {user: value for user, (_, value) in last.items()}

    def letters(self) -> list[Any]:
        found = [open_letter(m.key(), m.value(), headers_of(m)) for m in self.cluster.read(self.dead)]
        return [letter for letter in found if letter is not None]

    def assert_right(self) -> None:
        """Every event had its effect, in its user's order, and the last list of every user knows all of them."""
        assert dict(self.gateway.known) == self.truth
        assert {user: value["twins"] for user, value in self.lists().items()} == self.truth


@pytest.fixture
def town(cluster: MockKafka, tmp_path: Path) -> Iterator[Town]:
    made = Town(cluster, tmp_path)
    yield made
    for member in made.members:
        member.kill()


def until(so: Callable[[], bool], seconds: float, told: Callable[[], str] = str) -> None:
    end = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < end, f"not within {seconds} s: {told()}"
        time.sleep(0.05)


# -- in peace ---------------------------------------------------------------------------------------------------------


def test_an_update_says_the_list_what_it_was_made_from_and_no_score(town: Town) -> None:
    """Written out, since consumers in other languages rely on it."""
    town.send([("u1", "p1"), ("u1", "p2")])
    member = town.member()
    town.wait()
    assert member.end() == 0
    message = town.cluster.read(town.twins)[-1]
    value = json.loads(message.value() or b"")
    mark = value.pop("watermark")
    assert message.key() == b"u1" and mark["topic"] == town.events and mark["offset"] == 1
    assert value == {"schema": 1, "user": "u1", "version": "2026-06-01.1", "bundle": "2026-06-01-aa",
                     "as_of": "2026-06-01", "twins": ["p1", "p2"]}  # fmt: skip


def test_a_user_without_a_list_gets_a_tombstone(town: Town) -> None:
    """Too few favors yet, or opted out: what the topic may hold of them goes."""
    town.send([(UNKNOWN, "p1")])
    town.member()
    town.wait()
    assert town.lists() == {UNKNOWN: None} and town.letters() == []


def test_a_sigterm_finishes_and_commits_what_is_under_way(town: Town) -> None:
    """Exit 0, and the next member has nothing to do twice."""
    town.write(range(400))
    member = town.member()
    until(lambda: town.gateway.requests > 1, 20, town.told)
    assert member.end() == 0
    committed = sum(town.cluster.committed(town.events, GROUP).values())
    assert committed == sum(map(len, town.gateway.known.values())) > 0
    town.member()
    town.wait()
    town.assert_right()
    assert len(town.cluster.read(town.twins)) <= 400


def test_metrics_tell_outcomes_and_lag_and_no_user(town: Town) -> None:
    """The lag of messages not begun counts too; health does not depend on it."""
    town.gateway.down.set()
    town.send([("somebody-0815", f"p{number}") for number in range(300)])
    town.put([(b"k", b"{", [])])
    address = town.member().address()
    until(lambda: "tastetwin_events_lag_messages 301.0" in page(address), 20, town.told)
    assert 'retries_total{code="HTTP-503"}' in page(address)
    assert number_of("tastetwin_events_oldest_seconds", page(address)) > 0
    assert urllib.request.urlopen(address.replace("metrics", "readyz")).status == 200
    town.gateway.down.clear()
    town.wait()
    until(lambda: "tastetwin_events_lag_messages 0.0" in page(address), 20, town.told)
    text = page(address)
    assert 'messages_total{outcome="taken"} 300.0' in text and 'dead_total{reason="truncated"} 1.0' in text
    assert "0815" not in text and "0815" not in town.told()


def page(address: str) -> str:
    return str(urllib.request.urlopen(address, timeout=5).read().decode())


def number_of(name: str, text: str) -> float:
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


# -- poison -----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_used_becomes_a_dead_letter_and_stops_nobody(town: Town) -> None:
    """The original's bytes, key and headers, where it was and why; the good events around it count."""
    town.write(range(60))
    town.put([(b"key", value, [("theirs", b"1")]) for value in POISON.values()])
    town.write(range(60, 120))
    town.member()
    town.wait()
    town.assert_right()
    letters = town.letters()
    assert {letter.reason: letter.value for letter in letters} == dict(POISON) and len(letters) == len(POISON)
    places = {(m.partition(), m.offset()): m.value() for m in town.cluster.read(town.events)}
    for letter in letters:
        assert places[letter.origin.partition, letter.origin.offset] == letter.value
        assert (letter.origin.topic, letter.key, letter.attempts) == (town.events, b"key", 1)
        assert letter.headers == [("theirs", b"1")] and letter.first_seen.startswith("20")


def test_a_header_that_the_package_cannot_read_stops_nobody(town: Town) -> None:
    """confluent-kafka raises SystemError for a name that is not UTF-8: one message would end every member in turn."""
    town.send([("u1", "p1")])
    town.cluster.write_with_header(town.events, b'{"user_idno":"u2","like_contentsid":"q1"}', b"\xff\xfe")
    town.truth["u2"], town.written = ["q1"], town.written + 1
    member = town.member()
    town.wait()
    town.assert_right()
    assert member.end() == 0


def test_one_bad_event_does_not_take_the_user_s_good_ones_along(town: Town) -> None:
    """The gateway refuses all events of a user in a request that has a bad one; they are told apart, in order."""
    town.send([("u1", "p1"), ("u2", "q1"), ("u1", BAD_PLACE), ("u1", "p2"), ("u1", BAD_PLACE), ("u1", "p3")])
    town.member()
    town.wait()
    town.assert_right()
    assert [letter.reason for letter in town.letters()] == ["place_bad"] * 2


def test_a_dead_letter_that_is_sent_back_counts_its_attempts_and_stops_at_the_limit(town: Town) -> None:
    """By reason; what is sent back once is not sent back again; the cause mended, it has its effect."""
    town.send([("u1", BAD_PLACE)])
    town.put([(b"u2", b"{", [("theirs", b"1")])])
    town.member()
    town.wait()

    def again(*reasons: str) -> Replayed:
        dead = read_dead(town.cluster.brokers, {}, town.dead)
        return replay(Outbox(town.cluster.brokers, {}), dead, town.dead, reasons, 3)

    assert again("place_bad") == Replayed(sent=1, exhausted=0, omitted=0, others=1)
    for attempts in (2, 3):
        town.written += 1
        town.wait()
        letter = town.letters()[-1] if town.letters()[-1].reason == "place_bad" else town.letters()[0]
        assert {each.attempts for each in town.letters() if each.reason == "place_bad"} >= {attempts}, letter
        done = again("place_bad")
        assert (done.sent, done.exhausted) == ((1, 0) if attempts < 3 else (0, 1))
    seen = {letter.first_seen for letter in town.letters() if letter.reason == "place_bad"}
    assert len(seen) == 1, "when it was first seen is kept"
    dead = read_dead(town.cluster.brokers, {}, town.dead)
    assert count(dead, 3) == [
        {"reason": "place_bad", "letters": 3, "open": 1, "exhausted": 1},
        {"reason": "truncated", "letters": 1, "open": 1, "exhausted": 0},
    ]


# -- commands ---------------------------------------------------------------------------------------------------------


def test_dead_letters_are_counted_and_sent_back_by_command(
    town: Town,
    shell: Shell,  # noqa: F811
) -> None:
    """In JSON, with the topics and brokers of the settings."""
    town.put([(b"u", b"{", []), (b"u", b"[]", [])])
    town.member()
    town.wait()
    file = town.folder / "settings.json.yaml"
    file.write_text(json.dumps({"app": town.config.app.model_dump()}))
    rest = ("--config", str(file), "--json")
    told = json.loads(shell("events", "dead", *rest).out)
    assert told["reasons"][1] == {"reason": "truncated", "letters": 1, "open": 1, "exhausted": 0}
    counts = {"sent": 1, "exhausted": 0, "omitted": 0, "others": 1}
    assert json.loads(shell("events", "replay", "--reason", "truncated", *rest).out) == counts
    until(lambda: len(town.letters()) == 3, 20, town.told)
    assert json.loads(shell("events", "dead", *rest, "--max-attempts", "2").out)["reasons"][1]["exhausted"] == 1
    assert shell("events", "dead", *rest, "--from", "absent").error["code"] == "KAFKA-NO-TOPIC"
    assert "truncated" in shell("events", "dead", "--config", str(file)).out


def test_a_consumer_of_topics_that_are_not_there_does_not_wait_in_silence(town: Town) -> None:
    """It would otherwise be taken for one without events."""
    config = Config(app=town.config.app.model_copy(update={"events_topic": "absent"}))
    with pytest.raises(StoreError, match="KAFKA-NO-TOPIC"):
        serve_events(config, lambda: Adapter(""), Member(io.BytesIO()), lambda _: None)
    with pytest.raises(UsageError, match="KAFKA-ADDRESS"):
        serve_events(Config(), lambda: Adapter(""), Member(io.BytesIO()), lambda _: None)


# -- trouble ----------------------------------------------------------------------------------------------------------


def test_a_gateway_that_fails_in_every_way_makes_no_dead_letter_and_loses_nothing(town: Town) -> None:
    """503, 504, 429, 500, garbage, a connection cut before or after the events were taken, a list that is stale."""
    town.gateway.share_of_failures = 0.4
    town.write(range(400))
    town.member()
    town.wait(60)
    town.assert_right()
    assert town.letters() == []


def test_a_member_outlives_a_gateway_that_is_away_for_longer_than_its_session(town: Town) -> None:
    """Its partitions are paused and it keeps polling, so the group keeps it."""
    town.gateway.down.set()
    member = town.member()
    town.write(range(300))
    time.sleep(3 * SESSION_MS / 1_000)
    town.gateway.down.clear()
    town.wait()
    town.assert_right()
    assert "lost" not in member.told() and member.end() == 0


def test_a_sigterm_while_the_gateway_is_away_ends_at_once_and_commits_nothing_undone(town: Town) -> None:
    town.gateway.down.set()
    town.write(range(100))
    member = town.member()
    until(lambda: town.gateway.requests > 0, 20, town.told)
    assert member.end() == 0
    assert sum(town.cluster.committed(town.events, GROUP).values()) == 0


def test_brokers_that_refuse_for_a_while_are_waited_for(town: Town) -> None:
    """Each produce request fails a few times with errors of a cluster that is electing leaders."""
    errors = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.REQUEST_TIMED_OUT, KafkaError.NOT_ENOUGH_REPLICAS)
    member = town.member()
    member.address()
    town.write(range(100))
    town.cluster.fail(MockKafka.PRODUCE, *errors)
    town.wait()
    town.assert_right()


def test_a_letter_that_the_topic_does_not_take_comes_without_its_value(town: Town) -> None:
    """Else its partition would stand still; the original can be found by its offset. It is not sent back."""
    town.put([(b"k", b"{" * 90, [])])
    town.cluster.fail(MockKafka.PRODUCE, KafkaError.MSG_SIZE_TOO_LARGE)
    town.member()
    town.wait()
    assert [(letter.omitted, letter.value, letter.key) for letter in town.letters()] == [(True, b"", b"k")]
    dead = read_dead(town.cluster.brokers, {}, town.dead)
    assert replay(Outbox(town.cluster.brokers, {}), dead, town.dead, (), 3) == Replayed(0, 0, omitted=1, others=0)


def test_a_letter_whose_key_no_topic_takes_comes_without_it(town: Town) -> None:
    """The consumer would end at it, and so would the next one."""
    message = Event(Lane(town.events, 0), 7, b"k" * 50_000, b"[]", [], 0, reason="not_an_object")
    Outbox(town.cluster.brokers, {"message.max.bytes": "10000"}).send([bury(message, town.dead)])
    (letter,) = town.letters()
    assert (letter.key, letter.value, letter.omitted, letter.origin.offset) == (None, b"", True, 7)


def test_what_is_refused_for_good_ends_the_process_and_the_next_one_goes_on(town: Town) -> None:
    """A right that is missing, say: nothing of the batch is committed."""
    town.send([("u1", "p1")])
    town.cluster.fail(MockKafka.PRODUCE, KafkaError.TOPIC_AUTHORIZATION_FAILED)
    member = town.member()
    member.process.join(20)
    assert member.process.exitcode == 1 and "KAFKA-UNDELIVERED" in member.told()
    assert sum(town.cluster.committed(town.events, GROUP).values()) == 0
    town.member()
    town.wait()
    town.assert_right()


# -- killed, stopped, joined ------------------------------------------------------------------------------------------


def test_kill_minus_9_at_any_time_loses_nothing_and_every_effect_is_right(town: Town) -> None:
    """25 kills while numbered events and poison come in, the gateway failing now and then."""
    chance = random.Random(11)
    town.gateway.share_of_failures, town.gateway.seconds = 0.05, 0.03
    poison, number, worked = list(POISON.values()), 0, 0
    for _ in range(25):
        member, before = town.member(instance="only", client=SHORT), town.gateway.requests
        town.write(range(number, number + 100))
        town.put([(b"u1", chance.choice(poison), [])])
        number += 100
        given_up = time.monotonic() + 6  # a session that ends as its successor joins: the mock leaves a group of nobody
        while town.gateway.requests == before and chance.random() > 0.01 and time.monotonic() < given_up:
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 0.15))
        member.kill()
        worked += town.gateway.requests > before
    assert worked > 12, "most were killed at work"
    time.sleep(1)  # the last session has ended
    town.member(instance="only")  # of a session that lasts on a busy machine, too: nobody kills it
    town.wait(60)
    town.assert_right()
    assert len({letter.origin for letter in town.letters()}) == 25


def test_a_member_that_was_stopped_past_its_session_has_no_further_say(town: Town) -> None:
    """Stopped while the gateway answers it, it wakes to find its partitions another's: it sends and commits nothing."""
    number, town.gateway.seconds = 0, 0.2
    for _ in range(3):
        stopped, before = town.member(), town.gateway.requests
        town.write(range(number, number + 200))
        until(lambda: town.gateway.requests > before + 1, 20, town.told)  # noqa: B023
        time.sleep(0.1)
        stopped.signal(signal.SIGSTOP)
        town.write(range(number + 200, number + 300))
        number += 300
        other = town.member()
        town.wait()
        sent = len(town.cluster.read(town.twins))
        stopped.signal(signal.SIGCONT)
        until(lambda: "lost" in stopped.told(), 20, town.told)  # noqa: B023
        time.sleep(0.5)
        assert len(town.cluster.read(town.twins)) == sent, "no list was sent late"
        assert sum(town.cluster.committed(town.events, GROUP).values()) == town.written, "nothing went back"
        stopped.kill()
        other.kill()
    town.assert_right()
    assert "not committed" in stopped.told()


def test_members_that_come_and_go_share_the_partitions_and_lose_nothing(town: Town) -> None:
    """As far as the mock goes: its groups take seconds to rebalance."""
    first = town.member()
    until(lambda: "4 held" in first.told(), 20, town.told)
    town.write(range(300))
    second = town.member()

    def shared() -> bool:
        """A busy machine loses partitions where an idle one gives them up."""
        gone = any(word in first.told() for word in ("up, ", "lost, "))
        return gone and " held" in second.told().replace(" 0 held", "")

    until(shared, 60, town.told)
    town.write(range(300, 600))
    assert first.end() == 0
    town.wait(60)
    assert second.end() == 0
    town.assert_right()


def test_what_is_dropped_in_a_rebalance_is_not_committed(town: Town) -> None:
    """The gateway is away, so the first member can finish nothing of the partitions that it gives up."""
    town.gateway.down.set()
    first = town.member()
    town.write(range(400))
    until(lambda: town.gateway.requests > 0, 20, town.told)
    second = town.member()
    until(lambda: "up, " in first.told() and " held" in second.told().replace(" 0 held", ""), 30, town.told)
    assert sum(town.cluster.committed(town.events, GROUP).values()) == 0
    town.gateway.down.clear()
    town.wait(60)
    town.assert_right()
