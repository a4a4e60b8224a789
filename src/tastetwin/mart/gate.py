"""The line gate: raw lines in, typed rows and refused lines out, and nothing lost between them.

accepted + quarantined + forgotten = lines read, for every split and every input; blank lines are not lines. A plain
Python function over a split, so that any engine can run it. Plain lines take a vectorised path (``fast``), the rest go
one by one through the strict parser and the coercion table, which decide alone what is refused, made null and counted.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tastetwin.jsonline import BLANK, Refused, parse_line
from tastetwin.mart.coerce import coerce_record
from tastetwin.mart.fast import Rows, take_plain
from tastetwin.mart.lines import Block, LongLine, Opener, Split, open_path, plan_splits, read_split
from tastetwin.mart.rules import GateRules
from tastetwin.privacy.mentions import mentions
from tastetwin.schema import MART, QUARANTINE, RATING, RATING_REFUSED, WHO

__all__ = ["GateBatch", "GateRules", "Split", "gate_split", "plan_splits"]

BATCH_LINES: Final = 1 << 16
EXCERPT_BYTES: Final = 200
_BLANK: Final = BLANK.encode()


@dataclass(frozen=True)
class GateBatch:
    """What became of some consecutive lines of a split."""

    accepted: pa.RecordBatch
    """``MART[kind]``; order: plain lines first, then the others, each in the order of the file."""
    quarantined: pa.RecordBatch
    """``QUARANTINE``; ``sha256`` is of the line without its newline, of the first ``max_line_bytes`` of it if longer;
    ``excerpt`` its first 200 bytes, invalid UTF-8 replaced."""
    counts: Counter[str]
    """lines_read, accepted, quarantined, forgotten (of users of whom nothing is taken in; absent where there are none),
    quarantined.<reason>, nulled.<field>.<reason>, clipped.<field>.<reason>,
    dropped.<field>.<reason> (elements of a list); of reviews also ratings, those given, and ratings_refused of them."""


def gate_split(split: Split, rules: GateRules, opener: Opener = open_path) -> Iterator[GateBatch]:
    """All lines of a split, in batches of at most 65,536 lines.

    Raises:
        InputError: SOURCE-UNREADABLE, or SOURCE-DAMAGED for a compressed file that is cut off or corrupt.
    """
    for part in read_split(split, rules.max_line_bytes, opener):
        if isinstance(part, LongLine):
            yield _refuse_long(part, split, rules)
            continue
        for first in range(0, len(part.bounds) - 1, BATCH_LINES):
            yield _gate_lines(part, part.bounds[first : first + BATCH_LINES + 1], split, rules)


def _gate_lines(block: Block, bounds: Rows, split: Split, rules: GateRules) -> GateBatch:
    short = np.flatnonzero(np.diff(bounds) <= rules.max_line_bytes)
    lines = _as_array(block.data, bounds)
    taken, rest = take_plain(lines if len(short) == len(lines) else lines.take(pa.array(short)), split.kind, rules)
    slow = np.concatenate([short[rest], np.setdiff1d(np.arange(len(bounds) - 1), short, assume_unique=True)])
    desk = _Desk(split, rules)
    for at in np.sort(slow):
        desk.see(block.data[bounds[at] : bounds[at + 1]].removesuffix(b"\n"), block.offset + int(bounds[at]))
    return desk.batch(taken, len(bounds) - 1)


def _as_array(data: bytes, bounds: Rows) -> pa.Array:
    """The lines as one binary array over the same bytes."""
    offsets = pa.py_buffer(bounds.astype(np.int32))
    return pa.Array.from_buffers(pa.binary(), len(bounds) - 1, [None, offsets, pa.py_buffer(data)])


def _refuse_long(line: LongLine, split: Split, rules: GateRules) -> GateBatch:
    desk = _Desk(split, rules)
    desk.refuse(line.prefix, line.offset, line.length, "line_too_long")
    return desk.batch([], 1)


class _Desk:
    """The line-by-line path: rows, refusals and counts of one batch."""

    def __init__(self, split: Split, rules: GateRules) -> None:
        self._split = split
        self._rules = rules
        self._rows: list[tuple[Any, ...]] = []
        self._refused: list[tuple[Any, ...]] = []
        self._counts: Counter[str] = Counter()
        self._blank = 0

    def see(self, line: bytes, offset: int) -> None:
        """Judge one line, without its newline, that begins at ``offset``."""
        if len(line) > self._rules.max_line_bytes:
            self.refuse(line[: self._rules.max_line_bytes], offset, len(line), "line_too_long")
            return
        if not line.strip(_BLANK):
            self._blank += 1
            return
        try:
            self._rows.append(coerce_record(parse_line(line), self._split.kind, self._rules, self._counts))
        except Refused as refused:
            self.refuse(line, offset, len(line), refused.reason)

    def refuse(self, beginning: bytes, offset: int, length: int, reason: str) -> None:
        """To quarantine; ``beginning`` is the line, or its first ``max_line_bytes``.

        Nothing is kept of a line that mentions somebody who was forgotten where an excerpt would show it.
        """
        if mentions(beginning[: 2 * EXCERPT_BYTES].decode(errors="replace"), self._rules.forgotten):
            self._counts["forgotten"] += 1
            return
        digest = hashlib.sha256(beginning).hexdigest()
        excerpt = beginning[:EXCERPT_BYTES].decode(errors="replace")
        self._refused.append((self._split.kind, self._split.path, offset, length, reason, digest, excerpt))
        self._counts[f"quarantined.{reason}"] += 1

    def batch(self, taken: list[pa.RecordBatch], lines: int) -> GateBatch:
        """Everything seen, after the rows ``taken`` by the fast path; ``lines`` is how many there were, blank or not.

        Lines are counted where they are cut and rows where they are made, so that a lost line shows.
        """
        schema = MART[self._split.kind]
        accepted = pa.concat_batches([*(each.cast(schema) for each in taken), _from_rows(self._rows, schema)])
        counts = self._counts
        if self._rules.forgotten.names:
            kept = self._rules.forgotten.without(accepted, *WHO[self._split.kind])
            counts["forgotten"] += accepted.num_rows - kept.num_rows
            accepted = kept
        counts["accepted"] = accepted.num_rows
        counts["quarantined"] = len(self._refused)
        counts["lines_read"] = lines - self._blank
        if self._split.kind == "reviews":
            refused = pc.sum(accepted.column(RATING_REFUSED), min_count=0).as_py()
            counts["ratings_refused"] = refused
            counts["ratings"] = accepted.num_rows - accepted.column(RATING).null_count + refused
        return GateBatch(accepted, _from_rows(self._refused, QUARANTINE), counts)


def _from_rows(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.RecordBatch:
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    return pa.record_batch(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )
