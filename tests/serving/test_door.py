"""What the door lets through, to whom, and what everybody else is told."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import Body, FastAPI

from tastetwin.errors import StoreError
from tastetwin.serving.door import Limits
from tastetwin.serving.keys import Keys, add_key
from tests.serving.doors import AS_ANN, ROUTES, TWINS, Answer, World, ok, person

CALLERS = {
    "nobody": {},
    "unknown": {"authorization": "Bearer tt_unknown"},
    "malformed": {"authorization": "Basic key-of-ann"},
    "empty": {"authorization": "Bearer "},
    "ann": {"authorization": "Bearer key-of-ann"},
    "ann, x-api-key": {"x-api-key": "key-of-ann"},
    "ann, lower case": {"authorization": "bearer key-of-ann"},
    "bob": {"authorization": "Bearer key-of-bob"},
}
SCOPES = {"ann": {"twins"}, "bob": {"embed", "opt-out"}}
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
PATHS = {template: template.replace("{model}", "taste").replace("{user}", "u1") for _, template in ROUTES}
NOWHERE = ["/", "", "//", "/v1", TWINS + "/", TWINS + "\n", "/v1/models//twins", "/v1/models/a/b/twins", "/DOCS", "*"]


def ask(world: World, *args: Any, **named: Any) -> Answer:
    return asyncio.run(world.ask(*args, **named))


def matrix() -> Iterator[tuple[str, str, str, int]]:
    for caller, method, path in itertools.product(CALLERS, METHODS, [*PATHS.values(), *NOWHERE]):
        template = next((template for template, each in PATHS.items() if each == path), path)
        has = SCOPES.get(caller.split(",")[0])
        if (method, template) not in ROUTES:
            mine = set() if has is None else has | {None}
            there = {scope for (_, each), scope in ROUTES.items() if each == template}
            yield caller, method, path, 405 if there & mine else 404
            continue
        needed = ROUTES[method, template]
        yield caller, method, path, 200 if needed is None else 401 if has is None else 200 if needed in has else 403


def test_every_caller_method_and_route_gets_what_the_table_says() -> None:
    """Whatever nobody thought of must be denied; each pair here that is wrong is a hole."""
    reached: list[str] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])
        await ok(scope, receive, send)

    world = World(inner)

    async def all_of_them() -> list[tuple[str, str, str, int]]:
        return [(c, m, p, (await world.ask(m, p, CALLERS[c])).status) for c, m, p, _ in matrix()]

    expected = list(matrix())
    assert asyncio.run(all_of_them()) == expected
    assert {status for *_, status in expected} == {200, 401, 403, 404, 405}
    assert len(reached) == sum(status == 200 for *_, status in expected)


def test_whoever_is_not_known_is_told_the_same() -> None:
    """An answer that differs between a malformed and an unknown key helps to guess one."""
    headers = {"x-request-id": "same"}
    answers = [ask(World(), headers=CALLERS[each] | headers) for each in ("nobody", "unknown", "malformed", "empty")]
    assert all(answer == answers[0] for answer in answers)
    assert answers[0].header("www-authenticate") == "Bearer"
    assert answers[0].error["code"] == "HTTP-KEY"


def test_a_wrong_method_is_told_to_whoever_may_go_there_and_to_nobody_else() -> None:
    """A programmer's slip must be told from a wrong path; yet who may not go there learns nothing of what is there."""
    answer = ask(World(), "GET")
    assert (answer.status, answer.header("allow"), answer.error["code"]) == (405, "POST", "HTTP-METHOD")
    nowhere = ask(World(), "GET", "/nowhere", {"x-request-id": "same"})
    for caller in ("nobody", "unknown", "malformed", "bob"):
        assert ask(World(), "GET", TWINS, CALLERS[caller] | {"x-request-id": "same"}) == nowhere, caller

    class Damaged:
        def caller(self, presented: str) -> None:
            raise StoreError("KEYS-FILE", place="keys", rule="one that can be read")

    assert ask(World(keys=Damaged()), "GET", TWINS, AS_ANN | {"x-request-id": "same"}) == nowhere
    hasty = World(ok, person("ann", "twins", per_second=1, burst=1))
    assert [ask(hasty, "GET").status for _ in range(2)] == [405, 429]


def test_a_key_for_other_things_is_told_which_scope_is_wanted() -> None:
    """Whoever gave out the key must know what to give out instead; whoever has none learns nothing."""
    answer = ask(World(), headers=CALLERS["bob"])
    assert answer.status == 403 and "twins" in answer.error["rule"] and "--scope twins" in answer.error["fix"]
    assert b"twins" not in ask(World(), headers=CALLERS["unknown"]).body


