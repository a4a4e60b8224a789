"""A taste history for every user, as flat arrays (compressed sparse rows), and the places it speaks of.

Two kinds of ids never meet here: *place rows* are integers into the vocabulary; place ids and user ids are the
source's strings and stay in ``Vocabulary.place_ids`` and ``Histories.user_ids``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

PAD_ROW: Final = 0
MASK_ROW: Final = 1
FIRST_PLACE_ROW: Final = 2

UNKNOWN_DAY: Final = np.int32(-(2**31))


@dataclass(frozen=True)
class Vocabulary:
    """The places the model knows, one row each; rows never change their place from day to day.

    Rows 0 and 1 are reserved (padding, mask). Rows of single places and of *fallback groups* (category x region, for
    places with too few visitors) follow in the order of their first appearance.
    """

    place_ids: npt.NDArray[np.str_] | npt.NDArray[np.object_]
    """[n_rows] the place's id; "" for reserved rows, "~category/region" for fallback groups."""
    is_group: npt.NDArray[np.bool_]
    """[n_rows] true for fallback groups."""
    category_offsets: npt.NDArray[np.int64]
    """[n_rows + 1] into ``categories``."""
    categories: npt.NDArray[np.int32]
    """[n_place_categories] category indices, 0 .. n_categories - 1."""
    regions: npt.NDArray[np.int32]
    """[n_rows] region index, 0 .. n_regions - 1; -1 where unknown."""
    category_codes: npt.NDArray[np.int64]
    """[n_categories] the source's category code of each category index."""
    region_codes: npt.NDArray[np.object_]
    """[n_regions] the source's region code of each region index."""
    coordinates: npt.NDArray[np.float32]
    """[n_rows, 2] latitude and longitude in degrees (WGS 84); NaN where unknown. A group lies amid its region."""

    @property
    def n_rows(self) -> int:
        """Rows, the reserved ones included."""
        return len(self.place_ids)


@dataclass(frozen=True)
class Histories:
    """One taste history per user: distinct places, oldest first (by last visit), with what is known of the visits."""

    user_ids: npt.NDArray[np.object_]
    """[n_users] the source's ids, ascending."""
    offsets: npt.NDArray[np.int64]
    """[n_users + 1] user u's favors are ``offsets[u]:offsets[u + 1]``."""
    places: npt.NDArray[np.int32]
    """[n_favors] vocabulary rows; distinct within a user."""
    visits: npt.NDArray[np.float32]
    """[n_favors] how many favors fell on that place, >= 1."""
    ratings: npt.NDArray[np.float32]
    """[n_favors] mean rating minus the user's own mean; NaN where unknown."""
    days: npt.NDArray[np.int32]
    """[n_favors] day of the last visit since 1970-01-01; ``UNKNOWN_DAY`` where unknown."""

    @property
    def n_users(self) -> int:
        """Users, each with at least one favor."""
        return len(self.user_ids)

    def lengths(self) -> npt.NDArray[np.int64]:
        """[n_users] distinct places of each user."""
        return np.diff(self.offsets)

    def select(self, users: npt.NDArray[np.int64]) -> Histories:
        """The histories of the given users (positions), in the given order."""
        lengths = self.lengths()[users]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        favors = np.repeat(self.offsets[users] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return self.keep(favors, offsets, self.user_ids[users])

    def filter(self, wanted: npt.NDArray[np.bool_]) -> Histories:
        """The same users with their wanted favors ([n_favors] mask); a user may be left with none."""
        before = np.concatenate([[0], np.cumsum(wanted)])
        return self.keep(np.flatnonzero(wanted), before[self.offsets].astype(np.int64), self.user_ids)

    def keep(
        self, favors: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64], user_ids: npt.NDArray[np.object_]
    ) -> Histories:
        """New histories made of the given favors (positions into ``places``), cut at the given offsets."""
        return Histories(
            user_ids, offsets, self.places[favors], self.visits[favors], self.ratings[favors], self.days[favors]
        )

    def recentred(self) -> Histories:
        """The same with ratings less the mean of these favors alone.

        A part of somebody's history whose ratings are less the mean of the whole tells how the other part was rated.
        """
        users = np.repeat(np.arange(self.n_users), self.lengths())
        rated = np.where(np.isnan(self.ratings), 0, self.visits)
        count, total = (np.bincount(users, each, self.n_users) for each in (rated, rated * np.nan_to_num(self.ratings)))
        means = total / np.maximum(count, 1)
        return replace(self, ratings=(self.ratings - means[users]).astype(np.float32))


def joined(*parts: Histories) -> Histories:
    """Sets of histories, at least one, end to end; ids may repeat."""
    if len(parts) == 1:
        return parts[0]
    lengths = np.concatenate([part.lengths() for part in parts])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Histories(
        np.concatenate([part.user_ids for part in parts]),
        offsets,
        np.concatenate([part.places for part in parts]),
        np.concatenate([part.visits for part in parts]),
        np.concatenate([part.ratings for part in parts]),
        np.concatenate([part.days for part in parts]),
    )
