"""Whether the time of an answer tells unknown users, users who opted out and users with too few favors apart.

    OMP_NUM_THREADS=1 python benchmarks/timing.py STORE [--requests 5000]

So many requests of each kind in random order over one connection, to the gateway and to the app; printed is the area
under the curve (AUC: .5 = nothing to be seen) of telling two kinds apart by the time of an answer, with its 95 %
interval (bootstrap). Promised: the same status, the same bytes but for the request's id, AUC <= .55.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import random
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from stack import product, serving
from tastetwin.privacy.opt_out import opt_out
from tastetwin.runs import published_run
from tastetwin.serving.gateway.pack import Pack
from tastetwin.store import Store

MOST: Final = 0.55
OF_A_KIND: Final = 40
CHANGING: Final = frozenset({"x-request-id", "date"})
Question = Callable[[str], tuple[str, str, bytes | None, str]]
"""Of a user: method, path, body and key."""


def kinds(store: Store) -> dict[str, list[str]]:
    """Users of each; those of one are opted out here."""
    pack = Pack.of(store, published_run(store))
    new = [pack.people.name(at) for at in range(len(pack)) if not pack.has_vector(at)][:OF_A_KIND]
    gone = [pack.people.name(int(at)) for at in pack.members[:OF_A_KIND]]
    opt_out(store, gone)
    unknown = [f"{each[:-2]}zz{number:02}"[-len(each) :] for number, each in enumerate(gone)]  # as long as others
    if len(new) < 2:
        raise SystemExit("the store has nobody with too few favors")
    return {"unknown": unknown, "opted out": gone, "too new": new}


def measure(port: int, users: Mapping[str, Sequence[str]], ask: Question, n: int) -> dict[str, npt.NDArray[np.float64]]:
    """[n] seconds of each kind; exits where an answer differs by more than its id."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    order = [kind for kind in users for _ in range(n)]
    random.Random(1).shuffle(order)
    taken: dict[str, list[float]] = {kind: [] for kind in users}
    seen: dict[tuple[object, ...], str] = {}
    for number, kind in enumerate(order[:200] + order):
        method, path, body, key = ask(random.choice(users[kind]))
        began = time.perf_counter()
        connection.request(method, path, body, {"authorization": f"Bearer {key}", "x-request-id": "same"})
        answer = connection.getresponse()
        said = answer.read()
        seconds = time.perf_counter() - began
        headers = tuple((name, value) for name, value in answer.getheaders() if name not in CHANGING)
        seen[answer.status, headers, said] = kind
        if number >= 200:
            taken[kind].append(seconds)
    if len(seen) != 1:
        raise SystemExit(f"answers differ: {seen}")
    print(f"{path.rpartition('/v1/')[2]}: status {answer.status}, one answer of {len(said)} bytes for all")
    return {kind: np.array(each) for kind, each in taken.items()}


def auc(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """Chance that one of the first took longer than one of the other, whichever way round is above a half."""
    ranks = np.argsort(np.argsort(np.concatenate([one, other])))[: len(one)]
    area = float((ranks.sum() - len(one) * (len(one) - 1) / 2) / (len(one) * len(other)))
    return max(area, 1 - area)


def tell(taken: Mapping[str, npt.NDArray[np.float64]]) -> float:
    """One line for each pair; the highest."""
    drawn, highest = np.random.default_rng(1), 0.0
    for first, second in itertools.combinations(taken, 2):
        one, other = taken[first], taken[second]
        many = [auc(drawn.choice(one, len(one)), drawn.choice(other, len(other))) for _ in range(200)]
        low, high = np.percentile(many, [2.5, 97.5])
        area = auc(one, other)
        highest = max(highest, area)
        medians = [np.median(each) * 1e6 for each in (one, other)]
        print(
            f"  {first} / {second}: AUC {area:.3f} [{low:.3f}, {high:.3f}], "
            f"medians {medians[0]:.1f} and {medians[1]:.1f} us"
        )
    return highest


def main() -> None:
    """Exit 1 above the promised figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--requests", type=int, default=5_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        shutil.copytree(options.store, Path(name) / "store")
        users, highest = kinds(Store.open(Path(name) / "store")), 0.0
        generous = {"user_per_second": "1e6", "user_burst": "1000000"}
        with (
            serving(f"{name}/store", Path(name)) as stack,
            product(stack, Path(name), **generous) as (app, app_key),
        ):
            tokens = {user: token(app.port, app_key, user) for each in users.values() for user in each}

            def post(verb: str, **more: str) -> Question:
                return lambda user: (
                    "POST", f"/v1/models/taste/{verb}", json.dumps({"user": user, **more}).encode(), stack.key
                )  # fmt: skip

            questions: list[tuple[int, Question]] = [
                (stack.gateway.port, post("twins")),
                (stack.gateway.port, post("explain", other="somebody else")),
                (app.port, lambda user: ("GET", "/v1/me/twins", None, tokens[user])),
            ]
            for port, ask in questions:
                highest = max(highest, tell(measure(port, users, ask, options.requests)))
    raise SystemExit(1 if highest > MOST else 0)


def token(port: int, key: str, user: str) -> str:
    """Of a user, from the app."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", "/v1/tokens", json.dumps({"user": user}), {"authorization": f"Bearer {key}"})
    return str(json.loads(connection.getresponse().read())["token"])


if __name__ == "__main__":
    main()
