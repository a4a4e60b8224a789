"""Rules about two people, pair by pair."""

from __future__ import annotations

import numpy as np
import pytest

from tastetwin.analysis.pairs import PairRules, Region, no_rules

N = 4
HOMES = np.array([0, 0, 1, -1], np.int32)
NOT_SHOWN = {(0, 1), (0, 3), (3, 2)}
"""The very first key and the very last ones, and users without any in between."""


@pytest.mark.parametrize("region", ["any", "same", "other"])
@pytest.mark.parametrize("asked", [[0, 1, 2, 3], [3], [1, 2]])
def test_who_may_be_shown_is_what_the_rules_say_of_every_pair(region: Region, asked: list[int]) -> None:
    """One pair let through is somebody in the list of whom they blocked."""
    keys = np.array(sorted(user * N + other for user, other in NOT_SHOWN), np.int64)
    rules, others = PairRules(keys, region, HOMES), [2, -1, 0, 1, 3]

    def shown(user: int, other: int) -> bool:
        mine, theirs = HOMES[user], HOMES[other]
        near = {"any": True, "same": mine == theirs, "other": mine != theirs or mine == -1}[region]
        return other != -1 and (user, other) not in NOT_SHOWN and bool(near)

    found = rules.allow(np.array(asked), np.tile(np.array(others, np.int32), (len(asked), 1)))
    assert found.tolist() == [[shown(user, other) for other in others] for user in asked]


def test_only_rules_that_forbid_a_pair_restrict() -> None:
    """A list is looked for twice as deep where somebody may be turned away, and nowhere else."""
    free = no_rules(N)
    assert free.allow(np.arange(N), np.full((N, 1), 2, np.int32)).all()
    assert not free.restrict
    assert PairRules(np.array([1]), "any", HOMES).restrict
    assert PairRules(free.not_shown, "same", HOMES).restrict and PairRules(free.not_shown, "other", HOMES).restrict
