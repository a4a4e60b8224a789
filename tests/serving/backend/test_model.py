"""A bundle at the door: what is opened, and which tensors reach it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tastetwin.config import BackendConfig
from tastetwin.errors import StoreError, UsageError
from tastetwin.features.vocabulary import read_vocabulary
from tastetwin.generations import read_manifest
from tastetwin.serving.backend.model import Model, open_model
from tests.serving.backend.fakes import TABLE, fake_model, tensors
from tests.world import Journey

CONFIG = BackendConfig(max_rows=4, max_length=8)


@pytest.fixture(scope="module")
def opened(journey: Journey) -> Model:
    return open_model(journey.store, journey.first.generation("train"), CONFIG)


def test_the_table_has_the_vocabularys_rows(journey: Journey, opened: Model) -> None:
    """The bound that keeps a wrong place from ONNX Runtime is the model's own."""
    bundle = read_manifest(journey.store, "train", opened.version)
    vocabulary = read_vocabulary(journey.store, bundle.paths("vocabulary")[0])
    assert opened.table_rows == len(vocabulary.place_ids)


def test_padding_changes_nothing(opened: Model) -> None:
    """However a client pads, and whatever lies beside a row."""
    alone, padded = (opened.check(tensors(histories), CONFIG) for histories in ([[5, 6]], [[5, 6], [7] * 8]))
    padded.inputs["ages"][0, 2:] = 99
    together = opened.vectors([(padded, 1), (padded, 0)])[1]
    assert np.allclose(opened.vectors([(alone, 0)])[0], together, atol=1e-5)


def changed(name: str, value: Any) -> dict[str, np.ndarray]:
    inputs = tensors([[1, 2, 3]])
    inputs[name][0, 1] = value
    return inputs


@pytest.mark.parametrize(
    ("inputs", "place"),
    [
        (changed("places", TABLE), "places"),
        (changed("places", -1), "places"),
        (changed("places", np.iinfo(np.int64).min), "places"),
        (changed("places", 0), "places"),
        (changed("visits", np.nan), "visits"),
        (changed("ratings", np.inf), "ratings"),
        (changed("ages", -np.inf), "ages"),
        ({name: values for name, values in tensors([[1]]).items() if name != "ages"}, "inputs"),
        ({**tensors([[1]]), "more": np.zeros((1, 1), np.float32)}, "inputs"),
        ({**tensors([[1]]), "ages": np.zeros((1, 2), np.float32)}, "ages"),
        ({**tensors([[1]]), "ages": np.zeros((1, 1))}, "ages"),
        ({**tensors([[1]]), "places": np.ones((1, 1), np.int32)}, "places"),
        ({name: values[0] for name, values in tensors([[1]]).items()}, "places"),
    ],
)
def test_tensors_that_are_not_the_models_are_refused_by_name(inputs: dict[str, np.ndarray], place: str) -> None:
    """ONNX Runtime would fail the whole call, and the requests of others with it; or compute with them."""
    with pytest.raises(UsageError, match="BAD-INPUT") as refused:
        fake_model()[0].check(inputs, CONFIG)
    assert place in refused.value.problem.place


@pytest.mark.parametrize("histories", [[[1]] * 5, [[1] * 9]])
def test_a_request_beyond_the_limits_is_refused(histories: list[list[int]]) -> None:
    """One caller must not hold the model for a minute."""
    with pytest.raises(UsageError, match="TOO-LARGE"):
        fake_model()[0].check(tensors(histories), CONFIG)


@pytest.mark.parametrize("at", [0, 100, -1])
def test_a_changed_model_is_not_opened(copied: Journey, at: int) -> None:
    """Whoever can write to the store could else put any model before the users."""
    version = copied.first.generation("train")
    path = Path(copied.store.root) / "bundles" / version / "encoder.onnx"
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match="DAMAGED"):
        open_model(copied.store, version, CONFIG)


def test_a_device_that_is_not_there_is_said(journey: Journey) -> None:
    """ONNX Runtime falls back to the CPU without a word."""
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this build has CUDA")
    with pytest.raises(UsageError, match="NO-PROVIDER"):
        open_model(journey.store, journey.first.generation("train"), BackendConfig(provider="cuda"))
