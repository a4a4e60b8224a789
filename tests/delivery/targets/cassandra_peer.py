"""A Cassandra node's side of the native protocol, version 4, in process: enough of CQL for what the loader says.

Frames and values as https://github.com/apache/cassandra/blob/trunk/doc/native_protocol_v4.spec has them: OPTIONS,
STARTUP, REGISTER, QUERY, PREPARE, EXECUTE. Rows lie in dictionaries; a table's first column is its key. Statements that
nobody said before are a failed assertion, not a guess.
"""

from __future__ import annotations

import hashlib
import re
import socketserver
import struct
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

Row = dict[str, Any]
_ERROR, _READY, _SUPPORTED, _RESULT = 0x00, 0x02, 0x06, 0x08
_STARTUP, _OPTIONS, _QUERY, _PREPARE, _EXECUTE, _REGISTER = 0x01, 0x05, 0x07, 0x09, 0x0A, 0x0B
_VOID, _ROWS, _SET_KEYSPACE, _PREPARED, _SCHEMA = 1, 2, 3, 4, 5
_BOOLEAN, _INT, _UUID, _TEXT, _INET = 0x04, 0x09, 0x0C, 0x0D, 0x10
TYPES: Final = {"text": _TEXT, "int": _INT}
KEYSPACE: Final = "town"
_HOST: Final = uuid.UUID(int=7)
LOCAL: Final = {
    "host_id": (_UUID, _HOST.bytes),
    "cluster_name": (_TEXT, b"peer"),
    "data_center": (_TEXT, b"here"),
    "rack": (_TEXT, b"one"),
    "partitioner": (_TEXT, b"Murmur3Partitioner"),
    "release_version": (_TEXT, b"4.1.0"),
    "schema_version": (_UUID, _HOST.bytes),
    "rpc_address": (_INET, bytes([127, 0, 0, 1])),
}


class Refused(Exception):
    """An error that the node answers with: code and message."""


