"""A folder of raw events, on a disk or behind any fsspec URL, landed byte for byte.

``reviews*.jsonl``, ``likes*.jsonl``, ``places*.jsonl``, each plain, ``.gz`` or ``.zst``, many per kind; everything else
in the folder is left alone and named. What is inside the files is the line gate's business, not ours.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, Final
from urllib.parse import quote

from fsspec.implementations.local import LocalFileSystem

from tastetwin.errors import InputError
from tastetwin.filesystems import file_system, masked
from tastetwin.generations import FileEntry, entry_of
from tastetwin.privacy.screen import Screen
from tastetwin.progress import Progress
from tastetwin.schema import KINDS, Kind
from tastetwin.store import Store

_EXPECTED: Final = (
    "reviews*.jsonl, likes*.jsonl, places*.jsonl, follows*.jsonl, blocks*.jsonl, each plain, .gz or .zst; "
    "reviews or likes at least"
)
_OURS: Final = re.compile(rf"({'|'.join(KINDS)}).*\.jsonl(\.gz|\.zst)?", re.DOTALL)
_LOOKALIKE: Final = re.compile(
    rf"({'|'.join(KINDS)}).*\.(jsonl?|ndjson|csv|tsv|parquet|avro|orc|bson|xlsx?|zip|bz2|xz|lz4|snappy|tar|tgz"
    r"|(jsonl?|ndjson|csv|tsv)\.(gz|zst))",
    re.DOTALL | re.IGNORECASE,
)
_MAGIC: Final = {".gz": b"\x1f\x8b\x08", ".zst": b"\x28\xb5\x2f\xfd"}
_BINARY: Final = {b"\x1f\x8b\x08": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PAR1": "Parquet"}
_CHUNK: Final = 4 << 20
_HEAD: Final = 4
"""Bytes that tell what is in a file, see ``_MAGIC``."""
_MAX_NAME: Final = 200
_VERSION_KEYS: Final = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")


@dataclass(frozen=True)
class SourceFile:
    """One raw file as it was when the folder was listed."""

    path: str
    """On the source's file system."""
    name: str
    """In the lake: the file's own name, odd characters escaped."""
    kind: Kind
    bytes: int
    version: str
    """Modification time or entity tag: differs when the file was written again."""


@dataclass(frozen=True)
class _Look:
    is_file: bool
    is_folder: bool
    bytes: int
    version: str


class Folder:
    """The raw files of one folder, listed once, at the door."""

    def __init__(self, source: str) -> None:
        """List ``source``.

        Raises:
            InputError: SOURCE-SCHEME, NO-SOURCE, SOURCE-NOT-A-FOLDER, SOURCE-UNREADABLE, SOURCE-EMPTY,
                SOURCE-NOT-A-FILE, SOURCE-WRONG-TYPE, SOURCE-NO-EVENTS.
        """
        self._fs, self._base = _file_system(source)
        self.name = _shown(self._base) if isinstance(self._fs, LocalFileSystem) else masked(source)
        present = self._names()
        self.files: list[SourceFile] = [self._file(name) for name in present if _OURS.fullmatch(name)]
        self.ignored: list[str] = [safe_name(name) for name in present if not _OURS.fullmatch(name)]
        self._check_kinds(present)

    @property
    def inputs(self) -> dict[str, Any]:
        """What the generation's id is made from: where the files are and what the listing said of each."""
        return {"source": self.name, "files": [[each.name, each.bytes, each.version] for each in self.files]}

    def land(
        self, store: Store, folder: str, progress: Progress, screen: Screen | None = None
    ) -> dict[str, list[FileEntry]]:
        """Copy what is not in the lake yet; files an earlier attempt finished are recognised and hashed again.

        Raises:
            InputError: SOURCE-UNREADABLE, SOURCE-CHANGED, SOURCE-WRONG-TYPE; with a screen SOURCE-DAMAGED.
            StoreError: DISK-FULL, STORE-UNWRITABLE.
        """
        total, done = sum(each.bytes for each in self.files), 0
        tables: dict[str, list[FileEntry]] = {}
        for each in self.files:
            target = f"{folder}/{each.kind}/{each.name}"
            if screen is not None:
                entry = self._copy_screened(store, each, target, screen)
            else:
                entry = _landed_before(store, each, target) or self._copy(
                    store, each, target, partial(_add, progress, done, total)
                )
            tables.setdefault(each.kind, []).append(entry)
            done += each.bytes
            progress(done, total)
        return tables

    def _copy(self, store: Store, each: SourceFile, target: str, tell: Callable[[int], None]) -> FileEntry:
        digest, copied = hashlib.sha256(), 0
        with store.open_write(target) as sink:
            for chunk in self._chunks(each):
                if copied == 0:
                    _check_magic(each, chunk)
                digest.update(chunk)
                copied += len(chunk)
                sink.write(chunk)
                tell(copied)
            self._check_unchanged(each, copied)
        return FileEntry(target, copied, digest.hexdigest())

    def _copy_screened(self, store: Store, each: SourceFile, target: str, screen: Screen) -> FileEntry:
        with _readable(each.path):
            handle: IO[bytes] = self._fs.open(each.path, "rb")
            _check_magic(each, handle.read(_HEAD))
            handle.seek(0)
        with store.open_write(target) as sink:
            screen.copy(handle, sink, each.name, each.kind)
            self._check_unchanged(each, each.bytes)
        return entry_of(store, target)

    def _check_unchanged(self, each: SourceFile, copied: int) -> None:
        now = self._look(each.path)
        if (copied, now.bytes, now.version) != (each.bytes, each.bytes, each.version):
            raise InputError(
                "SOURCE-CHANGED",
                place=_shown(each.path),
                value=f"{each.bytes} bytes when listed, {copied} copied, {now.bytes} now",
                rule="a file stays as it is while it is copied",
                fix="let its writer finish (write aside, then rename), and collect again",
            )

    def _chunks(self, each: SourceFile) -> Iterator[bytes]:
        with _readable(each.path):
            handle: IO[bytes] = self._fs.open(each.path, "rb")
        with handle:
            while True:
                with _readable(each.path):
                    chunk = handle.read(_CHUNK)
                if not chunk:
                    return
                yield chunk

    def _names(self) -> list[str]:
        with _readable(self.name):
            if not self._fs.exists(self._base):
                raise InputError("NO-SOURCE", place=self.name, value="not there", rule=_rule(), fix="check --source")
            if not self._fs.isdir(self._base):
                raise InputError(
                    "SOURCE-NOT-A-FOLDER", place=self.name, value="a file", rule=_rule(), fix="give the folder it is in"
                )
            found = self._fs.ls(self._base, detail=False)
        return sorted({str(path).rstrip("/").rsplit("/", 1)[-1] for path in found} - {""})

    def _file(self, name: str) -> SourceFile:
        path = f"{self._base.rstrip('/')}/{name}"
        look = self._look(path)
        if not look.is_file:
            raise InputError(
                "SOURCE-NOT-A-FILE",
                place=_shown(path),
                value="a folder" if look.is_folder else "not a regular file",
                rule=f"a source folder holds files: {_EXPECTED}",
                fix="give the folder that holds the files themselves, or rename this one",
            )
        kind = next(kind for kind in KINDS if name.startswith(kind))
        return SourceFile(path, safe_name(name), kind, look.bytes, look.version)

    def _look(self, path: str) -> _Look:
        with _readable(path):
            if isinstance(self._fs, LocalFileSystem):
                found = os.stat(path)  # noqa: PTH116 - follows links, and says nanoseconds, as fsspec's info does not
                kind = found.st_mode
                return _Look(stat.S_ISREG(kind), stat.S_ISDIR(kind), found.st_size, str(found.st_mtime_ns))
            self._fs.invalidate_cache()
            info = self._fs.info(path)
        version = next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), "")
        return _Look(info["type"] == "file", info["type"] == "directory", int(info.get("size") or 0), version)

    def _check_kinds(self, present: list[str]) -> None:
        found = {each.kind for each in self.files}
        if not present:
            raise InputError("SOURCE-EMPTY", place=self.name, value="an empty folder", rule=_rule(), fix=_fix())
        for name in present:
            other = None if _OURS.fullmatch(name) else _LOOKALIKE.fullmatch(name)
            # Passing over the only file of a kind would lose that kind without a word.
            if other and other[1].lower() not in found:
                raise InputError("SOURCE-WRONG-TYPE", place=self.name, value=safe_name(name), rule=_rule(), fix=_fix())
        if not found & {"reviews", "likes"}:
            listed = ", ".join(map(safe_name, present[:10])) + (", ..." if len(present) > 10 else "")
            raise InputError("SOURCE-NO-EVENTS", place=self.name, value=f"only {listed}", rule=_rule(), fix=_fix())


