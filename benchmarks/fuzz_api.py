"""Generated and hostile requests over gateway, app and backend; nothing may break and memory stays bounded.

    OMP_NUM_THREADS=1 python benchmarks/fuzz_api.py STORE [--cases 100000] [--idle 10000]

First attacks on the connection (heads, trailers, bodies without end, pipelines, answers that nobody takes, idle
connections), then bodies made by hand, then ``--cases`` requests that schemathesis makes of the descriptions. Promised:
no answer of 5xx, no process above 512 MiB of memory of its own (``RssAnon``: files that are mapped are
not counted).
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import resource
import shutil
import socket
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode

from stack import Process, Stack, product, serving
from tastetwin.analysis.lookup import TwinLists
from tastetwin.runs import published_run
from tastetwin.store import Store

MOST_MB: Final = 512
SLOW_SECONDS: Final = 2.0
"""An answer that takes longer counts as broken: somebody could stop the server by asking."""
MODEL: Final = "/v1/models/taste"
VALUES: Final = [
    *("1e400", "-1e400", "NaN", "Infinity", "-1", "0", "1e308", "5e-324", "9223372036854775808", "true", "null", "{}"),
    *("1" + "0" * digits for digits in (30, 400, 4_000, 5_000, 300_000)),
    *("253402300800000", "-62135596800001", '"\\ud800"', '"\\u0000"', '""', '"9999-99-99"', '"1e400"', '"NaN"'),
    *('"9999-12-31T23:59:59.999999+23:59"', '"0001-01-01T00:00:00+23:59"', '{"a":1,"a":2}', "[[[[[[]]]]]]", '"\u0665"'),
    *('"' + "x" * length + '"' for length in (1_001, 60_000, 900_000)),
]
BODIES: Final = [
    *('{"user":%s}', '{"user":"u","k":%s}', '{"user":"u","skip":%s,"exclude":[%s]}', '{"users":[%s]}', "%s"),
    *('{"reviews":[{"review_place_id":"p1","review_rating":%s,"review_visited_date":%s}]}', '{"items":[%s]}'),
    '{"likes":[{"like_contentsid":%s,"like_regymdt":%s,"like_displayid":%s}]}',
    '{"events":[{"user":"zz","review":{"review_place_id":"p1","review_rating":%s,"review_visited_date":%s}}],"k":3}',
    *('{"events":[{"user":%s,"like":{"like_contentsid":%s}}]}', '{"user":"u","user":%s,"other":%s}'),
    '{"id":%s,"inputs":[{"name":"places","datatype":"INT64","shape":[%s,1],"data":[%s]}]}',
]
RAW: Final = [
    *(b"", b"\xff\xfe", b"{}" * 9, b"\0" * 1_000, b'"' * 100_000, b'{"a":' * 50_000, b"[" * 60_000, b"[" * 17),
    b"[" * 17 + b'\\"' * 30_000,  # each quote begins a string that does not end
]
VERBS: Final = ("embed", "twins", "twins/batch", "explain", "compare", "favors", "opt-out")


@dataclass
class Watch:
    """What was answered, and how much memory each process has taken."""

    processes: dict[str, Process]
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    peaks: dict[str, float] = field(default_factory=dict)
    slowest: float = 0.0
    done: bool = False

    def memory(self) -> dict[str, float]:
        """MB of each, now."""
        return {name: round(process.resident(), 1) for name, process in self.processes.items()}

    def look(self) -> None:
        """Ten times a second, until done."""
        while not self.done:
            for name, now in self.memory().items():
                self.peaks[name] = max(self.peaks.get(name, 0.0), now)
            time.sleep(0.1)

    def saw(self, tier: str, status: int, seconds: float, what: str) -> None:
        """One answer."""
        self.statuses[tier, status] += 1
        self.slowest = max(self.slowest, seconds)
        if status >= 500 or seconds > SLOW_SECONDS:
            self.broken.append(f"{tier} {status} in {seconds:.2f} s: {what[:300]}")


@contextlib.contextmanager
def watched(stack: Stack, app: Process) -> Iterator[Watch]:
    """Look at all three until the block ends."""
    watch = Watch({"gateway": stack.gateway, "backend": stack.backends[0], "app": app})
    thread = threading.Thread(target=watch.look)
    thread.start()
    try:
        yield watch
    finally:
        watch.done = True
        thread.join()


# -- connections ------------------------------------------------------------------------------------------------------


def flood(port: int, first: bytes, again: bytes, seconds: float = 2.0, connections: int = 1) -> int:
    """Send without end and read nothing; returns how many bytes were taken."""
    taken, opened = 0, []
    for _ in range(connections):
        one = socket.create_connection(("127.0.0.1", port), timeout=1)
        opened.append(one)
        until = time.monotonic() + seconds / connections
        with contextlib.suppress(OSError):
            one.sendall(first)
            while time.monotonic() < until:
                taken += one.send(again)
    time.sleep(0.5)
    for one in opened:
        one.close()
    return taken


def idle(ports: list[int], n: int) -> int:
    """Open so many connections and say nothing on them; returns how many there were."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    opened: list[socket.socket] = []
    with contextlib.suppress(OSError):
        while len(opened) < min(n, hard - 1_000):
            opened.append(socket.create_connection(("127.0.0.1", ports[len(opened) % len(ports)]), timeout=2))
    time.sleep(2)
    for one in opened:
        one.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return len(opened)


