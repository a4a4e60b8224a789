"""The 2021 recipe, as a baseline: BERT over places with masked prediction alone, users as the mean of their states.

Places are learnt from nothing by a full softmax over the catalogue; positions are learnt, the most recent first
(BERT4Rec, Sun et al. 2019, arXiv:1904.06690; its user vector by mean pooling, as in the talk that inspired ours).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tastetwin.features.histories import MASK_ROW, PAD_ROW, Histories
from tastetwin.model.batches import length_buckets, pad
from tastetwin.model.encoder import Block, Shape, unit
from tastetwin.model.layout import Padded

_TOKENS: Final = 4_096


@dataclass(frozen=True)
class Recipe:
    """What the talk states, and common choices where it is silent."""

    width: int = 128
    layers: int = 2
    heads: int = 4
    max_length: int = 100
    dropout: float = 0.2
    mask_share: float = 0.2
    epochs: int = 60
    learning_rate: float = 1e-3
    weight_decay: float = 0.01


class Bert(nn.Module):
    """Places and positions in, states and scores of places out."""

    def __init__(self, n_rows: int, recipe: Recipe) -> None:
        super().__init__()
        self.max_length = recipe.max_length
        shape = Shape(recipe.width, recipe.width, recipe.layers, recipe.heads, recipe.dropout)
        self.place = nn.Embedding(n_rows, recipe.width, padding_idx=PAD_ROW)
        self.position = nn.Embedding(recipe.max_length, recipe.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(recipe.layers))
        self.norm = nn.LayerNorm(recipe.width)
        self.bias = nn.Parameter(torch.zeros(n_rows))
        nn.init.normal_(self.place.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)

    def forward(self, places: Tensor) -> Tensor:
        """[n, length] rows -> [n, length, width] states."""
        inside = places != PAD_ROW
        recent_first = (inside.sum(dim=1, keepdim=True) - inside.long().cumsum(dim=1)).clamp_min(0)
        x = self.place(places) + self.position(recent_first)
        layout = Padded(inside)
        for block in self.blocks:
            x = block(x, layout)
        states: Tensor = self.norm(x)
        return states

    def scores(self, states: Tensor) -> Tensor:
        """[m, width] states -> [m, n_rows] logits, by the places' own embeddings."""
        return states @ self.place.weight.T + self.bias


def fit_bert(histories: Histories, n_rows: int, seed: int, recipe: Recipe | None = None) -> Bert:
    """Fit on all histories; the same seed on the same machine gives the same weights."""
    recipe = recipe or Recipe()
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = Bert(n_rows, recipe)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    batches = list(length_buckets(histories.lengths(), _TOKENS, recipe.max_length))
    total, step = recipe.epochs * len(batches), 0
    for _ in range(recipe.epochs):
        for at in rng.permutation(len(batches)):
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * min(1, 10 * step / total) * (1 - step / (total + 1))
            _step(model, optimizer, histories, batches[at], recipe)
    return model.eval()


def _step(
    model: Bert, optimizer: torch.optim.Optimizer, histories: Histories, users: npt.NDArray[np.int64], recipe: Recipe
) -> None:
    model.train()
    places = torch.from_numpy(pad(histories, users, recipe.max_length).places)
    hidden = (torch.rand(places.shape) < recipe.mask_share) & (places != PAD_ROW)
    if not hidden.any():
        return
    states = model(torch.where(hidden, MASK_ROW, places))
    loss = F.cross_entropy(model.scores(states[hidden]), places[hidden])
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    if math.isfinite(loss.item()):
        optimizer.step()


@torch.no_grad()
def encode_bert(model: Bert, histories: Histories) -> npt.NDArray[np.float32]:
    """[n_users, width] unit means of the states of each user's places."""
    vectors = np.zeros((histories.n_users, model.place.embedding_dim), np.float32)
    for users in length_buckets(histories.lengths(), _TOKENS, model.max_length):
        places = torch.from_numpy(pad(histories, users, model.max_length).places)
        weights = (places != PAD_ROW).float()
        vectors[users] = unit((weights[:, None] @ model(places))[:, 0]).numpy()
    return vectors
