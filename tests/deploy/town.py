"""A small town with three runs to deploy: an old, a new, and a spoilt one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from blue_green import retrained, spoilt, town
from tastetwin.delivery.pack import make_pack
from tastetwin.runs import Run
from tastetwin.store import Store


@dataclass(frozen=True)
class Town:
    """Runs of a store."""

    store: Store
    old: Run
    new: Run
    bad: Run


def make_town(folder: Path) -> Town:
    """Of 300 people."""
    store, old = town(folder, 300)
    new = retrained(store, old, 2)
    for run in (old, new):
        make_pack(store, run)
    return Town(store, old, new, spoilt(store, new, f"{new.logical_date}.9"))
