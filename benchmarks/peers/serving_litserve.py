"""The encoder behind LitServe: ``MODEL=encoder.onnx python serving_litserve.py --port 8000``."""

from __future__ import annotations

import sys
from typing import Any

import litserve
from serving_model import BATCH, WAIT_MS, Model


class Encode(litserve.LitAPI):  # type: ignore[misc]
    """One history a request, JSON in and out."""

    def setup(self, device: str) -> None:
        """In the worker's process."""
        self._model = Model()

    def batch(self, inputs: list[Any]) -> list[Any]:
        """Padded in ``predict``."""
        return inputs

    def predict(self, x: list[dict[str, list[Any]]]) -> Any:
        """A batch."""
        return self._model.vectors(x)

    def unbatch(self, output: Any) -> list[Any]:
        """A vector an answer."""
        return list(output)

    def encode_response(self, output: Any) -> dict[str, list[float]]:
        """Of one answer."""
        return {"vector": output.tolist()}


if __name__ == "__main__":
    api = Encode(max_batch_size=BATCH, batch_timeout=WAIT_MS / 1_000)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(port=int(sys.argv[-1]), log_level="error", generate_client_file=False)
