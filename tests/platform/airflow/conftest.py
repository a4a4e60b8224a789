"""One play of the DAGs for all tests here: Airflow starts once, in an environment of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.platform.airflow.plan import make_plan
from tests.platform.containers import ROOT

PYTHON = ROOT / ".venv-airflow" / "bin" / "python"


@pytest.fixture(scope="session")
def airflow() -> Path:
    """The interpreter of Airflow's environment."""
    if not PYTHON.exists():
        pytest.skip(f"Airflow is not installed: make {PYTHON.parents[1].name}/.made (or make test-platform)")
    return PYTHON


@pytest.fixture(scope="session")
def played(airflow: Path, images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of every run of the plan."""
    folder = tmp_path_factory.mktemp("airflow")
    (folder / "plan.json").write_text(json.dumps(make_plan(folder, images["jobs"], images["sandbox"])))
    command = ["timeout", "500", str(airflow), "-m", "tests.platform.airflow.play", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    said = folder / "played.json"
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return dict(json.loads(said.read_text()))
