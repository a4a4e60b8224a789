"""The parts of the Pub/Sub API by themselves: what a message says, what becomes of a refusal, what may be committed."""

from __future__ import annotations

import asyncio
import json
import sys
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

pytest.importorskip("confluent_kafka")

from tastetwin.client.schemas import FavorEvent, FavorsAnswer
from tastetwin.config import AppConfig, CollectConfig, MartConfig
from tastetwin.errors import StoreError, UsageError
from tastetwin.jsonline import Refused
from tastetwin.mart.rules import GateRules
from tastetwin.serving.app.events.lanes import Lane
from tastetwin.serving.app.events.letters import (
    Letter,
    Origin,
    Outgoing,
    bury,
    open_letter,
    read_receipt,
    receipt,
    send_back,
    shrunk,
)
from tastetwin.serving.app.events.message import Headers, Message, read_event
from tastetwin.serving.app.events.metrics import Metrics
from tastetwin.serving.app.events.replay import Dead, count
from tastetwin.serving.app.events.settings import brokers_of, client_of, consumer_settings
from tastetwin.serving.app.events.taking import MAX_BYTES, Halted, Taken, Taking
from tests.serving.app.fake_gateway import BAD_PLACE, ORIGIN, problem
from tests.test_cli import Shell, shell  # noqa: F401

RULES = GateRules.of(MartConfig(), CollectConfig(), date(2026, 6, 1))
MOST = 1_000


def said(value: bytes | None) -> FavorEvent | str:
    try:
        return read_event(value, RULES, MOST)
    except Refused as refused:
        return refused.reason


# -- what a message says ----------------------------------------------------------------------------------------------


def test_a_line_of_reviews_or_likes_is_an_event_as_it_stands() -> None:
    """Whoever fills the lake can fill the topic with the same lines."""
    review = {"review_id": "r1", "review_rating": 4.0, "review_visited_date": "2026-01-02", "review_place_id": 7}
    like = {"like_regymdt": "2026-01-02T01:56:01", "like_displayid": "place", "like_contentsid": "p"}
    assert said(json.dumps({**review, "user_idno": 42}).encode()) == FavorEvent(user="42", review=review)
    assert said(json.dumps({**like, "user_idno": " 42 "}).encode()) == FavorEvent(user="42", like=like)


def test_the_kind_that_is_said_goes_before_the_fields() -> None:
    both = {"user_idno": "u", "review_place_id": "p", "like_contentsid": "q"}
    rest = {name: value for name, value in both.items() if name != "user_idno"}
    assert said(json.dumps({**both, "kind": "like"}).encode()) == FavorEvent(user="u", like=rest)
    assert said(json.dumps({**both, "kind": "review"}).encode()) == FavorEvent(user="u", review=rest)
    assert said(json.dumps(both).encode()) == "kind_missing"
    assert said(json.dumps({**both, "kind": "follow"}).encode()) == "kind_unknown"
    assert said(json.dumps({**both, "kind": ["like"]}).encode()) == "kind_unknown"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "no_value"),
        (b" " * (MOST + 1), "too_large"),
        (b"[" * 500, "too_deep"),
        (b'{"a":1,"a":2}', "duplicate_key"),
        (b'{"a":NaN}', "non_finite_literal"),
        (b'{"user_idno":"\\ud800","like_contentsid":"p"}', "lone_surrogate"),
        (b'{"user_idno":"null","like_contentsid":"p"}', "user_missing"),
        (b'{"user_idno":true,"like_contentsid":"p"}', "user_type"),
        (b'{"user_idno":["u"],"like_contentsid":"p"}', "user_type"),
    ],
)
def test_what_the_gate_of_the_lake_refuses_is_refused_here(value: bytes | None, reason: str) -> None:
    """By the same words, so that one list of reasons serves both."""
    assert said(value) == reason


