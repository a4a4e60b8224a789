"""What a question costs the gateway: a hit, a miss, a published list; beside a bare Starlette route.

    OMP_NUM_THREADS=1 python benchmarks/gateway.py STORE [--seconds 5]

STORE has a published run; of 200,000 users: ``tastetwin town town/ --users 200000``, then ``tastetwin run --source
town/ --store store/``. Costs are CPU time of the servers (gateway, and backend where it is asked) per answer, under as
much load as ``wrk`` makes with 16 connections. Latencies are those at half of that rate, at most 500/s, arrivals at
random (open loop), with the client on the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stack import Process, Stack, arrive, free_ports, serving, wait_for
from tastetwin.analysis.lookup import TwinLists
from tastetwin.features.user_favor import USER_FAVOR
from tastetwin.runs import published_run
from tastetwin.serving.gateway.pack import Pack
from tastetwin.store import Store
from tastetwin.tables import read_files

CONNECTIONS: Final = 16
BODIES: Final = 24_000
"""Histories; a third of them for each kind of miss, so that none is asked twice."""
HISTORY: Final = 20
CLIENT_RATE: Final = 500.0
"""Arrivals a second that the client can make without being what is measured."""
BARE: Final = """
import sys, uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
body = open(sys.argv[1], "rb").read()
async def answer(request):
    await request.body()
    return Response(body, media_type="application/json")
