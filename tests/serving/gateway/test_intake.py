"""What came since the run reaches every version held, in the order of the log, whatever the model does meanwhile."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from tastetwin.config import Config
from tastetwin.errors import StoreError
from tastetwin.privacy.opt_out import deny, name_of, opt_out
from tastetwin.serving.gateway import gateway as running
from tastetwin.serving.gateway.fresh import MemoryLog
from tastetwin.store import Store
from tests.serving.gateway.intakes import CALL, Everybody, Gateway, likes, run, vector_of


@pytest.fixture
def gateway() -> Gateway:
    return Gateway(MemoryLog())


def test_what_came_is_part_of_every_version_at_once() -> None:
    """A canary must know as much of a user as the version beside it."""
    gateway = Gateway(MemoryLog(), Everybody(), Everybody())

    async def whole() -> None:
        await gateway.start()
        await gateway.add("ann", likes("a"))
        await gateway.add("ann", likes("bc", 10))

    run(whole())
    assert [each.vectors for each in gateway.versions] == [{"ann": vector_of("abc")}] * 2


def test_too_few_favors_make_a_history_without_a_vector() -> None:
    """The run gives none to such users either."""
    gateway = Gateway(MemoryLog(), Everybody(min_favors=2))

    async def whole() -> None:
        await gateway.start()
        await gateway.intake.add({"ann": likes("a"), "bob": likes("bc")}, CALL)

    run(whole())
    assert gateway.vectors == {"ann": None, "bob": vector_of("bc")} and gateway.model.calls == 1


def test_a_vector_that_comes_late_does_not_undo_a_later_one(gateway: Gateway) -> None:
    """The model answers the second request first; the user would lose a favor that was acknowledged."""
    model = gateway.model

    async def whole() -> None:
        await gateway.start()
        model.holds = True
        first = asyncio.create_task(gateway.add("ann", likes("a")))
        await model.waits(1)
        second = asyncio.create_task(gateway.add("ann", likes("b", 10)))
        await model.waits(2)
        model.held[1].set()
        await second
        assert gateway.vectors == {"ann": vector_of("ab")}
        model.held[0].set()
        await first
        assert gateway.vectors == {"ann": vector_of("ab")}

    run(whole())


def test_an_add_that_the_log_answers_late_does_not_undo_a_later_one() -> None:
    """Threads end in any order; the number that the log gave decides."""
    answered = threading.Event()

    class Late(MemoryLog):
        def add_many(self, came: Any, arrived: float) -> Any:
            records = super().add_many(came, arrived)
            if records[0].number == 1:
                answered.wait(10)
            return records

    gateway = Gateway(Late())

    async def whole() -> None:
        await gateway.start()
        first = asyncio.create_task(gateway.add("ann", likes("a")))
        while not gateway.log.since(0)[0]:
            await asyncio.sleep(0.001)
        await gateway.add("ann", likes("b", 10))
        answered.set()
        await first
        assert gateway.vectors == {"ann": vector_of("ab")}
        assert await gateway.intake.catch_up(gateway.versions[0], "ann", CALL)

    run(whole())


@pytest.mark.parametrize("outage", ["BACKEND-UNAVAILABLE", "DEADLINE-EXCEEDED"])
def test_without_a_model_events_are_kept_and_read_in_later(gateway: Gateway, outage: str) -> None:
    """The model's outage is not the user's: the event is acknowledged, and answers say that they are stale."""

    async def whole() -> None:
        await gateway.start()
        gateway.model.down = outage
        await gateway.intake.add({"ann": likes("a"), "bob": likes("b")}, CALL)
        assert [record.user for record in gateway.log.since(0)[0]] == ["ann", "bob"]
        assert not await gateway.intake.catch_up(gateway.versions[0], "ann", CALL) and gateway.vectors == {}
        gateway.model.down = None
        assert await gateway.intake.catch_up(gateway.versions[0], "ann", CALL) and gateway.vectors == {
            "ann": vector_of("a")
        }
        await gateway.intake.follow()
        assert gateway.vectors == {"ann": vector_of("a"), "bob": vector_of("b")}
        calls = gateway.model.calls
        assert await gateway.intake.catch_up(gateway.versions[0], "bob", CALL)
        await gateway.intake.follow()
        assert gateway.model.calls == calls, "nothing is left to be read in"

    run(whole())


@pytest.mark.parametrize("away", [0, 1])
def test_a_version_without_a_model_takes_nothing_from_the_others(away: int) -> None:
    """A canary or a shadow whose bundle no backend holds: everybody would get stale lists, and newcomers none."""
    versions = (Everybody(), Everybody())
    gateway = Gateway(MemoryLog(), *versions)
    canary, stable = versions[away], versions[1 - away]

    async def knows(people: Any) -> bool:
        return await gateway.intake.catch_up(people, "ann", CALL)

    async def whole() -> None:
        await gateway.start()
        gateway.model.away = canary
        await gateway.add("ann", likes("a"))
        assert stable.vectors == {"ann": vector_of("a")} and canary.vectors == {}
        assert await knows(stable) and not await knows(canary)
        asked = gateway.model.calls
        await gateway.intake.follow()
        assert gateway.model.calls == asked + 1 and gateway.intake.unread == 1  # of the canary alone
        gateway.model.away = None
        await gateway.intake.follow()
        assert canary.vectors == stable.vectors and await knows(canary) and gateway.intake.unread == 0

    run(whole())


def test_another_error_is_not_taken_for_an_outage(gateway: Gateway) -> None:
    """What is broken must be told, not tried again in silence."""

    async def whole() -> None:
        await gateway.start()
        gateway.model.down = "BAD-VECTOR"
        with pytest.raises(StoreError):
            await gateway.add("ann", likes("a"))
        assert [record.user for record in gateway.log.since(0)[0]] == ["ann"]
        gateway.log.add_many({f"{n}": likes("b") for n in range(Config().backend.max_rows + 1)}, 1.0)
        with pytest.raises(StoreError):
            await gateway.intake.follow()
        gateway.model.down = None
        await gateway.intake.follow()
        assert len(gateway.vectors) == Config().backend.max_rows + 2, "nor is what comes behind it passed over"

    run(whole())


def test_a_history_that_the_model_refuses_fails_alone(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    """One user's odd history must not keep everybody else's favors out, nor the gateway from changing version."""
    intake, model = gateway.intake, gateway.model
    newer: Any = Everybody()

    async def whole() -> None:
        await gateway.start()
        await gateway.add("odd", likes("a"))
        gateway.log.add_many({f"u{n}": likes("b") for n in range(9)} | {"odd": likes("f", 10), "late": likes("c")}, 1.0)
        model.refuses = "f"
        await intake.follow()
        everybody: dict[str, Any] = {f"u{n}": vector_of("b") for n in range(9)} | {"late": vector_of("c")}
        assert gateway.vectors == everybody | {"odd": vector_of("a")}
        assert (intake.refused, intake.unread) == (1, 0)
        assert not await intake.catch_up(gateway.versions[0], "odd", CALL), "so that the answer is marked as stale"
        assert await intake.catch_up(gateway.versions[0], "late", CALL)
        calls = model.calls
        await intake.follow()
        await intake.serve([newer])
        assert model.calls > calls and newer.vectors == everybody, "tried again with another version"
        assert intake.is_refused(newer, "odd") and not intake.is_refused(gateway.versions[0], "odd")
        calls = model.calls
        await intake.follow()
        assert model.calls == calls, "and not before"
        model.refuses = ""
        await gateway.add("odd", likes("a", 20))
        assert newer.vectors["odd"] == vector_of("af") and intake.refused == 0

    run(whole())
    assert "BACKEND-REFUSED" in caplog.text and "odd" not in caplog.text


def test_whoever_is_forgotten_is_not_counted_as_refused_either(gateway: Gateway) -> None:
    """Nothing may be known of them any more."""

    async def whole() -> None:
        await gateway.start()
        gateway.model.refuses = "f"
        await gateway.add("odd", likes("f"))
        assert gateway.intake.refused == 1
        await gateway.intake.tidy(frozenset({name_of("odd")}))
        assert gateway.intake.refused == 0

    run(whole())


def test_an_event_that_is_not_kept_changes_nothing() -> None:
    """It was not acknowledged: a restart would take it back."""

    class Unreachable(MemoryLog):
        def add_many(self, came: Any, arrived: float) -> Any:
            raise StoreError("FRESH-UNREACHABLE", place="redis", rule="kept")

    gateway = Gateway(Unreachable())

    async def whole() -> None:
        await gateway.start()
        with pytest.raises(StoreError, match="FRESH-UNREACHABLE"):
            await gateway.add("ann", likes("a"))

    run(whole())
    assert gateway.vectors == {} and gateway.model.calls == 0


def test_a_log_that_does_not_answer_keeps_nothing_else_waiting() -> None:
    """Whoever opts out meanwhile needs a thread as well, and so does the address of a backend."""

    class Hanging(MemoryLog):
        answers = threading.Event()

        def add_many(self, came: Any, arrived: float) -> Any:
            assert self.answers.wait(60)
            return super().add_many(came, arrived)

    async def body() -> None:
        gateway = Gateway(Hanging())
        await gateway.start()
        adding = [asyncio.create_task(gateway.add(f"user {at}", likes("a"))) for at in range(100)]
        try:
            await asyncio.sleep(0)
            assert await asyncio.wait_for(asyncio.to_thread(lambda: "done"), 20) == "done"
        finally:
            Hanging.answers.set()
        await asyncio.gather(*adding)
        assert len(gateway.vectors) == 100

    run(body())


def test_two_gateways_on_one_log_follow_each_other() -> None:
    """A user's next request may reach another gateway."""
    log = MemoryLog()
    first, second = Gateway(log), Gateway(log)

    async def whole() -> None:
        await first.start()
        await second.start()
        await first.add("ann", likes("a"))
        await second.add("ann", likes("b", 10))
        await second.add("bob", likes("c"))
        await first.intake.follow()
        await second.intake.follow()
        both: dict[str, list[float] | None] = {"ann": vector_of("ab"), "bob": vector_of("c")}
        assert first.vectors == both and second.vectors == both
        calls = first.model.calls, second.model.calls
        await first.intake.follow()
        await second.intake.follow()
        assert (first.model.calls, second.model.calls) == calls, "nobody is encoded twice"

    run(whole())


