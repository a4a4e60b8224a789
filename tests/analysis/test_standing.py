"""Who may be in lists, on histories small enough to count by hand."""

from __future__ import annotations

import dataclasses
from datetime import date

import numpy as np
import pyarrow as pa
import pytest

from tastetwin.analysis.standing import Standing, exposure_table, mainstream, standing
from tastetwin.config import ListsConfig
from tastetwin.features.histories import UNKNOWN_DAY

from .test_accounts import histories, vocabulary, wide_vocabulary

TODAY = date(1970, 1, 31)


def test_mainstream_is_the_share_of_others_with_rarer_places() -> None:
    """Means of log visitors: 100 and 1 (10), 10 and 10 (10), 1, 100 and 100."""
    visitors = np.array([0, 0, 100, 1, 10, 10, 100])
    made = histories([[2, 3], [4, 5], [3], [2, 6]])
    assert mainstream(made, wide_vocabulary(7), visitors).tolist() == [0.5, 0.5, 0.0, 1.0]


def test_a_group_of_rare_places_is_no_mainstream() -> None:
    """However many people it stands for: 36 is a group of 500 visitors, 2 a place of twenty."""
    visitors = np.zeros(40, np.int64)
    visitors[[2, 36]] = 20, 500
    assert mainstream(histories([[36], [2]]), vocabulary(), visitors).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("users", [[], [[2]], [[], []]])
def test_mainstream_of_nobody_or_of_nothing(users: list[list[int]]) -> None:
    """Nothing to compare with, and no division by zero."""
    found = mainstream(histories(users), vocabulary(), np.zeros(40, np.int64))
    assert len(found) == len(users) and np.isfinite(found).all()


def test_inactive_counts_from_the_last_favor_that_has_a_day() -> None:
    """30 days before the logical date, 29, unknown ones only, and unknown beside known."""
    made = histories([[2], [2], [2], [2, 3]])
    days = np.array([0, 1, UNKNOWN_DAY, UNKNOWN_DAY, 0], np.int32)
    found = standing(dataclasses.replace(made, days=days), vocabulary(), ListsConfig(inactive_days=29), TODAY)
    assert found.reasons.tolist() == ["inactive", "", "", "inactive"]
    assert standing(made, vocabulary(), ListsConfig(), TODAY).may_be_shown.all()


def test_few_places_and_the_account_that_is_shown() -> None:
    """Of three accounts of one person the first that may be shown is; who may not be shown for a reason of their own
    is hidden for that, and never meets the shown one all the same: fresh lists know by this column."""
    reasons = np.array(["inactive", "", "", "few_places"], object)
    found = Standing(np.array([0, 0, 0, 3]), reasons)
    nowhere, numbers = pa.nulls(4, pa.string()), np.zeros(4, np.float32)
    table = exposure_table(np.array(list("abcd"), object), found, np.arange(4), numbers, numbers, nowhere)
    assert table.column("hidden").to_pylist() == ["inactive", None, "same_person", "few_places"]
    assert table.column("instead_idno").to_pylist() == ["b", None, "b", None]
    few = standing(histories([[2], [2, 3]]), vocabulary(), ListsConfig(min_places=2), TODAY)
    assert few.reasons.tolist() == ["few_places", ""]
