"""The held-out tasks: who is held out, and that the two halves of a user are honest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tastetwin.evaluation.tasks import MATCHED_OTHERS, disjoint_pairs, matched_candidates
from tastetwin.features.holdout import choose_holdout
from tastetwin.features.home import home_regions
from tests.evaluation.planted import CONFIG, make_histories, make_vocabulary, world


def test_no_query_half_shares_a_place_with_any_candidate_half() -> None:
    """One shared place between any ~a and any ~b would pay for overlap instead of taste."""
    pseudo = world().pseudo
    assert pseudo.n_users > 50
    assert not set(pseudo.a.places) & set(pseudo.b.places)


def test_both_halves_together_are_the_user() -> None:
    """Nothing is lost or invented: the halves are the person's own places."""
    planted = world()
    whole = {
        user: set(planted.histories.places[planted.histories.offsets[i] : planted.histories.offsets[i + 1]])
        for i, user in enumerate(planted.histories.user_ids)
    }
    a, b = planted.pseudo.a, planted.pseudo.b
    for i, user in enumerate(a.user_ids):
        halves = [set(h.places[h.offsets[i] : h.offsets[i + 1]]) for h in (a, b)]
        assert b.user_ids[i] == user
        assert halves[0] | halves[1] == whole[user]
        assert min(map(len, halves)) >= CONFIG.min_half
        assert planted.pseudo.activity[i] == len(whole[user])


def test_a_user_stays_held_out_when_others_come_and_go() -> None:
    """If who is held out depended on who else is there, tomorrow's model would have trained on today's test."""
    histories = world().histories
    mask = choose_holdout(histories, CONFIG, seed=1)
    some = np.arange(0, histories.n_users, 3)
    assert np.array_equal(choose_holdout(histories.select(some), CONFIG, seed=1), mask[some])


def test_holdout_respects_share_cap_eligibility_and_seed() -> None:
    """The configured share of eligible users, at most the cap, never a user with too few places."""
    histories = world().histories
    mask = choose_holdout(histories, CONFIG, seed=1)
    assert 0.2 < mask.mean() < 0.4
    capped = choose_holdout(histories, CONFIG.model_copy(update={"max_holdout": 10}), seed=1)
    assert capped.sum() == 10 and not (capped & ~mask).any()
    assert not np.array_equal(mask, choose_holdout(histories, CONFIG, seed=2))
    few_places = make_histories({"a": [2, 3, 4]})
    assert not choose_holdout(few_places, CONFIG.model_copy(update={"holdout_share": 0.99}), seed=1).any()


def test_a_place_keeps_its_half_when_rows_and_users_change() -> None:
    """Pairs must stay comparable from day to day: the cut follows place ids, not row numbers."""
    planted = world()
    shift = 7
    moved = replace(planted.vocabulary, place_ids=np.roll(planted.vocabulary.place_ids, shift))
    some = planted.histories.select(np.arange(200))
    some = replace(some, places=some.places + shift)
    inside = some.places < moved.n_rows
    assert inside.mean() > 0.9
    later = disjoint_pairs(
        replace(some, places=np.where(inside, some.places, 2 + shift)),
        planted.holdout[:200],
        moved,
        CONFIG,
        CONFIG.seed,
    )
    first_half = set(planted.vocabulary.place_ids[planted.pseudo.a.places])
    second_half = set(planted.vocabulary.place_ids[planted.pseudo.b.places])
    assert not set(moved.place_ids[later.a.places]) & second_half
    assert not set(moved.place_ids[later.b.places]) & first_half


def test_the_cut_is_even() -> None:
    """A lopsided cut makes one half too short to show taste."""
    pseudo = world().pseudo
    first, second = len(set(pseudo.a.places)), len(set(pseudo.b.places))
    assert 0.4 < first / (first + second) < 0.6


def test_home_region_is_the_most_frequent_known_one() -> None:
    """Ties go to the smaller index, so that a re-run agrees; users without a known region get -1."""
    vocabulary = make_vocabulary(5, np.array([0, 1, 1, -1, 2], np.int32), np.zeros(5, np.int32))
    histories = make_histories({"a": [2, 3, 4, 5], "b": [5], "c": [2, 6], "d": [5, 6]})
    assert home_regions(histories, vocabulary).tolist() == [1, -1, 0, 2]


def test_matched_candidates_are_neighbours_of_similar_activity() -> None:
    """Column 0 is the true twin; the others are distinct, of the same region and activity while these last."""
    planted = world(users=1200)
    histograms = np.eye(4, dtype=np.float32)[np.arange(planted.pseudo.n_users) % 4]
    chosen = matched_candidates(planted.pseudo, histograms, seed=3)
    assert chosen.shape == (planted.pseudo.n_users, MATCHED_OTHERS + 1)
    assert np.array_equal(chosen[:, 0], np.arange(planted.pseudo.n_users))
    for user, row in enumerate(chosen):
        assert len(set(row)) == len(row)
        ratio = planted.pseudo.activity[row] / planted.pseudo.activity[user]
        assert ((ratio >= 0.5) & (ratio <= 2)).all()
        same_region = [c for c in row if c % 4 == user % 4]
        assert len(same_region) >= min(60, (np.arange(len(chosen)) % 4 == user % 4).sum() // 2)


@given(st.text(st.characters(codec=None, categories=["Cs", "Ll", "Zs", "Cc"]), max_size=20))
@settings(max_examples=50, deadline=None)
def test_any_identifier_can_be_held_out(user: str) -> None:
    """Ids are hostile text: lone surrogates and control characters must not stop an evaluation."""
    histories = make_histories({user: list(range(2, 14))})
    assert choose_holdout(histories, CONFIG, seed=1).shape == (1,)
