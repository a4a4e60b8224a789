"""Drift: what changed is seen and named, and what chance does to a few events is not taken for a change."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tastetwin.config import EvaluateConfig
from tastetwin.evaluation.belonging import Data
from tastetwin.evaluation.drift import Intake, Vectors, categories, chance_psi, drift, psi, regions
from tastetwin.evaluation.gate import judge
from tastetwin.evaluation.intake import read_intake, unreadable
from tastetwin.evaluation.measures import Measure
from tastetwin.features.histories import FIRST_PLACE_ROW
from tastetwin.features.stage import build_features
from tests.conftest import Mart
from tests.evaluation.planted import CONFIG, evaluated, model_run, unit, world

FATE: Final = {"accepted": 980, "not_an_object": 20}
MIXES: Final = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 10_000), min_size=1)


def test_the_index_of_a_known_shift() -> None:
    """From halves to three quarters and one: .25 ln 1.5 + .25 ln 2, by hand."""
    before, today = {"a": 10**6, "b": 10**6}, {"a": 3 * 10**6, "b": 10**6}
    assert psi(before, today) == pytest.approx(0.25 * np.log(1.5) + 0.25 * np.log(2), abs=1e-5)


@given(MIXES, MIXES)
def test_the_index_knows_no_direction_and_is_never_below_nothing(one: dict[str, int], other: dict[str, int]) -> None:
    """And of a mix with itself it is nothing."""
    assert psi(one, other) == pytest.approx(psi(other, one))
    assert psi(one, other) >= 0 and psi(one, one) == 0


@pytest.mark.parametrize(("kinds", "n", "m"), [(2, 100, 1_000), (10, 300, 1_000), (40, 2_000, 40_000)])
def test_chance_exceeds_its_bound_about_one_time_in_a_thousand(kinds: int, n: int, m: int) -> None:
    """The threshold rests on it; a bound twice as high would hide changes, one half as high would cry wolf."""
    draw, shares = np.random.default_rng(0), np.full(kinds, 1 / kinds)
    found = [
        (psi(before, today), chance_psi(before, today))
        for before, today in (
            tuple(Counter({str(k): int(c) for k, c in enumerate(draw.multinomial(size, shares))}) for size in (m, n))
            for _ in range(2_000)
        )
    ]
    assert 0 <= sum(value > bound for value, bound in found) <= 10
    assert sum(value > bound / 2 for value, bound in found) >= 10


def data(day: str = "2026-06-01") -> Data:
    return Data(day, day, world().histories, world().vocabulary)


def vectors(seed: int = 0) -> Vectors:
    return Vectors(
        world().taste, unit(world().taste + 0.02 * np.random.default_rng(seed).standard_normal((500, 8))), True
    )


def an_intake(events: int = 2_000, seed: int = 0, **other: Any) -> Intake:
    """A day like those before: events at places as people favor them."""
    rows = np.random.default_rng(seed).choice(world().histories.places, events)
    usual = {"reviews": [1_000, 900, 1_100], "likes": [500, 520, 480]}
    made: dict[str, Any] = {"lines": {"reviews": 1_020, "likes": 490}, "usual": usual, "fate": FATE, "rows": rows}
    return Intake(**{**made, **other})


def moved(day: Intake | None = None, today: Data | None = None, pair: Vectors | None = None) -> list[Measure]:
    config = EvaluateConfig()
    return drift(day or an_intake(), FATE, data(), today or data("2026-06-02"), pair or vectors(), config)


def failed(measures: list[Measure]) -> dict[str, str]:
    return {each.limit.code: each.limit.severity for each in measures if each.limit and not each.passed}


def test_ordinary_days_raise_no_finding() -> None:
    """A gate that warns every day is read by nobody: none of 20 days of three sizes."""
    for events in (50, 500, 5_000):
        for seed in range(20):
            assert failed(moved(an_intake(events, seed), pair=vectors(seed))) == {}, (events, seed)


def test_every_figure_is_said_of_an_ordinary_day() -> None:
    """The premise: the test above does not pass because nothing is measured."""
    assert len(moved()) == 13
    assert {each.area for each in moved()} == {"drift"}


def without(kind: str, mix: Any) -> Intake:
    rows = an_intake(4_000).rows
    named = np.array([kind in mix(np.array([row], np.int32), world().vocabulary) for row in rows])
    return replace(an_intake(), rows=rows[~named])


def test_a_day_that_lost_a_category_or_a_region_is_seen_and_the_lost_one_named() -> None:
    """An eighth of the events is gone, or a quarter; the rest looks as ever."""
    for mix in (categories, regions):
        for kind in mix(world().histories.places, world().vocabulary):
            found = moved(without(kind, mix))
            assert failed(found)["DRIFT-LOST"] == "warn"
            (lost,) = [each for each in found if each.limit and each.limit.code == "DRIFT-LOST" and not each.passed]
            assert lost.limit is not None and lost.limit.complaint.endswith(f"today: {kind}")


@pytest.mark.parametrize("lines", [{"reviews": 2_000, "likes": 1_000}, {"reviews": 500, "likes": 250}, {}])
def test_a_doubled_a_halved_and_an_empty_day_are_seen(lines: dict[str, int]) -> None:
    """By the lines read: what is there twice is merged away and leaves no other trace."""
    assert failed(moved(an_intake(lines=lines))) == {"DRIFT-LINES": "warn"}


def test_of_a_day_without_events_one_thing_is_said_once() -> None:
    """A holiday, or files that did not come: the same news of reviews and again of likes would be noise."""
    usual = {"reviews": [1_000, 900, 1_100], "likes": [520, 500, 20]}
    found = [each for each in moved(an_intake(0, usual=usual, lines={"reviews": 0})) if each.limit and not each.passed]
    said = "0 lines of reviews and likes, 1,400 on other days"
    assert [(each.limit.code, each.limit.complaint) for each in found if each.limit] == [("DRIFT-LINES", said)]
    assert not failed(moved(an_intake(0, usual={"reviews": [25, 24], "likes": [0, 0]}, lines={})))


def test_on_the_second_day_no_number_of_lines_is_unusual() -> None:
    """All that came before is one load of the whole past."""
    assert failed(moved(an_intake(usual={}, lines={"reviews": 7}))) == {}


def test_more_refused_lines_of_another_kind_are_seen() -> None:
    """The share that stops a day outright is larger."""
    assert failed(moved(an_intake(fate={"accepted": 850, "bad_time": 150}))) == {"DRIFT-REFUSED": "warn"}


def test_events_at_places_nobody_described_are_seen() -> None:
    """A feed of places that did not come: the events are there and say nothing."""
    assert failed(moved(an_intake(rows=np.full(2_000, -1, np.int32)))) == {"DRIFT-LOST": "warn", "DRIFT-MIX": "warn"}


def test_the_same_people_s_places_moving_elsewhere_stops_the_run() -> None:
    """Overnight nobody's past moves: it is the codes that are wrong, and with them everybody's home area."""
    skewed = replace(
        world().vocabulary, regions=np.where(world().vocabulary.regions == 0, 1, world().vocabulary.regions)
    )
    found = moved(today=replace(data("2026-06-02"), vocabulary=skewed))
    assert failed(found)["DATA-SHIFTED"] == "refuse"
    verdict = judge(evaluated(model_run(seed=9)), evaluated(model_run(seed=0)), CONFIG, drift=found)
    assert not verdict.publish and verdict.findings[0].code == "DATA-SHIFTED"


def test_a_warning_does_not_stop_the_run() -> None:
    """A holiday, a campaign, a new city: a person looks, readers get today's lists."""
    found = moved(an_intake(lines={"reviews": 3_000, "likes": 500}))
    verdict = judge(evaluated(model_run(seed=9)), evaluated(model_run(seed=0)), CONFIG, drift=found)
    assert verdict.publish and [each.code for each in verdict.findings] == ["DRIFT-LINES"]