def attacks_on(name: str, port: int, key: str, user: str) -> Iterator[tuple[str, int]]:
    """What was done, and how many bytes of it the server took."""
    posts = {"gateway": f"{MODEL}/twins", "backend": "/v2/models/taste/infer", "app": "/v1/tokens"}
    bearer = f"authorization: Bearer {key}\r\n".encode()
    post = b"POST %s HTTP/1.1\r\nhost: x\r\n%s" % (posts[name].encode(), bearer)
    stranger = post.replace(b"Bearer t", b"Bearer x")
    chunked, get = b"transfer-encoding: chunked\r\n\r\n", b"GET /docs HTTP/1.1\r\nhost: x\r\n"
    chunk = b"400\r\n" + b" " * 1_024 + b"\r\n"
    yield "a head without end", flood(port, post + b"x: ", b"x" * 65_536)
    yield "headers without end", flood(port, post, b"x: y\r\n" * 10_000)
    yield "trailers without end", flood(port, get + chunked + b"0\r\n", b"x: y\r\n" * 10_000)
    yield "a chunk's extension without end", flood(port, post + chunked + b"1;", b"x" * 65_536)
    yield "a body without end", flood(port, post + chunked, chunk)
    yield "small chunks without end", flood(port, post + chunked, b"1\r\n \r\n" * 10_000)
    yield "a body without end, key unknown", flood(port, stranger + chunked, chunk)
    yield "pipelines whose answers nobody takes", flood(port, b"", (get + b"\r\n") * 5_000, 4, 8)
    yield "half of bodies", flood(port, post + b"content-length: 9\r\n\r\n", b"", 0.1, 100)
    if name == "gateway":
        asked = json.dumps({"users": [user] * 64, "k": 100}).encode()
        many = b"POST %s/twins/batch HTTP/1.1\r\nhost: x\r\n%s" % (MODEL.encode(), bearer)
        many += b"content-length: %d\r\n\r\n%s" % (len(asked), asked)
        yield "large answers nobody takes", flood(port, b"", many * 20, 4, 8)


def attack(watch: Watch, keys: dict[str, str], n_idle: int) -> None:
    """On heads, bodies and answers of each server."""
    for name, process in watch.processes.items():
        before = watch.memory()[name]
        for what, taken in attacks_on(name, process.port, keys[name], keys["user"]):
            print(f"{name}, {what}: {taken} bytes taken, memory {before} -> {watch.memory()[name]} MB")
            before = watch.memory()[name]
    before_idle = watch.memory()
    opened = idle([process.port for process in watch.processes.values()], n_idle)
    print(f"{opened} idle connections: memory {before_idle} -> {watch.memory()} MB")


# -- bodies -----------------------------------------------------------------------------------------------------------


def post(watch: Watch, tier: str, path: str, key: str, body: bytes) -> None:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", watch.processes[tier].port, timeout=60)
    began = time.perf_counter()
    try:
        connection.request("POST", path, body, {"authorization": f"Bearer {key}"})
        status = connection.getresponse().status
    except (BrokenPipeError, ConnectionResetError):  # the door closed while the body was on its way
        status = 0
    finally:
        connection.close()
    watch.saw(tier, status, time.perf_counter() - began, f"{path} {body[:200]!r}")


