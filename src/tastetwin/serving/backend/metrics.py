"""What the backend counts; labels hold outcomes and versions, never anything of a user."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
BATCH: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """In a registry of their own: several backends may live in one process, as in tests."""

    def __init__(self) -> None:
        self._registry = of = CollectorRegistry()
        self.requests = Counter(
            "tastetwin_backend_requests", "Inference requests by outcome.", ["outcome"], registry=of
        )
        self.seconds = Histogram("tastetwin_backend_seconds", "Of an answered request.", buckets=SECONDS, registry=of)
        self.queue_rows = Gauge("tastetwin_backend_queue_rows", "Histories that wait.", registry=of)
        self.models = Gauge("tastetwin_backend_models", "Loaded versions.", registry=of)
        self._batch = Histogram(
            "tastetwin_backend_batch_rows", "Histories of a call of the model.", buckets=BATCH, registry=of
        )
        self._favors = Counter("tastetwin_backend_favors", "Favors computed, without padding.", registry=of)
        self._padding = Counter("tastetwin_backend_padding", "Padding computed, in favors.", registry=of)
        self.ok = self.requests.labels("OK")

    def called(self, lengths: Sequence[int]) -> None:
        """Note a call of the model with rows of these lengths."""
        favors = sum(lengths)
        self._batch.observe(len(lengths))
        self._favors.inc(favors)
        self._padding.inc(len(lengths) * max(1, *lengths) - favors)

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self._registry)