def test_new_people_alone_do_not_move_the_old_ones() -> None:
    """A second city in one day is growth; the same people are still where they were."""
    few = world().histories.select(np.arange(100))
    found = drift(an_intake(), FATE, replace(data(), histories=few), data("2026-06-02"), vectors(), EvaluateConfig())
    assert "DATA-SHIFTED" not in failed(found)


def test_histories_that_double_are_seen() -> None:
    """One id for two people, say."""
    histories = world().histories
    half = histories.filter(np.arange(len(histories.places)) % 2 == 0)
    found = drift(an_intake(), FATE, replace(data(), histories=half), data("2026-06-02"), vectors(), EvaluateConfig())
    assert failed(found)["DRIFT-FAVORS"] == "warn"


def spoilt_vectors() -> dict[str, Vectors]:
    taste, draw = world().taste, np.random.default_rng(0)
    turned = taste @ np.linalg.qr(draw.standard_normal((8, 8)))[0].astype(np.float32)
    flat = taste.copy()
    flat[:, 3:] = 0
    return {
        "turned": Vectors(taste, turned, True),
        "drawn together": Vectors(taste, unit(taste + 0.3), True),
        "flattened": Vectors(taste, unit(flat), True),
    }


@pytest.mark.parametrize("name", ["turned", "drawn together", "flattened"])
def test_vectors_that_moved_are_seen(name: str) -> None:
    """Whoever keeps yesterday's vectors and compares today's with them must know."""
    assert failed(moved(pair=spoilt_vectors()[name])) == {"DRIFT-VECTORS": "warn"}


