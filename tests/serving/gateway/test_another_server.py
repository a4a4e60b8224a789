"""The gateway's pool against a model server that is not ours: KServe's, the protocol's reference implementation."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from tastetwin.analysis.encode import open_encoder
from tastetwin.config import GatewayConfig
from tastetwin.features.stage import read_histories
from tastetwin.generations import read_manifest
from tastetwin.model.batches import pad
from tastetwin.model.files import model_file
from tastetwin.serving.gateway.backends import BackendMetrics, Backends
from tests.serving.test_together import free_ports
from tests.world import Journey

ROOT: Final = Path(__file__).parent.parent.parent.parent
PYTHON: Final = ROOT / ".venv-serving-peers" / "bin" / "python"


@pytest.fixture(scope="module")
def kserve(journey: Journey) -> Iterator[str]:
    """The run's encoder behind KServe's server."""
    if not PYTHON.exists():
        pytest.skip("KServe is not installed here; it is with: make serving-peers-env")
    port = free_ports(1)
    bundle = read_manifest(journey.store, "train", journey.first.generation("train"))
    model = model_file(journey.store, bundle)
    script = ROOT / "benchmarks" / "peers" / "serving_kserve.py"
    process = subprocess.Popen(
        [PYTHON, script, "--http_port", str(port)],
        env={**os.environ, "MODEL": model, "NAME": bundle.generation},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()


def test_vectors_come_from_whoever_speaks_the_protocol(kserve: str, journey: Journey) -> None:
    """Triton or KServe may stand in for our backend (docs/explanation/serving.md)."""
    bundle = read_manifest(journey.store, "train", journey.first.generation("train"))
    features = read_manifest(journey.store, "features", journey.first.generation("features"))
    histories = read_histories(journey.store, features, 3)
    chosen = histories.select(np.arange(5))
    expected = open_encoder(journey.store, bundle, 2048).encode(chosen)
    settings = GatewayConfig(backends=[kserve], deadline_ms=5_000)

    async def ask() -> np.ndarray:
        async with Backends([kserve], settings, BackendMetrics(CollectorRegistry())) as backends:
            until = time.monotonic() + 60
            while not backends.ready(bundle.generation):
                assert time.monotonic() < until, "never ready"
                await backends.want([bundle.generation])
                await asyncio.sleep(0.1)
            inputs = pad(chosen, np.arange(5), 100).inputs()
            return await backends.infer(bundle.generation, inputs, asyncio.get_running_loop().time() + 5, "request-1")

    np.testing.assert_allclose(asyncio.run(ask()), expected, atol=1e-5)
