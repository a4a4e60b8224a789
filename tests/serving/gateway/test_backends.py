"""The pool of backends, against servers that do what a network and a sick process do."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from prometheus_client import CollectorRegistry

from tastetwin.client import retries
from tastetwin.config import GatewayConfig
from tastetwin.errors import TasteTwinError, UsageError
from tastetwin.serving.gateway import backend, backends, breaker
from tastetwin.serving.gateway.backend import with_timeout
from tastetwin.serving.gateway.backends import (
    BackendMetrics,
    BackendRefused,
    Backends,
    BackendUnavailable,
    DeadlineExceeded,
)
from tests.serving.gateway import wire
from tests.serving.gateway.fakes import VERSION, Fake, Process

INPUTS = wire.inputs_of([5, 3, 1], [7, 7, 7])
RIGHT = wire.vectors_of(INPUTS)


@dataclass
class Pool:
    """Backends before fakes."""

    backends: Backends
    fakes: list[Fake]
    registry: CollectorRegistry

    async def infer(self, seconds: float = 5.0, version: str = VERSION) -> npt.NDArray[np.float32]:
        deadline = asyncio.get_running_loop().time() + seconds
        return await self.backends.infer(version, INPUTS, deadline, "r-1")

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"tastetwin_gateway_backend_{name}", labels) or 0.0

    def calls(self) -> int:
        return sum(len(fake.calls) for fake in self.fakes)


@asynccontextmanager
async def pool(count: int, **settings: float) -> AsyncIterator[Pool]:
    registry = CollectorRegistry()
    async with AsyncExitStack() as stack:
        fakes = [await stack.enter_async_context(Fake()) for _ in range(count)]
        config = GatewayConfig.model_validate({"deadline_ms": 5_000, **settings})
        made = Backends([fake.url for fake in fakes], config, BackendMetrics(registry))
        backends = await stack.enter_async_context(made)
        await backends.want([VERSION])
        yield Pool(backends, fakes, registry)


def run(count: int, body: Callable[[Pool], Awaitable[None]], **settings: float) -> None:
    async def whole() -> None:
        async with asyncio.timeout(30), pool(count, **settings) as made:
            await body(made)

    asyncio.run(whole())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.02)


def test_vectors_come_back_in_order_and_the_backend_is_told_who_asks_and_how_long_it_has() -> None:
    """A backend that knows the deadline does not compute what nobody waits for."""

    async def body(made: Pool) -> None:
        np.testing.assert_array_equal(await made.infer(0.5), RIGHT)
        (call,) = made.fakes[0].calls
        assert 300_000 < call["parameters"]["timeout"] <= 500_000
        assert (call["id"], made.fakes[0].headers[0]["x-request-id"]) == ("r-1", "r-1")

    run(1, body)


def test_the_settings_bound_a_deadline_that_is_further_off() -> None:
    """Else one caller's patience would be everybody's queue."""

    async def body(made: Pool) -> None:
        await made.infer(60.0)
        assert made.fakes[0].calls[0]["parameters"]["timeout"] <= 5_000_000

    run(1, body)


def test_the_time_out_goes_in_front_and_leaves_the_tensors_alone() -> None:
    headers, body = with_timeout(*wire.infer_request(INPUTS, ["vector"], "x"), 0.25)
    head, tensors = wire.read_infer_request(headers, body)
    assert head["parameters"] == {"timeout": 250_000} and head["id"] == "x"
    np.testing.assert_array_equal(tensors["places"], INPUTS["places"])


@pytest.mark.parametrize("mode", ["close", "cut", "garbage", "other", "nan", 502, 503, 504, 404, 429])
def test_what_another_backend_can_answer_it_answers(mode: str | int) -> None:
    """The user sees none of what befalls one of two backends."""

    async def body(made: Pool) -> None:
        made.fakes[0].mode = mode
        for _ in range(12):
            np.testing.assert_array_equal(await made.infer(), RIGHT)
        assert made.fakes[0].calls and made.count("retries_total", result="made") >= 1

    run(2, body)


def test_a_lone_backend_is_asked_again_itself() -> None:
    """A connection that was closed while idle is no reason to refuse."""

    async def body(made: Pool) -> None:
        made.fakes[0].first = ["close", "cut"]
        np.testing.assert_array_equal(await made.infer(), RIGHT)
        assert made.calls() == 3

    run(1, body)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        (400, BackendRefused),
        (413, BackendRefused),
        (422, BackendRefused),
        (403, BackendUnavailable),
        (500, BackendUnavailable),
    ],
)
def test_what_would_fail_again_is_not_asked_again(mode: int, kind: type[TasteTwinError]) -> None:
    """Bad input sent to every backend in turn would be an attack on ourselves."""

    async def body(made: Pool) -> None:
        for fake in made.fakes:
            fake.mode = mode
        with pytest.raises(kind, match=str(mode)) as caught:
            await made.infer()
        assert made.calls() == 1 and "told to" not in str(caught.value)

    run(2, body)


def test_a_refused_connection_takes_the_backend_out_at_once_and_a_health_check_back_in() -> None:
    """Only the first call after a crash pays for it."""

    async def body(made: Pool) -> None:
        await made.fakes[0].refuse()
        for _ in range(10):
            await made.infer()
        failed = made.count("calls_total", backend=made.fakes[0].url, outcome="failed")
        assert failed <= 2 and made.backends.ready(VERSION) == 1
        await made.fakes[0].listen()
        await until(lambda: made.backends.ready(VERSION) == 2)
        before = len(made.fakes[0].calls)
        await asyncio.gather(*(made.infer() for _ in range(10)))
        assert len(made.fakes[0].calls) > before

    run(2, body)


@pytest.mark.parametrize("mode", ["refused", "close", "cut", "hang", 502])
def test_a_call_or_a_health_check_that_failed_leaves_nothing_behind(mode: str | int) -> None:
    """A dead backend is asked twice a second: errors that only the collector finds pile up until it looks."""

    async def body(made: Pool) -> None:
        for fake in made.fakes:
            fake.mode = mode
            if mode == "refused":
                await fake.refuse()
        gc.collect()
        gc.disable()
        try:
            known = {id(each) for each in gc.get_objects() if issubclass(type(each), Exception)}
            for _ in range(3):
                with pytest.raises(TasteTwinError):
                    await made.infer(0.2)
                await made.backends.want([VERSION])
            await asyncio.sleep(0.02)
            errors = [each for each in gc.get_objects() if issubclass(type(each), Exception) and id(each) not in known]
            assert errors == []
        finally:
            gc.enable()

    run(2, body)


def test_nobody_ready_is_told_at_once() -> None:
    """The fallback list is better than a wait that ends with it."""

    async def body(made: Pool) -> None:
        made.fakes[0].live = False
        await made.backends.want([VERSION])
        with pytest.raises(BackendUnavailable, match=r"BACKEND-UNAVAILABLE.*no backend has it ready"):
            await made.infer()
        assert made.calls() == 0

    run(1, body)


def test_calls_go_only_where_the_version_is_ready() -> None:
    """Backends load versions one after the other."""

    async def body(made: Pool) -> None:
        made.fakes[1].versions = {"new"}
        await made.backends.want([VERSION, "new"])
        assert (made.backends.ready(VERSION), made.backends.ready("new")) == (1, 1)
        for version in ["new", VERSION] * 5:
            await made.infer(version=version)
        assert [len(fake.calls) for fake in made.fakes] == [5, 5]
        assert made.count("retries_total", result="made") == 0

    run(2, body)


def test_another_backend_is_asked_while_there_is_time() -> None:
    """One that is stopped, or cut off from the network, takes calls and says nothing."""

    async def body(made: Pool) -> None:
        made.fakes[0].mode = "hang"

        def slow() -> float:
            return made.count("calls_total", backend=made.fakes[0].url, outcome="slow")

        while not slow():  # whom a call goes to first is chance
            np.testing.assert_array_equal(await made.infer(3.0), RIGHT)
        assert slow() == made.count("retries_total", result="made") == 1
        await until(lambda: made.fakes[0].broken_off == 1)

    run(2, body)


def test_nothing_is_given_up_early_for_a_retry_that_may_not_be_made() -> None:
    """When all backends are slow, asking each request twice would make them slower."""

    async def body(made: Pool) -> None:
        for fake in made.fakes:
            fake.seconds = 2.0
        while made.backends._budget.retry():
            pass
        np.testing.assert_array_equal(await made.infer(3.5), RIGHT)
        assert made.calls() == 1

    run(2, body, retry_share=0.0)


def test_a_hanging_backend_costs_the_deadline_and_the_call_is_given_up_there_too() -> None:
    """What nobody waits for must not go on costing."""

    async def body(made: Pool) -> None:
        made.fakes[0].mode = "hang"
        with pytest.raises(DeadlineExceeded, match="DEADLINE-EXCEEDED"):
            await made.infer(1.0)
        await until(lambda: made.fakes[0].broken_off == 1)
        with pytest.raises(DeadlineExceeded):
            await made.infer(-1.0)
        assert made.calls() == made.count("calls_total", backend=made.fakes[0].url, outcome="deadline") == 1

    run(1, body)


def test_a_slow_backend_does_not_hold_up_the_other() -> None:
    """The fewest calls in flight: whoever is slow gets less to do."""

    async def body(made: Pool) -> None:
        made.fakes[0].seconds = 1.0
        tasks = []
        for _ in range(60):
            tasks.append(asyncio.create_task(made.infer()))
            await asyncio.sleep(0.005)
        await asyncio.gather(*tasks)
        assert len(made.fakes[1].calls) >= 40

    run(2, body)


def test_a_cancelled_call_leaves_nothing_in_flight() -> None:
    """A client that goes away must not make its backend look busy for ever."""

    async def body(made: Pool) -> None:
        made.fakes[0].mode = "hang"
        asked = asyncio.create_task(made.infer())
        await until(lambda: made.calls() == 1)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await until(lambda: made.fakes[0].broken_off == 1)
        assert made.count("calls_total", backend=made.fakes[0].url, outcome="cancelled") == 1
        made.fakes[0].mode = "ok"
        await made.infer()

    run(1, body)


def test_when_all_fail_retries_stay_within_the_budget() -> None:
    """A retry storm keeps down what it waits for."""

    async def body(made: Pool) -> None:
        for fake in made.fakes:
            fake.mode = 503
        asked, found = 300, []
        for _ in range(asked // 20):
            found += await asyncio.gather(*(made.infer() for _ in range(20)), return_exceptions=True)
        assert all(isinstance(each, BackendUnavailable) for each in found)
        assert asked <= made.calls() <= asked + 0.1 * asked + retries.SPARE
        assert made.count("retries_total", result="not made") > 0

    run(2, body)


def test_overload_does_not_open_a_breaker() -> None:
    """A backend that refuses half of the calls still answers the other half; shut out, it would answer none."""

    async def body(made: Pool) -> None:
        made.fakes[0].mode = 503
        await asyncio.gather(*(made.infer(25) for _ in range(50)), return_exceptions=True)
        assert made.count("breaker", backend=made.fakes[0].url) == breaker.State.CLOSED

    run(1, body, deadline_ms=25_000)


def test_a_breaker_opens_on_failures_and_closes_after_one_good_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sick backend gets one call at a time until it is well."""
    monkeypatch.setattr(breaker, "COOL_DOWN", 600.0)

    async def body(made: Pool) -> None:
        sick = made.fakes[0]
        sick.mode = "cut"
        for _ in range(40):
            np.testing.assert_array_equal(await made.infer(), RIGHT)
        assert made.count("breaker", backend=sick.url) == breaker.State.OPEN
        assert len(sick.calls) == breaker.FAILURES
        sick.mode = "ok"
        monkeypatch.setattr(breaker, "COOL_DOWN", 0.0)
        for _ in range(20):
            await made.infer()
        assert made.count("breaker", backend=sick.url) == breaker.State.CLOSED
        assert len(sick.calls) > breaker.FAILURES + 1

    run(2, body)


