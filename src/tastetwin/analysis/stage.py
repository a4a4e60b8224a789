"""analyze: every user's taste vector, through the engine, and every user's twin list."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from datetime import date
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tastetwin.analysis.chance import MIN_USERS, Chance, fit_chance
from tastetwin.analysis.encode import check_vectors, encode_table, open_encoder
from tastetwin.analysis.evidence import count_visitors
from tastetwin.analysis.index import Floats, Ints
from tastetwin.analysis.lookup import write_visitors
from tastetwin.analysis.next_place import next_place_pairs
from tastetwin.analysis.pairs import PairRules
from tastetwin.analysis.parts import Split, fit_parts, read_axes, reweighted, write_axes
from tastetwin.analysis.standing import exposure_table, mainstream, standing
from tastetwin.analysis.stored import read_vectors
from tastetwin.analysis.twins import Twins, find_twins
from tastetwin.config import Config
from tastetwin.engine import Engine
from tastetwin.errors import StoreError
from tastetwin.features.histories import Histories, Vocabulary
from tastetwin.features.holdout import choose_holdout, set_aside
from tastetwin.features.home import home_regions
from tastetwin.features.stage import NOT_SHOWN, read_histories
from tastetwin.features.vocabulary import read_vocabulary
from tastetwin.generations import FileEntry, Made, Manifest, Plan, make, verify
from tastetwin.model.files import model_file
from tastetwin.model.past import full_training
from tastetwin.privacy.opt_out import OptOuts, read_opt_outs
from tastetwin.progress import Progress, silent
from tastetwin.schema import OTHER, TWINS, USER
from tastetwin.store import Store
from tastetwin.tables import bucket_name, bucket_of, map_files, put_table, read_table

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
        config: sections ``analyze``, ``lists`` and ``features.min_favors`` are used.
        again: make it once more even if it is finished.
        progress: told users searched.

    Raises:
        StoreError: DAMAGED when a file of the bundle is not what its manifest says; OTHER-VOCABULARY when the bundle
            reads other rows as other places than the histories do; BAD-VECTOR; OPT-OUTS-DAMAGED.
    """
    opt_outs = read_opt_outs(store)
    settings = {
        "analyze": config.analyze.model_dump(mode="json"),
        "lists": config.lists.model_dump(mode="json"),
        "min_favors": config.features.min_favors,
        "opted_out": opt_outs.digest(),
    }
    plan = Plan("analyze", features.logical_date, {"features": features, "train": bundle}, settings)

    def work(folder: str) -> Made:
        return _write(engine, store, features, bundle, opt_outs, config, folder, progress)

    return make(store, plan, work, again=again)


def _write(
    engine: Engine,
    store: Store,
    features: Manifest,
    bundle: Manifest,
    opt_outs: OptOuts,
    config: Config,
    folder: str,
    progress: Progress,
) -> Made:
    verify(store, bundle)
    vocabulary = _common_vocabulary(store, features, bundle)
    vectors_written = _encode(engine, store, features, bundle, opt_outs, config, f"{folder}/vectors")
    everybody, _ = read_histories(store, features, config.features.min_favors)
    histories = everybody.select(np.flatnonzero(~opt_outs.of(everybody.user_ids)))
    ids, vectors = read_vectors(store, [entry.path for entry in vectors_written])
    if not np.array_equal(ids, histories.user_ids):
        raise StoreError("ENGINE-LOST-ROWS", place=folder, rule="every eligible user has a vector", fix="run it again")
    check_vectors(vectors, ids, folder)  # as they were stored: a worker's own check says nothing of what became of them
    buckets = int(features.facts["buckets"])  # those of the histories, so that one user's rows go together
    homes = home_regions(histories, vocabulary)
    parts = fit_parts(vectors, homes, config.analyze.seed)
    looked_at = reweighted(vectors, parts.axes, config.analyze.home_weight)
    found = standing(histories, vocabulary, config.lists, date.fromisoformat(features.logical_date))
    rules = PairRules(_not_shown(store, features, ids), config.lists.region, homes)
    twins = find_twins(
        looked_at,
        config.analyze,
        found.labels,
        found.may_be_shown,
        progress,
        rules=rules,
        lists=config.lists,
    )
    chance = _measure_chance(store, bundle, histories, vocabulary, looked_at, parts.axes, twins, config)
    there = twins.neighbours[twins.neighbours >= 0]
    chances = _chances(chance, twins, histories.lengths())
    visitors = count_visitors(histories, vocabulary)
    lists = np.bincount(there, minlength=len(ids))
    exposure = exposure_table(ids, found, lists, twins.densities, mainstream(histories, visitors.places))
    tables = {
        "vectors": vectors_written,
        "twins": _write_twins(store, ids, twins, Split.of(vectors, parts.axes), chances, buckets, f"{folder}/twins"),
        **write_axes(store, folder, parts.axes),
        "exposure": [put_table(store, f"{folder}/exposure.parquet", exposure)],
        "visitors": [write_visitors(store, f"{folder}/visitors.parquet", visitors)],
    }
    facts = {
        "counts": {
            "users_served": int((twins.neighbours >= 0).any(axis=1).sum()),
            "opted_out": everybody.n_users - histories.n_users,
            **{f"hidden.{reason}": count for reason, count in _counted(exposure.column("hidden").drop_null())},
            "short_lists": twins.facts.short,
        },
        "buckets": buckets,
        "search": twins.facts.to_json(),
        "scale": twins.scale.to_json(),
        "parts": parts.to_json(),
        "chance": None if chance is None else chance.to_json(),
    }
    return tables, facts


