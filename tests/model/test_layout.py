"""Packed favors, which training reads, give what padded ones, which are served, give: the slow twin is the padded."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tastetwin.features.histories import FIRST_PLACE_ROW, UNKNOWN_DAY, Histories
from tastetwin.model import layout
from tastetwin.model.batches import pack, pad
from tastetwin.model.encoder import Encoder, Shape
from tastetwin.model.layout import Packed, Padded, packed, padded
from tastetwin.model.linear import strength_matrix
from tastetwin.model.prepare import starting_weights
from tastetwin.model.views import fit_tables, kinds_of_place
from tests.model import towns

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    town, vocabulary = towns.histories(users=80, places=60, groups=3, length=12, seed=1), towns.vocabulary(60)
    tables = fit_tables(
        strength_matrix(town, vocabulary.n_rows), vocabulary, kinds_of_place(vocabulary), alpha=30, seed=0
    )
    torch.manual_seed(0)
    made = Encoder(
        Shape(dim=24, width=16, layers=2, heads=2, dropout=0.1), vocabulary, tables, starting_weights(tables)
    )
    torch.nn.init.normal_(made.down.weight, std=0.1)
    return made.eval()


def of_lengths(lengths: list[int], known: bool = True) -> Histories:
    """Users with so many favors each; none at all is allowed."""
    rng, total = np.random.default_rng(sum(lengths)), sum(lengths)
    return Histories(
        np.array([f"u{at}" for at in range(len(lengths))], object),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        rng.integers(FIRST_PLACE_ROW, 62, total).astype(np.int32),
        rng.integers(1, 9, total).astype(np.float32),
        (rng.normal(size=total) if known else np.full(total, np.nan)).astype(np.float32),
        (rng.integers(0, 900, total) if known else np.full(total, UNKNOWN_DAY)).astype(np.int32),
    )


def both(encoder: Encoder, town: Histories, most: int = 100) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        slow = torch.cat(encoder.parts(encoder.views, padded(*towns.tensors(town, most))), dim=1)
        favors = packed(pack(town, np.arange(town.n_users), most), CPU)
        return torch.cat(encoder.parts(encoder.views, favors), dim=1), slow


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=70),
    st.integers(1, 50),
    st.booleans(),
    st.sampled_from(sorted(layout._GROUP_CELLS.values())),
)
@settings(max_examples=50, deadline=None)
def test_packed_equals_padded(encoder: Encoder, lengths: list[int], most: int, known: bool, cells: int) -> None:
    """Whatever the lengths, the cut, the size of attention's groups, and the users without a favor: every vector the
    same to rounding."""
    with patch.dict(layout._GROUP_CELLS, {"cpu": cells}):
        fast, slow = both(encoder, of_lengths(lengths, known), most)
    assert torch.allclose(fast, slow, atol=1e-5)


def test_the_gradients_are_the_same(encoder: Encoder) -> None:
    """What is learnt must not depend on how a batch lies in memory either."""
    town = of_lengths([3, 17, 1, 9, 9, 30])
    target = torch.randn(6, encoder.part_sizes[2], generator=torch.Generator().manual_seed(0))
    found = []
    for favors in (padded(*towns.tensors(town)), packed(pack(town, np.arange(6), 100), CPU)):
        encoder.zero_grad()
        (encoder.parts(encoder.views, favors)[2] * target).sum().backward()  # type: ignore[no-untyped-call]
        found.append({name: p.grad.clone() for name, p in encoder.sequence.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert torch.allclose(found[1][name], gradient, atol=1e-5), name


def test_a_packed_batch_is_the_padded_one_without_padding() -> None:
    """Same favors, same order, same cut, same ages."""
    town = of_lengths([4, 0, 12, 7])
    users = np.array([2, 1, 3, 0])
    wide, flat = pad(town, users, 6), pack(town, users, 6)
    inside = wide.places > 0
    assert flat.lengths.tolist() == inside.sum(axis=1).tolist() == [6, 0, 6, 4]
    for name, array in wide.inputs().items():
        assert np.array_equal(getattr(flat, name), array[inside]), name


def test_no_work_is_done_on_padding() -> None:
    """One long history among short ones makes no other longer, attention included: groups are of like lengths."""
    lengths = np.array([3] * 999 + [900])
    layout = Packed(lengths, CPU)
    cells = sum(group.inside.numel() for group in layout.groups)
    assert cells == lengths.sum()
    assert Padded(torch.ones(1000, 900, dtype=torch.bool)).inside.numel() > 200 * cells
