"""MongoDB collections ``reviews``, ``likes`` and ``places``, landed as JSON lines in parts.

One document is one line, with the values a JSON reader expects: times as ISO 8601 in UTC, ObjectIds and decimals as
strings, 64-bit integers as integers, anything else BSON knows as MongoDB's relaxed Extended JSON. ``_id`` comes first
in each line, always in that Extended JSON, so that the last line of the last finished part says where to go on: there
is no journal to go stale. A day, once landed, is not read again (unless asked to): a database has no listing whose
being unchanged could be told cheaply. Documents are read in ``_id`` order, not as of one instant.
"""

from __future__ import annotations

import io
import json
import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import orjson
import zstandard

from tastetwin.errors import InputError, MissingExtra
from tastetwin.generations import FileEntry, entry_of
from tastetwin.masks import masked
from tastetwin.privacy.screen import Screen
from tastetwin.progress import Progress
from tastetwin.schema import KINDS, Kind
from tastetwin.store import Store

try:
    import bson
    import bson.errors
    import pymongo
    import pymongo.errors
    from bson import json_util
    from bson.codec_options import CodecOptions, DatetimeConversion
except ImportError as error:
    raise MissingExtra.of("pymongo", "mongodb") from error

if TYPE_CHECKING:
    from pymongo.collection import Collection
    from pymongo.database import Database as Opened

Document = dict[str, Any]

PART_DOCUMENTS: Final = 200_000
BATCH_DOCUMENTS: Final = 5_000
OPTIONS: Final[dict[str, Any]] = {
    "appName": "tastetwin",
    "readPreference": "secondaryPreferred",
    "serverSelectionTimeoutMS": 10_000,
    "connectTimeoutMS": 10_000,
    "socketTimeoutMS": 60_000,
}
"""Unless the address says otherwise."""

# Text that is not UTF-8, and times no calendar has, are the line gate's to refuse one by one; strict decoding would
# end the whole day at the first of them.
_CODEC: Final = CodecOptions[Document](
    tz_aware=True, unicode_decode_error_handler="surrogateescape", datetime_conversion=DatetimeConversion.DATETIME_AUTO
)
_EXTENDED: Final = json_util.JSONOptions(json_mode=json_util.JSONMode.RELAXED, tz_aware=True)


class Database:
    """The collections of one database."""

    def __init__(
        self, uri: str, database: str, *, part_documents: int = PART_DOCUMENTS, batch_documents: int = BATCH_DOCUMENTS
    ) -> None:
        """Read ``database`` unless the address names one; nothing is connected yet."""
        self._uri = uri
        self._part_documents, self._batch_documents = part_documents, batch_documents
        self.name = masked(uri)
        self._database = unquote(self.name.partition("://")[2].partition("/")[2]) or database
        self.ignored: list[str] = []

    @property
    def inputs(self) -> dict[str, Any]:
        """Where, not what: see the module's text."""
        return {"source": self.name, "database": self._database}

    def land(
        self, store: Store, folder: str, progress: Progress, screen: Screen | None = None
    ) -> dict[str, list[FileEntry]]:
        """Write ``<kind>-00000.jsonl.zst``, ... and go on after the last part of an earlier attempt.

        Raises:
            InputError: MONGODB-ADDRESS, MONGODB-UNREACHABLE, MONGODB-BROKEN-OFF, MONGODB-REFUSED, SOURCE-NO-EVENTS.
            StoreError: DISK-FULL, STORE-UNWRITABLE.
        """
        with self._coded_errors(), closing(self._connect()) as client:
            database = client.get_database(self._database, codec_options=_CODEC)
            present = database.list_collection_names(authorizedCollections=True, nameOnly=True)
            self.ignored = sorted(set(present) - set(KINDS))
            kinds = self._kinds(present)
            total = sum(database[kind].estimated_document_count() for kind in kinds)
            tell = _counter(progress, total)
            return {kind: self._land_kind(store, folder, database, kind, tell, screen) for kind in kinds}

    def _connect(self) -> pymongo.MongoClient[Document]:
        given = self._uri.partition("?")[2].lower()
        options = {name: value for name, value in OPTIONS.items() if f"{name.lower()}=" not in given}
        try:
            return pymongo.MongoClient(self._uri, document_class=dict, **options)
        except (pymongo.errors.PyMongoError, ValueError, TypeError) as error:
            # Neither the text nor the chain: the driver quotes pieces of the address, password and all.
            raise InputError(
                "MONGODB-ADDRESS",
                place=self.name,
                value=type(error).__name__,
                rule="mongodb://[user:password@]host[:port][/database][?options], user and password percent-encoded",
                fix="check --source",
            ) from None

    def _kinds(self, present: list[str]) -> list[Kind]:
        kinds = [kind for kind in KINDS if kind in present]
        if not {"reviews", "likes"} & set(kinds):
            raise InputError(
                "SOURCE-NO-EVENTS",
                place=f"{self.name}, database '{self._database}'",
                value="collections: " + (", ".join(sorted(present)[:10]) or "none"),
                rule=f"expected collections {', '.join(KINDS)}; reviews or likes at least",
                fix="name the database in the address or as collect.mongodb_database; check what the user may read",
            )
        return kinds

    def _land_kind(
        self,
        store: Store,
        generation: str,
        database: Opened[Document],
        kind: Kind,
        tell: Callable[[int], None],
        screen: Screen | None,
    ) -> list[FileEntry]:
        folder, collection = f"{generation}/{kind}", database[kind]
        entries = [entry_of(store, f"{folder}/{name}") for name in store.names(folder)]
        tell(len(entries) * self._part_documents)
        documents = self._after(collection, _last_id(store, entries[-1].path) if entries else None)
        lines = _lines(documents, kind, screen)
        for first in lines:
            part = f"{folder}/{kind}-{len(entries):05d}.jsonl.zst"
            tell(_write_part(store, part, chain([first], islice(lines, self._part_documents - 1))))
            entries.append(entry_of(store, part))
        return entries

    def _after(self, collection: Collection[Document], last: Document | None) -> Iterator[Document]:
        cursor = collection.find({}, batch_size=self._batch_documents).sort("_id", 1)
        if last is not None:
            # An index bound, because a {"_id": {"$gt": ...}} filter compares within one BSON type only and would
            # lose every later type in a collection with mixed ids.
            cursor = cursor.min([("_id", last["_id"])]).hint([("_id", 1)])
        with closing(cursor):
            for document in cursor:
                if last is None or document["_id"] != last["_id"]:
                    yield document

    @contextmanager
    def _coded_errors(self) -> Iterator[None]:
        try:
            yield
        except pymongo.errors.ServerSelectionTimeoutError as error:
            raise self._error(
                "MONGODB-UNREACHABLE", "no server answered", "a MongoDB server answers there", "check host and port"
            ) from error
        except pymongo.errors.OperationFailure as error:
            found = str((error.details or {}).get("codeName") or error.code)
            raise self._error(
                "MONGODB-REFUSED", found, "the user may list and read the collections", "check user, password and roles"
            ) from error
        except pymongo.errors.ConfigurationError as error:
            raise self._error(
                "MONGODB-ADDRESS", type(error).__name__, "options the driver knows", "check --source"
            ) from None
        except (pymongo.errors.PyMongoError, bson.errors.BSONError) as error:
            raise self._error(
                "MONGODB-BROKEN-OFF",
                type(error).__name__,
                "the connection holds until all is read",
                "run the same command again: it goes on after the last finished part",
            ) from error

    def _error(self, code: str, value: str, rule: str, fix: str) -> InputError:
        return InputError(code, place=self.name, value=value, rule=rule, fix=fix)


