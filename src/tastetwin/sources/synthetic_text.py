"""The synthetic town's events as JSON lines, and the dirt that real exports carry.

Clean lines of one kind all have the same length, because ids, times and ratings have fixed widths. A block of lines is
therefore one matrix of bytes, filled column by column from look-up tables: no Python object per event.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import numpy as np
import numpy.typing as npt

from tastetwin import schema
from tastetwin.schema import Kind

Ints = npt.NDArray[np.int64]
Text = npt.NDArray[np.uint8]

# Ids are numbers that start far from zero: every id has the same width, and the number 10000042 and the text
# "10000042" name the same user, as in sources that mix the two.
FIRST_USER: Final = 10_000_000
FIRST_PLACE: Final = 100_000_000
FIRST_REGION: Final = 1_100_000_000
FIRST_CATEGORY: Final = 1001
MAX_USERS: Final = 80_000_000
MAX_PLACES: Final = 800_000_000

SECONDS_PER_DAY: Final = 86_400


def digits(values: Ints, width: int) -> Text:
    """uint8 [n, width]: the decimal digits of ``values`` (>= 0), with leading zeros; higher digits are cut off."""
    out = np.empty((len(values), width), np.uint8)
    for end in range(width, 0, -4):
        rest = values // 10_000
        size = min(4, end)
        out[:, end - size : end] = _four_digits()[values - rest * 10_000, 4 - size :]
        values = rest
    return out


@cache
def _four_digits() -> Text:
    """uint8 [10000, 4]: "0000" to "9999"."""
    numbers = np.arange(10_000)
    return np.stack([numbers // 10**power % 10 + ord("0") for power in (3, 2, 1, 0)], axis=1).astype(np.uint8)


@cache
def _clock() -> Text:
    """uint8 [86400, 8]: "00:00:00" to "23:59:59"."""
    seconds = np.arange(SECONDS_PER_DAY)
    return table([digits(seconds // 3600, 2), b":", digits(seconds // 60 % 60, 2), b":", digits(seconds % 60, 2)])


@cache
def _half_stars() -> Text:
    """uint8 [11, 3]: "0.0", "0.5" ... "5.0"."""
    halves = np.arange(11)
    return table([digits(halves // 2, 1), b".", digits(halves % 2 * 5, 1)])


def table(columns: Sequence[bytes | Text]) -> Text:
    """uint8 [n, total width]: the columns side by side; a ``bytes`` column stands in every row."""
    rows = next(len(column) for column in columns if not isinstance(column, bytes))
    widths = [len(column) if isinstance(column, bytes) else column.shape[1] for column in columns]
    out = np.empty((rows, sum(widths)), np.uint8)
    ends = np.cumsum(widths)
    for column, width, end in zip(columns, widths, ends, strict=True):
        out[:, end - width : end] = np.frombuffer(column, np.uint8) if isinstance(column, bytes) else column
    return out


def times(seconds: Ints) -> Text:
    """uint8 [n, 19]: ISO 8601 times without a zone, from seconds since 1970-01-01."""
    days = seconds // SECONDS_PER_DAY
    first, last = (int(days.min()), int(days.max())) if len(days) else (0, 0)
    calendar = np.datetime_as_string(np.arange(first, last + 1).astype("datetime64[D]")).astype("S10")
    dates = calendar.view(np.uint8).reshape(-1, 10)
    return table([dates[days - first], b"T", _clock()[seconds - days * SECONDS_PER_DAY]])


def review_lines(numbers: Ints, users: Ints, half_stars: Ints, seconds: Ints, places: Ints) -> Text:
    """uint8 [n, length]: one line per review; ``users`` and ``places`` are positions in the town, not ids."""
    return table(
        [
            b'{"review_id": "r',
            digits(numbers, 16),
            b'", "user_idno": "',
            digits(users + FIRST_USER, 8),
            b'", "review_rating": ',
            _half_stars()[half_stars],
            b', "review_visited_date": "',
            times(seconds),
            b'", "review_place_id": "',
            digits(places + FIRST_PLACE, 9),
            b'"}\n',
        ]
    )


def like_lines(users: Ints, seconds: Ints, places: Ints) -> Text:
    """uint8 [n, length]: one line per like; ``users`` and ``places`` are positions in the town, not ids."""
    return table(
        [
            b'{"user_idno": "',
            digits(users + FIRST_USER, 8),
            b'", "like_regymdt": "',
            times(seconds),
            b'", "like_displayid": "place", "like_contentsid": "',
            digits(places + FIRST_PLACE, 9),
            b'"}\n',
        ]
    )


@dataclass(frozen=True)
class Lines:
    """Lines in one buffer, each with its newline."""

    data: memoryview
    offsets: Ints
    """[n + 1] line i is ``data[offsets[i]:offsets[i + 1]]``."""

    @classmethod
    def of_table(cls, rows: Text) -> Lines:
        """Lines of equal length, uint8 [n, length]."""
        return cls(rows.reshape(-1).data, np.arange(len(rows) + 1) * rows.shape[1])

    @classmethod
    def of_records(cls, records: Sequence[dict[str, Any]]) -> Lines:
        """One JSON line per record."""
        lines = [json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records]
        offsets = np.concatenate([[0], np.cumsum([len(line) for line in lines], dtype=np.int64)])
        return cls(memoryview(b"".join(lines)), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1


Effect = Literal["refused", "null", "outlier", "same", "duplicate", "blank"]
"""What a reader must make of a dirty line.

