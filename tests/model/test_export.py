"""What is served is what was trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from tastetwin.features.histories import FIRST_PLACE_ROW
from tastetwin.model.encoder import Encoder
from tastetwin.model.export import export_onnx, export_weights
from tastetwin.model.linear import strength_matrix
from tastetwin.model.prepare import shape_of, starting_weights
from tastetwin.model.served import Served
from tastetwin.model.train import train
from tastetwin.model.views import fit_tables, kinds_of_place, table_floats
from tests.model import towns

CONFIG = towns.CONFIG.model_copy(update={"layers": 2, "epochs": 1})


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return train(towns.histories(80, 60, 3, 14, seed=1), towns.vocabulary(60), CONFIG).encoder


@pytest.fixture(scope="module")
def session(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> onnxruntime.InferenceSession:
    path = tmp_path_factory.mktemp("onnx") / "encoder.onnx"
    export_onnx(encoder, path)
    assert [entry.name for entry in path.parent.iterdir()] == ["encoder.onnx"]
    return onnxruntime.InferenceSession(path)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_onnx_equals_torch_at_every_length(encoder: Encoder, session: onnxruntime.InferenceSession, batch: int) -> None:
    """An export that froze a length or a batch size fails on the first real user."""
    rng = np.random.default_rng(batch)
    for length in range(1, CONFIG.max_length + 1):
        places = rng.integers(FIRST_PLACE_ROW, 62, (batch, length))
        places[:, 1:][np.arange(1, length) >= rng.integers(1, length + 1, (batch, 1))] = 0
        visits, ages = rng.integers(1, 9, places.shape), rng.integers(-1, 2000, places.shape)
        inputs = {
            "places": places,
            "visits": visits.astype(np.float32),
            "ratings": rng.normal(size=places.shape).astype(np.float32),
            "ages": ages.astype(np.float32),
        }
        with torch.no_grad():
            wanted = encoder(*(torch.from_numpy(value) for value in inputs.values())).numpy()
        assert np.abs(session.run(["vector"], inputs)[0] - wanted).max() < 1e-4


def test_the_contract_of_the_exported_model(session: onnxruntime.InferenceSession) -> None:
    """Names and types that analysis and the serving backend feed."""
    inputs = {entry.name: entry.type for entry in session.get_inputs()}
    floats = dict.fromkeys(("visits", "ratings", "ages"), "tensor(float)")
    assert inputs == {"places": "tensor(int64)", **floats}
    assert [entry.name for entry in session.get_outputs()] == ["vector"]
    assert session.get_outputs()[0].shape[1] == CONFIG.dim


@pytest.mark.parametrize(
    ("users", "places", "categories", "regions", "located"),
    [(150, 140, 3, 2, True), (150, 200, 40, 36, False), (30, 200, 0, 2, False), (150, 20, 0, 0, True)],
)
def test_the_size_of_the_tables_is_known_before_they_are_fitted(
    users: int, places: int, categories: int, regions: int, located: bool
) -> None:
    """Counted too low, a night's training ends with no model; too high, a catalogue that fits is refused."""
    town, vocabulary = towns.histories(users, places, 2, 12, seed=1), towns.vocabulary(places, categories, regions)
    if located:
        where = np.random.default_rng(0).normal(50, 1, vocabulary.coordinates.shape).astype(np.float32)
        vocabulary = replace(vocabulary, coordinates=where)
    matrix, kinds = strength_matrix(town, vocabulary.n_rows), kinds_of_place(vocabulary)
    tables = fit_tables(matrix, vocabulary, kinds, 30.0, 0)
    made = Served(Encoder(shape_of(CONFIG), vocabulary, tables, starting_weights(tables)))
    assert 4 * vocabulary.n_rows * (table_floats(users, vocabulary) + CONFIG.width) == made.size


def test_weights_round_trip(encoder: Encoder, tmp_path: Path) -> None:
    """The safetensors file must hold the whole model, gates and projection included."""
    export_weights(encoder, tmp_path / "weights.safetensors")
    loaded = load_file(tmp_path / "weights.safetensors")
    assert loaded.keys() == encoder.state_dict().keys()
    assert all(torch.equal(loaded[name], value) for name, value in encoder.state_dict().items())
