"""A raw source folder as the full benchmark reads it: every event a favor whatever its rating, every place its own row.

So that figures are comparable with those of others: the daily job's favor rule and fallback groups are choices of a
product. Friendships (``friends.csv`` beside the events) and a synthetic town's truth are for evaluation only.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from tastetwin.config import Config, FeaturesConfig
from tastetwin.engine import Engine
from tastetwin.errors import InputError
from tastetwin.features.histories import Histories, Vocabulary
from tastetwin.features.holdout import uniform_hashes
from tastetwin.features.stage import favor_rows, unlisted_too
from tastetwin.features.taste import taste_histories
from tastetwin.features.user_favor import group_favors
from tastetwin.features.vocabulary import PlaceRows, assign_rows, empty_vocabulary, grow
from tastetwin.filesystems import masked
from tastetwin.mart.merge import LAYOUTS
from tastetwin.mart.stage import build_mart
from tastetwin.schema import PLACE, USER
from tastetwin.sources.collect import collect
from tastetwin.sources.synthetic import truth_folder
from tastetwin.store import Store
from tastetwin.tables import read_table

_FRIENDS_FILE: Final = "friends.csv"
_EVERYTHING = FeaturesConfig(min_rating=None, min_visitors=1, min_favors=1)


@dataclass(frozen=True)
class Truth:
    """What a synthetic town's users are really like."""

    user_ids: npt.NDArray[np.object_]
    """[n]"""
    taste: npt.NDArray[np.float32]
    """[n, groups] mixtures."""
    homes: npt.NDArray[np.object_]
    """[n] home regions."""


@dataclass(frozen=True)
class Dataset:
    """Cleansed events of a source, and what is known besides."""

    name: str
    favors: pa.Table
    """One row per favor, as ``features.user_favor.favors`` gives them."""
    places: PlaceRows
    vocabulary: Vocabulary
    friends: npt.NDArray[np.object_]
    """[n, 2] user ids; empty where the source tells of none."""
    truth: Truth | None

    def histories(self, favors: pa.Table | None = None) -> Histories:
        """The taste histories of (some of) the favors, user ids ascending."""
        rows = self.favors if favors is None else favors
        return taste_histories(group_favors(rows), self.places)[0]


def load_dataset(engine: Engine, source: str, day: date, config: Config) -> Dataset:
    """Collect and cleanse a source in a store that is thrown away.

    Friends and truth are looked for beside a folder of this machine only; times after ``day`` are not believed.
    Sections ``collect`` and ``mart`` of the configuration are used.

    Raises:
        InputError: as ``collect`` and ``build_mart``; BAD-FRIENDS when ``friends.csv`` has no two columns of user ids.
    """
    with tempfile.TemporaryDirectory(prefix="tastetwin-") as aside:
        store = Store.create(Path(aside) / "store")
        mart = build_mart(engine, store, collect(store, source, day, config=config.collect), None, config)
        favors = favor_rows(engine, store, mart, _EVERYTHING).toArrow().combine_chunks()
        places = read_table(store, mart, "places", LAYOUTS["places"].schema).sort_by(PLACE)
    visited = favors.group_by("place").aggregate([(USER, "count_distinct")]).sort_by("place")
    visitors = pa.table({PLACE: visited.column("place"), "visitors": visited.column(f"{USER}_count_distinct")})
    vocabulary = grow(empty_vocabulary(), places, visitors, 1)
    rows = assign_rows(vocabulary, unlisted_too(places, visitors.column(PLACE)))
    folder = Path(source).resolve()
    name = masked(source) if "://" in source else folder.name
    return Dataset(name, favors, rows, vocabulary, _friends(folder / _FRIENDS_FILE), _truth(truth_folder(folder)))


def _friends(path: Path) -> npt.NDArray[np.object_]:
    if not path.is_file():
        return np.empty((0, 2), object)
    try:
        names = pacsv.open_csv(path).schema.names
        as_text = pacsv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
        table = pacsv.read_csv(path, convert_options=as_text)
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise _no_friends(path, str(error)) from error
    if table.num_columns < 2:
        raise _no_friends(path, f"columns {', '.join(table.column_names)}")
    return np.array([table.column(at).to_pylist() for at in (0, 1)], object).T.reshape(-1, 2)


def _no_friends(path: Path, value: str) -> InputError:
    return InputError(
        "BAD-FRIENDS", place=str(path), value=value, rule="two columns of user ids", fix="mend or remove it"
    )


def _truth(folder: Path) -> Truth | None:
    path = folder / "users.parquet"
    if not path.is_file():
        return None
    table = pq.read_table(path)
    taste = np.array(table.column("taste").to_pylist(), np.float32)
    names, homes = (np.array(table.column(name).to_pylist(), object) for name in (USER, "home_region"))
    return Truth(names, taste, homes)


def split_by_time(favors: pa.Table, share: float) -> tuple[pa.Table, pa.Table]:
    """The earlier ``share`` of the favors and the later rest.

    One cut in time for everybody; where more than a tenth of the favors carry no time, the earlier share of each user's
    own favors, in the order of time and name.
    """
    at = favors.column("at")
    undated = pc.is_null(at)
    if pc.mean(undated.cast(pa.float64())).as_py() <= 0.1:
        moments = at.drop_null().cast(pa.int64()).to_numpy()
        cut = pa.scalar(int(np.quantile(moments, share)), pa.int64()).cast(at.type)
        late = pc.fill_null(pc.greater(at, cut), False)
        return favors.filter(pc.invert(late)), favors.filter(late)
    keys = [(USER, "ascending", "at_start"), ("at", "ascending", "at_start"), ("name", "ascending", "at_start")]
    ordered = favors.take(pc.sort_indices(favors, sort_keys=keys))
    _, first, counts = np.unique(ordered.column(USER).to_numpy(), return_index=True, return_counts=True)
    place = np.arange(len(ordered)) - np.repeat(first, counts)
    late = pa.array(place >= np.repeat(np.ceil(share * counts), counts))
    return ordered.filter(pc.invert(late)), ordered.filter(late)


def first_of(later: pa.Table, count: int) -> pa.Table:
    """The ``count`` favors of the later part of ``split_by_time`` that come first, ties by a hash.

    In time; where times are missing, the next favor of each user, then the one after it, in the order of the table: one
    user after the other, ids ascending.
    """
    users, names = (later.column(name).to_pylist() for name in (USER, "name"))
    ties = uniform_hashes((f"{user}\n{name}" for user, name in zip(users, names, strict=True)), 0, b"day")
    if later.column("at").null_count:
        _, first, counts = np.unique(np.array(users, object), return_index=True, return_counts=True)  # in order by user
        moments = np.arange(len(later)) - np.repeat(first, counts)
    else:
        moments = later.column("at").cast(pa.int64()).to_numpy()
    return later.take(pa.array(np.lexsort((ties, moments))[:count]))
