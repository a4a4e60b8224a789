"""Raw lines without the people who were forgotten: what the lake may hold of a source that still has them.

A line of theirs becomes blanks, which are no line to the gate; all other lines stay where they were, to the byte, so
that the quarantine still says where to look.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import IO, Any, Final

import orjson
import pyarrow as pa
import zstandard

from tastetwin.errors import InputError
from tastetwin.jsonline import Refused, parse_line
from tastetwin.privacy.mentions import mentions, words_of
from tastetwin.privacy.opt_out import OptOuts, name_of
from tastetwin.schema import MART, WHO, Kind

_KEPT: Final = {kind: {"_id", *schema.names} for kind, schema in MART.items()}
"""Fields that the gate reads, and MongoDB's name of a document, which says where to go on."""
_LONGEST_LINE: Final = 1 << 26
"""As large as ``mart.max_line_bytes`` may be: beyond it, no line is read by anybody."""
_LONGEST_UNREAD: Final = 1 << 18
"""Bytes of a line that is no JSON, up to which it is looked through."""
_ENDS: Final = b"\r\n"
_REMEMBERED: Final = 1 << 19
"""Words known to be nobody's id, of which most come again."""


class Screen:
    """Lets lines through but those of some people, and counts what it held back."""

    def __init__(self, people: OptOuts) -> None:
        self.people = people
        self._strangers: set[str] = set()
        self.held_back = 0
        """Lines so far that were not let through as they came."""

    def line(self, line: bytes, kind: Kind) -> bytes:
        """A whole line, its end included, as it may be kept.

        Returns:
            Blanks for a line of these people, and for one that is no JSON object and mentions one of them. ``#`` for
            one of those that is too long to be looked through: the gate refuses and counts it still. Where a field that
            nobody reads mentions one of them (a list of friends, say), the fields that are read. Else the line.
        """
        body = line.rstrip(_ENDS)
        try:
            kept = self._of_record(body, parse_line(body), kind)
        except Refused:
            kept = self._of_text(body)
        if kept is body:
            return line
        self.held_back += 1
        return kept + line[len(body) :]

    def _of_record(self, body: bytes, record: dict[str, Any], kind: Kind) -> bytes:
        if self._name_any({_as_id(record.get(field)) for field in WHO[kind]}):
            return b" " * len(body)
        unread = record.keys() - _KEPT[kind]
        if unread and self._name_any(set(words_of({name: record[name] for name in unread}))):
            # Numbers stay as they are written: they grow no longer, and Python reads no integer of 5,000 digits.
            whole = json.loads(body, parse_int=orjson.Fragment, parse_float=orjson.Fragment)
            read = {name: value for name, value in whole.items() if name not in unread}
            return orjson.dumps(read).ljust(len(body))
        return body

    def _name_any(self, words: set[str]) -> bool:
        new = words - self._strangers
        if any(name_of(word) in self.people.names for word in new):
            return True
        if len(self._strangers) > _REMEMBERED:
            self._strangers.clear()
        self._strangers |= new
        return False

    def _of_text(self, body: bytes) -> bytes:
        if len(body) > _LONGEST_UNREAD:
            return _masked(body)
        return b" " * len(body) if mentions(body.decode(errors="replace"), self.people) else body

    def lines(self, source: IO[bytes], name: str, kind: Kind) -> Iterator[bytes]:
        """All lines of a file as they may be kept; ``name`` says by its ending how it is compressed. Closes ``source``.

        Raises:
            InputError: SOURCE-DAMAGED when the compressed stream is cut off or corrupt.
        """
        cut = False
        for piece in _pieces(source, name):
            whole = piece.endswith(b"\n") or len(piece) < _LONGEST_LINE
            yield self.line(piece, kind) if whole and not cut else _masked(piece)
            cut = not piece.endswith(b"\n")

    def copy(self, source: IO[bytes], sink: IO[bytes], name: str, kind: Kind) -> None:
        """``lines`` into another file, compressed alike; errors as there."""
        with _compressing(sink, name) as plain:
            for line in self.lines(source, name, kind):
                plain.write(line)


def _masked(line: bytes) -> bytes:
    masked = b"#" * len(line.rstrip(_ENDS)) + line[len(line.rstrip(_ENDS)) :]
    return line if masked == line else masked


def _as_id(value: object) -> str:
    """A user field as the gate reads it (``coerce.text``)."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() if isinstance(value, str | int | float) else ""


def _pieces(source: IO[bytes], name: str) -> Iterator[bytes]:
    kind = {"gz": "gzip", "zst": "zstd"}.get(name.rpartition(".")[2])
    raw: Any = pa.PythonFile(source, "r")
    with source, io.BufferedReader(pa.CompressedInputStream(raw, kind) if kind else raw, 1 << 20) as lines:
        while True:
            try:
                piece = lines.readline(_LONGEST_LINE)
            except (OSError, EOFError) as error:
                raise InputError(
                    "SOURCE-DAMAGED",
                    place=name,
                    value=str(error),
                    rule="every raw file must be readable to its end",
                    fix="replace the file by a whole copy and collect the day again",
                ) from error
            if not piece:
                return
            yield piece


def _compressing(sink: IO[bytes], name: str) -> AbstractContextManager[IO[bytes]]:
    if name.endswith(".gz"):
        return gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=sink, mtime=0)  # type: ignore[return-value]
    if name.endswith(".zst"):
        return zstandard.ZstdCompressor(write_checksum=True).stream_writer(sink, closefd=False)
    return nullcontext(sink)
