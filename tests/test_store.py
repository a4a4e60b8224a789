"""What a store on a disk promises besides the contract of every store (``tests/contracts/test_every_store.py``)."""

from __future__ import annotations

import errno
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from tastetwin.errors import StoreError
from tastetwin.store import MARKER, Store


def code_of(error: pytest.ExceptionInfo[StoreError]) -> str:
    return error.value.problem.code


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


def test_two_writers_of_one_file_write_beside_each_other(tmp_path: Path) -> None:
    """Threads, or containers on one volume, have the same process id: a name made of it would be the other's file."""
    store = Store.create(tmp_path / "store")
    with store.open_write("a") as first:
        first.write(b"1" * 10)
        with store.open_write("a") as second:
            second.write(b"2")
        assert Path(store.path("a")).read_bytes() == b"2"
    assert Path(store.path("a")).read_bytes() == b"1" * 10