class Peer:
    """``tables``: name -> key -> row; ``columns``: name -> column -> type."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[Any, Row]] = {}
        self.columns: dict[str, dict[str, int]] = {}
        self.said: dict[bytes, str] = {}
        self.strike: Callable[[str], None] = lambda statement: None
        """Called before each statement of the loader's: may raise ``Refused``, or ``ConnectionError`` to cut."""
        self.port = 0
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"cassandra://127.0.0.1:{self.port}/{KEYSPACE}"

    def answer(self, opcode: int, body: bytes) -> tuple[int, bytes]:
        """Opcode and body of the reply."""
        if opcode == _OPTIONS:
            return _SUPPORTED, struct.pack(">H", 2) + _multi("CQL_VERSION", ["3.4.5"]) + _multi("COMPRESSION", [])
        if opcode in (_STARTUP, _REGISTER):
            return _READY, b""
        try:
            with self.lock:
                return _RESULT, self._result(opcode, body)
        except Refused as refused:
            return _ERROR, struct.pack(">i", refused.args[0]) + _string(refused.args[1])

    def _result(self, opcode: int, body: bytes) -> bytes:
        if opcode == _PREPARE:
            return self._prepared(_long_string(body)[0])
        if opcode == _QUERY:
            return self._carried_out(_long_string(body)[0], [])
        assert opcode == _EXECUTE, hex(opcode)
        (length,) = struct.unpack_from(">H", body)
        statement = self.said[body[2 : 2 + length]]
        return self._carried_out(statement, _values(body[2 + length + 2 :]))

    def _prepared(self, statement: str) -> bytes:
        table = _table(statement)
        kinds = self._kinds(table)
        bound = [name for name in _bound_names(statement) if name]
        identity = hashlib.md5(statement.encode()).digest()
        self.said[identity] = statement
        head = struct.pack(">iH", _PREPARED, len(identity)) + identity
        binds = struct.pack(">iii", 1, len(bound), 0) + _string(KEYSPACE) + _string(table)
        binds += b"".join(_string(name) + struct.pack(">H", kinds[name]) for name in bound)
        return head + binds + struct.pack(">ii", 4, 0)  # rows come with their own metadata

    def _kinds(self, table: str) -> dict[str, int]:
        if table == "system_schema.tables":
            return {"keyspace_name": _TEXT, "table_name": _TEXT}
        if table not in self.columns:
            raise Refused(0x2200, f"unconfigured table {table}")
        return self.columns[table]

    def _carried_out(self, statement: str, raw: Sequence[bytes | None]) -> bytes:
        if statement.startswith("USE "):
            return struct.pack(">i", _SET_KEYSPACE) + _string(KEYSPACE)
        if "system.local" in statement:
            wanted = LOCAL if "*" in statement else {name: LOCAL[name] for name in _selected(statement)}
            return _rows([(name, kind) for name, (kind, _) in wanted.items()], [[v for _, v in wanted.values()]])
        if "system.peers" in statement:
            return _rows([("peer", _INET)], [])
        self.strike(statement)
        verb = statement.split()[0].lower()
        reply: bytes = getattr(self, f"_{verb}")(statement, raw)
        return reply

    def _create(self, statement: str, raw: Sequence[bytes | None]) -> bytes:
        found = re.fullmatch(r"CREATE TABLE (IF NOT EXISTS )?(\w+) \((.*)\)", statement)
        assert found, statement
        if found[2] in self.tables:
            if not found[1]:
                raise Refused(0x2400, "already exists")
            return struct.pack(">i", _VOID)
        columns = [each.split() for each in found[3].split(", ")]
        self.columns[found[2]] = {name: TYPES[kind] for name, kind, *_ in columns}
        self.tables[found[2]] = {}
        return self._changed("CREATED", found[2])

    def _drop(self, statement: str, raw: Sequence[bytes | None]) -> bytes:
        found = re.fullmatch(r"DROP TABLE (\w+)", statement)
        assert found, statement
        del self.tables[found[1]], self.columns[found[1]]
        return self._changed("DROPPED", found[1])

    def _changed(self, what: str, table: str) -> bytes:
        return struct.pack(">i", _SCHEMA) + b"".join(map(_string, (what, "TABLE", KEYSPACE, table)))

    def _insert(self, statement: str, raw: Sequence[bytes | None]) -> bytes:
        found = re.fullmatch(
            r"INSERT INTO (\w+) \((.*?)\) VALUES \((.*?)\)( IF NOT EXISTS)?( USING TTL \d+)?", statement
        )
        assert found, statement
        given = iter(raw)
        values = [next(given) if mark == "?" else mark.strip("'").encode() for mark in found[3].split(", ")]
        row = dict(zip(found[2].split(", "), values, strict=True))
        rows = self.tables[found[1]]
        key = next(iter(row.values()))
        if found[4] and key in rows:
            return _applied(False)
        rows[key] = {**rows.get(key, {}), **row}
        return _applied(True) if found[4] else struct.pack(">i", _VOID)

    def _update(self, statement: str, raw: Sequence[bytes | None]) -> bytes:
        found = re.fullmatch(
            r"UPDATE (\w+)(?: USING TTL \d+)? SET (.*?) WHERE (\w+) = (\S+)( IF owner = \?)?", statement
        )
        assert found, statement
        given = list(raw)
        owner = given.pop() if found[5] else None
        key = given.pop() if found[4] == "?" else found[4].strip("'").encode()
        names = [each.split(" = ")[0] for each in found[2].split(", ")]
        rows = self.tables[found[1]]
        if found[5] and rows.get(key, {}).get("owner") != owner:
            return _applied(False)
        rows[key] = {**rows.get(key, {found[3]: key}), **dict(zip(names, given, strict=True))}
        return _applied(True) if found[5] else struct.pack(">i", _VOID)

    def _delete(self, statement: str, raw: Sequence[bytes | None]) -> bytes:
        found = re.fullmatch(r"DELETE FROM (\w+) WHERE (\w+) = (\S+)( IF owner = \?)?", statement)
        assert found, statement
        rows = self.tables[found[1]]
        key = raw[0] if found[3] == "?" else found[3].strip("'").encode()
        if found[4] and rows.get(key, {}).get("owner") != raw[-1]:
            return _applied(False)
        rows.pop(key, None)
        return _applied(True) if found[4] else struct.pack(">i", _VOID)

    def _select(self, statement: str, raw: Sequence[bytes | None]) -> bytes:
        found = re.fullmatch(r"SELECT (.*?) FROM ([\w.]+)(?: WHERE (\w+) = \?)?", statement)
        assert found, statement
        if found[2] == "system_schema.tables":
            return _rows([("table_name", _TEXT)], [[name.encode()] for name in sorted(self.tables)])
        names, kinds = _selected(statement), self._kinds(found[2])
        rows = self.tables[found[2]]
        chosen = [rows[raw[0]]] if found[3] and raw[0] in rows else [] if found[3] else list(rows.values())
        return _rows([(name, kinds[name]) for name in names], [[row.get(name) for name in names] for row in chosen])