def _file_system(source: str) -> tuple[Any, str]:
    try:
        return file_system(source)
    except (ValueError, ImportError) as error:
        raise InputError(
            "SOURCE-SCHEME",
            place=masked(source),
            value=str(error),
            rule="a folder, s3://BUCKET/FOLDER, another URL that fsspec knows, or a mongodb:// address",
            fix="check --source and the environment, or install that package",
        ) from error


def _add(progress: Progress, before: int, total: int, copied: int) -> None:
    progress(before + copied, total)


def _landed_before(store: Store, each: SourceFile, target: str) -> FileEntry | None:
    # A name in the lake stands for a whole, durable file: unfinished ones are written aside.
    if not store.exists(target) or store.size(target) != each.bytes:
        return None
    return entry_of(store, target)


def _check_magic(each: SourceFile, head: bytes) -> None:
    ending = next((ending for ending in _MAGIC if each.name.endswith(ending)), None)
    if ending is None:
        found = next((what for magic, what in _BINARY.items() if head.startswith(magic)), None)
        fault = f"holds {found} data" if found else None
    else:
        fault = None if head.startswith(_MAGIC[ending]) else f"does not begin as a {ending} file does"
    if fault:
        raise InputError(
            "SOURCE-WRONG-TYPE", place=_shown(each.path), value=fault, rule=_rule(), fix="name it for what it is"
        )


@contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            "SOURCE-UNREADABLE",
            place=_shown(path),
            value=error.strerror or str(error) or type(error).__name__,
            rule="the source can be read",
            fix="check its permissions, and whether it is still there",
        ) from error


def safe_name(name: str) -> str:
    """A name of letters, digits and ``._-~`` only, different for different names; most names stay as they are.

    Other bytes are written as in quoted-printable (RFC 2045: ``=20``), because a percent sign would be decoded by some
    engine on the way. A name grown too long keeps its beginning and ending around a hash.
    """
    escaped = quote(os.fsencode(name), safe="").replace("%", "=")
    if len(escaped) <= _MAX_NAME:
        return escaped
    ending = re.search(r"\.jsonl(\.gz|\.zst)?$", escaped)
    mark = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return f"{escaped[: _MAX_NAME - 32]}-{mark}{ending[0] if ending else ''}"


def _shown(path: str) -> str:
    """A path fit for a terminal and a log: bytes that are no text and control characters escaped."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in path)


def _rule() -> str:
    return f"expected a folder of {_EXPECTED}"


def _fix() -> str:
    return "write the events as JSON lines, one object a line, under those names"
