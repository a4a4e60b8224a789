"""What a gateway tells of its own state, as it is when it is asked."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tastetwin.serving.gateway.gateway import Gateway


class State(Collector):
    """The counts of a gateway, once it is entered."""

    def __init__(self, gateway: Gateway, registry: CollectorRegistry) -> None:
        self._gateway = gateway
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """At every look."""
        service = self._gateway.service
        stale, unread, refused = service.stale_answers, service.intake.unread, service.intake.refused
        yield CounterMetricFamily("tastetwin_gateway_stale_answers", "Lists that did not know all favors", value=stale)
        yield GaugeMetricFamily(
            "tastetwin_gateway_unread_people", "With favors that no model could be reached for", value=unread
        )
        yield GaugeMetricFamily(
            "tastetwin_gateway_refused_people", "With favors that the model of a version refuses", value=refused
        )
        yield GaugeMetricFamily(
            "tastetwin_gateway_opt_outs_age_seconds", "Since opt-outs were read", value=service.denied.age()
        )
        people = GaugeMetricFamily("tastetwin_gateway_fresh_people", "With favors since the run", labels=["version"])
        for version in service.versions.values():
            people.add_metric([version.name], version.people.n_fresh)
        yield people
