"""Baselines on a world of planted taste: each earns what it should, none can look at the held-out users."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from tastetwin.evaluation import baselines
from tastetwin.evaluation.baselines import (
    BASELINES,
    MORE_BASELINES,
    TUNED,
    Baseline,
    Material,
    bm25,
    jaccard,
    region_histograms,
)
from tastetwin.evaluation.metrics import dense, reciprocal, true_twin_ranks
from tastetwin.evaluation.tasks import disjoint_pairs
from tastetwin.features.histories import FIRST_PLACE_ROW
from tastetwin.model.kinds import category_region_cells
from tastetwin.model.linear import Floats, Fused, Ials, fit_fused
from tests.evaluation.planted import CONFIG, make_histories, make_vocabulary, world


@pytest.fixture(scope="module")
def quality() -> dict[str, float]:
    """Baseline -> disjoint twin MRR with CSLS."""
    planted = world()
    material = Material(planted.train, planted.vocabulary, planted.pseudo.a, planted.pseudo.b, CONFIG, seed=1)
    return {
        name: float(reciprocal(true_twin_ranks(*baseline(material), csls_neighbours=10)).mean())
        for name, baseline in BASELINES.items()
    }


def test_overlap_is_worth_nothing_on_disjoint_halves(quality: dict[str, float]) -> None:
    """If TF-IDF overlap earned anything, the halves would share places and the task would be invalid."""
    assert quality["TF-IDF overlap"] == pytest.approx(1 / world().pseudo.n_users)


def test_factor_models_find_planted_taste(quality: dict[str, float]) -> None:
    """Taste is planted as a factor model; what learns it beats what does not."""
    chance = quality["random in region"]
    for name in ("SVD-64", "iALS (tuned)", "fused linear", "full linear"):
        assert quality[name] > 2 * chance, name
    assert quality["full linear"] > quality["popularity"]


@pytest.mark.parametrize("baseline", [*BASELINES.values(), *TUNED.values()])
def test_every_baseline_gives_unit_rows_and_repeats_itself(baseline: Baseline) -> None:
    """The contract of all baselines: one row per half, unit length, the same again for the same seed."""
    planted = world()
    few = Material(planted.train, planted.vocabulary, planted.pseudo.a, planted.pseudo.b, CONFIG, seed=5)
    again = Material(planted.train, planted.vocabulary, planted.pseudo.a, planted.pseudo.b, CONFIG, seed=5)
    for half, repeated in zip(baseline(few), baseline(again), strict=True):
        rows = dense(half)
        assert rows.shape[0] == planted.pseudo.n_users
        assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-5)
        assert np.array_equal(rows, dense(repeated))


@pytest.mark.parametrize("baseline", [*BASELINES.values(), *TUNED.values()])
def test_every_baseline_works_on_tiny_data_without_regions_or_categories(baseline: Baseline) -> None:
    """Likes without categories, twelve users: still an answer, never a crash or a NaN."""
    bare = replace(
        world().vocabulary,
        regions=np.full(world().vocabulary.n_rows, -1, np.int32),
        category_offsets=np.zeros(world().vocabulary.n_rows + 1, np.int64),
        categories=np.zeros(0, np.int32),
        category_codes=np.zeros(0, np.int64),
        region_codes=np.zeros(0, object),
    )
    train = make_histories({f"u{i}": [2 + i, 3 + i, 4 + i] for i in range(12)})
    half = make_histories({"x": [2, 3, 4], "y": [9, 10, 299]})
    pair = baseline(Material(train, bare, half, half, CONFIG, seed=1))
    assert all(np.isfinite(dense(side)).all() for side in pair)


@pytest.mark.parametrize("name", ["fused linear", "full linear"])
def test_what_is_tuned_counts_visits_where_they_tell(name: str) -> None:
    """The encoder may count them: a baseline that may not is beaten for the wrong reason."""
    planted, rng = world(), np.random.default_rng(1)
    rows_of, visits = {}, []
    for at, user in enumerate(planted.histories.user_ids):
        mine = planted.histories.select(np.array([at])).places
        rows_of[user] = [*mine, *np.setdiff1d(rng.integers(FIRST_PLACE_ROW, planted.vocabulary.n_rows, 25), mine)]
        visits.append(np.where(np.isin(rows_of[user], mine), 1000, 1))
    histories = replace(make_histories(rows_of), visits=np.concatenate(visits).astype(np.float32))
    pairs = disjoint_pairs(histories, planted.holdout, planted.vocabulary, CONFIG, 1)
    train = histories.select(np.flatnonzero(~planted.holdout))
    material = Material(train, planted.vocabulary, pairs.a, pairs.b, CONFIG, seed=1)
    plain, tuned = (
        float(reciprocal(true_twin_ranks(*baseline(material), csls_neighbours=10)).mean())
        for baseline in (BASELINES[name], TUNED[f"{name} (tuned)"])
    )
    assert tuned > 1.3 * plain


def test_what_two_baselines_are_made_of_is_fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full linear contains fused linear, and fits are most of a benchmark."""
    fits: list[float] = []
    real = fit_fused

    def counted(matrix: sp.csr_matrix, seed: int, alpha: float) -> Fused:
        fits.append(alpha)
        return real(matrix, seed, alpha)

    monkeypatch.setattr(baselines, "fit_fused", counted)
    planted = world()
    material = Material(planted.train, planted.vocabulary, planted.pseudo.a, planted.pseudo.b, CONFIG, seed=1)
    for name in ("fused linear (tuned)", "full linear (tuned)"):
        TUNED[name](material)
    assert 7 <= len(fits) <= 8, "each of six points, then the best of either on everybody"