def test_what_another_gateway_kept_is_not_undone_by_what_waits_here() -> None:
    """Here the model was down at the first favor; there came the second."""
    log = MemoryLog()
    first, second = Gateway(log), Gateway(log)

    async def whole() -> None:
        await first.start()
        await second.start()
        first.model.down = "BACKEND-UNAVAILABLE"
        await first.add("ann", likes("a"))
        await second.add("ann", likes("b", 10))
        first.model.down = None
        await first.intake.follow()
        assert first.vectors == {"ann": vector_of("ab")}

    run(whole())


def test_a_restarted_gateway_and_a_new_version_know_what_came_before(gateway: Gateway) -> None:
    """Neither may show a user the list from before their favors."""
    restarted = Gateway(gateway.log)

    async def whole() -> None:
        await gateway.start()
        await gateway.intake.add({"ann": likes("a"), "bob": likes("b")}, CALL)
        await restarted.start()
        assert restarted.vectors == gateway.vectors and len(gateway.vectors) == 2
        newer: Any = Everybody()
        await gateway.intake.serve([newer])
        assert newer.vectors == gateway.vectors
        await gateway.add("ann", likes("c", 10))
        assert newer.vectors["ann"] == vector_of("ac")

    run(whole())


def test_favors_that_come_while_a_version_is_read_in_are_in_it(gateway: Gateway) -> None:
    """The moment of a swap is no moment to lose an event."""
    model, newer = gateway.model, Everybody()

    async def whole() -> None:
        await gateway.start()
        await gateway.add("ann", likes("a"))
        model.holds = True
        swap = asyncio.create_task(gateway.intake.serve([newer]))  # type: ignore[list-item]
        await model.waits(1)
        added = asyncio.create_task(gateway.add("ann", likes("b", 10)))
        await model.waits(2)
        model.holds = False
        model.held[1].set()
        await added
        model.held[0].set()
        await swap
        assert newer.vectors == {"ann": vector_of("ab")}

    run(whole())