def by_hand(watch: Watch, keys: dict[str, str]) -> None:
    """Every value in every body, to every route."""
    bodies = [body.replace("%s", value).encode("utf-8", "surrogatepass") for body in BODIES for value in VALUES]
    for body in [*bodies, *RAW]:
        for verb in VERBS:
            post(watch, "gateway", f"{MODEL}/{verb}", keys["gateway"], body)
        post(watch, "backend", "/v2/models/taste/infer", "", body)
        post(watch, "app", "/v1/tokens", keys["app"], body)
        for path in ("/v1/me/favors", "/v1/me/dismissed", "/v1/me/follows"):
            post(watch, "app", path, keys["token"], body)


# -- generated --------------------------------------------------------------------------------------------------------


def generated(watch: Watch, tier: str, key_of: Callable[[str], str], users: list[str], cases: int) -> int:
    """What schemathesis makes of the description, good and bad; returns how many."""
    url = f"http://127.0.0.1:{watch.processes[tier].port}"
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    schema.config.generation.update(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
    operations: list[Any] = [each.ok() for each in schema.get_all_operations()]  # type: ignore[union-attr]
    drawn, asked = random.Random(1), 0

    def ask(operation: Any) -> None:
        @seed(1)
        @given(case=operation.as_strategy())
        @settings(
            max_examples=-(-cases // len(operations)),
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def each(case: Any) -> None:
            nonlocal asked
            asked += 1
            _make_real(case, users, drawn)
            headers = {"authorization": f"Bearer {key_of(case.operation.path)}"}
            answer = case.call(base_url=url, headers=headers)
            what = f"{case.method} {case.path} {case.body!r} -> {answer.text[:200]}"
            watch.saw(tier, answer.status_code, answer.elapsed, what)

        each()

    for operation in operations:
        ask(operation)
    return asked


def _make_real(case: Any, users: list[str], drawn: random.Random) -> None:
    """A model that there is, nine times of ten; users who are known, half of the time."""
    if "model" in (case.path_parameters or {}) and drawn.random() < 0.9:
        case.path_parameters["model"] = "taste"
    if isinstance(case.body, dict) and case.operation.path.rpartition("/")[2] != "opt-out":
        for name in {"user", "other"} & set(case.body):
            if drawn.random() < 0.5:
                case.body[name] = drawn.choice(users)


def token(port: int, key: str, user: str) -> str:
    """Of a user, from the app."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", "/v1/tokens", json.dumps({"user": user}), {"authorization": f"Bearer {key}"})
    return str(json.loads(connection.getresponse().read())["token"])


def fuzz(store: str, folder: Path, cases: int, n_idle: int) -> Watch:
    """All of it; the store is changed by it."""
    opened = Store.open(store)
    users = TwinLists(opened, published_run(opened)).some_users(50)
    generous = {"user_per_second": "1e6", "user_burst": "1000000", "place_people": "true"}
    with (
        serving(store, folder, outputs_mb="64") as stack,
        product(stack, folder, **generous) as (app, app_key),
    ):
        mine = token(app.port, app_key, users[0])
        keys = {"gateway": stack.key, "backend": "t", "app": app_key, "token": mine, "user": users[1]}
        with watched(stack, app) as watch:
            print(f"memory at the start: {watch.memory()} MB")
            attack(watch, keys, n_idle)
            by_hand(watch, keys)
            print(f"{sum(watch.statuses.values()):,} requests by hand, memory: {watch.memory()} MB")
            keys_of = defaultdict(lambda: mine, {"/v1/tokens": app_key, "/v1/users/{user}": app_key})
            asked = generated(watch, "gateway", lambda _: stack.key, users, cases // 2)
            asked += generated(watch, "app", keys_of.__getitem__, users, cases // 2)
            print(f"{asked:,} requests generated, memory: {watch.memory()} MB")
    return watch


def main() -> None:
    """Exit 1 if something broke."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--idle", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        shutil.copytree(options.store, Path(name) / "store")
        watch = fuzz(str(Path(name) / "store"), Path(name), options.cases, options.idle)
    print(f"answers: {dict(sorted(watch.statuses.items()))}")
    print(f"slowest answer: {watch.slowest * 1e3:.0f} ms; highest memory: {watch.peaks} MB of {MOST_MB}")
    for each in watch.broken[:20]:
        print("BROKEN", each)
    raise SystemExit(1 if watch.broken or max(watch.peaks.values()) > MOST_MB else 0)


if __name__ == "__main__":
    main()
