"""embed: taste vectors for the users of any raw source folder, by the published model, without training."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tastetwin.analysis.encode import open_encoder
from tastetwin.analysis.stored import vectors_table
from tastetwin.config import Config
from tastetwin.engine import Engine
from tastetwin.features.histories import Histories
from tastetwin.features.stage import read_place_rows, unlisted_too, write_user_favor
from tastetwin.features.taste import taste_histories
from tastetwin.features.user_favor import USER_FAVOR
from tastetwin.features.vocabulary import NO_ROW, PlaceRows, assign_rows, read_vocabulary
from tastetwin.generations import Manifest, read_manifest
from tastetwin.mart.merge import LAYOUTS
from tastetwin.mart.stage import build_mart
from tastetwin.privacy.opt_out import read_opt_outs
from tastetwin.progress import Progress, silent
from tastetwin.runs import published_run
from tastetwin.schema import LIKE_CONTENTS, PLACE, REVIEW_PLACE, USER
from tastetwin.sources.collect import collect
from tastetwin.store import Store
from tastetwin.tables import read_files, read_table


@dataclass(frozen=True)
class Embedded:
    """Vectors of a source's users."""

    vectors: pa.Table
    """``schema.VECTORS``, one row per user with anything usable, ascending."""
    unusable: list[str]
    """Users of whose favors the model understands nothing, ascending; who opted out is in neither."""
    lines: dict[str, int]
    """The gate's counts."""


def embed(
    engine: Engine, store: Store, source: str, day: date, config: Config, *, progress: Progress = silent
) -> Embedded:
    """Encode the users of ``source`` with the published model.

    The source goes through the same gate, mart and favor rule as the daily job, in a store of its own that is thrown
    away. A place that the model does not know is read as its category and region, by the source's own ``places`` or
    the published ones.

    Raises:
        UsageError: NOT-PUBLISHED.
        InputError: as ``collect`` and ``build_mart``.
    """
    run = published_run(store)
    bundle = read_manifest(store, "train", run.generation("train"))
    features = read_manifest(store, "features", run.generation("features"))
    with tempfile.TemporaryDirectory(prefix="tastetwin-") as folder:
        aside = Store.create(Path(folder) / "store")
        lake = collect(aside, source, day, config=config.collect)
        mart = build_mart(engine, aside, lake, None, config, progress=progress)
        entries = write_user_favor(engine, aside, mart, config.features, "user_favor")
        favors = read_files(aside, [entry.path for entry in entries], USER_FAVOR).sort_by(USER)
        places = read_table(aside, mart, "places", LAYOUTS["places"].schema)
    favors = read_opt_outs(store).without(favors, USER)
    histories, _ = taste_histories(favors, _place_rows(store, bundle, features, places, favors))
    usable = histories.lengths() > 0
    chosen = histories.select(np.flatnonzero(usable))
    vectors = _encode(store, bundle, chosen, config)
    return Embedded(vectors, [str(user) for user in histories.user_ids[~usable]], dict(mart.facts["counts"]))


def _encode(store: Store, bundle: Manifest, histories: Histories, config: Config) -> pa.Table:
    encoder = open_encoder(store, bundle, config.analyze.batch_tokens)
    return vectors_table(pa.array(histories.user_ids, pa.string()), encoder.encode(histories))


def _place_rows(store: Store, bundle: Manifest, features: Manifest, places: pa.Table, favors: pa.Table) -> PlaceRows:
    """Every favored place: as the source's own description says, else as the published features read it."""
    vocabulary = read_vocabulary(store, bundle.paths("vocabulary")[0])
    favored = [
        favors.column(name).combine_chunks().flatten().field(field).cast(pa.string())
        for name, field in (("review_list", REVIEW_PLACE), ("like_list", LIKE_CONTENTS))
    ]
    everything = unlisted_too(places, pc.unique(pa.chunked_array(favored)))
    described = assign_rows(vocabulary, everything)
    published = read_place_rows(store, features.paths("place_row")[0])
    known = published.of(everything.column(PLACE))
    rows: npt.NDArray[np.int32] = np.where(described.rows == NO_ROW, known, described.rows)
    return PlaceRows(described.place_ids, rows)
