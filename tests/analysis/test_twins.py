"""Twin lists against a slow, obviously right twin, and on worlds whose answer is known by construction."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tastetwin.analysis.cells import CellIndex, Cells, cells_for
from tastetwin.analysis.hubness import density, draw_bank
from tastetwin.analysis.index import ExactIndex, Floats, Ints, Shown, rank
from tastetwin.analysis.search import Users, look_into_cells
from tastetwin.analysis.twins import Twins, find_twins
from tastetwin.config import AnalyzeConfig

REQUIRED_RECALL = 0.99
TOLERANCE = 2e-6


def unit(vectors: np.ndarray) -> Floats:
    return np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def random_units(n: int, dim: int = 16, seed: int = 0) -> Floats:
    return unit(np.random.default_rng(seed).standard_normal((n, dim)))


def clustered(n: int, clusters: int, noise: float, dim: int = 32, seed: int = 0) -> tuple[Floats, Ints]:
    rng = np.random.default_rng(seed)
    centres = unit(rng.standard_normal((clusters, dim)))
    member = rng.integers(0, clusters, n)
    return unit(centres[member] + noise * rng.standard_normal((n, dim)) / np.sqrt(dim)), member


def brute_force(
    vectors: Floats, config: AnalyzeConfig, labels: Ints | None = None, allowed: np.ndarray | None = None
) -> tuple[list[list[int]], np.ndarray]:
    """Plain loops in float64: CSLS over all pairs, then sort by (score descending, position)."""
    n = len(vectors)
    labels = np.arange(n) if labels is None else labels
    members: list[int] = []
    for user in range(n):
        if (allowed is None or allowed[user]) and labels[user] not in [labels[m] for m in members]:
            members.append(user)
    cosines = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    r = np.zeros(n)
    for user in range(n):
        others = sorted((cosines[user, m] for m in members if labels[m] != labels[user]), reverse=True)
        nearest = others[: config.csls_neighbours]
        r[user] = sum(nearest) / len(nearest) if nearest else 0.0
    scores = cosines - (r[:, None] + r[None, :]) / 2
    lists = [
        sorted((m for m in members if labels[m] != labels[user]), key=lambda m: (-scores[user, m], m))[: config.k]
        for user in range(n)
    ]
    return lists, scores


def check(twins: Twins, lists: list[list[int]], scores: np.ndarray) -> None:
    """Same lengths, same scores rank by rank, every shown score true; order differs only within rounding."""
    for user, wanted in enumerate(lists):
        found = [int(twin) for twin in twins.neighbours[user] if twin >= 0]
        assert len(found) == len(wanted) == len(set(found))
        assert set(twins.neighbours[user, len(found) :]) <= {-1}
        assert np.all(np.isneginf(twins.scores[user, len(found) :]))
        np.testing.assert_allclose(twins.scores[user, : len(found)], scores[user, wanted], atol=TOLERANCE)
        np.testing.assert_allclose(twins.scores[user, : len(found)], scores[user, found], atol=TOLERANCE)


@pytest.mark.parametrize("csls", [0, 1, 10])
@pytest.mark.parametrize("n", [1, 2, 3, 40, 300])
def test_lists_equal_brute_force(n: int, csls: int) -> None:
    """The fast path must be the definition, also where K exceeds the number of other users."""
    vectors = random_units(n)
    config = AnalyzeConfig(k=50, csls_neighbours=csls)
    check(find_twins(vectors, config), *brute_force(vectors, config))


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 40),
    k=st.integers(1, 45),
    csls=st.integers(0, 5),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_lists_equal_brute_force_with_ties_duplicates_and_hidden_users(
    n: int, k: int, csls: int, seed: int, data: st.DataObject
) -> None:
    """Exact ties (vectors from a grid of 9 directions), clusters of accounts and opted-out users, all at once."""
    rng = np.random.default_rng(seed)
    grid = unit(np.array([p for p in itertools.product((-1.0, 0.0, 1.0), repeat=2) if any(p)] + [(1.0, 2.0)]))
    vectors = grid[rng.integers(0, len(grid), n)]
    groups = data.draw(st.lists(st.integers(0, n - 1), min_size=n, max_size=n))
    labels = np.array([groups.index(group) for group in groups])
    allowed = rng.random(n) < 0.7
    config = AnalyzeConfig(k=k, csls_neighbours=csls)
    check(find_twins(vectors, config, labels, allowed), *brute_force(vectors, config, labels, allowed))


def test_ties_are_ordered_by_id_however_many_there_are() -> None:
    """500 users at one point: more ties than candidates are proposed, and the first by id must still win."""
    vectors = np.repeat(random_units(1), 500, axis=0)
    twins = find_twins(vectors, AnalyzeConfig(k=5))
    assert twins.neighbours[0].tolist() == [1, 2, 3, 4, 5]
    assert twins.neighbours[3].tolist() == [0, 1, 2, 4, 5]
    assert twins.neighbours[499].tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(twins.scores, 0, atol=TOLERANCE)


def test_results_do_not_depend_on_the_block_size() -> None:
    """Bit for bit: memory limits must not change what people see."""
    vectors, _ = clustered(700, 20, 0.5)
    vectors[100:160] = vectors[0]
    whole = find_twins(vectors, AnalyzeConfig(k=20))
    for block in (1, 7, 256, 699):
        part = find_twins(vectors, AnalyzeConfig(k=20), block=block)
        assert np.array_equal(part.neighbours, whole.neighbours)
        assert np.array_equal(part.scores, whole.scores)


def test_scores_are_the_same_from_either_side() -> None:
    """The published score of a pair is one number, or percentiles would mean two things."""
    vectors, _ = clustered(200, 10, 0.5)
    twins = find_twins(vectors, AnalyzeConfig(k=199))
    table = np.full((200, 200), np.nan, np.float32)
    np.put_along_axis(table, twins.neighbours.astype(np.int64), twins.scores, axis=1)
    np.testing.assert_allclose(table, table.T, atol=1e-7)


def test_without_hubness_correction_the_score_is_the_cosine() -> None:
    """``csls_neighbours = 0`` switches it off."""
    vectors = random_units(30)
    twins = find_twins(vectors, AnalyzeConfig(k=3, csls_neighbours=0))
    np.testing.assert_allclose(twins.scores[0], (vectors @ vectors[0])[twins.neighbours[0]], atol=TOLERANCE)


def test_hubness_correction_evens_out_who_is_shown() -> None:
    """In many dimensions some users are near to many and others to nobody; the correction narrows the spread."""
    vectors = random_units(800, dim=60)
    spread, never = [], []
    for csls in (0, 10):
        shown = np.bincount(find_twins(vectors, AnalyzeConfig(k=10, csls_neighbours=csls)).neighbours.ravel())
        spread.append(shown.var())
        never.append(800 - np.count_nonzero(shown))
    assert spread[1] < 0.7 * spread[0]
    assert never[1] <= never[0]


def test_duplicate_accounts_are_shown_once_and_never_to_each_other() -> None:
    """One person with three accounts must not fill lists, and must not be told of himself."""
    vectors = random_units(20)
    vectors[[4, 9, 15]] = vectors[4]
    labels = np.arange(20)
    labels[[9, 15]] = 4
    twins = find_twins(vectors, AnalyzeConfig(k=19), labels)
    assert twins.facts.hidden_duplicates == 2
    assert not np.isin(twins.neighbours, [9, 15]).any()
    for account in (4, 9, 15):
        assert 4 not in twins.neighbours[account]
        assert (twins.neighbours[account] >= 0).sum() == 17
    assert all(4 in twins.neighbours[user] for user in range(20) if user not in (4, 9, 15))


def test_an_opted_out_first_account_is_replaced_by_the_next() -> None:
    """Opting out hides one account, not the person's other one; he still gets lists himself."""
    labels = np.array([0, 0, 2, 3])
    twins = find_twins(random_units(4), AnalyzeConfig(k=3), labels, np.array([False, True, True, True]))
    assert not np.isin(twins.neighbours, [0]).any()
    assert set(twins.neighbours[2].tolist()) == {1, 3, -1}
    assert set(twins.neighbours[0].tolist()) == {2, 3, -1}


