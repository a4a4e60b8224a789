"""How many people favored each place, category and region, as a table of the analysis."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tastetwin.analysis.evidence import Visitors
from tastetwin.generations import FileEntry
from tastetwin.store import Store
from tastetwin.tables import put_table, read_files

_VISITORS: Final = pa.schema([pa.field("of", pa.string()), pa.field("visitors", pa.int64())])


def write_visitors(store: Store, relative: str, visitors: Visitors) -> FileEntry:
    """One row per place row, category index and region index, in this order; the number of users leads."""
    parts = {
        "users": np.array([visitors.n_users]),
        "place": visitors.places,
        "category": visitors.categories,
        "region": visitors.regions,
    }
    names = np.repeat(list(parts), [len(part) for part in parts.values()])
    return put_table(
        store, relative, pa.table([pa.array(names), np.concatenate(list(parts.values()))], schema=_VISITORS)
    )


def read_visitors(store: Store, relative: str) -> Visitors:
    """What ``write_visitors`` wrote."""
    table = read_files(store, [relative], _VISITORS)

    def part(name: str) -> npt.NDArray[np.int64]:
        values: npt.NDArray[np.int64] = table.filter(pc.equal(table.column("of"), name)).column("visitors").to_numpy()
        return values

    return Visitors(int(part("users")[0]), part("place"), part("category"), part("region"))
