"""Our own BERT of the 2021 recipe, a baseline of the quality benchmark: is it as strong as the libraries' are?

``--size`` counts epochs.
"""

from __future__ import annotations

import numpy as np
import torch
from contender import HEADS, LAYERS, MAX_LENGTH, WIDTH, Diary, parse
from tastetwin_encoder import load

from tastetwin.features.histories import Histories, Vocabulary
from tastetwin.model.bert2021 import Recipe, encode_bert, fit_bert


def main() -> None:
    """Train once, write the vectors."""
    task = parse(__doc__)
    torch.set_num_threads(task.threads)
    histories: Histories = load(Histories, task.folder / "learners.npz")
    vocabulary: Vocabulary = load(Vocabulary, task.folder / "vocabulary.npz")
    recipe = Recipe(width=WIDTH, layers=LAYERS, heads=HEADS, max_length=MAX_LENGTH, epochs=task.size)
    diary = Diary(task, lambda half: {"mean": encode_bert(model, load(Histories, task.folder / f"{half}.npz"))})
    model = fit_bert(histories, vocabulary.n_rows, 1, recipe)
    seen = {"histories": histories.n_users, "favors": int(np.minimum(histories.lengths(), MAX_LENGTH).sum())}
    diary.spent.update({name: task.size * each for name, each in seen.items()})
    diary.snapshot()


if __name__ == "__main__":
    main()
