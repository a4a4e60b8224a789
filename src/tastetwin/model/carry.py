"""From day to day: an earlier encoder taken on to today's data, and a new one turned into an earlier one's space.

The 2021 system trained from nothing every day, since its vocabulary was fixed. Here most of a day's work is not in the
learned weights but in the linear views under them, which are cheap: they are fitted anew on everybody and turned onto
yesterday's (orthogonal Procrustes), so that the weights learned on top still fit, and nothing can be forgotten. A place
that was not there yesterday gets its row from its visitors, or from its peers of the same category and region.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from tastetwin.config import TrainConfig
from tastetwin.features.histories import Histories, Vocabulary
from tastetwin.model.checkpoint import fingerprint
from tastetwin.model.encoder import Encoder, LinearViews
from tastetwin.model.finish import encode
from tastetwin.model.linear import FUSED_IALS, strength_matrix
from tastetwin.model.prepare import shape_of, starting_weights
from tastetwin.model.train import Record, Trained
from tastetwin.model.views import LinearTables, align, fit_tables, kinds_of_place, rotation

TURNING_SAMPLE: Final = 20_000
"""Users by whom two encoders' spaces are laid onto each other: a hundred for every dimension."""
LIKENESS_SAMPLE: Final = 2_000
"""Users by whom two encoders are compared: enough for three digits of a mean cosine."""

_OF_THE_DAY: Final = ("views.", "sequence.categories", "sequence.regions")
"""Tensors that today's data decide."""
_GROWING: Final = ("sequence.category.weight", "sequence.region.weight")
"""Embeddings with a row for each category or region, and today may know more."""


def restore(weights: Mapping[str, Tensor], alpha: float, vocabulary: Vocabulary, config: TrainConfig) -> Encoder:
    """The encoder whose weights a bundle keeps.

    ``weights`` as ``export.export_weights`` wrote them; ``alpha``, vocabulary and settings are the bundle's own.
    """
    tables = _tables(weights, alpha)
    encoder = Encoder(shape_of(config), vocabulary, tables, starting_weights(tables))
    encoder.load_state_dict(dict(weights))
    return encoder.eval()


def can_carry_on(past: Encoder, histories: Histories, vocabulary: Vocabulary) -> bool:
    """Whether implicit ALS on these histories has the ranks it had in the past; few users or places allow less."""
    least = min(histories.n_users, vocabulary.n_rows)
    return past.views.factor_sizes == tuple(max(1, min(size, least)) for size in FUSED_IALS)


def carry_on(past: Encoder, histories: Histories, vocabulary: Vocabulary, config: TrainConfig) -> Trained:
    """An earlier encoder taken on to today's users and places.

    ``past`` must be over the first rows of ``vocabulary``, of the same kinds of place and settings, and
    ``can_carry_on``; the linear views are fitted on ``histories``.
    """
    torch.set_num_threads(config.threads or torch.get_num_threads())
    before = tables_of(past.views)
    with threadpool_limits(1, user_api="blas"):  # so that the number of threads changes nothing in the result
        matrix, kinds = strength_matrix(histories, vocabulary.n_rows), kinds_of_place(vocabulary)
        tables = align(fit_tables(matrix, vocabulary, kinds, before.alpha, config.seed), before)
    today = Encoder(shape_of(config), vocabulary, tables, starting_weights(tables))
    fresh = today.state_dict()
    kept = {name: value for name, value in past.state_dict().items() if not name.startswith(_OF_THE_DAY)}
    for name in _GROWING:
        kept[name] = _grown(kept[name], len(fresh[name]))
    today.load_state_dict({**fresh, **kept})
    record = Record(training_users=histories.n_users, fingerprint=fingerprint(histories, vocabulary))
    record.describe(today.eval())
    record.likeness_to_past = likeness(today, past, histories, config)
    return Trained(today, record)


@torch.no_grad()
def turn_onto(trained: Trained, past: Encoder, histories: Histories, config: TrainConfig) -> None:
    """Rotate the vectors of an encoder to where an earlier one has those of the same users.

    A rotation changes no similarity, so no list; but an unchanged user's vector stays near where it was, and what was
    computed of earlier vectors can be compared with it. Left as it is where the two differ in ``dim``.
    """
    encoder = trained.encoder
    if encoder.projection.shape[1] != past.projection.shape[1]:
        return
    new, old = _both(encoder, past, histories, config, TURNING_SAMPLE)
    encoder.projection.copy_(encoder.projection @ torch.from_numpy(rotation(new, old)))
    trained.record.likeness_to_past = likeness(encoder, past, histories, config)


def likeness(encoder: Encoder, past: Encoder, histories: Histories, config: TrainConfig) -> float | None:
    """Mean cosine of what two encoders of equal ``dim`` make of the same histories; None where there are none."""
    new, old = _both(encoder, past, histories, config, LIKENESS_SAMPLE)
    return round(float((new * old).sum(axis=1).mean()), 4) if len(new) else None


def tables_of(views: LinearViews) -> LinearTables:
    """The fit that linear views were made of."""
    backs = tuple(getattr(views, f"unwhiten_{at}").numpy() for at in range(len(views.factor_sizes)))
    bags, factors = views.bags.numpy(), views.factors.numpy()
    return LinearTables(bags, views.bag_sizes, factors, backs, views.alpha)


def _tables(weights: Mapping[str, Tensor], alpha: float) -> LinearTables:
    """The fit inside kept weights; the sizes of its views follow from how the weights are laid out."""
    n_factors = sum(name.startswith("views.unwhiten_") for name in weights)
    backs = tuple(weights[f"views.unwhiten_{at}"].numpy() for at in range(n_factors))
    sizes = torch.bincount(weights["view_of"]).tolist()
    bags, factors = (weights[f"views.{name}"].numpy() for name in ("bags", "factors"))
    return LinearTables(bags, tuple(sizes[: len(sizes) - n_factors]), factors, backs, alpha)


def _grown(rows: Tensor, size: int) -> Tensor:
    """Embeddings [n, width], and behind them their mean for whatever is new today."""
    return torch.cat([rows, rows.mean(dim=0).expand(size - len(rows), -1)])


def _both(
    encoder: Encoder, past: Encoder, histories: Histories, config: TrainConfig, sample: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """[n, dim] each: a sample of users as both encoders see them, by the places that both know."""
    known = histories.filter(histories.places < len(past.views.bags))
    users = np.flatnonzero(known.lengths())
    some = np.sort(np.random.default_rng([config.seed, 6]).permutation(users)[:sample])
    new, old = (encode(each, known.select(some), config.max_length) for each in (encoder, past))
    return new, old
