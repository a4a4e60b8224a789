"""TasteTwin's encoder as a contender of ``bert4rec.py``, at the peers' width and depth; ``--size`` counts epochs.

Everything from histories to a finished encoder is on the clock: linear fits, steps, choice of gates, projection. A
history is counted once per step though its step sees two views of it; users who are out of the step because a half is
too short are not counted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from contender import HEADS, LAYERS, MAX_LENGTH, WIDTH, Diary, parse
from scipy.stats import binom

from tastetwin.config import TrainConfig
from tastetwin.features.histories import Histories, Vocabulary
from tastetwin.model.prepare import MIN_VIEW, VALIDATION_SHARE
from tastetwin.model.step import TRAIN_LENGTH
from tastetwin.model.train import train


def load(kind: type[Any], path: Path) -> Any:
    """Histories or a vocabulary of the arrays in a file."""
    with np.load(path) as arrays:
        return kind(**arrays)


def per_epoch(histories: Histories) -> tuple[float, float]:
    """Histories and favors that an epoch's steps are expected to process, given random cuts of the catalogue."""
    lengths = histories.lengths()[histories.lengths() >= 2 * MIN_VIEW]
    both_long = 1 - 2 * binom.cdf(MIN_VIEW - 1, lengths, 0.5)
    expected = (both_long.sum(), (both_long * np.minimum(lengths, 2 * TRAIN_LENGTH)).sum())
    return tuple((1 - VALIDATION_SHARE) * each for each in expected)


def main() -> None:
    """Train once, write the vectors."""
    task = parse(__doc__)
    histories: Histories = load(Histories, task.folder / "learners.npz")
    vocabulary: Vocabulary = load(Vocabulary, task.folder / "vocabulary.npz")
    shape = {"layers": LAYERS, "width": WIDTH, "heads": HEADS, "max_length": MAX_LENGTH}
    config = TrainConfig(**shape, epochs=task.size, threads=task.threads)
    expected = per_epoch(histories)

    def on_step(step: int, total: int, loss: float) -> None:
        diary.step(*(task.size * each / total for each in expected))

    diary = Diary(task, lambda half: {"own": trained.encode(load(Histories, task.folder / f"{half}.npz"), MAX_LENGTH)})
    trained = train(histories, vocabulary, config, on_step=on_step)
    diary.snapshot()


if __name__ == "__main__":
    main()
