"""The vocabulary of places: grows from day to day, never moves a row, and knows where a stranger belongs.

A place with at least ``min_visitors`` distinct users gets a row of its own and keeps it. Any other place, and any whose
id begins like a group's, is read as its *fallback group*, the most specific of category x region, category, region that
has a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tastetwin.features.histories import FIRST_PLACE_ROW, Vocabulary
from tastetwin.generations import FileEntry
from tastetwin.schema import CATEGORIES, LAT, LON, PLACE, REGION
from tastetwin.store import Store
from tastetwin.tables import put_table

NO_ROW: Final = np.int32(-1)
GROUP_MARK: Final = "~"

_METADATA: Final = b"tastetwin.codes"
_SCHEMA: Final = pa.schema(
    [
        pa.field("place_id", pa.string()),
        pa.field("is_group", pa.bool_()),
        pa.field("categories", pa.list_(pa.int32())),
        pa.field("region", pa.int32()),
        pa.field("latitude", pa.float32()),
        pa.field("longitude", pa.float32()),
    ]
)


@dataclass(frozen=True)
class PlaceRows:
    """Which vocabulary row each known place id is read as; the only way from a place id to a row."""

    place_ids: pa.StringArray | pa.ChunkedArray
    """[n_places] the source's ids, distinct."""
    rows: npt.NDArray[np.int32]
    """[n_places] vocabulary rows; ``NO_ROW`` where nothing is known of the place."""

    def of(self, place_ids: pa.Array) -> npt.NDArray[np.int32]:
        """[n] rows of the given ids; ``NO_ROW`` for ids never heard of."""
        found = pc.index_in(place_ids, value_set=self.place_ids)
        known = np.append(self.rows, NO_ROW)
        at: npt.NDArray[np.int64] = pc.fill_null(found, len(self.rows)).to_numpy(zero_copy_only=False)
        return known[at]


def empty_vocabulary() -> Vocabulary:
    """Only the reserved rows."""
    return Vocabulary(
        place_ids=np.array([""] * FIRST_PLACE_ROW, dtype=object),
        is_group=np.zeros(FIRST_PLACE_ROW, dtype=bool),
        category_offsets=np.zeros(FIRST_PLACE_ROW + 1, dtype=np.int64),
        categories=np.empty(0, dtype=np.int32),
        regions=np.full(FIRST_PLACE_ROW, -1, dtype=np.int32),
        category_codes=np.empty(0, dtype=np.int64),
        region_codes=np.empty(0, dtype=object),
        coordinates=np.full((FIRST_PLACE_ROW, 2), np.nan, dtype=np.float32),
    )


def grow(previous: Vocabulary, places: pa.Table, visitors: pa.Table, min_visitors: int) -> Vocabulary:
    """Yesterday's vocabulary, described as the source does today, with today's new rows behind it.

    Args:
        previous: rows that keep their place.
        places: columns ``place_id``, ``place_category_code_list``, ``place_dongcode``, ``place_lat``, ``place_lon``;
            one row per place.
        visitors: columns ``place_id``, ``visitors`` (distinct users with a favor); one row per place.
        min_visitors: from how many visitors on a place gets its own row.
    """
    seen = _described(visitors.column(PLACE).combine_chunks(), places)
    old_ids = pa.array(previous.place_ids, pa.string())
    enough = pc.greater_equal(visitors.column("visitors"), min_visitors)
    enough = pc.and_not(enough, pc.starts_with(visitors.column(PLACE), GROUP_MARK))
    own = _new(seen.column(PLACE).filter(enough), old_ids)
    groups = _new(pa.chunked_array([_group_keys(seen, c, r) for c, r in _LEVELS]).drop_null(), old_ids)
    fresh = pa.concat_tables([_group_table(groups, places), _described(own, places)])
    rows = pa.concat_tables([_refreshed(previous, places), fresh]).combine_chunks()
    lists = rows.column(CATEGORIES).combine_chunks()
    favored = seen.column(CATEGORIES).combine_chunks().flatten()
    category_codes = _extend(previous.category_codes, pa.chunked_array([favored, lists.flatten()]))
    region_codes = _extend(
        previous.region_codes, pa.chunked_array([*seen.column(REGION).chunks, *rows.column(REGION).chunks])
    )
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return Vocabulary(
        place_ids=np.array(rows.column(PLACE).to_pylist(), dtype=object),
        is_group=np.concatenate([previous.is_group, np.arange(len(fresh)) < len(groups)]),
        category_offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        categories=_index(lists.flatten(), pa.array(category_codes, pa.int64())),
        regions=_index(rows.column(REGION), pa.array(region_codes, pa.string())),
        category_codes=category_codes,
        region_codes=region_codes,
        coordinates=_columns(rows, (LAT, LON)),
    )


