"""A MongoDB server's side of what the loader asks: writes, views and a lock, on top of the peer for reading."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.sources.mongo_peer import Document
from tests.sources.mongo_peer import Peer as ReadingPeer

Collections = dict[str, dict[str, Document]]
OK: Document = {"ok": 1.0}


class Peer(ReadingPeer):
    """``held``: collection -> ``_id`` -> document; ``views``: view -> collection."""

    def __init__(self) -> None:
        super().__init__({})
        self.held: Collections = {}
        self.views: dict[str, str] = {}
        self.strike: Callable[[Document], Document | None] = lambda command: None
        """Asked before each command: another reply than the true one; ``{}`` cuts the connection."""

    def answer(self, command: Document) -> Document | None:
        """The reply to a command; None cuts the connection."""
        name = next(iter(command))
        if name.lower() in ("ismaster", "hello", "ping", "endsessions"):
            return super().answer(command)
        self.asked.append(command)
        struck = self.strike(command)
        if struck is not None:
            return struck or None
        reply: Document = getattr(self, f"_{name}")(command)
        return OK | reply

    def _insert(self, command: Document) -> Document:
        rows = self.held.setdefault(command["insert"], {})
        errors = []
        for at, document in enumerate(command["documents"]):
            if document["_id"] in rows:
                errors.append({"index": at, "code": 11000, "errmsg": "duplicate key"})
            rows.setdefault(document["_id"], document)
        n = len(command["documents"]) - len(errors)
        return {"n": n, "writeErrors": errors} if errors else {"n": n}

    def _update(self, command: Document) -> Document:
        rows = self.held.setdefault(command["update"], {})
        n = 0
        for each in command["updates"]:
            found = [identity for identity, row in rows.items() if matches(row, each["q"])]
            if each.get("upsert") and not found:
                rows[each["q"]["_id"]] = each["u"]
            for identity in found:
                rows[identity] = updated(rows[identity], each["u"])
            n += max(len(found), bool(each.get("upsert")))
        return {"n": n, "nModified": n}

    def _delete(self, command: Document) -> Document:
        rows = self.held.get(command["delete"], {})
        gone = [identity for each in command["deletes"] for identity in rows if matches(rows[identity], each["q"])]
        for identity in gone:
            del rows[identity]
        return {"n": len(gone)}

    def _find(self, command: Document) -> Document:
        name: str = command["find"]
        rows = self.held.get(self.views.get(name, name), {})
        found = [row for row in rows.values() if matches(row, command["filter"])]
        return self._batch(command["find"], command, found, "firstBatch")

    def _getMore(self, command: Document) -> Document:  # noqa: N802
        return self._batch(command["collection"], command, self._cursors.pop(command["getMore"]), "nextBatch")

    def _aggregate(self, command: Document) -> Document:
        assert [next(iter(stage)) for stage in command["pipeline"]] == ["$match", "$group"], "count_documents"
        n = len(self.held.get(command["aggregate"], {}))
        rows = [{"_id": 1, "n": n}] if n else []
        return self._batch(command["aggregate"], {"batchSize": 1, "$db": command["$db"]}, rows, "firstBatch")

    def _listCollections(self, command: Document) -> Document:  # noqa: N802
        rows: list[Document] = [{"name": name, "type": "collection", "options": {}} for name in self.held]
        rows += [{"name": view, "type": "view", "options": {"viewOn": on}} for view, on in self.views.items()]
        found = [row for row in rows if matches(row, command.get("filter", {}))]
        return self._batch("$cmd.listCollections", {"batchSize": 101, "$db": command["$db"]}, found, "firstBatch")

    def _create(self, command: Document) -> Document:
        assert command["create"] not in {**self.held, **self.views}
        self.views[command["create"]] = command["viewOn"]
        return {}

    def _collMod(self, command: Document) -> Document:  # noqa: N802
        assert command["collMod"] in self.views
        self.views[command["collMod"]] = command["viewOn"]
        return {}

    def _drop(self, command: Document) -> Document:
        self.held.pop(command["drop"], None)
        return {}


def matches(row: Document, query: Document) -> bool:
    """The queries of the loader: equality and ``$in``, through one list of objects, and ``$expr``."""
    return all(
        evaluate(wanted, row) is True
        if name == "$expr"
        else bool(set(values(row, name)) & set(wanted["$in"] if isinstance(wanted, dict) else [wanted]))
        for name, wanted in query.items()
    )


def values(row: Document, path: str) -> list[Any]:
    head, _, rest = path.partition(".")
    found = row.get(head)
    return [each.get(rest) for each in found] if rest and isinstance(found, list) else [found]


def evaluate(expression: Any, row: Document) -> Any:
    """Aggregation expressions of the lock."""
    if expression == "$$NOW":
        return datetime.now(UTC).replace(tzinfo=None)
    if isinstance(expression, str) and expression.startswith("$"):
        return row.get(expression[1:])
    if not isinstance(expression, dict):
        return expression
    ((operator, arguments),) = expression.items()
    found = [evaluate(each, row) for each in arguments]
    if operator == "$add":
        return found[0] + timedelta(milliseconds=found[1])
    return any(found) if operator == "$or" else found[0] == found[1] if operator == "$eq" else found[0] < found[1]


def updated(row: Document, change: Any) -> Document:
    """A pipeline of one ``$set``, a ``$pull`` from a list of objects, or a replacement."""
    if isinstance(change, list):
        return row | {name: evaluate(value, row) for name, value in change[0]["$set"].items()}
    if "$pull" in change:
        ((name, query),) = change["$pull"].items()
        return row | {name: [each for each in row[name] if not matches(each, query)]}
    return dict(change)
