"""Files for others: what is in them, and that nobody ever sees half of one."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from tastetwin import TasteTwin
from tastetwin.analysis.stored import Form, packed
from tastetwin.delivery.export import export_published, write_parquet
from tastetwin.errors import InputError, TasteTwinError, UsageError
from tastetwin.generations import read_manifest
from tastetwin.runs import published_run
from tastetwin.schema import TWINS, VECTORS
from tastetwin.store import Store
from tastetwin.tables import put_table, read_files
from tests import handmade
from tests.world import Journey

OLD: Final = b"yesterday's"


def rows_by_user(table: pa.Table) -> dict[str, list[tuple[str, float, float]]]:
    """User -> list, in the order of the file; users must not be scattered and ranks must count up from 1."""
    found: dict[str, list[tuple[str, float, float]]] = {}
    last = None
    for row in table.to_pylist():
        assert row["user_idno"] == last or row["user_idno"] not in found, "a user's rows lie together"
        last = row["user_idno"]
        found.setdefault(last, []).append((row["twin_idno"], row["score"], row["percentile"]))
        assert row["rank"] == len(found[last])
    return found


@pytest.mark.parametrize("name", ["twins.parquet", "twins.csv"])
def test_twins_are_everybody_s_list_closest_first(shown: Store, tmp_path: Path, name: str) -> None:
    """All buckets, the columns of ``TWINS`` in their order, in both formats the same."""
    to = tmp_path / name
    assert export_published(shown, "twins", to) == 6
    table = pq.read_table(to) if to.suffix == ".parquet" else pacsv.read_csv(to)
    assert table.column_names == TWINS.names
    assert rows_by_user(table) == handmade.LISTS


def test_vectors_are_those_of_every_eligible_user(shown: Store, tmp_path: Path) -> None:
    """hal, whom nobody may be shown to, has one; cid, with one place, has none."""
    assert export_published(shown, "vectors", tmp_path / "v.parquet") == 5
    table = pq.read_table(tmp_path / "v.parquet")
    assert table.column_names == VECTORS.names
    wanted = handmade.vectors().to_pylist()
    assert sorted(table.to_pylist(), key=lambda row: str(row["user_idno"])) == wanted


@pytest.mark.parametrize("form", ["float16", "int8"])
def test_vectors_leave_as_float32_however_they_are_stored(store: Store, tmp_path: Path, form: Form) -> None:
    """Who reads the export need not know the setting; vectors along an axis lose nothing in any form."""
    handmade.publish_by_hand(store)
    for path in handmade.analysis(store).paths("vectors"):
        rows = read_files(store, [path], VECTORS)
        put_table(store, path, packed(rows.column("user_idno"), np.eye(5, dtype=np.float32)[: rows.num_rows], form))
    assert export_published(store, "vectors", tmp_path / "v.parquet") == 5
    table = pq.read_table(tmp_path / "v.parquet")
    assert table.schema.equals(VECTORS) and sum(table.column("vector").to_pylist()[0]) == 1
    assert TasteTwin(store.url("")).vectors().schema == VECTORS


def test_the_report_is_copied_as_it_is(shown: Store, tmp_path: Path) -> None:
    """And its bytes are counted."""
    assert export_published(shown, "report", tmp_path / "r.html") == len(handmade.REPORT)
    assert (tmp_path / "r.html").read_text() == handmade.REPORT


@pytest.mark.parametrize("what", ["twins", "vectors", "report"])
def test_an_export_takes_the_place_of_the_old_file_and_leaves_nothing_else(
    shown: Store, tmp_path: Path, what: str
) -> None:
    """The same command runs every day with the same --to."""
    to = tmp_path / f"x{'.html' if what == 'report' else '.parquet'}"
    to.write_bytes(OLD)
    export_published(shown, what, to)
    assert to.read_bytes() != OLD
    assert [path.name for path in tmp_path.iterdir()] == [to.name]


@pytest.mark.parametrize("name", ["twins.parquet", "twins.csv"])
def test_an_export_that_breaks_off_leaves_the_old_file(store: Store, tmp_path: Path, name: str) -> None:
    """The last bucket cannot be read, so all others are written already when it fails."""
    handmade.publish_by_hand(store)
    manifest = read_manifest(store, "analyze", published_run(store).generation("analyze"))
    store.write_bytes(manifest.paths("twins")[-1], b"no Parquet")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / name).write_bytes(OLD)
    with pytest.raises((pa.ArrowException, TasteTwinError)):
        export_published(store, "twins", folder / name)
    assert (folder / name).read_bytes() == OLD
    assert [path.name for path in folder.iterdir()] == [name]


def test_an_interrupt_leaves_the_old_file(shown: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ctrl-C is no ``Exception``."""

    def interrupted(table: pa.Table, where: Path, **_: object) -> None:
        where.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", interrupted)
    (tmp_path / "v.parquet").write_bytes(OLD)
    with pytest.raises(KeyboardInterrupt):
        write_parquet(handmade.vectors(), tmp_path / "v.parquet")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [OLD]


