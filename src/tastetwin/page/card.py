"""The health card in the reader's language: which of our texts says what a measure of the gate is."""

from __future__ import annotations

import re
from typing import Final

from tastetwin.evaluation.measures import Measure

_KEYS: Final = {
    "eligible users with a list": "served",
    "users in nobody's list": "never_shown",
    "Gini of exposure": "gini",
    "skew of exposure": "skewness",
    "twins who list each other": "reciprocity",
    "nearness to the exact nearest": "agreement",
    "Jaccard@10 with the published lists": "stability",
    "places shared with twins, over strangers": "overlap",
    "entries that point at nobody": "out_of_range",
    "users listed as their own twin": "self",
    "lists with a repeated twin": "repeat",
    "vectors that are no numbers": "not_finite",
    "largest distance of a length from 1": "norm",
    "mean cosine of two users": "mean_cosine",
    "effective rank of the vectors": "rank",
    "refused lines by reason": "refused",
    "lines of reviews, beside other days": "lines_reviews",
    "lines of likes, beside other days": "lines_likes",
    "categories of the day's events": "day_categories",
    "regions of the day's events": "day_regions",
    "categories lost": "lost_categories",
    "regions lost": "lost_regions",
    "favored places per user": "favors",
    "categories of the same people's places": "same_categories",
    "regions of the same people's places": "same_regions",
    "cosine of a user's vectors of both runs": "moved",
    "change of the mean vector's length": "mean_shift",
    "effective rank, beside the published run's": "rank_ratio",
}
_TOP_SHARE: Final = re.compile(r"slots of the \d+ most shown users")


AREAS: Final = ("lists", "drift", "vectors", "halves")
"""In the order of the page."""


def text_of(measure: Measure) -> str | None:
    """The key of a measure's texts; None where only the gate's own English ones say what it is."""
    return "top_share" if _TOP_SHARE.fullmatch(measure.name) else _KEYS.get(measure.name)
