"""analyze: every user's taste vector, through the engine, and every user's twin list."""

from __future__ import annotations

import functools
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tastetwin.analysis.duplicates import duplicate_labels
from tastetwin.analysis.encode import encode_table
from tastetwin.analysis.evidence import count_visitors
from tastetwin.analysis.lookup import write_visitors
from tastetwin.analysis.twins import Twins, find_twins
from tastetwin.config import Config
from tastetwin.engine import Engine
from tastetwin.errors import StoreError
from tastetwin.features.stage import read_histories
from tastetwin.features.vocabulary import read_vocabulary
from tastetwin.model.files import model_file
from tastetwin.progress import Progress, silent
from tastetwin.runs import FileEntry, Made, Manifest, Plan, make, verify
from tastetwin.schema import TWINS, USER, VECTORS
from tastetwin.store import Store
from tastetwin.tables import bucket_name, bucket_of, map_files, put_table, read_files

_USERS_AT_A_TIME: Final = 50_000


def analyze_users(
    engine: Engine,
    store: Store,
    features: Manifest,
    bundle: Manifest,
    config: Config,
    *,
    again: bool = False,
    progress: Progress = silent,
) -> Manifest:
    """Vectors and twin lists of all eligible users of ``features``, by the model in ``bundle``.

    Args:
        engine: where encoding runs.
        store: holds everything.
        features: the day's histories.
        bundle: the model; its files are checked against their hashes first.
        config: sections ``analyze`` and ``features.min_favors`` are used.
        again: make it once more even if it is finished.
        progress: told users searched.

    Raises:
        StoreError: DAMAGED when a file of the bundle is not what its manifest says.
    """
    settings = {"analyze": config.analyze.model_dump(mode="json"), "min_favors": config.features.min_favors}
    plan = Plan("analyze", features.logical_date, {"features": features, "train": bundle}, settings)

    def work(folder: str) -> Made:
        return _write(engine, store, features, bundle, config, folder, progress)

    return make(store, plan, work, again=again)


def _write(
    engine: Engine,
    store: Store,
    features: Manifest,
    bundle: Manifest,
    config: Config,
    folder: str,
    progress: Progress,
) -> Made:
    verify(store, bundle)
    vectors_written = _encode(engine, store, features, bundle, config, f"{folder}/vectors")
    histories, _ = read_histories(store, features, config.features.min_favors)
    vectors = read_vectors(store, [entry.path for entry in vectors_written])
    if not np.array_equal(vectors[0], histories.user_ids):
        raise StoreError("ENGINE-LOST-ROWS", place=folder, rule="every eligible user has a vector", fix="run it again")
    vocabulary = read_vocabulary(store, bundle.paths("vocabulary")[0])
    buckets = int(features.facts["buckets"])  # those of the histories, so that one user's rows go together
    twins = find_twins(vectors[1], config.analyze, duplicate_labels(histories, vocabulary), progress=progress)
    tables = {
        "vectors": vectors_written,
        "twins": _write_twins(store, histories.user_ids, twins, buckets, f"{folder}/twins"),
        "visitors": [write_visitors(store, f"{folder}/visitors.parquet", count_visitors(histories, vocabulary))],
    }
    facts = {
        "counts": {"users_served": int((twins.neighbours >= 0).any(axis=1).sum())},
        "buckets": buckets,
        "search": twins.facts.to_json(),
        "scale": twins.scale.to_json(),
    }
    return tables, facts


def _encode(
    engine: Engine, store: Store, features: Manifest, bundle: Manifest, config: Config, folder: str
) -> list[FileEntry]:
    work = functools.partial(
        encode_table,
        model=model_file(store, bundle),
        max_length=bundle.settings["train"]["max_length"],
        tokens=config.analyze.batch_tokens,
        min_favors=config.features.min_favors,
    )
    return map_files(engine, store, features.paths("history"), folder, work)


def read_vectors(store: Store, paths: list[str]) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.float32]]:
    """[n] user ids, ascending, and [n, dim] their vectors."""
    table = read_files(store, paths, VECTORS)
    table = table.take(pc.sort_indices(table.column(USER)))
    lists = table.column("vector").combine_chunks()
    values = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    return np.array(table.column(USER).to_pylist(), dtype=object), values.reshape(table.num_rows, -1)


def _write_twins(
    store: Store, user_ids: npt.NDArray[np.object_], twins: Twins, buckets: int, folder: str
) -> list[FileEntry]:
    """One row per user and rank, in buckets by user."""
    bucket = np.array([bucket_of(str(user), buckets) for user in user_ids])
    ids = pa.array(user_ids, pa.string())
    written = []
    for number in range(buckets):
        mine = np.flatnonzero(bucket == number)
        pieces = [_rows(ids, twins, mine[at : at + _USERS_AT_A_TIME]) for at in range(0, len(mine), _USERS_AT_A_TIME)]
        if pieces:
            written.append(put_table(store, f"{folder}/{bucket_name(number)}", pa.concat_tables(pieces)))
    return written


def _rows(ids: pa.Array, twins: Twins, users: npt.NDArray[np.int64]) -> pa.Table:
    neighbours = twins.neighbours[users]
    there = neighbours >= 0
    at, rank = np.nonzero(there)
    scores = twins.scores[users][there]
    return pa.table(
        [
            ids.take(pa.array(users[at])),
            pa.array((rank + 1).astype(np.int32)),
            ids.take(pa.array(neighbours[there])),
            pa.array(scores),
            pa.array(twins.scale.percentile(scores)),
        ],
        schema=TWINS,
    )
