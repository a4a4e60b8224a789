"""Near and far twins: the one live where one lives, the other elsewhere, and both share the taste."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest

from tastetwin.analysis.dials import Space, closest, far, near
from tastetwin.analysis.index import Floats, Ints
from tastetwin.analysis.parts import fit_parts, unit
from tastetwin.config import AnalyzeConfig
from tests.analysis.test_parts import town

pytestmark = pytest.mark.slow

TEN: Final = 10
PLAIN: Final = AnalyzeConfig(csls_neighbours=0)
NOBODY: Final = np.empty((0, 24), np.float32)


def as_trained(vectors: Floats, axes: Floats) -> Space:
    return near(vectors, axes[:0])


def others(user: int, n: int) -> Ints:
    return np.flatnonzero(np.arange(n) != user)


def alike(found: list[npt.NDArray[Any]], of: npt.NDArray[Any]) -> float:
    """The share of the twins of users 0, 1, ... who are of the user's kind."""
    return float(np.mean([of[users] == of[user] for user, users in enumerate(found)]))


@pytest.fixture(scope="module")
def shares() -> dict[str, tuple[float, float]]:
    """Dial -> share of the first ten of the same home, and of the same taste."""
    vectors, homes, tastes = town(1)
    axes = fit_parts(vectors, homes, 1).axes
    dials: dict[str, Callable[[Floats, Floats], Space]] = {"near": near, "trained": as_trained, "far": far}
    lists = {
        name: [
            closest(dial(vectors, axes), user, others(user, len(vectors)), TEN, AnalyzeConfig()).users
            for user in range(100)
        ]
        for name, dial in dials.items()
    }
    return {name: (alike(found, homes), alike(found, tastes)) for name, found in lists.items()}


def test_far_twins_live_elsewhere_and_share_the_taste(shares: dict[str, tuple[float, float]]) -> None:
    """Of ten strangers, 1.7 share the home and 3.3 the taste."""
    assert shares["far"][0] < 0.02 and shares["far"][1] > 0.9


def test_near_twins_live_here(shares: dict[str, tuple[float, float]]) -> None:
    """At least as often as those of the list, and far more often than strangers; taste still counts."""
    assert shares["near"][0] >= shares["trained"][0] > 0.9
    assert shares["near"][1] > 0.5


def test_without_a_home_part_near_and_far_are_the_whole_similarity() -> None:
    """The order is that of the dot products; nobody's home is guessed."""
    vectors, _, _ = town(2, users=50)
    wanted = np.argsort(-(vectors @ vectors[7]), kind="stable")
    for space in (near(vectors, NOBODY), far(vectors, NOBODY)):
        found = closest(space, 7, others(7, 50), 50, PLAIN)
        assert found.users.tolist() == [user for user in wanted if user != 7]
        assert np.abs(found.scores - (vectors @ vectors[7])[found.users]).max() < 1e-6


def test_of_a_single_user_there_is_nobody_to_show() -> None:
    """All others may have been forgotten: no twin, but no crash of who holds the space either."""
    for dial in (near, far):
        space = dial(np.eye(24, dtype=np.float32)[:1], NOBODY)
        assert closest(space, 0, others(0, 1), 3, AnalyzeConfig()).users.tolist() == []


def test_a_list_is_the_best_of_everybody_by_the_score_it_shows() -> None:
    """Written out pair by pair: cosine of the tastes less that of the homes where they are alike."""
    rng = np.random.default_rng(3)
    vectors, axes = unit(rng.standard_normal((40, 6))), np.eye(6, dtype=np.float32)[:2]
    homes, tastes = unit(vectors[:, :2]), unit(vectors[:, 2:])
    wanted = {other: tastes[5] @ tastes[other] - max(homes[5] @ homes[other], 0) for other in range(40) if other != 5}
    found = closest(far(vectors, axes), 5, others(5, 40), 40, PLAIN)
    assert found.users.tolist() == sorted(wanted, key=lambda other: -wanted[other])
    assert found.scores.tolist() == pytest.approx(sorted(wanted.values(), reverse=True), abs=1e-6)
    assert (np.diff(found.percentiles) <= 0).all() and 90 < found.percentiles[0] <= 100


def test_a_hub_comes_later_than_its_similarity_says() -> None:
    """Somebody near to everybody is nobody's twin: as in everybody's lists."""
    rng = np.random.default_rng(4)
    vectors = unit(rng.standard_normal((60, 8)) + 0.7)
    hub = np.argmax(vectors @ vectors.mean(axis=0))
    ranks = [
        np.mean(
            [
                closest(near(vectors, NOBODY[:, :8]), user, others(user, 60), 60, config).users.tolist().index(hub)
                for user in rest
            ]
        )
        for config in (PLAIN, AnalyzeConfig())
        for rest in [[user for user in range(60) if user != hub]]
    ]
    assert ranks[0] < ranks[1]


@pytest.mark.parametrize("depth", [1, 5, 100])
def test_no_more_come_than_are_asked_for_or_there(depth: int) -> None:
    """And never the user."""
    vectors, _, _ = town(5, users=12)
    found = closest(near(vectors, NOBODY), 3, others(3, 12), depth, AnalyzeConfig())
    assert len(found.users) == min(depth, 11) and 3 not in found.users


def test_only_those_are_found_who_may_be() -> None:
    """However close the others are."""
    vectors, _, _ = town(6, users=30)
    found = closest(near(vectors, NOBODY), 3, np.array([1, 8, 20]), 5, AnalyzeConfig())
    assert sorted(found.users) == [1, 8, 20]
