"""Raw files as splits, and splits as blocks of whole lines, in bounded memory however long a line is.

A line belongs to the split in which its first byte lies, so any cut of a plain file gives the same lines. Compressed
files cannot be cut: one split each, read as a stream, with offsets in uncompressed bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, Final, Literal

import numpy as np
import pyarrow as pa

from tastetwin.errors import InputError
from tastetwin.filesystems import file_system
from tastetwin.schema import Kind

Compression = Literal["none", "gzip", "zstd"]
Opener = Callable[[str], IO[bytes]]

CHUNK: Final = 4 << 20
"""Bytes read at a time."""
_SUFFIXES: Final[dict[str, Compression]] = {".gz": "gzip", ".zst": "zstd"}
_BOM: Final = b"\xef\xbb\xbf"
_ENDLESS: Final = 1 << 62


@dataclass(frozen=True)
class Split:
    """A part of one raw file that one task reads."""

    kind: Kind
    path: str
    """A local path or an fsspec URL."""
    offset: int
    """First byte, in the file as stored."""
    length: int
    """Bytes, in the file as stored."""
    compression: Compression


@dataclass(frozen=True)
class Block:
    """Consecutive whole lines of a file."""

    data: bytes
    offset: int
    """Of the first byte of ``data`` in the file's uncompressed bytes."""
    bounds: np.ndarray[tuple[int], np.dtype[np.int64]]
    """[lines + 1] where each line starts in ``data``; line i is ``data[bounds[i]:bounds[i + 1]]``, newline included."""


@dataclass(frozen=True)
class LongLine:
    """A line above the cap, of which only the beginning was kept."""

    prefix: bytes
    offset: int
    length: int
    """Bytes of the whole line, newline aside."""


def plan_splits(kind: Kind, path: str, size: int, split_bytes: int) -> list[Split]:
    """The splits of one file, in order; none for a file of 0 bytes, which has no lines, compressed or not.

    ``size`` is in bytes as stored; the suffix of the path (.gz, .zst) tells the compression, and only plain files are
    cut.
    """
    compression: Compression = "none"
    for suffix, name in _SUFFIXES.items():
        compression = name if path.endswith(suffix) else compression
    step = split_bytes if compression == "none" else max(size, 1)
    return [Split(kind, path, at, min(step, size - at), compression) for at in range(0, size, step)]


def open_path(path: str) -> IO[bytes]:
    """A local path or a URL, for reading bytes."""
    fs, path = file_system(path if "://" in path else f"file://{path}")
    handle: IO[bytes] = fs.open(path, "rb")
    return handle


def read_split(split: Split, max_line_bytes: int, opener: Opener = open_path) -> Iterator[Block | LongLine]:
    """The lines of a split, in order; holds at most about ``CHUNK + max_line_bytes`` bytes, twice.

    Raises:
        InputError: SOURCE-UNREADABLE when the file cannot be opened or read; SOURCE-DAMAGED when the compressed stream
            is cut off or corrupt. What was yielded before must then not be published.
    """
    code = "SOURCE-UNREADABLE" if split.compression == "none" else "SOURCE-DAMAGED"
    try:
        with ExitStack() as stack:
            raw = stack.enter_context(opener(split.path))
            if split.compression == "none":
                yield from _Reader(raw, max_line_bytes, split.offset).blocks(split.offset + split.length)
            else:
                stream = stack.enter_context(pa.CompressedInputStream(pa.PythonFile(raw, "r"), split.compression))
                yield from _Reader(stream, max_line_bytes, 0).blocks(_ENDLESS)
    except (OSError, EOFError) as error:
        raise InputError(
            "SOURCE-UNREADABLE" if isinstance(error, FileNotFoundError) else code,
            place=split.path,
            value=str(error),
            rule="every raw file must be readable to its end",
            fix="replace the file by a whole copy and collect the day again",
        ) from error


class _Reader:
    """A file position and the bytes read but not yet given out."""

    def __init__(self, handle: IO[bytes], max_line_bytes: int, offset: int) -> None:
        self._handle = handle
        self._cap = max_line_bytes
        self._tail = b""
        self._at = offset

    def blocks(self, stop: int) -> Iterator[Block | LongLine]:
        """Lines whose first byte lies before ``stop``."""
        if self._at:
            self._skip_to_line()
        while self._at < stop:
            chunk = self._handle.read(CHUNK)
            data = self._tail + chunk
            if self._at == 0 and data.startswith(_BOM):
                data, self._at = data[len(_BOM) :], len(_BOM)
            if not data:
                return
            last = data.find(b"\n", max(stop - 1 - self._at, 0))
            if last < 0:
                last = data.rfind(b"\n") if chunk else len(data) - 1
            cut = last + 1
            if cut:
                yield Block(data[:cut], self._at, _bounds(data[:cut]))
            elif len(data) > self._cap:
                yield self._long_line(data)
                continue
            self._tail, self._at = data[cut:], self._at + cut

    def _skip_to_line(self) -> None:
        """Leave out the line that began before the offset; the byte before tells whether there is one."""
        self._handle.seek(self._at - 1)
        self._at -= 1
        self._find_newline(self._handle.read(CHUNK))

    def _long_line(self, beginning: bytes) -> LongLine:
        offset = self._at
        ended = self._find_newline(beginning)
        return LongLine(beginning[: self._cap], offset, self._at - offset - ended)

    def _find_newline(self, chunk: bytes) -> int:
        """Move behind the next newline, forgetting what lies before it; returns 1, or 0 where the file ends first."""
        while chunk:
            end = chunk.find(b"\n") + 1
            self._at += end or len(chunk)
            if end:
                self._tail = chunk[end:]
                return 1
            chunk = self._handle.read(CHUNK)
        self._tail = b""
        return 0


def _bounds(data: bytes) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1
    open_end = [] if data.endswith(b"\n") else [len(data)]
    return np.concatenate([[0], ends, open_end]).astype(np.int64)
