"""The encoder: a taste history in, a unit taste vector out.

It starts as the linear model and earns what it adds. Three parts, side by side, then one projection to ``dim``:

* the *linear views* (SVD, PPMI, histograms, iALS folded in within the graph), each at a learned weight;
* a *residual* on them, a small MLP that is zero at the start;
* a *sequence view*, a small bidirectional pre-norm transformer over the same places with rating and recency.

How much of the last two is served is chosen on held-back training users (``finish.py``), zero included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tastetwin.features.histories import PAD_ROW, Vocabulary
from tastetwin.model.layout import RECENCY_BUCKETS, Favors, Layout, padded
from tastetwin.model.views import LinearTables, first_categories

CG_STEPS: Final = 4
"""After four the cosine with the closed form is above .9989 for every user of two cities, .9996 for 99 in 100."""
RESIDUAL_WIDTH: Final = 256
RESIDUAL_DROPOUT: Final = 0.3
TINY: Final = 1e-12
PRIOR_SHARE: Final = 1e-6
"""Weight of the average user in everybody's vector: far below float32's resolution unless there is nothing else."""


Views = Callable[[Tensor, Tensor, Layout], Tensor]
"""As ``LinearViews.forward``."""
Parts = tuple[Tensor, Tensor, Tensor]
"""Of users: linear, residual, sequence, as ``Encoder.fuse`` takes them."""


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

    def forward(self, places: Tensor, strengths: Tensor, layout: Layout) -> Tensor:
        """[*favors] rows and strengths (0 for padding) -> [n, sum of sizes]; a view without input is zero."""
        views = [unit(part) for part in _split(layout.sums(strengths, self.bags[places]), self.bag_sizes)]
        factors = _split(self.factors[places], self.factor_sizes)
        for number, block in enumerate(factors):
            solved = solve_whitened(block.contiguous(), self.alpha * strengths, strengths > 0, layout)
            views.append(unit(solved @ getattr(self, f"unwhiten_{number}")))
        return torch.cat(views, dim=1)


def _split(x: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """The views that lie side by side on the last axis."""
    return x.split_with_sizes(list(sizes), dim=-1)


def unit(x: Tensor) -> Tensor:
    """Last axis at unit length; zero stays zero."""
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True).clamp_min(TINY * TINY))


def solve_whitened(factors: Tensor, weights: Tensor, inside: Tensor, layout: Layout) -> Tensor:
    """Direction of x in (I + F' diag(w) F) x = F' (1 + w), per user: [*favors, k], [*favors] -> [n, k].

    Conjugate gradients (Hestenes & Stiefel 1952), a fixed number of steps so that it can be exported; with the shared
    part whitened away few eigenvalues differ from one, and each costs a step.
    """
    residual = direction = unit(layout.sums(inside + weights, factors))
    solution = torch.zeros_like(residual)
    power = (residual * residual).sum(1, keepdim=True)
    for _ in range(CG_STEPS):
        image = direction + layout.sums(layout.dots(factors, direction) * weights, factors)
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

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """[*favors, width] -> the same shape."""
        mixed = layout.attend(self.mix(self.norm_1(x)), self.heads)
        x = x + F.dropout(self.out(mixed), self.dropout, self.training)
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
        """[...] rows and [..., bag width] their linear rows -> [..., width], before visits are known."""
        rows: Tensor = self.place(bags * self.scale)
        side: Tensor = self.category(self.categories[places]) + self.region(self.regions[places])
        return rows + side

    def states(self, x: Tensor, favors: Favors) -> Tensor:
        """[*favors, width] embedded places (or what stands for a hidden one) -> states after the blocks."""
        signs = torch.stack([favors.ratings.clamp(-3, 3), (favors.ratings != 0).to(favors.ratings.dtype)], dim=-1)
        x = x + self.recency(favors.layout.recency(favors.ages)) + self.rating(signs)
        for block in self.blocks:
            x = block(x, favors.layout)
        states: Tensor = self.norm(x)
        return states

    def forward(self, states: Tensor, strengths: Tensor, layout: Layout) -> Tensor:
        """Mean of the states [*favors, width], weighted by strength -> unit [n, width]."""
        return unit(layout.sums(strengths, states))


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

    @property
    def part_sizes(self) -> tuple[int, int, int]:
        """Lengths of the vectors that ``parts`` gives."""
        linear, sequence = len(self.view_of), len(self.prior) - len(self.view_of)
        return linear, linear, sequence

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

    def parts(self, views: LinearViews, favors: Favors) -> Parts:
        """What ``fuse`` takes: linear and residual [n, width of ``views``], sequence view [n, width]."""
        return self.parts_of(views, favors, self.sequence.embed_places(views.bags[favors.places], favors.places))

    def parts_of(self, views: Views, favors: Favors, embedded: Tensor) -> Parts:
        """``parts``, where the places are embedded [*favors, width] already."""
        strengths = strength(favors.visits, favors.places)
        linear = self.linear(views(favors.places, strengths, favors.layout))
        states = self.sequence.states(embedded, favors)
        return linear, self.residual(linear), self.sequence(states, strengths, favors.layout)

    def wide(self, parts: Parts) -> Tensor:
        """[n, full width] unit vectors before the projection; where nothing is known of any place, the average user."""
        return unit(self.fuse(*parts) + PRIOR_SHARE * self.prior)

    def project(self, parts: Parts) -> Tensor:
        """[n, dim] unit vectors."""
        return unit(self.wide(parts) @ self.projection)

    def encode(self, favors: Favors) -> Tensor:
        """[n, dim] unit vectors; the average user's for a history without places."""
        return self.project(self.parts(self.views, favors))

    def forward(self, places: Tensor, visits: Tensor, ratings: Tensor, ages: Tensor) -> Tensor:
        """``encode`` of the tensors of a ``batches.Batch``."""
        return self.encode(padded(places, visits, ratings, ages))


def strength(visits: Tensor, places: Tensor) -> Tensor:
    """[*favors] weight of each favor, 0 for padding (the same as ``linear.strength_matrix``)."""
    return torch.where(places != PAD_ROW, torch.sqrt(1 + torch.log(visits.clamp_min(1))), 0.0)