refused: the line has no usable user or place, or is not one JSON object in valid UTF-8; null: the line stays, its
``column`` becomes null; outlier: the line stays, its ``column`` is absurd and the reader's rule decides; same: the line
stays and means what the clean line meant; duplicate: the clean line stays and comes a second time; blank: the clean
line stays and an empty line, which is no line, follows.
"""


@dataclass(frozen=True)
class Dirt:
    """One way to spoil a line."""

    name: str
    effect: Effect
    spoil: Callable[[bytes], bytes]
    """From the clean line to the dirty one, both without newline."""
    column: str = ""


def _put(column: str, value: Any) -> Callable[[bytes], bytes]:
    return lambda line: json.dumps({**json.loads(line), column: value}).encode()


def _convert(column: str, change: Callable[[Any], Any]) -> Callable[[bytes], bytes]:
    def spoil(line: bytes) -> bytes:
        record = json.loads(line)
        return json.dumps({**record, column: change(record[column])}).encode()

    return spoil


def _drop(column: str) -> Callable[[bytes], bytes]:
    return lambda line: json.dumps({k: v for k, v in json.loads(line).items() if k != column}).encode()


def _id_dirt(column: str) -> list[Dirt]:
    """An id that a line cannot do without."""
    return [
        Dirt(f"{column}-number", "same", _convert(column, int), column),
        Dirt(f"{column}-null", "refused", _put(column, None), column),
        Dirt(f"{column}-missing", "refused", _drop(column), column),
    ]


def _optional_dirt(column: str, *, bad: Any = None) -> list[Dirt]:
    """A value that a line can do without; ``bad`` is something that cannot be read as such a value."""
    spoilt = [Dirt(f"{column}-bad", "null", _put(column, bad), column)] if bad is not None else []
    return [
        *spoilt,
        Dirt(f"{column}-null", "null", _put(column, None), column),
        Dirt(f"{column}-missing", "null", _drop(column), column),
    ]


def _time_dirt(column: str) -> list[Dirt]:
    return [
        *_optional_dirt(column, bad="yesterday"),
        Dirt(f"{column}-1970", "outlier", _put(column, "1970-01-01T00:00:00"), column),
        Dirt(f"{column}-2099", "outlier", _put(column, "2099-12-31T00:00:00"), column),
        Dirt(f"{column}-zoned", "same", _convert(column, lambda text: text + "Z"), column),
    ]


def _line_dirt(column: str) -> list[Dirt]:
    """Broken, doubled and blank lines; ``column`` is the one to hold a literal that JSON does not know."""
    return [
        Dirt("truncated", "refused", lambda line: line[: len(line) // 2]),
        Dirt("invalid-utf8", "refused", lambda line: line.replace(b'": "', b'": "\xff', 1)),
        Dirt("lone-surrogate", "refused", lambda line: line.replace(b'": "', b'": "\\ud800', 1)),
        Dirt("nan-literal", "refused", _put(column, float("nan"))),
        Dirt("infinity-literal", "refused", _put(column, float("inf"))),
        Dirt("two-documents", "refused", lambda line: line + b" " + line),
        Dirt("not-an-object", "refused", lambda line: b"[" + line + b"]"),
        Dirt("unknown-field", "same", _put("source_version", 2)),
        Dirt("carriage-return", "same", lambda line: line + b"\r"),
        Dirt("duplicate", "duplicate", lambda line: line),
        Dirt("blank", "blank", lambda line: line + b"\n"),
    ]


DIRT: Final[dict[Kind, tuple[Dirt, ...]]] = {
    "reviews": (
        *_id_dirt(schema.USER),
        *_id_dirt(schema.REVIEW_PLACE),
        *_optional_dirt(schema.REVIEW_ID),
        *_optional_dirt(schema.RATING, bad="bad"),
        Dirt(f"{schema.RATING}-text", "same", _convert(schema.RATING, str), schema.RATING),
        Dirt(f"{schema.RATING}-999", "outlier", _put(schema.RATING, 999), schema.RATING),
        *_time_dirt(schema.VISITED),
        *_line_dirt(schema.RATING),
    ),
    "likes": (
        *_id_dirt(schema.USER),
        *_id_dirt(schema.LIKE_CONTENTS),
        *_optional_dirt(schema.LIKE_DISPLAY),
        *_time_dirt(schema.LIKED_AT),
        *_line_dirt(schema.LIKED_AT),
    ),
    "places": (
        *_id_dirt(schema.PLACE),
        *_optional_dirt(schema.REGION),
        *_optional_dirt(schema.CATEGORIES),
        *_optional_dirt(schema.LAT, bad="north"),
        *_line_dirt(schema.LAT),
    ),
}
"""Every kind of dirt, by the kind of file it falls on; each is as likely as the others."""


def soil(
    lines: Lines, kind: Kind, share: float, rng: np.random.Generator
) -> tuple[list[bytes | memoryview], Counter[str]]:
    """Spoil each line with probability ``share``: pieces to be written one after the other, and each dirt's count.

    Duplicates come at the end of the block, far from their originals; everything else stays in its place.
    """
    rows = np.flatnonzero(rng.random(len(lines)) < share)
    chosen = rng.integers(len(DIRT[kind]), size=len(rows))
    pieces: list[bytes | memoryview] = []
    late: list[bytes] = []
    done = 0
    for start, end, which in zip(lines.offsets[rows], lines.offsets[rows + 1], chosen, strict=True):
        dirt = DIRT[kind][which]
        clean = bytes(lines.data[start : end - 1])
        pieces += [lines.data[done:start], dirt.spoil(clean) + b"\n"]
        late += [clean + b"\n"] if dirt.effect == "duplicate" else []
        done = end
    names = [dirt.name for dirt in DIRT[kind]]
    return [*pieces, lines.data[done:], *late], Counter(names[which] for which in chosen)


class PartWriter:
    """Writes the lines of one kind into ``<kind>-00000.jsonl``, ``<kind>-00001.jsonl`` ..., cut between lines."""

    def __init__(self, folder: Path, kind: Kind, part_bytes: int) -> None:
        self._folder, self._kind, self._part_bytes = folder, kind, part_bytes
        self._file: BinaryIO | None = None
        self.parts = 0
        self.bytes = 0

    def write(self, data: bytes) -> None:
        """Append whole lines; a part never exceeds ``part_bytes`` unless a single line does."""
        done = 0
        while done < len(data):
            file = self._file or self._next_part()
            end = self._cut(data, done, done + self._part_bytes - file.tell())
            file.write(memoryview(data)[done:end])
            done = end
            if done < len(data):
                self.close()
        self.bytes += len(data)

    def _cut(self, data: bytes, start: int, limit: int) -> int:
        """Where the current part ends: the last line end in reach, or the first one if the part is still empty."""
        if limit >= len(data):
            return len(data)
        end = data.rfind(b"\n", start, max(start, limit)) + 1
        is_empty = limit - start == self._part_bytes
        return end or (data.index(b"\n", start) + 1 if is_empty else start)

    def _next_part(self) -> BinaryIO:
        self._file = (self._folder / f"{self._kind}-{self.parts:05d}.jsonl").open("wb")
        self.parts += 1
        return self._file

    def close(self) -> None:
        """Finish the current part."""
        if self._file is not None:
            self._file.close()
            self._file = None
