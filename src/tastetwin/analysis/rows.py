"""The rows of the table ``twins``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tastetwin.analysis.index import Floats, Ints
from tastetwin.analysis.scale import ScoreScale
from tastetwin.schema import TWINS, USER

_USERS_AT_A_TIME: Final = 50_000


def parts_of(users: Ints) -> Iterator[Ints]:
    """So many at a time as rows are made of: bounds memory."""
    return (users[at : at + _USERS_AT_A_TIME] for at in range(0, len(users), _USERS_AT_A_TIME))


def twin_rows(
    user_ids: pa.Array,
    twin_ids: pa.Array,
    there: npt.NDArray[np.bool_],
    scores: Floats,
    scale: ScoreScale,
    parts: tuple[Floats, Floats],
    chances: Floats | None,
) -> pa.Table:
    """One row per user and rank.

    Args:
        user_ids: [m]
        twin_ids: [t] of all lists, one after another.
        there: [m, k] where the lists have somebody, t in all.
        scores: [t]
        scale: what a score is worth.
        parts: [t] taste and home.
        chances: [t]; None where they are unknown.
    """
    at, rank = np.nonzero(there)
    return pa.table(
        [
            user_ids.take(pa.array(at)),
            pa.array((rank + 1).astype(np.int32)),
            twin_ids,
            pa.array(scores),
            pa.array(scale.percentile(scores)),
            *(pa.array(part) for part in parts),
            pa.nulls(len(at), pa.float32()) if chances is None else pa.array(chances),
        ],
        schema=TWINS,
    )


def ranked_anew(twins: pa.Table) -> pa.Table:
    """``TWINS`` rows, those of a list together and in order, of which some were taken out: ranks count up from 1.

    A gap would tell that somebody was there.
    """
    codes = twins.column(USER).combine_chunks().dictionary_encode().indices.to_numpy()
    _, first, which = np.unique(codes, return_index=True, return_inverse=True)
    ranks = pa.array((np.arange(len(codes)) - first[which] + 1).astype(np.int32))
    return twins.set_column(1, TWINS.field("rank"), ranks)