@given(st.binary(max_size=300) | st.recursive(st.none() | st.text(), lambda x: st.lists(x) | st.dictionaries(
    st.sampled_from(["user_idno", "kind", "like_contentsid", "review_place_id"]) | st.text(), x)).map(
        lambda x: json.dumps(x).encode()))  # fmt: skip
def test_any_bytes_are_an_event_or_have_a_reason(value: bytes) -> None:
    """A message that raised anything else would end the consumer, again and again."""
    found = said(value)
    assert isinstance(found, FavorEvent) or found.replace("_", "").isalnum()


# -- dead letters -----------------------------------------------------------------------------------------------------

names = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=9)


@given(st.binary() | st.none(), st.binary() | st.none(), st.lists(st.tuples(names, st.binary())), st.integers(0, 9))
def test_a_letter_sent_back_is_the_original_and_comes_back_counted(
    key: bytes | None, value: bytes | None, headers: Headers, offset: int
) -> None:
    message = Message(Lane("events", 3), offset, key, value, list(headers), 0, reason="why")
    for attempt in (1, 2, 3):
        out = bury(message, "dead")
        letter = open_letter(out.key, out.value, out.headers)
        assert letter is not None
        assert letter[:4] == (Origin("events", 3, offset), "why", attempt, letter.first_seen)
        assert (letter.key, letter.value, letter.headers, letter.omitted) == (key, value, headers, False)
        assert read_receipt(receipt(letter, "dead").headers) == letter.origin
        assert open_letter(b"", b"", receipt(letter, "dead").headers) is None
        back = send_back(letter)
        assert (back.topic, back.key, back.value) == ("events", key, value)
        message = Message(Lane("events", 3), offset, back.key, back.value, back.headers, 0, reason="why")


def test_a_letter_that_is_too_long_says_how_long_it_was() -> None:
    """Without its value, since a partition must not stand still for it."""
    out = shrunk(bury(Message(Lane("events", 0), 1, b"k", b"x" * 9, [], 0, reason="too_large"), "dead"))
    letter = open_letter(out.key, out.value, out.headers)
    assert isinstance(letter, Letter) and letter.omitted and ("tastetwin-omitted", b"9") in out.headers


@pytest.mark.parametrize(
    ("key", "headers"), [(b"k" * 99_999, []), (b"k", [("theirs", b"h" * 99_999)]), (b"k", [("h" * 99_999, None)])]
)
def test_no_part_of_a_message_makes_a_letter_that_no_topic_takes(key: bytes, headers: Headers) -> None:
    """It would end the process, and the next one, and its partition would stand still for good."""
    message = Message(Lane("events", 0), 1, key, b"x", headers, 0, reason="not_json")
    out = shrunk(bury(message, "dead"))
    assert len(out.key or b"") + sum(len(name) + len(value or b"") for name, value in out.headers) < 10_000
    letter = open_letter(out.key, out.value, out.headers)
    assert letter is not None and (letter.origin, letter.reason) == (Origin("events", 0, 1), "not_json")
    assert letter.omitted


def test_a_letter_repeats_only_what_another_letter_can_have_said() -> None:
    """When it was first seen comes from the message, and headers are anybody's to write."""
    said: Headers = [("tastetwin-first-seen", b"x" * 99_999)]
    out = bury(Message(Lane("events", 0), 1, b"k", b"x", said, 0, reason="why"), "dead")
    assert len(dict(out.headers)["tastetwin-first-seen"] or b"") == 20
    again = bury(Message(Lane("events", 0), 1, b"k", b"x", list(out.headers), 0, reason="why"), "dead")
    assert dict(again.headers)["tastetwin-first-seen"] == dict(out.headers)["tastetwin-first-seen"]


@pytest.mark.parametrize("value", [None, b"", b"x", b"-1", b"9" * 400, "²".encode(), b"\xff", b"a:b:c"])
def test_headers_that_somebody_else_wrote_break_nothing(value: bytes | None) -> None:
    assert read_receipt([("tastetwin-receipt", value)]) is None
    headers: Headers = [("tastetwin-topic", b"t"), ("tastetwin-attempts", value), ("tastetwin-partition", value)]
    letter = open_letter(None, None, headers)
    assert letter is not None and letter.attempts == 0