def test_cells_join_category_and_region() -> None:
    """Two places share a cell when they share both category and region."""
    vocabulary = world().vocabulary
    cells = category_region_cells(vocabulary).toarray()[2:]
    categories, regions = vocabulary.categories, vocabulary.regions[2:]
    same = (categories[:, None] == categories) & (regions[:, None] == regions)
    assert np.array_equal(cells @ cells.T > 0, same)


def test_region_histograms_by_hand() -> None:
    """Unit rows over regions."""
    vocabulary = world().vocabulary
    row = region_histograms(make_histories({"a": [2, 3, 4, 5]}), vocabulary)[0]
    counts = np.bincount(vocabulary.regions[2:6], minlength=4)
    assert row == pytest.approx(counts / np.linalg.norm(counts))


def test_jaccard_is_shared_over_all_places() -> None:
    """By hand: {2,3,4} and {3,4,5,6} share two of five."""
    a, b = make_histories({"u": [2, 3, 4], "v": [7]}), make_histories({"u": [3, 4, 5, 6], "v": [7]})
    planted = world()
    left, right = jaccard(Material(planted.train, planted.vocabulary, a, b, CONFIG, seed=1))
    assert (left @ right.T).tolist() == [[pytest.approx(2 / 5), 0], [0, 1]]
    assert (left[1:] @ right.T).tolist() == [[0, 1]]


def test_bm25_counts_rare_places_and_saturates_visits() -> None:
    """A place nobody else visits says more than one that everybody does; the tenth visit says little."""
    planted = world()
    users = make_histories({"u": [2, 3]})
    material = Material(planted.train, planted.vocabulary, users, users, CONFIG, seed=1)
    visitors = material.visitors[[2, 3]]
    once = bm25(material)[0].toarray()[0, [2, 3]]
    assert (once[0] > once[1]) == (visitors[0] < visitors[1])
    often = make_histories({"u": [2, 3]})
    often.visits[:] = [10, 1]
    many = bm25(Material(planted.train, planted.vocabulary, often, users, CONFIG, seed=1))[0].toarray()[0, [2, 3]]
    assert 1 < (many[0] / many[1]) / (once[0] / once[1]) < 2.2


def test_the_further_baselines_keep_the_contract() -> None:
    planted = world()
    material = Material(planted.train, planted.vocabulary, planted.pseudo.a, planted.pseudo.b, CONFIG, seed=1)
    for name in ("BM25 overlap", "item2vec"):
        a, b = MORE_BASELINES[name](material)
        for half in (a, b):
            assert np.linalg.norm(dense(half), axis=1) == pytest.approx(1, abs=1e-5)
    assert float(reciprocal(true_twin_ranks(*MORE_BASELINES["item2vec"](material), 10)).mean()) > 0.1


def marked_world() -> Material:
    """The planted world where everybody has a place of their own besides, behind all others."""
    planted = world()
    both, n = planted.histories, planted.histories.n_users
    rows_of = {
        user: [*both.places[both.offsets[at] : both.offsets[at + 1]].tolist(), planted.vocabulary.n_rows + at]
        for at, user in enumerate(both.user_ids)
    }
    marked = make_histories(rows_of)
    shared = planted.vocabulary.n_rows - FIRST_PLACE_ROW
    kinds = np.zeros(shared + n, np.int32)
    vocabulary = make_vocabulary(shared + n, kinds, kinds)
    pairs = disjoint_pairs(marked, planted.holdout, vocabulary, CONFIG, CONFIG.seed)
    return Material(marked.select(np.flatnonzero(~planted.holdout)), vocabulary, pairs.a, pairs.b, CONFIG, seed=1)


@pytest.mark.parametrize(
    ("baseline", "at_least"),
    [(BASELINES["iALS (tuned)"], 4), *((baseline, 6) for baseline in TUNED.values()), (BASELINES["full linear"], 0)],
)
def test_no_fit_is_judged_by_users_it_has_seen(
    monkeypatch: pytest.MonkeyPatch, baseline: Baseline, at_least: int
) -> None:
    """Tuned on users it was fitted on, a baseline is tuned to learn by heart, and is easy to beat.

    A fit that did not see a user has only zeros at the place that is the user's own.
    """
    material, first_own, fold_in = marked_world(), world().vocabulary.n_rows, Ials.fold_in
    asked: list[set[int]] = []

    def watched(self: Ials, matrix: sp.csr_matrix) -> Floats:
        own = np.unique(matrix.indices[matrix.indices >= first_own])
        asked.append(set(own.tolist()))
        assert not self.items[own].any()
        assert self.items[first_own:].any(axis=1).sum() > 100, "it has seen others"
        return fold_in(self, matrix)

    monkeypatch.setattr(Ials, "fold_in", watched)
    baseline(material)
    held_out = {*material.a.places, *material.b.places}
    tuned = [own for own in asked if not own & held_out]
    assert len(tuned) < len(asked)
    assert len(tuned) >= 2 * at_least, "both halves, at each point of the grid"
    assert all(len(own) > 20 for own in tuned)
