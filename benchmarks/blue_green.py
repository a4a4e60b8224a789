"""Deployment after deployment under load: what HAProxy's clients notice, one spoilt model among them.

    OMP_NUM_THREADS=1 python benchmarks/blue_green.py [--deployments 20] [--spoilt 10] [--rate 100] [--users 300]

A town of ``--users`` gets a run, and one more for each deployment: trained anew from another seed, analyzed, evaluated
and delivered. ``tastetwin deploy --target local`` serves one after the other, while wrk asks the gateway (twins of
users, twins of histories, vectors; ``--rate`` a second) and another wrk the app (my twins; half as often) through
HAProxy. The run of the deployment ``--spoilt`` has random weights behind a sound manifest; it must be rolled back by
the command itself. Promised: no request fails. Needs Debian's haproxy and wrk.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from tastetwin.analysis.lookup import TwinLists
from tastetwin.config import Config, DeliverConfig, EvaluateConfig, TrainConfig
from tastetwin.features.user_favor import USER_FAVOR
from tastetwin.generations import entry_of, finish, read_manifest
from tastetwin.pipeline import run_day, run_stage
from tastetwin.runs import Run, parse_date, write_run
from tastetwin.serving.keys import SCOPES, add_key
from tastetwin.sources.synthetic import TownConfig, write_town
from tastetwin.store import Store
from tastetwin.tables import read_files

CONNECTIONS = 8
SCRIPT = """\
local asked, at = {}, 0
for line in io.lines("%s") do
  local method, path, key, body = line:match("^(%%S+) (%%S+) (%%S+) ?(.*)$")
  asked[#asked + 1] = wrk.format(method, path, {authorization = "Bearer " .. key}, body ~= "" and body or nil)
end
request = function() at = at %% #asked + 1; return asked[at] end
delay = function() return %d end
done = function(summary, latency, requests)
  local e = summary.errors
  local names = {"requests", "status", "connect", "read", "write", "timeout", "p50", "p99", "worst"}
  local values = {summary.requests, e.status, e.connect, e.read, e.write, e.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000, latency.max / 1000}
  for n, name in ipairs(names) do names[n] = string.format('"%%s": %%.12g', name, values[n]) end
  io.write("{" .. table.concat(names, ", ") .. "}")
end
"""


def quick(seed: int) -> Config:
    """Settings of a run that takes seconds."""
    train = TrainConfig(epochs=1, layers=1, width=32, heads=2, dim=64, seed=seed)
    return Config(train=train, evaluate=EvaluateConfig(bootstrap=200), deliver=DeliverConfig(keep_runs=100))


def town(folder: Path, users: int) -> tuple[Store, Run]:
    """A store with one delivered run."""
    config = TownConfig(users=users, seed=3)
    events, store = write_town(config, folder / "town"), Store.create(folder / "store")
    return store, run_day(store, str(events.folder), config.until, quick(1))


def retrained(store: Store, run: Run, seed: int) -> Run:
    """Another run of the day, by another model."""
    for stage in ("train", "analyze", "evaluate", "deliver"):
        run = run_stage(store, stage, parse_date(run.logical_date), quick(seed), again=True)
    return run


def spoilt(store: Store, run: Run, run_id: str) -> Run:
    """The run under another id, its model's weights replaced by chance; all manifests are honest."""
    bundle, drawn = read_manifest(store, "train", run.generation("train")), np.random.default_rng(0)
    model = onnx.load(store.path(bundle.paths("model")[0]))
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.dims:
            weights = drawn.standard_normal(numpy_helper.to_array(tensor).shape).astype(np.float32) / 10
            tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
    other = replace(bundle, generation=f"{bundle.logical_date}-{drawn.integers(1 << 40):012x}")
    store.make_folder(other.folder)
    store.write_bytes(f"{other.folder}/encoder.onnx", model.SerializeToString())
    finish(store, replace(other, tables={**bundle.tables, "model": [entry_of(store, f"{other.folder}/encoder.onnx")]}))
    stages = {**run.stages, "train": replace(run.stages["train"], generation=other.generation)}
    return write_run(store, replace(run, run_id=run_id, stages=stages))


def free_block() -> int:
    """A ``deploy.port`` with everything free that goes with it."""
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for number in (0, 1, *range(10, 16), *range(20, 26)):
                held.enter_context(socket.create_server(("127.0.0.1", port + number)))
            return port


def post(url: str, key: str, body: Any) -> Any:
    """A JSON answer."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=30) as said:
        return json.loads(said.read())


def gateway_lines(store: Store, run: Run, key: str) -> list[str]:
    """A third each: twins of users, twins of histories, vectors of histories; most of the latter ask the model."""
    lists, drawn = TwinLists(store, run), random.Random(1)
    rows = read_files(store, lists.features.paths("user_favor")[:1], USER_FAVOR).to_pylist()
    places = sorted({review["review_place_id"] for row in rows for review in row["review_list"]})
    users, lines = lists.some_users(100), []
    for number in range(2_000):
        likes = [{"like_contentsid": place} for place in drawn.sample(places, min(12, len(places)))]
        twins, embed = "/v1/models/taste/twins", "/v1/models/taste/embed"
        for path, body in (
            (twins, {"user": users[number % len(users)], "k": 10}),
            (twins, {"likes": likes, "k": 10}),
            (embed, {"items": [{"likes": likes}]}),
        ):
            lines.append(f"POST {path} {key} {json.dumps(body)}")
    return lines


def app_lines(store: Store, run: Run, url: str, key: str) -> list[str]:
    """My twins, of users who are logged in."""
    users = TwinLists(store, run).some_users(60)
    tokens = [post(f"{url}/v1/tokens", key, {"user": user, "seconds": 86_400})["token"] for user in users]
    return [f"GET /v1/me/twins {token}" for token in tokens]


@dataclass(frozen=True)
class Wrk:
    """A load at a steady rate, until it is told to end."""

    process: subprocess.Popen[str]

    @classmethod
    def start(cls, folder: Path, url: str, lines: list[str], rate: float) -> Wrk:
        """``lines``: method, path, key, body."""
        asked = folder / f"{len(list(folder.iterdir()))}.txt"
        asked.write_text("\n".join(lines) + "\n")
        script = asked.with_suffix(".lua")
        script.write_text(SCRIPT % (asked, round(CONNECTIONS * 1_000 / rate)))
        words = ["wrk", "-t1", f"-c{CONNECTIONS}", "-d36000s", "--timeout", "10s", "-s", str(script), url]
        return cls(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))

    def stop(self) -> dict[str, float]:
        """What became of the requests."""
        self.process.send_signal(signal.SIGINT)
        said = self.process.communicate(timeout=60)[0]
        found: dict[str, float] = json.loads(said[said.rindex("{") :])
        found["failed"] = sum(found[name] for name in ("status", "connect", "read", "write", "timeout"))
        return found


@dataclass(frozen=True)
class Here:
    """A home to which runs of a store are deployed by the command line."""

    store: Store
    home: Path
    port: int

    def deploy(self, *words: str) -> int:
        """Exit code of ``tastetwin deploy WORDS``."""
        return self.command(*words).wait(300)

    def command(self, *words: str, **more: Any) -> subprocess.Popen[str]:
        """The same, begun."""
        where = ["--target", "local", "--store", str(self.store.root), "--home", str(self.home)]
        return subprocess.Popen(
            [sys.executable, "-m", "tastetwin", "deploy", *words, *where],
            env={**os.environ, "TASTETWIN_DEPLOY__PORT": str(self.port), "TASTETWIN_DEPLOY__CHECK_SECONDS": "1"},
            stdout=subprocess.DEVNULL,
            text=True,
            **({"stderr": subprocess.DEVNULL} | more),
        )

    def live(self, key: str, user: str) -> str:
        """The run that answers."""
        url = f"http://127.0.0.1:{self.port}/v1/models/taste/twins"
        return str(post(url, key, {"user": user, "k": 1})["version"])

    def load(self, run: Run, folder: Path, rate: float) -> tuple[str, list[Wrk]]:
        """A key of the gateway, and two loads; something is deployed."""
        key = add_key(self.home / "keys.json", "bench", SCOPES, 1e6, 1_000_000)
        time.sleep(2.5)  # servers look for new keys
        gateway, app = (f"http://127.0.0.1:{self.port + number}" for number in (0, 1))
        folder.mkdir()
        return key, [
            Wrk.start(folder, gateway, gateway_lines(self.store, run, key), rate),
            Wrk.start(folder, app, app_lines(self.store, run, app, key), rate / 2),
        ]


def main() -> None:
    """Exit 1 if a request failed, or another run answers than should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deployments", type=int, default=20)
    parser.add_argument("--spoilt", type=int, default=10)
    parser.add_argument("--rate", type=float, default=100)
    parser.add_argument("--users", type=int, default=300)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="blue-green-") as name:
        folder = Path(name)
        store, first = town(folder, options.users)
        runs = [first]
        for seed in range(2, options.deployments + 2):
            runs.append(retrained(store, first, seed))
        here = Here(store, folder / "home", free_block())
        wrong = deployments(here, runs, folder / "wrk", options.spoilt, options.rate)
    raise SystemExit(1 if wrong else 0)


