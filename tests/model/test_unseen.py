"""Nobody is taught, and nothing is chosen, by a view that has seen the user: one training, watched.

Everybody in this town has a place of their own, and no place has a kind: a fit that did not see a user has only zeros
at that place. So the tables themselves tell whom they have seen.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

from tastetwin.features.histories import FIRST_PLACE_ROW, Histories
from tastetwin.model import step
from tastetwin.model.encoder import Encoder, LinearViews
from tastetwin.model.linear import Floats, Ials
from tastetwin.model.prepare import Plan, prepare
from tastetwin.model.train import train
from tastetwin.model.workers import Workers
from tests.model import towns

CONFIG = towns.CONFIG
USERS: Final = 120
HELD_OUT: Final = 20
SHARED: Final = 40
FIRST_OWN: Final = FIRST_PLACE_ROW + SHARED


def town() -> Histories:
    """Two planted tastes; user u's last place is row ``FIRST_OWN`` + u."""
    common = towns.histories(USERS, SHARED, 2, 12, seed=1)
    owns = np.arange(FIRST_OWN, FIRST_OWN + USERS)
    ends = common.offsets[1:]
    return replace(
        common,
        offsets=common.offsets + np.arange(USERS + 1),
        places=np.insert(common.places, ends, owns).astype(np.int32),
        visits=np.insert(common.visits, ends, 1),
        ratings=np.insert(common.ratings, ends, 0),
        days=np.insert(common.days, ends, 16_000),
    )


VOCABULARY = towns.vocabulary(SHARED + USERS, categories=0, regions=0)


def owners(places: Tensor) -> set[int]:
    """Users whose own place is among these."""
    return {int(row) - FIRST_OWN for row in places if row >= FIRST_OWN}


def known_to(views: LinearViews) -> set[int]:
    """Users that the fit has seen."""
    rows = torch.cat([views.bags, views.factors], dim=1)[FIRST_OWN:]
    return set(rows.any(dim=1).nonzero()[:, 0].tolist())


@dataclass
class Watched:
    """One training: by phase, each use of linear views: which users they knew, and of whom they were asked."""

    uses: dict[str, list[tuple[set[int], set[int]]]]
    served: set[int]
    """Whom the views of the encoder know."""

    def asked(self, phase: str) -> set[int]:
        """All users that a phase asked about."""
        return set().union(*(asked for _, asked in self.uses[phase]))


@pytest.fixture(scope="module")
def watched() -> Watched:
    phase: list[str] = []
    uses: dict[str, list[tuple[set[int], set[int]]]] = defaultdict(list)
    update, parts, fold_in = step.update, Encoder.parts, Ials.fold_in

    def watched_update(model: Any, optimizer: Any, views: LinearViews, batch: step.Draw, group: Workers) -> float:
        uses[phase[-1]].append((known_to(views), owners(batch.favors.places)))
        return update(model, optimizer, views, batch, group)

    def watched_parts(self: Encoder, views: LinearViews, favors: Any) -> Any:
        uses[phase[-1]].append((known_to(views), owners(favors.places)))
        return parts(self, views, favors)

    def watched_fold_in(self: Ials, matrix: sp.csr_matrix) -> Floats:
        known = np.flatnonzero(self.items[FIRST_OWN:].any(axis=1))
        uses[phase[-1]].append((set(known.tolist()), owners(torch.from_numpy(matrix.indices))))
        return fold_in(self, matrix)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ials, "fold_in", watched_fold_in)
        patch.setattr(step, "update", watched_update)
        patch.setattr(Encoder, "parts", watched_parts)
        trained = train(town(), VOCABULARY, CONFIG, np.arange(HELD_OUT), tell=phase.append)
    return Watched(uses, known_to(trained.encoder.views))


@pytest.mark.parametrize("phase", ["tuning linear views", "training", "choosing gates"])
def test_views_of_a_user_come_from_a_fit_without_them(watched: Watched, phase: str) -> None:
    """Factors that saw both halves of a user match them by heart, and what is tuned or learnt on that trusts it."""
    assert len(watched.uses[phase]) >= 6 and len(watched.asked(phase)) >= 15
    for known, asked in watched.uses[phase]:
        assert not known & asked
        assert len(known) >= (USERS - HELD_OUT) // 2, "it is a fit on the others, not on nobody"


def test_who_chooses_gates_was_in_no_step(watched: Watched) -> None:
    """Gates chosen on users that the weights have learnt from would open to what was learnt by heart."""
    assert watched.asked("training") and watched.asked("choosing gates")
    assert not watched.asked("training") & watched.asked("choosing gates")


def test_the_model_has_seen_everybody_but_the_held_out(watched: Watched) -> None:
    """The twin test is honest only on users that no part of the model was fitted on."""
    assert watched.served == set(range(HELD_OUT, USERS))
    assert not set().union(*(watched.asked(phase) for phase in watched.uses)) & set(range(HELD_OUT))


@pytest.fixture(scope="module")
def plan() -> Plan:
    return prepare(town(), VOCABULARY, CONFIG, Workers(0, 1), lambda phase: None)[0]


def test_learners_and_validators_share_nobody(plan: Plan) -> None:
    """One user in both would both teach the weights and judge them."""
    assert len(plan.validators) == USERS // 5
    assert not set(plan.learners) & set(plan.validators)
    assert {*plan.learners, *plan.validators} == set(range(USERS)), "all are long enough to be one or the other"


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_an_epoch_is_every_learner_once_in_batches_of_one_fold(plan: Plan, epoch: int) -> None:
    """A batch has one fit of views for all: with two folds in it, that fit would have seen some of them."""
    batches = plan.schedule(epoch)
    assert np.array_equal(np.sort(np.concatenate(batches)), plan.learners)
    assert all(len(set(plan.fold[users])) == 1 and len(users) <= CONFIG.batch_users for users in batches)
