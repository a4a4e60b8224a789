"""Who may be in the lists of others, and why not. Everybody has a list of their own."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tastetwin.analysis.accounts import bursts, cluster_labels
from tastetwin.analysis.index import Floats, Ints
from tastetwin.config import ListsConfig
from tastetwin.features.histories import UNKNOWN_DAY, Histories, Vocabulary
from tastetwin.schema import USER

Mask = npt.NDArray[np.bool_]

EXPOSURE: Final = pa.schema(
    [
        pa.field(USER, pa.string(), nullable=False),
        pa.field("lists", pa.int32(), nullable=False),
        pa.field("hidden", pa.string()),
        pa.field("instead_idno", pa.string()),
        pa.field("crowding", pa.float32()),
        pa.field("mainstream", pa.float32()),
        pa.field("home_region", pa.string()),
    ]
)
"""exposure: one row per analysed user, ascending: in how many lists they are, and why they may be in none:
``inactive``, ``few_places``, ``burst``, or ``same_person``. ``instead_idno`` is the account of the same person that is
shown, whatever hides this one: the two never meet. ``crowding`` is r of the score; ``mainstream`` the share of users
whose places are visited by fewer people."""

_EPOCH: Final = date(1970, 1, 1)


@dataclass(frozen=True)
class Standing:
    """Everybody's part in the lists of others."""

    labels: Ints
    """[n] see ``accounts.cluster_labels``: users of one label never meet, and one of them is shown."""
    reasons: npt.NDArray[np.object_]
    """[n] why they may not be shown, whoever else is; "" where they may."""

    @property
    def may_be_shown(self) -> Mask:
        """[n]"""
        return np.asarray(self.reasons == "")


def standing(histories: Histories, vocabulary: Vocabulary, rules: ListsConfig, today: date) -> Standing:
    """Everybody's part under the rules of the configuration; ``today`` is the logical date."""
    reasons = np.full(histories.n_users, "", object)
    reasons[bursts(histories, rules.burst_places)] = "burst"
    reasons[histories.lengths() < rules.min_places] = "few_places"
    if rules.inactive_days is not None:
        reasons[_days_since(histories, today) > rules.inactive_days] = "inactive"
    return Standing(cluster_labels(histories, vocabulary, rules), reasons)


def _days_since(histories: Histories, today: date) -> Ints:
    """[n] days since the last favor of each; 0 where no day is known."""
    days = histories.days.astype(np.int64)
    days[histories.days == UNKNOWN_DAY] = np.iinfo(np.int64).min
    last = np.full(histories.n_users, np.iinfo(np.int64).min)
    has = np.flatnonzero(histories.lengths())
    last[has] = np.maximum.reduceat(days, histories.offsets[has]) if len(has) else 0
    known = last > np.iinfo(np.int64).min
    return np.where(known, (today - _EPOCH).days - last, 0)


def mainstream(histories: Histories, vocabulary: Vocabulary, visitors: Ints) -> Floats:
    """[n_users] from 0 (niche) to 1: the share of the others whose places have fewer ``visitors`` [n_rows] on average.

    The mean is that of logarithms, so that one famous place does not make a mainstream taste. A fallback group counts
    as one visitor: each of the places it stands for has next to none. Ties get their middle.
    """
    user_of = np.repeat(np.arange(histories.n_users), histories.lengths())
    logs = np.log(np.maximum(np.where(vocabulary.is_group, 1, visitors)[histories.places], 1))
    means = np.bincount(user_of, logs, minlength=histories.n_users) / np.maximum(histories.lengths(), 1)
    ascending = np.sort(means)
    below, up_to = (np.searchsorted(ascending, means, side) for side in ("left", "right"))
    return np.asarray((below + up_to - 1) / 2 / max(histories.n_users - 1, 1), np.float32)


def exposure_table(
    user_ids: npt.NDArray[np.object_],
    found: Standing,
    lists: Ints,
    densities: Floats,
    niche_or_not: Floats,
    home_regions: pa.Array,
) -> pa.Table:
    """``EXPOSURE`` of users, each argument [n]: who they are, their standing, and the other columns in their order."""
    allowed = np.flatnonzero(found.may_be_shown)
    labels, at = np.unique(found.labels[allowed], return_index=True)
    shown = np.full(len(user_ids), -1, np.int64)
    shown[labels] = allowed[at]
    instead = shown[found.labels]
    is_second = (instead >= 0) & (instead != np.arange(len(user_ids)))
    reasons = np.where(found.may_be_shown & is_second, "same_person", found.reasons)
    others = [user_ids[other] if second else None for other, second in zip(instead, is_second, strict=True)]
    columns = [
        list(user_ids),
        lists.astype(np.int32),
        [reason or None for reason in reasons],
        others,
        densities,
        niche_or_not,
        home_regions,
    ]
    return pa.table(columns, schema=EXPOSURE)
