"""PostgreSQL: a table per version and one view, ``result``, over the version that readers see.

All of a load is one transaction, so whatever ends it leaves nothing behind. ``COPY FREEZE`` makes its rows visible to
snapshots that are older than it too: a reader in a long transaction finds the new table full, not empty. Replacing the
view keeps its grants, and other views on it. Which versions there are is the view's comment, and changes with it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any, Final

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from tastetwin.delivery.targets.base import Version, bad_address, failed
from tastetwin.delivery.targets.encode import escaped, json_lists
from tastetwin.errors import MissingExtra
from tastetwin.masks import masked
from tastetwin.schema import RESULT

try:
    import psycopg
    from psycopg import errors, sql
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.copy import QueuedLibpqWriter
    from psycopg.types.json import set_json_loads
except ImportError as error:
    raise MissingExtra.of("psycopg", "postgresql") from error

LOCK_WAIT_MS: Final = 200
"""How long readers who come now may have to wait behind a swap that waits for readers who were there before."""
SWAP_TRIES: Final = 300
"""A second apart."""

_COLUMNS: Final = ("idno", "logical_date", "favors", "places", "home_region", "twins")
_TYPES: Final = 'idno text COLLATE "C", logical_date date, favors int, places int, home_region text, twins jsonb'
_LISTED: Final = "SELECT FROM jsonb_array_elements(twins) AS twin WHERE twin->>'twin_idno' = ANY(%(users)s)"


@contextmanager
def open_postgresql(address: str, table: str) -> Iterator[PostgreSQL]:
    """The database, in one transaction that ends with this context; see ``base.open_target``."""
    with _connect(address) as connection, _coded_errors(place := masked(address)), connection.transaction():
        for name in ("statement_timeout", "idle_in_transaction_session_timeout"):  # a load takes minutes
            connection.execute(f"SET LOCAL {name} = 0")
        schema, _, name = table.rpartition(".")
        if not schema:
            (schema,) = connection.execute("SELECT current_schema()").fetchone() or ("",)
        target = PostgreSQL(connection, place, schema or "public", name)
        target.lock()
        yield target


def _connect(address: str) -> psycopg.Connection[Any]:
    try:
        given = conninfo_to_dict(address)
    except psycopg.ProgrammingError:
        raise bad_address("not understood by libpq") from None
    defaults: dict[str, Any] = {"connect_timeout": 10, "application_name": "tastetwin"}
    settings = {name: value for name, value in defaults.items() if name not in given}
    try:
        return psycopg.connect(address, client_encoding="utf8", autocommit=True, **settings)
    except psycopg.Error as error:
        # The server's word is about user and database; what libpq itself says may quote any piece of the address.
        said = str(error).partition("FATAL:")[2].strip().split("\n")[0] or "no server answered"
        raise failed("DATABASE-UNREACHABLE", masked(address), said) from None


class PostgreSQL:
    """``base.Target``; ``SELECT * FROM result WHERE idno = '42'`` asks it."""

    def __init__(self, connection: psycopg.Connection[Any], place: str, schema: str, view: str) -> None:
        self._connection, self._schema, self._view = connection, schema, view
        set_json_loads(partial(json.loads, parse_int=float), connection)  # jsonb writes 3.4e38 out in digits
        self.place = f"{place}, {schema}.{view}"

    def lock(self) -> None:
        """Hold off other loads of this view until the transaction ends."""
        key = f"tastetwin {self._schema}.{self._view}"
        (mine,) = self._one("SELECT pg_try_advisory_xact_lock(hashtextextended(%(key)s, 0))", key=key)
        if not mine:
            raise failed("DATABASE-BUSY", self.place, "another load is under way")

    def versions(self) -> list[Version]:
        """From the view's comment."""
        name = self._name().as_string(self._connection)
        (there, said) = self._one(
            "SELECT to_regclass(%(name)s) IS NOT NULL, obj_description(to_regclass(%(name)s), 'pg_class')", name=name
        )
        if not there:
            return []
        try:
            return [Version(**each) for each in orjson.loads(said or "")["tastetwin"]]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise failed("DATABASE-OTHER", self.place, f"{name} has no comment of ours") from None

    def load(self, version: Version, batches: Iterable[pa.Table]) -> int:
        """COPY, primary key, statistics, count."""
        table = self._name(version)
        self._do("DROP TABLE IF EXISTS {}", table)
        self._do("CREATE TABLE {} (" + _TYPES + ")", table)
        cursor = self._connection.cursor()
        statement = sql.SQL("COPY {} FROM STDIN (FREEZE)").format(table)
        with cursor.copy(statement, writer=QueuedLibpqWriter(cursor)) as copy:
            for batch in batches:
                copy.write(copy_lines(batch))
        self._do("ALTER TABLE {} ADD PRIMARY KEY (idno)", table)
        # Not the lists: nobody asks for rows by them, and reading those of a sample takes seconds.
        self._do("ANALYZE {} (idno, logical_date, favors, places, home_region)", table)
        (rows,) = self._one("SELECT count(*) FROM {}", table)
        return int(rows)

    def read(self, version: Version, users: Sequence[str]) -> pa.Table:
        """As the columns say."""
        query = sql.SQL(
            "SELECT idno, to_char(logical_date, 'YYYY-MM-DD'), favors, places, home_region, twins FROM {}"
            " WHERE idno = ANY(%(users)s)"
        ).format(self._name(version))
        found = self._connection.execute(query, {"users": list(users)})
        rows = [{"idno": idno, "payload": dict(zip(_COLUMNS[1:], rest, strict=True))} for idno, *rest in found]
        return pa.Table.from_pylist(rows, RESULT)

    def people(self, version: Version) -> Iterator[str]:
        """One scan of the table, told a few at a time."""
        query = "SELECT idno FROM {0} UNION SELECT twin->>'twin_idno' FROM {0}, jsonb_array_elements(twins) AS twin"
        with self._connection.cursor(name="people") as cursor:
            cursor.execute(sql.SQL(query).format(self._name(version)))
            for (user,) in cursor:
                yield user

    def erase(self, version: Version, users: Sequence[str]) -> None:
        """Two scans of the table; dead rows stay on the server's disk until its next vacuum."""
        table, named = self._name(version), list(users)
        self._do("DELETE FROM {} WHERE idno = ANY(%(users)s)", table, users=named)
        others = (
            "SELECT coalesce(jsonb_agg(twin ORDER BY rank), '[]') FROM jsonb_array_elements(twins)"
            " WITH ORDINALITY AS listed (twin, rank) WHERE twin->>'twin_idno' <> ALL(%(users)s)"
        )
        self._do("UPDATE {} SET twins = (" + others + ") WHERE EXISTS (" + _LISTED + ")", table, users=named)  # nosec B608  # parts of ours; names are quoted, values bound

    def show(self, versions: Sequence[Version]) -> None:
        """Replace the view; waits for readers who hold it, a moment at a time, so that no others pile up behind."""
        gone = [version for version in self.versions() if version.name not in {kept.name for kept in versions}]
        self._do(f"SET LOCAL lock_timeout = {LOCK_WAIT_MS}")
        for _ in range(SWAP_TRIES):
            try:
                with self._connection.transaction():
                    return self._show(versions, gone)
            except errors.LockNotAvailable:
                time.sleep(1)
        raise failed("DATABASE-BUSY", self.place, "readers hold it in transactions that do not end")

    def _show(self, versions: Sequence[Version], gone: Sequence[Version]) -> None:
        columns = sql.SQL(", ").join(map(sql.Identifier, _COLUMNS))
        self._do("CREATE OR REPLACE VIEW {} AS SELECT {} FROM {}", self._name(), columns, self._name(versions[0]))
        said = orjson.dumps({"tastetwin": [asdict(version) for version in versions]}).decode()
        self._do("COMMENT ON VIEW {} IS {}", self._name(), sql.Literal(said))
        for version in gone:
            self._do("DROP TABLE {}", self._name(version))

    def _name(self, version: Version | None = None) -> sql.Identifier:
        return sql.Identifier(self._schema, f"{self._view}_{version.name}" if version else self._view)

    def _do(self, statement: str, *parts: sql.Composable, **values: Any) -> None:
        self._connection.execute(sql.SQL(statement).format(*parts), values or None)

    def _one(self, query: str, *parts: sql.Composable, **values: Any) -> Any:
        return self._connection.execute(sql.SQL(query).format(*parts), values or None).fetchone()


