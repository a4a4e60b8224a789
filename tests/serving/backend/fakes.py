"""A session that computes what tests can foresee, and that can be held."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np

from tastetwin.config import BackendConfig
from tastetwin.serving.backend.model import Model, Rows

TABLE = 50
POISON = 13
"""A place that no call survives."""
HOLLOW = 17
"""A place whose row has a vector of no use."""


class Session:
    """Like an ``InferenceSession``; a row's vector follows from its first place alone."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()
        self.calls: list[np.ndarray] = []

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(shape=["batch", 2])]

    def run(self, names: list[str], batch: dict[str, np.ndarray], options: Any = None) -> list[np.ndarray]:
        """Refuses what ONNX Runtime would."""
        places = batch["places"]
        if places.max() >= TABLE or places.min() < -TABLE:
            raise IndexError("out of data bounds")
        if options is None:
            self.calls.append(places)
            self.entered.set()
            assert self.go.wait(30)
        if (places == POISON).any():
            raise RuntimeError("poison")
        angles = places[:, 0] / TABLE
        vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
        vectors[(places == HOLLOW).any(axis=1)] = np.nan
        return [vectors]


def vector_of(place: int) -> list[float]:
    return [float(np.cos(place / TABLE)), float(np.sin(place / TABLE))]


def fake_model(version: str = "2026-06-01-000000000000") -> tuple[Model, Session]:
    session = Session()
    return Model(version, version[:10], session), session


def tensors(histories: list[list[int]]) -> dict[str, np.ndarray]:
    """Inputs, padded."""
    longest = max((len(each) for each in histories), default=1)
    places = np.array([each + [0] * (longest - len(each)) for each in histories], np.int64).reshape(-1, longest)
    inside = (places != 0).astype(np.float32)
    return {"places": places, "visits": inside, "ratings": inside * 0, "ages": inside - 1}


def rows(model: Model, histories: list[list[int]]) -> Rows:
    return model.check(tensors(histories), BackendConfig())
