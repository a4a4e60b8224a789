"""What ``make`` would run, by its own word (``make -n``); nothing is made."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parent.parent / "Makefile"


@pytest.mark.skipif(shutil.which("make") is None, reason="GNU make is not there")
def test_every_folder_beside_the_checkout_is_measured_and_nothing_else(tmp_path: Path) -> None:
    """A README beside the folders of data must not end an hour of measuring with a complaint that it is no folder."""
    checkout, data = tmp_path / "checkout", tmp_path / "shared" / "data"
    for folder in (checkout, data / "likes", data / "town"):
        folder.mkdir(parents=True)
    for file in (checkout / "pyproject.toml", checkout / "constraints.txt", data / "README.md"):
        file.touch()
    shutil.copy(MAKEFILE, checkout)
    line = ["make", "-n", "benchmark-quality"]
    said = subprocess.run(line, cwd=checkout, capture_output=True, text=True, check=True, timeout=60).stdout
    (arguments,) = [each.split() for each in said.splitlines() if "benchmarks/quality.py" in each]
    folders = arguments[2 : arguments.index("--towns")]
    assert sorted(folders) == ["../shared/data/likes", "../shared/data/town"]
