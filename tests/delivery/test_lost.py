"""What a landing left out of a date that was published: found row by row, whatever else came, and never a forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

import pytest

from tastetwin.config import DeliverConfig
from tastetwin.delivery.forget import forget
from tastetwin.delivery.lost import Lost, lost_rows, require_nothing_lost
from tastetwin.engine import Engine
from tastetwin.errors import GateRefused
from tastetwin.generations import MANIFEST, Manifest, read_manifest
from tastetwin.mart.stage import build_mart
from tastetwin.privacy.opt_out import deny
from tastetwin.runs import Run
from tests import handmade
from tests.conftest import Lines, Mart

FIRST, SECOND, THIRD = (f"2026-06-0{number}" for number in (1, 2, 3))
ANN = [
    {"user_idno": "ann", "review_id": "1", "review_rating": 5, "review_place_id": "p1"},
    {"user_idno": "ann", "review_id": "2", "review_rating": 4, "review_place_id": "p2"},
]
BOB = [{"user_idno": "bob", "review_id": "1", "review_rating": 3, "review_place_id": "p1"}]
LIKES = [{"user_idno": user, "like_regymdt": "2026-05-01T12:00:00", "like_contentsid": "p9"} for user in ("ann", "bob")]
BLOCKS = [{"user_idno": "ann", "other_idno": "bob"}]
WHOLE: Mapping[str, Lines] = {
    "reviews-a.jsonl": ANN, "reviews-b.jsonl": BOB, "likes.jsonl": LIKES, "blocks.jsonl": BLOCKS
}  # fmt: skip


def part(*files: str) -> dict[str, Lines]:
    """Some files of the day."""
    return {f"{name}.jsonl": WHOLE[f"{name}.jsonl"] for name in files}


class Days:
    """Runs that came as far as their marts, of dates that may be landed again."""

    def __init__(self, mart: Mart) -> None:
        self.mart = mart
        self.store = mart.store

    def run(self, day: str, files: Mapping[str, Lines], after: Run | None = None) -> Run:
        lake = self.mart.land(date.fromisoformat(day), files)
        past = None if after is None else self.made(after)
        made = build_mart(self.mart.engine, self.store, lake, past, self.mart.config)
        return handmade.run_of(self.store, {"mart": made.generation}, day=day)

    def made(self, run: Run) -> Manifest:
        return read_manifest(self.store, "mart", run.generation("mart"))

    def lost(self, shown: Run, run: Run) -> list[Lost]:
        return lost_rows(lambda: self.mart.engine, self.store, shown, run)


@pytest.fixture
def days(mart: Mart) -> Days:
    return Days(mart)


def test_a_file_that_is_not_there_any_more_is_told_with_how_much_it_was(days: Days) -> None:
    """Of each kind, so that a whole file of likes does not hide behind many reviews; blocks protect people."""
    shown = days.run(FIRST, WHOLE)
    assert days.lost(shown, days.run(FIRST, part("reviews-a", "likes"))) == [
        Lost("reviews", FIRST, 1, 3),
        Lost("blocks", FIRST, 1, 1),
    ]


def test_what_else_came_hides_nothing(days: Days) -> None:
    """The late file alone may hold more than the day had: a count would have grown."""
    shown = days.run(FIRST, part("reviews-b"))
    more = [{**row, "user_idno": user} for row in ANN for user in ("cid", "dot", "eve")]
    assert days.lost(shown, days.run(FIRST, {"reviews.jsonl": more})) == [Lost("reviews", FIRST, 1, 1)]


def test_the_same_rows_again_are_no_loss_and_need_no_engine(days: Days) -> None:
    """In other files, in another order, twice: retries and ordinary days must cost nothing."""

    def no_engine() -> Engine:
        raise AssertionError("asked for")

    shown = days.run(FIRST, WHOLE)
    again = days.run(FIRST, {"reviews-x.jsonl": [*BOB, *ANN, *BOB], "likes.jsonl": LIKES, "blocks.jsonl": BLOCKS})
    assert lost_rows(no_engine, days.store, shown, again) == []
    edited = days.run(SECOND, {"reviews.jsonl": [{**BOB[0], "review_rating": 1}]}, after=again)
    assert lost_rows(no_engine, days.store, shown, edited) == [], "though a file of the first date was written anew"


def test_more_lines_and_edits_are_no_loss(days: Days) -> None:
    """Late files beside the rest of the day, a corrected rating: what the runbook tells people to do."""
    before = days.run(FIRST, WHOLE)
    shown = days.run(SECOND, {"reviews.jsonl": [{**ANN[0], "review_rating": 1}]}, after=before)
    late = [{**ANN[0], "review_rating": 2}, {**BOB[0], "review_rating": 5}, {**BOB[0], "review_id": "late"}]
    assert days.lost(shown, days.run(SECOND, {"reviews.jsonl": late}, after=before)) == []


def test_who_was_forgotten_is_not_missed(days: Days) -> None:
    """Whether their rows are erased from the published run already or, with a run in progress, not yet."""
    shown = days.run(FIRST, WHOLE)
    deny(days.store, ["ann"])
    again = days.run(FIRST, WHOLE)
    assert days.lost(shown, again) == []
    forget(days.store, ["ann"])
    assert days.lost(shown, again) == []
    assert days.lost(shown, days.run(FIRST, part("likes", "blocks"))) == [Lost("reviews", FIRST, 1, 1)], "but bob is"


def test_the_next_day_does_not_carry_the_loss_past_the_gate(days: Days) -> None:
    """It goes on from the newest landing of the day before, whether that was published or not."""
    first = days.run(FIRST, WHOLE)
    news = [{**BOB[0], "review_id": number} for number in ("2", "3")]
    shown = days.run(SECOND, {"reviews.jsonl": news}, after=first)
    less = days.run(SECOND, {"reviews.jsonl": news[:1]}, after=first)
    third = days.run(THIRD, {"reviews.jsonl": [{**BOB[0], "review_id": "4"}]}, after=less)
    assert days.lost(shown, third) == [Lost("reviews", SECOND, 1, 2)]
    days.store.remove(f"{days.made(less).folder}/{MANIFEST}")
    assert days.lost(shown, third) == [Lost("reviews", SECOND, 1, 2)], "nor where the date itself was pruned"


def test_a_loss_is_of_the_date_that_had_brought_the_rows(days: Days) -> None:
    """An earlier date that was landed again comes to readers with a later one; the message names the one to mend."""
    first = days.run(FIRST, WHOLE)
    shown = days.run(SECOND, {"reviews.jsonl": [{**BOB[0], "review_id": "2"}]}, after=first)
    less = days.run(FIRST, part("reviews-a", "likes", "blocks"))
    again = days.run(SECOND, {"reviews.jsonl": [{**BOB[0], "review_id": "2"}]}, after=less)
    assert days.lost(shown, again) == [Lost("reviews", FIRST, 1, 3)]
    assert days.lost(first, again) == [Lost("reviews", FIRST, 1, 3)], "as of the date that readers have"


@pytest.mark.parametrize(("most", "waits"), [(0.0, True), (0.24, True), (0.25, False), (1.0, False)])
def test_the_threshold_is_the_share_that_may_go_unasked(most: float, waits: bool) -> None:
    """At it a run passes, above it not; the message says what is gone, what to run again, and how to accept it."""
    run = Run(f"{FIRST}.2", FIRST, "delivered", "now")
    lost = [Lost("reviews", FIRST, 1_000, 4_000)]
    require_nothing_lost(run, [], DeliverConfig(max_lost=most))
    if not waits:
        require_nothing_lost(run, lost, DeliverConfig(max_lost=most))
        return
    with pytest.raises(GateRefused) as caught:
        require_nothing_lost(run, lost, DeliverConfig(max_lost=most))
    said = caught.value.problem
    assert said.code == "EVENTS-LOST" and f"1,000 of 4,000 reviews of {FIRST}" in said.value
    assert f"run {FIRST} again" in said.fix and f"tastetwin promote {FIRST}.2" in said.fix


def test_a_long_list_of_losses_is_cut_and_says_so() -> None:
    """A source that was moved may have lost every date there was."""
    lost = [Lost("reviews", f"2026-05-{day:02}", 1, 1) for day in range(10, 17)]
    with pytest.raises(GateRefused) as caught:
        require_nothing_lost(Run(f"{FIRST}.2", FIRST, "delivered", "now"), lost, DeliverConfig(max_lost=0))
    said = caught.value.problem
    assert said.value.endswith("of 2026-05-14, ...") and "2026-05-14 again" in said.fix
    with pytest.raises(GateRefused) as caught:
        require_nothing_lost(Run(f"{FIRST}.2", FIRST, "delivered", "now"), lost[:5], DeliverConfig(max_lost=0))
    assert caught.value.problem.value.endswith("of 2026-05-14")