def deployments(here: Here, runs: list[Run], folder: Path, bad: int, rate: float) -> int:
    """Deploy one after the other under load; prints what happened, returns how much went wrong."""
    wrong = here.deploy("--run", runs[0].run_id)
    user = TwinLists(here.store, runs[0]).some_users(1)[0]
    key, loads = here.load(runs[0], folder, rate)
    served = runs[0].run_id
    for number, run in enumerate(runs[1:], start=1):
        wanted = spoilt(here.store, run, f"{run.logical_date}.{900 + number}") if number == bad else run
        began = time.monotonic()
        code = here.deploy("--run", wanted.run_id)
        served = served if number == bad else wanted.run_id
        live = here.live(key, user)
        wrong += (code != 0) != (number == bad) or live != served
        print(
            f"{number:3}  {wanted.run_id:15} exit {code}  {time.monotonic() - began:5.1f} s  answers: {live}",
            flush=True,
        )
    for what, load in zip(("gateway", "app"), loads, strict=True):
        found = load.stop()
        wrong += int(found["failed"])
        print(
            f"{what:8} {found['requests']:,.0f} requests, {found['failed']:.0f} failed (status {found['status']:.0f}, "
            f"sockets {found['failed'] - found['status']:.0f}), p50 {found['p50']:.1f} ms, p99 {found['p99']:.1f} ms, "
            f"worst {found['worst']:.0f} ms"
        )
    here.deploy("stop")
    return wrong


if __name__ == "__main__":
    main()
