"""Lists under rules: never silently short, never against a rule, the best there is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tastetwin.analysis.fill import Filling, worse_rank
from tastetwin.analysis.pairs import PairRules, Region, no_rules
from tastetwin.analysis.twins import find_twins, max_exposure
from tastetwin.config import AnalyzeConfig, ListsConfig

from .test_twins import brute_force, check, clustered, random_units, unit

FREE = ListsConfig(exposure_cap=None)


def rules_of(n: int, seed: int, region: Region, share: float) -> PairRules:
    """Three home regions, some unknown, and a share of all pairs forbidden at random."""
    rng = np.random.default_rng(seed)
    forbidden = np.flatnonzero(rng.random(n * n) < share)
    return PairRules(forbidden, region, rng.integers(-1, 3, n).astype(np.int32))


def forbids(rules: PairRules, user: int, other: int) -> bool:
    """The rules, word for word."""
    n = len(rules.homes)
    if user * n + other in rules.not_shown.tolist():
        return True
    mine, theirs = rules.homes[user], rules.homes[other]
    if rules.region == "same":
        return bool(mine != theirs)
    return bool(rules.region == "other" and mine == theirs and mine >= 0)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 60),
    k=st.integers(1, 12),
    region=st.sampled_from(["any", "same", "other"]),
    share=st.sampled_from([0.0, 0.1, 0.9]),
    seed=st.integers(0, 2**31),
)
def test_lists_are_the_best_of_those_whom_the_rules_let_in(
    n: int, k: int, region: Region, share: float, seed: int
) -> None:
    """Against plain loops over all pairs: a list is short only where nobody is left."""
    vectors, rules = random_units(n, seed=seed), rules_of(n, seed, region, share)
    config = AnalyzeConfig(k=k)
    everybody, scores = brute_force(vectors, config.model_copy(update={"k": n}))
    wanted = [[other for other in row if not forbids(rules, user, other)][:k] for user, row in enumerate(everybody)]
    twins = find_twins(vectors, config, rules=rules)
    check(twins, wanted, scores)
    assert twins.facts.short == sum(len(row) < k for row in wanted)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(2, 80),
    k=st.integers(1, 8),
    cap=st.sampled_from([1.0, 1.3, 2.0]),
    mutual=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_under_a_cap_a_list_is_short_only_where_nobody_has_room(
    n: int, k: int, cap: float, mutual: bool, seed: int
) -> None:
    """And nobody is in more lists than the cap says, against a rule, or twice in one."""
    vectors, rules = clustered(n, 3, 0.4, seed=seed)[0], rules_of(n, seed, "other", 0.05)
    twins = find_twins(vectors, AnalyzeConfig(k=k), rules=rules, lists=ListsConfig(exposure_cap=cap, mutual=mutual))
    most = max_exposure(cap, k, n, n)
    shown = np.bincount(twins.neighbours[twins.neighbours >= 0], minlength=n)
    assert most == twins.facts.max_exposure and shown.max() <= most
    for user, row in enumerate(twins.neighbours):
        found = row[row >= 0].tolist()
        assert len(set(found)) == len(found) and user not in found
        assert not any(forbids(rules, user, other) for other in found)
        if len(found) < k:
            left = [o for o in range(n) if o != user and o not in found and not forbids(rules, user, o)]
            assert all(shown[other] == most for other in left)
        if not mutual:
            assert (np.diff(twins.scores[user, : len(found)]) <= 0).all()


def test_a_cap_takes_hubs_out_of_lists_and_costs_little_closeness() -> None:
    """400 people on all sides of a centre, where ten more are whom all are near to."""
    rng = np.random.default_rng(5)
    around = np.concatenate([rng.standard_normal((400, 60)), 0.3 * rng.standard_normal((10, 60))])
    vectors = unit(around + 0.5)
    free, capped = (
        find_twins(vectors, AnalyzeConfig(k=10, csls_neighbours=0), lists=lists)
        for lists in (FREE, ListsConfig(exposure_cap=2.0))
    )
    most = [int(np.bincount(twins.neighbours.ravel()).max()) for twins in (free, capped)]
    assert most[0] > 40 and most[1] == 20
    assert capped.scores.mean() > free.scores.mean() - 0.03


def test_the_cap_is_relative_to_how_often_people_are_shown_on_average() -> None:
    """10 twins for 100 users of whom 50 may be shown: 20 lists each, and a cap of 1.5 is 30."""
    assert max_exposure(1.5, 10, 100, 50) == 30
    assert max_exposure(None, 10, 100, 50) is None


def test_the_search_among_cells_goes_deeper_too() -> None:
    """Everybody's nearest 40 are forbidden; the next ones are found all the same."""
    vectors, _ = clustered(900, 12, 0.5)
    order = np.argsort(-(vectors @ vectors.T), axis=1)[:, :41]
    forbidden = np.unique(np.arange(900)[:, None] * 900 + order)
    rules = PairRules(forbidden, "any", np.full(900, -1, np.int32))
    config = AnalyzeConfig(k=10, csls_neighbours=0, recall=0.99)
    exact, cells = (
        find_twins(vectors, config.model_copy(update={"exact_below": below}), rules=rules) for below in (10**6, 0)
    )
    assert exact.facts.cells == 0 and cells.facts.cells > 0 and cells.facts.searches > 1
    assert cells.facts.short == 0
    same = [len(set(a) & set(b)) for a, b in zip(exact.neighbours, cells.neighbours, strict=True)]
    assert np.mean(same) / 10 > 0.97


