"""What a generation says of its origin, and that none of it makes another generation."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tastetwin import __version__, generations, provenance
from tastetwin.generations import Made, Manifest, Plan
from tastetwin.provenance import LIBRARIES, commit, made_with, source_digest
from tastetwin.store import Store

DAY = "2026-06-01"


def made(store: Store, parent: Manifest | None = None, **settings: object) -> Manifest:
    def work(folder: str) -> Made:
        store.write_bytes(f"{folder}/t", b"x")
        return {"t": [generations.entry_of(store, f"{folder}/t")]}, {}

    return generations.make(store, Plan("train", DAY, {"features": parent}, settings), work)


def test_a_manifest_names_data_code_libraries_and_machine(memory_store: Store) -> None:
    """All that a bundle was made from and with, read back from the store."""
    parent = made(memory_store, seed=1)
    kept = generations.read_manifest(memory_store, "train", made(memory_store, parent, seed=2).generation)
    assert kept.parents == {"features": parent.generation}
    assert kept.settings == {"seed": 2}
    assert kept.provenance == {"parents": {"features": parent.digest()}, **made_with()}
    code, machine = kept.provenance["code"], kept.provenance["machine"]
    assert code["version"] == __version__ and code["sources"] == source_digest()
    assert set(kept.provenance["libraries"]) == set(LIBRARIES) and kept.provenance["libraries"]["numpy"]
    assert machine["architecture"] and machine["blas"] and int(machine["threads"]) >= 1


def test_another_commit_or_machine_finds_the_same_finished_work(
    memory_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise every commit would train everything again; what was made keeps the name of its maker."""
    first = made(memory_store, seed=1)
    monkeypatch.setattr(generations, "made_with", lambda: {"code": "other", "libraries": {}, "machine": {}})
    assert made(memory_store, seed=1) == first
    assert made(memory_store, seed=2).provenance["code"] == "other"


def test_a_manifest_of_an_earlier_version_is_read(memory_store: Store) -> None:
    """Which said nothing of its origin."""
    kept = made(memory_store)
    path = f"{kept.folder}/{generations.MANIFEST}"
    raw = memory_store.read_json(path)
    del raw["provenance"]
    memory_store.write_json(path, raw)
    assert generations.read_manifest(memory_store, "train", kept.generation).provenance == {}


def test_the_commit_is_that_of_a_checkout_which_has_the_package(tmp_path: Path) -> None:
    """Not that of whatever repository an installed package happens to lie in."""
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert commit(package) is None, "no repository at all"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.com"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    assert commit(package) is None, "somebody else's"
    subprocess.run([*git, "add", "pkg"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "y"], check=True)
    found = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert commit(package) == found.strip()


def test_a_change_of_the_sources_shows_where_no_commit_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout with a change that was not committed is not that commit."""
    (tmp_path / "a.py").write_text("x = 1")
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    before = source_digest()
    (tmp_path / "a.py").write_text("x = 2")
    assert source_digest() != before
