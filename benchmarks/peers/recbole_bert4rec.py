"""RecBole's BERT4Rec as a contender of ``bert4rec.py``; run by .venv-recbole. Their defaults, but for the shape.

By itself RecBole makes a training sequence of every beginning of every history. Here it gets each history once, by its
own way for data that come with sequences (``benchmark_filename``): a training sequence is then a history as it is for
the others, and quality comes sooner.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contender import HEADS, LAYERS, MAX_LENGTH, WIDTH, Diary, Floats, Sequences, by_length, parse
from recbole.config import Config
from recbole.data import create_dataset
from recbole.data.dataloader import TrainDataLoader
from recbole.model.sequential_recommender import BERT4Rec
from recbole.trainer import Trainer
from recbole.utils import init_seed


class TimeUp(Exception):
    """Ends RecBole's loop over epochs."""


class Counted:
    """A loader that tells the diary of each batch when the next is asked for."""

    def __init__(self, loader: Any, diary: Diary) -> None:
        self.loader, self.diary = loader, diary

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            yield batch
            lengths = batch["item_length"]
            if self.diary.step(len(lengths), int(lengths.sum())):
                raise TimeUp


def settings(folder: Path, batch: int) -> Config:
    """The library's own, with the shape and the data of the benchmark."""
    shape = {"hidden_size": WIDTH, "inner_size": 4 * WIDTH, "n_layers": LAYERS, "n_heads": HEADS}
    data = {
        "data_path": str(folder),
        "checkpoint_dir": str(folder),
        "benchmark_filename": ["train"],
        "alias_of_item_id": ["item_id_list"],
        "load_col": {"inter": ["user_id", "item_id", "item_id_list"]},
        "MAX_ITEM_LIST_LENGTH": MAX_LENGTH,
    }
    how = {"train_batch_size": batch, "train_neg_sample_args": None, "use_gpu": False, "show_progress": False}
    return Config(model=BERT4Rec, dataset="histories", config_dict={**shape, **data, **how})


def write_atomic(sequences: Sequences, folder: Path) -> None:
    """RecBole's own file format."""
    lines = ["user_id:token\titem_id_list:token_seq\titem_id:token"]
    for user, sequence in enumerate(sequences):
        kept = sequence[-MAX_LENGTH:]
        lines.append(f"{user}\t{' '.join(map(str, kept))}\t{kept[-1]}")
    (folder / "histories").mkdir()
    (folder / "histories" / "histories.train.inter").write_text("\n".join(lines) + "\n")


@torch.no_grad()
def encode(model: BERT4Rec, row_of: dict[str, int], sequences: Sequences) -> dict[str, Floats]:
    """The library's own user vector (the state of a mask appended), and the mean of the places' states."""
    model.eval()
    rows = [[row_of[str(place)] for place in each if str(place) in row_of] for each in sequences]
    token, mean = (np.zeros((len(rows), WIDTH), np.float32) for _ in range(2))
    for users in by_length(sequences):
        kept = [rows[at][-MAX_LENGTH + 1 :] for at in users]
        lengths = torch.tensor([len(row) for row in kept])
        padded = torch.zeros((len(kept), int(lengths.max()) + 1), dtype=torch.long)
        for at, row in enumerate(kept):
            padded[at, : len(row)] = torch.tensor(row, dtype=torch.long)
        masked = padded.scatter(1, lengths[:, None], model.mask_token)
        token[users] = model(masked)[torch.arange(len(kept)), lengths].numpy()
        mean[users] = ((padded != 0).float()[:, None] @ model(padded))[:, 0].numpy()
    model.train()
    return {"token": token, "mean": mean}


def main() -> None:
    """Train until time is up."""
    task = parse(__doc__)
    sys.argv = sys.argv[:1]  # RecBole reads it
    logging.disable(logging.WARNING)
    torch.set_num_threads(task.threads)
    with tempfile.TemporaryDirectory() as scratch:
        write_atomic(task.sequences("learners"), Path(scratch))
        diary = Diary(task, lambda half: encode(model, row_of, task.sequences(half)))
        diary.start()
        config = settings(Path(scratch), task.size)
        init_seed(1, False)
        (data,) = create_dataset(config).build()
        row_of = data.field2token_id["item_id"]
        loader = Counted(TrainDataLoader(config, data, None, shuffle=True), diary)
        model = BERT4Rec(config, data)
        trainer = Trainer(config, model)
        try:
            for epoch in range(sys.maxsize):
                trainer._train_epoch(loader, epoch)
        except TimeUp:
            return


if __name__ == "__main__":
    main()
