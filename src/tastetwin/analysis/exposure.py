"""Nobody in more than so many lists: a matching of users with the twins that they would like best.

Without a cap some people are in hundreds of lists and others in none. *Deferred acceptance* (Gale & Shapley 1962; for
many partners on both sides, Roth & Sotomayor 1990): every user asks for their best candidates; whoever is asked by more
than have room keeps the closest and turns the others away, who ask for their next ones. What comes out is stable: no
user and candidate would both rather have each other than whom they got. Where both sides order by the same score it is
also what taking pairs greedily, the closest first, gives.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tastetwin.analysis.index import Ints

Positions = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]
Doubles = npt.NDArray[np.float64]


def accepted(candidates: Positions, priority: Doubles, wanted: Ints, room: Ints) -> Mask:
    """Which candidates come into which list.

    Args:
        candidates: [m, c] positions of users, the best first; -1 for none, anywhere.
        priority: [m, c] what both sides order by, higher = closer; descending in a row where candidates are.
        wanted: [m] how many each list takes.
        room: [n] in how many lists each user may still be.

    Returns:
        [m, c] true for those accepted. Of pairs at the same priority the earlier list is served first.
    """
    possible = candidates >= 0
    possible[possible] = room[candidates[possible]] > 0
    chosen = _best(possible, wanted)
    while True:
        refused = _refused(candidates, priority, chosen, room)
        if not len(refused[0]):
            return chosen
        possible[refused] = False
        lists = np.unique(refused[0])
        chosen[lists] = _best(possible[lists], wanted[lists])


def _best(possible: Mask, wanted: Ints) -> Mask:
    """The first so many possible ones of each row."""
    return possible & (np.cumsum(possible, axis=1, dtype=np.int32) <= wanted[:, None])


def _refused(candidates: Positions, priority: Doubles, chosen: Mask, room: Ints) -> tuple[Ints, Ints]:
    """Where somebody is asked by more lists than have room: the rows and columns of those that are too many."""
    asked = np.bincount(candidates[chosen], minlength=len(room))
    crowded = chosen & (asked > room)[candidates]  # position -1 reads the last user, but is never chosen
    rows, columns = np.nonzero(crowded)
    whom = candidates[rows, columns]
    order = np.lexsort((rows, -priority[rows, columns], whom))
    starts = np.flatnonzero(np.diff(whom[order], prepend=-1))
    place = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    late = order[place >= room[whom[order]]]
    return rows[late], columns[late]
