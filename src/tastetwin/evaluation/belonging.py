"""Do the parts of a run belong together, and its data to what was published before?

No measure of quality answers that: lists of another day, another city or somebody else's vectors can be good lists.
Vectors must be what the bundle makes of today's histories, lists must say what the vectors say, and today's data must
hold what the published run's held. Each is looked at on a sample; higher severity means the same as in the gate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tastetwin.evaluation.gate import Finding
from tastetwin.features.histories import UNKNOWN_DAY, Histories, Vocabulary

FloatMatrix = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int32]

SAMPLED_VECTORS: Final = 200
SAMPLED_ENTRIES: Final = 20_000
PUBLISHED_USERS: Final = 2_000
MIN_SAME_COSINE: Final = 0.999
"""Of a stored vector and the same encoded again: vectors of one byte a dimension keep .9999, other models do not."""
MAX_PART_ERROR: Final = 1e-3
"""A list's similarity is the dot product of the two stored vectors, but for float32's rounding."""


def vectors_of_model(stored: FloatMatrix, encoded: FloatMatrix) -> Iterator[Finding]:
    """Do [n, dim] stored vectors equal what the bundle makes of the same users' histories now?"""
    same = stored.shape == encoded.shape
    cosines = (stored * encoded).sum(axis=1) if same else np.zeros(len(stored), np.float32)
    wrong = int((~(cosines >= MIN_SAME_COSINE)).sum())  # written so that NaN is wrong
    if wrong:
        sentence = f"{wrong} of {len(stored)} users have another vector than the bundle's model makes of their history"
        yield Finding("VECTORS-OTHER-MODEL", "broken", wrong / len(stored), 0, sentence)


@dataclass(frozen=True)
class Entries:
    """Entries of twin lists."""

    user: Rows
    """[m] positions of the lists' users."""
    twin: Rows
    """[m] positions of their twins."""
    similarity: FloatMatrix
    """[m] what the lists say of the two, taste and home part together."""


def lists_of_vectors(vectors: FloatMatrix, entries: Entries) -> Iterator[Finding]:
    """Do entries of lists say what the [n_users, dim] vectors say, as they are stored?"""
    dots = (vectors[entries.user] * vectors[entries.twin]).sum(axis=1)
    wrong, looked_at = int((~(np.abs(dots - entries.similarity) <= MAX_PART_ERROR)).sum()), len(dots)
    if wrong:
        sentence = (
            f"{wrong} of {looked_at} list entries looked at do not say what the vectors say: lists of other vectors"
        )
        yield Finding("LISTS-OTHER-VECTORS", "broken", wrong / looked_at, 0, sentence)


@dataclass(frozen=True)
class Data:
    """The data of a run."""

    logical_date: str
    digest: str
    """Of the contents of its features."""
    histories: Histories
    vocabulary: Vocabulary


def data_since(published: Data, today: Data, new_events: int, least: float) -> Iterator[Finding]:
    """Do today's features hold what the published run's held, and more?

    Args:
        published: its histories may be those of a sample of users.
        today: the histories of all.
        new_events: reviews and likes that today's logical day brought.
        least: share of the published favors that must still be there.
    """
    same = today.logical_date > published.logical_date and today.digest == published.digest
    if same and new_events:
        sentence = (
            f"the features of {today.logical_date} are those of {published.logical_date}, though "
            f"{new_events:,} events came in since: old features, or the same events once more"
        )
        yield Finding("STALE-DATA", "refuse", 0, new_events, sentence)
    before, now = _newest(published.histories), _newest(today.histories)
    if now < before:
        newest = [str(np.datetime64(day, "D")) for day in (now, before) if day != UNKNOWN_DAY]
        sentence = f"the newest favors are older than the published run's: {' against '.join(newest)}"
        yield Finding("STALE-DATA", "refuse", now, before, sentence)
    kept = kept_favors(published, today)
    if kept < least:
        sentence = f"{kept:.0%} of the published run's favors are still there: data lost, other rules or other people"
        yield Finding("FAVORS-LOST", "refuse", kept, least, sentence)


def kept_favors(published: Data, today: Data) -> float:
    """Share of the published histories' (user, place) pairs that today's hold too; 1 where there were none.

    Only of places with a row of their own: what a group is made of changes from day to day, a place keeps its row.
    """
    ids = today.histories.user_ids
    held = kept = 0
    for user, name in enumerate(published.histories.user_ids):
        before = _own_places(published, user)
        held += len(before)
        at = int(np.searchsorted(ids, name))
        if at < len(ids) and ids[at] == name:
            kept += len(before & _own_places(today, at))
    return kept / held if held else 1.0


def _own_places(data: Data, user: int) -> set[object]:
    rows = data.histories.places[data.histories.offsets[user] : data.histories.offsets[user + 1]]
    return set(data.vocabulary.place_ids[rows[~data.vocabulary.is_group[rows]]])


def _newest(histories: Histories) -> int:
    """The latest day of a visit; ``UNKNOWN_DAY`` where no time is known."""
    return int(histories.days.max(initial=UNKNOWN_DAY))
