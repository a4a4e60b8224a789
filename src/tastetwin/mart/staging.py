"""Raw lines to typed rows: every split of the lake through the line gate, in parallel on the engine.

Workers write what they accept and what they refuse into files named after the split, so a task that the engine tries
twice leaves the same bytes; only counts travel back.
"""

from __future__ import annotations

import functools
from collections import Counter
from contextlib import ExitStack

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from tastetwin.engine import Engine
from tastetwin.errors import StoreError
from tastetwin.mart.gate import GateRules, Split, gate_split
from tastetwin.progress import Progress
from tastetwin.schema import MART, QUARANTINE, Kind
from tastetwin.store import Store
from tastetwin.tables import PARQUET


def stage_lines(
    engine: Engine, store: Store, splits: list[Split], rules: GateRules, folder: str, progress: Progress
) -> dict[Kind, Counter[str]]:
    """Gate all splits into ``folder/<kind>/`` and ``folder/quarantine/``; returns the counts of each kind.

    The lake's URL must open on the workers too; ``progress`` is told lines read so far.
    """
    for name in (*sorted({split.kind for split in splits}), "quarantine"):
        store.make_folder(f"{folder}/{name}")
    tasks = [orjson.dumps([number, split]).decode() for number, split in enumerate(splits)]
    work = functools.partial(_gate_task, root=store.url(""), folder=folder, rules=rules)
    answers: dict[int, Counter[str]] = {}
    for text in engine.each(tasks, work):
        number, found = orjson.loads(text)
        answers[number] = Counter(found)
        progress(sum(counts["lines_read"] for counts in answers.values()), None)
    if len(answers) != len(splits):
        raise StoreError(
            "ENGINE-LOST-ROWS",
            place=folder,
            value=f"{len(answers)} of {len(splits)} tasks answered",
            rule="all do",
            fix="run it again",
        )
    totals: dict[Kind, Counter[str]] = {}
    for number, counts in answers.items():
        totals.setdefault(splits[number].kind, Counter()).update(counts)
    return totals


def _gate_task(task: str, *, root: str, folder: str, rules: GateRules) -> str:
    """The worker's side: [number, split] in, [number, counts] out, both as JSON."""
    number, said = orjson.loads(task)
    store, split, name = Store(root), Split(**said), f"{number:06d}.parquet"
    counts: Counter[str] = Counter()
    with ExitStack() as files:
        accepted = _Part(store, f"{folder}/{split.kind}/{name}", MART[split.kind], files)
        refused = _Part(store, f"{folder}/quarantine/{name}", QUARANTINE, files)
        for batch in gate_split(split, rules, store.open_read):
            accepted.write(batch.accepted)
            refused.write(batch.quarantined)
            counts.update(batch.counts)
    return orjson.dumps([number, counts]).decode()


class _Part:
    """A Parquet file that comes into being with its first row, whole or not at all."""

    def __init__(self, store: Store, relative: str, schema: pa.Schema, files: ExitStack) -> None:
        self._store = store
        self._relative = relative
        self._schema = schema
        self._files = files
        self._writer: pq.ParquetWriter | None = None

    def write(self, batch: pa.RecordBatch) -> None:
        if batch.num_rows == 0:
            return
        if self._writer is None:
            sink = self._files.enter_context(self._store.open_write(self._relative))
            self._writer = self._files.enter_context(pq.ParquetWriter(sink, self._schema, **PARQUET))
        self._writer.write_batch(batch)
