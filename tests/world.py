"""A town, its store and the first day's run: one finished world that many tests read."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from tastetwin import TasteTwin
from tastetwin.config import Config, EvaluateConfig, TrainConfig
from tastetwin.pipeline import run_day
from tastetwin.runs import Run
from tastetwin.sources.synthetic import TownConfig, TownReport, write_town
from tastetwin.store import Store

TOWN = TownConfig(users=700, seed=3)
QUICK = Config(
    train=TrainConfig(epochs=1, layers=1, width=32, heads=2, dim=64, device="cpu"),
    evaluate=EvaluateConfig(bootstrap=200),
)
NEXT_DAY = TOWN.until + timedelta(days=1)


@dataclass(frozen=True)
class Journey:
    """A town, its store, and the first day's run."""

    town: TownReport
    store: Store
    first: Run

    @property
    def tt(self) -> TasteTwin:
        return TasteTwin(self.store.root, QUICK)


def travel(folder: Path) -> Journey:
    """The whole daily job for the town's last day, in a new store."""
    town = write_town(TOWN, folder / "town")
    store = Store.create(folder / "store")
    return Journey(town, store, run_day(store, str(town.folder), TOWN.until, QUICK))