app = Starlette(routes=[Route("/", answer, methods=["POST"])])
quiet = {"log_level": "critical", "access_log": False}
uvicorn.run(app, port=int(sys.argv[2]), http="httptools", loop="uvloop", ws="none", **quiet)
"""
SCRIPT: Final = """
local bodies, at = {}, 0
for line in io.lines("%s") do bodies[#bodies + 1] = line end
request = function()
  at = at %% #bodies + 1
  return wrk.format("POST", nil, {["authorization"] = "Bearer %s", ["content-type"] = "application/json"}, bodies[at])
end
local bad = 0
response = function(status)
  if status ~= 200 then bad = bad + 1; if bad == 1 then io.write("STATUS ", status, "\\n") end end
end
"""

Bodies = Sequence[bytes]


class Bare(Process):
    """A Starlette route that returns ready bytes."""

    def start(self) -> None:
        """Begin; not ready yet."""
        self._running = subprocess.Popen([sys.executable, "-c", BARE, *self.arguments])


@contextlib.contextmanager
def bare(folder: Path, body: bytes) -> Iterator[Process]:
    """That route, serving."""
    (folder / "answer.json").write_bytes(body)
    (port,) = free_ports(1)
    server = Bare([str(folder / "answer.json"), str(port)], f"http://127.0.0.1:{port}/")
    server.start()
    try:
        wait_for(server.ready_at, "POST")
        yield server
    finally:
        server.kill()


def ask_once(url: str, key: str, body: bytes) -> bytes:
    """One answer."""
    import urllib.request

    request = urllib.request.Request(url, body, {"authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return bytes(answer.read())


def press(url: str, key: str, bodies: Bodies, seconds: float, folder: Path) -> float:
    """Answers per second under as much load as there can be."""
    (folder / "bodies.txt").write_bytes(b"\n".join(bodies))
    (folder / "load.lua").write_text(SCRIPT % (folder / "bodies.txt", key))
    words = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(folder / "load.lua"), url]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    if "STATUS" in said or "Non-2xx" in said:
        raise SystemExit(f"{url}: {said}")
    found = re.search(r"Requests/sec:\s+([\d.]+)", said)
    assert found is not None, said
    return float(found[1])


def histories(store: Store, n: int) -> list[dict[str, Any]]:
    """Histories of places that people do visit together: those of users, one place exchanged."""
    lists = TwinLists(store, published_run(store))
    table = read_files(store, lists.features.paths("user_favor")[:1], USER_FAVOR).slice(0, n).to_pylist()
    places = [review["review_place_id"] for row in table for review in row["review_list"]]
    drawn = random.Random(1)
    return [
        {
            "reviews": [
                {"review_place_id": each["review_place_id"], "review_rating": each["review_rating"]}
                for each in row["review_list"][-HISTORY:]
            ]
            + [{"review_place_id": drawn.choice(places)}]
        }
        for row in table
    ]


@dataclass(frozen=True)
class Row:
    """One kind of question."""

    name: str
    rate: float
    gateway_us: float
    backend_us: float
    p50: float
    p99: float
    refused: int


def measure(name: str, stack: Stack, path: str, bodies: Bodies, seconds: float, folder: Path) -> Row:
    """Cost under load, then latency at half of that load."""
    url, third, processes = f"{stack.url}/{path}", len(bodies) // 3, [stack.gateway, *stack.backends]
    press(url, stack.key, bodies[:third], 1, folder)  # connections, caches of the processors
    before = [each.cpu() for each in processes]
    rate = press(url, stack.key, bodies[third : 2 * third], seconds, folder)
    spent = [each.cpu() - then for each, then in zip(processes, before, strict=True)]
    asked = [(path, body) for body in bodies[2 * third :]]
    answers = asyncio.run(arrive(stack, asked, min(rate / 2, CLIENT_RATE), seconds))
    costs = [each / (rate * seconds) * 1e6 for each in spent]
    return Row(name, rate, costs[0], costs[1], answers.percentile(50), answers.percentile(99), len(answers.refused))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--seconds", type=int, default=2)
    options = parser.parse_args()
    store = Store.open(options.store)
    run = published_run(store)
    Pack.of(store, run)
    sent = histories(store, BODIES)
    users = [json.dumps({"user": user, "k": 10}).encode() for user in TwinLists(store, run).some_users(600)]
    embeds = [json.dumps({"items": [each]}).encode() for each in sent]
    asked = [json.dumps({**each, "k": 20}).encode() for each in sent]
    brief = [json.dumps({**each, "k": 20, "evidence": False}).encode() for each in sent]
    questions: list[tuple[str, str, Bodies]] = [
        ("embed, hit", "embed", embeds[:1] * 300),
        ("embed, miss", "embed", embeds[1 : BODIES // 3]),
        ("twins of a history, miss, k=20, evidence", "twins", asked[BODIES // 3 : 2 * BODIES // 3]),
        ("twins of a history, miss, k=20, no evidence", "twins", brief[2 * BODIES // 3 :]),
        ("twins of a history, hit, k=20, no evidence", "twins", brief[:1] * 300),
        ("twins of a user, k=10, evidence", "twins", users),
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with serving(options.store, folder, outputs=str(folder / "outputs")) as stack:
            stack.gateway.kill()
            stack.gateway.start()
            print(f"start to ready, gateway: {stack.gateway.wait_until_ready():.2f} s")
            rows = [measure(name, stack, path, bodies, options.seconds, folder) for name, path, bodies in questions]
            answer = ask_once(f"{stack.url}/embed", stack.key, embeds[0])
        cost = bare_cost(folder, answer, embeds[0], options.seconds)
    print(f"{'':45} {'rate/s':>8} {'gateway us':>11} {'backend us':>11} | at half: {'p50 ms':>8} {'p99 ms':>8} refused")
    for row in rows:
        print(
            f"{row.name:45} {row.rate:8.0f} {row.gateway_us:11.0f} {row.backend_us:11.0f} |          "
            f"{row.p50:8.2f} {row.p99:8.2f} {row.refused}"
        )
    print(f"{'bare Starlette route, the bytes of embed':45} {'':8} {cost:11.0f}")
    miss, kept = rows[3], rows[4]
    print(f"twins, hit against miss: {(miss.gateway_us + miss.backend_us) / kept.gateway_us:.1f} times cheaper")
    print(f"embed, hit against the bare route: {cost / rows[0].gateway_us:.2f} of its rate")


def bare_cost(folder: Path, answer: bytes, body: bytes, seconds: int) -> float:
    """CPU microseconds of an answer by a bare Starlette route."""
    with bare(folder, answer) as server:
        press(server.ready_at, "", [body] * 300, 1, folder)
        before = server.cpu()
        rate = press(server.ready_at, "", [body] * 300, seconds, folder)
        return (server.cpu() - before) / (rate * seconds) * 1e6


if __name__ == "__main__":
    main()
