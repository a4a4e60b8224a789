"""The encoder as it is exported: the same vectors up to rounding, by fewer and larger steps.

A single history costs the graph's runtime as much for going from node to node as for computing. So the blocks of item
factors are solved for side by side, as if each were a user of its own, and all views are brought to unit length at
once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tastetwin.model.encoder import TINY, Encoder, LinearViews, solve_whitened
from tastetwin.model.layout import Layout, padded


class Served(nn.Module):
    """How each place is embedded no longer changes, and stands ready in a table."""

    embedded: Tensor
    """[n_rows, width]"""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder, bags = encoder, encoder.views.bags
        self.views = ServedViews(encoder.views)
        with torch.no_grad():
            embedded = encoder.sequence.embed_places(bags, torch.arange(len(bags), device=bags.device))
        self.register_buffer("embedded", embedded)

    @property
    def size(self) -> int:
        """Bytes of the tables; all else is small."""
        return sum(
            table.numel() * table.element_size() for table in (self.views.bags, self.views.factors, self.embedded)
        )

    def forward(self, places: Tensor, visits: Tensor, ratings: Tensor, ages: Tensor) -> Tensor:
        """``Encoder.encode`` of the tensors of a ``batches.Batch``."""
        favors, encoder = padded(places, visits, ratings, ages), self.encoder
        return encoder.project(encoder.parts_of(self.views, favors, self.embedded[places]))


class ServedViews(nn.Module):
    """``LinearViews`` of padded favors."""

    bags: Tensor
    factors: Tensor
    """[n_rows * blocks, widest] the blocks of a row below each other, filled up with zeros."""
    unwhiten: Tensor
    """[blocks * widest, sum of factor sizes]"""
    within: Tensor
    """[width, views] 1 where a number is one of the view's."""

    def __init__(self, views: LinearViews) -> None:
        super().__init__()
        blocks = views.factors.split_with_sizes(list(views.factor_sizes), dim=1)
        backs = [getattr(views, f"unwhiten_{number}") for number in range(len(blocks))]
        self.alpha, self.blocks, self.widest = views.alpha, len(blocks), max(views.factor_sizes)
        self.register_buffer("bags", views.bags)
        self.register_buffer("factors", torch.stack([self._filled(block) for block in blocks], 1).flatten(0, 1))
        filled = [self._filled(back.T).T for back in backs]
        self.register_buffer("unwhiten", torch.block_diag(*filled))  # type: ignore[no-untyped-call]
        of_view = torch.repeat_interleave(torch.tensor(views.sizes))
        self.register_buffer("within", nn.functional.one_hot(of_view).to(views.bags.dtype))

    def _filled(self, block: Tensor) -> Tensor:
        return nn.functional.pad(block, (0, self.widest - block.shape[1]))

    def forward(self, places: Tensor, strengths: Tensor, layout: Layout) -> Tensor:
        """As ``LinearViews.forward``, of [n, length] favors."""
        length, every = places.shape[1], torch.arange(self.blocks)[:, None]
        factors = self.factors[places[:, None] * self.blocks + every].reshape(-1, length, self.widest)
        weights = (strengths[:, None] + torch.zeros(self.blocks, 1)).reshape(-1, length)
        solved = solve_whitened(factors, self.alpha * weights, weights > 0, layout)
        backs = solved.reshape(-1, self.blocks * self.widest) @ self.unwhiten
        whole = torch.cat([layout.sums(strengths, self.bags[places]), backs], dim=1)
        squares = (whole * whole) @ self.within
        return whole * (torch.rsqrt(squares.clamp_min(TINY * TINY)) @ self.within.T)
