"""The Pub/Sub API: user events from Kafka to the model gateway, changed twin lists back to Kafka."""

from __future__ import annotations

from tastetwin.errors import MissingExtra

try:
    import confluent_kafka  # noqa: F401
except ImportError as error:
    raise MissingExtra.of("confluent_kafka", "kafka") from error
