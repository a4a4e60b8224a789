"""Percentiles mean what they say."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tastetwin.analysis.scale import ScoreScale, random_pair_scores


def test_percentile_is_the_share_of_random_pairs_that_are_no_closer() -> None:
    """On 200,001 evenly spread scores the percentile of s is s itself."""
    scale = ScoreScale.of(np.linspace(0, 100, 200_001).astype(np.float32))
    asked = np.array([0, 1, 50, 98.76, 99.9, 99.97, 99.9995, 100], np.float32)
    np.testing.assert_allclose(scale.percentile(asked), asked, atol=2e-4)


def test_beyond_the_sample_lie_0_and_100() -> None:
    """Twins are usually closer than any random pair; an exhausted slot is further than all."""
    scale = ScoreScale.of(np.array([0.1, 0.2, 0.3], np.float32))
    assert scale.percentile(np.array([-np.inf, 0.05, 0.31, np.inf], np.float32)).tolist() == [0, 0, 100, 100]


def test_percentiles_never_fall_as_scores_rise_and_survive_json() -> None:
    """One scale is written with the lists and read by the service."""
    rng = np.random.default_rng(0)
    scale = ScoreScale.of(rng.standard_normal(10_000).astype(np.float32).round(1))
    again = ScoreScale.from_json(json.loads(json.dumps(scale.to_json())))
    asked = np.sort(rng.standard_normal(1000).astype(np.float32))
    assert (np.diff(scale.percentile(asked)) >= 0).all()
    assert np.array_equal(scale.percentile(asked), again.percentile(asked))
    assert len(json.dumps(scale.to_json())) < 10_000


def test_equal_scores_everywhere() -> None:
    """Collapsed vectors: nobody is closer than random, and nothing divides by zero."""
    scale = ScoreScale.of(np.full(50, 0.25, np.float32))
    assert scale.percentile(np.array([0.24, 0.25, 0.26], np.float32)).tolist() == [0, 100, 100]


@pytest.mark.parametrize(("n", "pairs"), [(2, 10), (5, 10), (6, 10), (300, 5000)])
def test_random_pairs_are_never_a_user_with_himself(n: int, pairs: int) -> None:
    """Orthogonal users: any pair with a cosine of 1 would be a self pair. All pairs are used where few."""
    scores = random_pair_scores(np.eye(n, dtype=np.float32), np.full(n, 0.5, np.float32), seed=1, pairs=pairs)
    assert len(scores) == min(pairs, n * (n - 1) // 2)
    assert (scores == -0.5).all()


def test_random_pairs_repeat_with_the_seed() -> None:
    """The same day again gives the same percentiles."""
    vectors = np.random.default_rng(0).standard_normal((100, 4)).astype(np.float32)
    draw = [random_pair_scores(vectors, np.zeros(100, np.float32), seed, 1000) for seed in (1, 1, 2)]
    assert np.array_equal(draw[0], draw[1]) and not np.array_equal(draw[0], draw[2])
