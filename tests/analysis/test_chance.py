"""The chance of the next place: what was planted is found, what is told comes true, too little data says nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tastetwin.analysis.chance import MIN_HITS, MIN_USERS, STEPS, Chance, Level, Pairs, fit_chance
from tastetwin.analysis.index import Floats, Ints
from tastetwin.analysis.next_place import (
    NEAREST,
    STRANGERS,
    Everybody,
    next_place_pairs,
    next_places,
    sample_others,
    without,
)
from tastetwin.analysis.pairs import PairRules, Region, no_rules
from tastetwin.analysis.scale import ScoreScale
from tastetwin.features.histories import Histories

from .test_accounts import histories, vocabulary

TRUTH = (-5.5, 1.1, 0.5)


def planted(users: int, coefficients: tuple[float, float, float] = TRUTH, seed: int = 0, others: int = 400) -> Pairs:
    """Pairs whose chance follows the law that is fitted: rarity in nats from 0 to 8, 3 to 60 places."""
    rng = np.random.default_rng(seed)
    n = users * others
    rarity, places = rng.uniform(0, 8, n), rng.integers(3, 60, n)
    logit = coefficients[0] + coefficients[1] * np.log1p(rarity) + coefficients[2] * np.log1p(places)
    hit = rng.random(n) < 1 / (1 + np.exp(-logit))
    percentile = (100 * (1 - np.exp(-rarity))).astype(np.float32)
    return Pairs(np.repeat(np.arange(users), others), percentile, places, hit, np.ones(n))


def law(found: Chance) -> tuple[float, float, float]:
    """The fitted numbers, in the order of ``TRUTH``."""
    return found.constant, found.by_rarity, found.by_places


def test_the_law_of_the_planted_pairs_is_found() -> None:
    """The three numbers that made them."""
    found = fit_chance(planted(500), seed=1)
    assert found is not None and found.users == 500
    assert law(found) == pytest.approx(TRUTH, abs=0.15)


def test_what_is_told_comes_true() -> None:
    """Nine of ten levels within their interval, on users that the fit had not seen; the levels rise."""
    found = fit_chance(planted(300, seed=2), seed=1)
    assert found is not None and len(found.reliability) == 10
    assert sum(level.low <= level.told <= level.high for level in found.reliability) >= 9
    assert (np.diff([level.told for level in found.reliability]) > 0).all()


def test_first_twins_are_not_told_more_than_comes_true() -> None:
    """Among the closest, closeness counts for less: three cities said so, and these are the chances people read."""
    made = planted(500, seed=4)
    rng = np.random.default_rng(4)
    rarity = rng.exponential(size=len(made.hit))  # of random pairs
    logit = -6 + np.minimum(rarity, 3) + 0.3 * np.maximum(rarity - 3, 0) + 0.5 * np.log1p(made.places)
    hit = rng.random(len(logit)) < 1 / (1 + np.exp(-logit))
    pairs = dataclasses.replace(made, percentile=(100 * (1 - np.exp(-rarity))).astype(np.float32), hit=hit)
    found = fit_chance(pairs, seed=1)
    assert found is not None
    first = rarity > 5
    assert found.of(pairs.percentile, pairs.places)[first].mean() == pytest.approx(hit[first].mean(), rel=0.2)


@pytest.mark.parametrize("more", [{}, {"log_rarity": 0.9}], ids=["by the rarity", "or by its logarithm"])
def test_what_another_version_fitted_is_not_told(more: dict[str, float]) -> None:
    """Its numbers mean something else in this law; to say nothing is honest, and the rest of the run is answered."""
    assert Chance.from_json({"coefficients": [-4.0, 0.3, 0.7], **more, "users": 100, "reliability": []}) is None
    assert Chance.from_json(None) is None


def test_weights_undo_the_sampling() -> None:
    """Every fourth pair of the unlikely half, four times as heavy, says what all pairs say."""
    whole = planted(500, seed=3)
    unlikely = whole.percentile < 98
    kept = ~unlikely | (np.arange(len(unlikely)) % 4 == 0)
    fields = (getattr(whole, field.name)[kept] for field in dataclasses.fields(whole))
    sampled = dataclasses.replace(Pairs(*fields), weight=np.where(unlikely, 4.0, 1.0)[kept])
    found = fit_chance(sampled, seed=1)
    assert found is not None and law(found) == pytest.approx(TRUTH, abs=0.2)


def test_too_few_users_or_hits_are_not_enough_data() -> None:
    """Silence rather than a number that a handful of people made."""
    few = planted(MIN_USERS - 1)
    assert few.hit.sum() >= MIN_HITS and fit_chance(few, seed=1) is None
    many = planted(MIN_USERS, others=MIN_HITS)
    hit = many.hit & (np.cumsum(many.hit) < MIN_HITS)
    assert fit_chance(dataclasses.replace(many, hit=hit), seed=1) is None
    assert fit_chance(many, seed=1) is not None


def test_a_closer_pair_is_never_less_likely_even_if_the_sample_says_so() -> None:
    """Where closeness tells nothing, or the wrong thing by chance, only places count."""
    found = fit_chance(planted(200, (-2.0, -0.3, 0.4)), seed=1)
    assert found is not None and law(found)[1] == 0 and law(found)[2] > 0.2


@given(rarity=st.floats(0, 3), places=st.floats(0, 3), seed=st.integers(0, 1000))
def test_chances_lie_between_0_and_1_and_rise_with_the_percentile(rarity: float, places: float, seed: int) -> None:
    """At the ends of the scale too, and the fit is the same after JSON."""
    chance = Chance(-4.0, rarity, places, 100, (Level(0.1, 0.2, 0.0, 0.3),))
    percentiles = np.sort(np.append(np.random.default_rng(seed).uniform(0, 100, 20), [0, 100])).astype(np.float32)
    told = chance.of(percentiles, np.full(22, 10))
    assert (told >= 0).all() and (told <= 1).all() and (np.diff(told) >= 0).all()
    assert Chance.from_json(json.loads(json.dumps(chance.to_json()))) == chance


# -- whose next place it is -------------------------------------------------------------------------------------------


def town() -> Histories:
    """Ann was last at 5, again; before that at 4. Bob's last is a fallback group. Cid was at one place, twice."""
    made = histories([[2, 3, 4, 5], [2, 3, 36], [6], [4, 7]])
    visits = made.visits.copy()
    visits[[3, 7]] = 2
    return dataclasses.replace(made, visits=visits)