def _measure_chance(
    store: Store,
    bundle: Manifest,
    histories: Histories,
    vocabulary: Vocabulary,
    looked_at: Floats,
    axes: Floats,
    twins: Twins,
    config: Config,
) -> Chance | None:
    """What a score is worth, by the users whom training did not see; None where they are too few."""
    rules = config.evaluate.model_copy(update=bundle.settings["holdout"])
    unseen = set_aside(histories, full_training(bundle).aside_limit, rules.seed)
    users = np.flatnonzero(choose_holdout(histories, rules, rules.seed) & unseen)
    if len(users) < MIN_USERS:
        return None
    encoder = open_encoder(store, bundle, config.analyze.batch_tokens)
    pairs = next_place_pairs(
        histories,
        vocabulary,
        users,
        lambda before: reweighted(encoder.encode(before), axes, config.analyze.home_weight),
        looked_at,
        twins.densities,
        twins.scale,
        config.analyze.csls_neighbours,
        config.analyze.seed,
    )
    return fit_chance(pairs, config.analyze.seed)


def _chances(chance: Chance | None, twins: Twins, places: Ints) -> Floats | None:
    """[n, k] of the twins in the lists, given everybody's number of places."""
    if chance is None:
        return None
    return chance.of(twins.scale.percentile(twins.scores), places[twins.neighbours])


def _counted(values: pa.ChunkedArray) -> Iterator[tuple[str, int]]:
    """Each distinct value and how often it is there."""
    return ((each["values"], each["counts"]) for each in pc.value_counts(values).to_pylist())


def _not_shown(store: Store, features: Manifest, ids: npt.NDArray[np.object_]) -> Ints:
    """``PairRules.not_shown`` of the users that are analysed."""
    pairs = read_table(store, features, "not_shown", NOT_SHOWN)
    known = pa.array(ids, pa.string())
    users, others = (pc.index_in(pairs.column(name), value_set=known).combine_chunks() for name in (USER, OTHER))
    both = pc.and_(pc.is_valid(users), pc.is_valid(others))
    mine, theirs = (each.filter(both).to_numpy().astype(np.int64) for each in (users, others))
    return np.unique(mine * len(ids) + theirs)


def _common_vocabulary(store: Store, features: Manifest, bundle: Manifest) -> Vocabulary:
    """The one vocabulary of histories and model: histories are rows, and nothing else says of which places."""
    theirs, ours = (read_vocabulary(store, made.paths("vocabulary")[0]) for made in (bundle, features))
    if not np.array_equal(theirs.place_ids, ours.place_ids):
        raise StoreError(
            "OTHER-VOCABULARY",
            place=store.path(bundle.paths("vocabulary")[0]),
            value=f"{theirs.n_rows} rows, {ours.n_rows} in {features.generation}",
            rule="model and histories read every row as the same place",
            fix="train again on these features",
        )
    return theirs


def _encode(
    engine: Engine,
    store: Store,
    features: Manifest,
    bundle: Manifest,
    opt_outs: OptOuts,
    config: Config,
    folder: str,
) -> list[FileEntry]:
    work = functools.partial(
        encode_table,
        model=model_file(store, bundle),
        max_length=bundle.settings["train"]["max_length"],
        tokens=config.analyze.batch_tokens,
        min_favors=config.features.min_favors,
        form=config.analyze.vectors,
        opt_outs=opt_outs,
    )
    return map_files(engine, store, features.paths("history"), folder, work)


def list_vectors(store: Store, analysis: Manifest, vectors: Floats) -> Floats:
    """[n, dim] the vectors whose nearest the lists of a run are, from its stored ones."""
    weight = float(analysis.settings["analyze"].get("home_weight", 1.0))  # runs made before there were parts
    return reweighted(vectors, read_axes(store, analysis, vectors.shape[1]), weight)


def _write_twins(
    store: Store,
    user_ids: npt.NDArray[np.object_],
    twins: Twins,
    split: Split,
    chances: Floats | None,
    buckets: int,
    folder: str,
) -> list[FileEntry]:
    """One row per user and rank, in buckets by user."""
    bucket = np.array([bucket_of(str(user), buckets) for user in user_ids])
    ids = pa.array(user_ids, pa.string())
    written = []
    for number in range(buckets):
        mine = np.flatnonzero(bucket == number)
        blocks = [mine[at : at + _USERS_AT_A_TIME] for at in range(0, len(mine), _USERS_AT_A_TIME)]
        if pieces := [_rows(ids, twins, split, chances, block) for block in blocks]:
            written.append(put_table(store, f"{folder}/{bucket_name(number)}", pa.concat_tables(pieces)))
    return written


def _rows(ids: pa.Array, twins: Twins, split: Split, chances: Floats | None, users: Ints) -> pa.Table:
    neighbours = twins.neighbours[users]
    there = neighbours >= 0
    parts = split.parts(users, np.where(there, neighbours, 0).astype(np.int64))
    at, rank = np.nonzero(there)
    scores = twins.scores[users][there]
    return pa.table(
        [
            ids.take(pa.array(users[at])),
            pa.array((rank + 1).astype(np.int32)),
            ids.take(pa.array(neighbours[there])),
            pa.array(scores),
            pa.array(twins.scale.percentile(scores)),
            *(pa.array(part[there]) for part in parts),
            pa.nulls(len(at), pa.float32()) if chances is None else pa.array(chances[users][there]),
        ],
        schema=TWINS,
    )
