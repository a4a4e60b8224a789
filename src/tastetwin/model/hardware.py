"""Where and how precisely training computes: ``train.device`` and ``train.precision``."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tastetwin.config import TrainConfig
from tastetwin.errors import InputError
from tastetwin.model.ranks import local_rank


@dataclass(frozen=True)
class Hardware:
    """A device and the type that matrix products are computed in; weights and losses are float32 everywhere."""

    device: torch.device
    products: torch.dtype

    def enter(self) -> None:
        """Make the device the current one of this thread: each begins on the first GPU."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    @property
    def precision(self) -> str:
        """The type of matrix products as ``train.precision`` calls it."""
        return "float32" if self.products == torch.float32 else "bf16"

    def autocast(self, enabled: bool = True) -> torch.autocast:
        """The context that what may be computed in ``products`` runs in; with ``enabled`` false, float32 inside it."""
        return torch.autocast(self.device.type, self.products, enabled and self.products != torch.float32)


def choose(config: TrainConfig) -> Hardware:
    """What ``config`` asks for, and the best there is where it says "auto".

    A GPU becomes this process's current device, the one numbered as the process is on its machine, and cuDNN's
    attention is switched off in the process: it plans anew for every shape, and no two batches have the same (a step of
    862 users, 128 wide, took 144 ms with it on an H100, and 28 ms without; ``benchmarks/gpu.py``).

    Raises:
        InputError: NO-CUDA when "cuda" is asked for and torch sees no such device, or too few for all processes.
    """
    there = torch.cuda.is_available()
    if config.device == "cuda" and not there:
        raise InputError(
            "NO-CUDA",
            place="train.device",
            value="cuda",
            rule="torch sees a CUDA device on this machine",
            fix="set train.device to auto or cpu, or install the driver and a build of torch for it",
        )
    if config.device == "cpu" or not there:
        return Hardware(torch.device("cpu"), torch.bfloat16 if config.precision == "bf16" else torch.float32)
    if local_rank() >= (there_are := torch.cuda.device_count()):
        raise InputError(
            "NO-CUDA",
            place="train.device",
            value=f"process {local_rank() + 1} of this machine, for {there_are} GPU(s)",
            rule="a GPU for each process",
            fix="start as many processes as there are GPUs, or set train.device to cpu",
        )
    torch.cuda.set_device(local_rank())
    torch.backends.cuda.enable_cudnn_sdp(False)
    half = config.precision == "bf16" or (config.precision == "auto" and torch.cuda.is_bf16_supported(False))
    return Hardware(torch.device("cuda", local_rank()), torch.bfloat16 if half else torch.float32)
