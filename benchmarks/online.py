"""CPU time from users' favors to taste histories, beside the batch on the same favors; and of looking up ids.

    OMP_NUM_THREADS=1 python benchmarks/online.py [--places 1000000]

Users have 30 favors, 20 reviews and 10 likes of Zipf-popular places, some visited twice. The peer is
``taste_histories`` as the batch calls it, given its favors as Arrow columns ready made and a ``PlaceRows`` of the same
places, whose hash table pyarrow builds anew in every call; ``kernels`` is the same without that, over the 300 most
visited places. Everything is measured in turn, several times; medians of CPU time, since other work on the machine
slows all. Targets: one user <= 60 us with its look-up, of 256 <= 30 us each; one id <= 3 us, 30 ids <= 20 us.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

from tastetwin.config import Config
from tastetwin.features.favors import Favors, Like, Review, favored, landed, merged, read_favors
from tastetwin.features.histories import FIRST_PLACE_ROW
from tastetwin.features.ids import PlaceIndex
from tastetwin.features.online import histories_of, history_of, joined_histories
from tastetwin.features.taste import taste_histories
from tastetwin.features.user_favor import USER_FAVOR
from tastetwin.features.vocabulary import PlaceRows
from tastetwin.mart.rules import GateRules

ROUNDS = 7
USERS, REVIEWS, LIKES = 256, 20, 10
FEW = 300
TODAY = date(2026, 11, 20)


def invented(users: int, places: int, seed: int) -> list[Favors]:
    """Zipf-popular places, half stars, times within two years."""
    rng = np.random.default_rng(seed)
    shape = (users, REVIEWS + LIKES)
    chosen = np.minimum((rng.random(shape) ** 4 * places).astype(int), places - 1).tolist()
    times = (1_700_000_000_000_000 + rng.integers(0, 63_000_000, shape) * 1_000_000).tolist()
    stars = (rng.integers(2, 11, shape) / 2).tolist()
    made = []
    for user in range(users):
        rows = list(zip(chosen[user], times[user], stars[user], strict=True))
        reviews = tuple(Review(f"r{n}", place_id(p), s, t, False) for n, (p, t, s) in enumerate(rows[:REVIEWS]))
        made.append(landed(Favors(reviews, tuple(Like(place_id(p), "main", t) for p, t, _ in rows[REVIEWS:]))))
    return made


def place_id(number: int) -> str:
    """An id of thirteen characters."""
    return f"place-{number:07d}"


def raw(favors: Favors) -> dict[str, list[dict[str, Any]]]:
    """As a request holds them, times written out."""

    def written(at: int | None) -> str:
        return f"{np.datetime64(at, 'us')}Z"

    reviews = [
        {"review_id": r.review_id, "review_place_id": r.place_id, "review_rating": r.rating,
         "review_visited_date": written(r.at)} for r in favors.reviews
    ]  # fmt: skip
    likes = [
        {"like_contentsid": o.place_id, "like_displayid": o.display_id, "like_regymdt": written(o.at)}
        for o in favors.likes
    ]
    return {"reviews": reviews, "likes": likes}


def table(users: list[Favors]) -> pa.Table:
    """The same as ``USER_FAVOR``."""
    return pa.Table.from_pylist(
        [
            {
                "user_idno": f"u{number:06d}",
                "like_list": [
                    {"like_regymdt": o.at, "like_displayid": o.display_id, "like_contentsid": o.place_id}
                    for o in user.likes
                ],
                "like_stat_list": [],
                "review_list": [
                    {"review_id": r.review_id, "review_rating": r.rating, "review_visited_date": r.at,
                     "review_place_id": r.place_id} for r in user.reviews
                ],
            }
            for number, user in enumerate(users)
        ],
        USER_FAVOR,
    )  # fmt: skip


def cpu(ways: dict[str, tuple[Callable[[], object], int]]) -> dict[str, float]:
    """Microseconds of CPU per call of each way, the median of rounds in turn; (what to call, how often a round)."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, (call, times) in ways.items():
            began = time.process_time_ns()
            for _ in range(times):
                call()
            found[name].append((time.process_time_ns() - began) / times / 1_000)
    return {name: median(values) for name, values in found.items()}


