"""The bundle of an earlier day, and whether today goes on from it or learns in full."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any, Final

import numpy as np

from tastetwin import __version__
from tastetwin.errors import StoreError
from tastetwin.features.histories import Vocabulary
from tastetwin.generations import Manifest
from tastetwin.model.kinds import PLACES_PER_AREA

GROWN: Final = 1.25
"""Users today over those of the last full training, from which on there is more to learn than was learnt then."""
HOW_NOT_WHAT: Final = frozenset({"refit_days", "checkpoint_steps", "device", "threads"})
"""Settings of section ``train`` that change nothing of what is learnt."""


@dataclass(frozen=True)
class FullTraining:
    """The training that a bundle's learned weights come from; among the facts of every bundle since."""

    on: str
    """Its logical date."""
    because: str
    """Why it was one, in words."""
    users: int
    """Eligible users of that day."""
    aside_limit: float
    """Users with a hash of at most this were not learnt from, see ``holdout.set_aside``; 0 = everybody was."""

    def days_before(self, day: str) -> int:
        """How many days before a logical date it was."""
        return (date.fromisoformat(day) - date.fromisoformat(self.on)).days


def full_training(bundle: Manifest) -> FullTraining:
    """The training that a bundle's learned weights come from.

    Raises:
        StoreError: OLD-BUNDLE when it was written before that was noted.
    """
    try:
        return FullTraining(**bundle.facts["full_training"])
    except (KeyError, TypeError) as error:
        raise StoreError(
            "OLD-BUNDLE",
            place=f"bundle {bundle.generation}",
            value="its manifest does not say whom it learnt from",
            rule="a bundle of this version",
            fix=f"tastetwin train --store ... --date {bundle.logical_date}, and the stages after it",
        ) from error


def why_in_full(
    past: Manifest | None, day: str, users: int, someone_to_judge_by: bool, settings: dict[str, Any]
) -> str | None:
    """Why today's bundle is to be trained in full; None where it goes on from the past one.

    ``past`` is the bundle that readers saw on the latest earlier day; ``users`` are today's eligible ones, and
    ``someone_to_judge_by`` says whether anybody of them would be held out.
    """
    if past is None or "full_training" not in past.facts:
        return "there is no earlier bundle to go on from"
    if past.code_version != __version__:
        return f"the earlier bundle is of version {past.code_version}"
    if _what(past.settings) != _what(settings):
        return "other settings than the earlier bundle's"
    before, every = full_training(past), settings["train"]["refit_days"]
    if before.days_before(day) >= every:
        return f"the last full training is {before.days_before(day)} days ago (train.refit_days is {every})"
    if before.aside_limit == 0 and someone_to_judge_by:
        return "in the last full training there was nobody to hold out"
    if users > GROWN * before.users:
        return f"{users:,} users, {before.users:,} in the last full training"
    return None


def goes_on(before: Vocabulary, today: Vocabulary) -> bool:
    """Whether today's places go on from those of an earlier bundle: the same rows and codes first, and no other kinds
    of place told of, each of which is a view."""
    codes = ((each.place_ids, each.category_codes, each.region_codes) for each in (before, today))
    begin_alike = all(np.array_equal(old, new[: len(old)]) for old, new in zip(*codes, strict=True))
    return begin_alike and _told(before) == _told(today)


def _told(vocabulary: Vocabulary) -> tuple[bool, bool, bool]:
    located = ~np.isnan(vocabulary.coordinates).any(axis=1)
    return len(vocabulary.categories) > 0, bool((vocabulary.regions >= 0).any()), int(located.sum()) >= PLACES_PER_AREA


def _what(settings: dict[str, Any]) -> dict[str, Any]:
    train = {key: value for key, value in settings["train"].items() if key not in HOW_NOT_WHAT}
    # Who opted out since is not learnt from again; weights that saw them serve until the next full training.
    return {**{key: value for key, value in settings.items() if key != "opted_out"}, "train": train}
