"""The root folder or URL under which everything lives, and the few durable file operations the rest is built on.

A local path gets POSIX durability (``durable``). URLs (``s3://``, and what fsspec knows: ``gs://``, ``hdfs://``,
``memory://``) work too; there an atomic replacement is one whole-object put (object stores) or a rename (HDFS).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import orjson
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.local import LocalFileSystem

from tastetwin import durable
from tastetwin.errors import StoreError
from tastetwin.filesystems import file_system, masked

if TYPE_CHECKING:
    import pyarrow.fs as pafs

STORE_FORMAT: Final = 1
MARKER: Final = "store.json"
_CHUNK: Final = 4 << 20
_NOT_CONTENT: Final = (".lock", "lost+found")
"""What a folder may hold and still count as empty: our lock, and what a fresh ext4 volume comes with."""


class Store:
    """Paths below the root are relative, with forward slashes; nothing above the root is ever touched."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Name a root; nothing is read yet.

        Raises:
            StoreError: STORE-ADDRESS when no file system can be had for that URL.
        """
        try:
            self.fs, base = file_system(str(root))
        except (ValueError, ImportError) as error:
            raise StoreError(
                "STORE-ADDRESS",
                place=masked(str(root)),
                value=str(error),
                rule="a folder, s3://BUCKET/FOLDER, or a URL that fsspec knows and has the package for",
                fix="check --store and the environment, or install that package",
            ) from error
        self.root: str = base.rstrip("/") or "/"
        self.is_local = isinstance(self.fs, LocalFileSystem)

    # -- opening ------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, root: str | os.PathLike[str]) -> Store:
        """An existing store.

        Raises:
            StoreError: NO-STORE where there is none; STORE-NEWER where a newer version wrote it.
        """
        store = cls(root)
        store.require()
        store._check_format()
        return store

    @classmethod
    def create(cls, root: str | os.PathLike[str]) -> Store:
        """The store at ``root``, made if it is not there yet.

        Raises:
            StoreError: NOT-A-STORE where the folder holds something else; STORE-NEWER as in ``open``.
        """
        store = cls(root)
        if store.exists(MARKER):
            store._check_format()
            return store
        if any(name not in _NOT_CONTENT and not is_aside(name) for name in store.names("")):
            raise StoreError(
                "NOT-A-STORE",
                place=str(root),
                value=f"not empty and no {MARKER}",
                rule="a new store needs an empty or absent folder",
                fix="give --store another folder",
            )
        store.write_json(MARKER, {"format": STORE_FORMAT, "tool": "tastetwin"})
        return store

    def require(self) -> None:
        """Be sure that the store is there: a volume that is no longer mounted looks like an empty folder.

        Raises:
            StoreError: NO-STORE; STORE-UNREADABLE.
        """
        if not self.exists(MARKER):
            raise StoreError(
                "NO-STORE",
                place=self.url(""),
                value=f"no {MARKER}",
                rule="a store is made by the first 'collect' or 'run'",
                fix="check --store, or run: tastetwin run --source DIR --store " + self.url(""),
            )

    def _check_format(self) -> None:
        found = self.read_json(MARKER).get("format")
        if not isinstance(found, int) or found > STORE_FORMAT:
            raise StoreError(
                "STORE-NEWER",
                place=self.path(MARKER),
                value=f"format {found}",
                rule=f"this version reads formats up to {STORE_FORMAT}",
                fix="upgrade tastetwin",
            )

    # -- paths --------------------------------------------------------------------------------------------------

    def path(self, relative: str) -> str:
        """The path of ``relative`` on the store's file system."""
        return f"{self.root}/{relative}" if relative else self.root

    def url(self, relative: str) -> str:
        """The same with its scheme: what an engine, on this machine or another, can open."""
        return self.path(relative) if self.is_local else str(self.fs.unstrip_protocol(self.path(relative)))

    @property
    def arrow(self) -> pafs.FileSystem:
        """The store's file system for pyarrow; takes paths from ``path``."""
        import pyarrow.fs as pafs

        if self.is_local:
            return pafs.LocalFileSystem()
        return self.fs.fs if isinstance(self.fs, ArrowFSWrapper) else pafs.PyFileSystem(pafs.FSSpecHandler(self.fs))

    # -- reading ------------------------------------------------------------------------------------------------

    def exists(self, relative: str) -> bool:
        """Whether a file or folder is there."""
        # fsspec's exists takes any error for absence; what cannot answer must not make published data look absent.
        try:
            with self._coded(relative, "STORE-UNREADABLE"):
                Path(self.path(relative)).stat() if self.is_local else self.fs.info(self.path(relative))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def names(self, relative: str) -> list[str]:
        """Names (not paths) in a folder, ascending; empty where there is no such folder."""
        try:
            with self._coded(relative, "STORE-UNREADABLE"):
                found = self.fs.ls(self.path(relative), detail=False, refresh=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(str(name).rstrip("/").rsplit("/", 1)[-1] for name in found)

    def files(self, relative: str) -> list[str]:
        """All files below a folder, relative to the root, ascending; empty where there is no such folder."""
        prefix = len(self.root.rstrip("/")) + 1
        with self._coded(relative, "STORE-UNREADABLE"):
            found = durable.walk(self.path(relative)) if self.is_local else self._found(self.path(relative))
        return sorted(str(path)[prefix:] for path in found)

    def _found(self, top: str) -> list[str]:
        if not isinstance(self.fs, ArrowFSWrapper):
            return list(self.fs.find(top))
        import pyarrow.fs as pafs

        # Their own find asks folder by folder, and takes one that it cannot list for an empty one.
        selector = pafs.FileSelector(top, recursive=True, allow_not_found=True)
        return [each.path for each in self.arrow.get_file_info(selector) if each.is_file]

    def size(self, relative: str) -> int:
        """Bytes of a file."""
        with self._coded(relative, "STORE-UNREADABLE"):
            return int(self.fs.size(self.path(relative)))

    def open_read(self, relative: str) -> IO[bytes]:
        """A file for reading, as stored."""
        with self._coded(relative, "STORE-UNREADABLE"):
            handle: IO[bytes] = self.fs.open(self.path(relative), "rb")
        return handle

    def read_range(self, relative: str, start: int, stop: int) -> bytes:
        """Bytes of a file from ``start``, before ``stop``."""
        with self._coded(relative, "STORE-UNREADABLE"):
            return bytes(self.fs.cat_file(self.path(relative), start, stop))

    def read_bytes(self, relative: str) -> bytes:
        """A whole file."""
        with self._coded(relative, "STORE-UNREADABLE"):
            return bytes(self.fs.cat_file(self.path(relative)))

    def read_json(self, relative: str) -> dict[str, Any]:
        """A JSON object.

        Raises:
            StoreError: DAMAGED where the file is absent or is not a JSON object; STORE-UNREADABLE.
        """
        try:
            value = orjson.loads(self.read_bytes(relative))
        except (FileNotFoundError, NotADirectoryError, orjson.JSONDecodeError) as error:
            raise self.damaged(relative, str(error)) from error
        if not isinstance(value, dict):
            raise self.damaged(relative, "not a JSON object")
        return value

    def sha256(self, relative: str) -> str:
        """Hex digest of a file's bytes."""
        digest = hashlib.sha256()
        with self._coded(relative, "STORE-UNREADABLE"), self.open_read(relative) as handle:
            while chunk := handle.read(_CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def damaged(self, relative: str, value: str) -> StoreError:
        """The error for a file that is not what its manifest or format says."""
        return StoreError(
            "DAMAGED",
            place=self.path(relative),
            value=value,
            rule="published files never change",
            fix="restore the file, or run the day again with --again",
        )

    # -- writing ------------------------------------------------------------------------------------------------

    def write_bytes(self, relative: str, data: bytes) -> None:
        """Replace a small file: afterwards a reader sees the old or the new bytes, never a part.

        Raises:
            StoreError: DISK-FULL or STORE-UNWRITABLE; the old bytes stand.
        """
        if self.is_local:
            with self.open_write(relative) as handle:
                handle.write(data)
            return
        with self._coded(relative):
            self._replace_remote(self.path(relative), data)

    @contextmanager
    def open_write(self, relative: str) -> Iterator[IO[bytes]]:
        """A file written piece by piece: it appears, whole and durable, when the block ends well, and else not at all.

        Raises:
            StoreError: DISK-FULL or STORE-UNWRITABLE for any OSError in the block.
        """
        with self._coded(relative):
            if self.is_local:
                with durable.written_aside(Path(self.path(relative))) as handle:
                    yield handle
            else:
                with self._written_aside_remote(self.path(relative)) as handle:
                    yield handle

    @contextmanager
    def _written_aside_remote(self, path: str) -> Iterator[IO[bytes]]:
        # Closing a half-written remote file commits it on several file systems, so the name must be another one.
        folder, _, name = path.rpartition("/")
        aside = f"{folder}/.{name}.{uuid.uuid4().hex}.tmp"  # workers on other machines may have our process id
        self.fs.makedirs(folder, exist_ok=True)
        try:
            with self.fs.open(aside, "wb") as handle:
                yield handle
            self.fs.mv(aside, path)
        except BaseException:
            with suppress(OSError):
                self.fs.rm(aside)
            raise

    @contextmanager
    def _coded(self, relative: str, code: str = "STORE-UNWRITABLE") -> Iterator[None]:
        """Give an OSError its code; absence, which callers have an answer for, passes."""
        try:
            yield
        except OSError as error:
            if code == "STORE-UNREADABLE" and isinstance(error, (FileNotFoundError, NotADirectoryError)):
                raise
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            check = "check the path and its permissions" if self.is_local else "check bucket, credentials and network"
            raise StoreError(
                "DISK-FULL" if full else code,
                place=self.url(relative),
                value=error.strerror or str(error) or type(error).__name__,
                rule="the store has room" if full else "the store can be read and written; published data is untouched",
                fix="free some space and run the same command again" if full else check,
            ) from error

    def _replace_remote(self, path: str, data: bytes) -> None:
        protocols = (self.fs.protocol,) if isinstance(self.fs.protocol, str) else self.fs.protocol
        if "hdfs" not in protocols:
            self.fs.pipe_file(path, data)
            return
        self.fs.pipe_file(path + ".tmp", data)
        self.fs.mv(path + ".tmp", path)

    def write_json(self, relative: str, value: dict[str, Any]) -> None:
        """``write_bytes`` of an object with sorted keys: the same value gives the same bytes."""
        options = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
        self.write_bytes(relative, orjson.dumps(value, option=options))

    def make_folder(self, relative: str) -> str:
        """Make a folder and return its path on the store's file system."""
        with self._coded(relative):
            if self.is_local:
                durable.make_folder(Path(self.path(relative)))
            else:
                self.fs.makedirs(self.path(relative), exist_ok=True)
        return self.path(relative)

    def remove(self, relative: str) -> None:
        """Remove a file or a whole folder; absent is fine."""
        with self._coded(relative), suppress(FileNotFoundError):
            self.fs.rm(self.path(relative), recursive=True)

    def sync(self, relative: str) -> None:
        """Make all below, and the way there from the root, durable; a no-op where a finished put already is."""
        if not self.is_local:
            return
        folder = Path(self.path(relative))
        with self._coded(relative):
            for base, names in durable.folders(folder):
                for name in names:
                    durable.fsync(base / name)
                durable.fsync(base)
            for parent in folder.parents:
                if not parent.is_relative_to(self.root):
                    break
                durable.fsync(parent)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the store for one writer (advisory; local stores only, a cluster's scheduler sees to it elsewhere).

        Raises:
            StoreError: STORE-BUSY while another process writes.
        """
        if not self.is_local:
            yield
            return
        with self._coded(".lock"):
            lock = Path(self.make_folder("")).joinpath(".lock").open("w")
        with lock as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StoreError(
                    "STORE-BUSY",
                    place=self.root,
                    value="another process is writing",
                    rule="one writer at a time",
                    fix="wait for it to end",
                ) from error
            yield


def is_aside(name: str) -> bool:
    """Whether a file name is that of an unfinished write, left by a process that was killed."""
    return name.startswith(".") and name.endswith(".tmp")
