"""What the consumer tells of itself. No label has an id of a user or place."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tastetwin.serving.app.events.lanes import Lane

SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000)
SECONDS: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0)


class Metrics:
    """Counted by the pump; rendered with the rest of ``registry``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.messages = Counter(
            "tastetwin_events_messages", "Messages done with: taken or dead.", ["outcome"], registry=registry
        )
        self.messages.labels("dead")  # an alert waits for the first
        self.dead = Counter("tastetwin_events_dead", "Dead letters.", ["reason"], registry=registry)
        self.updates = Counter(
            "tastetwin_events_updates", "Twin lists sent: list, or none (a tombstone).", ["kind"], registry=registry
        )
        self.retries = Counter(
            "tastetwin_events_retries", "Times that the gateway was to be asked again.", ["code"], registry=registry
        )
        self.size = Histogram("tastetwin_events_batch_size", "Messages.", registry=registry, buckets=SIZES)
        self.seconds = Histogram(
            "tastetwin_events_batch_seconds", "From arrival until all is confirmed.", registry=registry, buckets=SECONDS
        )
        self._lag = Gauge(
            "tastetwin_events_lag_messages", "Messages in our partitions without their effects.", registry=registry
        )
        self._oldest = Gauge(
            "tastetwin_events_oldest_seconds", "Age of the oldest message under way; 0 = none is.", registry=registry
        )
        self._partitions = Gauge("tastetwin_events_partitions", "Partitions held.", registry=registry)

    def watch(self, lanes: Callable[[], Iterable[Lane]]) -> None:
        """From now on gauges look at these."""
        self._lag.set_function(lambda: sum(lane.lag for lane in lanes()))
        self._oldest.set_function(lambda: _age(lanes()))
        self._partitions.set_function(lambda: sum(1 for _ in lanes()))


def _age(lanes: Iterable[Lane]) -> float:
    times = [at for lane in lanes if (at := lane.oldest)]
    return max(time.time() - min(times) / 1_000, 0.0) if times else 0.0
