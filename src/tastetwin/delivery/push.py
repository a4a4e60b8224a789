"""push: a topic holds the published list of every user, and is sent only what it does not hold yet.

What a topic holds is kept in the store, bucket by bucket: user and digest of the list. Before a message is sent, the
users concerned are noted as *uncertain*; when all are confirmed, as sent. So whenever this process dies, whoever may
differ in the topic is known, and is sent again by the next push, of whichever run. Nothing is derived from runs that
were pushed before: they may be pruned, rolled back, or have been pushed when other people had opted out.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from tastetwin.generations import fingerprint, read_manifest
from tastetwin.privacy.opt_out import OptOuts, read_opt_outs
from tastetwin.runs import published_run
from tastetwin.schema import RESULT, USER
from tastetwin.store import Store
from tastetwin.tables import bucket_name, bucket_of, put_table, read_bucket, read_files

SCHEMA: Final = 1
"""Version of the values, in each as ``schema``."""
FOLDER: Final = "pushed"
HELD: Final = pa.schema([pa.field(USER, pa.string(), nullable=False), pa.field("digest", pa.binary(16))])
"""held: one row per user that a topic may hold a list of; no digest = uncertain which."""

Held = dict[str, bytes | None]


class Sink(Protocol):
    """What messages are sent to, such as a ``kafka.Topic``."""

    def send(self, messages: Iterable[tuple[bytes, bytes | None]]) -> int:
        """Returns when all are confirmed; raises when one is not."""


@dataclass(frozen=True)
class Record:
    """What is known of a target besides ``HELD``."""

    target: str
    buckets: int
    run_id: str | None = None
    """The run that is there completely; None while, or since, a push was broken off."""


@dataclass(frozen=True)
class Pushed:
    """What a push sent, or with a dry run would send."""

    target: str
    run_id: str
    values: int
    tombstones: int
    unchanged: int
    """Users whose list is there already."""


def push(store: Store, target: str, sink: Sink | None, *, k: int = 10, full: bool = False) -> Pushed:
    """Bring ``target`` to the published lists, each cut to the closest ``k``.

    ``target`` is the topic's address, under which the store, whose lock the caller holds, remembers what is there;
    without a ``sink`` messages are only counted; ``full`` sends what is there already, too.

    Raises:
        UsageError: NOT-PUBLISHED.
        StoreError: whatever ``sink`` raises, with which the push can be repeated; DAMAGED, OPT-OUTS-DAMAGED.
    """
    run = published_run(store)
    made = read_manifest(store, "deliver", run.generation("deliver"))
    record = read_record(store, target) or Record(target, int(made.facts["buckets"]))
    opt_outs = read_opt_outs(store)
    head = orjson.dumps({"schema": SCHEMA, "run_id": run.run_id, "logical_date": run.logical_date})[:-1] + b',"twins":'
    total = Pushed(target, run.run_id, 0, 0, 0)
    if sink is not None:
        _write_record(store, replace(record, run_id=None))
    for number in range(record.buckets):
        rows = read_bucket(store, made, "result", RESULT, number, record.buckets)
        lists, held = dict(_lists(rows, opt_outs, k)), _read_held(store, target, number)
        after: Held = {user: _digest(text) for user, text in lists.items()}
        changed = [user for user in lists if full or held.get(user) != after[user]]
        gone = [user for user in held if user not in lists]
        if sink is not None and (changed or gone):
            _note(store, target, number, {**held, **dict.fromkeys([*changed, *gone])})
            values = ((user.encode(), head + lists[user] + b"}") for user in changed)
            sink.send(itertools.chain(values, ((user.encode(), None) for user in gone)))
            _note(store, target, number, after)
        total = replace(
            total,
            values=total.values + len(changed),
            tombstones=total.tombstones + len(gone),
            unchanged=total.unchanged + len(lists) - len(changed),
        )
    if sink is not None:
        _write_record(store, replace(record, run_id=run.run_id))
    return total


def tombstones(store: Store, target: str, sink: Sink, users: Iterable[str]) -> int:
    """Send a tombstone for each of these users, known there or not; returns how many. Nothing of them is kept.

    Who is in the published lists and has not opted out is sent again by the next push.

    Raises:
        StoreError: whatever ``sink`` raises; they are sent again by the next push, unless they are published again.
    """
    record = read_record(store, target) or Record(target, 1)
    by_bucket: dict[int, list[str]] = {}
    for user in dict.fromkeys(users):
        if _is_key(user):
            by_bucket.setdefault(bucket_of(user, record.buckets), []).append(user)
    sent = 0
    for number, mine in sorted(by_bucket.items()):
        held = _read_held(store, target, number)
        known = [user for user in mine if user in held]
        if known:
            _note(store, target, number, {**held, **dict.fromkeys(known)})
        sent += sink.send([(user.encode(), None) for user in mine])
        if known:
            _note(store, target, number, {user: digest for user, digest in held.items() if user not in set(known)})
    return sent


def targets(store: Store) -> list[str]:
    """Everywhere that was ever pushed to."""
    return [str(store.read_json(f"{FOLDER}/{name}/target.json")["target"]) for name in store.names(FOLDER)]


def read_record(store: Store, target: str) -> Record | None:
    """What is known of a target; None before the first push.

    Raises:
        StoreError: DAMAGED.
    """
    path = f"{_folder(target)}/target.json"
    if not store.exists(path):
        return None
    try:
        return Record(**store.read_json(path))
    except TypeError as error:
        raise store.damaged(path, str(error)) from error


def _write_record(store: Store, record: Record) -> None:
    store.write_json(f"{_folder(record.target)}/target.json", asdict(record))


def _folder(target: str) -> str:
    return f"{FOLDER}/{fingerprint(target)[:16]}"


def _read_held(store: Store, target: str, number: int) -> Held:
    path = f"{_folder(target)}/{bucket_name(number)}"
    rows = read_files(store, [path] if store.exists(path) else [], HELD)
    return dict(zip(rows.column(USER).to_pylist(), rows.column("digest").to_pylist(), strict=True))


def _note(store: Store, target: str, number: int, held: Held) -> None:
    users = sorted(held)
    columns = [pa.array(users, pa.string()), pa.array([held[user] for user in users], pa.binary(16))]
    put_table(store, f"{_folder(target)}/{bucket_name(number)}", pa.table(columns, schema=HELD))


def _digest(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=16, person=b"schema %d" % SCHEMA).digest()


def _is_key(user: str) -> bool:
    """A lone surrogate is legal in Python and in nobody's key."""
    return not any("\ud800" <= character <= "\udfff" for character in user)


