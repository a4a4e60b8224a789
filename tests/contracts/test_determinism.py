"""The same data, settings, seeds, code, machine and number of threads give the same bytes in another process.

That is what lets a run be made again to be looked into, and what makes a re-run after a crash the same run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tastetwin.generations import STAGES, read_manifest
from tastetwin.runs import latest_run
from tastetwin.store import Store
from tests.world import Journey

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RUN = """
import sys
from tastetwin.pipeline import run_day
from tastetwin.store import Store
from tests.world import QUICK, TOWN
run_day(Store.create(sys.argv[1]), sys.argv[2], TOWN.until, QUICK)
"""


def test_a_day_made_elsewhere_has_the_same_ids_and_the_same_bytes(journey: Journey, tmp_path: Path) -> None:
    """Bundle, vectors, lists and results; with other hash seeds, so that the order of no set is in them."""
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", RUN, str(tmp_path / "store"), str(journey.town.folder)]
    subprocess.run(command, check=True, cwd=ROOT, env=environment, timeout=600)
    store = Store.open(tmp_path / "store")
    run = latest_run(store)
    for stage in STAGES:
        first = read_manifest(journey.store, stage, journey.first.generation(stage))
        second = read_manifest(store, stage, run.generation(stage))
        assert second.generation == first.generation, stage
        assert second.tables == first.tables, stage
        assert second.provenance == first.provenance, stage
