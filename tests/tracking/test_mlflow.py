"""What MLflow holds of runs, and which version its alias names; a real MLflow, with SQLite or as a server."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import mlflow
import pytest

from tastetwin.evaluation.reports import report_path
from tastetwin.evaluation.stage import evaluation_of
from tastetwin.pipeline import run_stage
from tastetwin.runs import published
from tastetwin.store import Store
from tastetwin.tracking.tell import Tracking
from tests.test_cli import Shell, shell  # noqa: F401  # a fixture
from tests.tracking.conftest import QUICK, Lab, tracked

pytestmark = pytest.mark.slow


def test_a_run_is_one_mlflow_run_with_settings_figures_and_manifests(lab: Lab) -> None:
    """Two runs can only be compared by what was written down of both."""
    (made,) = lab.runs_of(lab.second)
    bundle, model = lab.bundle(lab.second), evaluation_of(lab.store, lab.second).model()
    assert model is not None
    assert made.info.status == "FINISHED" and made.info.run_name == lab.second.run_id
    said, metrics = made.data.params, made.data.metrics
    assert said["train.seed"] == "1" and said["holdout.seed"] == "1" and said["sha256"] == bundle.digest()
    assert said["data"] == lab.second.generation("features") and said["code.sources"]
    assert metrics["disjoint/model/mrr"] == pytest.approx(model.mrr.value)
    assert metrics["disjoint/model/mrr/low"] == pytest.approx(model.mrr.low)
    assert metrics["gate/publish"] == 1.0 and made.data.tags["tastetwin.verdict"] == "publish"
    assert metrics["health/lists/Gini_of_exposure/limit"] == lab.config.evaluate.max_gini
    files = {str(path.relative_to(_files(lab, made))) for path in _files(lab, made).rglob("*") if path.is_file()}
    assert files == {"train/manifest.json", "evaluate/manifest.json", "report.html"}


def _files(lab: Lab, made: Any) -> Path:
    assert made.info.artifact_uri.startswith("file://")
    return Path(made.info.artifact_uri.removeprefix("file://"))


def test_the_curve_of_a_training_is_there_once(lab: Lab) -> None:
    """The bundle is told of by train and by deliver, and a stage may run again: twice in the curve would be a lie."""
    (made,) = lab.runs_of(lab.first)
    record = lab.store.read_json(lab.bundle(lab.first).paths("record")[0])
    history = lab.client.get_metric_history(made.info.run_id, "train/loss")
    assert [each.step for each in history] == list(range(1, len(record["losses"]) + 1))
    assert [each.value for each in history] == pytest.approx(record["losses"])
    assert made.data.metrics["train/users_per_second"] > 0


def test_a_stage_that_runs_again_finds_its_mlflow_run(lab: Lab, tmp_path: Path) -> None:
    """After a crash the same command is given again: a second row for the same run would count it twice."""
    store = _copy(lab.store, tmp_path)
    before = lab.runs_of(lab.second)
    Tracking(store, lab.config).trained(lab.second)
    Tracking(store, lab.config).evaluated(lab.second)
    (made,) = lab.runs_of(lab.second)
    assert made.info.run_id == before[0].info.run_id and made.data.metrics == before[0].data.metrics
    assert len(lab.client.get_metric_history(made.info.run_id, "disjoint/model/mrr")) == 1
    assert len(lab.client.search_model_versions("name = 'tastetwin'")) == 2


def test_the_alias_live_follows_what_readers_see(lab: Lab, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Whoever loads ``models:/tastetwin@live`` must get the model that is served, after a rollback too."""
    assert published(lab.store) is not None and lab.live() == lab.second.generation("train")
    monkeypatch.setenv("TASTETWIN_TRACKING__MLFLOW", str(lab.config.tracking.mlflow))
    assert shell("rollback", "--store", lab.store.root).code == 0
    assert lab.live() == lab.first.generation("train")
    assert shell("promote", lab.second.run_id, "--store", lab.store.root).code == 0
    assert lab.live() == lab.second.generation("train")


