"""The taste part and the home part: they sum to the similarity, and neither holds what is the other's."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tastetwin.analysis.index import Floats, Ints
from tastetwin.analysis.parts import LEVEL, Parts, Split, fit_parts, read_axes, reweighted, unit, write_axes
from tastetwin.store import Store
from tests import handmade

DIM: Final = 24
ROUNDING: Final = 1e-6
seeds = st.integers(0, 2**32 - 1)


def town(seed: int, users: int = 1_000, regions: int = 6) -> tuple[Floats, npt.NDArray[np.int32], Ints]:
    """Vectors whose first axes tell home (loudly) and whose last tell one of three tastes, with homes and tastes."""
    rng = np.random.default_rng(seed)
    homes = rng.integers(0, regions, users).astype(np.int32)
    tastes = rng.integers(0, 3, users)
    rows = 0.25 * rng.standard_normal((users, DIM))
    rows[:, :regions] += 2 * np.eye(regions)[homes]
    rows[:, -3:] += np.eye(3)[tastes]
    turn = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0]
    return unit(rows @ turn), homes, tastes


def nearest_alike(vectors: Floats, of: npt.NDArray[Any]) -> float:
    """The share of nearest users who are of one's kind."""
    dots = vectors @ vectors.T
    np.fill_diagonal(dots, -9)
    return float((of[dots.argmax(axis=1)] == of).mean())


def axes_of(rng: np.random.Generator, rank: int) -> Floats:
    return np.ascontiguousarray(np.linalg.qr(rng.standard_normal((DIM, rank)))[0].T, np.float32)


@settings(max_examples=50, deadline=None)
@given(seeds, st.integers(0, DIM))
def test_the_parts_sum_to_the_similarity(seed: int, rank: int) -> None:
    """The dials add and take away; nothing may be counted twice or lost on the way."""
    rng = np.random.default_rng(seed)
    vectors, axes = unit(rng.standard_normal((9, DIM))), axes_of(rng, rank)
    users, others = rng.integers(0, 9, 4), rng.integers(0, 9, (4, 3))
    taste, home = Split.of(vectors, axes).parts(users, others)
    whole = np.einsum("id,ijd->ij", vectors[users], vectors[others])
    assert np.abs(taste + home - whole).max() < ROUNDING
    along = vectors @ axes.T
    assert np.abs(home - np.einsum("id,ijd->ij", along[users], along[others])).max() < ROUNDING


@settings(max_examples=50, deadline=None)
@given(seeds, st.floats(0, 100), st.integers(1, DIM))
def test_a_weight_counts_the_home_part_that_often(seed: int, weight: float, rank: int) -> None:
    """Up to the lengths, which are one again: an index searches it as any other vector."""
    rng = np.random.default_rng(seed)
    vectors, axes = unit(rng.standard_normal((9, DIM))), axes_of(rng, rank)
    taste, home = Split.of(vectors, axes).parts(np.arange(9), np.tile(np.arange(9), (9, 1)))
    wanted = taste + np.float32(weight) * home
    lengths = np.sqrt(np.maximum(np.diag(wanted), 0))
    found = reweighted(vectors, axes, weight)
    apart = np.abs(found @ found.T * np.outer(lengths, lengths) - wanted)
    assert apart.max() < 1e-5 * max(weight, 1)


def test_as_trained_is_as_trained() -> None:
    """Weight 1, or nothing to weigh: not one bit of a list may change."""
    vectors, _, _ = town(1, users=20)
    assert reweighted(vectors, axes_of(np.random.default_rng(1), 3), 1.0) is vectors
    assert reweighted(vectors, np.empty((0, DIM), np.float32), 0.0) is vectors


def test_a_vector_that_is_home_alone_has_no_taste_and_is_near_nobody() -> None:
    """And no NaN, which would be near everybody."""
    assert reweighted(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32)[:1], 0.0).tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize("seed", range(3))
