"""The baselines every model is compared with: each turns training users into two matrices of vectors, ~a and ~b.

All are fitted on the training users alone; what is tuned is tuned on a validation part of them, over the grids below:
a small one every day, a larger one in the full benchmark.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from tastetwin.config import EvaluateConfig
from tastetwin.evaluation.metrics import CSLS_NEIGHBOURS, reciprocal, true_twin_ranks
from tastetwin.evaluation.tasks import PseudoUsers, disjoint_pairs, matched_candidates
from tastetwin.features.histories import Histories, Vocabulary
from tastetwin.features.holdout import choose_holdout
from tastetwin.model.kinds import category_region_cells, region_matrix
from tastetwin.model.linear import (
    Fused,
    Ials,
    View,
    fit_full,
    fit_fused,
    fit_ials,
    fit_ppmi,
    fit_svd,
    histories_matrix,
    strength_matrix,
)

Vectors = Any
"""Dense float32 or scipy sparse [n, d], rows of unit length (or zero)."""
Pair = tuple[Vectors, Vectors]

IALS_SIZES: Final = (16, 64)
IALS_ALPHAS: Final = (10.0, 30.0)
IALS_REGULARISATION: Final = 0.5
"""The grid of the daily form: 4 points, fitted on at most `TUNING_USERS` users each."""
MORE_SIZES: Final = (16, 64, 128)
MORE_ALPHAS: Final = (10.0, 30.0, 100.0)
MORE_PENALTIES: Final = (0.25, 1.0)
"""The full benchmark's, for iALS: 18 points with or without counts of visits at `IALS_REGULARISATION`, and from the
best of them 2 more; fitted on all training users but at most `MORE_HELD_OUT`."""
HISTOGRAM_WEIGHTS: Final = (0.25, 0.5, 1.0)
"""For full linear, beside `MORE_ALPHAS` and counts of visits: 18 points, 6 of them for fused linear."""
MORE_HELD_OUT: Final = 1_000
TUNING_USERS: Final = 3_000
TUNING_HELD_OUT: Final = 300
TUNING_ITERATIONS: Final = 6
POPULARITY_BINS: Final = 10
REGION_NOISE: Final = 0.01
"""Length of the random part that breaks ties within a region."""


Weighing = Callable[[Histories, int], sp.csr_matrix]
WEIGHINGS: Final[tuple[Weighing, ...]] = (histories_matrix, strength_matrix)
"""Every place the same; by its visits, as in the encoder's views."""


@dataclass(frozen=True)
class Material:
    """What a baseline may look at; intermediate results that several share are computed once."""

    train: Histories
    vocabulary: Vocabulary
    a: Histories
    b: Histories
    config: EvaluateConfig
    seed: int

    @cached_property
    def matrix(self) -> sp.csr_matrix:
        """[n_train, n_rows] binary."""
        return histories_matrix(self.train, self.vocabulary.n_rows)

    @cached_property
    def halves(self) -> tuple[sp.csr_matrix, sp.csr_matrix]:
        """[n, n_rows] binary, of ~a and of ~b."""
        rows = self.vocabulary.n_rows
        return histories_matrix(self.a, rows), histories_matrix(self.b, rows)

    @cached_property
    def visitors(self) -> npt.NDArray[np.float64]:
        """[n_rows] training users of each place."""
        return np.asarray(self.matrix.sum(axis=0), np.float64).ravel()

    @cached_property
    def to_tune_on(self) -> Material:
        """The training users without a fifth of the eligible ones, who are cut in two."""
        split = self.config.model_copy(update={"holdout_share": 0.2, "max_holdout": MORE_HELD_OUT})
        learners, pairs = _split(self.train, self.vocabulary, split, self.seed + 1)
        return replace(self, train=learners, a=pairs.a, b=pairs.b)

    @cached_property
    def _fused(self) -> dict[tuple[Weighing, float], Fused]:
        return {}

    def fused(self, weighing: Weighing = histories_matrix, alpha: float = 30.0) -> Fused:
        """Fused linear, which full linear contains."""
        if (weighing, alpha) not in self._fused:
            self._fused[weighing, alpha] = fit_fused(weighing(self.train, self.vocabulary.n_rows), self.seed, alpha)
        return self._fused[weighing, alpha]

    def fold_in(self, model: Any) -> Pair:
        """Both halves through a fitted linear model."""
        return model.fold_in(self.halves[0]), model.fold_in(self.halves[1])


