"""A small town tracked for two days: TensorBoard's files, and MLflow with SQLite."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import mlflow
import pytest

from tastetwin.config import Config, DeliverConfig, EvaluateConfig, TrackingConfig, TrainConfig
from tastetwin.generations import Manifest, read_manifest
from tastetwin.pipeline import run_day
from tastetwin.runs import Run
from tastetwin.sources.synthetic import TownConfig, TownReport, write_town
from tastetwin.store import Store

TOWN = TownConfig(users=300, seed=3)
QUICK = Config(
    train=TrainConfig(epochs=3, layers=1, width=32, heads=2, dim=64, batch_users=64),
    evaluate=EvaluateConfig(bootstrap=200),
    deliver=DeliverConfig(max_changed=1.0),
)


@dataclass(frozen=True)
class Lab:
    """Runs of two days, both published in their turn, and where they are tracked."""

    folder: Path
    town: TownReport
    store: Store
    config: Config
    first: Run
    second: Run

    @property
    def client(self) -> Any:
        return mlflow.MlflowClient(self.config.tracking.mlflow, self.config.tracking.mlflow)

    def runs_of(self, run: Run) -> list[Any]:
        """The MLflow runs of a run."""
        experiment = self.client.get_experiment_by_name("tastetwin").experiment_id
        found: list[Any] = self.client.search_runs([experiment], f"tags.`tastetwin.run` = '{run.run_id}'")
        return found

    def bundle(self, run: Run) -> Manifest:
        return read_manifest(self.store, "train", run.generation("train"))

    def live(self) -> str:
        """The bundle whose version has the alias."""
        tags: dict[str, str] = self.client.get_model_version_by_alias("tastetwin", "live").tags
        return tags["tastetwin.bundle"]


def tracked(folder: Path, **more: Any) -> Config:
    tracking = TrackingConfig(
        tensorboard=str(folder / "boards"), mlflow=f"sqlite:///{folder / 'lab' / 'mlflow.db'}", **more
    )
    return QUICK.model_copy(update={"tracking": tracking})


@pytest.fixture(scope="package")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("lab")
    town = write_town(TOWN, folder / "town")
    store, config = Store.create(folder / "store"), tracked(folder)
    first = run_day(store, str(town.folder), TOWN.until, config)
    next_day = TOWN.until + timedelta(days=1)
    grown = write_town(replace(TOWN, until=next_day), folder / "grown")
    return Lab(folder, town, store, config, first, run_day(store, str(grown.folder), next_day, config))
