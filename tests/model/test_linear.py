"""Linear views on data whose right answer is known: planted blocks, and slow twins that are obviously right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from tastetwin.features.histories import Histories, Vocabulary
from tastetwin.model import linear
from tastetwin.model.kinds import area_matrix, category_matrix, region_matrix
from tests.model import towns


def planted_blocks(groups: int, users: int, places: int, share: float, seed: int) -> sp.csr_matrix:
    """[groups * users, groups * places]: a user of group g favors a random ``share`` of the places of g, no others."""
    rng = np.random.default_rng(seed)
    block = [sp.csr_matrix((rng.random((users, places)) < share).astype(np.float32)) for _ in range(groups)]
    return sp.csr_matrix(sp.block_diag(block, format="csr"))


def twin_group_share(vectors: np.ndarray, users: int) -> float:
    """Share of users whose nearest other user is of their own group."""
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    groups = np.arange(len(vectors)) // users
    return float(np.mean(groups[similarity.argmax(axis=1)] == groups))


@pytest.mark.parametrize(
    "fit",
    [
        lambda m: linear.fit_svd(m, 5, seed=0),
        lambda m: linear.fit_ials(m, 5, seed=0),
        lambda m: linear.fit_ppmi(m, 5, seed=0),
    ],
)
def test_factors_find_planted_groups(fit: Callable[[sp.csr_matrix], linear.View]) -> None:
    """Taste groups that share no place are the easiest structure there is; a view that misses them is broken."""
    matrix = planted_blocks(groups=5, users=30, places=20, share=0.4, seed=1)
    assert twin_group_share(fit(matrix).fold_in(matrix), users=30) == 1


def test_group_members_without_a_shared_place_are_still_close() -> None:
    """The whole point of factors: two halves of one taste meet through third users."""
    matrix = planted_blocks(groups=5, users=30, places=20, share=0.4, seed=1)
    halves = sp.csr_matrix((np.ones(8, np.float32), ([0] * 4 + [1] * 4, [0, 1, 2, 3, 10, 11, 12, 13])), (2, 100))
    for view in (linear.fit_svd(matrix, 5, 0), linear.fit_ials(matrix, 5, seed=0), linear.fit_ppmi(matrix, 5, 0)):
        a, b = view.fold_in(halves)
        assert a @ b > 0.95


@pytest.mark.parametrize("seed", range(4))
def test_one_account_of_very_many_places_leaves_the_co_visits_of_all_others(seed: int) -> None:
    """Its pairs are more than may be counted: drawn early, it would take the budget from everybody drawn after it."""
    people, places = 60, 10_100
    groups = planted_blocks(groups=3, users=people // 3, places=20, share=0.4, seed=1)
    groups.resize(people, places)
    everywhere = sp.csr_matrix(np.ones((1, places), np.float32))
    alone, beside = (linear.fit_ppmi(matrix, 5, seed) for matrix in (groups, sp.vstack([groups, everywhere]).tocsr()))
    np.testing.assert_allclose(beside.fold_in(groups), alone.fold_in(groups), atol=1e-5)


def slow_ials_fold_in(
    items: np.ndarray, places: np.ndarray, strengths: np.ndarray, alpha: float, penalty: float
) -> np.ndarray:
    """The normal equations of one user, cell by cell as in the paper."""
    weights = np.ones(len(items))
    weights[places] += alpha * strengths
    target = np.zeros(len(items))
    target[places] = 1
    left = (items * weights[:, None]).T @ items + penalty * np.eye(items.shape[1])
    return np.linalg.solve(left, items.T @ (weights * target))


def test_ials_fold_in_equals_its_slow_twin() -> None:
    """The batched, padded solve must be the closed form of each user alone, short and long histories alike."""
    rng = np.random.default_rng(3)
    dense = (rng.random((60, 40)) < rng.random((60, 1))) * rng.uniform(1, 2, (60, 40))
    matrix = sp.csr_matrix(dense.astype(np.float32))
    penalty = 0.2 * (1 + 7) * linear.noise_edge(matrix)
    ials = linear.fit_ials(matrix, 6, alpha=7, regularisation=0.2, iterations=2, seed=0)
    solved = ials.solve(matrix)
    for user in range(60):
        row = matrix[user]
        slow = slow_ials_fold_in(ials.items.astype(float), row.indices, row.data, ials.alpha, penalty)
        assert solved[user] == pytest.approx(slow, abs=1e-4)


def test_ials_lowers_the_loss_of_the_paper_with_every_iteration() -> None:
    """Alternating exact solves cannot raise the objective; a wrong weight or penalty does."""
    matrix = planted_blocks(groups=3, users=15, places=10, share=0.5, seed=2)
    dense = matrix.toarray()
    penalty = 0.1 * (1 + 5) * linear.noise_edge(matrix)

    def loss(ials: linear.Ials) -> float:
        users = ials.solve(matrix)
        errors = (1 + ials.alpha * dense) * (dense - users @ ials.items.T) ** 2
        return float(errors.sum() + penalty * ((users**2).sum() + (ials.items**2).sum()))

    losses = [loss(linear.fit_ials(matrix, 4, alpha=5, regularisation=0.1, iterations=n)) for n in (1, 2, 4, 8)]
    assert losses == sorted(losses, reverse=True)


def test_svd_components_span_the_exact_singular_space() -> None:
    """Randomised iteration must agree with LAPACK where the spectrum is not flat."""
    rng = np.random.default_rng(5)
    matrix = sp.csr_matrix((rng.random((80, 50)) < 0.2).astype(np.float32))
    svd = linear.fit_svd(matrix, 3, seed=0)
    weighted = matrix.toarray() * svd.weights
    weighted /= np.sqrt(np.linalg.norm(weighted, axis=1, keepdims=True))
    _, _, exact = np.linalg.svd(weighted)
    overlap = np.linalg.svd(svd.components.T @ exact[:3].T)[1]
    assert overlap.min() > 0.98


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 40), (50, 3)])
def test_sizes_are_capped_by_the_matrix_and_nothing_is_nan(shape: tuple[int, int]) -> None:
    """A town of three users must not crash the job nor poison it."""
    matrix = sp.csr_matrix(np.triu(np.ones(shape, np.float32)))
    vectors = linear.fit_fused(matrix, seed=0).fold_in(matrix)
    assert np.isfinite(vectors).all()


def test_a_user_without_places_gets_zeros_and_all_others_unit_length() -> None:
    """Zero is the only honest answer to no input, and must not become NaN on the way."""
    matrix = planted_blocks(groups=2, users=20, places=20, share=0.4, seed=1)
    empty = sp.csr_matrix((1, 40), dtype=np.float32)
    fused = linear.fit_fused(matrix, seed=0)
    assert np.all(fused.fold_in(empty) == 0)
    assert np.linalg.norm(fused.fold_in(matrix), axis=1) == pytest.approx(1, abs=1e-5)


def test_same_seed_same_factors() -> None:
    """A re-run of a day must give the same data."""
    matrix = planted_blocks(groups=2, users=20, places=20, share=0.4, seed=1)
    first, second = (linear.fit_svd(matrix, 4, 7).components for _ in range(2))
    assert np.array_equal(first, second)
    first, second = (linear.fit_ials(matrix, 4, seed=7).items for _ in range(2))
    assert np.array_equal(first, second)


def little_vocabulary() -> Vocabulary:
    return Vocabulary(
        place_ids=np.array(["", "", "a", "b", "c"], object),
        is_group=np.zeros(5, bool),
        category_offsets=np.array([0, 0, 0, 2, 3, 3]),
        categories=np.array([0, 1, 1], np.int32),
        regions=np.array([-1, -1, 0, 1, -1], np.int32),
        category_codes=np.array([10, 11]),
        region_codes=np.array(["n", "s"], object),
        coordinates=np.full((5, 2), np.nan, np.float32),
    )


def test_histograms_count_categories_and_regions() -> None:
    """Checked by eye: place a has two categories, c has neither category nor region."""
    histories = Histories(
        np.array(["u"], object),
        np.array([0, 3]),
        np.array([2, 3, 4], np.int32),
        np.ones(3, np.float32),
        np.zeros(3, np.float32),
        np.zeros(3, np.int32),
    )
    matrix = linear.histories_matrix(histories, 5)
    vocabulary = little_vocabulary()
    assert (matrix @ category_matrix(vocabulary)).toarray().tolist() == [[0.5, 1.5]]
    assert (matrix @ region_matrix(vocabulary)).toarray().tolist() == [[1, 1]]


def test_a_histogram_view_is_a_sum_over_places() -> None:
    """The encoder holds each linear view as one row per place; that must be the same vector."""
    rng = np.random.default_rng(0)
    matrix = sp.csr_matrix((rng.random((30, 5)) < 0.6).astype(np.float32))
    view = linear.fit_histogram(matrix, category_matrix(little_vocabulary()), 2, seed=0)
    assert view.fold_in(matrix) == pytest.approx(linear.unit(np.asarray(matrix @ view.table())), abs=1e-5)


def test_csls_takes_away_the_hub() -> None:
    """Candidate 0 is everybody's nearest by cosine; corrected, each query finds its own."""
    queries = linear.unit(np.array([[1, 0.5, 0], [1, 0, 0.5]], np.float32))
    candidates = linear.unit(np.array([[1, 0.25, 0.25], [0.7, 1, 0], [0.7, 0, 1]], np.float32))
    assert (queries @ candidates.T).argmax(axis=1).tolist() == [0, 0]
    assert linear.csls(queries, candidates, neighbours=2).argmax(axis=1).tolist() == [1, 2]


