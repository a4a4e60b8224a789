"""The store's promises: formats, one writer, whole files, coded errors; on a disk and behind fsspec."""

from __future__ import annotations

import errno
import multiprocessing
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tastetwin.errors import StoreError
from tastetwin.store import MARKER, STORE_FORMAT, Store, is_aside


@pytest.fixture(params=["disk", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "disk":
        yield str(tmp_path / "store")
        return
    name = f"/{uuid.uuid4()}"
    yield f"memory:/{name}"
    fsspec.filesystem("memory").rm(name, recursive=True) if fsspec.filesystem("memory").exists(name) else None


def code_of(error: pytest.ExceptionInfo[StoreError]) -> str:
    return error.value.problem.code


def test_a_store_is_made_once_and_then_opened(root: str) -> None:
    """The first command makes it, every later one finds it."""
    with pytest.raises(StoreError) as caught:
        Store.open(root)
    assert code_of(caught) == "NO-STORE"
    Store.create(root)
    Store.create(root)
    assert Store.open(root).read_json(MARKER)["format"] == STORE_FORMAT


def test_a_store_of_a_newer_version_is_refused(root: str) -> None:
    """An old program must not write into a layout it does not know."""
    Store.create(root).write_json(MARKER, {"format": STORE_FORMAT + 1})
    for enter in (Store.open, Store.create):
        with pytest.raises(StoreError) as caught:
            enter(root)
        assert code_of(caught) == "STORE-NEWER"


def test_a_folder_that_holds_something_else_is_not_made_a_store(tmp_path: Path) -> None:
    """A slip in --store must not mix our files with somebody's photographs, nor take a file for a folder."""
    (tmp_path / "photo.jpg").write_bytes(b"x")
    for place in (tmp_path, tmp_path / "photo.jpg"):
        with pytest.raises(StoreError) as caught:
            Store.create(place)
        assert code_of(caught) == "NOT-A-STORE"
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_fresh_volume_and_what_a_killed_first_attempt_left_count_as_empty(tmp_path: Path) -> None:
    """Killed while writing its very first file, a store would otherwise refuse every later attempt."""
    (tmp_path / "lost+found").mkdir()
    (tmp_path / ".store.json.4711.tmp").write_bytes(b'{"for')
    (tmp_path / ".lock").write_bytes(b"")
    assert Store.create(tmp_path).exists(MARKER)


def test_json_comes_back_and_equal_values_give_equal_bytes(root: str) -> None:
    """Manifests are compared by hash."""
    store = Store.create(root)
    store.write_json("a/one.json", {"b": 1, "a": [1.5, None, "é"]})
    store.write_json("a/two.json", {"a": [1.5, None, "é"], "b": 1})
    assert store.read_json("a/one.json") == {"a": [1.5, None, "é"], "b": 1}
    assert store.sha256("a/one.json") == store.sha256("a/two.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", None])
def test_a_json_file_that_is_none_is_damaged(root: str, content: bytes | None) -> None:
    """One code for every way in which a file of ours can be spoilt, absence included."""
    store = Store.create(root)
    if content is not None:
        store.write_bytes("x.json", content)
    with pytest.raises(StoreError) as caught:
        store.read_json("x.json")
    assert code_of(caught) == "DAMAGED"


def test_names_and_files_are_relative_ascending_and_empty_for_no_folder(root: str) -> None:
    """Callers join them with folders of their own, and tables list their files in this order."""
    store = Store.create(root)
    for name in ("t/b", "t/a", "t/deep/c"):
        store.write_bytes(name, b"1")
    assert store.names("t") == ["a", "b", "deep"]
    assert store.files("t") == ["t/a", "t/b", "t/deep/c"]
    assert store.names("none") == store.files("none") == []
    store.remove("t")
    store.remove("t")
    assert store.files("") == [MARKER]


def test_a_folder_that_cannot_be_listed_does_not_pass_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsspec and os.walk both swallow that error; files would then go unsynced or missing from a manifest."""
    store = Store.create(tmp_path / "s")
    store.write_bytes("t/deep/a", b"1")
    real = __import__("os").scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("deep"):
            raise OSError(errno.EIO, "Input/output error")
        return real(path)

    monkeypatch.setattr("os.scandir", scandir)
    for look in (store.files, store.sync, store.names):
        with pytest.raises(StoreError) as caught:
            look("t/deep" if look == store.names else "t")
        assert code_of(caught) in ("STORE-UNREADABLE", "STORE-UNWRITABLE")


def test_a_file_written_piece_by_piece_appears_whole_or_not_at_all(root: str) -> None:
    """Collect and Parquet writers rely on a name standing for a finished file; the old one stays until then."""
    store = Store.create(root)
    store.write_bytes("f", b"old")

    def write_and_fail() -> None:
        with store.open_write("f") as handle:
            handle.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_fail()
    assert store.open_read("f").read() == b"old"
    with store.open_write("f") as handle:
        handle.write(b"new ")
        assert store.open_read("f").read() == b"old"
        handle.write(b"bytes")
    assert store.open_read("f").read() == b"new bytes"
    assert not [name for name in store.names("") if is_aside(name)]


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "DISK-FULL"), (errno.EDQUOT, "DISK-FULL"), (errno.EIO, "STORE-UNWRITABLE")]
)
def test_an_operating_system_error_in_writing_gets_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    """Disk full is the commonest failure of a daily job and deserves a sentence, not a traceback."""
    store = Store.create(tmp_path / "s")
    store.write_bytes("f", b"old")

    def fsync(_: int) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(StoreError) as caught:
        store.write_bytes("f", b"new")
    monkeypatch.undo()
    assert code_of(caught) == code
    assert store.open_read("f").read() == b"old"


def _hold(root: str, ready: Any, release: Any) -> None:
    with Store(root).writing():
        ready.set()
        release.wait(30)


def test_a_second_writer_is_told_that_the_store_is_busy(tmp_path: Path) -> None:
    """Two daily jobs at once would fight over one run's record; the lock goes with the process that held it."""
    store = Store.create(tmp_path / "s")
    context = multiprocessing.get_context("fork")
    ready, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(store.root, ready, release))
    other.start()
    assert ready.wait(30)
    with pytest.raises(StoreError) as caught, store.writing():
        pass
    assert code_of(caught) == "STORE-BUSY"
    other.kill()
    other.join()
    with store.writing():
        pass


def test_an_error_inside_the_writers_block_is_not_taken_for_one_of_the_lock(tmp_path: Path) -> None:
    """The lock codes its own errors only."""
    with pytest.raises(OSError, match="theirs"), Store.create(tmp_path / "s").writing():
        raise OSError("theirs")
