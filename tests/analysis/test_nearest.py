"""One query at a time finds what the search for everybody finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tastetwin.analysis.index import ExactIndex, Shown
from tastetwin.analysis.nearest import FLAT_BELOW, NearestIndex, build
from tastetwin.analysis.parts import unit
from tastetwin.config import AnalyzeConfig

DIM = 16
K = 20


def crowd(size: int, seed: int = 0) -> Shown:
    """People in clusters, each with a bias of their own."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((size // 50 + 1, DIM))
    vectors = unit(centres[rng.integers(0, len(centres), size)] + 0.5 * rng.standard_normal((size, DIM)))
    return Shown(vectors, rng.random(size, np.float32) / np.float32(4), np.arange(size))


def opened(shown: Shown, folder: Path, recall: float = 0.99) -> NearestIndex:
    built = build(shown, K, AnalyzeConfig(recall=recall))
    (folder / "index").write_bytes(built.data.tobytes())
    return NearestIndex(folder / "index", built.probes)


@pytest.mark.parametrize("size", [1, 30, FLAT_BELOW])
def test_few_people_are_all_looked_at(size: int, tmp_path: Path) -> None:
    """Where everybody can be looked at, an approximation would lose twins for nothing."""
    shown = crowd(size)
    index = opened(shown, tmp_path)
    _, truth = ExactIndex(shown).top_k(shown.vectors[:5], np.full(min(size, 5), -1), min(K, size))
    for query, expected in zip(shown.vectors[:5], truth, strict=True):
        found = index.candidates(query[None], K + 10)[0]
        assert set(expected) <= set(found.tolist())


def test_among_many_the_recall_asked_for_is_reached(tmp_path: Path) -> None:
    """Cells are looked into until a sample of users finds what it should; others find as much."""
    shown = crowd(3 * FLAT_BELOW)
    index = opened(shown, tmp_path)
    others = np.arange(0, shown.size, 37)
    queries = np.ascontiguousarray(shown.vectors[others])
    _, truth = ExactIndex(shown).top_k(queries, shown.labels[others], K)
    hits = [
        len(np.intersect1d(index.candidates(query[None], K + 10)[0], expected))
        for query, expected in zip(queries, truth, strict=True)
    ]
    assert np.sum(hits) / truth.size >= 0.99


def test_a_search_for_everybody_finds_everybody(tmp_path: Path) -> None:
    """A list that is still short goes on until nobody is left: nobody may be hidden in a cell far away."""
    shown = crowd(FLAT_BELOW + 500)
    index = opened(shown, tmp_path, recall=0.5)
    assert sorted(index.candidates(shown.vectors[:1], shown.size)[0].tolist()) == list(range(shown.size))


def test_nearest_gives_the_similarity_less_the_bias(tmp_path: Path) -> None:
    """The scores are what ``rank`` would order by, closest first."""
    shown = crowd(200)
    index = opened(shown, tmp_path)
    scores, at = index.nearest(shown.vectors[3:4], 10)
    expected = shown.vectors @ shown.vectors[3] - shown.bias
    assert at[0].tolist() == np.argsort(-expected, kind="stable")[:10].tolist()
    np.testing.assert_allclose(scores[0], expected[at[0]], atol=1e-6)


@pytest.mark.parametrize("size", [200, FLAT_BELOW + 500])
def test_what_is_found_does_not_depend_on_who_is_asked_for_with_it(size: int, tmp_path: Path) -> None:
    """A list must be the same whether its user came alone or with a batch, to the bit."""
    shown = crowd(size)
    index = opened(shown, tmp_path)
    scores, at = index.nearest(shown.vectors[:100], 10)
    for row in range(100):
        alone, where = index.nearest(shown.vectors[row : row + 1], 10)
        assert scores[row].tobytes() == alone.tobytes()
        assert at[row].tobytes() == where.tobytes()
