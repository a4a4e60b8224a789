"""The client: every route typed, every failure one kind of error, retries that end."""

from __future__ import annotations

import ast
import asyncio
import gc
import inspect
import textwrap
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import pytest

from tastetwin.client import Call, Client, GatewayError, schemas
from tastetwin.errors import UsageError
from tests.serving.gateways import BUSY, KEY, Gateway, Said, closed_port, listening, refused

T = TypeVar("T")


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with listening(Gateway(people={"u42": ["u7", "u8", "u9"]}, places={"p1": ["u8"]})) as running:
        yield running


def ask(url: str, question: Callable[[Client], Awaitable[T]], key: str = KEY, **more: Any) -> T:
    async def asked() -> T:
        async with Client(url, key, **more) as client:
            return await question(client)

    return asyncio.run(asked())


def failure(url: str, question: Callable[[Client], Awaitable[Any]], **more: Any) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        ask(url, question, **more)
    return caught.value


ROUTES: dict[str, tuple[Callable[[Client], Awaitable[Any]], str, dict[str, Any], type]] = {
    "models": (lambda c: c.models(), "", {}, schemas.ModelsAnswer),
    "embed": (lambda c: c.embed([schemas.History()]), "/embed", {"items": [{}]}, schemas.EmbedAnswer),
    "twins": (lambda c: c.twins("u42", k=2), "/twins", {"user": "u42", "k": 2}, schemas.TwinsAnswer),
    "twins_batch": (
        lambda c: c.twins_batch(["a", "b"]),
        "/twins/batch",
        {"users": ["a", "b"]},
        schemas.TwinsBatchAnswer,
    ),
    "explain": (lambda c: c.explain("a", "b"), "/explain", {"user": "a", "other": "b"}, schemas.ExplainAnswer),
    "compare": (
        lambda c: c.compare("a", "b", language="ko"),
        "/compare",
        {"user": "a", "other": "b", "language": "ko"},
        schemas.CompareAnswer,
    ),
    "favors": (
        lambda c: c.favors([schemas.FavorEvent(user="a", like={"like_contentsid": "p1"})], k=3),
        "/favors",
        {"events": [{"user": "a", "like": {"like_contentsid": "p1"}}], "k": 3},
        schemas.FavorsAnswer,
    ),
    "opt_out": (lambda c: c.opt_out("a"), "/opt-out", {"user": "a"}, schemas.OptOutAnswer),
}


@pytest.mark.parametrize("name", ROUTES)
def test_every_question_goes_where_it_belongs_and_comes_back_as_a_model(gateway: Gateway, name: str) -> None:
    """Whoever uses the client never writes a path or looks into a dictionary."""
    question, path, body, gives = ROUTES[name]
    assert isinstance(ask(gateway.url, question), gives)
    assert gateway.asked[0][:2] == (f"/v1/models/taste{path}" if path else "/v1/models", body)


def test_there_is_a_method_for_every_route_of_the_gateway() -> None:
    """A route that only curl can reach is half a route."""
    from tastetwin.serving.gateway.http import ENDPOINTS

    assert {each.verb.replace("/", "_").replace("-", "_") for each in ENDPOINTS} | {"models"} == set(ROUTES)


def test_the_example_in_the_docstring_runs(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    """It is the first thing that anybody copies."""
    block = inspect.getdoc(Client).split("Example::")[1].split("Args:")[0]  # type: ignore[union-attr]
    code = "async def example(Client, url, key, user):\n" + textwrap.indent(textwrap.dedent(block), "    ")
    names: dict[str, Any] = {}
    module = compile(ast.parse(code), "example", "exec")
    exec(module, names)
    asyncio.run(names["example"](Client, gateway.url, KEY, "u42"))
    assert capsys.readouterr().out.splitlines()[0] == "1 u7 Both favor Noodles."


def test_what_a_call_says_of_itself_is_sent_along(gateway: Gateway) -> None:
    """Tiers find each other's log lines by the id, and stop working for whoever has left by the time."""
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    call = Call(timeout=2.0, request_id="r-1", traceparent=trace, version="run-0")
    ask(gateway.url, lambda client: client.twins("u42", call=call))
    sent = gateway.asked[0][2]
    assert (sent["x-request-id"], sent["traceparent"], sent["tastetwin-version"]) == ("r-1", trace, "run-0")
    assert 1_000 < int(sent[schemas.TIMEOUT_HEADER]) <= 2_000


def test_a_refusal_keeps_everything_that_the_server_said(gateway: Gateway) -> None:
    """Whoever handles it decides by the code, and finds the request in the log by its id."""
    gateway.always = refused(429, "HTTP-RATE", retry_after="7")
    error = failure(gateway.url, lambda client: client.twins("u42"))
    assert (error.problem.code, error.problem.rule, error.status) == ("HTTP-RATE", "a rule", 429)
    assert (error.request_id, error.retry_after, len(gateway.asked)) == ("id-of-the-gateway", 7.0, 1)


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"twins": 3}', b"\xff"])
@pytest.mark.parametrize("status", [200, 302, 404, 502])
def test_an_answer_that_is_none_is_an_error_of_the_same_kind(gateway: Gateway, body: bytes, status: int) -> None:
    """A proxy's page must not come through as a list, nor as a stack trace of a parser."""
    gateway.always = Said(status, body)
    error = failure(gateway.url, lambda client: client.twins("u42"))
    assert (error.problem.code, error.status) == ("GATEWAY-ANSWER", status)