def copy_lines(rows: pa.Table) -> memoryview:
    """Rows of ``schema.RESULT`` in PostgreSQL's text format for COPY; ids hold no control characters.

    A few hundred rows at a time fit the processor's caches, and are encoded three times as fast as a few thousand.
    """
    payload = rows.column("payload").combine_chunks()
    twins = json_lists(payload.field("twins"))
    columns = [escaped(rows.column("idno").combine_chunks()), *(payload.field(name) for name in _COLUMNS[1:-1])]
    text = [column.cast(pa.string()) for column in columns]
    joined = pc.binary_join_element_wise(*text, escaped(twins), "\t", null_handling="replace", null_replacement=r"\N")
    lines = pc.binary_join_element_wise(joined, "", "\n")
    _, offsets, data = lines.buffers()
    ends = np.frombuffer(offsets, np.int32, len(lines) + 1, lines.offset * 4)
    return memoryview(data)[ends[0] : ends[-1]]


@contextmanager
def _coded_errors(place: str) -> Iterator[None]:
    try:
        yield
    except errors.DiskFull as error:
        raise failed("DATABASE-FULL", place, _said(error)) from error
    except psycopg.OperationalError as error:
        if error.sqlstate and error.sqlstate[:2] not in ("08", "57"):
            raise failed("DATABASE-REFUSED", place, _said(error)) from error
        raise failed("DATABASE-BROKEN-OFF", place, _said(error)) from error
    except psycopg.Error as error:
        raise failed("DATABASE-REFUSED", place, _said(error)) from error


def _said(error: psycopg.Error) -> str:
    return error.diag.message_primary or type(error).__name__