def test_the_axes_take_home_and_leave_taste(seed: int) -> None:
    """As planted: five axes tell six homes. What is told of each is told by its own part."""
    vectors, homes, tastes = town(seed)
    parts = fit_parts(vectors, homes, seed)
    assert np.abs(parts.axes @ parts.axes.T - np.eye(len(parts.axes))).max() < ROUNDING
    assert (len(parts.axes), parts.regions) == (5, 6)
    assert parts.told > 0.95 and parts.told_by_taste <= LEVEL
    taste = reweighted(vectors, parts.axes, 0.0)
    assert nearest_alike(vectors, homes) > 0.95 and nearest_alike(taste, homes) < 1 / 3
    assert nearest_alike(taste, tastes) > 0.95
    home = unit(vectors @ parts.axes.T)
    assert nearest_alike(home, homes) > 0.95 and nearest_alike(home, tastes) < 0.45


@pytest.mark.parametrize(
    ("homes", "regions"),
    [(np.full(200, -1), 0), (np.zeros(200), 1), (np.arange(200), 200), (np.arange(200) < 9, 2), (np.arange(0), 0)],
    ids=["none known", "one region", "each alone", "hardly a second", "nobody"],
)
def test_where_homes_say_nothing_there_is_no_home_part(homes: npt.NDArray[Any], regions: int) -> None:
    """A city without regions must not lose a bit of its taste for it."""
    vectors, _, _ = town(1, users=len(homes))
    parts = fit_parts(vectors, homes.astype(np.int32), 1)
    assert (parts.axes.shape, parts.regions, parts.told) == ((0, DIM), regions, 0.5)


def test_homes_that_the_vectors_do_not_know_take_nothing_away() -> None:
    """Homes dealt out at random: their means differ by chance alone, and chance is no axis."""
    vectors, homes, _ = town(1)
    assert len(fit_parts(vectors, np.random.default_rng(1).permutation(homes), 1).axes) <= 1


@pytest.mark.parametrize("seed", range(3))
def test_a_loud_taste_is_not_home_because_regions_are_small(seed: int) -> None:
    """Means of ten users scatter along whatever is loud: 1.6 by chance along the taste, 1 in truth along each home."""
    rng = np.random.default_rng(seed)
    homes = np.repeat(np.arange(60), 10).astype(np.int32)
    rows = 0.1 * rng.standard_normal((600, DIM))
    rows[:, :6] += rng.standard_normal((60, 6))[homes]
    rows[:, 6] += 4 * rng.standard_normal(600)
    axes = fit_parts(rows.astype(np.float32), homes, seed).axes
    assert (axes[:, :6] ** 2).sum() > 4.5 and (axes[:, 6] ** 2).sum() < 0.3


def test_users_without_a_home_change_nothing() -> None:
    """They are split by the axes of the others."""
    vectors, homes, _ = town(1)
    some = np.where(np.arange(len(homes)) < 700, homes, -1).astype(np.int32)
    assert np.array_equal(fit_parts(vectors, some, 1).axes, fit_parts(vectors[:700], homes[:700], 1).axes)


def test_the_same_users_give_the_same_parts() -> None:
    """A day made again is the same day."""
    vectors, homes, _ = town(1)
    first, second = fit_parts(vectors, homes, 1), fit_parts(vectors, homes, 1)
    assert np.array_equal(first.axes, second.axes) and first.to_json() == second.to_json()


@pytest.mark.parametrize("rank", [0, 3])
def test_axes_come_back_as_they_were_written(memory_store: Store, rank: int) -> None:
    """Bit by bit; none at all is an answer too, as it is for a run made before there were parts."""
    axes = axes_of(np.random.default_rng(1), rank)
    made = handmade.generation(memory_store, "analyze", "a", keeps=write_axes(memory_store, "analysis/a", axes))
    assert np.array_equal(read_axes(memory_store, made, DIM), axes)
    before = handmade.generation(memory_store, "analyze", "before")
    assert read_axes(memory_store, before, DIM).shape == (0, DIM)


def test_what_is_said_of_the_parts_is_small_json() -> None:
    """It goes into the manifest."""
    said = Parts(np.eye(2, dtype=np.float32), 7, 0.99999, 0.51234).to_json()
    assert said == {"axes": 2, "regions": 7, "told": 1.0, "told_by_taste": 0.5123}
