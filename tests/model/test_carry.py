"""An encoder carried on from day to day: yesterday's places stay what they were, today's find their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tastetwin.features.histories import FIRST_PLACE_ROW, Histories
from tastetwin.model.carry import can_carry_on, carry_on, restore, tables_of, turn_onto
from tastetwin.model.export import export_weights
from tastetwin.model.train import Trained, train
from tests.evaluation.planted import make_histories
from tests.model import towns

CONFIG = towns.CONFIG
GROUPS, PLACES, NEW = 4, 80, 8
TOWN = towns.histories(users=160, places=PLACES, groups=GROUPS, length=14, seed=1)
BEFORE, TODAY = towns.vocabulary(PLACES), towns.vocabulary(PLACES + NEW, categories=4, regions=3)
"""Today there are new places, a fourth category and a third region."""


def next_day() -> Histories:
    """Everybody has been to one of the two new places of their group since."""
    rows = {}
    for user, name in enumerate(TOWN.user_ids):
        mine = TOWN.places[TOWN.offsets[user] : TOWN.offsets[user + 1]].tolist()
        rows[name] = [*mine, FIRST_PLACE_ROW + PLACES + user % GROUPS + GROUPS * (user % 8 // GROUPS)]
    return make_histories(rows)


@pytest.fixture(scope="module")
def yesterday() -> Trained:
    return train(TOWN, BEFORE, CONFIG)


@pytest.fixture(scope="module")
def today(yesterday: Trained) -> Trained:
    return carry_on(yesterday.encoder, next_day(), TODAY, CONFIG)


def vectors(trained: Trained, histories: Histories) -> np.ndarray:
    return trained.encode(histories, CONFIG.max_length)


def test_weights_read_back_make_the_same_encoder(yesterday: Trained, tmp_path: Path) -> None:
    """Tomorrow has nothing but the bundle."""
    export_weights(yesterday.encoder, tmp_path / "weights")
    read = restore(load_file(tmp_path / "weights"), yesterday.record.alpha, BEFORE, CONFIG)
    assert np.array_equal(Trained(read, yesterday.record).encode(TOWN, 20), vectors(yesterday, TOWN))
    again, once = tables_of(read.views), tables_of(yesterday.encoder.views)
    assert (again.bag_sizes, again.factor_sizes, again.alpha) == (once.bag_sizes, once.factor_sizes, once.alpha)


def test_a_day_without_news_changes_nobody(yesterday: Trained) -> None:
    """The fit is the same fit, and turned onto itself it stays where it is."""
    same = carry_on(yesterday.encoder, TOWN, BEFORE, CONFIG)
    assert vectors(same, TOWN) == pytest.approx(vectors(yesterday, TOWN), abs=1e-3)
    assert same.record.likeness_to_past == pytest.approx(1, abs=1e-4)


def test_learned_weights_are_kept_and_embeddings_grow_behind_their_rows(yesterday: Trained, today: Trained) -> None:
    """A row that moved would speak of another category."""
    old, new = yesterday.encoder.state_dict(), today.encoder.state_dict()
    for name in ("up.weight", "sequence.blocks.0.mix.weight", "gates", "projection", "log_weights", "sequence.scale"):
        assert torch.equal(old[name], new[name]), name
    for name in ("sequence.category.weight", "sequence.region.weight"):
        assert len(new[name]) == len(old[name]) + 1
        assert torch.equal(new[name][:-1], old[name])
        assert torch.allclose(new[name][-1], old[name].mean(dim=0))
    assert len(new["views.bags"]) == TODAY.n_rows


def test_a_new_place_belongs_to_those_who_went_there(today: Trained) -> None:
    """The 2021 system could not read it at all before the next training."""
    new_rows = [FIRST_PLACE_ROW + PLACES + at for at in range(NEW)]
    strangers = make_histories({f"s{row}": [row] for row in new_rows})
    scores = vectors(today, strangers) @ vectors(today, TOWN).T
    nearest = np.argsort(-scores, axis=1)[:, :10]
    assert np.all(nearest % GROUPS == (np.arange(NEW) % GROUPS)[:, None])


def test_unchanged_histories_stay_near_where_they_were(yesterday: Trained, today: Trained) -> None:
    """Yesterday's vectors and today's are of one space: what was kept of yesterday can be searched with today's."""
    old, new = vectors(yesterday, TOWN), vectors(today, TOWN)
    assert (old * new).sum(axis=1).mean() > 0.9
    assert today.record.likeness_to_past == pytest.approx((old * new).sum(axis=1).mean(), abs=1e-3)
    again = [train(next_day(), TODAY, CONFIG.model_copy(update={"seed": seed})) for seed in (2, 3, 4)]
    alone = np.mean([(old * vectors(each, TOWN)).sum(axis=1).mean() for each in again])
    assert alone < 0.7, "a training of its own has a space of its own, which may fall near to yesterday's by chance"


