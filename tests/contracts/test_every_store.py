"""What every store promises, wherever it is: on a disk, in memory behind fsspec, and on an S3 server."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tastetwin.delivery.forget import forget
from tastetwin.errors import StoreError
from tastetwin.store import MARKER, STORE_FORMAT, Store, is_aside
from tests.privacy.haunted import ODD, check_manifests, contents, haunt, naming

pytestmark = pytest.mark.slow


@pytest.fixture(params=["disk", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where a store can be made."""
    if request.param == "disk":
        yield str(tmp_path / "store")
    elif request.param == "s3":
        yield request.getfixturevalue("s3")
    else:
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
    fix = str(caught.value.problem.fix).replace(":///", "://")
    assert fix.endswith(f"--store {root}"), "the line is there to be copied"
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


def test_what_is_no_store_is_left_alone(root: str) -> None:
    """A slip in --store must not mix our files with somebody's photographs."""
    other = Store(root)
    other.write_bytes("photo.jpg", b"x")
    with pytest.raises(StoreError) as caught:
        Store.create(root)
    assert code_of(caught) == "NOT-A-STORE"
    assert other.files("") == ["photo.jpg"]


def test_small_files_are_replaced_and_size_hash_and_bytes_are_those_written(root: str) -> None:
    """Manifests say by these what is in a file; one of several megabytes may travel in parts."""
    store = Store.create(root)
    for data in (b"old", b"", bytes(range(256)) * (40 << 10)):
        store.write_bytes("t/f", data)
        assert store.open_read("t/f").read() == data
        assert store.size("t/f") == len(data)
        assert store.sha256("t/f") == hashlib.sha256(data).hexdigest()


def test_files_and_folders_are_there_until_they_are_removed(root: str) -> None:
    """A generation is finished when its manifest exists, and pruned by removing manifest and folder."""
    store = Store.create(root)
    for name in ("t/deep/a", "t/b", "tt/c"):
        store.write_bytes(name, b"1")
    store.remove("t/b")
    assert [store.exists(name) for name in ("t/deep/a", "t/deep", "t", "t/b", "none")] == [True] * 3 + [False] * 2
    store.remove("t")
    store.remove("t")
    assert [store.exists(name) for name in ("t/deep/a", "tt/c")] == [False, True]
    assert store.names("t") == []


def test_a_folder_may_be_made_before_anything_is_in_it(root: str) -> None:
    """Stages make their folders first; not every file system has such a thing."""
    store = Store.create(root)
    store.make_folder("a/b")
    store.make_folder("a/b")
    assert store.files("a") == []
    store.write_bytes("a/b/f", b"1")
    assert store.files("a") == ["a/b/f"]


def test_pyarrow_reads_and_filters_what_was_written(root: str) -> None:
    """Tables are read through the store's Arrow file system, a few row groups at a time."""
    store = Store.create(root)
    with store.open_write("t.parquet") as sink:
        pq.write_table(pa.table({"n": range(1000)}), sink, row_group_size=100)
    found = pq.read_table(store.path("t.parquet"), filesystem=store.arrow, filters=[("n", ">=", 998)])
    assert found.column("n").to_pylist() == [998, 999]


def test_reading_a_file_that_is_not_there_is_told_as_absence(root: str) -> None:
    """Callers have an answer for a file that is gone, and none for a disk or network that fails."""
    store = Store.create(root)
    for look in (store.open_read, store.size, store.sha256):
        with pytest.raises(FileNotFoundError):
            look("none")


def test_somebody_is_forgotten_in_any_store(root: str) -> None:
    """Files are replaced by others and manifests by one put, whatever the file system."""
    store = Store.create(root)
    haunt(store, {"ann": ODD})
    forget(store, [ODD])
    assert naming(ODD, contents(store)) == []
    assert check_manifests(store) == 8
    assert all(entry.found == entry.removed == 0 for entry in forget(store, [ODD]).places)
