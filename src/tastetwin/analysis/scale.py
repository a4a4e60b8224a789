"""What a score is worth: its place among the scores of random pairs of users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tastetwin.analysis.index import Floats, Ints, Vectors, row_dots

SAMPLE_PAIRS: Final = 1_000_000
_PAIRS_AT_A_TIME: Final = 1 << 18
_LEVELS: Final = np.concatenate([np.arange(0, 99), np.arange(990, 999) / 10, 100 - np.logspace(-1, -4, 31), [100.0]])


@dataclass(frozen=True)
class ScoreScale:
    """Quantiles of random pairs' scores; fine in the upper tail, where all twins are."""

    scores: npt.NDArray[np.float64]
    """[m] strictly ascending."""
    levels: npt.NDArray[np.float64]
    """[m] percentage of random pairs that score no higher, ascending, the last 100."""

    def percentile(self, scores: Floats) -> Floats:
        """Per cent of random pairs that are no closer, in [0, 100], same shape; interpolated between quantiles."""
        return np.interp(scores, self.scores, self.levels, left=0.0, right=100.0).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """Small JSON."""
        return {"scores": self.scores.tolist(), "levels": self.levels.tolist()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ScoreScale:
        """The inverse of ``to_json``."""
        return cls(np.asarray(value["scores"], np.float64), np.asarray(value["levels"], np.float64))

    @classmethod
    def of(cls, scores: Floats) -> ScoreScale:
        """The scale of a sample of scores, at least one."""
        values = np.quantile(scores.astype(np.float64), _LEVELS / 100)
        distinct, first_of_next = np.unique(values[::-1], return_index=True)
        return cls(distinct, _LEVELS[::-1][first_of_next])


def random_pair_scores(vectors: Vectors, densities: Floats, seed: int, pairs: int = SAMPLE_PAIRS) -> Floats:
    """Scores of distinct users drawn at random; all pairs where there are fewer than ``pairs``.

    ``vectors`` [n, dim] are unit vectors in C order, n >= 2; ``densities`` [n] see ``hubness.density``.
    """
    first, second = sample_pairs(len(vectors), seed, pairs)
    dots = np.empty(len(first), np.float32)
    for start in range(0, len(first), _PAIRS_AT_A_TIME):
        block = slice(start, start + _PAIRS_AT_A_TIME)
        dots[block] = row_dots(vectors[first[block]], vectors[second[block]])
    return dots - (densities[first] + densities[second]) / np.float32(2)


def sample_pairs(n: int, seed: int, pairs: int) -> tuple[Ints, Ints]:
    """Positions of distinct users of n >= 2, drawn at random; all pairs where there are no more than ``pairs``."""
    if n * (n - 1) // 2 <= pairs:
        first, second = np.triu_indices(n, 1)
        return first.astype(np.int64), second.astype(np.int64)
    rng = np.random.default_rng(seed)
    first = rng.integers(0, n, pairs)
    return first, (first + rng.integers(1, n, pairs)) % n
