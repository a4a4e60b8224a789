"""Who may be shown to whom: rules about two people, looked up when candidates are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]
Region = Literal["any", "same", "other"]

ANYWHERE: Final = np.int32(-1)


@dataclass(frozen=True)
class PairRules:
    """Rules about pairs of the n users of an analysis."""

    not_shown: npt.NDArray[np.int64]
    """[m] ascending: user * n + other, for others who are not to be in the user's list (followed, blocked)."""
    region: Region
    """Whether twins must share the user's home region, or must not."""
    homes: Positions
    """[n] home region index, -1 where unknown. Two unknown ones may always meet."""

    def allow(self, users: npt.NDArray[np.int64], candidates: Positions) -> Mask:
        """[m, c] which candidates (-1 for none) may be in the lists of the ``users`` [m]."""
        there = candidates >= 0
        ruled = np.flatnonzero(np.isin(users, self.not_shown // len(self.homes)))
        if len(ruled):
            keys = users[ruled, None] * len(self.homes) + candidates[ruled]
            at = np.minimum(np.searchsorted(self.not_shown, keys), len(self.not_shown) - 1)
            there[ruled] &= self.not_shown[at] != keys
        if self.region == "any":
            return there
        mine, theirs = self.homes[users][:, None], self.homes[candidates]
        return np.asarray(there & (mine == theirs if self.region == "same" else (mine != theirs) | (mine < 0)))

    def of_list(self, user: int, others: npt.NDArray[np.int64]) -> Mask:
        """[m] which of many ``others`` may be in the list of one ``user``; reads that user's rules alone."""
        start, stop = np.searchsorted(self.not_shown, [user * len(self.homes), (user + 1) * len(self.homes)])
        mine = PairRules(self.not_shown[start:stop], self.region, self.homes)
        return np.asarray(mine.allow(np.array([user]), others.astype(np.int32)[None])[0])

    @property
    def restrict(self) -> bool:
        """Whether they forbid any pair at all."""
        return bool(len(self.not_shown)) or self.region != "any"


def no_rules(n: int) -> PairRules:
    """Everybody may be shown to everybody."""
    return PairRules(np.empty(0, np.int64), "any", np.full(n, ANYWHERE))
