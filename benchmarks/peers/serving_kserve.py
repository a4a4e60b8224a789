"""The encoder behind KServe's server: ``MODEL=encoder.onnx NAME=taste python serving_kserve.py --http_port 8000``."""

from __future__ import annotations

import os
from typing import Any

import kserve
from serving_model import INPUTS, Model


class Encode(kserve.Model):  # type: ignore[misc]
    """The Open Inference Protocol, as its reference implementation has it; no batching."""

    def __init__(self) -> None:
        """Ready at once."""
        super().__init__(os.environ.get("NAME", "taste"))
        self._model = Model()
        self.ready = True

    def predict(self, payload: kserve.InferRequest, headers: Any = None, response_headers: Any = None) -> Any:
        """One request."""
        given = {each.name: each.as_numpy().astype(INPUTS[each.name]) for each in payload.inputs}
        vectors = self._model.run(given)
        output = kserve.InferOutput("vector", list(vectors.shape), "FP32")
        output.set_data_from_numpy(vectors, binary_data=False)
        return kserve.InferResponse(payload.id, self.name, [output])


if __name__ == "__main__":
    kserve.ModelServer(enable_grpc=False, workers=1).start([Encode()])
