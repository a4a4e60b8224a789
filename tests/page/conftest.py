"""The hostile store is made once; tests that change it get a copy."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tastetwin.store import Store
from tests.page.web import Site, make_store, serving


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Read only."""
    return make_store(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="session")
def site(hostile: Store) -> Iterator[Site]:
    """Read only."""
    with serving(hostile) as found:
        found.drawn()
        yield found


@pytest.fixture
def own(hostile: Store, tmp_path: Path) -> Store:
    """A copy to change."""
    shutil.copytree(hostile.root, tmp_path / "store")
    return Store.open(tmp_path / "store")
