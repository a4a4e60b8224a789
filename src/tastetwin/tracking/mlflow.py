"""Runs and bundles in MLflow: one MLflow run for each bundle of a run, one registered version for each bundle."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import orjson

from tastetwin.config import TrackingConfig
from tastetwin.generations import MANIFEST, Manifest
from tastetwin.runs import Run
from tastetwin.tracking.facts import Point

LIVE: Final = "live"
"""The alias of the published bundle's version."""
RUN: Final = "tastetwin.run"
BUNDLE: Final = "tastetwin.bundle"
_SQLITE: Final = "sqlite:///"
_BATCH: Final = 1_000
"""Metrics of one request, by MLflow's own limit."""
_ENVIRONMENT: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""MLflow is set up by variables alone; those that are set already stay."""


class Mlflow:
    """A tracking server or file, and the experiment in it; the registered model has the experiment's name.

    Everything is found again by its tags, so telling the same twice changes nothing. Every method may raise whatever
    MLflow does.
    """

    def __init__(self, config: TrackingConfig) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import mlflow

        self._name, self._address = config.experiment, config.mlflow
        self._client = mlflow.MlflowClient(self._address, self._address)

    def begin(self, run: Run, bundle: Manifest, files: str) -> Any:
        """The MLflow run of a run's bundle; ``files`` says where the bundle's are."""
        client = self._client
        known = client.get_experiment_by_name(self._name)
        experiment = client.create_experiment(self._name, self._beside()) if known is None else known.experiment_id
        of_both = f"tags.`{RUN}` = '{run.run_id}' and tags.`{BUNDLE}` = '{bundle.generation}'"
        for found in client.search_runs([experiment], of_both, max_results=1):
            return found
        tags = {RUN: run.run_id, BUNDLE: bundle.generation, "tastetwin.files": files}
        tags["tastetwin.logical_date"] = run.logical_date
        return client.create_run(experiment, _milliseconds(run), tags, run.run_id)

    def _beside(self) -> str | None:
        """Where files go: with SQLite into a folder beside it, else wherever the server says."""
        if not str(self._address).startswith(_SQLITE):
            return None
        return Path(str(self._address).removeprefix(_SQLITE)).absolute().with_suffix(".files").as_uri()

    def log(self, made: Any, parameters: dict[str, str], metrics: dict[str, float], tags: dict[str, str]) -> None:
        """Settings, figures that it does not know yet, and tags."""
        from mlflow.entities import Metric, Param, RunTag

        now, known = int(time.time() * 1e3), made.data.metrics
        new = [Metric(name, value, now, 0) for name, value in metrics.items() if known.get(name) != value]
        params = [Param(name, value) for name, value in parameters.items()]
        self._client.log_batch(made.info.run_id, params=params, tags=[RunTag(*tag) for tag in tags.items()])
        self._send(made, new)

    def log_curve(self, run: Run, made: Any, points: Iterable[Point]) -> None:
        """A curve. Its times are the same each time, so that MLflow knows a point that it has."""
        from mlflow.entities import Metric

        start = _milliseconds(run)
        self._send(made, [Metric(each.name, each.value, start + each.step, each.step) for each in points])

    def _send(self, made: Any, metrics: list[Any]) -> None:
        for begin in range(0, len(metrics), _BATCH):
            self._client.log_batch(made.info.run_id, metrics=metrics[begin : begin + _BATCH])

    def keep(self, made: Any, manifest: Manifest) -> None:
        """A generation's manifest, as a file of the run."""
        text = orjson.dumps(manifest, option=orjson.OPT_INDENT_2).decode()
        self.keep_text(made, text, f"{manifest.stage}/{MANIFEST}")

    def keep_text(self, made: Any, text: str, name: str) -> None:
        """A text, as a file of the run."""
        self._client.log_text(made.info.run_id, text, name)

    def end(self, made: Any) -> None:
        """Nothing more comes for now."""
        self._client.set_terminated(made.info.run_id)

    def register(self, made: Any, bundle: Manifest) -> str:
        """The number of the bundle's version; registered where it is not yet."""
        self._model()
        for found in self._versions(bundle):
            return str(found.version)
        source = f"{made.info.artifact_uri}/{bundle.stage}"
        tags = {BUNDLE: bundle.generation, "tastetwin.files": made.data.tags["tastetwin.files"]}
        created = self._client.create_model_version(self._name, source, made.info.run_id, tags, await_creation_for=None)
        return str(created.version)

    def _model(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(self._name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _versions(self, bundle: Manifest) -> Iterator[Any]:
        wanted = f"name = '{self._name}' and tags.`{BUNDLE}` = '{bundle.generation}'"
        yield from self._client.search_model_versions(wanted, max_results=1)

    def point(self, version: str) -> None:
        """Move the alias ``live``."""
        self._client.set_registered_model_alias(self._name, LIVE, version)


def _milliseconds(run: Run) -> int:
    return int(datetime.fromisoformat(run.started_at).timestamp() * 1e3)
