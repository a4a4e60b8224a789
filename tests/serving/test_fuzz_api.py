"""The attacks of ``benchmarks/fuzz_api.py``, a few hundred of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import fuzz_api
from tests.world import Journey


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_nothing_breaks_and_memory_is_bounded(journey: Journey, tmp_path: Path) -> None:
    """One unbounded number, list, head or body is enough to end a server."""
    shutil.copytree(journey.store.root, tmp_path / "store")
    watch = fuzz_api.fuzz(str(tmp_path / "store"), tmp_path, 300, 500)
    assert watch.broken == []
    assert max(watch.peaks.values()) < fuzz_api.MOST_MB
    assert sum(watch.statuses.values()) > 1_000 and watch.statuses["gateway", 200] and watch.statuses["app", 200]