def test_the_next_place_is_the_last_one_that_was_new() -> None:
    """A place favored again is none, nor is one that stands for many."""
    made = town()
    last = next_places(made, vocabulary())
    assert [int(made.places[at]) if at >= 0 else None for at in last] == [4, 3, None, 7]


def test_the_next_place_is_not_in_the_history_that_is_encoded() -> None:
    """Else the vector would know the answer; the others keep theirs."""
    made = town()
    seen: list[Histories] = []

    def encode(asked: Histories) -> Floats:
        seen.append(asked)
        return np.eye(4, dtype=np.float32)[: asked.n_users]

    pairs = next_place_pairs(made, vocabulary(), np.arange(4), encode, people(np.arange(4)), 1)
    asked = [part.tolist() for part in np.split(seen[0].places, seen[0].offsets[1:-1])]
    assert asked == [[2, 3, 5], [2, 36], [4]]
    wanted = {(0, 3), (1, 0)}  # dot has ann's 4, ann has bob's 3; nobody has dot's 7
    lengths = made.lengths()
    hits = {(int(u), int(p)) for u, p, hit in zip(pairs.user, pairs.places, pairs.hit, strict=True) if hit}
    assert hits == {(user, int(lengths[other])) for user, other in wanted}
    assert len(pairs.hit) == 9 and (pairs.weight == 1).all()


def test_without_leaves_the_other_favors() -> None:
    """One place less for the first, none for the others."""
    made = town()
    assert without(made, np.array([1])).places.tolist() == [2, 4, 5, 2, 3, 36, 6, 4, 7]
    assert without(made, np.array([1])).lengths().tolist() == [3, 3, 1, 2]


