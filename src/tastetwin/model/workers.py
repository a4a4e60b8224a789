"""Several processes that train one model: who has which users, and what they tell each other.

Every process draws the whole batch from the same seeds and computes the vectors of its share of the users; the vectors
are gathered, so that each sees the loss of the whole batch. With one process all of this is the identity.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # its default arguments keep the group alive if it is imported after connecting
from torch import Tensor, nn

from tastetwin.model import ranks

Arrays = dict[str, npt.NDArray[Any]]

_PATIENCE: Final = timedelta(hours=12)
"""The others wait while process 0 fits the linear views; torchrun, not this, notices a dead process."""


@dataclass(frozen=True)
class Workers:
    """This process among all."""

    rank: int
    world: int

    def share_of(self, n_users: int) -> npt.NDArray[np.int64]:
        """Positions of the users of a batch that are this process's."""
        return np.array_split(np.arange(n_users), self.world)[self.rank]

    def together(self, model: nn.Module) -> nn.Module:
        """The model with its gradients averaged over all processes; its weights are given out by ``TrainingState``."""
        if self.world == 1:
            return model
        return nn.parallel.DistributedDataParallel(model, forward_sync_buffers=False, init_sync=False)

    def gather(self, own: Tensor, n_users: int) -> Tensor:
        """[own share, d] -> [n_users, d] everybody's rows; the gradient of this process's own comes back.

        It comes back times ``world``, since ``together`` divides by that.
        """
        if self.world == 1:
            return own
        gathered: Tensor = _Gather.apply(own, self, n_users)  # type: ignore[no-untyped-call]
        return gathered

    def mean(self, value: Tensor) -> float:
        """The mean of a scalar over all processes, the same to the last bit for each of them."""
        value = value.detach().clone()
        if self.world > 1:
            dist.all_reduce(value)
            _until_let_go(value)
        return float(value) / self.world

    def share(self, arrays: Arrays) -> Arrays:
        """Process 0's arrays, whatever the others give."""
        if self.world == 1:
            return arrays
        head = json.dumps([(name, array.dtype.str, array.shape) for name, array in arrays.items()]).encode()
        length = self._sent(torch.tensor([len(head)]))
        told = self._sent(torch.frombuffer(bytearray(head.ljust(int(length))), dtype=torch.uint8)[: int(length)])
        found: Arrays = {}
        for name, dtype, shape in json.loads(told.numpy().tobytes()):
            array = arrays[name] if self.rank == 0 else np.empty(shape, dtype)
            flat = torch.from_numpy(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
            found[name] = self._sent(flat).numpy().view(dtype).reshape(shape)
        return found

    @staticmethod
    def _sent(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        dist.broadcast(tensor, src=0)
        _until_let_go(tensor)
        return tensor


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, workers: Workers, n_users: int) -> Tensor:
        ctx.workers, ctx.users = workers, torch.from_numpy(workers.share_of(n_users)).to(own.device)
        rows = own.new_zeros(n_users, own.shape[1]).index_copy(0, ctx.users, own)
        dist.all_reduce(rows)
        _until_let_go(rows)
        return rows

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient[ctx.users] * ctx.workers.world, None, None


def _until_let_go(tensor: Tensor) -> None:
    """Wait until the thread of gloo's that worked on it holds it no longer: a moment after the result is there.

    To let go of what Python knows it needs the GIL, and it holds the group's lock meanwhile. Whoever destroys the group
    then holds the GIL and waits for that lock: both would wait for ever.
    """
    if tensor.device.type == "cpu":
        while tensor._use_count() > 1:  # type: ignore[attr-defined]
            time.sleep(0)


@contextmanager
def workers() -> Iterator[Workers]:
    """This process among those that ``torchrun`` started, connected; alone without it.

    Nothing of the connection is left afterwards: a thread of gloo's that lets go of a tensor while the interpreter
    shuts down aborts the process (pytorch issue 190489), and a training that went well would count as failed.
    """
    world = ranks.world()
    if world == 1:
        yield Workers(0, 1)
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield Workers(dist.get_rank(), world)
    finally:
        dist.destroy_process_group()
        gc.collect()  # DistributedDataParallel holds the group and is part of a cycle
