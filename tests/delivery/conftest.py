"""A store on disk and one that is not, empty or with a published run whose every row is known."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest

from tastetwin.store import Store
from tests import handmade


@contextmanager
def _store(kind: str, folder: Path) -> Iterator[Store]:
    if kind == "disk":
        yield Store.create(folder / "it's a store")
        return
    name = f"/{uuid.uuid4()}"
    yield Store.create(f"memory:/{name}")
    fsspec.filesystem("memory").rm(name, recursive=True)


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store."""
    with _store(request.param, tmp_path) as store:
        yield store


@pytest.fixture(scope="module", params=["disk", "memory"])
def shown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store with a published run; read only."""
    with _store(request.param, tmp_path_factory.mktemp("shown")) as store:
        handmade.publish_by_hand(store)
        yield store