def _table(statement: str) -> str:
    found = re.search(r"(?:INTO|FROM|UPDATE) ([\w.]+)", statement)
    assert found, statement
    return found[1]


def _selected(statement: str) -> list[str]:
    return statement[len("SELECT ") : statement.index(" FROM")].split(", ")


def _bound_names(statement: str) -> list[str]:
    """The column of each ``?``, in order."""
    if statement.startswith("INSERT"):
        names, marks = (part.split(", ") for part in re.findall(r"\((.*?)\)", statement))
        return [name for name, mark in zip(names, marks, strict=True) if mark == "?"]
    return re.findall(r"(\w+) = \?", statement)


def _string(text: str) -> bytes:
    return struct.pack(">H", len(text.encode())) + text.encode()


def _multi(name: str, values: Sequence[str]) -> bytes:
    return _string(name) + struct.pack(">H", len(values)) + b"".join(map(_string, values))


def _long_string(body: bytes) -> tuple[str, int]:
    (length,) = struct.unpack_from(">i", body)
    return body[4 : 4 + length].decode(), 4 + length


def _values(body: bytes) -> list[bytes | None]:
    """After consistency: flags, then the values if there are any."""
    if not body[0] & 0x01:
        return []
    (count,), at, found = struct.unpack_from(">H", body, 1), 3, list[bytes | None]()
    for _ in range(count):
        (length,) = struct.unpack_from(">i", body, at)
        at += 4
        found.append(body[at : at + length] if length >= 0 else None)
        at += max(length, 0)
    return found


def _rows(columns: Sequence[tuple[str, int]], rows: Sequence[Sequence[bytes | None]]) -> bytes:
    head = struct.pack(">iii", _ROWS, 1, len(columns)) + _string(KEYSPACE) + _string("t")
    head += b"".join(_string(name) + struct.pack(">H", kind) for name, kind in columns)
    cells = b"".join(struct.pack(">i", -1) if v is None else struct.pack(">i", len(v)) + v for row in rows for v in row)
    return head + struct.pack(">i", len(rows)) + cells


def _applied(done: bool) -> bytes:
    return _rows([("[applied]", _BOOLEAN)], [[bytes([done])]])


@contextmanager
def serving(peer: Peer) -> Iterator[Peer]:
    """Listen on a free port of the loopback interface."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while header := self.rfile.read(9):
                version, _, stream, opcode, length = struct.unpack(">BBhBi", header)
                try:
                    assert version == 4
                    code, body = peer.answer(opcode, self.rfile.read(length))
                except ConnectionError:
                    return
                self.wfile.write(struct.pack(">BBhBi", 0x84, 0, stream, code, len(body)) + body)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        peer.port = server.server_address[1]
        try:
            yield peer
        finally:
            server.shutdown()
