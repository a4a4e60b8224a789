"""The taste map: planted tastes come apart, and a neighbourhood is named by what ten of its people favor."""

from __future__ import annotations

import numpy as np
import pytest

from tastetwin.analysis.evidence import EvidenceRules, Explainer, count_visitors
from tastetwin.analysis.index import Floats, Ints
from tastetwin.analysis.parts import unit
from tastetwin.features.histories import Histories, Vocabulary
from tastetwin.page.atlas import CENTRAL, Atlas, draw, laid_out

GROUPS, EACH, DIM = 4, 60, 16
NO_AXES = np.empty((0, DIM), np.float32)
PLACES = 2 * GROUPS


def vocabulary() -> Vocabulary:
    """Group g has place 2g, whose category is 100 + g, and place 2g + 1 without one; all lie in one region."""
    rows = 2 + PLACES
    has = [0, 0, *[1, 0] * GROUPS]
    return Vocabulary(
        np.array(["", "", *[f"p{place}" for place in range(PLACES)]], object),
        np.zeros(rows, bool),
        np.concatenate([[0], np.cumsum(has)]),
        np.arange(GROUPS, dtype=np.int32),
        np.array([-1, -1, *[0] * PLACES], np.int32),
        np.arange(GROUPS) + 100,
        np.array(["r"], object),
        np.full((rows, 2), np.nan, np.float32),
    )


def people(second: int) -> tuple[Floats, Histories, Ints]:
    """Everybody of a group has its first place, and the first ``second`` of them its second; one of each the next's."""
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(GROUPS), EACH)
    vectors = unit(np.eye(DIM, dtype=np.float32)[groups] + 0.05 * random.standard_normal((len(groups), DIM)))
    lists = [[2 + 2 * g, 3 + 2 * g] if at % EACH < second else [2 + 2 * g] for at, g in enumerate(groups.tolist())]
    for group in range(GROUPS):
        lists[group * EACH + EACH - 1].append(3 + 2 * ((group + 1) % GROUPS))
    places = np.array([place for each in lists for place in each], np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in lists])])
    nothing = np.zeros(len(places), np.float32)
    ids = np.array([f"u{at:04d}" for at in range(len(groups))], object)
    return vectors, Histories(ids, offsets, places, nothing, nothing, nothing.astype(np.int32)), groups


def drawn(second: int = 30, axes: Floats = NO_AXES, sensitive: frozenset[int] = frozenset()) -> Atlas:
    vectors, histories, _ = people(second)
    visitors = count_visitors(histories, vocabulary())
    explainer = Explainer(vocabulary(), visitors, EvidenceRules(sensitive_categories=sensitive))
    return draw(vectors, axes, histories, vocabulary(), explainer)


def test_planted_tastes_are_neighbourhoods_of_their_own_and_lie_apart() -> None:
    atlas, (_, _, groups) = drawn(), people(30)
    assert len(atlas.neighbourhoods) == GROUPS
    assert all(len(set(atlas.cells[groups == group])) == 1 for group in range(GROUPS))
    centres = np.array([each.centre for each in atlas.neighbourhoods])
    spread = max(float(atlas.points[groups == group].std(axis=0).max()) for group in range(GROUPS))
    between = np.linalg.norm(centres[:, None] - centres[None], axis=2) + 9 * np.eye(GROUPS)
    assert between.min() > 10 * spread


def test_a_neighbourhood_is_named_by_what_its_people_favor_more_than_others() -> None:
    """The region, which all share, names nobody."""
    for each in drawn().neighbourhoods:
        group = int(each.categories[0]) - 100
        assert each.categories == (str(100 + group),)
        assert each.places == (f"p{2 * group}", f"p{2 * group + 1}")
        assert each.regions == ()
        assert each.users == EACH and len(each.central) == CENTRAL


@pytest.mark.parametrize(("second", "named"), [(9, 1), (10, 2)])
def test_what_fewer_than_ten_of_them_favor_is_never_named(second: int, named: int) -> None:
    """Though with the one elsewhere ten do."""
    assert {len(each.places) for each in drawn(second).neighbourhoods} == {named}


def test_a_sensitive_category_is_never_named_nor_a_place_that_has_it() -> None:
    for each in drawn(sensitive=frozenset({101})).neighbourhoods:
        assert "101" not in each.categories and "p2" not in each.places
        assert len(each.categories) == (0 if "p3" in each.places else 1)


def test_home_is_left_out() -> None:
    """With the only direction that tells two groups apart taken for home, they are one."""
    axes = unit((np.eye(DIM)[0] - np.eye(DIM)[1])[None])
    atlas, (_, _, groups) = drawn(axes=axes), people(30)
    first, second = (atlas.points[groups == group].mean(axis=0) for group in (0, 1))
    third = atlas.points[groups == 2].mean(axis=0)
    assert np.linalg.norm(first - second) < 0.2 * np.linalg.norm(first - third)


def test_the_map_of_a_run_is_always_the_same() -> None:
    one, other = drawn(), drawn()
    assert np.array_equal(one.points, other.points) and one.neighbourhoods == other.neighbourhoods


def test_a_user_is_found_again() -> None:
    atlas = drawn()
    cell, point = atlas.of("u0007")
    assert cell == atlas.cells[7] and point == tuple(map(float, atlas.points[7]))


def test_distances_in_the_plane_are_those_of_the_space_where_that_can_be() -> None:
    """Three centres fit a plane exactly, however long their vectors are."""
    centres = unit(np.random.default_rng(3).standard_normal((3, 9)))
    wanted = np.linalg.norm(centres[:, None] - centres[None], axis=2)
    at = laid_out(centres)
    assert np.allclose(np.linalg.norm(at[:, None] - at[None], axis=2), wanted, atol=1e-4)


def test_one_user_is_a_map_too() -> None:
    vectors, histories, _ = people(30)
    one = histories.select(np.array([0]))
    explainer = Explainer(vocabulary(), count_visitors(one, vocabulary()))
    atlas = draw(vectors[:1], NO_AXES, one, vocabulary(), explainer)
    assert [each.users for each in atlas.neighbourhoods] == [1] and np.isfinite(atlas.points).all()
