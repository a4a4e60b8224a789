"""The cleansing rules of one day, as plain values that travel to the workers."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Final, Literal
from zoneinfo import ZoneInfo

from tastetwin.config import CollectConfig, MartConfig
from tastetwin.errors import UsageError
from tastetwin.privacy.opt_out import OptOuts

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(frozen=True)
class GateRules:
    """What the gate needs to know besides the bytes; all times judged against the logical date, never the clock."""

    max_line_bytes: int
    rating_min: float
    rating_max: float
    rating_outlier: Literal["keep", "clip", "null"]
    zone: str
    """IANA name of the zone of times that carry none."""
    earliest: int
    """First time allowed, in microseconds since 1970 UTC."""
    latest: int
    """Last time allowed, in microseconds since 1970 UTC."""
    forgotten: OptOuts = field(default_factory=OptOuts)
    """Users of whom nothing is taken in."""

    @classmethod
    def of(cls, mart: MartConfig, collect: CollectConfig, logical_date: date) -> GateRules:
        """The rules for the day ``logical_date``, which ends at midnight UTC.

        Raises:
            UsageError: CONFIG-VALUE for an unknown zone, a bad date, or a rating range that is empty.
        """
        try:
            ZoneInfo(collect.source_timezone)
        except (KeyError, OSError, ValueError) as error:  # an unknown zone is a KeyError, an odd name one of the others
            raise _bad("collect.source_timezone", collect.source_timezone, "an IANA zone, like Asia/Seoul") from error
        try:
            earliest = datetime.combine(date.fromisoformat(mart.earliest), datetime.min.time(), UTC)
        except ValueError as error:
            raise _bad("mart.earliest", mart.earliest, "a date, YYYY-MM-DD") from error
        if not mart.rating_min <= mart.rating_max:
            raise _bad("mart.rating_min", mart.rating_min, f"at most mart.rating_max, {mart.rating_max}")
        end = datetime.combine(logical_date, datetime.min.time(), UTC) + timedelta(days=1)
        return cls(
            max_line_bytes=mart.max_line_bytes,
            rating_min=mart.rating_min,
            rating_max=mart.rating_max,
            rating_outlier=mart.rating_outlier,
            zone=collect.source_timezone,
            earliest=(earliest - EPOCH) // MICROSECOND,
            latest=(end - EPOCH) // MICROSECOND + int(mart.future_hours * 3_600_000_000),
        )


def _bad(place: str, value: object, rule: str) -> UsageError:
    return UsageError("CONFIG-VALUE", place=place, value=value, rule=f"must be {rule}", fix="correct the configuration")