def describe_rows(vocabulary: Vocabulary) -> pa.Table:
    """Id, category codes, region code and coordinates of every row, in the columns of ``place``."""
    codes = pa.array(vocabulary.category_codes[vocabulary.categories], pa.int64())
    lists = pa.ListArray.from_arrays(pa.array(vocabulary.category_offsets, pa.int32()), codes)
    at = np.where(vocabulary.regions < 0, len(vocabulary.region_codes), vocabulary.regions)
    regions = pa.array([*vocabulary.region_codes, None], pa.string()).take(pa.array(at))
    lat, lon = (pa.array(column.astype(np.float64), from_pandas=True) for column in vocabulary.coordinates.T)
    ids = pa.array(vocabulary.place_ids, pa.string())
    return pa.table({PLACE: ids, CATEGORIES: lists, REGION: regions, LAT: lat, LON: lon})


def _refreshed(previous: Vocabulary, places: pa.Table) -> pa.Table:
    """Yesterday's rows, described as the source describes them today; as before where it no longer does."""
    known = describe_rows(previous)
    single = pc.if_else(pa.array(previous.is_group), pa.scalar(None, pa.string()), known.column(PLACE))
    at = pc.index_in(single, value_set=places.column(PLACE), skip_nulls=True)
    today = _described(known.column(PLACE), places)
    pick = pc.if_else(pc.is_valid(at), pa.array(np.arange(len(known)) + len(known)), pa.array(np.arange(len(known))))
    return pa.concat_tables([known, today]).combine_chunks().take(pick.combine_chunks())


def assign_rows(vocabulary: Vocabulary, places: pa.Table) -> PlaceRows:
    """Read every given place as its own row, else as its most specific fallback group, else as nothing."""
    known = pa.array(vocabulary.place_ids, pa.string())
    ids = places.column(PLACE).combine_chunks()
    single = pc.if_else(pc.starts_with(ids, GROUP_MARK), pa.scalar(None, pa.string()), ids)
    found = pc.index_in(single, value_set=known, skip_nulls=True)
    for with_category, with_region in _LEVELS:
        keys = _group_keys(places, with_category, with_region)
        found = pc.coalesce(found, pc.index_in(keys, value_set=known, skip_nulls=True))
    return PlaceRows(ids, pc.fill_null(found, int(NO_ROW)).to_numpy(zero_copy_only=False).astype(np.int32))


_LEVELS: Final = ((True, True), (True, False), (False, True))
"""Fallback levels, the most specific first: (uses the category, uses the region)."""


def _group_keys(places: pa.Table, with_category: bool, with_region: bool) -> pa.Array:
    """``~category/region`` per place; null where a part that the level needs is unknown."""
    blank = pa.nulls(len(places), pa.string()).fill_null("")
    first = pc.list_element(_padded(places.column(CATEGORIES).combine_chunks()), 0).cast(pa.string())
    category = first if with_category else blank
    region = places.column(REGION).combine_chunks() if with_region else blank
    joined = pc.binary_join_element_wise(category, region, "/")
    return pc.binary_join_element_wise(pa.nulls(len(places), pa.string()).fill_null(GROUP_MARK), joined, "")


def _padded(lists: pa.ListArray) -> pa.ListArray:
    """Empty lists become [null], so that every list has a first element."""
    return pc.if_else(pc.equal(pc.list_value_length(lists), 0), pa.array([[None]], lists.type)[0], lists)


def _group_table(keys: pa.Array, places: pa.Table) -> pa.Table:
    """The category and region that a group's key names, and where that region lies."""
    parts = pc.split_pattern(pc.utf8_slice_codeunits(keys, 1), "/", max_splits=1)
    category, region = (_blank_to_null(pc.list_element(parts, place)) for place in (0, 1))
    lists = pa.array([[] if code is None else [int(code)] for code in category.to_pylist()], pa.list_(pa.int64()))
    centres = _region_centres(places)
    at = pc.index_in(region, value_set=centres.column(REGION), skip_nulls=True)
    lat, lon = (centres.column(name).combine_chunks().take(at) for name in (LAT, LON))
    return pa.table({PLACE: keys, CATEGORIES: lists, REGION: region, LAT: lat, LON: lon})