class Lying(NamedTuple):
    """A message of the topic of dead letters, as confluent-kafka gives it out."""

    out: Outgoing
    at: int

    def key(self) -> bytes | None:
        return self.out.key

    def value(self) -> bytes | None:
        return self.out.value

    def headers(self) -> Headers:
        return self.out.headers

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self.at


def a_letter(offset: int, reason: str = "why", tried: int = 0, value: bytes = b"") -> Outgoing:
    headers: Headers = [("tastetwin-attempts", b"%d" % tried)]
    return bury(Message(Lane("events", 3), offset, b"k", value, headers, 0, reason=reason), "dead")


def taken_in(outgoing: Iterable[Outgoing]) -> Dead:
    dead = Dead("", {}, "dead")
    for at, out in enumerate(outgoing):
        dead.add(Lying(out, at))  # type: ignore[arg-type]
    return dead


LETTERS = st.tuples(st.integers(0, 5), st.sampled_from(["b", "a", "", "é"]), st.integers(0, 3))


@given(st.lists(st.one_of(LETTERS, st.integers(0, 5))))
def test_letters_are_counted_as_a_slow_reading_of_the_whole_topic_counts_them(given: list[Any]) -> None:
    """The same letter twice is one, as it came last; a receipt may be read before its letter, in another partition."""
    dead = taken_in(a_letter(*each) if isinstance(each, tuple) else returned(each) for each in given)
    last = {each[0]: opened(a_letter(*each)) for each in given if isinstance(each, tuple)}
    rows = []
    for reason in sorted({letter.reason for letter in last.values()}):
        mine = [letter for letter in last.values() if letter.reason == reason]
        left = [letter for letter in mine if letter.origin.offset not in given]
        spent = sum(letter.attempts >= 3 for letter in left)
        rows.append({"reason": reason, "letters": len(mine), "open": len(left), "exhausted": spent})
    assert count(dead, 3) == rows


def returned(offset: int) -> Outgoing:
    return receipt(opened(a_letter(offset)), "dead")


def opened(out: Outgoing) -> Letter:
    letter = open_letter(out.key, out.value, out.headers)
    assert letter is not None
    return letter


