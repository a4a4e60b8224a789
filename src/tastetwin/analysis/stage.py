"""analyze: every user's taste vector, through the engine, and every user's twin list."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from datetime import date

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tastetwin.analysis.chance import MIN_USERS, Chance, fit_chance
from tastetwin.analysis.encode import check_vectors, encode_table, open_encoder
from tastetwin.analysis.evidence import count_visitors
from tastetwin.analysis.hubness import draw_bank
from tastetwin.analysis.index import Floats, Ints, Vectors
from tastetwin.analysis.next_place import Everybody, next_place_pairs
from tastetwin.analysis.pairs import PairRules
from tastetwin.analysis.parts import Parts, Split, fit_parts, read_axes, reweighted, write_axes
from tastetwin.analysis.rows import parts_of, twin_rows
from tastetwin.analysis.scale import ScoreScale
from tastetwin.analysis.sharded import find_sharded
from tastetwin.analysis.shards import lost_rows, shards_for, write_shards
from tastetwin.analysis.standing import Standing, exposure_table, mainstream, standing
from tastetwin.analysis.stored import read_vectors
from tastetwin.analysis.twins import SearchFacts, Twins, find_twins, first_of_each
from tastetwin.analysis.visitors import write_visitors
from tastetwin.config import Config
from tastetwin.engine import Engine
from tastetwin.errors import StoreError, UsageError
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
from tastetwin.schema import OTHER, USER
from tastetwin.store import Store
from tastetwin.tables import bucket_name, bucket_of, map_files, put_table, read_table


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

    Sections ``analyze``, ``lists`` and ``features.min_favors`` of the configuration are used; ``progress`` is told
    users searched.

    Raises:
        StoreError: DAMAGED when a file of the bundle is not what its manifest says; OTHER-VOCABULARY when the bundle
            reads other rows as other places than the histories do; BAD-VECTOR; OPT-OUTS-DAMAGED.
        UsageError: CONFIG-VALUE when lists in mutual order are asked for in shards.
    """
    if config.analyze.shards and config.lists.mutual:
        raise UsageError(
            "CONFIG-VALUE",
            place="analyze.shards",
            value=f"{config.analyze.shards}, with lists.mutual",
            rule="mutual order compares everybody's list with everybody's: one process makes it",
            fix="leave analyze.shards at 0, or lists.mutual off",
        )
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
    everybody = read_histories(store, features, config.features.min_favors)
    histories = everybody.select(np.flatnonzero(~opt_outs.of(everybody.user_ids)))
    ids = histories.user_ids
    homes = home_regions(histories, vocabulary)
    day = _Day(
        store=store,
        bundle=bundle,
        histories=histories,
        vocabulary=vocabulary,
        config=config,
        found=standing(histories, vocabulary, config.lists, date.fromisoformat(features.logical_date)),
        rules=PairRules(_not_shown(store, features, ids), config.lists.region, homes),
        paths=[entry.path for entry in vectors_written],
        buckets=int(features.facts["buckets"]),  # those of the histories, so that one user's rows go together
        folder=folder,
    )
    shards = shards_for(config.analyze.shards, len(ids), mutual=config.lists.mutual)
    lists = _in_shards(engine, day, shards, progress) if shards else _in_one_process(day, progress)
    parts, chance = lists.parts, lists.chance
    visitors = count_visitors(histories, vocabulary)
    codes = pa.array([*vocabulary.region_codes, None], pa.string())
    regions = codes.take(pa.array(np.where(homes < 0, len(codes) - 1, homes)))
    how = mainstream(histories, vocabulary, visitors.places)
    exposure = exposure_table(ids, day.found, lists.shown, lists.densities, how, regions)
    hidden = pc.value_counts(exposure.column("hidden").drop_null())
    tables = {
        "vectors": vectors_written,
        "twins": lists.rows,
        **write_axes(store, folder, parts.axes),
        "exposure": [put_table(store, f"{folder}/exposure.parquet", exposure)],
        "visitors": [write_visitors(store, f"{folder}/visitors.parquet", visitors)],
    }
    facts = {
        "counts": {
            "users_served": lists.served,
            "opted_out": everybody.n_users - histories.n_users,
            **{f"hidden.{each['values']}": each["counts"] for each in hidden.to_pylist()},
            "short_lists": lists.facts.short,
        },
        "buckets": day.buckets,
        "search": asdict(lists.facts),
        "scale": lists.scale.to_json(),
        "parts": parts.to_json(),
        "chance": None if chance is None else chance.to_json(),
    }
    return tables, facts


@dataclass(frozen=True)
class _Day:
    """What the lists are made of."""

    store: Store
    bundle: Manifest
    histories: Histories
    vocabulary: Vocabulary
    config: Config
    found: Standing
    rules: PairRules
    paths: list[str]
    """Files of vectors."""
    buckets: int
    folder: str


