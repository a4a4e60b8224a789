"""A MongoDB server's side of the wire protocol, in process: enough of it for reading collections.

Speaks OP_MSG (and the OP_QUERY of the first handshake) as https://www.mongodb.com/docs/manual/reference/mongodb-wire-protocol/
describes them: hello, ping, listCollections, count, find (sort by _id, min, batchSize), getMore, killCursors,
endSessions. Documents are served in the order given, which must be that of their _id.
"""

from __future__ import annotations

import itertools
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import bson

Document = dict[str, Any]
_HEADER = struct.Struct("<iiii")
_OP_REPLY, _OP_QUERY, _OP_MSG = 1, 2004, 2013


class Peer:
    """What the server holds, what it was asked, and how it misbehaves."""

    def __init__(self, collections: dict[str, list[Document]]) -> None:
        self.collections = collections
        self.asked: list[Document] = []
        """Every command but the handshakes and pings, in order."""
        self.drop_at_get_more: int | None = None
        """The connection is cut at this getMore (1 = the first)."""
        self.refuse: tuple[int, str] | None = None
        """Error code and name given to every command but the handshake."""
        self.uri = ""
        self._cursors: dict[int, list[Document]] = {}
        self._ids = itertools.count(1)
        self._get_mores = 0

    def answer(self, command: Document) -> Document | None:
        """The reply to a command; None cuts the connection."""
        name = next(iter(command))
        if name.lower() in ("ismaster", "hello"):
            return _HELLO
        if name in ("ping", "endSessions"):
            return {"ok": 1.0}
        self.asked.append(command)
        if self.refuse:
            return {"ok": 0.0, "code": self.refuse[0], "codeName": self.refuse[1], "errmsg": "no"}
        replies: dict[str, Callable[[Document], Document | None]] = {
            "listCollections": self._list,
            "count": lambda c: {"n": len(self.collections.get(c["count"], [])), "ok": 1.0},
            "find": self._find,
            "getMore": self._get_more,
            "killCursors": lambda c: {"cursorsKilled": c["cursors"], "ok": 1.0},
        }
        return replies[name](command)

    def finds(self) -> list[Document]:
        """The find commands so far."""
        return [command for command in self.asked if "find" in command]

    def _list(self, command: Document) -> Document:
        rows = [{"name": name, "type": "collection"} for name in self.collections]
        return {"cursor": {"id": 0, "ns": f"{command['$db']}.$cmd.listCollections", "firstBatch": rows}, "ok": 1.0}

    def _find(self, command: Document) -> Document:
        assert command["sort"] == {"_id": 1}
        assert command["filter"] == {}
        documents = self.collections[command["find"]]
        if "min" in command:
            assert command["hint"] == {"_id": 1}, "a server refuses min without hint"
            ids = [document["_id"] for document in documents]
            documents = documents[ids.index(command["min"]["_id"]) :]
        return self._batch(command["find"], command, list(documents), "firstBatch")

    def _get_more(self, command: Document) -> Document | None:
        self._get_mores += 1
        if self._get_mores == self.drop_at_get_more:
            return None
        return self._batch(command["collection"], command, self._cursors.pop(command["getMore"]), "nextBatch")

    def _batch(self, collection: str, command: Document, rest: list[Document], key: str) -> Document:
        size, cursor = command.get("batchSize", 101), 0
        if len(rest) > size:
            cursor = next(self._ids)
            self._cursors[cursor] = rest[size:]
        return {"cursor": {"id": bson.Int64(cursor), "ns": f"town.{collection}", key: rest[:size]}, "ok": 1.0}


_HELLO = {
    "ismaster": True,
    "isWritablePrimary": True,
    "helloOk": True,
    "maxBsonObjectSize": 16 << 20,
    "maxMessageSizeBytes": 48_000_000,
    "maxWriteBatchSize": 100_000,
    "logicalSessionTimeoutMinutes": 30,
    "minWireVersion": 0,
    "maxWireVersion": 21,
    "ok": 1.0,
}


@contextmanager
def serving(peer: Peer) -> Iterator[Peer]:
    """Listen on a free port of the loopback interface; the peer's ``uri`` says where."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while header := self.rfile.read(_HEADER.size):
                length, request, _, operation = _HEADER.unpack(header)
                body = self.rfile.read(length - _HEADER.size)
                reply = peer.answer(_command(operation, body))
                if reply is None:
                    return
                self.wfile.write(_message(operation, request, reply))

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        peer.uri = f"mongodb://127.0.0.1:{server.server_address[1]}/town"
        try:
            yield peer
        finally:
            server.shutdown()


def _command(operation: int, body: bytes) -> Document:
    if operation == _OP_QUERY:
        start = body.index(b"\0", 4) + 1 + 8
    else:
        assert operation == _OP_MSG
        assert body[4] == 0, "the body section comes first"
        start = 5
    (length,) = struct.unpack_from("<i", body, start)
    command: Document = bson.decode(body[start : start + length])
    start += length
    while operation == _OP_MSG and start < len(body):  # document sequences: the rows of a write
        (length,) = struct.unpack_from("<i", body, start + 1)
        name, _, documents = body[start + 5 : start + 1 + length].partition(b"\0")
        command[name.decode()] = bson.decode_all(documents)
        start += 1 + length
    return command


def _message(operation: int, request: int, reply: Document) -> bytes:
    encoded = bson.encode(reply)
    if operation == _OP_QUERY:
        body, code = struct.pack("<iqii", 8, 0, 0, 1) + encoded, _OP_REPLY
    else:
        body, code = struct.pack("<iB", 0, 0) + encoded, _OP_MSG
    return _HEADER.pack(_HEADER.size + len(body), 1, request, code) + body
