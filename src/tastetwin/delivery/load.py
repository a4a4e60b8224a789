"""load: the published lists into a database from which services read.

A version is loaded beside the one that readers see, checked, and shown from one moment to the next; the one shown
before is kept to go back to. Nobody who has opted out is in what is loaded or, once a load has ended, in what is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tastetwin.delivery.targets.base import Target, Version, failed, open_target
from tastetwin.generations import read_manifest
from tastetwin.privacy.opt_out import OptOuts, name_of, read_opt_outs
from tastetwin.progress import Progress, silent
from tastetwin.runs import Run, published_run
from tastetwin.schema import RESULT, USER
from tastetwin.store import Store

BATCH_ROWS: Final = 256
SAMPLE_EVERY: Final = 64
"""Of so many batches one row is read back and compared."""
_DIGITS: Final = 12


@dataclass(frozen=True)
class Loaded:
    """What readers of a database see now."""

    to: str
    """The address, without user and password."""
    run_id: str
    rows: int
    """Written by this call; 0 when the run was there already."""
    previous: str | None
    """The run kept to go back to."""


def load_published(store: Store, address: str, *, progress: Progress = silent) -> Loaded:
    """Load the published run into a database and show it there; what is there already is not loaded again.

    ``address`` as of ``targets.base.open_target``; ``progress`` is told rows sent.

    Raises:
        UsageError: NOT-PUBLISHED, DATABASE-ADDRESS.
        MissingExtra: for the database's driver.
        StoreError: DATABASE-CHECK when the database has not got what was sent; DATABASE-UNREACHABLE, DATABASE-REFUSED,
            DATABASE-FULL, DATABASE-BROKEN-OFF, DATABASE-BUSY, DATABASE-OTHER; OPT-OUTS-DAMAGED. Readers see no change.
    """
    run = published_run(store)
    wanted, paths = _wanted(store, run)
    with open_target(address) as target:
        kept = target.versions()
        version, rows = next((each for each in kept if each.name == wanted.name), None), 0
        if version is None:
            version = wanted
            rows = _load(store, run, target, version, paths, progress)
            kept = kept[:1]
        return _show(store, target, [version, *(each for each in kept if each.name != version.name)], rows)


def plan_load(store: Store, address: str) -> Loaded:
    """What ``load_published`` would do; nothing but a lock is written, and taken back. Raises as that does."""
    run = published_run(store)
    wanted, paths = _wanted(store, run)
    with open_target(address) as target:
        kept = target.versions()
        is_there = wanted.name in {each.name for each in kept}
        rows = 0 if is_there else sum(_parquet(store, path).metadata.num_rows for path in paths)
        before = next((each.run_id for each in kept if each.name != wanted.name), None)
        return Loaded(target.place, run.run_id, rows, before)


def roll_back_loaded(store: Store, address: str) -> Loaded:
    """Show what a database's readers saw before; the run they see now is kept in its place.

    Raises:
        StoreError: DATABASE-NO-PREVIOUS; otherwise as ``load_published``.
        UsageError, MissingExtra: as ``load_published``.
    """
    with open_target(address) as target:
        kept = target.versions()
        if len(kept) < 2:
            raise failed("DATABASE-NO-PREVIOUS", target.place, "nothing to go back to")
        return _show(store, target, [kept[1], kept[0]], 0)


def erase_loaded(address: str, users: Sequence[str]) -> None:
    """Remove users at once from a database, rows and appearances in others' lists, from all that is kept there.

    Raises:
        UsageError, MissingExtra, StoreError: as ``load_published``.
    """
    with open_target(address) as target:
        for version in target.versions():
            target.erase(version, users)


@dataclass
class _Sent:
    """Rows as they leave, and some of them to be compared with what arrives."""

    rows: int = 0
    sample: list[pa.Table] = field(default_factory=list)


def _wanted(store: Store, run: Run) -> tuple[Version, list[str]]:
    """The published run as a version, and its files."""
    result = read_manifest(store, "deliver", run.generation("deliver"))
    version = Version(run.run_id, result.digest()[:_DIGITS], read_opt_outs(store).digest()[:_DIGITS])
    return version, result.paths("result")


def _load(store: Store, run: Run, target: Target, version: Version, paths: Sequence[str], progress: Progress) -> int:
    sent = _Sent()
    hidden = _known(store, run, paths, read_opt_outs(store))
    counted = target.load(version, _batches(store, paths, hidden, sent, progress))
    if counted != sent.rows:
        raise failed("DATABASE-CHECK", target.place, f"{counted:,} rows of {sent.rows:,}")
    expected = pa.concat_tables([RESULT.empty_table(), *sent.sample]).sort_by("idno").combine_chunks()
    found = target.read(version, expected.column("idno").to_pylist()).sort_by("idno").combine_chunks()
    if not found.equals(expected):
        raise failed("DATABASE-CHECK", target.place, f"of {expected.num_rows} rows read back, some differ")
    return sent.rows


def _batches(
    store: Store, paths: Sequence[str], opted_out: pa.Array, sent: _Sent, progress: Progress
) -> Iterator[pa.Table]:
    total = sum(_parquet(store, path).metadata.num_rows for path in paths)
    for path in paths:
        for number, batch in enumerate(_parquet(store, path).iter_batches(BATCH_ROWS)):
            rows = without_users(pa.Table.from_batches([batch]).cast(RESULT), opted_out)
            sent.rows += rows.num_rows
            sent.sample += [rows.slice(0, 1)] if number % SAMPLE_EVERY == 0 else []
            yield rows
            progress(sent.rows, total)


def _parquet(store: Store, path: str) -> pq.ParquetFile:
    return pq.ParquetFile(store.path(path), filesystem=store.arrow)


def without_users(rows: pa.Table, users: pa.Array) -> pa.Table:
    """``schema.RESULT`` without these users' rows, and without them in the lists of others."""
    if not len(users):
        return rows
    rows = rows.filter(pc.invert(pc.is_in(rows.column("idno"), value_set=users))).combine_chunks()
    payload = rows.column("payload").combine_chunks()
    lists, kind = payload.field("twins"), payload.type.field("twins").type
    twins = lists.flatten()
    stays = pc.invert(pc.is_in(twins.field("twin_idno"), value_set=users))
    before = np.concatenate([[0], np.cumsum(stays.to_numpy(zero_copy_only=False))]).astype(np.int32)
    offsets = before[lists.offsets.to_numpy() - lists.offsets[0].as_py()]
    fields = {each.name: payload.field(each.name) for each in payload.type}
    fields["twins"] = pa.ListArray.from_arrays(pa.array(offsets), twins.filter(stays)).cast(kind)
    rebuilt = pa.StructArray.from_arrays(list(fields.values()), fields=list(payload.type))
    return pa.table([rows.column("idno"), rebuilt], schema=RESULT)


