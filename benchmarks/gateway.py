"""What a question costs the gateway: a hit, a miss, a published list; beside a bare Starlette route.

    OMP_NUM_THREADS=1 python benchmarks/gateway.py STORE [--seconds 5]

STORE has a published run; of 200,000 users: ``tastetwin town town/ --users 200000``, then ``tastetwin run --source
town/ --store store/``. Costs are CPU time of the servers (gateway, and backend where it is asked) per answer, under as
much load as ``wrk`` makes with 16 connections; latencies are those at half of that rate (500/s at most), arrivals at random
(open loop), on the same machine as the client.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import numpy as np

from tastetwin.analysis.lookup import TwinLists
from tastetwin.features.user_favor import USER_FAVOR
from tastetwin.runs import published_run
from tastetwin.serving.keys import SCOPES, add_key
from tastetwin.store import Store
from tastetwin.tables import read_files

CONNECTIONS: Final = 16
BODIES: Final = 20_000
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


@dataclass(frozen=True)
class Servers:
    """Processes that are measured."""

    gateway: subprocess.Popen[bytes]
    backend: subprocess.Popen[bytes]
    key: str
    url: str

    def cpu(self) -> tuple[float, float]:
        """CPU seconds so far: gateway, backend."""
        return cpu_of(self.gateway.pid), cpu_of(self.backend.pid)


def cpu_of(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def serving(store: str, folder: Path) -> Iterator[Servers]:
    """A backend and a gateway on ports of their own; says how long they took to be ready."""
    key = add_key(folder / "keys.json", "bench", SCOPES, 1e6, 1_000_000)
    environment = {
        **os.environ,
        "TASTETWIN_GATEWAY__BACKENDS": '["http://127.0.0.1:28101"]',
        "TASTETWIN_GATEWAY__OUTPUTS": str(folder / "outputs"),
        "TASTETWIN_SERVE__LOG_SHARE": "0",
    }
    command = [sys.executable, "-m", "tastetwin", "serve"]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    backend = subprocess.Popen([*command, "backend", "--store", store, "--port", "28101"], **quiet)
    try:
        wait_for("http://127.0.0.1:28101/v2/health/ready")
        began = time.monotonic()
        words = [*command, "gateway", "--store", store, "--keys", str(folder / "keys.json"), "--port", "28102"]
        gateway = subprocess.Popen(words, **quiet)
        try:
            wait_for("http://127.0.0.1:28102/readyz")
            print(f"start to ready, gateway: {time.monotonic() - began:.2f} s")
            yield Servers(gateway, backend, key, "http://127.0.0.1:28102/v1/models/taste")
        finally:
            gateway.kill()
    finally:
        backend.kill()


@contextlib.contextmanager
def bare(folder: Path, body: bytes) -> Iterator[subprocess.Popen[bytes]]:
    """A Starlette route that returns ready bytes."""
    (folder / "answer.json").write_bytes(body)
    server = subprocess.Popen([sys.executable, "-c", BARE, str(folder / "answer.json"), "28103"])
    try:
        wait_for("http://127.0.0.1:28103/", "POST")
        yield server
    finally:
        server.kill()


def wait_for(url: str, method: str = "GET") -> None:
    """Until it answers 200."""
    import urllib.error
    import urllib.request

    for _ in range(6_000):
        with contextlib.suppress(urllib.error.URLError, OSError):
            data = b"" if method == "POST" else None
            with urllib.request.urlopen(urllib.request.Request(url, data, method=method), timeout=5):
                return
        time.sleep(0.02)
    raise SystemExit(f"{url} did not get ready")


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


async def arrive(url: str, key: str, bodies: Bodies, rate: float, seconds: float) -> tuple[list[float], int]:
    """Milliseconds of each answer, from the moment it was due, at ``rate`` a second; how many were refused."""
    taken: list[float] = []
    refused = 0

    async def ask(session: aiohttp.ClientSession, body: bytes, due: float) -> None:
        async with session.post(url, data=body) as answer:
            await answer.read()
        if answer.status == 200:
            taken.append((time.perf_counter() - due) * 1e3)
        else:
            nonlocal refused
            refused += 1

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"}, connector=connector) as session:
        tasks, due, end, at = [], time.perf_counter(), time.perf_counter() + seconds, 0
        while due < end:
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            tasks.append(asyncio.create_task(ask(session, bodies[at % len(bodies)], due)))
            at, due = at + 1, due + random.expovariate(rate)
        await asyncio.gather(*tasks)
    return taken, refused


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


def measure(name: str, servers: Servers, path: str, bodies: Bodies, seconds: float, folder: Path) -> Row:
    """Cost under load, then latency at half of that load."""
    url, third = f"{servers.url}/{path}", len(bodies) // 3
    press(url, servers.key, bodies[:third], 1, folder)  # connections, caches of the processors
    before = servers.cpu()
    rate = press(url, servers.key, bodies[third : 2 * third], seconds, folder)
    spent = [now - then for now, then in zip(servers.cpu(), before, strict=True)]
    answers = rate * seconds
    half = min(rate / 2, CLIENT_RATE)
    taken, refused = asyncio.run(arrive(url, servers.key, bodies[2 * third :], half, seconds))
    p50, p99 = np.percentile(taken, [50, 99])
    return Row(name, rate, spent[0] / answers * 1e6, spent[1] / answers * 1e6, float(p50), float(p99), refused)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--seconds", type=int, default=5)
    options = parser.parse_args()
    store = Store.open(options.store)
    lists = TwinLists(store, published_run(store))
    sent = histories(store, BODIES)
    users = [json.dumps({"user": user, "k": 10}).encode() for user in lists.some_users(600)]
    with tempfile.TemporaryDirectory() as name, serving(options.store, Path(name)) as servers:
        folder = Path(name)
        embeds = [json.dumps({"items": [each]}).encode() for each in sent]
        asked = [json.dumps({**each, "k": 20}).encode() for each in sent]
        brief = [json.dumps({**each, "k": 20, "evidence": False}).encode() for each in sent]
        questions: list[tuple[str, str, Bodies]] = [
            ("embed, hit", "embed", embeds[:1] * 300),
            ("embed, miss", "embed", embeds[1 : BODIES // 2]),
            ("twins of a history, miss, k=20, evidence", "twins", asked[BODIES // 2 :]),
            ("twins of a history, hit, k=20, no evidence", "twins", brief[:1] * 300),
            ("twins of a user, k=10, evidence", "twins", users),
        ]
        rows = [measure(name, servers, path, bodies, options.seconds, folder) for name, path, bodies in questions]
        answer = ask_once(f"{servers.url}/embed", servers.key, embeds[0])
        with bare(folder, answer) as server:
            press("http://127.0.0.1:28103/", "", embeds[:1] * 300, 1, folder)
            before = cpu_of(server.pid)
            rate = press("http://127.0.0.1:28103/", "", embeds[:1] * 300, options.seconds, folder)
            cost = (cpu_of(server.pid) - before) / (rate * options.seconds) * 1e6
    print(f"{'':45} {'rate/s':>8} {'gateway us':>11} {'backend us':>11} | at half: {'p50 ms':>8} {'p99 ms':>8} refused")
    for row in rows:
        print(
            f"{row.name:45} {row.rate:8.0f} {row.gateway_us:11.0f} {row.backend_us:11.0f} |          "
            f"{row.p50:8.2f} {row.p99:8.2f} {row.refused}"
        )
    print(f"{'bare Starlette route, the bytes of embed':45} {rate:8.0f} {cost:11.0f}")
    hit, miss = rows[0], rows[1]
    print(f"hit against miss: {(miss.gateway_us + miss.backend_us) / hit.gateway_us:.1f} times cheaper")
    print(f"hit against the bare route: {cost / hit.gateway_us:.2f} of its rate")


if __name__ == "__main__":
    main()
