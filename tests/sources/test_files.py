"""The door of the files source: what counts as ours, what is refused and how it is said."""

from __future__ import annotations

import errno
import gzip
import os
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tastetwin.errors import InputError
from tastetwin.filesystems import masked
from tastetwin.progress import silent
from tastetwin.sources.files import Folder, safe_name
from tastetwin.store import Store

LINE = b'{"user_idno": "1"}\n'


def folder(path: Path, **files: bytes) -> Path:
    path.mkdir(exist_ok=True)
    for name, data in files.items():
        (path / name.replace("__", ".")).write_bytes(data)
    return path


def refusal(source: Path | str) -> InputError:
    with pytest.raises(InputError) as caught:
        Folder(str(source))
    return caught.value


def test_the_three_kinds_are_found_plain_and_compressed_and_the_rest_is_named(tmp_path: Path) -> None:
    """Many files per kind; friends.csv and folders of other names are nobody's business but are not hidden either."""
    folder(
        tmp_path,
        reviews__jsonl=LINE,
        **{"reviews-2__jsonl__gz": gzip.compress(LINE), "likes_a__jsonl__zst": zstandard.compress(LINE)},
        places__jsonl=b"",
        friends__csv=b"a,b",
        old_reviews__jsonl=LINE,
    )
    (tmp_path / "sub").mkdir()
    found = Folder(str(tmp_path))
    assert [(each.kind, each.name) for each in found.files] == [
        ("likes", "likes_a.jsonl.zst"),
        ("places", "places.jsonl"),
        ("reviews", "reviews-2.jsonl.gz"),
        ("reviews", "reviews.jsonl"),
    ]
    assert found.ignored == ["friends.csv", "old_reviews.jsonl", "sub"]


def test_an_absent_folder_and_a_file_in_its_place_are_told_apart(tmp_path: Path) -> None:
    """A slip in the path and a file given for its folder have different fixes."""
    assert refusal(tmp_path / "nope").problem.code == "NO-SOURCE"
    (tmp_path / "reviews.jsonl").write_bytes(LINE)
    assert refusal(tmp_path / "reviews.jsonl").problem.code == "SOURCE-NOT-A-FOLDER"


def test_an_empty_folder_and_one_without_events_say_what_is_expected(tmp_path: Path) -> None:
    """Places alone make no taste; the message names what was found and what would do."""
    assert refusal(tmp_path).problem.code == "SOURCE-EMPTY"
    problem = refusal(folder(tmp_path, places__jsonl=b"", notes__txt=b"")).problem
    assert problem.code == "SOURCE-NO-EVENTS"
    assert "notes.txt" in problem.value
    assert "reviews*.jsonl" in problem.rule


@pytest.mark.parametrize(
    "name",
    [
        "reviews.csv",
        "reviews.parquet",
        "reviews.json",
        "reviews.jsonl.bz2",
        "likes.ndjson",
        "reviews.csv.gz",
        "Reviews.jsonl",
        "reviews.JSONL",
        "likes.jsonl.GZ",
    ],
)
def test_a_kind_present_only_in_the_wrong_type_of_file_is_refused(tmp_path: Path, name: str) -> None:
    """Passing over somebody's only reviews without a word would give them twins from likes alone."""
    (tmp_path / "places.jsonl").write_bytes(b"")
    (tmp_path / name).write_bytes(b"x")
    problem = refusal(tmp_path).problem
    assert (problem.code, problem.value) == ("SOURCE-WRONG-TYPE", name)
    (tmp_path / f"{name.split('.')[0].lower()}.jsonl").write_bytes(LINE)
    assert Folder(str(tmp_path)).ignored == [name]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("reviews.jsonl", gzip.compress(LINE)),
        ("reviews.jsonl", zstandard.compress(LINE)),
        ("reviews.jsonl", b"PAR1\x15\x04"),
        ("reviews.jsonl.gz", LINE),
        ("reviews.jsonl.zst", LINE),
        ("reviews.jsonl.gz", zstandard.compress(LINE)),
    ],
)
def test_a_file_whose_first_bytes_belie_its_name_is_refused_at_landing(tmp_path: Path, name: str, data: bytes) -> None:
    """Every line of it would end in quarantine; said here it is one message with a fix."""
    (folder(tmp_path / "source") / name).write_bytes(data)
    store = Store.create(tmp_path / "store")
    with pytest.raises(InputError) as caught:
        Folder(str(tmp_path / "source")).land(store, "lake/g", silent)
    assert caught.value.problem.code == "SOURCE-WRONG-TYPE"
    assert store.files("lake") == []


