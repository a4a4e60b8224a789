"""What many tests share: the embedded engine, a small dirty town, and raw days written by hand."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tastetwin.config import Config
from tastetwin.engine import Engine, connect
from tastetwin.generations import Manifest
from tastetwin.mart.merge import LAYOUTS
from tastetwin.mart.stage import build_mart
from tastetwin.schema import Kind
from tastetwin.sources.collect import collect
from tastetwin.sources.synthetic import TownConfig, TownReport, write_town
from tastetwin.store import Store
from tastetwin.tables import read_table
from tests.world import Journey, travel

DIRTY = TownConfig(users=300, dirt_share=0.15, seed=5)

Lines = Sequence[dict[str, Any]] | bytes


@pytest.fixture(scope="session")
def engine() -> Engine:
    return connect(None, 4)


@pytest.fixture
def memory_store() -> Iterator[Store]:
    """An empty store that costs no disk: for tests that write many small files and ask nothing of the disk."""
    name = f"/{uuid.uuid4()}"
    yield Store.create(f"memory:/{name}")
    fsspec.filesystem("memory").rm(name, recursive=True)


@pytest.fixture(scope="session")
def town(tmp_path_factory: pytest.TempPathFactory) -> TownReport:
    """A town of 300 users of which 15 % of the lines are spoilt; read only."""
    return write_town(DIRTY, tmp_path_factory.mktemp("town") / "town")


@pytest.fixture(scope="session")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Journey:
    """A finished run in a store of its own; read only."""
    return travel(tmp_path_factory.mktemp("journey"))


@pytest.fixture
def copied(journey: Journey, tmp_path: Path) -> Journey:
    """A copy of the store for tests that change it."""
    shutil.copytree(journey.store.root, tmp_path / "store")
    return Journey(journey.town, Store.open(tmp_path / "store"), journey.first)


class Mart:
    """A store whose days are written by hand."""

    def __init__(self, engine: Engine, folder: Path, config: Config) -> None:
        self.engine = engine
        self.config = config
        self.store = Store.create(folder / "store")
        self._folder = folder
        self._sources = 0
        self.latest: Manifest | None = None

    def land(self, day: date, files: Mapping[str, Lines]) -> Manifest:
        """The lake of a day with these raw files."""
        self._sources += 1
        source = self._folder / f"source-{self._sources}"
        source.mkdir()
        for name, lines in files.items():
            data = lines if isinstance(lines, bytes) else b"".join(json.dumps(each).encode() + b"\n" for each in lines)
            (source / name).write_bytes(data)
        return collect(self.store, str(source), day, config=self.config.collect)

    def day(self, number: int, files: Mapping[str, Lines], **more: Any) -> Manifest:
        """The mart of 2026-06-<number>, on top of the days before."""
        lake = self.land(date(2026, 6, number), files)
        self.latest = build_mart(self.engine, self.store, lake, self.latest, self.config, **more)
        return self.latest

    def rows(self, kind: Kind, mart: Manifest | None = None) -> list[dict[str, Any]]:
        """A mart table's rows, in the order of its files."""
        found = mart or self.latest
        assert found is not None
        rows: list[dict[str, Any]] = read_table(self.store, found, kind, LAYOUTS[kind].schema).to_pylist()
        return rows


@pytest.fixture
def mart(engine: Engine, tmp_path: Path) -> Mart:
    return Mart(engine, tmp_path, Config())