def test_memory_does_not_grow_with_the_topic() -> None:
    """An outage may leave more letters than the machine has memory, and then their count is wanted most."""
    tracemalloc.start()
    dead = taken_in(a_letter(number, value=b"%8192d" % number) for number in range(4_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count(dead, 3) == [{"reason": "why", "letters": 4_000, "open": 4_000, "exhausted": 0}]
    assert peak < 4 << 20, "of 32 MB of letters"


# -- what may be committed --------------------------------------------------------------------------------------------


def shown(lane: Lane) -> tuple[int | None, bool, int | None, bool, int]:
    return lane.done, lane.behind, lane.oldest, lane.idle, lane.lag


def test_only_what_is_done_is_behind_and_batches_end_in_order() -> None:
    lane = Lane("events", 0)
    assert shown(lane) == (None, False, None, True, 0)
    lane.begin([5, 6, 8], 1_000)
    lane.begin([9], 2_000)
    assert shown(lane) == (5, False, 1_000, False, 5)
    lane.end()
    assert shown(lane) == (9, True, 2_000, False, 1)
    lane.end()
    assert shown(lane) == (10, True, None, True, 0)


# -- what the gateway says --------------------------------------------------------------------------------------------


class Gateway:
    """Answers as it is told to; a bad event spoils its user's others."""

    def __init__(self, *troubles: Exception | dict[str, Any]) -> None:
        self.troubles, self.asked = list(troubles), list[list[FavorEvent]]()

    async def favors(self, events: Sequence[FavorEvent], *, k: int) -> FavorsAnswer:
        self.asked.append(list(events))
        trouble = self.troubles.pop(0) if self.troubles else {}
        if isinstance(trouble, Exception):
            raise trouble
        users = dict.fromkeys(event.user for event in events)
        items = [self._item(user, [each for each in events if each.user == user]) | trouble for user in users]
        return FavorsAnswer.model_validate({**ORIGIN, "items": items})

    @staticmethod
    def _item(user: str, mine: list[FavorEvent]) -> dict[str, Any]:
        places = [str((event.like or {}).get("like_contentsid")) for event in mine]
        if any(place.startswith(BAD_PLACE) for place in places):
            return {"user": user, "taken": False, "error": problem("FAVOR-REFUSED", "place_bad")}
        return {"user": user, "answer": {"source": "fresh", "twins": []}}


def messages(*favors: str, size: int = 10) -> list[Message]:
    """``user place`` each."""
    lane = Lane("events", 0)
    made = []
    for at, favor in enumerate(favors):
        user, place = favor.split()
        event = FavorEvent(user=user, like={"like_contentsid": place})
        made.append(Message(lane, at, None, b"x" * size, [], 0, event))
    return made


def take(gateway: Gateway, todo: list[Message], stop: bool = False) -> list[Taken]:
    async def run() -> list[Taken]:
        stopping = asyncio.Event()
        if stop:
            stopping.set()

        async def keep(found: Sequence[Message]) -> Sequence[Message]:
            return [each for each in found if not each.lane.gone]

        return await Taking(gateway, 5, keep, Metrics(CollectorRegistry()), stopping).take(todo)

    return asyncio.run(run())


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=30))
def test_exactly_the_bad_events_are_refused_and_each_user_s_order_is_kept(favors: list[tuple[str, bool]]) -> None:
    """Whatever the mixture; a good event is never the price of a bad one."""
    gateway = Gateway()
    todo = messages(*(f"{user} {BAD_PLACE if bad else 'p'}{at}" for at, (user, bad) in enumerate(favors)))
    taken = take(gateway, todo)
    assert [bool(each.reason) for each in todo] == [bad for _, bad in favors]
    assert {each.reason for each in todo} <= {"", "place_bad"}
    last = {user: at for at, (user, bad) in enumerate(favors) if not bad}
    assert {each.item.user: each.last.offset for each in taken} == last
    for user in "abc":
        good = [str((e.like or {})["like_contentsid"]) for part in gateway.asked for e in part if e.user == user]
        applied = [int(place[1:]) for place in good if place.startswith("p")]
        first_seen = list(dict.fromkeys(applied))
        assert first_seen == sorted(first_seen)


TROUBLE: list[Exception | dict[str, Any]] = [
    StoreError("BACKEND-UNAVAILABLE", place="", rule=""),
    StoreError("HTTP-INTERNAL", place="", rule=""),
    UsageError("HTTP-RATE", place="", rule=""),
    UsageError("HTTP-KEY", place="", rule=""),
    ConnectionResetError(),
    TimeoutError(),
    {"answer": {"source": "published", "stale": True, "twins": []}},
    {"error": problem("OPT-OUTS-UNKNOWN")},
]