def _show(store: Store, target: Target, versions: Sequence[Version], rows: int) -> Loaded:
    """Show the first version, all of them without anybody who has opted out by now."""
    opt_outs = read_opt_outs(store)
    digest = opt_outs.digest()[:_DIGITS]
    for version in versions if opt_outs.names else ():
        if version.opted_out != digest:
            # Asked of the table itself: the published run need not know who is in an older one, or was forgotten.
            gone = {user for user in target.people(version) if name_of(user) in opt_outs.names}
            if gone:
                target.erase(version, sorted(gone))
    shown = [replace(version, opted_out=digest) for version in versions]
    if shown != target.versions():
        target.show(shown)
    return Loaded(target.place, shown[0].run_id, rows, shown[1].run_id if len(shown) > 1 else None)


def _known(store: Store, run: Run, paths: Sequence[str], opt_outs: OptOuts) -> pa.Array:
    """Ids of those who have opted out.

    The run's features know everybody who was ever in a list, and its results ``paths`` whoever is being forgotten and
    is in the features no more.
    """
    found = [pa.array([], pa.string())]
    history = read_manifest(store, "features", run.generation("features")).paths("history")
    columns = [*((path, USER) for path in history), *((path, "idno") for path in paths)]
    for path, column in columns if opt_outs.names else ():
        users = _parquet(store, path).read(columns=[column]).column(column).combine_chunks()
        found.append(users.filter(pa.array(opt_outs.of(users.to_pylist()))))
    return pa.concat_arrays(found)
