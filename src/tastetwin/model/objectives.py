"""What training minimises, as pure functions of tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def two_view_contrast(a: Tensor, b: Tensor, temperature: Tensor) -> Tensor:
    """Scalar: each row of ``a`` [n, d] must find the same row of ``b`` among all rows, and back (InfoNCE).

    Rows have unit length. van den Oord et al. 2018; symmetric as in CLIP, Radford et al. 2021.
    """
    logits = a @ b.T / temperature
    own = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def masked_place(hidden: Tensor, candidates: Tensor, targets: Tensor) -> Tensor:
    """Sum over hidden places [m, d]: each must be told from the other candidates [c, d]; ``targets`` [m] index those.

    Softmax over a sample of the catalogue (Jean et al. 2015) in place of the whole, as cheap at 10 M places as at 10 k;
    zero when nothing is hidden. A sum, so that processes with parts of a batch can add theirs up.
    """
    return F.cross_entropy(hidden @ candidates.T, targets, reduction="sum")
