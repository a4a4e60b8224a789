"""The collect stage over folders: byte for byte, found again, gone on with, and refused while it changes."""

from __future__ import annotations

import hashlib
import os
import uuid
from datetime import date
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tastetwin import generations
from tastetwin.config import CollectConfig
from tastetwin.errors import InputError, MissingExtra, StoreError
from tastetwin.generations import Manifest
from tastetwin.privacy.opt_out import deny
from tastetwin.privacy.screen import Screen
from tastetwin.sources import files
from tastetwin.sources.collect import collect
from tastetwin.store import Store

DAY = date(2026, 11, 22)
CONFIG = CollectConfig()
BYTES = {
    "reviews.jsonl": b'{"user_idno": "1"}\r\n\xff\x00 not json, no end of line',
    "reviews b\n.jsonl": os.urandom(100_000),
    "places.jsonl": b"",
    "friends.csv": b"a,b\n",
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for name, data in BYTES.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store")


def land(store: Store, source: Path | str, **more: Any) -> Manifest:
    return collect(store, str(source), DAY, config=CONFIG, **more)


def read(store: Store, path: str) -> bytes:
    with store.open_read(path) as handle:
        return handle.read()


def test_the_lake_holds_the_sources_bytes_and_the_manifest_says_so(store: Store, source: Path) -> None:
    """Schema on read: whatever is wrong with a line, it is in the lake as it came."""
    manifest = land(store, source)
    assert {table: [read(store, path) for path in manifest.paths(table)] for table in manifest.tables} == {
        "places": [b""],
        "reviews": [BYTES["reviews b\n.jsonl"], BYTES["reviews.jsonl"]],
    }
    assert manifest.tables["reviews"][1].path == f"lake/{manifest.generation}/reviews/reviews.jsonl"
    assert manifest.tables["reviews"][1].sha256 == hashlib.sha256(BYTES["reviews.jsonl"]).hexdigest()
    assert manifest.facts == {
        "counts": {"files": 3, "bytes": len(BYTES["reviews.jsonl"]) + 100_000},
        "source": str(source),
        "files": {"places": 1, "reviews": 2},
        "bytes": {"places": 0, "reviews": len(BYTES["reviews.jsonl"]) + 100_000},
        "ignored": ["friends.csv"],
    }
    assert generations.read_manifest(store, "collect", manifest.generation) == manifest
    generations.verify(store, manifest)


def test_an_unchanged_source_finds_its_finished_work_and_a_changed_one_does_not(store: Store, source: Path) -> None:
    """A re-run costs a listing; a file written again, even with the same size, is landed again."""
    first = land(store, source)
    assert land(store, source) == first
    assert land(store, source, again=True).generation == f"{first.generation}-2"
    os.utime(source / "reviews.jsonl", ns=(1, 1))
    second = land(store, source)
    assert second.generation != first.generation
    assert second.digest() == first.digest(), "the same bytes give the same mart"
    (source / "likes.jsonl").write_bytes(b"")
    assert land(store, source).digest() != first.digest()


def test_two_folders_alike_in_names_sizes_and_times_are_two_sources(store: Store, source: Path, tmp_path: Path) -> None:
    """Copies made by a script within one tick must not be taken for each other."""
    twin = tmp_path / "twin"
    twin.mkdir()
    (twin / "reviews.jsonl").write_bytes(BYTES["reviews.jsonl"].replace(b"1", b"2"))
    for name in ("reviews b\n.jsonl", "places.jsonl"):
        (source / name).unlink()
    for folder in (source, twin):
        os.utime(folder / "reviews.jsonl", ns=(1, 1))
    assert land(store, source).digest() != land(store, twin).digest()


def test_an_attempt_after_a_crash_keeps_finished_files_and_copies_the_rest(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A day of a terabyte must not begin at zero again; what was half written is gone at the end."""
    opened: list[str] = []
    real = files.Folder._chunks

    def chunks(self: files.Folder, each: files.SourceFile) -> Any:
        opened.append(each.name)
        if len(opened) == 3:
            raise KeyboardInterrupt
        return real(self, each)

    monkeypatch.setattr(files.Folder, "_chunks", chunks)
    with pytest.raises(KeyboardInterrupt):
        land(store, source)
    assert not [name for name in store.files("lake") if name.endswith(generations.MANIFEST)]
    (generation,) = store.names("lake")
    store.write_bytes(f"lake/{generation}/reviews/.reviews.jsonl.4711.tmp", b"half")
    manifest = land(store, source)
    assert opened[3:] == [opened[2]], "only the file that was not finished is read again"
    generations.verify(store, manifest)
    listed = {entry.path for entries in manifest.tables.values() for entry in entries}
    assert set(store.files("lake")) == listed | {f"{manifest.folder}/{generations.MANIFEST}"}


@pytest.mark.parametrize("change", ["grows", "shrinks", "same size", "replaced"])
def test_a_file_that_changes_while_it_is_copied_is_refused(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """A landing that mixes two states of a file is a lie; the next attempt, on a quiet file, succeeds."""
    path, size = source / "reviews b\n.jsonl", 100_000
    real = files.Folder._chunks

    def chunks(self: files.Folder, each: files.SourceFile) -> Any:
        for number, chunk in enumerate(real(self, each)):
            if number == 0 and each.bytes == size:
                data = {"grows": b"x" * (size + 1), "shrinks": b"x"}.get(change, b"x" * size)
                if change == "replaced":
                    path.unlink()
                path.write_bytes(data)
                os.utime(path, ns=(5, 5))
            yield chunk

    with monkeypatch.context() as patched:
        patched.setattr(files.Folder, "_chunks", chunks)
        patched.setattr(files, "_CHUNK", 1000)
        with pytest.raises(InputError) as caught:
            land(store, source)
    assert caught.value.problem.code == "SOURCE-CHANGED"
    assert caught.value.problem.place == str(source / "reviews b\\n.jsonl")
    assert not [name for name in store.files("lake") if name.endswith(generations.MANIFEST)]
    generations.verify(store, land(store, source))


def test_progress_counts_bytes_up_to_the_total(store: Store, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar must move within one big file and end at its end."""
    monkeypatch.setattr(files, "_CHUNK", 1000)
    told: list[tuple[int, int | None]] = []
    land(store, source, progress=lambda done, total, phase="": told.append((done, total)))
    total = sum(len(data) for name, data in BYTES.items() if name.endswith(".jsonl"))
    assert told == sorted(told, key=lambda each: each[0])
    assert told[-1] == (total, total)
    assert len(told) > 100


def test_a_source_and_a_store_behind_urls_work_as_folders_do(source: Path) -> None:
    """Object stores are configuration; the memory file system stands for them."""
    memory, name = fsspec.filesystem("memory"), f"/{uuid.uuid4()}"
    memory.put(f"{source}/", f"{name}/source/", recursive=True)
    store = Store.create(f"memory:/{name}/store")
    manifest = land(store, f"memory:/{name}/source")
    assert [read(store, path) for path in manifest.paths("reviews")][1] == BYTES["reviews.jsonl"]
    assert manifest.facts["source"] == f"memory:/{name}/source"
    assert land(store, f"memory:/{name}/source") == manifest
    memory.pipe_file(f"{name}/source/reviews.jsonl", b"other")
    assert land(store, f"memory:/{name}/source").generation != manifest.generation
    memory.rm(name, recursive=True)


def test_a_day_without_events_is_a_day(store: Store, tmp_path: Path) -> None:
    """A holiday at the source: files are there and empty."""
    folder = tmp_path / "quiet"
    folder.mkdir()
    (folder / "likes.jsonl").write_bytes(b"")
    assert land(store, folder).facts["bytes"] == {"likes": 0}


def test_a_full_disk_is_one_coded_error_and_the_next_attempt_succeeds(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commonest failure of the largest copy of the day."""

    def fsync(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(StoreError) as caught:
        patched.setattr("os.fsync", fsync)
        land(store, source)
    assert caught.value.problem.code == "DISK-FULL"
    generations.verify(store, land(store, source))


def test_a_mongodb_address_without_the_driver_names_the_extra(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The core installs without pymongo; the message carries the line that installs it."""
    monkeypatch.delitem(__import__("sys").modules, "tastetwin.sources.mongodb", raising=False)
    monkeypatch.setitem(__import__("sys").modules, "pymongo", None)
    with pytest.raises(MissingExtra, match=r"pip install 'tastetwin\[mongodb\]'"):
        land(store, "mongodb://host/town")


def test_lines_of_who_was_forgotten_are_not_landed_and_counted(store: Store, source: Path) -> None:
    """The source has them still; every other byte comes as it is, and what a killed attempt landed is landed anew."""
    theirs, last = b'{"user_idno": "canary"}', b"\xff\x00 not json, no end of line"
    (source / "reviews.jsonl").write_bytes(theirs + b"\r\n" + last)
    generation = land(store, source).generation
    store.remove(f"lake/{generation}/{generations.MANIFEST}")
    deny(store, ["canary"])
    manifest = land(store, source)
    assert (manifest.generation, manifest.facts["counts"]["held_back"]) == (generation, 1)
    landed = {read(store, path) for path in manifest.paths("reviews")}
    assert landed == {b" " * len(theirs) + b"\r\n" + last, BYTES["reviews b\n.jsonl"]}
    generations.verify(store, manifest)


def test_a_source_written_to_while_it_is_screened_is_refused(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while it is copied: half of a file is no file."""
    deny(store, ["1"])
    real = Screen.copy

    def copy(self: Screen, *arguments: Any) -> None:
        real(self, *arguments)
        with (source / "reviews.jsonl").open("ab") as file:
            file.write(b"more")

    monkeypatch.setattr(Screen, "copy", copy)
    with pytest.raises(InputError) as caught:
        land(store, source)
    assert caught.value.problem.code == "SOURCE-CHANGED"
    assert not any(path.endswith(generations.MANIFEST) for path in store.files("lake"))