def test_vectors_of_two_spaces_are_not_compared() -> None:
    """A full training without a turn: a cosine between the two says nothing, their spread still does."""
    assert failed(moved(pair=replace(spoilt_vectors()["turned"], comparable=False))) == {}


def test_vectors_that_are_no_numbers_are_left_to_the_gate() -> None:
    """It has a finding for them; the figures are of the others."""
    pair = vectors()
    pair.today[3] = np.nan
    assert failed(moved(pair=pair)) == {} and all(np.isfinite(each.value) for each in moved(pair=pair))


def test_a_place_counts_for_each_of_its_categories_and_unknown_ones_are_counted_too() -> None:
    """Nothing falls under the table: the unknown are a kind of their own."""
    rows = np.array([FIRST_PLACE_ROW, FIRST_PLACE_ROW, -1], np.int32)
    assert sum(categories(rows, world().vocabulary).values()) == sum(regions(rows, world().vocabulary).values()) == 3
    assert categories(rows, world().vocabulary)["unknown"] == 1


def review(user: str, place: str, at: str) -> dict[str, Any]:
    return {"user_idno": user, "review_id": f"{user}{place}{at}", "review_place_id": place, "review_visited_date": at}


def test_a_day_s_intake_is_that_day_s_alone(mart: Mart) -> None:
    """Lines as read, also those that bring nothing new; places of new rows; the days before without the first."""
    place = {"place_id": "p", "place_category_code_list": [7], "place_dongcode": "r"}
    past = [review(str(user), "p", "2026-05-01") for user in range(5)]
    mart.day(1, {"reviews.jsonl": past, "places.jsonl": [place]})
    mart.day(2, {"reviews.jsonl": [review("1", "p", "2026-06-02")]})
    mart.day(3, {"reviews.jsonl": [*past, review("2", "p", "2026-06-03")]})
    today = mart.day(4, {"reviews.jsonl": [past[0], review("3", "p", "2026-06-04"), review("3", "q", "2026-06-04")]})
    features = build_features(mart.engine, mart.store, today, None, mart.config)
    intake = read_intake(mart.store, features)
    assert intake.lines["reviews"] == 3 and intake.usual["reviews"] == [6, 1]
    assert intake.fate == {"accepted": 3}
    assert len(intake.rows) == 2


def test_a_field_written_in_a_form_of_the_source_s_own_is_named(mart: Mart) -> None:
    """Nobody looks for what was lost without a word: names for codes, dates of another order, on every line.

    What the source leaves empty, and a single slip, are no such thing.
    """
    places = [
        {"place_id": f"p{at}", "place_category_code_list": ["Food>Noodles"], "place_lat": "" if at else "north"}
        for at in range(30)
    ]
    reviews = [review("u", f"p{at}", f"{at + 1}/6/2026" if at < 21 else "2026-06-01") for at in range(40)]
    today = mart.day(1, {"reviews.jsonl": reviews, "places.jsonl": places})
    found = {each.sentence.split()[0]: (each.code, each.severity, each.measured) for each in unreadable(today)}
    assert found == {
        "place_category_code_list": ("VALUES-UNREADABLE", "warn", 1.0),
        "review_visited_date": ("VALUES-UNREADABLE", "warn", 21 / 40),
    }
