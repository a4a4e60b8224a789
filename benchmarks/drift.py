"""What the gate says of the drift of ordinary days, and of days whose input is spoilt.

Run: python benchmarks/drift.py FOLDER [--users 2000] [--days 20]

A town runs its days one after the other; the last one is also spoilt in each of several ways, and judged but not
published. Ours is what the gate finds; the limit is nothing on ordinary days, and something on each spoilt one.
"""

from __future__ import annotations

import argparse
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import orjson

from tastetwin.config import Config, EvaluateConfig, TrainConfig
from tastetwin.errors import GateRefused
from tastetwin.evaluation.stage import verdict_of
from tastetwin.generations import STAGES, read_manifest
from tastetwin.pipeline import run_day, run_stage
from tastetwin.runs import Run
from tastetwin.sources.synthetic import TownConfig, write_day, write_town
from tastetwin.store import Store

CONFIG: Final = Config(
    train=TrainConfig(epochs=1, layers=1, width=32, heads=2, dim=64), evaluate=EvaluateConfig(bootstrap=200)
)
Lines = list[dict[str, Any]]
About = dict[str, dict[str, Any]]


def _place(line: dict[str, Any]) -> str:
    return str(line.get("review_place_id", line.get("like_contentsid")))


def _without(lines: Lines, about: About, key: Callable[[dict[str, Any]], list[Any]]) -> Lines:
    """Without every event at a place of the third largest kind."""
    kinds = {id(line): key(about.get(_place(line), {})) for line in lines}
    gone = Counter(kind for found in kinds.values() for kind in found).most_common(3)[-1][0]
    return [line for line in lines if gone not in kinds[id(line)]]


def _categories(place: dict[str, Any]) -> list[Any]:
    return place.get("place_category_code_list") or []


def _region(place: dict[str, Any]) -> list[Any]:
    return [place["place_dongcode"]] if place.get("place_dongcode") else []


SPOILT: Final[dict[str, Callable[[Lines, About], Lines]]] = {
    "third category lost": lambda lines, about: _without(lines, about, _categories),
    "third region lost": lambda lines, about: _without(lines, about, _region),
    "every line twice": lambda lines, about: lines * 2,
    "a third is left": lambda lines, about: lines[::3],
    "unknown places": lambda lines, about: [
        {**line, **{name: f"x{line[name]}" for name in ("review_place_id", "like_contentsid") if name in line}}
        for line in lines
    ],
}


def _read(folder: Path, kind: str) -> Lines:
    found = []
    for path in sorted(folder.glob(f"{kind}*.jsonl")):
        for line in path.read_bytes().splitlines():
            with suppress(orjson.JSONDecodeError):
                found.append(orjson.loads(line))
    return [line for line in found if isinstance(line, dict)]


def _rewrite(folder: Path, events: Lines) -> None:
    """Other reviews and likes in place of a day's."""
    for kind, place in (("reviews", "review_place_id"), ("likes", "like_contentsid")):
        for path in folder.glob(f"{kind}*"):
            path.unlink()
        lines = [orjson.dumps(each) + b"\n" for each in events if place in each]
        (folder / f"{kind}.jsonl").write_bytes(b"".join(lines))


def _about(folder: Path) -> About:
    return {str(place["place_id"]): place for place in _read(folder, "places") if "place_id" in place}


def _codes(store: Store, run: Run) -> str:
    verdict = verdict_of(read_manifest(store, "evaluate", run.generation("evaluate")))
    said = [f"{f.severity} {f.code}" for f in verdict.findings if f.code.startswith(("DRIFT", "DATA"))]
    return ", ".join(said) or "nothing"


def _judged(store: Store, source: Path, day: Any) -> str:
    """Every stage but the last, on a store that is thrown away."""
    for stage in STAGES[: STAGES.index("deliver")]:
        with suppress(GateRefused):
            run = run_stage(store, stage, day, CONFIG, source=str(source) if stage == "collect" else None)
    return _codes(store, run)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--days", type=int, default=20)
    asked = parser.parse_args()
    town = TownConfig(users=asked.users, seed=3)
    store = Store.create(asked.folder / "store")
    written = write_town(town, asked.folder / "town")
    about = _about(written.folder)
    run_day(store, str(written.folder), town.until, CONFIG)
    for number in range(1, asked.days + 1):
        source = write_day(town, number, asked.folder / f"day-{number}").folder
        when = town.until + timedelta(days=number)
        about |= _about(source)
        if number == asked.days:
            for name, spoil in SPOILT.items():
                other, copy = asked.folder / name, asked.folder / f"store {name}"
                shutil.copytree(source, other)
                shutil.copytree(asked.folder / "store", copy)
                _rewrite(other, spoil([*_read(source, "reviews"), *_read(source, "likes")], about))
                print(f"{when}  {name}: {_judged(Store.open(copy), other, when)}", flush=True)
        n = sum(len(_read(source, kind)) for kind in ("reviews", "likes"))
        run = run_day(store, str(source), when, CONFIG)
        print(f"{when}  {n} lines: {_codes(store, run)}", flush=True)


if __name__ == "__main__":
    _main()
