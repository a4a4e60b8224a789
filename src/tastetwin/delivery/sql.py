"""The planner's SQL: DuckDB views over everything published."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, Final

import duckdb
import orjson
import pyarrow as pa
import pyarrow.dataset as pads

from tastetwin.analysis.standing import EXPOSURE
from tastetwin.delivery.views import FAVORS_SQL, READY, run_views
from tastetwin.errors import UsageError
from tastetwin.features.user_favor import USER_FAVOR
from tastetwin.generations import Manifest, Stage, read_manifest
from tastetwin.privacy.opt_out import NAME_LENGTH, read_opt_outs
from tastetwin.runs import published_run
from tastetwin.schema import PLACES, QUARANTINE, RESULT, TWINS, USER
from tastetwin.store import Store

VIEWS: Final[dict[str, tuple[Stage, pa.Schema]]] = {
    "result": ("deliver", RESULT),
    "twins": ("analyze", TWINS),
    "exposure": ("analyze", EXPOSURE),
    "user_favor": ("features", USER_FAVOR),
    "place": ("features", PLACES),
    "quarantine": ("mart", QUARANTINE),
}
"""View -> the stage that makes the table; the ready views come besides."""


def connect(store: Store) -> duckdb.DuckDBPyConnection:
    """A DuckDB session with a view per published table; it can reach nothing else, neither in the store nor outside.

    Raises:
        UsageError: NOT-PUBLISHED when nothing is published yet.
    """
    run = published_run(store)
    opt_outs = read_opt_outs(store)
    session = duckdb.connect(config={"autoinstall_known_extensions": False, "autoload_known_extensions": False})
    names = pa.table({"name": pa.array(sorted(opt_outs.names), pa.string())})
    # In a schema that SHOW TABLES does not list: hashes of ids are nothing to browse.
    session.execute("CREATE SCHEMA privacy")
    session.from_arrow(names).create("privacy.opted_out")
    for view, (stage, schema) in VIEWS.items():
        table = _published(store, read_manifest(store, stage, run.generation(stage)), view, schema)
        if opt_outs.names and view in _WITHOUT:
            _WITHOUT[view](session, session.from_arrow(table)).create_view(view)
        else:
            session.register(view, table)
    for view, rows in run_views(store).items():
        session.register(view, rows)
    session.execute(f"CREATE TEMP VIEW favors AS {FAVORS_SQL}")
    # Arrow reads the files, so DuckDB needs none: what it may read it may also write, with a COPY inside a WITH.
    session.execute("SET enable_external_access = false")
    session.execute("SET lock_configuration = true")
    return session


def _shown(*columns: str) -> Shown:
    """Only rows in whose columns of user ids nobody has opted out."""
    words = " AND ".join(f"{_NAME.format(column)} NOT IN (SELECT name FROM privacy.opted_out)" for column in columns)  # nosec B608  # columns of ours
    return lambda session, table: table.filter(words)


def _shown_twins(session: duckdb.DuckDBPyConnection, table: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """Only lists and twins of users who have not opted out, without a gap in the ranks."""
    anew = f"row_number() OVER (PARTITION BY {USER} ORDER BY rank)::INTEGER AS rank"
    return _shown(USER, "twin_idno")(session, table).project(f"* REPLACE ({anew})")


def _shown_results(session: duckdb.DuckDBPyConnection, table: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """Only results, and in them twins, of users who have not opted out."""
    gone = session.sql("SELECT list(name) AS gone FROM privacy.opted_out").set_alias("everybody_gone")
    twin = f"lambda twin: NOT list_contains(gone, {_NAME.format('twin.twin_idno')})"
    payload = f"struct_update(payload, twins := list_filter(payload.twins, {twin})) AS payload"
    return _shown("idno")(session, table).set_alias("results").join(gone, "true").project(f"idno, {payload}")


Shown = Callable[[duckdb.DuckDBPyConnection, duckdb.DuckDBPyRelation], duckdb.DuckDBPyRelation]
_NAME: Final = f"left(sha256({{}}), {NAME_LENGTH})"
_WITHOUT: Final[dict[str, Shown]] = {
    "result": _shown_results,
    "twins": _shown_twins,
    "exposure": _shown(USER, f"coalesce(instead_idno, {USER})"),
    "user_favor": _shown(USER),
}
"""What is left of the views that speak of users. Their tables have no name of their own in the session."""


def query(store: Store, sql: str) -> pa.Table:
    """The result of one SQL query over the views.

    Raises:
        UsageError: SQL with DuckDB's message when the query fails or is none; NOT-PUBLISHED.
    """
    session = connect(store)
    try:
        statements = session.extract_statements(sql)
        if not statements or any(each.type != duckdb.StatementType.SELECT for each in statements):
            raise duckdb.NotSupportedError("only SELECT, FROM, WITH, DESCRIBE, SHOW and SUMMARIZE are answered")
        return session.sql(sql).to_arrow_table()
    except duckdb.Error as error:
        raise UsageError(
            "SQL",
            place=sql,
            value=str(error),
            rule=f"views: {', '.join([*VIEWS, *READY])}",
            fix="correct the statement",
        ) from error


def json_lines(table: pa.Table) -> Iterator[bytes]:
    """One JSON object a row; times as ISO 8601."""
    for batch in table.to_batches(max_chunksize=4096):
        for row in batch.to_pylist():
            yield orjson.dumps(row, default=_plain, option=orjson.OPT_NON_STR_KEYS)


def _plain(value: Any) -> Any:
    """DuckDB's sums of integers are decimals of 128 bits: numbers all the same."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() and abs(value) < 1 << 63 else float(value)
    return value.hex() if isinstance(value, bytes) else str(value)


def _published(store: Store, manifest: Manifest, table: str, schema: pa.Schema) -> pa.Table | pads.Dataset:
    paths = [store.path(path) for path in manifest.paths(table)]
    if not paths:
        return schema.empty_table()
    return pads.dataset(paths, schema=schema, format="parquet", filesystem=store.arrow)
