"""The encoder behind mosec: ``MODEL=encoder.onnx python serving_mosec.py --port 8000``."""

from __future__ import annotations

from typing import Any

import orjson
from mosec import Server, Worker
from serving_model import BATCH, WAIT_MS, Model


class Encode(Worker):  # type: ignore[misc]
    """One history a request, JSON in and out, by orjson as ours."""

    def __init__(self) -> None:
        """In the worker's process."""
        super().__init__()
        self._model = Model()

    def deserialize(self, data: bytes) -> Any:
        """Of one request."""
        return orjson.loads(data)

    def serialize(self, data: Any) -> bytes:
        """Of one answer."""
        return orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY)

    def forward(self, data: list[dict[str, list[Any]]]) -> list[dict[str, Any]]:
        """A batch."""
        return [{"vector": vector} for vector in self._model.vectors(data)]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Encode, num=1, max_batch_size=BATCH, max_wait_time=WAIT_MS)
    server.run()
