"""RecTools' BERT4Rec as a contender of ``bert4rec.py``; run by .venv-rectools. Their defaults, but for the shape."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
import pandas as pd
import torch
from contender import HEADS, LAYERS, MAX_LENGTH, WIDTH, Diary, Floats, Sequences, by_length, parse
from pytorch_lightning import Callback, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import BERT4RecModel


class Watcher(Callback):  # type: ignore[misc]
    """Tells the diary of each step."""

    def __init__(self, diary: Diary) -> None:
        self.diary = diary

    def __deepcopy__(self, memo: dict[int, Any]) -> Watcher:
        """RecTools trains with a deep copy of the trainer; there is one diary."""
        return self

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count, and stop when time is up."""
        trainer.should_stop = self.diary.step(len(batch["x"]), int((batch["x"] != 0).sum()))


def dataset(sequences: Sequences) -> Dataset:
    """Interactions in the order of the histories."""
    lengths = [len(sequence) for sequence in sequences]
    moments = np.concatenate([np.arange(length) for length in lengths])
    frame = pd.DataFrame(
        {
            Columns.User: np.repeat(np.arange(len(sequences)), lengths),
            Columns.Item: np.concatenate(sequences),
            Columns.Weight: 1.0,
            Columns.Datetime: pd.Timestamp("2020-01-01") + pd.to_timedelta(moments, unit="s"),
        }
    )
    return Dataset.construct(frame)


@torch.no_grad()
def encode(model: BERT4RecModel, sequences: Sequences) -> dict[str, Floats]:
    """The library's own user vector (the state of a mask appended), and the mean of the places' states."""
    net, preparator = model.torch_model, model.data_preparator
    net.eval()
    items = net.item_model.get_all_embeddings()
    rows = [preparator.item_id_map.convert_to_internal(each, strict=False).tolist() for each in sequences]
    token, mean = (np.zeros((len(rows), WIDTH), np.float32) for _ in range(2))
    for users in by_length(sequences):
        asked = preparator._collate_fn_recommend([(rows[at][-MAX_LENGTH + 1 :], None, None) for at in users])["x"]
        asked = asked[:, -max(1, int((asked != 0).sum(dim=1).max())) :]
        token[users] = net.encode_sessions({"x": asked}, items)[:, -1].numpy()
        plain = torch.cat([torch.zeros_like(asked[:, :1]), asked[:, :-1]], dim=1)[:, 1:]
        known = (plain != 0).any(dim=1)
        if known.any():
            states = net.encode_sessions({"x": plain[known]}, items)
            inside = (plain[known] != 0).float()
            mean[users[known.numpy()]] = (inside[:, None] @ states)[:, 0].numpy()
    net.train()
    return {"token": token, "mean": mean}


def main() -> None:
    """Train until time is up."""
    task = parse(__doc__)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(task.threads)
    seed_everything(1)
    known = dataset(task.sequences("learners"))
    diary = Diary(task, lambda half: encode(model, task.sequences(half)))
    plain = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet = {**plain, "enable_model_summary": False, "accelerator": "cpu", "max_epochs": -1}
    model = BERT4RecModel(
        n_blocks=LAYERS,
        n_heads=HEADS,
        n_factors=WIDTH,
        session_max_len=MAX_LENGTH,
        batch_size=task.size,
        get_trainer_func=lambda: Trainer(callbacks=[Watcher(diary)], **quiet),
    )
    diary.start()
    model.fit(known)


if __name__ == "__main__":
    main()
