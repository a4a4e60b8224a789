"""Promise 1 for the store, for runs and for collect: a reader sees old or new, never a mix, and a re-run heals.

SIGKILL keeps the page cache, so kills alone would not notice a missing fsync; that is what the operation log is for.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from tastetwin import generations, runs
from tastetwin.config import CollectConfig
from tastetwin.errors import StoreError, UsageError
from tastetwin.sources.collect import collect
from tastetwin.store import Store, is_aside
from tests.contracts import faults

pytestmark = pytest.mark.slow

DAY = date(2026, 11, 22)
FAULTS: dict[str, dict[str, Any]] = {
    "kill": {},
    "EIO once": {"errno": errno.EIO},
    "EIO from then on": {"errno": errno.EIO, "lasting": True},
    "disk full once": {"errno": errno.ENOSPC, "operations": faults.WRITING},
    "disk full from then on": {"errno": errno.ENOSPC, "operations": faults.WRITING, "lasting": True},
}
CASES = [
    pytest.param(fault, id=name, marks=[pytest.mark.slow] if "once" in name else []) for name, fault in FAULTS.items()
]


def publish_day(root: Path, word: str) -> None:
    """A small publisher in the manner of every stage: several files, the manifest, the run's record, the pointer."""
    store = Store.create(root)
    with store.writing():
        generation, finished = generations.begin(store, "mart", DAY.isoformat(), {"word": word}, again=False)
        if finished is None:
            _write_generation(store, generation, word)
        run = runs.new_run(store, DAY)
        run = runs.record_stage(store, run, "mart", runs.StageRecord(generation, 0.0))
        runs.publish(store, run.run_id)


def _write_generation(store: Store, generation: str, word: str) -> None:
    folder = store.make_folder(f"mart/{generation}")
    for table in ("reviews", "likes"):
        part = Path(folder, table, "part-0")
        part.parent.mkdir(exist_ok=True)
        with part.open("wb") as handle:
            handle.write(f"{table} {word}\n".encode() * 1000)
    tables = {
        table: [generations.entry_of(store, f"mart/{generation}/{table}/part-0")] for table in ("reviews", "likes")
    }
    generations.finish(store, generations.Manifest("mart", generation, DAY.isoformat(), {}, {}, tables, {"word": word}))


def what_a_reader_sees(root: Path) -> str | None:
    """The published word, every byte of it checked; None where nothing is published."""
    try:
        store = Store.open(root)
        run = runs.published_run(store)
    except (StoreError, UsageError) as error:
        assert error.problem.code in ("NO-STORE", "NOT-PUBLISHED"), error
        return None
    assert run in runs.list_runs(store)
    manifest = generations.read_manifest(store, "mart", run.generation("mart"))
    generations.verify(store, manifest)
    words = {store.open_read(manifest.paths(table)[0]).read().split()[1].decode() for table in manifest.tables}
    assert words == {manifest.facts["word"]}
    return str(manifest.facts["word"])


def _from(template: Path, root: Path) -> Callable[[], None]:
    def prepare() -> None:
        shutil.rmtree(root, ignore_errors=True)
        if template.exists():
            shutil.copytree(template, root)

    return prepare


def _assert_ended_as_injected(outcome: faults.Outcome, fault: dict[str, Any]) -> None:
    assert outcome.fired
    assert outcome.killed == ("errno" not in fault), "an injected kill must really have happened"
    if fault.get("errno") == errno.ENOSPC:
        assert outcome.error in ("StoreError DISK-FULL", "OSError [Errno 28] No space left on device")
    elif "errno" in fault:
        assert outcome.error is not None


@pytest.mark.parametrize("before", ["old", None], ids=["over a published day", "into nothing"])
@pytest.mark.parametrize("fault", CASES)
def test_a_publisher_struck_at_any_file_operation_leaves_old_or_new(
    tmp_path: Path, fault: dict[str, Any], before: str | None
) -> None:
    """The heart of promise 1; the re-run must not stumble over anything the dead attempt left lying about."""
    template, root = tmp_path / "template", tmp_path / "store"
    if before:
        publish_day(template, before)
    points, seen = 0, set()
    job = lambda: publish_day(root, "new")  # noqa: E731
    for outcome in faults.every_point(_from(template, root), job, str(root), **fault):
        points += 1
        _assert_ended_as_injected(outcome, fault)
        seen.add(what_a_reader_sees(root))
        publish_day(root, "new")
        assert what_a_reader_sees(root) == "new", f"re-run after a fault at operation {points}"
    assert points > 30
    assert seen == {before, "new"}, "faults on both sides of the one moment of publication"


@pytest.mark.parametrize("fault", CASES)
def test_collect_struck_at_any_file_operation_is_finished_by_the_next_attempt(
    tmp_path: Path, fault: dict[str, Any]
) -> None:
    """A landing is absent or whole, and its bytes do not depend on how often it was begun."""
    source, root = tmp_path / "source", tmp_path / "store"
    source.mkdir()
    (source / "reviews-1.jsonl").write_bytes(b'{"user_idno": "1"}\n' * 2000)
    (source / "reviews-2.jsonl").write_bytes(b"")
    (source / "places.jsonl").write_bytes(b'{"place_id": "1"}\n')

    def land() -> None:
        collect(Store.create(root), str(source), DAY, config=CollectConfig())

    _from(tmp_path / "no template", root)()
    land()
    expected = {name: Store(root).sha256(name) for name in Store(root).files("")}
    points = 0
    for outcome in faults.every_point(_from(tmp_path / "no template", root), land, str(root), **fault):
        points += 1
        _assert_ended_as_injected(outcome, fault)
        manifests = [name for name in Store(root).files("lake") if name.endswith("/manifest.json")]
        for name in manifests:
            generations.verify(Store(root), generations.read_manifest(Store(root), "collect", name.split("/")[1]))
        land()
        store = Store(root)
        assert {name: store.sha256(name) for name in store.files("") if not is_aside(Path(name).name)} == expected
        assert not any(is_aside(Path(name).name) for name in store.files("lake") if "manifest" not in name)
    assert points > 20


def test_all_that_a_pointer_leads_to_is_durable_before_the_pointer_moves(tmp_path: Path) -> None:
    """A power cut keeps only what was fsynced: file contents by the file's fsync, names by their folder's."""
    root = tmp_path / "store"
    outcome = faults.run(lambda: publish_day(root, "new"), str(tmp_path))
    assert outcome.error is None
    pending, renames = faults.replay(outcome.log, str(root))
    assert any(name.endswith("/published.json") for name in renames)
    assert {Path(name).name for name in pending} <= {".lock"}


def test_a_landed_file_is_durable_before_it_gets_its_name(tmp_path: Path) -> None:
    """The next attempt trusts a name in the lake to stand for a whole file, after a power cut too."""
    source, root = tmp_path / "source", tmp_path / "store"
    source.mkdir()
    (source / "likes.jsonl").write_bytes(b"{}\n" * 100_000)

    def land() -> None:
        collect(Store.create(root), str(source), DAY, config=CollectConfig())

    outcome = faults.run(land, str(tmp_path))
    assert outcome.error is None
    pending, renames = faults.replay(outcome.log, str(root))
    assert any(name.endswith("/likes/likes.jsonl") for name in renames)
    assert pending == set()
