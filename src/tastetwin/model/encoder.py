"""The encoder: a taste history in, a unit taste vector out.

It starts as the linear model and earns what it adds. Three parts, side by side, then one projection to ``dim``:

* the *linear views* (SVD, PPMI, histograms, iALS folded in within the graph), each at a learned weight;
* a *residual* on them, a small MLP that is zero at the start;
* a *sequence view*, a small bidirectional pre-norm transformer over the same places with rating and recency.

How much of the last two is served is chosen on held-back training users (``train.py``), zero included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tastetwin.features.histories import PAD_ROW, Vocabulary
from tastetwin.model.views import LinearTables, first_categories

CG_STEPS: Final = 6
RESIDUAL_WIDTH: Final = 256
RESIDUAL_DROPOUT: Final = 0.3
RECENCY_BUCKETS: Final = 8
TINY: Final = 1e-12
PRIOR_SHARE: Final = 1e-6
"""Weight of the average user in everybody's vector: far below float32's resolution unless there is nothing else."""


@dataclass(frozen=True)
class Shape:
    """What must be known to build an encoder before its weights are loaded."""

    dim: int
    width: int
    layers: int
    heads: int
    dropout: float


class LinearViews(nn.Module):
    """Frozen tables of one linear fit; gives every view of a user at unit length, side by side."""

    bags: Tensor
    factors: Tensor

    def __init__(self, tables: LinearTables) -> None:
        super().__init__()
        self.register_buffer("bags", torch.from_numpy(tables.bags))
        self.register_buffer("factors", torch.from_numpy(tables.factors))
        for number, back in enumerate(tables.unwhiten):
            self.register_buffer(f"unwhiten_{number}", torch.from_numpy(back))
        self.bag_sizes, self.factor_sizes, self.alpha = tables.bag_sizes, tables.factor_sizes, tables.alpha
        self.sizes = [*tables.bag_sizes, *(back.shape[1] for back in tables.unwhiten)]

    def forward(self, places: Tensor, strengths: Tensor) -> Tensor:
        """[n, length] rows and strengths (0 for padding) -> [n, sum of sizes]; a view without input is zero."""
        sums = (strengths[:, None] @ self.bags[places])[:, 0]
        views = [unit(part) for part in _split(sums, self.bag_sizes)]
        factors = _split(self.factors[places], self.factor_sizes)
        for number, block in enumerate(factors):
            solved = solve_whitened(block, self.alpha * strengths, strengths > 0)
            views.append(unit(solved @ getattr(self, f"unwhiten_{number}")))
        return torch.cat(views, dim=1)


def _split(x: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """The views that lie side by side on the last axis."""
    return x.split_with_sizes(list(sizes), dim=-1)


def unit(x: Tensor) -> Tensor:
    """Last axis at unit length; zero stays zero."""
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True).clamp_min(TINY * TINY))


def solve_whitened(factors: Tensor, weights: Tensor, inside: Tensor) -> Tensor:
    """Direction of x in (I + F' diag(w) F) x = F' (1 + w), per user: [n, length, k], [n, length] -> [n, k].

    Conjugate gradients (Hestenes & Stiefel 1952), a fixed number of steps so that it can be exported; with the shared
    part whitened away few eigenvalues differ from one, and each costs a step.
    """
    right = ((inside + weights)[:, None] @ factors)[:, 0]
    residual = direction = unit(right)
    solution = torch.zeros_like(residual)
    power = (residual * residual).sum(1, keepdim=True)
    for _ in range(CG_STEPS):
        through = (factors @ direction[..., None])[..., 0] * weights
        image = direction + (through[:, None] @ factors)[:, 0]
        step = power / (direction * image).sum(1, keepdim=True).clamp_min(TINY)
        solution = solution + step * direction
        residual = residual - step * image
        fresh = (residual * residual).sum(1, keepdim=True)
        direction = residual + fresh / power.clamp_min(TINY) * direction
        power = fresh
    return solution


class Block(nn.Module):
    """Pre-norm bidirectional transformer block (Xiong et al. 2020)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.dropout = shape.heads, shape.dropout
        self.norm_1, self.norm_2 = nn.LayerNorm(shape.width), nn.LayerNorm(shape.width)
        self.mix = nn.Linear(shape.width, 3 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)
        self.up, self.down = nn.Linear(shape.width, 4 * shape.width), nn.Linear(4 * shape.width, shape.width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[n, length, width], [n, 1, 1, length] true where a favor is -> [n, length, width]."""
        n, length, width = x.shape
        query, key, value = (
            part.reshape(n, length, self.heads, width // self.heads).transpose(1, 2)
            for part in self.mix(self.norm_1(x)).chunk(3, dim=-1)
        )
        heads = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + F.dropout(self.out(heads.transpose(1, 2).reshape(n, length, width)), self.dropout, self.training)
        return x + F.dropout(self.down(F.gelu(self.up(self.norm_2(x)))), self.dropout, self.training)


class SequenceView(nn.Module):
    """The transformer over a user's places; starts near the mean of their linear rows."""

    categories: Tensor
    regions: Tensor
    scale: Tensor

    def __init__(self, shape: Shape, vocabulary: Vocabulary, tables: LinearTables) -> None:
        super().__init__()
        self.register_buffer("categories", torch.from_numpy(first_categories(vocabulary)) + 1)
        self.register_buffer("regions", torch.from_numpy(vocabulary.regions.astype(np.int64)) + 1)
        self.register_buffer("scale", _column_scale(tables))
        self.place = nn.Linear(tables.bags.shape[1], shape.width)
        self.category = nn.Embedding(len(vocabulary.category_codes) + 1, shape.width)
        self.region = nn.Embedding(len(vocabulary.region_codes) + 1, shape.width)
        self.recency = nn.Embedding(RECENCY_BUCKETS, shape.width)
        self.rating = nn.Linear(2, shape.width, bias=False)
        self.hidden_place = nn.Parameter(torch.zeros(shape.width))
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.guess = nn.Linear(shape.width, shape.width)
        self._start()

    def _start(self) -> None:
        """Side features and residual branches start at or near zero, so that the start is the linear rows' mean."""
        embeddings = [part.weight for part in (self.category, self.region, self.recency)]
        for weight in [*embeddings, self.rating.weight, self.guess.weight]:
            nn.init.normal_(weight, std=0.02)
        for name, weight in self.blocks.named_parameters():
            if name.endswith(("out.weight", "down.weight")):
                nn.init.normal_(weight, std=0.02 / len(self.blocks))
        nn.init.orthogonal_(self.place.weight)
        nn.init.normal_(self.hidden_place, std=0.02)

    def embed_places(self, bags: Tensor, places: Tensor) -> Tensor:
        """[..., length] rows and their linear rows -> [..., length, width], before visits are known."""
        rows: Tensor = self.place(bags * self.scale)
        side: Tensor = self.category(self.categories[places]) + self.region(self.regions[places])
        return rows + side

    def tokens(self, bags: Tensor, places: Tensor, ratings: Tensor, ages: Tensor, hidden: Tensor | None) -> Tensor:
        """[n, length, width] states after the blocks; ``hidden`` marks favors whose place must be guessed."""
        x = self.embed_places(bags, places)
        if hidden is not None:
            x = torch.where(hidden[..., None], self.hidden_place, x)
        inside = places != PAD_ROW
        signs = torch.stack([ratings.clamp(-3, 3), (ratings != 0).to(ratings.dtype)], dim=-1)
        x = x + self.recency(recency_bucket(inside, ages)) + self.rating(signs)
        # Attention over nothing is 0 / 0: a history without places may look at its padding, which weighs 0 afterwards.
        mask = (inside | ~inside.any(dim=1, keepdim=True))[:, None, None, :]
        for block in self.blocks:
            x = block(x, mask)
        states: Tensor = self.norm(x)
        return states

    def forward(self, states: Tensor, strengths: Tensor) -> Tensor:
        """Mean of the states [n, length, width], weighted by strength -> unit [n, width]."""
        return unit((strengths[:, None] @ states)[:, 0])


def recency_bucket(inside: Tensor, ages: Tensor) -> Tensor:
    """[n, length] 0 for the user's latest favors .. ``RECENCY_BUCKETS`` - 1 for the oldest.

    Relative to the user's own history: ages in days tell when somebody joined, by which their two halves find each
    other without any taste (that raised the twin test by a sixth, on the wrong grounds). Unknown ages go by order.
    """
    count = inside.sum(dim=1, keepdim=True)
    order = (count - inside.long().cumsum(dim=1)) / (count - 1).clamp_min(1)
    oldest = ages.amax(dim=1, keepdim=True)
    share = torch.where((ages >= 0) & (oldest > 0), ages / oldest.clamp_min(1), order)
    return (share.clamp(0, 1) * (RECENCY_BUCKETS - 1)).round().long()


def _column_scale(tables: LinearTables) -> Tensor:
    """[width] brings each bag view's rows to unit mean square per view, so that none drowns another."""
    scales = []
    for block in np.split(tables.bags, np.cumsum(tables.bag_sizes)[:-1], axis=1):
        norms = np.linalg.norm(block, axis=1)
        mean = float(norms[norms > 0].mean()) if (norms > 0).any() else 1.0
        scales.append(np.full(block.shape[1], 1 / mean, np.float32))
    return torch.from_numpy(np.concatenate(scales))


class Encoder(nn.Module):
    """The served model."""

    prior: Tensor
    """[full width] unit mean direction of the training users; zero until training has set it."""

    view_of: Tensor
    gates: Tensor
    projection: Tensor

    def __init__(self, shape: Shape, vocabulary: Vocabulary, tables: LinearTables, starting_weights: Tensor) -> None:
        """``starting_weights`` [number of views]: the linear views' weights before training."""
        super().__init__()
        self.views = LinearViews(tables)
        self.sequence = SequenceView(shape, vocabulary, tables)
        self.log_weights = nn.Parameter(starting_weights.log())
        self.register_buffer("view_of", torch.repeat_interleave(torch.tensor(self.views.sizes)))
        self.up, self.down = nn.Linear(tables.width, RESIDUAL_WIDTH), nn.Linear(RESIDUAL_WIDTH, tables.width)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)
        self.log_temperature = nn.Parameter(torch.tensor(0.0))
        self.register_buffer("gates", torch.ones(2))
        full = tables.width + shape.width
        self.register_buffer("prior", torch.zeros(full))
        self.register_buffer("projection", torch.eye(full)[:, : min(shape.dim, full)].contiguous())

    def linear(self, views: Tensor) -> Tensor:
        """Unit views side by side -> one unit vector, by the learned weights."""
        return unit(views * self.log_weights.exp()[self.view_of])

    def residual(self, linear: Tensor) -> Tensor:
        """What the MLP adds to a linear vector [n, width]."""
        scaled = F.dropout(linear * linear.shape[1] ** 0.5, RESIDUAL_DROPOUT, self.training)
        added: Tensor = self.down(F.dropout(F.gelu(self.up(0.3 * scaled)), RESIDUAL_DROPOUT, self.training))
        return added

    def fuse(self, linear: Tensor, residual: Tensor, sequence: Tensor) -> Tensor:
        """Linear with its residual, and the sequence view beside it, at the chosen gates -> unit [n, full width]."""
        return unit(torch.cat([unit(linear + self.gates[0] * residual), self.gates[1] * sequence], dim=1))

    def wide(self, places: Tensor, visits: Tensor, ratings: Tensor, ages: Tensor) -> Tensor:
        """[n, full width] unit vectors before the projection; where nothing is known of any place, the average user."""
        strengths = strength(visits, places)
        linear = self.linear(self.views(places, strengths))
        states = self.sequence.tokens(self.views.bags[places], places, ratings, ages, None)
        fused = self.fuse(linear, self.residual(linear), self.sequence(states, strengths))
        return unit(fused + PRIOR_SHARE * self.prior)

    def forward(self, places: Tensor, visits: Tensor, ratings: Tensor, ages: Tensor) -> Tensor:
        """A ``batches.Batch`` as tensors -> [n, dim] unit vectors; the average user's for a history without places."""
        return unit(self.wide(places, visits, ratings, ages) @ self.projection)


def strength(visits: Tensor, places: Tensor) -> Tensor:
    """[n, length] weight of each favor, 0 for padding (the same as ``linear.strength_matrix``)."""
    return torch.where(places != PAD_ROW, torch.sqrt(1 + torch.log(visits.clamp_min(1))), 0.0)
