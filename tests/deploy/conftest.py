"""The town that is deployed from."""

from __future__ import annotations

import pytest

from tests.deploy.town import Town, make_town


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Town:
    """Read only."""
    return make_town(tmp_path_factory.mktemp("deploy"))