def test_an_overloaded_gateway_is_tried_again(gateway: Gateway) -> None:
    """A moment of overload is not the user's concern."""
    gateway.faults = [BUSY, BUSY]
    assert len(ask(gateway.url, lambda client: client.twins("u42")).twins) == 3
    assert len(gateway.asked) == 3


def test_it_gives_up_in_the_end(gateway: Gateway) -> None:
    """Retries without end are what keeps an overloaded server overloaded."""
    gateway.always = BUSY
    assert failure(gateway.url, lambda client: client.twins("u42"), retries=1).status == 503
    assert len(gateway.asked) == 2


def test_a_wait_that_would_end_too_late_is_not_begun(gateway: Gateway) -> None:
    """Retry-After is honoured; whoever cannot wait so long is told at once."""
    gateway.always = refused(503, "HTTP-BUSY", retry_after="30")
    assert failure(gateway.url, lambda client: client.twins("u42")).retry_after == 30.0
    assert len(gateway.asked) == 1


def test_a_gateway_that_is_not_there() -> None:
    """Told as such, after the retries, without the key."""
    error = failure(closed_port(), lambda client: client.twins("u42"), timeout=5.0)
    assert (error.problem.code, error.status) == ("GATEWAY-UNREACHABLE", 0)
    assert KEY not in str(error)


@pytest.mark.parametrize("seconds", [None, 0.0, 5.0], ids=["away", "busy", "slow"])
def test_a_call_that_failed_leaves_nothing_behind(gateway: Gateway, seconds: float | None) -> None:
    """An app asks a gateway that is away for hours: errors that only a full collection finds would pile up."""
    gateway.always, gateway.seconds = BUSY, seconds or 0.0
    url = closed_port() if seconds is None else gateway.url

    async def body() -> list[BaseException]:
        async with Client(url, KEY, timeout=0.1, retries=1) as client:
            for turn in range(3):
                with suppress(GatewayError):
                    await client.twins("u42")
                if turn == 0:
                    gc.collect()
                    known = {id(each) for each in gc.get_objects() if issubclass(type(each), BaseException)}
                    gc.disable()
            await asyncio.sleep(0.02)
            return [
                each for each in gc.get_objects() if issubclass(type(each), BaseException) and id(each) not in known
            ]

    try:
        assert asyncio.run(body()) == []
    finally:
        gc.enable()


def test_a_gateway_that_is_slow(gateway: Gateway) -> None:
    """The time that was asked for is kept, and such a call is not repeated: it would be as slow again."""
    gateway.seconds = 5.0
    error = failure(gateway.url, lambda client: client.twins("u42", call=Call(timeout=0.2)))
    assert (error.problem.code, len(gateway.asked)) == ("GATEWAY-TIMEOUT", 1)


def test_a_connection_that_the_server_closed_meanwhile_is_made_anew() -> None:
    """Servers close idle connections; the next call must not pay for it."""

    async def twice() -> int:
        answered = 0

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal answered
            await reader.readuntil(b"\r\n\r\n")
            body = b'{"models":[]}'
            answered += 1
            if answered != 2:  # the second finds its connection closed without an answer
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
                await writer.drain()
                await reader.readuntil(b"\r\n\r\n")
                answered += 1
            writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        async with server, Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", KEY) as client:
            await client.models()
            await client.models()
        return answered

    assert asyncio.run(twice()) == 3


def test_the_key_is_never_shown() -> None:
    """What is printed or logged ends up in tickets."""
    assert KEY not in repr(Client("http://127.0.0.1:1", KEY))
    assert repr(Client("http://127.0.0.1:1/", KEY)) == "Client('http://127.0.0.1:1', key='***')"


def test_an_address_that_is_none_is_refused_at_once() -> None:
    """Not at the first request, an hour after the start."""
    with pytest.raises(UsageError, match="GATEWAY-ADDRESS"):
        Client("127.0.0.1:8102", KEY)
