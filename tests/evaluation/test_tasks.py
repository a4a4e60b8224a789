"""The held-out tasks: the two halves of a user are honest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from tastetwin.evaluation.tasks import (
    MATCHED_OTHERS,
    PseudoUsers,
    chronological_pairs,
    disjoint_pairs,
    matched_candidates,
)
from tests.evaluation.planted import CONFIG, world


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


@pytest.mark.parametrize("in_time", [False, True])
def test_a_half_does_not_tell_how_the_other_one_was_rated(in_time: bool) -> None:
    """Ratings less the mean of the whole person would: who rates one half high has the other one below it."""
    planted = world()
    rng = np.random.default_rng(3)
    told = rng.normal(size=len(planted.histories.places)).astype(np.float32)

    def cut(ratings: npt.NDArray[np.float32]) -> PseudoUsers:
        rated = replace(planted.histories, ratings=ratings).recentred()
        if in_time:
            return chronological_pairs(rated, planted.holdout, planted.vocabulary, CONFIG)
        return disjoint_pairs(rated, planted.holdout, planted.vocabulary, CONFIG, CONFIG.seed)

    lengths = planted.histories.lengths()
    place = np.arange(len(told)) - np.repeat(planted.histories.offsets[:-1], lengths)
    newer = place >= np.repeat(lengths // 2, lengths)
    other = newer if in_time else np.isin(planted.histories.places, planted.pseudo.b.places)
    once, again = cut(told), cut(np.where(other, told + 2, told).astype(np.float32))
    assert once.a.ratings.std() > 0.5
    np.testing.assert_allclose(once.a.ratings, again.a.ratings, atol=1e-5)


@pytest.mark.parametrize("min_half", range(3, 14))
def test_only_held_out_users_with_enough_in_both_halves_are_asked(min_half: int) -> None:
    """Whom the model has learnt from would be found by heart, and three places show no taste."""
    planted, all_of_them = world(), world().histories
    everybody = disjoint_pairs(all_of_them, np.ones(500, bool), planted.vocabulary, CONFIG, CONFIG.seed)
    of_b, held_out = set(everybody.b.places.tolist()), np.arange(500) % 3 == 1
    config = CONFIG.model_copy(update={"min_places": 20, "min_half": min_half})
    wanted, long_enough = [], []
    for user in np.flatnonzero(held_out):
        places = all_of_them.places[all_of_them.offsets[user] : all_of_them.offsets[user + 1]].tolist()
        in_b = len(of_b.intersection(places))
        wanted += [all_of_them.user_ids[user]] * (len(places) >= 20 and min(in_b, len(places) - in_b) >= min_half)
        long_enough += [all_of_them.user_ids[user]] * (len(places) >= max(20, 2 * min_half))
    pairs = disjoint_pairs(all_of_them, held_out, planted.vocabulary, config, CONFIG.seed)
    assert pairs.a.user_ids.tolist() == pairs.b.user_ids.tolist() == wanted
    in_time = chronological_pairs(all_of_them, held_out, planted.vocabulary, config)
    assert in_time.a.user_ids.tolist() == in_time.b.user_ids.tolist() == long_enough


def test_the_chronological_halves_are_older_and_newer() -> None:
    """Histories are oldest first; the first half of each is one person, the rest the other."""
    planted = world()
    pairs = chronological_pairs(planted.histories, planted.holdout, planted.vocabulary, CONFIG)
    users = planted.histories.select(np.flatnonzero(planted.holdout))
    assert pairs.a.user_ids.tolist() == pairs.b.user_ids.tolist() == users.user_ids.tolist()
    for user in range(0, pairs.n_users, 7):
        whole, older, newer = (
            h.places[h.offsets[user] : h.offsets[user + 1]].tolist() for h in (users, pairs.a, pairs.b)
        )
        assert older + newer == whole and len(older) == len(whole) // 2


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
