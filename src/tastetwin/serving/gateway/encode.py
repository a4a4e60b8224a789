"""Histories to taste vectors: from the prediction-output store, else by a model backend."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from tastetwin.analysis.index import Floats
from tastetwin.errors import StoreError
from tastetwin.features.histories import Histories
from tastetwin.model.batches import Batch, pad
from tastetwin.serving.gateway.outputs import CachedVectors, key_of
from tastetwin.serving.gateway.pack import Pack
from tastetwin.serving.protocol import Tensors
from tastetwin.serving.turns import turn

TOO_LATE: Final = "DEADLINE-EXCEEDED"


class Infer(Protocol):
    """A pool of model backends; see ``backends.Backends.infer``."""

    async def infer(self, version: str, inputs: Tensors, deadline: float, request_id: str) -> Floats:
        """[n, dim] vectors."""


@dataclass(frozen=True)
class Call:
    """What a request brings to everything that is done for it."""

    deadline: float
    """In the event loop's time, seconds."""
    request_id: str


class VectorSource:
    """Encodes histories."""

    def __init__(self, backends: Infer, cached: CachedVectors) -> None:
        self._backends, self._cached = backends, cached

    async def encode(self, pack: Pack, histories: Histories, call: Call) -> Floats:
        """[n_users, dim] unit vectors by the pack's bundle, as the model gives them.

        Raises:
            StoreError: BACKEND-UNAVAILABLE; DEADLINE-EXCEEDED.
        """
        bundle, longest = pack.manifest.bundle, pack.manifest.max_length
        whole = pad(histories, np.arange(histories.n_users), longest)
        lengths = np.minimum(histories.lengths(), longest)
        keys = [key_of(bundle, content) for content in _contents(whole, lengths)]
        mine = False

        async def compute(missing: list[int]) -> Floats:
            nonlocal mine
            mine, inputs = True, whole.inputs()
            if len(missing) < len(keys):
                most = max(1, *lengths[missing].tolist())
                inputs = {name: values[missing, :most] for name, values in inputs.items()}
            return await self._backends.infer(bundle, inputs, call.deadline, call.request_id)

        try:
            found = await self._cached.get(keys, pack.dim, compute)
        except StoreError as error:
            if mine or error.problem.code != TOO_LATE or asyncio.get_running_loop().time() >= call.deadline:
                raise
            found = await self._cached.get(keys, pack.dim, compute)  # it was the time of another asker that ended
        await turn()  # what is done with vectors takes milliseconds, and several come at once
        return found


def _contents(batch: Batch, lengths: npt.NDArray[np.int64]) -> list[bytes]:
    """All that the model reads of each history, without the padding."""
    rows = zip(batch.places, batch.visits, batch.ratings, batch.ages, lengths.tolist(), strict=True)
    return [b"".join(part[:length].tobytes() for part in parts) for *parts, length in rows]