def test_nobody_may_be_shown() -> None:
    """All opted out: empty lists, no crash."""
    twins = find_twins(random_units(3), AnalyzeConfig(k=2), may_be_shown=np.zeros(3, bool))
    assert (twins.neighbours == -1).all() and np.isneginf(twins.scores).all()


@pytest.mark.parametrize("exact_below", [0, 20_000])
def test_planted_groups_are_found(exact_below: int) -> None:
    """Users of one planted taste group are each other's twins, by exact and approximate search."""
    vectors, member = clustered(3000, 30, 0.3)
    twins = find_twins(vectors, AnalyzeConfig(k=20, exact_below=exact_below))
    assert (member[twins.neighbours] == member[:, None]).mean() > 0.99


@pytest.mark.parametrize("noise", [0.4, 1.0])
def test_approximate_lists_reach_the_required_recall(noise: float) -> None:
    """Measured on other users than those the number of probes was chosen on."""
    vectors, _ = clustered(30_000, 400, noise)
    config = AnalyzeConfig(k=50, exact_below=1000, csls_bank=2000)
    twins = find_twins(vectors, config)
    assert twins.facts.cells == cells_for(30_000) and 0 < twins.facts.probes < cells_for(30_000)
    labels = np.arange(30_000, dtype=np.int64)
    users = Users(vectors, labels, Cells.fit(vectors, labels, config.seed))
    densities = density(users, draw_bank(labels, 2000, config.seed), config)
    sample = np.random.default_rng(99).choice(30_000, 2000, replace=False)
    exact = ExactIndex(Shown(vectors, densities / np.float32(2), labels))
    truth, _ = exact.top_k(np.ascontiguousarray(vectors[sample]), labels[sample], config.k)
    found = twins.scores[sample] + densities[sample, None] / np.float32(2) + np.float32(1e-6)
    assert (found >= truth[:, -1:]).mean() >= REQUIRED_RECALL - 0.003
    assert twins.facts.recall >= REQUIRED_RECALL