@pytest.mark.parametrize("trouble", TROUBLE, ids=lambda each: getattr(each, "problem", each))
def test_trouble_is_tried_again_and_blamed_on_no_event(
    trouble: Exception | dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an outage, or a wrong key, would fill the dead letters with good events."""
    monkeypatch.setattr("tastetwin.serving.app.events.taking.FIRST_WAIT", 0.001)
    gateway, todo = Gateway(trouble, trouble), messages("a p", "b q")
    assert len(take(gateway, todo)) == 2 and len(gateway.asked) == 3
    assert not [each for each in todo if each.reason]


def test_a_user_of_whom_no_model_makes_a_vector_stops_nobody_and_loses_no_list() -> None:
    """The event is kept; tried again for as long as it takes, it would stop its partition until the next run."""
    gateway, todo = Gateway({"error": problem("BACKEND-REFUSED")}), messages("a p", "b q")
    assert take(gateway, todo) == [] and len(gateway.asked) == 1
    assert not [each for each in todo if each.reason]


def test_a_refused_request_is_halved_and_a_setting_that_is_wrong_is_no_event_s_fault() -> None:
    """TOO-MANY of one event speaks of ``k``; of many, perhaps of their number."""
    many = UsageError("TOO-MANY", place="events", rule="")
    gateway, todo = Gateway(many), messages("a p", "b q", "c r", "d s")
    assert len(take(gateway, todo)) == 4 and [len(part) for part in gateway.asked] == [4, 2, 2]
    with pytest.raises(Halted):
        take(Gateway(*[many] * 9), messages("a p"), stop=True)


@pytest.mark.parametrize("code", ["BAD-REQUEST", "HTTP-BODY", "FAVORS-SHAPE"])
def test_a_request_of_one_event_that_is_refused_is_that_event_s_fault(code: str) -> None:
    todo = messages("a p")
    assert take(Gateway(UsageError(code, place="", rule="")), todo) == [] and todo[0].reason == code


def test_what_is_no_longer_ours_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The new owner may have sent later events meanwhile; an older one after them could undo them."""
    monkeypatch.setattr("tastetwin.serving.app.events.taking.FIRST_WAIT", 0.001)
    todo = messages("a p")

    class Leaving(Gateway):
        async def favors(self, events: Sequence[FavorEvent], *, k: int) -> FavorsAnswer:
            todo[0].lane.gone = True
            return await super().favors(events, k=k)

    gateway = Leaving(ConnectionResetError())
    assert take(gateway, todo) == [] and len(gateway.asked) == 1 and not todo[0].reason


def test_requests_stay_below_what_the_gateway_takes() -> None:
    gateway = Gateway()
    take(gateway, messages(*["a p"] * 20, size=MAX_BYTES // 8))
    assert [len(part) for part in gateway.asked] == [8, 8, 4]


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("brokers", [None, "", "localhost", "kafka://h:1", "me:hunter2@h:1", "h:1,", "h:1 g:2"])
def test_brokers_that_are_none_are_refused_and_no_password_repeated(brokers: str | None) -> None:
    with pytest.raises(UsageError, match="KAFKA-ADDRESS") as caught:
        brokers_of(AppConfig(brokers=brokers))
    assert "hunter2" not in str(caught.value)
    assert brokers_of(AppConfig(brokers="h:1,[::1]:2")) == "h:1,[::1]:2"


@pytest.mark.parametrize(
    "line", ["group.id=x", "enable.auto.commit=true", "acks=1", "partition.assignment.strategy=range"]
)
def test_a_client_file_cannot_undo_the_promise(tmp_path: Any, line: str) -> None:
    (tmp_path / "file").write_text(f"session.timeout.ms=6000\n{line}\n")
    with pytest.raises(UsageError, match="KAFKA-CLIENT"):
        client_of(tmp_path / "file")


def test_nothing_is_committed_but_by_us() -> None:
    found: Callable[[str], Any] = consumer_settings("h:1", "g", "one", {"session.timeout.ms": "6000"}).get
    assert (found("enable.auto.commit"), found("enable.auto.offset.store")) == (False, False)
    assert (found("group.id"), found("group.instance.id"), found("session.timeout.ms")) == ("g", "one", "6000")


def test_without_kafka_s_package_the_command_says_which_extra_is_missing(
    shell: Shell,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.startswith("tastetwin.serving.app.events")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    assert shell("events", "dead", "--json").error["code"] == "MISSING-EXTRA"


def test_the_gateway_s_key_is_asked_for(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """In a file or the environment, never on the command line."""
    pytest.importorskip("tastetwin.client.client")
    monkeypatch.delenv("TASTETWIN_GATEWAY_KEY", raising=False)
    assert shell("serve", "events", "--json").code == 2