def test_favors_whose_version_goes_while_they_are_kept_are_in_its_answer_too() -> None:
    """The request goes on with the version that it was given: its answer would lack them and not say so."""
    answered = threading.Event()

    class Late(MemoryLog):
        def add_many(self, came: Any, arrived: float) -> Any:
            assert answered.wait(20)
            return super().add_many(came, arrived)

    gateway, newer = Gateway(Late()), Everybody()

    async def whole() -> None:
        await gateway.start()
        added = asyncio.create_task(gateway.add("ann", likes("a")))
        await asyncio.sleep(0)
        await gateway.intake.serve([newer])  # type: ignore[list-item]
        answered.set()
        await added
        assert gateway.vectors == newer.vectors == {"ann": vector_of("a")}

    run(whole())


def test_a_request_that_is_given_up_loses_nothing(gateway: Gateway) -> None:
    """The client hangs up while the model works; the event was kept."""

    async def whole() -> None:
        await gateway.start()
        gateway.model.holds = True
        added = asyncio.create_task(gateway.add("ann", likes("a")))
        await gateway.model.waits(1)
        added.cancel()
        await asyncio.wait([added])
        gateway.model.holds = False
        await gateway.intake.follow()
        assert gateway.vectors == {"ann": vector_of("a")}

    run(whole())