def test_approximate_search_is_deterministic_and_excludes_self() -> None:
    """The same day again gives the same lists."""
    vectors, _ = clustered(3000, 50, 0.5)
    config = AnalyzeConfig(k=10, exact_below=100)
    first, second = find_twins(vectors, config), find_twins(vectors, config)
    assert np.array_equal(first.neighbours, second.neighbours) and np.array_equal(first.scores, second.scores)
    assert not (first.neighbours == np.arange(3000)[:, None]).any()


def test_looking_into_every_cell_is_the_exact_search() -> None:
    """Scores within a cell are exact, so all that the cells can lose is whom they were not asked for."""
    vectors, _ = clustered(2000, 40, 0.5)
    labels = np.arange(2000, dtype=np.int64) // 2 * 2
    members = np.arange(0, 2000, 2)
    shown = Shown(vectors[members], np.linspace(0, 0.2, 1000, dtype=np.float32), labels[members])
    index = CellIndex(shown, Cells.fit(vectors, members, seed=1), members)
    scores, found = look_into_cells(index, vectors, labels, 30, index.cells.size)
    exact_scores, exact_found = ExactIndex(shown).top_k(vectors, labels, 30)
    assert np.array_equal(found, exact_found) and np.array_equal(scores, exact_scores)


def test_a_short_list_makes_the_search_look_into_every_cell() -> None:
    """A single cell of a few users cannot fill a list of 200: the list must be full all the same."""
    vectors, _ = clustered(2000, 500, 0.1)
    labels = np.arange(2000, dtype=np.int64)
    index = CellIndex(Shown(vectors, np.zeros(2000, np.float32), labels), Cells.fit(vectors, labels, 1), labels)
    scores, found = look_into_cells(index, vectors[:50].copy(), labels[:50], 200, probes=1)
    assert (found >= 0).all() and np.isfinite(scores).all()


@pytest.mark.parametrize("recall", [0.95, 0.999])
def test_the_recall_promised_for_a_number_of_cells_is_the_recall_found(recall: float) -> None:
    """It is told from where the true twins live, without searching; searching must come to the same."""
    vectors, _ = clustered(4000, 100, 1.0)
    labels = np.arange(4000, dtype=np.int64)
    shown = Shown(vectors, np.zeros(4000, np.float32), labels)
    queries = vectors[:300].copy()
    _, truth = ExactIndex(shown).top_k(queries, labels[:300], 20)
    index = CellIndex(shown, Cells.fit(vectors, labels, seed=1), labels)
    probes, promised = index.probes_needed(queries, truth, recall)
    _, found = look_into_cells(index, queries, labels[:300], 20, probes)
    kept = np.mean([np.isin(wanted, got).mean() for wanted, got in zip(truth, found, strict=True)])
    assert promised >= recall and abs(kept - promised) < 1e-9


def test_rank_sorts_by_score_then_position_and_drops_own_label() -> None:
    """Hand-made: dot products 1, 0, -1, 0 and one empty slot; negative zero equals zero."""
    shown = Shown(
        np.array([[1, 0], [0, 1], [-1, 0], [0, -1]], np.float32), np.zeros(4, np.float32), np.arange(4, dtype=np.int64)
    )
    query = np.array([[1, -0.0]], np.float32)
    scores, found = rank(shown, query, np.array([9]), np.array([[3, 2, -1, 1, 0]]), 5)
    assert found.tolist() == [[0, 1, 3, 2, -1]]
    assert scores.tolist() == [[1, 0, 0, -1, -np.inf]]
    assert rank(shown, query, np.array([0]), np.array([[3, 2, -1, 1, 0]]), 2)[1].tolist() == [[1, 3]]


def test_progress_reaches_the_total() -> None:
    """The bar must end at 100 %."""
    calls: list[tuple[int | str | None, ...]] = []
    find_twins(random_units(25), AnalyzeConfig(k=2), progress=lambda *told: calls.append(told), block=10)
    assert calls == [(10, 25), (20, 25), (25, 25)]