Baseline = Callable[[Material], Pair]


def random_in_region(material: Material) -> Pair:
    """Home region and nothing else; ties within a region are broken at random."""
    generator = np.random.default_rng(material.seed)
    regions = [unit_rows(half @ region_matrix(material.vocabulary)) for half in material.halves]
    noise = [_random_unit(r.shape[0], generator) * REGION_NOISE for r in regions]
    return (
        unit_rows(sp.hstack([regions[0], sp.csr_matrix(noise[0])])),
        unit_rows(sp.hstack([regions[1], sp.csr_matrix(noise[1])])),
    )


def popularity_matched(material: Material) -> Pair:
    """How much a user is drawn to popular places: the histogram of their places over deciles of popularity."""
    seen = material.visitors[material.visitors > 0]
    edges = np.unique(np.quantile(seen, np.linspace(0, 1, POPULARITY_BINS + 1)[1:-1])) if len(seen) else np.zeros(0)
    bins = np.searchsorted(edges, material.visitors, side="right")
    rows = np.arange(len(bins))
    kinds = sp.csr_matrix((np.ones(len(bins), np.float32), (rows, bins)), shape=(len(bins), len(edges) + 1))
    a, b = material.halves
    return unit_rows(a @ kinds), unit_rows(b @ kinds)


def tfidf_overlap(material: Material) -> Pair:
    """TF-IDF cosine over places (Spärck Jones 1972): worth nothing on disjoint halves, which is why it is here."""
    idf = np.log((1 + material.train.n_users) / (1 + material.visitors)) + 1
    weights = sp.diags_array(idf.astype(np.float32))
    a, b = material.halves
    return unit_rows(a @ weights), unit_rows(b @ weights)


class Sets:
    """Binary rows whose product is the Jaccard similarity (Jaccard 1901) in place of the dot product."""

    def __init__(self, rows: sp.csr_matrix) -> None:
        self.rows = rows
        self.shape = rows.shape

    def __getitem__(self, part: slice) -> Sets:
        return Sets(self.rows[part])

    @property
    def T(self) -> Sets:  # noqa: N802 - as numpy and scipy call it
        """Itself: the product knows what to do."""
        return self

    def __matmul__(self, other: Sets) -> npt.NDArray[np.float32]:
        """[n_self, n_other] shared over all places of both."""
        shared = (self.rows @ other.rows.T).toarray()
        mine, theirs = (np.asarray(each.rows.sum(axis=1)) for each in (self, other))
        return np.asarray(shared / np.maximum(mine + theirs.T - shared, 1), np.float32)


def jaccard(material: Material) -> Pair:
    """Shared places over all places of both."""
    a, b = material.halves
    return Sets(a), Sets(b)


BM25_K1: Final = 1.2


def bm25(material: Material) -> Pair:
    """Cosine over places weighted by BM25 without length (Robertson & Zaragoza 2009): visits saturate."""
    visitors, users = material.visitors, material.train.n_users
    idf = sp.diags_array(np.log1p((users - visitors + 0.5) / (visitors + 0.5)).astype(np.float32))
    sides = []
    for half, matrix in zip((material.a, material.b), material.halves, strict=True):
        weighted = matrix.copy()
        weighted.data = (half.visits * (BM25_K1 + 1) / (half.visits + BM25_K1)).astype(np.float32)
        sides.append(unit_rows(weighted @ idf))
    return sides[0], sides[1]


def item2vec(material: Material) -> Pair:
    """Mean of place vectors learnt from co-visits: skip-gram's closed form, unshifted PPMI (Levy & Goldberg 2014)."""
    return material.fold_in(fit_ppmi(material.matrix, 128, material.seed))