def _lists(rows: pa.Table, opt_outs: OptOuts, k: int) -> Iterator[tuple[str, bytes]]:
    """(user, JSON of the closest ``k`` twins) of those who have not opted out, in whose lists nobody has, either.

    No score, which would tell one user how another one lives, and whole percentiles, rounded down: with
    two digits more hardly any list would be the same on two days.
    """
    rows = opt_outs.without(rows, "idno").combine_chunks()
    if not rows.num_rows:
        return
    lists = pc.struct_field(rows.column("payload"), "twins").combine_chunks()
    twins = lists.flatten()
    owner = np.repeat(np.arange(len(lists)), lists.value_lengths().fill_null(0).to_numpy())
    ids = twins.field("twin_idno")
    shown = np.flatnonzero(~_hidden(ids, opt_outs))
    place = np.arange(len(shown)) - np.searchsorted(owner[shown], owner[shown])
    shown = shown[place < k]
    names = ids.take(pa.array(shown)).to_pylist()
    percentiles = pc.cast(pc.floor(twins.field("percentile").take(pa.array(shown))), pa.int32()).to_pylist()
    ends = np.searchsorted(owner[shown], np.arange(len(lists)), side="right").tolist()
    for user, start, stop in zip(rows.column("idno").to_pylist(), [0, *ends], ends, strict=False):
        yield user, _json(names[start:stop], percentiles[start:stop])


def _hidden(ids: pa.Array, opt_outs: OptOuts) -> npt.NDArray[np.bool_]:
    distinct = ids.dictionary_encode()
    return np.asarray(opt_outs.of(distinct.dictionary.to_pylist())[distinct.indices.to_numpy()])


def _json(names: Sequence[str], percentiles: Sequence[int]) -> bytes:
    entries: list[Mapping[str, object]] = [
        {"idno": name, "rank": rank, "percentile": percentile}
        for rank, (name, percentile) in enumerate(zip(names, percentiles, strict=True), 1)
    ]
    return orjson.dumps(entries)
