"""Files for others: twins, vectors or the report of the published run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from tastetwin.analysis.rows import ranked_anew
from tastetwin.analysis.stored import read_vectors_table
from tastetwin.errors import InputError, UsageError
from tastetwin.evaluation.report import without_users
from tastetwin.evaluation.reports import report_path
from tastetwin.generations import read_manifest
from tastetwin.privacy.opt_out import read_opt_outs
from tastetwin.runs import published_run
from tastetwin.schema import TWINS, USER, VECTORS
from tastetwin.store import Store
from tastetwin.tables import PARQUET, read_files

SUFFIXES: Final = {"twins": (".parquet", ".csv"), "vectors": (".parquet",), "report": (".html",)}


def export_published(store: Store, what: str, to: Path) -> int:
    """Write a published table (.parquet, .csv for twins) or the report (.html); returns rows, or the report's bytes.

    The file appears whole or not at all.

    Raises:
        UsageError: NOT-PUBLISHED; EXPORT-FORMAT for a suffix that cannot hold it.
        InputError: EXPORT-UNWRITABLE when the folder cannot be written.
    """
    _check(what, to)
    run = published_run(store)
    with whole(to) as aside:
        if what == "report":
            page = store.read_bytes(report_path(run.run_id)).decode()
            return aside.write_bytes(without_users(page, read_opt_outs(store)).encode())
        paths = read_manifest(store, "analyze", run.generation("analyze")).paths(what)
        opt_outs = read_opt_outs(store)
        if what == "vectors":
            shown = (opt_outs.without(read_vectors_table(store, [path]), USER) for path in paths)
            return _copy(shown, VECTORS, aside, to.suffix)
        shown = (opt_outs.without(read_files(store, [path], TWINS), USER, "twin_idno") for path in paths)
        return _copy(map(ranked_anew, shown), TWINS, aside, to.suffix)


def write_parquet(table: pa.Table, to: Path) -> None:
    """Write one table; the file appears whole or not at all.

    Raises:
        UsageError: EXPORT-FORMAT when it is not called ``.parquet``.
        InputError: EXPORT-UNWRITABLE when the folder cannot be written.
    """
    _check("vectors", to)
    with whole(to) as aside:
        pq.write_table(table, aside, **PARQUET)


@contextmanager
def whole(to: Path) -> Iterator[Path]:
    """A path to write to; what was written becomes ``to`` if all went well.

    Raises:
        InputError: EXPORT-UNWRITABLE.
    """
    aside = to.with_name(f".{to.name}.tmp")
    try:
        yield aside
        aside.replace(to)
    except OSError as error:
        raise InputError(
            "EXPORT-UNWRITABLE",
            place=str(to),
            value=error.strerror or str(error),
            rule="a file in a folder that exists, may be written to and has room",
            fix=f"make the folder (mkdir -p {to.parent}), or name another file",
        ) from error
    finally:
        with suppress(OSError):  # a path that cannot be written cannot be removed either, and that is told already
            aside.unlink()


def _check(what: str, to: Path) -> None:
    if what not in SUFFIXES:
        raise UsageError(
            "EXPORT-WHAT", place="export", value=what, rule=f"one of {', '.join(SUFFIXES)}", fix="name one"
        )
    if to.parts and len(to.parts[0]) > 2 and to.parts[0].endswith(":"):
        fix = "write it to a file and copy that"
        raise UsageError("EXPORT-FORMAT", place=str(to), value="a URL", rule="a file on this machine", fix=fix)
    if to.suffix not in SUFFIXES[what]:
        rule = f"{what} go to {' or '.join(SUFFIXES[what])}"
        raise UsageError("EXPORT-FORMAT", place=str(to), value=to.suffix or "no suffix", rule=rule, fix="see --to")


def _copy(tables: Iterable[pa.Table], schema: pa.Schema, to: Path, suffix: str) -> int:
    """Bucket by bucket, so that memory does not grow with the table."""
    rows = 0
    with _writer(to, schema, suffix) as writer:
        for table in tables:
            writer.write_table(table)
            rows += table.num_rows
    return rows


def _writer(to: Path, schema: pa.Schema, suffix: str) -> Any:
    return pacsv.CSVWriter(to, schema) if suffix == ".csv" else pq.ParquetWriter(to, schema, **PARQUET)
