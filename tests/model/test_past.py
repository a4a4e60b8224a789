"""When today goes on from an earlier bundle, and when it learns in full."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from tastetwin import __version__
from tastetwin.config import Config
from tastetwin.errors import StoreError
from tastetwin.features.histories import Vocabulary
from tastetwin.generations import Manifest
from tastetwin.model.past import FullTraining, full_training, goes_on, why_in_full
from tests.model import towns

SETTINGS: dict[str, Any] = {
    "train": Config().train.model_dump(mode="json"),
    "holdout": {"seed": 1},
    "min_favors": 3,
}
FULL = FullTraining("2026-06-01", "there is no earlier bundle to go on from", 1_000, 0.1)


def bundle(facts: dict[str, Any] | None = None, settings: dict[str, Any] = SETTINGS) -> Manifest:
    told = {"full_training": asdict(FULL)} if facts is None else facts
    return Manifest("train", "g", "2026-06-03", {}, settings, {}, told, code_version=__version__)


def changed(**train: Any) -> dict[str, Any]:
    return {**SETTINGS, "train": {**SETTINGS["train"], **train}}


def why(
    past: Manifest | None, day: str = "2026-06-04", users: int = 1_000, judged: bool = True, settings: Any = SETTINGS
) -> str | None:
    return why_in_full(past, day, users, judged, settings)


def nobody_aside() -> Manifest:
    return bundle(facts={"full_training": {**asdict(FULL), "aside_limit": 0.0}})


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: why(None), "no earlier bundle"),
        (lambda: why(bundle(facts={})), "no earlier bundle"),
        (lambda: why(replace(bundle(), code_version="0.0.1")), "version 0.0.1"),
        (lambda: why(bundle(), settings=changed(layers=2)), "other settings"),
        (lambda: why(bundle(), settings=changed(seed=2)), "other settings"),
        (lambda: why(bundle(), settings={**SETTINGS, "min_favors": 4}), "other settings"),
        (lambda: why(bundle(), settings={**SETTINGS, "holdout": {"seed": 2}}), "other settings"),
        (lambda: why(bundle(), day="2026-06-08"), "7 days ago"),
        (lambda: why(bundle(), settings=changed(refit_days=3)), "3 days ago (train.refit_days is 3)"),
        (lambda: why(bundle(), settings=changed(refit_days=1)), "3 days ago (train.refit_days is 1)"),
        (lambda: why(nobody_aside()), "nobody to hold out"),
        (lambda: why(bundle(), users=1_251), "1,251 users, 1,000 in the last full training"),
    ],
)
def test_it_learns_in_full(ask: Callable[[], str | None], said: str) -> None:
    """And says why, for who wonders tomorrow why this day took long."""
    reason = ask()
    assert reason is not None and said in reason


@pytest.mark.parametrize(
    "ask",
    [
        lambda: why(bundle()),
        lambda: why(bundle(), day="2026-06-07"),
        lambda: why(bundle(), users=1_250),
        lambda: why(bundle(), users=10),
        lambda: why(nobody_aside(), judged=False),
        lambda: why(bundle(), settings=changed(threads=3, checkpoint_steps=99, device="cpu", refit_days=5)),
    ],
)
def test_it_goes_on(ask: Callable[[], str | None]) -> None:
    """Where nothing speaks against it; how fast or on what machine it was learnt does not."""
    assert ask() is None


def test_a_bundle_that_does_not_say_whom_it_learnt_from_is_refused() -> None:
    """It cannot be judged fairly; what to do is one command."""
    with pytest.raises(StoreError, match="OLD-BUNDLE"):
        full_training(bundle(facts={}))


def test_the_days_are_those_since_the_training_not_since_the_bundle() -> None:
    """Or a bundle carried on every day would never be trained again."""
    assert full_training(bundle()) == FULL
    assert FULL.days_before("2026-06-08") == 7


def test_todays_places_go_on_from_yesterdays() -> None:
    """New rows behind the old ones are what a day brings."""
    assert goes_on(towns.vocabulary(20), towns.vocabulary(20))
    assert goes_on(towns.vocabulary(20), towns.vocabulary(30, categories=5, regions=4))


@pytest.mark.parametrize(
    "today",
    [
        towns.vocabulary(10),
        towns.vocabulary(20, categories=2),
        towns.vocabulary(20, categories=0),
        towns.vocabulary(20, regions=0),
        replace(towns.vocabulary(20), place_ids=towns.vocabulary(20).place_ids[::-1].copy()),
        replace(towns.vocabulary(20), region_codes=np.array(["r1", "r0"], object)),
        replace(towns.vocabulary(20), coordinates=np.zeros((22, 2), np.float32)),
    ],
)
def test_other_places_or_other_kinds_do_not_go_on(today: Vocabulary) -> None:
    """A row would speak of another place, or a view would be missing or new."""
    assert not goes_on(towns.vocabulary(20), today)
