"""Which of several training processes this is, as ``torchrun`` tells it; imports nothing heavy."""

from __future__ import annotations

import os


def rank() -> int:
    """0 for the process that fits the linear views and writes; the others help it."""
    return int(os.environ.get("RANK", "0")) if world() > 1 else 0


def world() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Which process of this machine it is, and so which of its devices it takes."""
    return int(os.environ.get("LOCAL_RANK", "0"))