@pytest.mark.parametrize(
    ("what", "name", "code"),
    [
        ("favors", "x.parquet", "EXPORT-WHAT"),
        ("twins", "x.xlsx", "EXPORT-FORMAT"),
        ("twins", "parquet", "EXPORT-FORMAT"),
        ("vectors", "x.csv", "EXPORT-FORMAT"),
        ("report", "x.pdf", "EXPORT-FORMAT"),
    ],
)
def test_what_cannot_be_exported_so_is_refused_before_anything_is_read(
    store: Store, tmp_path: Path, what: str, name: str, code: str
) -> None:
    """Nothing is published in this store, and that is not what is complained about."""
    with pytest.raises(UsageError) as caught:
        export_published(store, what, tmp_path / name)
    assert caught.value.problem.code == code
    assert not (tmp_path / name).exists()


def test_a_url_to_export_to_is_refused_before_anything_is_read(store: Store) -> None:
    """The store may be on S3, so people try; it ended in a traceback of the Parquet writer."""
    with pytest.raises(UsageError, match=r"EXPORT-FORMAT.*a URL"):
        export_published(store, "twins", Path("s3://bucket/x.parquet"))


def test_a_table_of_one_s_own_goes_to_parquet_only(tmp_path: Path) -> None:
    """What ``embed --to`` writes."""
    write_parquet(handmade.vectors(), tmp_path / "v.parquet")
    assert pq.read_table(tmp_path / "v.parquet").to_pylist() == handmade.vectors().to_pylist()
    with pytest.raises(UsageError, match="EXPORT-FORMAT"):
        write_parquet(handmade.vectors(), tmp_path / "v.csv")


@pytest.mark.parametrize("name", ["absent/t.parquet", "file.txt/t.parquet", "folder.parquet", f"{'long' * 62}.parquet"])
def test_a_path_that_cannot_be_written_is_said_with_a_code(shown: Store, tmp_path: Path, name: str) -> None:
    """No such folder, a file where the folder should be, a folder where the file should be, too long a name."""
    (tmp_path / "file.txt").write_bytes(OLD)
    (tmp_path / "folder.parquet").mkdir()
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(InputError) as caught:
        export_published(shown, "twins", tmp_path / name)
    assert caught.value.problem.code == "EXPORT-UNWRITABLE"
    assert caught.value.problem.place == str(tmp_path / name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_nothing_published_is_said_and_no_file_made(store: Store, tmp_path: Path) -> None:
    """An empty file would be taken for a day without twins."""
    with pytest.raises(UsageError, match="NOT-PUBLISHED"):
        export_published(store, "twins", tmp_path / "t.csv")
    assert not (tmp_path / "t.csv").exists()


@pytest.mark.slow
def test_of_a_real_run_every_eligible_user_is_in_the_files(journey: Journey, tmp_path: Path) -> None:
    """The counts are the run's own."""
    eligible = journey.first.stages["features"].counts["eligible"]
    served = journey.first.stages["analyze"].counts["users_served"]
    assert export_published(journey.store, "vectors", tmp_path / "v.parquet") == eligible
    assert export_published(journey.store, "twins", tmp_path / "t.csv") == served * 100
    assert len(rows_by_user(pacsv.read_csv(tmp_path / "t.csv"))) == served
