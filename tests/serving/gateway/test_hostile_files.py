"""Packs and bundles that somebody damaged, or made to do harm."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pytest

from tastetwin.config import BackendConfig
from tastetwin.errors import StoreError
from tastetwin.features.ids import IdIndex
from tastetwin.generations import read_manifest
from tastetwin.runs import published_run
from tastetwin.serving.backend.model import open_model
from tastetwin.serving.gateway.pack import Pack
from tastetwin.store import Store
from tests.serving.hostile_files import CHANGES, manifest_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


@pytest.fixture
def own(served: Store, tmp_path: Path) -> Store:
    """A copy to change."""
    shutil.copytree(served.root, tmp_path / "store")
    return Store.open(tmp_path / "store")


@pytest.mark.parametrize("kind", ["pack", "bundle"])
def test_damage_is_always_found(own: Store, kind: str) -> None:
    """Every file, changed in every way: what is answered from is what was checked and published."""
    run, drawn = published_run(own), random.Random(1)
    version = run.generation("train")
    for entry in manifest_of(kind, own)[1]:
        path = Path(own.path(entry["path"]))
        whole = path.read_bytes()
        for change in CHANGES.values():
            data = bytearray(whole)
            change(data, drawn)
            if data == whole:
                continue
            path.write_bytes(data)
            with pytest.raises(StoreError, match="DAMAGED"):
                Pack.of(own, run) if kind == "pack" else open_model(own, version, BackendConfig())
        path.write_bytes(whole)


def outcomes(kind: str, store: Store, times: int) -> Counter[str]:
    """What came of a hostile publisher's files, by the first word."""
    command = [sys.executable, "-m", "tests.serving.hostile_files", kind, store.root, "7", str(times)]
    # GNU OpenMP's threads do not survive a fork: a child that asks for them again waits for ever, sound files or not
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    said = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=True
    ).stdout
    return Counter(
        line.split("\t")[2].split()[0] for line in said.splitlines() if "\t" in line
    )  # ONNX Runtime talks too


@pytest.mark.parametrize(
    ("kind", "times"),
    [("pack", 1), ("bundle", 15), pytest.param("pack", 12, marks=pytest.mark.slow)],
)
def test_whoever_updates_the_hashes_too_ends_no_process(own: Store, kind: str, times: int) -> None:
    """A publisher is trusted with what is answered, not with the machine: an error of ours, or answers."""
    found = outcomes(kind, own, times)
    assert set(found) <= {"answered", "refused"}, found
    assert found["refused"] and found.total() >= times


@pytest.mark.parametrize(
    ("part", "at", "value"),
    [("starts", 3, 9_999), ("slots", 0, 9_999), ("offsets", 1, 1 << 40), ("offsets", 1, -1), ("bytes", 0, 0xFF)],
)
def test_an_index_of_ids_that_leads_out_of_its_files_is_refused(tmp_path: Path, part: str, at: int, value: int) -> None:
    """Arrow takes offsets as they are, and reads whatever is there."""
    IdIndex.write(tmp_path, pa.array(["ann", "bob", "cyd"]))
    IdIndex.open(tmp_path).check()
    array = np.load(tmp_path / f"{part}.npy")
    array[at] = value
    np.save(tmp_path / f"{part}.npy", array)
    with pytest.raises(ValueError):
        IdIndex.open(tmp_path).check()


def test_the_manifest_of_a_bundle_is_read_as_data(own: Store) -> None:
    """JSON, whatever it says, is never code or a path outside of the store."""
    run = published_run(own)
    path, entries, known = manifest_of("bundle", own)
    entries[0]["path"] = "../../../../etc/passwd"
    path.write_bytes(orjson.dumps(known))
    with pytest.raises(StoreError):
        open_model(own, read_manifest(own, "train", run.generation("train")).generation, BackendConfig())
