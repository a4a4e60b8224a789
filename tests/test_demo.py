"""The demo's last lines, the first that a newcomer goes on with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tastetwin import demo
from tastetwin.store import Store
from tests import handmade


@pytest.mark.parametrize(("here", "expected"), [(".", "demo/store"), ("elsewhere", "{root}")])
def test_what_comes_next_is_said_as_the_readme_shows_it(
    here: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The README's block is compared with the screen line by line, and a short path fits into 80 columns."""
    store = Store.create(tmp_path / "demo" / "store")
    run = handmade.publish_by_hand(store)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / here)
    demo._show_next(store, run, "ann")
    root = expected.format(root=store.root)
    _, report, following = capsys.readouterr().out.splitlines()
    assert report == f"Report (open it in a browser): {root}/reports/{run.run_id}.html"
    assert following.endswith(f"--store {root}")
