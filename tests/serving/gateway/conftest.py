"""A gateway's service over a finished run, with the run's own encoder in place of a backend."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tastetwin.serving.gateway.pack import Pack
from tastetwin.store import Store
from tests.serving.gateway.world import World, at_home
from tests.world import Journey


@pytest.fixture(scope="session")
def served(journey: Journey, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The journey's store with its pack; read only."""
    folder = tmp_path_factory.mktemp("served") / "store"
    shutil.copytree(journey.store.root, folder)
    store = Store.open(folder)
    Pack.of(store, journey.first)
    return store


@pytest.fixture
def world(served: Store, tmp_path: Path) -> World:
    """A service of one's own over a copy of the store."""
    shutil.copytree(served.root, tmp_path / "store")
    return at_home(Store.open(tmp_path / "store"))
