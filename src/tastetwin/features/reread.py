"""Histories as another vocabulary reads them, so that an older model can be asked about today's users."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tastetwin.features.histories import Histories, Vocabulary
from tastetwin.features.vocabulary import NO_ROW, assign_rows, describe_rows


def reread(histories: Histories, vocabulary: Vocabulary, other: Vocabulary) -> Histories:
    """The same users' favors in rows of ``other``.

    A place that ``other`` does not know is read as its fallback group there, one that has none is left out. Favors that
    become one row are one entry, as in ``taste_histories``: visits add up, the mean rating and the last day stay.
    """
    rows = assign_rows(other, describe_rows(vocabulary)).rows[histories.places]
    users = np.repeat(np.arange(histories.n_users), histories.lengths())
    known = np.flatnonzero(rows != NO_ROW)
    entry = users[known] * other.n_rows + rows[known]
    _, from_the_end, group = np.unique(entry[::-1], return_index=True, return_inverse=True)
    last = known[len(known) - 1 - from_the_end]
    group = group.ravel()
    visits, ratings = histories.visits[known][::-1], histories.ratings[known][::-1]
    rated = np.where(np.isnan(ratings), 0, visits)
    counted = np.bincount(group, rated, len(last))
    total = np.bincount(group, rated * np.nan_to_num(ratings), len(last))
    means = np.divide(total, counted, out=np.full(len(last), np.nan), where=counted > 0)
    order = np.argsort(last)
    kept = last[order]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(users[kept], minlength=histories.n_users))]).astype(np.int64)
    found = histories.keep(kept, offsets, histories.user_ids)
    return replace(
        found,
        places=rows[kept],
        visits=np.bincount(group, visits, len(last))[order].astype(np.float32),
        ratings=means[order].astype(np.float32),
    )
