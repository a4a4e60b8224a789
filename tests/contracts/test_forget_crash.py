"""Promise 5, struck: killed at any change to the disk, ``forget`` leaves whole generations and finishes when run again.

``CRASH_POINTS=all`` strikes at every change; by default it is every ninth, and another ninth with each fault.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tastetwin.delivery.forget import RECEIPTS
from tastetwin.errors import StoreError
from tastetwin.privacy.opt_out import is_opted_out
from tastetwin.store import Store
from tests.contracts import faults
from tests.contracts.struck import Ended, Striker
from tests.privacy.haunted import check_manifests, contents, haunt, naming, rows_of_all

pytestmark = pytest.mark.slow

USER = 'kanarie "☂", \\7'
STRIDE = 1 if os.environ.get("CRASH_POINTS") == "all" else 9
FAULTS: dict[str, dict[str, Any]] = {
    "kill": {"operations": faults.CHANGING},
    "EIO from then on": {"errno": errno.EIO, "operations": faults.CHANGING, "lasting": True},
}


@pytest.fixture(scope="module")
def striker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Striker]:
    made = Striker(tmp_path_factory.mktemp("said") / "said")
    yield made
    made.close()


def forget(striker: Striker, root: Path, fault: faults.Fault | None = None) -> Ended:
    return striker.run(["forget", USER, "--store", str(root), "--json"], root, fault)


def everything(store: Store) -> dict[str, str]:
    """All files but receipts, which have a time."""
    return {path: store.sha256(path) for path in store.files("") if not path.startswith(RECEIPTS)}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_struck_at_any_change_it_is_finished_by_the_same_command(
    striker: Striker, tmp_path: Path, fault: dict[str, Any]
) -> None:
    """In between, every generation is the old or the new one, and the user is hidden as soon as anything is done."""
    template, root = tmp_path / "template", tmp_path / "store"
    haunt(Store.create(template), {"ann": USER})
    old = rows_of_all(Store.open(template))
    shutil.copytree(template, root)
    assert forget(striker, root).code == 0
    new, unharmed = rows_of_all(Store.open(root)), everything(Store.open(root))
    struck, mixed = 0, 0
    for at in itertools.count(1 + len(fault) % STRIDE, STRIDE):
        shutil.rmtree(root)
        shutil.copytree(template, root)
        ended = forget(striker, root, faults.Fault(at, **fault))
        if not ended.fired:
            break
        assert ended.killed if "errno" not in fault else ended.code == StoreError.exit_code, ended.said
        store = Store.open(root)
        check_manifests(store)
        seen = rows_of_all(store)
        assert all(seen[key] in (old[key], new[key]) for key in old), at
        assert seen == old or is_opted_out(store, USER)
        struck, mixed = struck + 1, mixed + (seen not in (old, new))
        again = forget(striker, root)
        assert again.code == 0, again.said
        assert naming(USER, contents(store)) == []
        assert everything(store) == unharmed, at
    assert struck > 10 and 0 < mixed < struck, "before, between and after"