def test_fitting_leaves_the_histories_alone() -> None:
    """Sparse products sort indices in place; shared memory would silently part places from their visits."""
    town = towns.histories(users=40, places=30, groups=2, length=10, seed=0)
    before = town.places.copy()
    linear.fit_fused(linear.strength_matrix(town, 32), seed=0)
    assert np.array_equal(town.places, before)


def on_the_map(coordinates: list[tuple[float, float]]) -> Vocabulary:
    """Only coordinates are known of these places, and nothing at all of the reserved rows."""
    rows = towns.vocabulary(len(coordinates), categories=0, regions=0)
    known = np.concatenate([np.full((2, 2), np.nan), np.reshape(coordinates, (-1, 2))])
    return replace(rows, coordinates=known.astype(np.float32))


def test_places_near_each_other_share_their_areas() -> None:
    rng = np.random.default_rng(3)
    cities = np.array([[37.5, 127.0], [35.2, 129.0], [-17.7, 180.0]])
    spread = np.repeat(cities, 40, axis=0) + rng.normal(0, 0.02, (120, 2))
    spread[spread[:, 1] > 180, 1] -= 360  # Fiji lies on the date line
    inside = area_matrix(on_the_map([*map(tuple, spread)]), seed=0)
    sizes = inside.shape[1]
    assert np.allclose(inside.sum(axis=1)[2:], inside.sum(axis=1)[2]) and inside[:2].nnz == 0
    assert sizes == 16 + 40, "at three places an area or more, larger sizes fall away"
    shared = (inside @ inside.T).toarray()[2:, 2:]
    city = np.repeat(np.arange(3), 40)
    assert shared[city[:, None] == city].mean() > 20 * shared[city[:, None] != city].mean()


@pytest.mark.parametrize("places", [0, 1, 2, 5])
def test_few_or_no_places_on_the_map_are_no_areas_or_few(places: int) -> None:
    inside = area_matrix(on_the_map([(37.5, 127.0)] * places), seed=0)
    assert inside.shape[0] == places + 2
    assert np.isfinite(inside.data).all()
    assert (inside.nnz > 0) == (places >= 3)


def test_areas_do_not_depend_on_the_reserved_rows_or_the_run() -> None:
    spots = [*map(tuple, np.random.default_rng(1).normal(40, 1, (50, 2)))]
    one, two = (area_matrix(on_the_map(spots), seed=0) for _ in range(2))
    assert (one != two).nnz == 0
