"""Ids in memory-mapped files, beside a dict."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tastetwin.features import ids as module
from tastetwin.features.ids import NO_POSITION, IdIndex, PlaceIndex
from tastetwin.features.vocabulary import NO_ROW, PlaceRows

HASHES: dict[str, Callable[[bytes], int]] = {
    "crc32": zlib.crc32,
    "all collide": lambda _: 7,
    "by length": len,
    "largest": lambda key: 0xFFFFFFFF - len(key) % 2,
}

texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.sampled_from(["", "?", "가게-1", "가게-2", "e\u0301", "\u00e9", "\x00", "a" * 300, "a" * 299 + "b", "a" * 301]),
    st.integers(0, 99).map("user-with-a-long-common-beginning-{:02d}".format),
)
asked = st.one_of(texts, st.text(max_size=4), st.sampled_from(["\ud800", "a\udfff", "\udcff" * 3]))


def index_of(ids: list[str], folder: str, hashed: str, monkeypatch: pytest.MonkeyPatch) -> IdIndex:
    monkeypatch.setattr(module, "_hash", HASHES[hashed])
    IdIndex.write(Path(folder), pa.array(ids, pa.string()))
    return IdIndex.open(Path(folder))


@given(
    ids=st.lists(texts, unique=True, max_size=40),
    names=st.lists(asked, max_size=10),
    hashed=st.sampled_from(sorted(HASHES)),
    repeats=st.sampled_from([1, 40]),
)
@settings(max_examples=150, deadline=None)
def test_an_index_is_a_dict(ids: list[str], names: list[str], hashed: str, repeats: int) -> None:
    """A place or user taken for another would give somebody a stranger's taste; whatever the hash does."""
    wanted = {name: at for at, name in enumerate(ids)}
    everybody = (ids + names) * repeats
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
        index = index_of(ids, folder, hashed, monkeypatch)
        assert len(index) == len(ids)
        assert index.positions(everybody) == [wanted.get(name, NO_POSITION) for name in everybody]
        assert [index.position(name) for name in ids] == list(range(len(ids)))
        assert [index.name(at) for at in range(len(ids))] == ids


def test_ids_of_one_checksum_are_told_apart(tmp_path: Path) -> None:
    """The hash is a checksum of 32 bits: of a hundred thousand ids some share it, here as in production."""
    ids = [f"{number * 2654435761 % 2**32:08x}" for number in range(200_000)]
    same: dict[int, list[str]] = {}
    for each in ids:
        same.setdefault(zlib.crc32(each.encode()), []).append(each)
    both = [name for names in same.values() if len(names) > 1 for name in names]
    assert both
    rows = {name: at for at, name in enumerate(ids)}
    IdIndex.write(tmp_path, pa.array(ids))
    index = IdIndex.open(tmp_path)
    assert [index.position(name) for name in both] == [rows[name] for name in both]
    assert index.positions(ids) == list(range(len(ids)))


def test_slices_and_chunks_are_what_they_show(tmp_path: Path) -> None:
    """Arrow arrays share buffers; an index of a slice must not see what lies before it."""
    whole = pa.array(["x", "y", "z", "w"])
    IdIndex.write(tmp_path / "a", whole.cast(pa.large_string())[1:3])
    IdIndex.write(tmp_path / "b", pa.chunked_array([whole[3:], whole[:1]]))
    assert IdIndex.open(tmp_path / "a").positions(["x", "y", "z", "w"]) == [NO_POSITION, 0, 1, NO_POSITION]
    assert IdIndex.open(tmp_path / "b").positions(["x", "y", "z", "w"]) == [1, NO_POSITION, NO_POSITION, 0]


def test_a_position_that_is_none_is_refused(tmp_path: Path) -> None:
    """Minus one means "unknown": as a position it would name the last user."""
    IdIndex.write(tmp_path, pa.array(["a", "b"]))
    index = IdIndex.open(tmp_path)
    for position in (NO_POSITION, 2):
        with pytest.raises(IndexError):
            index.name(position)


def test_equal_ids_give_equal_files(tmp_path: Path) -> None:
    """Whoever packs a run packs the same bytes, so that packs can be told apart by their hashes."""
    ids = pa.array([f"u{number}" for number in range(1_000)])
    first, second = (IdIndex.write(tmp_path / name, ids) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert sorted(first) == sorted((tmp_path / "a").iterdir())


def test_a_file_that_is_cut_off_is_not_opened(tmp_path: Path) -> None:
    """A copy that broke off must not answer with half of the ids."""
    paths = IdIndex.write(tmp_path, pa.array([f"u{number}" for number in range(1_000)]))
    for path in paths:
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        with pytest.raises(ValueError, match="mmap length"):
            IdIndex.open(tmp_path)
        path.write_bytes(whole)


@given(
    places=st.dictionaries(texts, st.integers(-1, 9), max_size=30),
    names=st.lists(asked, max_size=10),
    repeats=st.sampled_from([1, 40]),
)
@settings(max_examples=50, deadline=None)
def test_places_are_read_as_the_batch_reads_them(places: dict[str, int], names: list[str], repeats: int) -> None:
    """The same place in another row would be another place to the model."""
    ids, rows = pa.array(list(places), pa.string()), np.array(list(places.values()), np.int32)
    wanted = [name for name in (list(places) + names) * repeats if name.isprintable()]
    with TemporaryDirectory() as folder:
        written = PlaceIndex.write(Path(folder), ids, rows)
        index = PlaceIndex.open(Path(folder))
        assert sorted(written) == sorted(Path(folder).iterdir()) and len(index) == len(places)
        assert index.of(wanted) == PlaceRows(ids, rows).of(pa.array(wanted, pa.string())).tolist()
        assert index.of(["\ud800"]) == [NO_ROW]