@pytest.mark.parametrize(
    "data", [b"[" * 100_000, b"\xef\xbb\xbf" + LINE, b"\x00\n", b"not json\n" + LINE, b"", b"\n\n"]
)
def test_what_is_wrong_with_lines_is_left_to_the_gate(tmp_path: Path, data: bytes) -> None:
    """One bad line never costs a good line: nothing but whole files of another type are refused at landing."""
    source = folder(tmp_path / "source", reviews__jsonl=data, **{"likes__jsonl__gz": b""})
    tables = Folder(str(source)).land(Store.create(tmp_path / "store"), "lake/g", silent)
    assert tables["reviews"][0].bytes == len(data)
    assert tables["likes"][0].bytes == 0


def test_a_folder_or_a_pipe_named_like_a_file_is_refused_without_opening_it(tmp_path: Path) -> None:
    """Opening a pipe would wait for ever."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "reviews.jsonl").mkdir()
    (tmp_path / "b").mkdir()
    os.mkfifo(tmp_path / "b" / "reviews.jsonl")
    for name, value in (("a", "a folder"), ("b", "not a regular file")):
        problem = refusal(tmp_path / name).problem
        assert (problem.code, problem.value) == ("SOURCE-NOT-A-FILE", value)
        assert problem.place == f"{tmp_path}/{name}/reviews.jsonl"


def test_links_are_followed_and_a_broken_one_is_unreadable(tmp_path: Path) -> None:
    """Folders of links to a data lake are common; the version is that of the file behind the link."""
    real = folder(tmp_path / "real", data=LINE) / "data"
    source = folder(tmp_path / "source")
    (source / "reviews.jsonl").symlink_to(real)
    before = Folder(str(source)).inputs
    os.utime(real, ns=(1, 1))
    assert Folder(str(source)).inputs != before
    real.unlink()
    assert refusal(source).problem.code == "SOURCE-UNREADABLE"


class Unreadable:
    """A file that opens and then fails, or does not open at all."""

    def __init__(self, error: OSError) -> None:
        self.error = error

    def __enter__(self) -> Unreadable:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def read(self, _: int) -> bytes:
        raise self.error


@pytest.mark.parametrize("at", ["open", "read"])
def test_a_file_that_may_not_or_cannot_be_read_is_one_coded_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Injected, because root reads everything; an error of the source must not be taken for one of the store."""
    source = Folder(str(folder(tmp_path / "source", reviews__jsonl=LINE)))
    error = OSError(errno.EACCES, "Permission denied") if at == "open" else OSError(errno.ENOSPC, "strange")

    def open_file(*_: Any, **__: Any) -> Unreadable:
        if at == "open":
            raise error
        return Unreadable(error)

    monkeypatch.setattr(source._fs, "open", open_file)
    with pytest.raises(InputError) as caught:
        source.land(Store.create(tmp_path / "store"), "lake/g", silent)
    assert caught.value.problem.code == "SOURCE-UNREADABLE"
    assert caught.value.problem.place.endswith("/reviews.jsonl")


def test_an_unknown_scheme_and_a_missing_client_are_one_coded_error_without_the_password() -> None:
    """kafka:// is no folder; the message masks what stands before the @."""
    error = refusal("kafka://me:pa55@host/topic")
    assert error.problem.code == "SOURCE-SCHEME"
    assert "pa55" not in str(error)
    assert masked("sftp://me:pa55@host/a@b?token=t0ken") == "sftp://host/a@b"


def test_ordinary_names_stay_and_odd_ones_are_escaped() -> None:
    """Names in the lake pass through URLs, engines and logs."""
    assert safe_name("reviews-2026_11.22.jsonl.gz") == "reviews-2026_11.22.jsonl.gz"
    assert safe_name("reviews a%20=\n.jsonl") == "reviews=20a=2520=3D=0A.jsonl"
    assert safe_name(os.fsdecode(b"reviews\xff.jsonl")) == "reviews=FF.jsonl"
    assert safe_name("reviews" + "서" * 80 + ".jsonl.zst").endswith(".jsonl.zst")


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="/\0", codec="utf-8"), max_size=255), unique=True, max_size=5))
def test_different_names_stay_different_safe_and_short(names: list[str]) -> None:
    """Two files of a source must never land on one name, and every name must fit a file system."""
    escaped = [safe_name(name) for name in names]
    assert len(set(escaped)) == len(names)
    assert all(len(name) <= 200 and all(each.isalnum() or each in "._-~=" for each in name) for name in escaped)
    assert all(name.isascii() for name in escaped)
