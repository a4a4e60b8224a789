"""Rules of the lists, from raw lines to everybody's list: follows, blocks, activity, doubled accounts, the cap."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest

from tastetwin.analysis.lookup import TwinLists
from tastetwin.analysis.pair import Pair
from tastetwin.config import ListsConfig
from tastetwin.generations import read_manifest
from tastetwin.pipeline import run_day
from tastetwin.runs import Run
from tastetwin.schema import TWINS
from tastetwin.tables import read_table
from tests.world import NEXT_DAY, QUICK, Journey, travel

pytestmark = pytest.mark.slow

K = 20
CONFIG = QUICK.model_copy(
    update={
        "analyze": QUICK.analyze.model_copy(update={"k": K}),
        "lists": ListsConfig(exposure_cap=1.5, inactive_days=45),
    }
)


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Journey:
    return travel(tmp_path_factory.mktemp("rules"))


@pytest.fixture(scope="module")
def people(journey: Journey) -> list[str]:
    """Four users who follow, unfollow, block and are copied, and who is closest to each: 4 + 4 ids."""
    asking = TwinLists(journey.store, journey.first).some_users(60)
    chosen: list[str] = []
    for user in asking:
        closest = TwinLists(journey.store, journey.first).twins(user, 1)[0].twin_idno
        if user not in chosen and closest not in chosen:
            chosen += [user, closest]
        if len(chosen) == 8:
            break
    return chosen[::2] + chosen[1::2]


@pytest.fixture(scope="module")
def second(journey: Journey, people: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The next day: what these four said of those four, and two accounts that copy the last of them, one long ago."""
    follower, fickle, blocker, copied, followed, unfollowed, blocked, _ = people
    source = tmp_path_factory.mktemp("next")
    lines = {
        "follows": [
            {"user_idno": follower, "other_idno": followed, "relation_regymdt": "2026-01-01"},
            {"user_idno": fickle, "other_idno": unfollowed, "relation_regymdt": "2026-01-01"},
            {"user_idno": fickle, "other_idno": unfollowed, "relation_regymdt": "2026-01-02", "relation_ended": "Y"},
            {"user_idno": follower, "other_idno": "nobody"},
            {"user_idno": follower},
        ],
        "blocks": [{"user_idno": blocker, "other_idno": blocked}],
        "likes": [
            {"user_idno": user, "like_contentsid": place, "like_regymdt": f"{day}T10:00:00"}
            for user, day in ((f"copy of {copied}", NEXT_DAY), (f"old copy of {copied}", NEXT_DAY - timedelta(days=90)))
            for place in places_of(journey, copied)
        ],
    }
    for kind, records in lines.items():
        (source / f"{kind}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return run_day(journey.store, str(source), NEXT_DAY, CONFIG)


def places_of(journey: Journey, user: str) -> list[str]:
    [row] = journey.tt.sql(f"SELECT * FROM user_favor WHERE user_idno = '{user}'").to_pylist()
    return [e["review_place_id"] for e in row["review_list"]] + [e["like_contentsid"] for e in row["like_list"]]


def lists(journey: Journey, run: Run) -> dict[str, list[str]]:
    analysis = read_manifest(journey.store, "analyze", run.generation("analyze"))
    rows = read_table(journey.store, analysis, "twins", TWINS).sort_by(
        [("user_idno", "ascending"), ("rank", "ascending")]
    )
    found: dict[str, list[str]] = {}
    for user, twin in zip(rows.column("user_idno").to_pylist(), rows.column("twin_idno").to_pylist(), strict=True):
        found.setdefault(user, []).append(twin)
    return found


def test_whom_one_follows_or_blocks_is_in_no_list_of_ones_own(journey: Journey, second: Run, people: list[str]) -> None:
    """A block works both ways, a follow one way, and one that is taken back not at all; every list is full."""
    follower, fickle, blocker, _, followed, unfollowed, blocked, _ = people
    found = lists(journey, second)
    assert followed not in found[follower] and follower in found[followed]
    assert blocked not in found[blocker] and blocker not in found[blocked]
    assert unfollowed in found[fickle]
    assert {len(found[user]) for user in people} == {K}
    assert followed not in [twin.twin_idno for twin in TwinLists(journey.store, second).far(follower, 100)]


def test_a_line_without_the_other_one_is_refused(second: Run) -> None:
    """And counted, like every other."""
    assert second.stages["mart"].counts["quarantined.other_missing"] == 1


def test_an_account_with_the_places_of_another_is_shown_to_nobody(
    journey: Journey, second: Run, people: list[str]
) -> None:
    """It has a list all the same, without the other; the run says whom it copies."""
    copied = people[3]
    found = lists(journey, second)
    [row] = hidden(journey, "same_person")
    first, copy = sorted([copied, f"copy of {copied}"])
    assert (row["user_idno"], row["lists"], row["instead_idno"]) == (copy, 0, first)
    assert len(found[copy]) == K and first not in found[copy]
    assert not any(copy in twins for twins in found.values())
    assert copy not in [twin.twin_idno for twin in TwinLists(journey.store, second).near(first, 1000)]


def test_an_account_that_is_hidden_for_itself_does_not_meet_the_shown_one_of_the_same_person(
    journey: Journey, second: Run, people: list[str]
) -> None:
    """Neither in the list of the run nor in a fresh search, which knows by ``instead_idno`` alone."""
    first, old = min(people[3], f"copy of {people[3]}"), f"old copy of {people[3]}"
    [row] = [row for row in hidden(journey, "inactive") if row["user_idno"] == old]
    assert row["instead_idno"] == first and first not in lists(journey, second)[old]
    assert first not in [twin.twin_idno for twin in TwinLists(journey.store, second).near(old, 1000)]


def hidden(journey: Journey, reason: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = journey.tt.sql(f"FROM exposure WHERE hidden = '{reason}'").to_pylist()
    return rows


def test_who_has_not_been_seen_for_long_is_shown_to_nobody(journey: Journey, second: Run) -> None:
    """Exactly those whose last favor is more than 45 days before the logical date."""
    favors = journey.tt.sql("FROM user_favor").to_pylist()
    limit = datetime.combine(NEXT_DAY - timedelta(days=45), datetime.min.time())
    gone = {
        row["user_idno"]
        for row in favors
        if all(
            when < limit
            for when in [e["review_visited_date"] for e in row["review_list"]]
            + [e["like_regymdt"] for e in row["like_list"]]
            if when is not None
        )
    }
    found = lists(journey, second)
    inactive = {row["user_idno"] for row in hidden(journey, "inactive")}
    assert inactive and inactive == gone & set(found)
    assert not inactive & {twin for twins in found.values() for twin in twins}
    assert second.stages["analyze"].counts["hidden.inactive"] == len(inactive)


def test_why_not_names_the_rule(journey: Journey, second: Run, people: list[str]) -> None:
    """The one condition that does not hold, of each kind."""
    follower, _, blocker, copied, followed, _, blocked, _ = people
    read = TwinLists(journey.store, second)
    copy = max(copied, f"copy of {copied}")
    inactive = hidden(journey, "inactive")[0]["user_idno"]

    def missed(user: str, other: str) -> set[str]:
        return {step.condition for step in Pair(read, user, other).why_not() if not step.holds}

    followed_or_blocked = {"not followed, not blocked", "in the list"}
    assert missed(follower, followed) == missed(blocker, blocked) == missed(blocked, blocker) == followed_or_blocked
    assert missed(follower, copy) >= {"may be shown"} and missed(follower, inactive) >= {"may be shown"}
    full = journey.tt.sql("SELECT max(lists) AS most FROM exposure").to_pylist()[0]["most"]
    assert full == read.analysis.facts["search"]["max_exposure"]
    found = lists(journey, second)
    ids, vectors, _ = read.space
    at_cap = journey.tt.sql(f"SELECT user_idno FROM exposure WHERE lists = {full}").column(0).to_pylist()
    misses = []
    for capped in at_cap:
        nearest = ids[np.argsort(-(vectors @ vectors[np.searchsorted(ids, capped)]))][1:]
        misses.append(missed(next(user for user in nearest if capped not in found[user]), capped))
    assert {"has room", "in the list"} in misses


def test_nobody_is_in_more_lists_than_the_cap_says(journey: Journey, second: Run) -> None:
    """And without the cap somebody was."""
    found, before = lists(journey, second), lists(journey, journey.first)
    most = [
        Counter(twin for twins in each.values() for twin in twins[:K]).most_common(1)[0][1] for each in (found, before)
    ]
    analysis = read_manifest(journey.store, "analyze", second.generation("analyze"))
    exposure = dict(zip(*journey.tt.sql("SELECT user_idno, lists FROM exposure").to_pydict().values(), strict=True))
    assert {user: lists for user, lists in exposure.items() if lists} == Counter(
        twin for twins in found.values() for twin in twins
    )
    assert most[0] <= analysis.facts["search"]["max_exposure"] < most[1]