def test_no_key_is_looked_at_where_there_is_no_route() -> None:
    """The time of a 404 must not depend on the key that came with it."""

    class Never:
        def caller(self, presented: str) -> None:
            raise AssertionError("looked at")

    world = World(keys=Never())
    assert ask(world, "GET", "/nowhere").status == 404
    assert ask(world, "GET", "/docs").status == 200


def test_the_inner_app_is_told_what_the_door_found_out() -> None:
    """Nothing that the door knows has to be found out twice."""
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    headers = AS_ANN | {"x-request-id": "r-1", "traceparent": trace}
    said = ask(World(), "GET", "/v1/models/taste/users/u 1", headers).body
    assert b'"params":{"model":"taste","user":"u 1"}' in said
    assert b'"route":"/v1/models/{model}/users/{user}"' in said
    assert b'"id":"r-1","caller":"ann"' in said
    assert trace.encode() in said


@pytest.mark.parametrize(
    "given", ["", "a" * 65, "a b", "a\nb", "a\r\nset-cookie: x", '"', "é", "<script>", "a;b", "\x00", "../.."]
)
def test_a_request_id_that_could_do_harm_is_replaced(given: str) -> None:
    """It goes into a header, a log and other servers; a line break in it would forge any of them."""
    world = World()
    answer = ask(world, headers=AS_ANN | {"x-request-id": given, "traceparent": given})
    made = answer.header("x-request-id")
    assert made and made != given and made.replace("-", "").isalnum()
    assert world.lines[0]["request_id"] == made
    assert b'"trace":null' in answer.body


def test_request_ids_are_kept_or_made_once_each() -> None:
    """Somebody will ask about the one request that failed."""
    world = World()
    assert ask(world, headers=AS_ANN | {"x-request-id": "A-z_0.9"}).header("x-request-id") == "A-z_0.9"
    assert len({ask(world).header("x-request-id") for _ in range(50)}) == 50


def test_every_answer_has_the_security_headers() -> None:
    """A refusal is an answer, too."""
    for answer in (
        ask(World()),
        ask(World(), headers={}),
        ask(World(), path="/nowhere"),
        ask(World(), "GET", "/readyz"),
    ):
        assert answer.header("x-content-type-options") == "nosniff"
        assert answer.header("cache-control") == "no-store"
        assert answer.header("server") is None


def test_a_caller_above_their_rate_waits_and_others_do_not() -> None:
    """One caller's loop must not take the service from all."""
    world = World(ok, person("ann", "twins", per_second=0.25, burst=3), person("bob", "twins"))

    def as_(name: str) -> Answer:
        return ask(world, headers={"x-api-key": f"key-of-{name}"})

    assert [as_("ann").status for _ in range(4)] == [200, 200, 200, 429]
    assert (as_("ann").header("retry-after"), as_("bob").status) == ("4", 200)
    world.now = 0.5
    assert as_("ann").header("retry-after") == "4"
    world.now = 3.9
    assert (as_("ann").header("retry-after"), as_("ann").error["code"]) == ("1", "HTTP-RATE")
    world.now = 4.0
    assert [as_("ann").status for _ in range(2)] == [200, 429]
    world.now = 1e6
    assert [as_("ann").status for _ in range(4)] == [200, 200, 200, 429]


def test_a_body_is_taken_up_to_the_limit_and_not_a_byte_more() -> None:
    """Whether its length is told or not."""
    told = {n: AS_ANN | {"content-length": str(n)} for n in (1000, 1001)}
    assert ask(World(), headers=told[1000], body=[b"x" * 1000]).status == 200
    assert ask(World(), headers=told[1001], body=[b"x" * 1001]).status == 413
    chunked = AS_ANN | {"transfer-encoding": "chunked"}
    assert ask(World(), headers=chunked, body=[b"x" * 100] * 10).status == 200
    assert ask(World(), headers=chunked, body=[b"x" * 100] * 10 + [b"x"]).status == 413
    assert ask(World(), headers=AS_ANN, body=[b"x" * 1001]).status == 413
    both = chunked | {"content-length": "1"}
    assert ask(World(), headers=both, body=[b"x" * 1001]).status == 413
    assert ask(World(), "GET", "/docs", chunked, [b"x" * 1001]).status == 413


@pytest.mark.parametrize("length", ["-1", "1e3", "", " 5", "9" * 30, "0x10", "0" * 5000 + "1"])
def test_a_length_that_is_no_number_is_refused(length: str) -> None:
    """What two servers read differently is how requests are smuggled."""
    assert ask(World(), headers=AS_ANN | {"content-length": length}).status == 413
    assert ask(World(), "GET", "/docs", {"content-length": length}).status == 413


