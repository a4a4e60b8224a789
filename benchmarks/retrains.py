"""How often the gate stops a good run: honest retrains and honest next days of small towns.

Run: python benchmarks/retrains.py [--towns 5] [--users 700] [--retrains 14] [--days 6]

retrains   the same day trained with another seed, judged against the run published before it
days       the next day's events added, same seed, judged against the day before

Both go through the whole daily job; what the gate lets through is published, so each is judged against another run.
The promise is at most 1 blocked in 20. The interval is Clopper and Pearson's (1934), 95 %.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

from scipy.stats import binomtest

from tastetwin.config import Config, TrainConfig
from tastetwin.errors import GateRefused
from tastetwin.evaluation.stage import read_evaluation
from tastetwin.generations import read_manifest
from tastetwin.pipeline import run_day
from tastetwin.runs import latest_run
from tastetwin.sources.synthetic import TownConfig, write_day, write_town
from tastetwin.store import Store

MODEL = TrainConfig(epochs=2, layers=1, width=32, heads=2, dim=64)


@dataclass
class Count:
    """Runs of one kind."""

    runs: int = 0
    blocked: int = 0

    def add(self, refused: bool) -> None:
        """One more run."""
        self.runs += 1
        self.blocked += refused

    def spoken(self) -> str:
        """The count with its interval."""
        interval = binomtest(self.blocked, self.runs).proportion_ci(method="exact")
        return f"{self.blocked} of {self.runs} blocked, 95 % interval {interval.low:.3f} to {interval.high:.3f}"


def attempt(store: Store, source: Path, day: date, seed: int) -> tuple[str | None, float]:
    """Run a day; the gate's words where it refuses, and the model's disjoint twin MRR."""
    refusal = None
    try:
        run_day(store, str(source), day, Config(train=MODEL.model_copy(update={"seed": seed})))
    except GateRefused as refused:
        refusal = refused.problem.value
    evaluation = read_evaluation(store, read_manifest(store, "evaluate", latest_run(store, day).generation("evaluate")))
    model = evaluation.model()
    assert model is not None
    return refusal, model.mrr.value


def main() -> None:
    """Print one line per run and the two counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("towns", 5), ("users", 700), ("retrains", 14), ("days", 6)):
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    counts = {"retrains": Count(), "days": Count()}

    def told(kind: str, what: str, attempted: tuple[str | None, float]) -> None:
        refusal, mrr = attempted
        counts[kind].add(refusal is not None)
        print(f"{what}: MRR {mrr:.3f}, {refusal or 'published'}", flush=True)

    for number in range(1, chosen.towns + 1):
        town = TownConfig(users=chosen.users, seed=number)
        with tempfile.TemporaryDirectory() as folder:
            source, store = write_town(town, Path(folder) / "town").folder, Store.create(Path(folder) / "store")
            run_day(store, str(source), town.until, Config(train=MODEL))
            for seed in range(2, chosen.retrains + 2):
                told("retrains", f"town {number} seed {seed}", attempt(store, source, town.until, seed))
            for day in range(1, chosen.days + 1):
                events = write_day(town, day, Path(folder) / f"day-{day}").folder
                attempted = attempt(store, events, town.until + timedelta(days=day), MODEL.seed)
                told("days", f"town {number} day {day}", attempted)
    for kind, count in counts.items():
        print(f"{kind}: {count.spoken()}")


if __name__ == "__main__":
    main()