def category_by_region(material: Material) -> Pair:
    """TF-IDF histogram over category x region cells: a home area and a favorite kind of place, without any learning."""
    cells = category_region_cells(material.vocabulary)
    users = np.asarray(((material.matrix @ cells) > 0).sum(axis=0), np.float64).ravel()
    weights = sp.diags_array((np.log((1 + material.train.n_users) / (1 + users)) + 1).astype(np.float32))
    a, b = material.halves
    return unit_rows(a @ cells @ weights), unit_rows(b @ cells @ weights)


def svd(size: int) -> Baseline:
    """Truncated SVD of TF-IDF of the given size."""
    return lambda material: material.fold_in(fit_svd(material.matrix, size, material.seed))


def tuned_ials(material: Material) -> Pair:
    """Implicit ALS with fold-in, size and alpha chosen on a validation part of the training users."""
    return material.fold_in(tune_ials(material))


def fused_linear(material: Material) -> Pair:
    """iALS of three sizes and SVD of two, side by side."""
    return material.fold_in(material.fused())


def full_linear(material: Material) -> Pair:
    """Fused linear with category and region histograms: the one to beat."""
    return material.fold_in(fit_full(material.matrix, material.vocabulary, material.fused(), material.seed))


BASELINES: Final[dict[str, Baseline]] = {
    "random in region": random_in_region,
    "popularity": popularity_matched,
    "TF-IDF overlap": tfidf_overlap,
    "category x region": category_by_region,
    "SVD-64": svd(64),
    "SVD-128": svd(128),
    "iALS (tuned)": tuned_ials,
    "fused linear": fused_linear,
    "full linear": full_linear,
}
"""Name to function, from the simplest to the strongest: the order of the report."""


def thoroughly_tuned_ials(material: Material) -> Pair:
    """As ``tuned_ials``, over the larger grid."""
    tried = material.to_tune_on

    def fit(given: Material, weighing: Weighing, size: int, alpha: float, penalty: float) -> Ials:
        return fit_ials(weighing(given.train, given.vocabulary.n_rows), size, alpha, penalty, seed=given.seed)

    grid = [(w, k, alpha, IALS_REGULARISATION) for w in WEIGHINGS for k in MORE_SIZES for alpha in MORE_ALPHAS]
    found = {point: _quality(tried, point[0], fit(tried, *point)) for point in grid}
    best = max(grid, key=lambda point: found[point])
    for penalty in MORE_PENALTIES:
        found[(*best[:3], penalty)] = _quality(tried, best[0], fit(tried, *best[:3], penalty))
    best = max(found, key=lambda point: found[point])
    return _both(material, best[0], fit(material, *best))


def tuned_fused(material: Material) -> Pair:
    """Fused linear, its alpha and whether visits count chosen as iALS's."""
    return _tuned_linear(material, _fused)


def tuned_full(material: Material) -> Pair:
    """Full linear, the weight of its histograms chosen besides: the one to beat."""
    return _tuned_linear(material, _full)


Fits = Callable[[Material, Weighing, float], dict[float, Fused]]
"""Material, weighing, alpha -> a model for each weight of the histograms."""


def _fused(material: Material, weighing: Weighing, alpha: float) -> dict[float, Fused]:
    return {0.0: material.fused(weighing, alpha)}


def _full(material: Material, weighing: Weighing, alpha: float) -> dict[float, Fused]:
    matrix = weighing(material.train, material.vocabulary.n_rows)
    whole = fit_full(matrix, material.vocabulary, material.fused(weighing, alpha), material.seed)
    return {w: replace(whole, weights=(1.0, *(w for _ in whole.weights[1:]))) for w in HISTOGRAM_WEIGHTS}


def _tuned_linear(material: Material, fits: Fits) -> Pair:
    tried = material.to_tune_on
    found = {
        (weighing, alpha, weight): _quality(tried, weighing, model)
        for weighing in WEIGHINGS
        for alpha in MORE_ALPHAS
        for weight, model in fits(tried, weighing, alpha).items()
    }
    weighing, alpha, weight = max(found, key=lambda point: found[point])
    return _both(material, weighing, fits(material, weighing, alpha)[weight])


def _both(material: Material, weighing: Weighing, model: View) -> Pair:
    a, b = (model.fold_in(weighing(half, material.vocabulary.n_rows)) for half in (material.a, material.b))
    return a, b