def _region_centres(places: pa.Table) -> pa.Table:
    """Columns ``place_dongcode``, ``place_lat``, ``place_lon``: the middle of each region's places, on the sphere."""
    located = places.filter(pc.and_(pc.is_valid(places.column(LAT)), pc.is_valid(places.column(LON))))
    codes = located.column(REGION).combine_chunks().cast(pa.string()).dictionary_encode()
    at = pc.fill_null(codes.indices, len(codes.dictionary)).to_numpy(zero_copy_only=False)
    points = on_sphere(_columns(located, (LAT, LON)))
    sums = np.stack([np.bincount(at, axis, len(codes.dictionary) + 1) for axis in points.T], axis=1)[:-1]
    lat = np.degrees(np.arctan2(sums[:, 2], np.hypot(sums[:, 0], sums[:, 1])))
    lon = np.degrees(np.arctan2(sums[:, 1], sums[:, 0]))
    return pa.table({REGION: codes.dictionary, LAT: pa.array(lat), LON: pa.array(lon)})


def _columns(table: pa.Table, names: tuple[str, ...]) -> npt.NDArray[np.float32]:
    """[n, columns]; NaN where null."""
    columns = [pc.fill_null(table.column(name).cast(pa.float64()), np.nan).to_numpy() for name in names]
    return np.stack(columns, axis=1).astype(np.float32)


def on_sphere(coordinates: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """[n, 2] degrees of latitude and longitude -> [n, 3] points of the unit sphere, without seam or pole."""
    lat, lon = np.radians(coordinates.astype(np.float64)).T
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)


def _blank_to_null(texts: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)


def _described(place_ids: pa.Array, places: pa.Table) -> pa.Table:
    """What the source says of the given places, in their order; null where it says nothing of them."""
    at = pc.index_in(place_ids, value_set=places.column(PLACE).combine_chunks())
    return pa.table(
        {
            PLACE: place_ids,
            CATEGORIES: places.column(CATEGORIES).combine_chunks().cast(pa.list_(pa.int64())).take(at),
            REGION: places.column(REGION).combine_chunks().cast(pa.string()).take(at),
            LAT: places.column(LAT).combine_chunks().take(at),
            LON: places.column(LON).combine_chunks().take(at),
        }
    )


def _new(found: pa.ChunkedArray | pa.Array, old: pa.Array) -> pa.Array:
    """Distinct values that are not old, ascending."""
    distinct = pc.unique(found)
    fresh = distinct.filter(pc.invert(pc.is_in(distinct, value_set=old)))
    return fresh.take(pc.array_sort_indices(fresh))


def _extend(codes: npt.NDArray[Any], found: pa.ChunkedArray | pa.Array) -> npt.NDArray[Any]:
    values = found.drop_null()
    fresh = _new(values, pa.array(codes, values.type))
    return np.concatenate([codes, np.array(fresh.to_pylist(), dtype=codes.dtype)])


def _index(values: pa.ChunkedArray | pa.Array, codes: pa.Array) -> npt.NDArray[np.int32]:
    found = pc.fill_null(pc.index_in(values, value_set=codes, skip_nulls=True), -1)
    indices: npt.NDArray[np.int32] = np.asarray(found, dtype=np.int32)
    return indices


def write_vocabulary(store: Store, relative: str, vocabulary: Vocabulary) -> FileEntry:
    """One Parquet file; the codes of category and region indices travel in its metadata."""
    codes = {
        "categories": vocabulary.category_codes.tolist(),
        "regions": [str(code) for code in vocabulary.region_codes],
    }
    table = pa.table(
        [
            pa.array(vocabulary.place_ids, pa.string()),
            pa.array(vocabulary.is_group),
            pa.ListArray.from_arrays(
                pa.array(vocabulary.category_offsets, pa.int32()), pa.array(vocabulary.categories)
            ),
            pa.array(vocabulary.regions),
            *(pa.array(column, from_pandas=True) for column in vocabulary.coordinates.T),
        ],
        schema=_SCHEMA.with_metadata({_METADATA: orjson.dumps(codes)}),
    )
    return put_table(store, relative, table)


def read_vocabulary(store: Store, relative: str) -> Vocabulary:
    """What ``write_vocabulary`` wrote."""
    table = pq.read_table(store.path(relative), filesystem=store.arrow)
    codes = orjson.loads(table.schema.metadata[_METADATA])
    lists = table.column("categories").combine_chunks()
    return Vocabulary(
        place_ids=np.array(table.column("place_id").to_pylist(), dtype=object),
        is_group=table.column("is_group").to_numpy(),
        category_offsets=lists.offsets.to_numpy().astype(np.int64),
        categories=lists.values.to_numpy(),
        regions=table.column("region").to_numpy(),
        category_codes=np.array(codes["categories"], dtype=np.int64),
        region_codes=np.array(codes["regions"], dtype=object),
        coordinates=_columns(table, ("latitude", "longitude")),
    )
