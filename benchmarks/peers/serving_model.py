"""What the servers that the backend is measured against share: the model, and rows padded to the longest of a batch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnxruntime as ort

INPUTS: Final = {"places": np.int64, "visits": np.float32, "ratings": np.float32, "ages": np.float32}
BATCH: Final = 32
WAIT_MS: Final = 1
"""The peers' dynamic batching; ours is greedy."""


class Model:
    """An opened encoder, one thread a call as ours."""

    def __init__(self) -> None:
        """Open the file that ``MODEL`` in the environment names."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])

    def vectors(self, rows: Sequence[dict[str, list[Any]]]) -> np.ndarray:
        """[n, dim] of histories, each a list by input."""
        longest = max(len(row["places"]) for row in rows)
        batch = {name: np.zeros((len(rows), longest), dtype) for name, dtype in INPUTS.items()}
        for at, row in enumerate(rows):
            for name, values in batch.items():
                values[at, : len(row[name])] = row[name]
        return self.run(batch)

    def run(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        """[n, dim] of padded inputs."""
        vectors: np.ndarray = self._session.run(["vector"], batch)[0]
        return vectors