def measure_index(folder: Path, ids: pa.Array, rows: Any) -> PlaceIndex:
    """Write and open, each once."""
    began = time.process_time()
    paths = PlaceIndex.write(folder, ids, rows)
    written = time.process_time() - began
    began = time.perf_counter()
    index = PlaceIndex.open(folder)
    opened = time.perf_counter() - began
    size = sum(path.stat().st_size for path in paths) / 2**20
    print(f"index of {len(index):,} places: {written:.1f} s to write, {size:.0f} MiB, {opened * 1e3:.2f} ms to open")
    return index


def measure(folder: Path, places: int) -> None:
    """Print everything."""
    ids = pa.array([place_id(number) for number in range(places)])
    rows = np.arange(places, dtype=np.int32) + FIRST_PLACE_ROW
    index, batch = measure_index(folder, ids, rows), PlaceRows(ids, rows)
    users = invented(USERS, places, seed=1)
    few, near = PlaceRows(ids[:FEW], rows[:FEW]), invented(USERS, FEW, seed=1)
    one, many, one_near, many_near = table(users[:1]), table(users), table(near[:1]), table(near)
    names = [each.place_id for kind in users[0] for each in kind]
    config, sent = Config(), raw(users[0])
    rules = GateRules.of(config.mart, config.collect, TODAY)
    another = Favors((Review("r3", place_id(1), 1.0, 1_790_000_000_000_000, False),))

    def joined(chosen: list[Favors]) -> object:
        return joined_histories([""] * len(chosen), [history_of(favors, index.of) for favors in chosen])

    def together(chosen: list[Favors]) -> object:
        return histories_of([""] * len(chosen), chosen, index.of)

    found = cpu(
        {
            "1 id": (lambda: index.of(names[:1]), 20_000),
            "30 ids": (lambda: index.of(names), 2_000),
            "1 user": (lambda: history_of(users[0], index.of), 1_000),
            "1 user, joined": (lambda: joined(users[:1]), 1_000),
            "1 user, batch": (lambda: taste_histories(one, batch), 1),
            "1 user, batch, kernels": (lambda: taste_histories(one_near, few), 50),
            "16 users": (lambda: together(users[:16]), 50),
            "16 users, one by one": (lambda: joined(users[:16]), 50),
            "256 users": (lambda: together(users), 5),
            "256 users, one by one": (lambda: joined(users), 2),
            "256 users, batch": (lambda: taste_histories(many, batch), 1),
            "256 users, batch, kernels": (lambda: taste_histories(many_near, few), 5),
            "read_favors": (lambda: read_favors(sent, rules, 512), 200),
            "favored": (lambda: favored(users[0], config.features, lambda _: ()), 2_000),
            "merged, one event": (lambda: merged(users[0], another), 1_000),
        }
    )
    for name, value in found.items():
        each = f"   {value / USERS:8.2f} us a user" if name.startswith("256") else ""
        print(f"{name:28s} {value:12.2f} us{each}")
    for name in ("1 user", "256 users"):
        ours = found["1 user, joined" if name == "1 user" else name]
        print(f"{name}: batch / online {found[f'{name}, batch'] / ours:.1f}x, its kernels alone "
              f"{found[f'{name}, batch, kernels'] / ours:.1f}x")  # fmt: skip


def main() -> None:
    """Measure in a folder that is thrown away."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--places", type=int, default=1_000_000)
    with tempfile.TemporaryDirectory(prefix="tastetwin-") as folder:
        measure(Path(folder) / "places", parser.parse_args().places)


if __name__ == "__main__":
    main()