def people(labels: Ints, members: Sequence[int] = (0, 1, 2, 3), neighbours: int = 0) -> Everybody:
    """Four people whose vectors are axes."""
    scale = ScoreScale.of(np.linspace(-1, 1, 100).astype(np.float32))
    shown = np.array(members)
    none = np.zeros(4, np.float32)
    return Everybody(np.eye(4, dtype=np.float32), labels, shown, shown, neighbours, none, scale, no_rules(4))


def test_a_second_account_and_who_is_shown_to_nobody_are_no_others() -> None:
    """The one has every place of the first; the lists show neither."""
    made = town()

    def encode(asked: Histories) -> Floats:
        return np.eye(4, dtype=np.float32)[: asked.n_users]

    # Dot is ann's second account, and cid is hidden: ann is compared with bob alone, bob with ann.
    pairs = next_place_pairs(made, vocabulary(), np.array([0, 1]), encode, people(np.array([0, 1, 2, 0]), [0, 1]), 1)
    assert pairs.places.tolist() == [3, 4] and pairs.user.tolist() == [0, 1]


@pytest.mark.parametrize(("region", "met"), [("any", [1, 3]), ("same", [1]), ("other", [3])])
def test_who_the_rules_keep_out_of_a_list_is_no_other(region: Region, met: list[int]) -> None:
    """Places are near home: chances of people who live together are not those of a list of people elsewhere."""
    made = town()

    def encode(asked: Histories) -> Floats:
        return np.eye(4, dtype=np.float32)[: asked.n_users]

    rules = PairRules(np.array([0 * 4 + 2, 1 * 4 + 3]), region, np.array([0, 0, 1, 1], np.int32))
    found = dataclasses.replace(people(np.arange(4)), rules=rules)  # ann follows cid
    pairs = next_place_pairs(made, vocabulary(), np.array([0]), encode, found, 1)
    assert sorted(pairs.places.tolist()) == sorted(made.lengths()[met].tolist())


def test_the_density_is_measured_on_the_bank_as_that_of_the_lists_is() -> None:
    """Else chances would be fitted on other scores than they are told for."""
    made = town()
    scale = ScoreScale.of(np.linspace(-1, 1, 2001).astype(np.float32))

    def encode(asked: Histories) -> Floats:
        return np.tile(np.array([[0.8, 0.6, 0, 0]], np.float32), (asked.n_users, 1))

    for bank, density in (([0, 1, 2], 0.6), ([2], 0.0), ([0], 0.0)):
        everybody = dataclasses.replace(people(np.arange(4), neighbours=1), bank=np.array(bank), scale=scale)
        pairs = next_place_pairs(made, vocabulary(), np.array([0]), encode, everybody, 1)
        wanted = scale.percentile(np.array([0.6, 0, 0], np.float32) - np.float32(density / 2))
        assert sorted(pairs.percentile) == pytest.approx(sorted(wanted), abs=1e-3)


@given(n=st.integers(1, 3000), seed=st.integers(0, 100))
def test_a_sample_holds_the_nearest_and_stands_for_everybody(n: int, seed: int) -> None:
    """Nobody twice, and the weights add up to all others."""
    rng = np.random.default_rng(seed)
    scores = rng.random(n).astype(np.float32)
    others, weights = sample_others(scores, rng)
    assert len(set(others.tolist())) == len(others) and weights.sum() == pytest.approx(n)
    assert set(np.argsort(-scores)[:NEAREST].tolist()) <= set(others.tolist())
    assert len(others) == min(n, NEAREST + STRANGERS)


def test_chances_are_told_in_steps() -> None:
    """With all digits, a chance and a percentile would give away how many places the twin has."""
    told = Chance(-4.0, 0.3, 0.7, 100, ()).of(np.full(500, 99, np.float32), np.arange(500))
    assert set(told.tolist()) <= set(STEPS.tolist()) and len(set(told.tolist())) < 25


def test_nobody_is_told_a_certainty() -> None:
    """A twin who has been everywhere is likely to have the next place; that all of a hundred do, nobody measured."""
    sure = Chance(-5.0, 0.1, 4.0, MIN_USERS, ())
    assert sure.of(np.array([100.0], np.float32), np.array([10_000])).tolist() == [np.float32(0.95)]
