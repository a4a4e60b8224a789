"""What both protocols do the same: choose the version, check, compute, count."""

from __future__ import annotations

import time
from typing import Any, Final

from tastetwin import __version__
from tastetwin.config import BackendConfig
from tastetwin.errors import TasteTwinError
from tastetwin.serving.backend.batcher import Batcher
from tastetwin.serving.backend.metrics import Metrics
from tastetwin.serving.backend.model import INPUTS, OUTPUT, Floats
from tastetwin.serving.backend.refusals import bad_input
from tastetwin.serving.backend.repository import NAME, Repository
from tastetwin.serving.protocol import NAMES, InferRequest
from tastetwin.serving.readiness import Readiness

SERVER: Final = {
    "name": "tastetwin",
    "version": __version__,
    "extensions": ["binary_tensor_data"],
}
PLATFORM: Final = "onnxruntime_onnx"
TIMEOUT: Final = "timeout"
"""Parameter of a request: microseconds from its arrival to its deadline, as Triton has it."""
LONGEST: Final = 600.0
"""Seconds that a request may wait, at most."""


class Service:
    """The model behind its queue."""

    def __init__(
        self, repository: Repository, batcher: Batcher, metrics: Metrics, config: BackendConfig, readiness: Readiness
    ) -> None:
        self.repository, self.metrics, self.config, self.readiness = repository, metrics, config, readiness
        self._batcher = batcher

    async def infer(
        self, name: str, version: str, request: InferRequest, seconds: float | None = None
    ) -> tuple[str, Floats]:
        """The version that answered, and [n, dim] vectors.

        Args:
            name: of the model.
            version: empty = the newest that is loaded.
            request: its own deadline wins over ``seconds``.
            seconds: until the caller's deadline, where the transport knows one.

        Raises:
            UsageError: UNKNOWN-MODEL, BAD-INPUT, TOO-LARGE, BACKEND-BUSY, DEADLINE-PASSED.
            StoreError: BAD-VECTOR.
        """
        began = time.perf_counter()
        _check_outputs(request)
        with self.repository.using(name, version) as model:
            rows = model.check(request.inputs, self.config)
            vectors = await self._batcher.infer(model, rows, self._seconds(request, seconds))
            self.metrics.seconds.observe(time.perf_counter() - began)
            self.metrics.ok.inc()
            return model.version, vectors

    def failed(self, error: Exception) -> None:
        """Count an inference that was refused, by the code of its error."""
        code = error.problem.code if isinstance(error, TasteTwinError) else "INTERNAL"
        self.metrics.requests.labels(code).inc()

    def metadata(self, name: str, version: str) -> dict[str, Any]:
        """Of the model, as the protocol has it.

        Raises:
            UsageError: UNKNOWN-MODEL.
        """
        model = self.repository.get(name, version).model
        inputs = [{"name": each, "datatype": NAMES[dtype], "shape": [-1, -1]} for each, dtype in INPUTS.items()]
        return {
            "name": NAME,
            "versions": [version] if version else self.repository.versions(),
            "platform": PLATFORM,
            "inputs": inputs,
            "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, model.dim]}],
        }

    def _seconds(self, request: InferRequest, seconds: float | None) -> float:
        microseconds = request.parameters.get(TIMEOUT, 0)
        if type(microseconds) is not int or microseconds < 0:
            raise bad_input(f"parameter {TIMEOUT}", microseconds, "microseconds, an integer from 0 on")
        asked = microseconds / 1e6 if microseconds else seconds
        return min(LONGEST, self.config.deadline_ms / 1_000 if asked is None else asked)


def _check_outputs(request: InferRequest) -> None:
    if unknown := set(request.outputs) - {OUTPUT}:
        raise bad_input("outputs", ", ".join(sorted(unknown)), f"only {OUTPUT}")