def test_a_bundle_that_was_not_registered_is_when_the_alias_moves(lab: Lab, tmp_path: Path) -> None:
    """Tracking may be turned on late, or have been down on the day: the next publication mends it."""
    late = tracked(tmp_path, experiment="late")
    tracking = Tracking(lab.store, late)
    tracking.follow()
    client = mlflow.MlflowClient(late.tracking.mlflow, late.tracking.mlflow)
    version = client.get_model_version_by_alias("late", "live")
    assert version.tags["tastetwin.bundle"] == lab.second.generation("train") and tracking.lost == 0
    assert version.tags["tastetwin.files"] == lab.store.path(lab.bundle(lab.second).folder)


def test_no_tracker_holds_the_id_of_a_user_or_of_a_place(lab: Lab) -> None:
    """Trackers are read by more people than the store, and ``forget`` does not reach them."""
    raw = b"".join(path.read_bytes() for path in sorted(lab.town.folder.glob("*.jsonl")))
    ids = set(re.findall(rb'"(?:user_idno|place_id|review_place_id|like_contentsid)": "(\d{8,9})"', raw))
    assert len(ids) > 400
    tracked = [path for name in ("lab", "boards") for path in (lab.folder / name).rglob("*") if path.is_file()]
    report = Path(lab.store.path(report_path(lab.second.run_id))).read_bytes()
    assert b"sqlite:///" not in report, "an address may hold a password"
    for path in tracked:
        assert not ids & set(re.findall(rb"(?<!\d)\d{8,9}(?!\d)", path.read_bytes())), path
    assert len(tracked) > 6 and ids & set(re.findall(rb"(?<!\d)\d{8,9}(?!\d)", report)), "the store's report has lists"


def test_what_is_trained_does_not_depend_on_who_is_told(lab: Lab, tmp_path: Path) -> None:
    """The same data and settings give the same bundle, watched or not."""
    store = _copy(lab.store, tmp_path)
    again = run_stage(store, "train", date.fromisoformat(lab.first.logical_date), QUICK, again=True)
    assert again.generation("train") != lab.first.generation("train")
    assert Lab(tmp_path, lab.town, store, QUICK, again, again).bundle(again).digest() == lab.bundle(lab.first).digest()


def _copy(store: Store, folder: Path) -> Store:
    shutil.copytree(store.root, folder / "store")
    return Store.open(folder / "store")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A real tracking server that keeps files for its clients."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/s.db", "--artifacts-destination", str(tmp_path / "files")]
    said = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **said}, cwd=tmp_path, start_new_session=True
        )
    try:
        yield _answering(f"http://127.0.0.1:{port}", process, tmp_path / "log")
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def _answering(address: str, process: subprocess.Popen[bytes], log: Path) -> str:
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=2).close()
            return address
        except OSError:
            time.sleep(0.3)
    raise AssertionError(log.read_text())


def test_a_tracking_server_holds_the_same(lab: Lab, server: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Teams share a server; it checks sources of versions and takes files in ways that a file of SQLite does not."""
    tracking = lab.config.tracking.model_copy(update={"mlflow": server, "tensorboard": None})
    told = Tracking(lab.store, lab.config.model_copy(update={"tracking": tracking}))
    told.trained(lab.second)
    told.evaluated(lab.second)
    told.follow()
    client = mlflow.MlflowClient(server, server)
    version = client.get_model_version_by_alias("tastetwin", "live")
    assert told.lost == 0 and version.tags["tastetwin.bundle"] == lab.second.generation("train")
    made, (there,) = client.get_run(version.run_id), lab.runs_of(lab.second)
    judged = {name: value for name, value in there.data.metrics.items() if name.startswith("disjoint/")}
    assert judged and judged.items() <= made.data.metrics.items() and made.data.params == there.data.params
    assert {each.path for each in client.list_artifacts(version.run_id)} == {"train", "evaluate", "report.html"}
    assert capsys.readouterr().out == "", "answers in JSON go to stdout, nothing else"
