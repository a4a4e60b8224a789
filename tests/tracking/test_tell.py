"""Trackers that are not installed, down, or silent."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import socket
import time
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from tastetwin.config import Config
from tastetwin.errors import MissingExtra
from tastetwin.pipeline import run_day, run_stage
from tastetwin.runs import list_runs, published_run
from tastetwin.store import Store
from tests.tracking.conftest import QUICK, Lab

pytestmark = pytest.mark.slow


def told(**tracking: Any) -> Config:
    return QUICK.model_copy(update={"tracking": QUICK.tracking.model_copy(update=tracking)})


@pytest.mark.parametrize("module", ["mlflow", "tensorboard"])
def test_a_tracker_that_is_not_installed_is_said_before_anything_is_done(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours of training later nobody is helped by it; and a setting that does nothing would go unseen."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    store = Store.create(tmp_path / "store")
    with pytest.raises(MissingExtra, match=rf"tastetwin\[{module}\]"):
        run_day(store, str(tmp_path), date(2026, 6, 30), told(**{module: "sqlite:///x.db"}))
    assert list_runs(store) == []


def test_a_run_comes_out_the_same_while_its_trackers_are_down(
    lab: Lab, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A day's lists must not wait for a tracking server; that nobody was told is said and counted."""
    shutil.copytree(lab.store.root, tmp_path / "store")
    store = Store.open(tmp_path / "store")
    (tmp_path / "a file").write_bytes(b"")
    config = told(mlflow=f"http://ann:s3cret@127.0.0.1:{_closed_port()}", tensorboard=str(tmp_path / "a file"))
    day = date.fromisoformat(lab.second.logical_date)
    with caplog.at_level(logging.WARNING, "tastetwin.tracking"):
        for stage in ("train", "analyze", "evaluate", "deliver"):
            run = run_stage(store, stage, day, config)
    assert run.status == "delivered" and published_run(store).run_id == run.run_id
    lost = {stage: record.counts.get("untracked", 0) for stage, record in run.stages.items()}
    assert {name: lost[name] for name in ("train", "analyze", "evaluate", "deliver")} == {
        "train": 1, "analyze": 0, "evaluate": 2, "deliver": 1,
    }  # fmt: skip
    said = [each.getMessage() for each in caplog.records if each.name == "tastetwin.tracking"]
    assert len(said) == 4 and all("the run goes on" in each for each in said)
    assert not [each for each in said if "s3cr" in each]


def _closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_server_that_never_answers_holds_up_nobody(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    """It takes the connection and says nothing, as behind a firewall: the worst of all ways to be down."""
    from tastetwin.tracking.tell import Tracking

    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = told(mlflow=f"http://127.0.0.1:{silent.getsockname()[1]}", seconds=0.5)
        tracking, began = Tracking(lab.store, config), time.monotonic()
        tracking.follow()
        assert time.monotonic() - began < 5 and tracking.lost == 1
    assert "tracking.seconds" in caplog.text
