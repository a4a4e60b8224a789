"""The encoder carries the linear views exactly, and no input makes it misbehave."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tastetwin.features.histories import Histories, Vocabulary
from tastetwin.model import linear
from tastetwin.model.encoder import Encoder, LinearViews, Shape, strength
from tastetwin.model.layout import Padded
from tastetwin.model.objectives import masked_place, two_view_contrast
from tastetwin.model.prepare import starting_weights
from tastetwin.model.views import align, fit_tables, kinds_of_place
from tests.model import towns

SHAPE = Shape(dim=24, width=16, layers=2, heads=2, dropout=0.1)


@pytest.fixture(scope="module")
def town() -> tuple[Histories, Vocabulary]:
    return towns.histories(users=80, places=60, groups=3, length=12, seed=1), towns.vocabulary(60)


@pytest.fixture(scope="module")
def encoder(town: tuple[Histories, Vocabulary]) -> Encoder:
    histories, vocabulary = town
    tables = fit_tables(
        linear.strength_matrix(histories, vocabulary.n_rows), vocabulary, kinds_of_place(vocabulary), alpha=30, seed=0
    )
    torch.manual_seed(0)
    return Encoder(SHAPE, vocabulary, tables, starting_weights(tables)).eval()


def run(encoder: Encoder, histories: Histories, max_length: int = 100) -> np.ndarray:
    with torch.no_grad():
        found: torch.Tensor = encoder(*towns.tensors(histories, max_length))
    return np.asarray(found)


def test_views_in_the_graph_equal_the_linear_fold_in(town: tuple[Histories, Vocabulary]) -> None:
    """Conjugate gradients in whitened space must be the closed form, or the start is not the linear one."""
    histories, vocabulary = town
    matrix = linear.strength_matrix(histories, vocabulary.n_rows)
    tables = fit_tables(matrix, vocabulary, kinds_of_place(vocabulary), alpha=30, seed=0)
    places, visits, _, _ = towns.tensors(histories)
    inside = LinearViews(tables)(places, strength(visits, places), Padded(places > 0)).numpy()
    wanted = [linear.fit_svd(matrix, k, 0) for k in linear.FUSED_SVD]
    ials = [linear.fit_ials(matrix, k, 30, seed=0) for k in linear.FUSED_IALS]
    svd_width = sum(view.components.shape[1] for view in wanted)
    ials_width = sum(view.items.shape[1] for view in ials)
    assert inside[:, :svd_width] == pytest.approx(np.hstack([v.fold_in(matrix) for v in wanted]), abs=1e-4)
    assert inside[:, -ials_width:] == pytest.approx(np.hstack([v.fold_in(matrix) for v in ials]), abs=1e-3)


def test_aligned_tables_give_the_same_similarities(town: tuple[Histories, Vocabulary]) -> None:
    """A rotation may turn the space, never change who is close to whom."""
    histories, vocabulary = town
    matrix = linear.strength_matrix(histories, vocabulary.n_rows)
    full, part = (
        fit_tables(m, vocabulary, kinds_of_place(vocabulary), alpha=30, seed=0) for m in (matrix, matrix[:60])
    )
    places, visits, _, _ = towns.tensors(histories)
    layout = Padded(places > 0)
    before, after = (LinearViews(t)(places, strength(visits, places), layout) for t in (part, align(part, full)))
    assert torch.allclose(before @ before.T, after @ after.T, atol=2e-3)


def test_a_place_nobody_visited_takes_after_its_peers() -> None:
    """A new restaurant must put its visitors near those of its category and region, not nowhere."""
    histories = towns.histories(users=60, places=40, groups=2, length=10, seed=3)
    vocabulary = towns.vocabulary(60, categories=2, regions=1)  # places 40..59 are in nobody's history
    tables = fit_tables(
        linear.strength_matrix(histories, vocabulary.n_rows), vocabulary, kinds_of_place(vocabulary), alpha=30, seed=0
    )
    peers = [row for row in range(2, 42) if row % 2 == 0 and row in histories.places]
    assert tables.factors[50] == pytest.approx(tables.factors[peers].mean(axis=0), abs=1e-5)
    assert np.all(tables.factors[:2] == 0)


def test_vectors_have_unit_length_and_padding_does_not_matter(
    encoder: Encoder, town: tuple[Histories, Vocabulary]
) -> None:
    """Who else is in the batch must not change a user's vector."""
    histories = town[0]
    together = run(encoder, histories)
    alone = np.vstack([run(encoder, histories.select(np.array([u]))) for u in range(10)])
    assert np.linalg.norm(together, axis=1) == pytest.approx(1, abs=1e-5)
    assert together[:10] == pytest.approx(alone, abs=1e-5)


def test_a_history_without_places_is_finite(encoder: Encoder) -> None:
    """The attention of a fully padded row is 0 / 0 unless somebody thought of it."""
    nothing = torch.zeros((2, 3))
    with torch.no_grad():
        assert torch.isfinite(encoder(nothing.long(), nothing, nothing, nothing - 1)).all()


@pytest.mark.parametrize("value", [1e30, -1e30])
def test_absurd_side_features_stay_finite(encoder: Encoder, value: float) -> None:
    """One absurd date or rating that slipped through must not poison a batch."""
    places = torch.tensor([[2, 3, 4]])
    wild = torch.full((1, 3), value)
    with torch.no_grad():
        assert torch.isfinite(encoder(places, wild, wild, wild)).all()


def test_recency_does_not_tell_when_somebody_joined() -> None:
    """An account's age finds a user's other half without any taste: only the order within the user may count."""
    inside = torch.tensor([[True, True, True, False]])
    short, long = torch.tensor([[20.0, 10.0, 0.0, -1.0]]), torch.tensor([[2000.0, 1000.0, 0.0, -1.0]])
    unknown = torch.full((1, 4), -1.0)
    buckets = [Padded(inside).recency(ages)[0, :3].tolist() for ages in (short, long, unknown)]
    assert buckets == [[7, 4, 0]] * 3


def test_contrast_prefers_the_right_pairs() -> None:
    """Known answers: perfect pairs cost nothing, all-equal rows cost ln n."""
    eye = torch.eye(4)
    assert two_view_contrast(eye, eye, torch.tensor(0.01)).item() == pytest.approx(0, abs=1e-6)
    same = torch.ones(4, 4) / 2
    assert two_view_contrast(same, same, torch.tensor(0.1)).item() == pytest.approx(np.log(4), abs=1e-5)


def test_masked_place_loss_is_that_of_a_softmax() -> None:
    """By hand: one hidden place, two candidates at logits 1 and 0."""
    loss = masked_place(torch.tensor([[1.0, 0.0]]), torch.eye(2), torch.tensor([0]))
    assert loss.item() == pytest.approx(np.log(1 + np.exp(-1)), abs=1e-6)
    assert masked_place(torch.zeros(0, 2), torch.eye(2), torch.zeros(0, dtype=torch.long)).item() == 0