def test_a_told_length_above_the_limit_is_refused_unread() -> None:
    """A gigabyte that was announced is not waited for by the app."""
    reached: list[str] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        reached.append("inner")

    answer = ask(World(inner), headers=AS_ANN | {"content-length": "9999999999"})
    assert (answer.status, answer.header("connection"), reached) == (413, "close", [])
    assert answer.ended


def test_a_refusal_does_not_wait_for_a_large_body() -> None:
    """Whoever has no key could keep a connection for ever, a byte at a time; small bodies cost no connection."""
    headers = [{"content-length": "99999"}, {"content-length": "100000"}, {"transfer-encoding": "chunked"}]
    refused = [ask(World(), headers=each, body=[b"x"]) for each in headers]
    assert [(each.status, each.header("connection")) for each in refused] == [
        (401, None),
        (401, "close"),
        (401, "close"),
    ]
    assert all(each.ended for each in refused)


def test_frameworks_cannot_turn_a_large_body_into_another_answer() -> None:
    """FastAPI answers 400 to whatever goes wrong while it reads a body."""
    app = FastAPI()

    @app.post(TWINS)
    def twins(what: Annotated[dict[str, int], Body()]) -> dict[str, int]:
        return what

    chunked = AS_ANN | {"transfer-encoding": "chunked", "content-type": "application/json"}
    assert ask(World(app), headers=chunked, body=[b'{"a":' + b" " * 600, b" " * 600 + b"1}"]).status == 413
    assert ask(World(app), headers=chunked, body=[b'{"a":' + b" " * 600, b"1}"]).status == 200


def test_beyond_so_many_at_once_requests_are_refused_unread() -> None:
    """Under twice the load, those that are served must be served as fast as ever."""
    gate, read = asyncio.Event(), 0

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await gate.wait()
        await ok(scope, receive, send)

    async def scene() -> tuple[list[int], Answer, int, int]:
        nonlocal gate
        gate = asyncio.Event()
        world = World(slow)
        first = [asyncio.ensure_future(world.ask()) for _ in range(4)]
        await asyncio.sleep(0)
        refused = await world.ask()
        health = await world.ask("GET", "/healthz", {})
        gate.set()
        statuses = [(await each).status for each in first]
        return statuses, refused, health.status, (await world.ask()).status

    statuses, refused, health, after = asyncio.run(scene())
    assert (statuses, health, after, read) == ([200] * 4, 200, 200, 0)
    assert (refused.status, refused.header("retry-after"), refused.error["code"]) == (503, "1", "HTTP-BUSY")


class Slow:
    """Requests of which a part of the body came, and then nothing until they are told to go on."""

    def __init__(self, world: World) -> None:
        self.world, self.goes_on = world, asyncio.Event()

    async def ask(self, part: bytes, rest: bytes = b"", leaves: bool = False) -> Answer:
        parts: list[Any] = [{"type": "http.request", "body": part, "more_body": True}]

        async def receive() -> Any:
            if parts:
                return parts.pop()
            await self.goes_on.wait()
            return {"type": "http.disconnect"} if leaves else {"type": "http.request", "body": rest}

        answer = Answer()

        async def send(message: Any) -> None:
            answer.status = message.get("status", answer.status)
            answer.headers += [(name.decode(), value.decode()) for name, value in message.get("headers", ())]
            answer.body += message.get("body", b"")

        headers = [(b"x-api-key", b"key-of-ann"), (b"content-length", b"%d" % len(part + rest))]
        await self.world.door({"type": "http", "method": "POST", "path": TWINS, "headers": headers}, receive, send)
        return answer


def test_half_sent_bodies_keep_nobody_out() -> None:
    """A place is for work; whoever sends slowly has none to do yet."""

    async def scene() -> None:
        world = World(limits=Limits(100_000, 4, 5.0))
        slow = Slow(world)
        waiting = [asyncio.ensure_future(slow.ask(b"x", b"y", leaves=n == 0)) for n in range(300)]
        await asyncio.sleep(0.01)
        assert world.door.in_flight == 0
        assert (await world.ask()).status == 200
        slow.goes_on.set()
        answers = await asyncio.gather(*waiting)
        assert [each.status for each in answers] == [0] + [200] * (len(waiting) - 1)
        assert all(b'"size":2' in each.body for each in answers[1:])

    asyncio.run(scene())


def test_half_sent_bodies_fill_no_memory() -> None:
    """Large ones are refused above what all places would take; whoever has sent all of theirs is answered."""

    async def scene() -> None:
        world = World(limits=Limits(100_000, 2, 0.5))
        for _ in range(2):  # what they held is given back
            slow = Slow(world)
            waiting = [asyncio.ensure_future(slow.ask(b"x" * 99_999, b"y")) for _ in range(3)]
            await asyncio.sleep(0.01)
            assert (await world.ask(body=[b"x" * 1_000])).status == 200
            refused = await waiting.pop()
            assert (refused.status, refused.header("retry-after")) == (503, "1") and b"HTTP-BUSY" in refused.body
            assert [(await each).status for each in waiting] == [504, 504]

    asyncio.run(scene())


