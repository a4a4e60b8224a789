"""Where the files of a bundle are; imports neither torch nor ONNX Runtime."""

from __future__ import annotations

from typing import Final

from tastetwin.generations import Manifest
from tastetwin.store import Store

MODEL: Final = "encoder.onnx"
WEIGHTS: Final = "weights.safetensors"
RECORD: Final = "encoder.json"
VOCABULARY: Final = "vocabulary.parquet"
CHECKPOINT: Final = "checkpoint.json"
"""The pointer to the tensors of a training's last checkpoint."""


def model_file(store: Store, bundle: Manifest) -> str:
    """The exported encoder, as a path or URL that workers can open."""
    return store.url(bundle.paths("model")[0])