def _quality(material: Material, weighing: Weighing, model: View) -> float:
    """Disjoint twin MRR with CSLS of the material's halves; 0 where there are too few to choose by."""
    if material.a.n_users < 2:
        return 0.0
    ranks = true_twin_ranks(*_both(material, weighing, model), CSLS_NEIGHBOURS)
    return float(reciprocal(ranks).mean())


MORE_BASELINES: Final[dict[str, Baseline]] = {"Jaccard": jaccard, "BM25 overlap": bm25, "item2vec": item2vec}
"""Besides, in the full benchmark."""

TUNED: Final[dict[str, Baseline]] = {
    "iALS (tuned)": thoroughly_tuned_ials,
    "fused linear (tuned)": tuned_fused,
    "full linear (tuned)": tuned_full,
}
"""In the full benchmark, besides or in place of the daily one of that name."""


def tune_ials(material: Material) -> Ials:
    """The grid's best iALS by disjoint twin MRR with CSLS on validation users, fitted again on all training users."""
    users, validation = _validation_split(material)
    matrix = histories_matrix(users, material.vocabulary.n_rows)
    halves = [histories_matrix(half, material.vocabulary.n_rows) for half in (validation.a, validation.b)]

    def quality(size: int, alpha: float) -> float:
        model = fit_ials(matrix, size, alpha, IALS_REGULARISATION, TUNING_ITERATIONS, material.seed)
        ranks = true_twin_ranks(model.fold_in(halves[0]), model.fold_in(halves[1]), csls_neighbours=CSLS_NEIGHBOURS)
        return float(reciprocal(ranks).mean())

    grid = [(size, alpha) for size in IALS_SIZES for alpha in IALS_ALPHAS]
    best = grid[0] if validation.n_users < 2 else max(grid, key=lambda point: quality(*point))
    return fit_ials(material.matrix, best[0], best[1], IALS_REGULARISATION, seed=material.seed)


def region_histograms(users: Histories, vocabulary: Vocabulary) -> npt.NDArray[np.float32]:
    """[n_users, n_regions] unit rows: where a user's places are; zero where no region is known."""
    histograms = unit_rows(histories_matrix(users, vocabulary.n_rows) @ region_matrix(vocabulary))
    return np.asarray(histograms.toarray(), np.float32)


def home_candidates(pseudo: PseudoUsers, vocabulary: Vocabulary, seed: int) -> npt.NDArray[np.int64]:
    """``matched_candidates`` by the regions of both halves together."""
    both = region_histograms(pseudo.a, vocabulary) + region_histograms(pseudo.b, vocabulary)
    norms = np.linalg.norm(both, axis=1, keepdims=True)
    return matched_candidates(pseudo, np.asarray(both / np.where(norms > 0, norms, 1), np.float32), seed)


def unit_rows(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Sparse rows at unit length; a row of zeros stays zero."""
    norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return (sp.diags_array((1 / np.where(norms > 0, norms, 1)).astype(np.float32)) @ matrix).tocsr()


def _random_unit(n: int, generator: np.random.Generator, size: int = 16) -> npt.NDArray[np.float32]:
    noise = generator.standard_normal((n, size))
    return np.asarray(noise / np.linalg.norm(noise, axis=1, keepdims=True), np.float32)


def _validation_split(material: Material) -> tuple[Histories, PseudoUsers]:
    """A sample of the training users without a fifth of its eligible ones, and those cut in two."""
    everyone = material.train
    generator = np.random.default_rng(material.seed)
    size = min(TUNING_USERS, everyone.n_users)
    users = everyone.select(np.sort(generator.choice(everyone.n_users, size, replace=False)).astype(np.int64))
    split = material.config.model_copy(update={"holdout_share": 0.2, "max_holdout": TUNING_HELD_OUT})
    return _split(users, material.vocabulary, split, material.seed + 1)


def _split(users: Histories, vocabulary: Vocabulary, rules: EvaluateConfig, seed: int) -> tuple[Histories, PseudoUsers]:
    holdout = choose_holdout(users, rules, seed)
    pairs = disjoint_pairs(users, holdout, vocabulary, rules, seed)
    return users.select(np.flatnonzero(~holdout).astype(np.int64)), pairs