def test_where_no_key_is_needed_no_body_is_taken() -> None:
    """Whoever has no key could else take the room of those who have one."""
    assert ask(World(), "GET", "/docs", {"content-length": "0"}).status == 200
    assert ask(World(), "GET", "/docs", {"content-length": "1"}, [b"x"]).status == 413
    assert ask(World(), "GET", "/docs", {"transfer-encoding": "chunked"}, [b"x"]).status == 413


def test_places_are_given_back_whatever_happens() -> None:
    """A leak of one place a failure ends with a server that refuses everybody."""

    async def fails(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError

    world = World(fails)
    assert {ask(world).status for _ in range(10)} == {500}
    assert world.door.in_flight == 0


def test_a_request_that_takes_too_long_is_cancelled() -> None:
    """A caller has gone long before; what is worked on for nobody delays everybody."""
    ended: list[str] = []

    async def stuck(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(scope["path"])

    async def scene() -> list[int]:
        world = World(stuck, limits=Limits(1000, 100, 0.05))
        first = asyncio.ensure_future(world.ask())
        await asyncio.sleep(0.03)
        answers = [await world.ask("GET", "/docs", {}), await first]
        assert answers[0].error["code"] == "HTTP-DEADLINE"
        assert first.cancelling() == 0  # or the next timeout in that task would mistake this one for its own
        return [each.status for each in answers]

    assert asyncio.run(scene()) == [504, 504]
    assert len(ended) == 2


def test_a_body_that_never_ends_is_cut_off_by_the_deadline() -> None:
    """A byte a minute holds a place as well as a flood does."""

    async def scene() -> int:
        world = World(limits=Limits(1000, 4, 0.05))
        sent: list[Any] = []

        async def receive() -> Any:
            await asyncio.sleep(0.01)
            return {"type": "http.request", "body": b"x", "more_body": True}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"x-api-key", b"key-of-ann"), (b"transfer-encoding", b"chunked")]
        await world.door({"type": "http", "method": "POST", "path": TWINS, "headers": headers}, receive, send)
        return int(sent[0]["status"])

    assert asyncio.run(scene()) == 504


def test_a_cancelled_server_says_so() -> None:
    """At the end of its grace a server cancels what is left: that is an answer to try again, not a crash."""

    async def stuck(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(60)

    async def scene() -> Answer:
        task = asyncio.ensure_future(World(stuck).ask())
        await asyncio.sleep(0.01)
        task.cancel()
        return await task

    answer = asyncio.run(scene())
    assert (answer.status, answer.error["code"], answer.header("retry-after")) == (503, "HTTP-ENDING", "1")


def test_health_is_told_to_everybody_and_readiness_follows_the_server() -> None:
    """A load balancer has no key."""
    world = World()
    assert (ask(world, "GET", "/healthz", {}).status, ask(world, "GET", "/readyz", {}).status) == (200, 503)
    world.readiness.started = True
    assert ask(world, "GET", "/readyz", {}).status == 200
    assert ask(world).header("connection") is None
    world.readiness.draining = True
    assert (ask(world, "GET", "/healthz", {}).status, ask(world, "GET", "/readyz", {}).status) == (200, 503)
    assert (ask(world).status, ask(world).header("connection")) == (200, "close")


def test_a_damaged_keys_file_lets_nobody_in_until_it_is_whole(tmp_path: Path) -> None:
    """Fail closed: for those too who were let in a moment ago."""
    path, clock = tmp_path / "keys.json", [0.0]
    key = add_key(path, "ann", ["twins"])
    good = path.read_bytes()
    world = World(keys=Keys(path, lambda: clock[0]))
    as_ann = {"authorization": f"Bearer {key}"}
    statuses = []
    for data in (good, b"{", None, good):
        path.unlink(missing_ok=True)
        if data is not None:
            path.write_bytes(data)
        clock[0] += 2
        answer = ask(world, headers=as_ann)
        statuses.append((answer.status, ask(world, headers={}).status))
        assert str(tmp_path).encode() not in answer.body
    assert statuses == [(200, 401), (503, 503), (503, 503), (200, 401)]


def test_only_http_and_lifespan_reach_the_app() -> None:
    """A websocket would go past every check."""
    seen: list[str] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    async def scene() -> None:
        world = World(inner)
        for kind in ("websocket", "lifespan", "other"):
            await world.door({"type": kind, "path": "/docs", "headers": []}, None, None)  # type: ignore[arg-type]

    asyncio.run(scene())
    assert seen == ["lifespan"]
