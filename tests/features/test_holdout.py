"""Who is kept out of training: decided by id and seed alone, so that it stays decided."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tastetwin.config import EvaluateConfig
from tastetwin.features.histories import Histories
from tastetwin.features.holdout import aside_limit, choose_holdout, set_aside, uniform_hashes
from tests.evaluation.planted import make_histories

HALF = EvaluateConfig(holdout_share=0.5)
USERS = [f"user {number}" for number in range(400)]


def town(users: list[str], places: int = HALF.min_places) -> Histories:
    """Users of so many places each."""
    return make_histories({user: list(range(2, 2 + places)) for user in users})


def chosen(histories: Histories, config: EvaluateConfig = HALF, seed: int = 1) -> set[str]:
    return set(histories.user_ids[choose_holdout(histories, config, seed)].tolist())


def hashes(users: list[str], seed: int = 1) -> dict[str, float]:
    return dict(zip(users, uniform_hashes(users, seed, b"user").tolist(), strict=True))


def test_those_whose_hash_lies_below_the_share_are_held_out() -> None:
    """Nobody else: not a draw, but a property of the id."""
    assert chosen(town(USERS)) == {user for user, value in hashes(USERS).items() if value < 0.5}
    assert 150 < len(chosen(town(USERS))) < 250


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_a_larger_share_holds_out_more_and_the_same_ones_first(share: float) -> None:
    """Changing the setting must not make yesterday's training users today's test."""
    some = chosen(town(USERS), EvaluateConfig(holdout_share=share))
    more = chosen(town(USERS), EvaluateConfig(holdout_share=min(share + 0.05, 0.99)))
    assert some < more
    assert abs(len(some) / len(USERS) - share) < 0.07


def test_a_user_stays_held_out_when_others_come_and_go() -> None:
    """If who is held out depended on who else is there, tomorrow's model would have trained on today's test."""
    today, tomorrow = USERS[:300], USERS[100:]
    both = set(today) & set(tomorrow)
    assert chosen(town(today)) & both == chosen(town(tomorrow)) & both != set()


def test_a_longer_history_does_not_change_who_is_held_out() -> None:
    """Users favor more places every day."""
    assert chosen(town(USERS)) == chosen(town(USERS, places=50))


def test_only_users_with_enough_places_are_held_out() -> None:
    """Two halves of too few places say nothing; one place fewer is too few."""
    histories = make_histories({user: list(range(2, 2 + 9 + number % 2)) for number, user in enumerate(USERS)})
    assert HALF.min_places == 10
    assert chosen(histories) == chosen(town(USERS)) & set(USERS[1::2])


def test_of_too_many_the_smallest_hashes_are_held_out() -> None:
    """Also then the choice hangs on ids; a newcomer with a smaller hash frees the one with the largest, no other."""
    config = EvaluateConfig(holdout_share=0.9, max_holdout=10)
    by_hash = sorted(USERS, key=hashes(USERS).__getitem__)
    newcomer, known = by_hash[3], [user for user in USERS if user != by_hash[3]]
    before, after = chosen(town(known), config), chosen(town(USERS), config)
    assert after == set(by_hash[:10])
    assert (after - before, before - after) == ({newcomer}, {by_hash[10]})


def aside(histories: Histories, config: EvaluateConfig = HALF) -> set[str]:
    return set(histories.user_ids[set_aside(histories, aside_limit(histories, config, 1), 1)].tolist())


@given(st.integers(10, 60), st.data())
@settings(max_examples=80, deadline=None)
def test_nobody_held_out_on_a_later_day_was_learnt_from(most: int, data: st.DataObject) -> None:
    """People get around, come, go, and lose places; weights learnt today are judged by them for days."""
    config = EvaluateConfig(holdout_share=0.5, max_holdout=most)
    towns = st.dictionaries(st.sampled_from(USERS[:80]), st.integers(1, 14), min_size=1)
    today, later = data.draw(towns), data.draw(towns)
    before, after = (
        make_histories({user: list(range(2, 2 + places)) for user, places in each.items()}) for each in (today, later)
    )
    limit = aside_limit(before, config, 1)
    learnt = set(before.user_ids[~set_aside(before, limit, 1)].tolist())
    judged = choose_holdout(after, config, 1) & set_aside(after, limit, 1)
    assert not set(after.user_ids[judged].tolist()) & learnt
    assert chosen(before, config) <= aside(before, config)


def test_at_the_cap_the_limit_is_the_largest_hash_held_out() -> None:
    """Setting aside a tenth of ten millions for the sake of a thousand would be dear."""
    config = EvaluateConfig(holdout_share=0.9, max_holdout=10)
    assert aside(town(USERS), config) == chosen(town(USERS), config)
    assert len(chosen(town(USERS), config)) == 10


def test_where_nobody_is_held_out_nobody_is_set_aside() -> None:
    """A town of users too short to be judged by: each is needed to learn from."""
    assert aside(town(USERS, places=3)) == set()
    assert aside(town(USERS), EvaluateConfig(holdout_share=0.0)) == set()


def test_short_histories_are_set_aside_as_long_ones_are_held_out() -> None:
    """By the hash of the id alone."""
    histories = make_histories({user: list(range(2, 5 + 9 * (number % 2))) for number, user in enumerate(USERS)})
    assert aside(histories) == chosen(town(USERS))


def test_another_seed_is_another_choice() -> None:
    """How an evaluation is repeated on other people."""
    one, two = chosen(town(USERS), seed=1), chosen(town(USERS), seed=2)
    assert one != two and 50 < len(one & two) < 150, "half of a half"


def test_a_town_without_anybody_is_no_error() -> None:
    """The first day of a new service."""
    assert choose_holdout(make_histories({}), HALF, seed=1).tolist() == []
    assert not chosen(town(USERS, places=3))


def test_the_hash_is_blake2b_of_the_id_keyed_by_purpose_and_seed() -> None:
    """Written out, because every store in the world has its users divided by it."""
    digest = hashlib.blake2b("골목".encode(), digest_size=8, key=b"place7").digest()
    assert uniform_hashes(["골목"], 7, b"place").tolist() == [int.from_bytes(digest, "little") / 2**64]


def test_hashes_are_spread_evenly_and_independent_of_each_other() -> None:
    """A share of the ids is the same share of the hashes; purposes must not follow one another."""
    ids = range(20_000)
    users, cuts = uniform_hashes(ids, 1, b"user"), uniform_hashes(ids, 1, b"cut")
    assert users.min() >= 0 and users.max() < 1
    assert np.abs(np.histogram(users, 10, (0, 1))[0] / 20_000 - 0.1).max() < 0.01
    assert abs(np.corrcoef(users, cuts)[0, 1]) < 0.03


@given(st.text(st.characters(codec=None, categories=["Cs", "Ll", "Zs", "Cc"]), max_size=20))
@settings(max_examples=50, deadline=None)
def test_any_identifier_can_be_held_out(user: str) -> None:
    """Ids are hostile text: lone surrogates and control characters must not stop an evaluation."""
    assert choose_holdout(town([user]), HALF, seed=1).shape == (1,)