@dataclass(frozen=True)
class _Lists:
    """How they came out."""

    parts: Parts
    chance: Chance | None
    shown: Ints
    """[n] in how many each user is."""
    densities: Floats
    """[n] see ``hubness.density``."""
    served: int
    facts: SearchFacts
    scale: ScoreScale
    rows: list[FileEntry]


def _in_one_process(day: _Day, progress: Progress) -> _Lists:
    config, histories, found = day.config, day.histories, day.found
    ids, vectors = read_vectors(day.store, day.paths)
    if not np.array_equal(ids, histories.user_ids):
        raise lost_rows(day.folder)
    check_vectors(vectors, day.folder)  # as stored: a worker's own check says nothing of what became of them
    parts = fit_parts(vectors, day.rules.homes, config.analyze.seed)
    looked_at = reweighted(vectors, parts.axes, config.analyze.home_weight)
    twins = find_twins(
        looked_at, config.analyze, found.labels, found.may_be_shown, progress, rules=day.rules, lists=config.lists
    )
    chance = _measure_chance(day, looked_at, parts.axes, twins.densities, twins.scale)
    there = twins.neighbours >= 0
    shown, served = np.bincount(twins.neighbours[there], minlength=len(ids)), int(there.any(axis=1).sum())
    rows = _write_twins(day, twins, Split.of(vectors, parts.axes), chance)
    return _Lists(parts, chance, shown, twins.densities, served, twins.facts, twins.scale, rows)


def _in_shards(engine: Engine, day: _Day, shards: int, progress: Progress) -> _Lists:
    config, ids, found, kept = day.config, day.histories.user_ids, day.found, f"{day.folder}/shards"
    vectors = write_shards(engine, day.store, day.paths, ids, day.bundle.settings["train"]["dim"], shards, kept)
    parts = fit_parts(vectors, day.rules.homes, config.analyze.seed)
    looked_at = vectors.reweighted(parts.axes, config.analyze.home_weight)
    twins = find_sharded(
        engine, looked_at, day.paths, ids, config.analyze, found.labels, found.may_be_shown, day.rules, config.lists,
        progress,
    )  # fmt: skip
    chance = _measure_chance(day, looked_at, parts.axes, twins.densities, twins.scale)
    rows = twins.write_rows(engine, parts.axes, chance, day.histories.lengths(), f"{day.folder}/twins")
    day.store.remove(kept)
    return _Lists(parts, chance, twins.shown, twins.densities, twins.served, twins.facts, twins.scale, rows)


def _measure_chance(day: _Day, looked_at: Vectors, axes: Floats, densities: Floats, scale: ScoreScale) -> Chance | None:
    """What a score is worth, by the users whom training did not see; None where they are too few."""
    config, histories = day.config, day.histories
    rules = config.evaluate.model_copy(update=day.bundle.settings["holdout"])
    unseen = set_aside(histories, full_training(day.bundle).aside_limit, rules.seed)
    users = np.flatnonzero(choose_holdout(histories, rules, rules.seed) & unseen)
    if len(users) < MIN_USERS:
        return None
    encoder = open_encoder(day.store, day.bundle, config.analyze.batch_tokens)
    allowed = np.flatnonzero(day.found.may_be_shown)
    members = first_of_each(day.found.labels, allowed)
    town = Everybody(
        looked_at,
        day.found.labels,
        members,
        draw_bank(members, config.analyze.csls_bank, config.analyze.seed),
        config.analyze.csls_neighbours,
        densities,
        scale,
        day.rules,
    )

    def encode(before: Histories) -> Floats:
        return reweighted(encoder.encode(before), axes, config.analyze.home_weight)

    pairs = next_place_pairs(histories, day.vocabulary, users, encode, town, config.analyze.seed)
    return fit_chance(pairs, config.analyze.seed)


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


def _write_twins(day: _Day, twins: Twins, split: Split, chance: Chance | None) -> list[FileEntry]:
    """One row per user and rank, in buckets by user."""
    bucket = np.array([bucket_of(str(user), day.buckets) for user in day.histories.user_ids])
    ids, places = pa.array(day.histories.user_ids, pa.string()), day.histories.lengths()
    written = []
    for number in range(day.buckets):
        mine = np.flatnonzero(bucket == number)
        if pieces := [_rows(ids, twins, split, chance, places, users) for users in parts_of(mine)]:
            written.append(put_table(day.store, f"{day.folder}/twins/{bucket_name(number)}", pa.concat_tables(pieces)))
    return written


def _rows(ids: pa.Array, twins: Twins, split: Split, chance: Chance | None, places: Ints, users: Ints) -> pa.Table:
    neighbours = twins.neighbours[users]
    there = neighbours >= 0
    taste, home = split.parts(users, np.where(there, neighbours, 0).astype(np.int64))
    others, scores = neighbours[there], twins.scores[users][there]
    chances = None if chance is None else chance.of(twins.scale.percentile(scores), places[others])
    of_users, of_others = ids.take(pa.array(users)), ids.take(pa.array(others))
    return twin_rows(of_users, of_others, there, scores, twins.scale, (taste[there], home[there]), chances)