def test_what_is_known_of_users_does_not_grow_for_ever() -> None:
    """A gateway runs for months; with a newer run, users whose favors it has are no news any more."""
    log = MemoryLog()
    gateway = Gateway(log)

    async def whole() -> None:
        await gateway.start()
        for user in ("ann", "bob"):
            await gateway.add(user, likes("a"))
        log.remove([name_of("ann")])
        await gateway.intake.serve([Everybody()])  # type: ignore[list-item]
        assert set(gateway.intake._latest) == {"bob"}

    run(whole())


def test_tidying_forgets_the_forgotten_and_what_every_version_has() -> None:
    """A version yet held that is older would miss what the newest has."""
    log = MemoryLog()
    gateway = Gateway(log, Everybody("1970-01-20"), Everybody("1970-01-10"))
    day = 86_400.0

    async def whole() -> None:
        await gateway.start()
        log.add_many({"old": likes("a")}, 8 * day - 1)
        log.add_many({"kept": likes("b"), "gone": likes("c"), "hidden": likes("d")}, 8 * day)
        gateway.denied.users |= {"gone", "hidden"}
        await gateway.intake.tidy(frozenset({name_of("gone")}))
        assert [record.user for record in log.since(0)[0]] == ["kept", "hidden"]
        await gateway.intake.serve([Everybody("1970-01-20")])  # type: ignore[list-item]
        await gateway.intake.tidy(frozenset({name_of("gone")}))
        assert log.since(0)[0] == []

    run(whole())


def test_somebody_may_be_forgotten_while_their_vector_is_made(gateway: Gateway) -> None:
    """The request that brought the event must end well, and the vector must go nowhere."""

    async def whole() -> None:
        await gateway.start()
        gateway.model.holds = True
        added = asyncio.create_task(gateway.add("ann", likes("a")))
        await gateway.model.waits(1)
        await gateway.intake.tidy(frozenset({name_of("ann")}))
        gateway.model.held[0].set()
        await added
        assert gateway.vectors == {} and gateway.log.since(0)[0] == []

    run(whole())


def test_the_gateway_forgets_within_a_few_refreshes_and_only_hides_who_opted_out(memory_store: Store) -> None:
    """Whoever is forgotten by the batch is forgotten here as well; an opt-out may be taken back."""
    log = MemoryLog()
    model: Any = None
    gateway = running.Gateway(memory_store, Config(), model, model, log)

    async def whole() -> None:
        log.add_many({user: likes("a") for user in ("ann", "bob", "cid")}, 1.0)
        deny(memory_store, ["ann"])
        opt_out(memory_store, ["bob"])
        for _ in range(running.TIDY_EVERY):
            await gateway._tidy()
        assert [record.user for record in log.since(0)[0]] == ["bob", "cid"]

    run(whole())


def test_an_event_of_the_forgotten_that_was_under_way_goes_at_the_next_tidying(gateway: Gateway) -> None:
    """It was let in a moment before the gateway knew."""

    async def whole() -> None:
        await gateway.start()
        gone = frozenset({name_of("ann")})
        await gateway.intake.tidy(gone)
        await gateway.add("ann", likes("a"))
        await gateway.intake.tidy(gone)
        assert gateway.log.since(0)[0] == []

    run(whole())