def test_the_worse_of_both_ranks() -> None:
    """0 and 1 have each other first; 2 has 0 first, who has 2 second; 3 is in nobody's list."""
    candidates = np.array([[1, 2], [0, -1], [0, 1], [0, 2]], np.int32)
    assert worse_rank(candidates).tolist() == [[1, 2], [1, 6], [2, 4], [3, 4]]


def test_mutual_lists_put_those_first_who_would_list_one_back() -> None:
    """A hub is everybody's nearest, but nobody is among the hub's: it moves down."""
    rng = np.random.default_rng(2)
    around = rng.standard_normal((40, 60))
    vectors = unit(np.concatenate([around, 0.02 * rng.standard_normal((1, 60))]) + 0.5)
    config = AnalyzeConfig(k=10, csls_neighbours=0)
    one_sided, mutual = (
        find_twins(vectors, config, lists=lists).neighbours[:40]
        for lists in (FREE, ListsConfig(exposure_cap=None, mutual=True))
    )
    assert (one_sided == 40).sum() > 30
    assert np.nonzero(mutual == 40)[1].mean() > np.nonzero(one_sided == 40)[1].mean() + 2


def test_mutual_lists_are_in_the_order_of_the_worse_of_both_ranks() -> None:
    """Of twice as many candidates as there are places, by definition; among equal ranks the closer one."""
    vectors = clustered(80, 4, 0.5)[0]
    free, mutual = (
        find_twins(vectors, AnalyzeConfig(k=k), lists=ListsConfig(exposure_cap=None, mutual=either))
        for k, either in ((16, False), (8, True))
    )
    worse = worse_rank(free.neighbours)
    for user, row in enumerate(mutual.neighbours.tolist()):
        order = np.lexsort((-free.scores[user], worse[user]))[:8]
        assert row == free.neighbours[user, order].tolist()
        assert mutual.scores[user] == pytest.approx(free.scores[user, order])


def test_who_was_found_later_comes_where_the_score_says() -> None:
    """A search among cells may find somebody closer deeper down; equal scores go by position."""
    rows, nobody = np.arange(4), -np.inf
    names = np.array([[3, 1, 2], [0, 2, -1], [5, 4, 0], [-1, -1, -1]], np.int32)
    scores = np.array([[0.5, 0.9, 0.5], [0.8, 0.7, nobody], [0.3, 0.3, 0.1], [nobody] * 3], np.float32)
    Filling(rows, names, scores, no_rules(6)).in_order(rows)
    assert names.tolist() == [[1, 2, 3], [0, 2, -1], [4, 5, 0], [-1, -1, -1]]
    assert scores == pytest.approx(np.array([[0.9, 0.5, 0.5], [0.8, 0.7, nobody], [0.3, 0.3, 0.1], [nobody] * 3]))


def test_whose_list_is_full_is_not_looked_for_again() -> None:
    """Every further search costs as much as the first one did."""
    assert find_twins(random_units(200), AnalyzeConfig(k=5), lists=FREE).facts.searches == 1


@pytest.mark.parametrize("region", ["same", "other"])
def test_unknown_homes(region: Region) -> None:
    """Where nobody's home is known, neither rule takes anybody's list away."""
    rules = PairRules(np.empty(0, np.int64), region, np.full(9, -1, np.int32))
    assert find_twins(random_units(9), AnalyzeConfig(k=8), rules=rules).facts.short == 0
