"""MongoDB: a collection per version and one view, ``result``, over the version that readers see.

``collMod`` points the view elsewhere in one step, and so says which version is shown; ``result_versions`` has a
document per complete version. There is no transaction around a load: what a killed one left is dropped by the next. The
lock is a document too, on the server's clock; that of a killed load runs out by itself.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from tastetwin.delivery.targets.base import LOST, Version, bad_address, failed, renewed
from tastetwin.errors import MissingExtra, StoreError
from tastetwin.masks import masked
from tastetwin.schema import RESULT

try:
    import pymongo
    import pymongo.errors
except ImportError as error:
    raise MissingExtra.of("pymongo", "mongodb") from error

if TYPE_CHECKING:
    from pymongo.collection import Collection
    from pymongo.database import Database

Document = dict[str, Any]

LEASE_MS: Final = 600_000
"""How long a killed load keeps others out; a living one renews its lock."""
USERS_AT_ONCE: Final = 10_000
"""Of a list of users in one command, which may have 16 MB."""
OPTIONS: Final[Document] = {"appName": "tastetwin", "serverSelectionTimeoutMS": 10_000, "connectTimeoutMS": 10_000}
"""Unless the address says otherwise."""

_LOCK: Final = "lock"
_VERSION: Final = r"_\d{4}_\d\d_\d\d_\d+_[0-9a-f]{12}"
_NO_ROOM: Final = 14031


@contextmanager
def open_mongodb(address: str, view: str) -> Iterator[MongoDB]:
    """The database that the address names; see ``base.open_target``."""
    place = f"{masked(address)}, {view}"
    given = address.partition("?")[2].lower()
    options = {name: value for name, value in OPTIONS.items() if f"{name.lower()}=" not in given}
    try:
        client: pymongo.MongoClient[Document] = pymongo.MongoClient(address, **options)
        database = client.get_default_database()
    except (pymongo.errors.PyMongoError, ValueError, TypeError):
        raise bad_address("not understood by pymongo (a user without a password?), or without a database") from None
    with client, _coded_errors(place):
        target = MongoDB(database.with_options(write_concern=pymongo.WriteConcern("majority")), place, view)
        target.lock()
        try:
            with renewed(target.renew):
                yield target
        finally:
            target.unlock()


class MongoDB:
    """``base.Target``; ``db.result.findOne({_id: "42"})`` asks it."""

    def __init__(self, database: Database[Document], place: str, view: str) -> None:
        self._database, self._view, self.place = database, view, place
        self._notes = database[f"{view}_versions"]
        self._owner = uuid.uuid4().hex

    def lock(self) -> None:
        """Hold off other loads of this view, from now for ``LEASE_MS``.

        Raises:
            StoreError: DATABASE-BUSY when another load has the lock.
        """
        with suppress(pymongo.errors.DuplicateKeyError):
            self._notes.insert_one({"_id": _LOCK, "until": datetime.fromtimestamp(0, UTC)})
        if not self._hold({"$expr": {"$lt": ["$until", "$$NOW"]}}):
            raise failed("DATABASE-BUSY", self.place, "another load is under way, or was killed minutes ago")

    def renew(self) -> None:
        """Hold the lock from now for ``LEASE_MS``; once lost it is not taken again, for others may have been here.

        Raises:
            StoreError: DATABASE-BUSY when it is lost.
        """
        if not self._hold({"owner": self._owner}):
            raise failed("DATABASE-BUSY", self.place, LOST)

    def _hold(self, condition: Document) -> bool:
        mine = [{"$set": {"owner": self._owner, "until": {"$add": ["$$NOW", LEASE_MS]}}}]
        return bool(self._notes.update_one({"_id": _LOCK, **condition}, mine).matched_count)

    def unlock(self) -> None:
        """Let others load; where the server is out of reach, time does it."""
        with suppress(pymongo.errors.PyMongoError):
            self._notes.delete_one({"_id": _LOCK, "owner": self._owner})

    def versions(self) -> list[Version]:
        """By the view, and by when they were last shown."""
        shown = self._shown()
        notes = [note for note in self._notes.find() if note["_id"] == shown or note.get("turn")]
        notes.sort(key=lambda note: (note["_id"] == shown, note["turn"]), reverse=True)
        return [Version(note["run_id"], note["contents"], note["opted_out"]) for note in notes]

    def load(self, version: Version, batches: Iterable[pa.Table]) -> int:
        """Documents of ``_id`` and the payload's fields, acknowledged by a majority."""
        self._drop_all_but(self.versions())
        collection = self._collection(version)
        for batch in batches:
            self.renew()
            rows = [{"_id": row["idno"], **row["payload"]} for row in batch.to_pylist()]
            if rows:
                collection.insert_many(rows, ordered=False)
        self._note(version, 0)
        return collection.count_documents({})

    def read(self, version: Version, users: Sequence[str]) -> pa.Table:
        """As the documents say."""
        found = self._collection(version).find({"_id": {"$in": list(users)}})
        return pa.Table.from_pylist([{"idno": row.pop("_id"), "payload": row} for row in found], RESULT)

    def people(self, version: Version) -> Iterator[str]:
        """One scan of the collection."""
        for row in self._collection(version).find({}, {"twins.twin_idno": 1}):
            yield from (row["_id"], *(twin["twin_idno"] for twin in row["twins"]))

    def erase(self, version: Version, users: Sequence[str]) -> None:
        """Two scans of the collection for every ten thousand users."""
        collection = self._collection(version)
        for start in range(0, len(users), USERS_AT_ONCE):
            self.renew()
            some = {"$in": list(users[start : start + USERS_AT_ONCE])}
            collection.delete_many({"_id": some})
            collection.update_many({"twins.twin_idno": some}, {"$pull": {"twins": {"twin_idno": some}}})

    def show(self, versions: Sequence[Version]) -> None:
        """Point the view at the first; killed after that, the next load tidies up."""
        self.renew()
        name = self._collection(versions[0]).name
        if self._shown() is None:
            self._database.create_collection(self._view, viewOn=name, pipeline=[])
        else:
            self._database.command("collMod", self._view, viewOn=name, pipeline=[], writeConcern={"w": "majority"})
        last = max(note.get("turn", 0) for note in self._notes.find())
        for turn, version in enumerate(reversed(versions), last + 1):
            self._note(version, turn)
        self._drop_all_but(versions)

    def _note(self, version: Version, turn: int) -> None:
        name = self._collection(version).name
        self._notes.replace_one({"_id": name}, {"_id": name, **asdict(version), "turn": turn}, upsert=True)

    def _drop_all_but(self, versions: Sequence[Version]) -> None:
        kept = {self._collection(version).name for version in versions}
        for name in self._database.list_collection_names():
            if re.fullmatch(re.escape(self._view) + _VERSION, name) and name not in kept:
                self._notes.delete_one({"_id": name})
                self._database.drop_collection(name)

    def _shown(self) -> str | None:
        """The collection that readers see; None before the first load."""
        found = list(self._database.list_collections(filter={"name": self._view}))
        shown: str | None = found[0].get("options", {}).get("viewOn", "") if found else None
        if shown is not None and not re.fullmatch(re.escape(self._view) + _VERSION, shown):
            raise failed("DATABASE-OTHER", self.place, f"{self._view} is no view of ours")
        return shown

    def _collection(self, version: Version) -> Collection[Document]:
        return self._database[f"{self._view}_{version.name}"]


@contextmanager
def _coded_errors(place: str) -> Iterator[None]:
    try:
        yield
    except pymongo.errors.ServerSelectionTimeoutError:
        raise failed("DATABASE-UNREACHABLE", place, "no server answered") from None
    except pymongo.errors.OperationFailure as error:
        raise _refusal(place, error) from error
    except pymongo.errors.ConfigurationError as error:
        raise bad_address(type(error).__name__) from None
    except pymongo.errors.PyMongoError as error:
        raise failed("DATABASE-BROKEN-OFF", place, type(error).__name__) from error


def _refusal(place: str, error: pymongo.errors.OperationFailure) -> StoreError:
    details = dict(error.details or {})
    problems = [details, *details.get("writeErrors", []), *details.get("writeConcernErrors", [])]
    codes = [problem["code"] for problem in problems if "code" in problem] or [error.code]
    name = details.get("codeName") or ", ".join(f"code {code}" for code in codes)
    return failed("DATABASE-FULL" if _NO_ROOM in codes else "DATABASE-REFUSED", place, str(name))
