"""Versions swapped, backends killed or stopped and everything measured for its memory, while questions keep coming.

    OMP_NUM_THREADS=1 python benchmarks/swaps.py STORE [--swaps 100] [--kills 100] [--stops 10] [--rate 100]
        [--minutes 0]

STORE has two runs that were delivered. A gateway with two backends answers questions at ``--rate`` a second (twins of
users, twins of histories never asked before, vectors) while the published run is swapped, and then while one backend
after the other is killed with -9 and started again, and while one after the other is stopped (SIGSTOP) for three
seconds, which looks from outside like a machine whose network is gone. Promised: no question fails. With
``--minutes`` swaps and kills go on together for so long, and the slope of the memory is told; ``--minutes 480`` is the
long soak.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson

from stack import Answers, Question, Stack, arrive, serving
from tastetwin.analysis.lookup import TwinLists
from tastetwin.delivery.publish import promote_run
from tastetwin.features.user_favor import USER_FAVOR
from tastetwin.runs import list_runs, published_run
from tastetwin.serving.gateway.pack import Pack
from tastetwin.store import Store
from tastetwin.tables import read_files


def questions(store: Store, n: int) -> list[Question]:
    """A third each: twins of users, twins of new histories, vectors of new histories."""
    lists = TwinLists(store, published_run(store))
    rows = read_files(store, lists.features.paths("user_favor")[:1], USER_FAVOR).to_pylist()
    places = sorted({review["review_place_id"] for row in rows for review in row["review_list"]})
    users, drawn = lists.some_users(200), random.Random(1)
    asked: list[Question] = []
    for number in range(n):
        likes = [{"like_contentsid": place} for place in drawn.sample(places, min(12, len(places)))]
        bodies: list[Question] = [
            ("twins", orjson.dumps({"user": users[number % len(users)], "k": 10})),
            ("twins", orjson.dumps({"likes": likes, "k": 10, "evidence": False})),
            ("embed", orjson.dumps({"items": [{"likes": likes}]})),
        ]
        asked.append(bodies[number % 3])
    return asked


def swap(store: Store, times: int, pause: float, stop: threading.Event) -> int:
    """Publish one run after the other; returns how often."""
    runs = [run.run_id for run in list_runs(store) if run.status == "delivered"][-2:]
    done = 0
    while done < times and not stop.is_set():
        promote_run(store, next(run for run in runs if run != published_run(store).run_id))
        done += 1
        time.sleep(pause)
    return done


def kill(stack: Stack, times: int, pause: float, stop: threading.Event) -> int:
    """Kill one backend after the other, each time after the one before is back; returns how often."""
    done = 0
    while done < times and not stop.is_set():
        backend = stack.backends[done % len(stack.backends)]
        backend.kill()
        backend.start()
        backend.wait_until_ready()
        done += 1
        time.sleep(pause)
    return done


def stop(stack: Stack, times: int, seconds: float, pause: float) -> int:
    """Stop one backend after the other for so long; returns how often."""
    for done in range(times):
        backend = stack.backends[done % len(stack.backends)]
        backend.send(signal.SIGSTOP)
        time.sleep(seconds)
        backend.send(signal.SIGCONT)
        time.sleep(pause)
    return times


def under_load(stack: Stack, asked: list[Question], rate: float, work: Callable[[], int]) -> tuple[int, Answers]:
    """Do some work while questions come; what it returned, and the answers."""
    result: list[int] = []
    worker = threading.Thread(target=lambda: result.append(work()))
    worker.start()
    answers = asyncio.run(arrive(stack, asked, rate, 1e9, lambda: not worker.is_alive()))
    worker.join()
    return result[0], answers


def tell(what: str, done: int, answers: Answers) -> int:
    """One line; returns how many failed."""
    failed = sum(count for status, count in answers.statuses.items() if status != "200")
    worst = max(answers.milliseconds, default=float("nan"))
    print(
        f"{done} {what}: {sum(answers.statuses.values()):,} questions, {failed} failed {dict(answers.statuses)} "
        f"{dict(answers.codes)}, p50 {answers.percentile(50):.1f} ms, p99 {answers.percentile(99):.1f} ms, "
        f"worst {worst:.0f} ms"
    )
    return failed


def soak(store: Store, stack: Stack, asked: list[Question], rate: float, minutes: float) -> int:
    """Swaps and kills together for so long; memory once a second."""
    stop, samples, began = threading.Event(), [], time.monotonic()
    pace = max(minutes * 60 / 48, 5)  # 480 minutes: a swap every ten, as many kills
    others = [
        threading.Thread(target=swap, args=(store, 10**9, pace, stop)),
        threading.Thread(target=kill, args=(stack, 10**9, pace, stop)),
    ]

    def watch() -> int:
        while time.monotonic() - began < minutes * 60:
            samples.append((time.monotonic() - began, stack.gateway.resident()))
            time.sleep(1)
        stop.set()
        return len(samples)

    for each in others:
        each.start()
    _, answers = under_load(stack, asked, rate, watch)
    for each in others:
        each.join()
    late = np.array([each for each in samples if each[0] > minutes * 60 / 3])  # caches fill up first
    slope = np.polyfit(late[:, 0], late[:, 1], 1)[0] * 3_600
    print(f"gateway's memory: {late[0, 1]:.0f} MB, then {late[-1, 1]:.0f} MB; slope {slope:+.1f} MB/h")
    return tell("seconds of both", len(samples), answers)


def main() -> None:
    """Exit 1 if a question failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--stops", type=int, default=10)
    parser.add_argument("--rate", type=float, default=100)
    parser.add_argument("--minutes", type=float, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        shutil.copytree(options.store, Path(name) / "store")
        store = Store.open(Path(name) / "store")
        runs = [run for run in list_runs(store) if run.status == "delivered"][-2:]
        if len(runs) < 2:
            raise SystemExit("the store needs two delivered runs: tastetwin run --again")
        for run in runs:
            Pack.of(store, run)
        asked, failed, never = questions(store, 30_000), 0, threading.Event()
        with serving(str(store.root), Path(name), 2, refresh_seconds="0.2", outputs_mb="16") as stack:
            if options.swaps:
                failed += tell(
                    "swaps", *under_load(stack, asked, options.rate, lambda: swap(store, options.swaps, 1.0, never))
                )
            if options.kills:
                failed += tell(
                    "kills", *under_load(stack, asked, options.rate, lambda: kill(stack, options.kills, 0.5, never))
                )
            if options.stops:
                failed += tell(
                    "stops", *under_load(stack, asked, options.rate, lambda: stop(stack, options.stops, 3, 2))
                )
            if options.minutes:
                failed += soak(store, stack, asked, options.rate, options.minutes)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