def test_a_server_that_says_no_with_status_200_is_not_ready() -> None:
    """KServe answers health questions with a body."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            text = b'{"ready": false}'
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(text), text))

    async def whole() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with Backends([url], GatewayConfig(), BackendMetrics(CollectorRegistry())) as backends:
            await backends.want([VERSION])
            assert backends.ready(VERSION) == 0
        server.close()

    asyncio.run(whole())


@pytest.mark.parametrize("url", ["127.0.0.1:8101", "ftp://h:1", "http://", "http://u:secret@h:1/?x=y", "http://h:port"])
def test_an_address_that_is_none_is_refused_without_telling_a_password(url: str) -> None:
    with pytest.raises(UsageError, match="BACKEND-ADDRESS") as caught:
        Backends([url], GatewayConfig(), BackendMetrics(CollectorRegistry()))
    assert "secret" not in str(caught.value)


@pytest.mark.slow
def test_nothing_fails_while_one_of_two_backends_is_killed_again_and_again() -> None:
    """Promise 4: kill -9 under open-loop load, and every request is answered."""
    processes = [Process(), Process()]

    async def load(made: Backends, stop: asyncio.Event) -> list[asyncio.Task[npt.NDArray[np.float32]]]:
        loop, tasks = asyncio.get_running_loop(), []
        while not stop.is_set():
            tasks.append(asyncio.create_task(made.infer(VERSION, INPUTS, loop.time() + 5, "")))
            await asyncio.sleep(0.01)
        return tasks

    async def whole(kills: int) -> None:
        registry = CollectorRegistry()
        urls = [each.url for each in processes]
        async with Backends(urls, GatewayConfig(deadline_ms=5_000), BackendMetrics(registry)) as made:
            await made.want([VERSION])
            assert made.ready(VERSION) == 2
            stop = asyncio.Event()
            running = asyncio.create_task(load(made, stop))
            for _ in range(kills):
                await asyncio.sleep(0.3)
                processes[0].kill()
                await until(lambda: made.ready(VERSION) == 1)
                processes[0].start()
                await until(lambda: made.ready(VERSION) == 2)
            stop.set()
            answers = await asyncio.gather(*await running)
            assert len(answers) > 100 and all(np.array_equal(each, RIGHT) for each in answers)
        made_again = registry.get_sample_value("tastetwin_gateway_backend_retries_total", {"result": "made"})
        assert made_again is not None and made_again >= kills / 2, "the kills were felt"

    try:
        for each in processes:
            each.wait()
        asyncio.run(whole(6))
    finally:
        for each in processes:
            each.kill()


def test_the_constants_agree_with_one_another() -> None:
    """A connection that may take longer than a health check would hide a dead host."""
    assert backends.CONNECT_SECONDS < backend.CHECK_SECONDS and GatewayConfig().deadline_ms / 1_000 > backend.PATIENCE
