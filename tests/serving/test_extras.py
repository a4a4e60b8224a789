"""Serving is an extra: without it, commands say what to install."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT = """
import sys
sys.modules[{name!r}] = None
sys.argv = ["tastetwin", *{words!r}]
from tastetwin.cli import main
main()
"""


@pytest.mark.parametrize(
    ("words", "name", "extra"),
    [
        (["serve", "backend", "--store", "STORE"], "uvloop", "serve"),
        (["serve", "gateway", "--store", "STORE", "--keys", "keys"], "prometheus_client", "serve"),
        (["serve", "app", "--keys", "keys", "--secret", "secret", "--gateway-key", "KEY"], "uvicorn", "serve"),
        (["serve", "events", "--gateway-key", "KEY"], "confluent_kafka", "kafka"),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else None,
)
def test_a_missing_package_is_named_with_its_extra(words: list[str], name: str, extra: str, tmp_path: Path) -> None:
    """A traceback would send its reader to us instead of to pip."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "store.json").write_text('{"format": 1}')
    (tmp_path / "key").write_text("tt_key")
    given = [{"STORE": str(tmp_path / "store"), "KEY": str(tmp_path / "key")}.get(word, word) for word in words]
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(name=name, words=given)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "TASTETWIN_APP__BROKERS": "localhost:1"},
    )
    assert found.returncode == 6, found.stderr
    assert f"pip install 'tastetwin[{extra}]'" in found.stderr
