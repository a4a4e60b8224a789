"""The health card: every measure of the lists with its limit, if the gate has one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tastetwin.config import EvaluateConfig
from tastetwin.evaluation.measures import MAX_TOP_SHARE, MIN_AGREEMENT, MIN_OVERLAP_RATIO, MIN_STABILITY
from tastetwin.evaluation.records import Health


@dataclass(frozen=True)
class Measure:
    """One line of the card; texts are found by the key."""

    key: str
    value: float | None
    """None where it could not be measured."""
    is_share: bool
    side: Literal["at_most", "at_least", ""] = ""
    limit: float | None = None

    @property
    def good(self) -> bool | None:
        """Whether the value is within the limit; None without either."""
        if self.value is None or self.limit is None:
            return None
        return self.value <= self.limit if self.side == "at_most" else self.value >= self.limit


def measures(health: Health, rules: EvaluateConfig) -> Iterator[Measure]:
    """The card, the most important first."""
    yield Measure("served", health.served / max(1, health.users), True, "at_least", rules.min_served)
    yield Measure("never_shown", health.never_shown, True, "at_most", rules.max_never_shown)
    yield Measure("gini", health.gini, False, "at_most", rules.max_gini)
    yield Measure("top_share", health.top_share, True, "at_most", MAX_TOP_SHARE)
    yield Measure("skewness", health.skewness, False)
    yield Measure("reciprocity", health.reciprocity, True)
    yield Measure("agreement", health.agreement, False, "at_least", MIN_AGREEMENT)
    yield Measure("stability", health.stability, False, "at_least", MIN_STABILITY)
    strangers = sum(health.overlap_random)
    ratio = sum(health.overlap_twins) / strangers if strangers else None
    yield Measure("overlap", ratio, False, "at_least", MIN_OVERLAP_RATIO)
