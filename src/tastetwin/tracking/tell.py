"""Telling the trackers: each in its own time, none able to fail or to hold up a run."""

from __future__ import annotations

import functools
import importlib.util
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tastetwin.config import Config, TrackingConfig
from tastetwin.errors import MissingExtra
from tastetwin.generations import Manifest, read_manifest
from tastetwin.model.pace import schedule
from tastetwin.runs import Run, published_or_none
from tastetwin.store import Store
from tastetwin.tracking import facts
from tastetwin.tracking.mlflow import Mlflow
from tastetwin.tracking.tensorboard import Board, write

CURVE: Final = 1_000
"""Steps of a training's curve in MLflow, at most; TensorBoard has every step."""
_LOG: Final = logging.getLogger("tastetwin.tracking")


def require(config: TrackingConfig) -> None:
    """Ask, before anything is done, for what the settings need.

    Raises:
        MissingExtra: without mlflow or tensorboard where the settings name them.
    """
    for module, wanted in (("mlflow", config.mlflow), ("tensorboard", config.tensorboard)):
        if wanted is not None and importlib.util.find_spec(module) is None:
            raise MissingExtra.of(module, module)


class Tracking:
    """The trackers of the settings; with none named nothing is done.

    What goes wrong is logged as a warning and counted in ``lost``, and nothing is raised.

    Args:
        store: holds the runs.
        config: section ``tracking`` says who is told; ``train`` and ``evaluate`` are told of.
    """

    def __init__(self, store: Store, config: Config) -> None:
        self.lost = 0
        self._store = store
        self._config = config
        self._told = config.tracking
        self._watcher = _Watcher(None, config)

    @functools.cached_property
    def _mlflow(self) -> Mlflow:
        return Mlflow(self._told)

    @contextmanager
    def watch(self, run: Run) -> Iterator[Callable[[int, int, float], None]]:
        """What to call after each step of a training, as ``model.train.OnStep``; every step is in TensorBoard."""
        folder = self._told.tensorboard
        self._watcher = _Watcher(None if folder is None else Board(Path(folder) / run.run_id / "train"), self._config)
        try:
            yield self._watcher
        finally:
            if folder is not None:
                self._try("tensorboard", self._watcher.close)

    def trained(self, run: Run) -> None:
        """A bundle, how it was learnt, and its version in the registry; to MLflow, after ``watch``."""
        if self._told.mlflow is not None:
            self._try("mlflow", lambda: self._tell_bundle(run))

    def _tell_bundle(self, run: Run) -> tuple[Any, str]:
        bundle = self._bundle(run)
        record = self._store.read_json(bundle.paths("record")[0])
        made = self._begin(run, bundle)
        self._mlflow.log(made, facts.parameters(bundle), {**facts.training(record), **self._watcher.pace()}, {})
        self._mlflow.log_curve(run, made, facts.curve(bundle, record, CURVE))
        self._mlflow.keep(made, bundle)
        version = self._mlflow.register(made, bundle)
        self._mlflow.end(made)
        return made, version

    def _bundle(self, run: Run) -> Manifest:
        return read_manifest(self._store, "train", run.generation("train"))

    def _begin(self, run: Run, bundle: Manifest) -> Any:
        return self._mlflow.begin(run, bundle, self._store.path(bundle.folder))

    def evaluated(self, run: Run) -> None:
        """Every figure of the report and the gate's verdict; to MLflow the report too, without anybody's list."""
        from tastetwin.evaluation.stage import read_evaluation, verdict_of

        if self._told.mlflow is None and self._told.tensorboard is None:
            return
        manifest = read_manifest(self._store, "evaluate", run.generation("evaluate"))
        verdict = verdict_of(manifest)
        metrics = facts.judgement(read_evaluation(self._store, manifest), verdict)
        if self._told.tensorboard is not None:
            folder = Path(self._told.tensorboard) / run.run_id / "evaluate"
            self._try("tensorboard", lambda: write(folder, metrics))
        if self._told.mlflow is not None:
            tags = {"tastetwin.verdict": "publish" if verdict.publish else "refuse"}
            tags["tastetwin.findings"] = " ".join(sorted({finding.code for finding in verdict.findings}))
            self._try("mlflow", lambda: self._tell_evaluation(run, manifest, metrics, tags))

    def _tell_evaluation(self, run: Run, manifest: Manifest, metrics: dict[str, float], tags: dict[str, str]) -> None:
        from tastetwin.evaluation.report import without_examples
        from tastetwin.evaluation.reports import report_path

        made = self._begin(run, self._bundle(run))
        self._mlflow.log(made, {}, metrics, tags)
        self._mlflow.keep(made, manifest)
        page = self._store.read_bytes(report_path(run.run_id)).decode()
        self._mlflow.keep_text(made, without_examples(page), "report.html")
        self._mlflow.end(made)

    def follow(self) -> None:
        """Move MLflow's alias ``live`` to the bundle that readers see; it is registered then if it was not."""
        if self._told.mlflow is not None:
            self._try("mlflow", self._follow)

    def _follow(self) -> None:
        run = published_or_none(self._store)
        if run is not None:
            self._mlflow.point(self._tell_bundle(run)[1])

    def _try(self, tracker: str, work: Callable[[], object]) -> None:
        """Carry out ``work``, for ``tracking.seconds`` at most."""
        raised: list[Exception] = []

        def attempt() -> None:
            try:
                work()
            except Exception as error:
                raised.append(error)

        thread = threading.Thread(target=attempt, name=f"tracking-{tracker}", daemon=True)
        thread.start()
        thread.join(self._told.seconds)
        if raised or thread.is_alive():
            self.lost += 1
            why = _why(raised[0]) if raised else f"no end within tracking.seconds ({self._told.seconds:g} s)"
            _LOG.warning("tracking: %s was not told, the run goes on: %s", tracker, why)


class _Watcher:
    """Times the steps, and adds each to a board until that fails."""

    def __init__(self, board: Board | None, config: Config) -> None:
        self._board = board
        self._train = config.train
        self._times: list[float] = []
        self._failed: Exception | None = None

    def __call__(self, done: int, total: int, loss: float) -> None:
        self._times.append(time.monotonic())
        values = {facts.LOSS: loss, facts.RATE: self._train.learning_rate * schedule(done - 1, total)}
        if len(self._times) > 1:
            values[facts.USERS_PER_SECOND] = self._train.batch_users / max(1e-9, self._times[-1] - self._times[-2])
        if self._board is not None and self._failed is None:
            try:
                self._board.add(done, values)
            except Exception as error:
                self._failed = error

    def pace(self) -> dict[str, float]:
        """Of the steps after the first; empty where this process did none."""
        seconds = self._times[-1] - self._times[0] if self._times else 0.0
        users = (len(self._times) - 1) * self._train.batch_users
        return {facts.SECONDS: seconds, facts.USERS_PER_SECOND: users / seconds} if seconds else {}

    def close(self) -> None:
        if self._failed is not None:
            raise self._failed
        if self._board is not None:
            self._board.close()


def _why(error: Exception) -> str:
    """Its kind and first line, without a password that an address in it may hold."""
    said = str(error).partition("\n")[0][:300]
    return f"{type(error).__name__}: {re.sub(r'(?<=://)[^ ]*@', '***@', said)}"