def _counter(progress: Progress, total: int) -> Callable[[int], None]:
    done = 0

    def tell(more: int) -> None:
        nonlocal done
        done += more
        progress(done, max(total, done))

    return tell


def _lines(documents: Iterator[Document], kind: Kind, screen: Screen | None) -> Iterator[bytes]:
    """Those that may be kept: none is blank, so that every part's last line names a document."""
    for document in documents:
        kept = line(document) if screen is None else screen.line(line(document), kind)
        if not kept.isspace():
            yield kept


def _write_part(store: Store, relative: str, lines: Iterator[bytes]) -> int:
    written = 0
    compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
    with store.open_write(relative) as raw, compressor.stream_writer(raw, closefd=False) as sink:
        for each in lines:
            sink.write(each)
            written += 1
    return written


def _last_id(store: Store, relative: str) -> Document:
    with store.open_read(relative) as raw, zstandard.ZstdDecompressor().stream_reader(raw) as plain:
        last: bytes = deque(io.BufferedReader(plain, 1 << 20), maxlen=1).pop()
    identity = json.loads(last.decode("utf-8", "surrogateescape"))["_id"]
    found: Document = json_util.loads(json.dumps({"_id": identity}), json_options=_EXTENDED)
    return found


def line(document: Document) -> bytes:
    """A document as one JSON line, ``_id`` first.

    Text that is not UTF-8 leaves as the bytes it came in, for the gate to refuse that line and no other.
    """
    rest = {name: _plain(value) for name, value in document.items() if name != "_id"}
    whole = {"_id": _extended(document["_id"]), **rest} if "_id" in document else rest
    try:
        return orjson.dumps(whole, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError:
        return (json.dumps(whole, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape")


def _extended(value: Any) -> Any:
    if type(value) is bson.ObjectId:
        return {"$oid": str(value)}
    return value if type(value) in (str, int) else json.loads(json_util.dumps(value, json_options=_EXTENDED))


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind in (str, int, bool, type(None)):
        return value
    if kind is float:
        return value if math.isfinite(value) else str(value)  # JSON has no NaN; null would hide what was there
    if kind is dict:
        return {name: _plain(inner) for name, inner in value.items()}
    if kind is list:
        return [_plain(inner) for inner in value]
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, (bson.ObjectId, bson.Decimal128)):
        return str(value)
    return int(value) if isinstance(value, int) else json.loads(json_util.dumps(value, json_options=_EXTENDED))