def test_a_full_training_is_turned_into_the_space_before_it(yesterday: Trained) -> None:
    """A rotation: nobody's list changes, and everybody's vector is where it was, as near as may be."""
    trained = train(next_day(), TODAY, CONFIG.model_copy(update={"seed": 2}))
    alone = vectors(trained, TOWN)
    turn_onto(trained, yesterday.encoder, next_day(), CONFIG)
    turned, old = vectors(trained, TOWN), vectors(yesterday, TOWN)
    assert turned @ turned.T == pytest.approx(alone @ alone.T, abs=1e-4)
    assert (turned * old).sum(axis=1).mean() > max(0.8, (alone * old).sum(axis=1).mean() + 0.2)
    assert trained.record.likeness_to_past is not None and trained.record.likeness_to_past > 0.8


def test_a_full_training_of_other_length_is_left_as_it_is(yesterday: Trained) -> None:
    """There is no rotation between 16 and 32 dimensions."""
    config = CONFIG.model_copy(update={"dim": 16})
    trained = train(next_day(), TODAY, config)
    before = trained.encoder.projection.clone()
    turn_onto(trained, yesterday.encoder, next_day(), config)
    assert torch.equal(trained.encoder.projection, before)
    assert trained.record.likeness_to_past is None


def test_carried_for_ten_days_it_still_finds_planted_twins(yesterday: Trained) -> None:
    """Each day goes on from the day before, not from the training: errors must not add up."""
    trained = yesterday
    for _ in range(10):
        trained = carry_on(trained.encoder, next_day(), TODAY, CONFIG)
    fresh = towns.histories(users=80, places=PLACES, groups=GROUPS, length=14, seed=9)
    found = vectors(trained, fresh)
    similarity = found @ found.T
    np.fill_diagonal(similarity, -np.inf)
    assert np.mean(similarity.argmax(axis=1) % GROUPS == np.arange(80) % GROUPS) > 0.97
    old, new = vectors(yesterday, TOWN), vectors(trained, TOWN)
    assert (old * new).sum(axis=1).mean() > 0.85


def test_nobody_left_in_todays_data_is_no_error(yesterday: Trained) -> None:
    """A town whose only known places are new ones: nothing to compare with, a vector for everybody."""
    moved = make_histories({f"n{user}": [FIRST_PLACE_ROW + PLACES + user % NEW] for user in range(20)})
    trained = carry_on(yesterday.encoder, moved, TODAY, CONFIG)
    assert trained.record.likeness_to_past is None
    assert np.linalg.norm(vectors(trained, moved), axis=1) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("before", "today", "on"), [(40, 40, True), (40, 48, False), (48, 40, False), (70, 90, True)])
def test_where_few_users_allow_other_ranks_it_is_not_carried_on(before: int, today: int, on: bool) -> None:
    """Implicit ALS of 40 users has 40 dimensions, of 48 it has 48: there is no way back and forth between them."""
    first, second = (towns.histories(users=n, places=PLACES, groups=2, length=10, seed=4) for n in (before, today))
    trained = train(first, BEFORE, CONFIG.model_copy(update={"epochs": 0}))
    assert can_carry_on(trained.encoder, second, BEFORE) == on
    if on:
        once = carry_on(trained.encoder, second, BEFORE, CONFIG)
        assert can_carry_on(once.encoder, first, BEFORE)
        assert np.isfinite(vectors(carry_on(once.encoder, first, BEFORE, CONFIG), first)).all()


def test_the_number_of_threads_changes_nothing(yesterday: Trained) -> None:
    """The same day on a larger machine is the same bundle."""
    one, two = (
        carry_on(yesterday.encoder, next_day(), TODAY, CONFIG.model_copy(update={"threads": threads}))
        for threads in (1, 2)
    )
    for name, tensor in one.encoder.state_dict().items():
        assert torch.equal(two.encoder.state_dict()[name], tensor), name
    assert one.record == two.record
