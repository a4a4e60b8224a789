"""Promise 1 for packs: struck at any file operation, there is no pack or a whole one, and the next attempt makes it."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest

from tastetwin.delivery.pack import FOLDER, make_pack, read_pack, verify_pack
from tastetwin.errors import StoreError
from tastetwin.runs import Run, published_run
from tastetwin.store import Store
from tests.contracts import faults
from tests.world import Journey

STRIDE = 9
"""Every ninth operation is struck: packs have thirty files, each written in the same way."""


def _make(store: Store, run: Run) -> None:
    make_pack(store, run)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [{}, {"errno": errno.ENOSPC, "operations": faults.WRITING, "lasting": True}],
    ids=["kill", "disk full from then on"],
)
def test_a_pack_is_whole_or_absent(journey: Journey, tmp_path: Path, fault: dict[str, Any]) -> None:
    """Gateways open whatever is there: half a pack would be somebody else's twins."""
    root = tmp_path / "store"
    shutil.copytree(journey.store.root, root)
    store, run = Store.open(root), published_run(Store.open(root))
    expected = make_pack(store, run)
    struck, at = 0, 1
    while True:
        shutil.rmtree(root / FOLDER)
        outcome = faults.run(lambda: _make(store, run), str(root), faults.Fault(at, **fault))
        if not outcome.fired:
            assert outcome.error is None
            break
        struck += 1
        assert outcome.killed == ("errno" not in fault)
        found = read_pack(store, run.run_id)
        if found is not None:
            verify_pack(store, found)
        assert make_pack(store, run) == expected, f"after operation {at}"
        at += STRIDE
    assert struck > 10


def test_a_pack_that_cannot_be_written_is_an_error_and_no_pack(journey: Journey, tmp_path: Path) -> None:
    """The premise of the test above: the fault is seen by whoever asked."""
    root = tmp_path / "store"
    shutil.copytree(journey.store.root, root)
    store, run = Store.open(root), published_run(Store.open(root))
    fault = faults.Fault(5, errno=errno.EIO, lasting=True)
    outcome = faults.run(lambda: _make(store, run), str(root), fault)
    assert outcome.fired and str(outcome.error).startswith(StoreError.__name__)
    assert read_pack(store, run.run_id) is None
