"""The attacks of ``benchmarks/fuzz_api.py``, a few hundred of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import fuzz_api
from tests.world import Journey


def test_two_at_once_do_not_collide(journey: Journey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one machine, for one user's tests or two: the second attacks servers of its own."""
    for name in ("first", "second"):
        shutil.copytree(journey.store.root, tmp_path / name / "store")
    monkeypatch.setattr(fuzz_api, "by_hand", lambda *_: None)
    monkeypatch.setattr(fuzz_api, "generated", lambda *_: 0)
    seen: list[set[int]] = []

    def attack(watch: fuzz_api.Watch, *_: object) -> None:
        seen.append({process.port for process in watch.processes.values()})
        if len(seen) == 1:
            fuzz_api.fuzz(str(tmp_path / "second" / "store"), tmp_path / "second", 0, 0)

    monkeypatch.setattr(fuzz_api, "attack", attack)
    fuzz_api.fuzz(str(tmp_path / "first" / "store"), tmp_path / "first", 0, 0)
    assert len(seen[0] | seen[1]) == 6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_nothing_breaks_and_memory_is_bounded(journey: Journey, tmp_path: Path) -> None:
    """One unbounded number, list, head or body is enough to end a server."""
    shutil.copytree(journey.store.root, tmp_path / "store")
    watch = fuzz_api.fuzz(str(tmp_path / "store"), tmp_path, 300, 500)
    assert watch.broken == []
    assert max(watch.peaks.values()) < fuzz_api.MOST_MB
    assert sum(watch.statuses.values()) > 1_000 and watch.statuses["gateway", 200] and watch.statuses["app", 200]
