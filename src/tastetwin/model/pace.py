"""The learning rate over a training, as a share of ``train.learning_rate``."""

from __future__ import annotations

import math
from typing import Final

WARMUP_SHARE: Final = 0.1


def schedule(step: int, total: int) -> float:
    """Linear warm-up, then cosine to zero; ``step`` counts from 0."""
    warmup = max(1, int(total * WARMUP_SHARE))
    return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / total)))
