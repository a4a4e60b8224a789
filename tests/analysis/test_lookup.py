"""One user's twins, and why: the right rows, few of them read, and clear words where there is no answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tastetwin.analysis.evidence import K_ANONYMITY, Visitors
from tastetwin.analysis.lookup import AMONG, TwinLists, as_json_row
from tastetwin.analysis.parts import write_axes
from tastetwin.analysis.people import About
from tastetwin.analysis.standing import EXPOSURE
from tastetwin.analysis.stored import vectors_table
from tastetwin.analysis.visitors import read_visitors, write_visitors
from tastetwin.errors import StoreError, UsageError
from tastetwin.features.stage import PLACE_ROWS
from tastetwin.features.taste import HISTORY
from tastetwin.generations import read_manifest
from tastetwin.runs import Run
from tastetwin.schema import TWINS
from tastetwin.store import Store
from tastetwin.tables import bucket_name, bucket_of, put_table, read_files, read_table
from tests import handmade
from tests.world import Journey

pytestmark = pytest.mark.slow


def handmade_run(store: Store) -> Run:
    handmade.features(store)
    handmade.analysis(store)
    return handmade.run_of(store, {"features": "f", "analyze": "a"})


@pytest.fixture
def store(memory_store: Store) -> Store:
    return memory_store


@pytest.fixture
def lists(store: Store) -> TwinLists:
    return TwinLists(store, handmade_run(store))


def test_a_sensitive_category_is_never_named_nor_a_place_that_has_it(store: Store) -> None:
    """ann and bob share a, a noodle shop: with noodles sensitive, only the area is left to say."""
    run = handmade_run(store)
    lists = TwinLists(store, run)
    settings = {"min_favors": 2, "analyze": {"sensitive_categories": [100]}}
    lists.analysis = replace(lists.analysis, settings=settings)
    evidence = lists.twins("ann", 1)[0].evidence
    assert evidence.places == () and evidence.categories == () and [each.key for each in evidence.regions] == ["r1"]
    assert [each.key for each in TwinLists(store, run).twins("ann", 1)[0].evidence.places] == ["a"]


# -- twins ------------------------------------------------------------------------------------------------------------


def test_a_list_is_the_user_s_own_closest_first(lists: TwinLists) -> None:
    """bob and dot share a bucket, and each is in others' lists: a filter on the wrong column would show."""
    for user, wanted in handmade.LISTS.items():
        found = lists.twins(user, 10)
        assert [(twin.twin_idno, twin.score, twin.percentile) for twin in found] == wanted
        assert [twin.rank for twin in found] == list(range(1, len(wanted) + 1))


def test_k_is_how_many_are_shown(lists: TwinLists) -> None:
    """The closest ones."""
    assert [twin.twin_idno for twin in lists.twins("ann", 1)] == ["bob"]


def test_why_two_are_twins_is_said_by_what_they_share(lists: TwinLists) -> None:
    """ann and bob share a and b; nine people know b, so only a is named, by its name.

    ann and dot share c, which nine know: then it is cafés and r2. dot and gus share nothing.
    """
    first, second = (twin.evidence for twin in lists.twins("ann", 2))
    assert first.sentence == "Both favor Blue Kitchen."
    assert [(shared.key, shared.visitors) for shared in first.places] == [("a", 10)]
    assert second.places == () and second.sentence == "Both favor places of category 200, and area r2."
    (third,) = [twin for twin in lists.twins("dot", 2) if twin.twin_idno == "gus"]
    assert (third.evidence.places, third.evidence.categories, third.evidence.regions) == ((), (), ())


def test_only_the_buckets_that_can_hold_the_answer_are_read(store: Store) -> None:
    """At thirty million users the other files are what takes minutes: here they are not even Parquet any more."""
    run = handmade_run(store)
    ann, twins = bucket_of("ann", handmade.BUCKETS), ("bob", "dot")
    of_twins = {bucket_of(twin, handmade.BUCKETS) for twin in twins}
    assert ann not in of_twins and {ann} | of_twins != set(range(handmade.BUCKETS)), "the premise"
    needed = {"features/f/history": {ann} | of_twins, "analysis/a/twins": {ann}, "analysis/a/vectors": set()}
    for folder, buckets in needed.items():
        for number in set(range(handmade.BUCKETS)) - buckets:
            store.write_bytes(f"{folder}/{bucket_name(number)}", b"no Parquet")
    assert [twin.twin_idno for twin in TwinLists(store, run).twins("ann", 10)] == list(twins)


@pytest.mark.parametrize(
    ("user", "code", "says"),
    [
        ("nobody", "UNKNOWN-USER", f"not in the run of {handmade.DAY}"),
        ("cid", "TOO-FEW-FAVORS", "has 1 distinct places"),
        ("hal", "NO-TWINS", "nobody to be shown"),
    ],
)
def test_no_answer_is_explained_by_which_of_three_it_is(lists: TwinLists, user: str, code: str, says: str) -> None:
    """A mistyped id, a newcomer, and one whom nobody may be shown to need different help."""
    with pytest.raises(UsageError) as caught:
        lists.twins(user, 10)
    problem = caught.value.problem
    assert (problem.code, problem.place) == (code, f"user {user}") and says in problem.value


def test_the_fewest_favors_are_those_of_the_analysis(store: Store) -> None:
    """And not of today's settings: the run's lists were made by its own."""
    handmade.features(store)
    handmade.analysis(store)
    strict = handmade.generation(
        store, "analyze", "strict", facts={"buckets": handmade.BUCKETS}, settings={"min_favors": 3, **handmade.SAYS_ALL}
    )
    lists = TwinLists(store, handmade.run_of(store, {"features": "f", "analyze": strict.generation}))
    with pytest.raises(UsageError, match="at least 3 are needed") as caught:
        lists.twins("dot", 1)
    assert caught.value.problem.code == "TOO-FEW-FAVORS"


def test_a_twin_as_json_has_ids_and_the_sentence(lists: TwinLists) -> None:
    """Programs read ids; names are for people."""
    assert as_json_row(lists.twins("ann", 1)[0]) == {
        "rank": 1,
        "twin_idno": "bob",
        "score": 0.75,
        "percentile": 99.0,
        "taste": 0.5625,
        "home": 0.1875,
        "chance": 0.375,
        "evidence": "Both favor Blue Kitchen.",
        "shared_places": ["a"],
        "shared_categories": ["100"],
        "shared_regions": ["r1"],
    }


# -- near and far -----------------------------------------------------------------------------------------------------

NORTH, EAST = (1.0, 0.0), (0.0, 1.0)


def two_towns(store: Store, homes: dict[str, tuple[float, float]], tastes: dict[str, tuple[float, float]]) -> TwinLists:
    """The handmade users with vectors of two home axes and two of taste, the first two of which are written down."""
    handmade.features(store)
    rows = np.array([[*homes[user], *tastes[user]] for user in homes], np.float32) / np.sqrt(2, dtype=np.float32)
    vectors = vectors_table(pa.array(list(homes)), rows)
    handmade.analysis(store)
    keeps = write_axes(store, "analysis/b", np.eye(4, dtype=np.float32)[:2])
    made = read_manifest(store, "analyze", "a").tables
    facts, settings = {"buckets": handmade.BUCKETS}, {"min_favors": handmade.MIN_FAVORS, **handmade.SAYS_ALL}
    handmade.generation(
        store,
        "analyze",
        "b",
        {"vectors": handmade.bucketed(vectors)},
        keeps={**keeps, "visitors": made["visitors"], "exposure": made["exposure"]},
        facts=facts,
        settings=settings,
    )
    return TwinLists(store, handmade.run_of(store, {"features": "f", "analyze": "b"}))


def test_near_twins_are_of_one_s_area_and_far_twins_of_another_and_one_s_taste(store: Store) -> None:
    """ann's neighbour bob likes other things; dot, far away, likes what ann likes."""
    homes = {"ann": NORTH, "bob": NORTH, "dot": EAST, "gus": EAST, "hal": EAST}
    tastes = {"ann": NORTH, "bob": EAST, "dot": NORTH, "gus": EAST, "hal": EAST}
    lists = two_towns(store, homes, tastes)
    assert lists.has_home_part
    (close,), (distant,) = lists.near("ann", 1), lists.far("ann", 1)
    assert (close.twin_idno, close.taste) == ("bob", 0.0) and close.home == pytest.approx(0.5)
    assert (distant.twin_idno, distant.home) == ("dot", 0.0) and distant.taste == pytest.approx(0.5)
    assert close.evidence == lists.near("ann", 4)[0].evidence and close.evidence.sentence == "Both favor Blue Kitchen."
    assert [twin.rank for twin in lists.far("ann", 10)] == [1, 2, 3, 4]


def test_a_run_without_a_home_part_says_so_and_both_dials_do_nothing(lists: TwinLists) -> None:
    """As a run made before there were parts: it has no axes."""
    assert not lists.has_home_part
    assert lists.near("ann", 3) == lists.far("ann", 3) and len(lists.near("ann", 3)) == 3
    assert all(twin.home == 0 for twin in lists.near("ann", 3))


@pytest.mark.parametrize(("user", "code"), [("nobody", "UNKNOWN-USER"), ("cid", "TOO-FEW-FAVORS")])
def test_near_and_far_refuse_as_twins_does(lists: TwinLists, user: str, code: str) -> None:
    """The same question of the same run."""
    for search in (lists.near, lists.far):
        with pytest.raises(UsageError, match=code):
            search(user, 3)


def test_one_person_s_second_account_is_in_no_fresh_list(store: Store) -> None:
    """As in everybody's lists: neither one's own, nor anybody's second."""
    handmade.features(store)
    made = handmade.analysis(store)
    second = [(user, 0, "same_person", "ann", 0.0, 0.5, None) for user in ("bob", "gus", "hal")]
    exposure = pa.Table.from_pylist(
        [dict(zip(EXPOSURE.names, row, strict=True)) for row in [("ann", 3, None, None, 0.0, 0.5, None), *second]],
        schema=EXPOSURE,
    )
    tables = {**made.tables, "exposure": [put_table(store, "analysis/a/exposure.parquet", exposure)]}
    lists = TwinLists(store, handmade.run_of(store, {"features": "f", "analyze": "a"}))
    lists.analysis = dataclasses.replace(made, tables=tables)
    assert [twin.twin_idno for twin in lists.near("bob", 9)] == ["dot"]
    assert [twin.twin_idno for twin in lists.near("dot", 9)] == ["ann"]


def test_a_run_made_before_there_were_parts_is_read(store: Store) -> None:
    """Its lists lie without the columns; the rest of them is as good as ever."""
    handmade.features(store)
    made = handmade.analysis(store)
    for path in made.paths("twins"):
        put_table(store, path, read_files(store, [path], TWINS).drop_columns(["taste", "home", "chance"]))
    (bob,) = TwinLists(store, handmade.run_of(store, {"features": "f", "analyze": "a"})).twins("ann", 1)
    assert (bob.twin_idno, bob.score, bob.taste, bob.home) == ("bob", 0.75, None, None)
    assert as_json_row(bob)["taste"] is None


def test_a_run_made_before_niche_was_noted_says_so(store: Store) -> None:
    """Any five twins in place of the niche ones would be an answer that nobody could see through."""
    handmade.features(store)
    made = handmade.analysis(store)
    for path in made.paths("exposure"):
        put_table(store, path, read_files(store, [path], EXPOSURE).drop_columns(["mainstream"]))
    lists = TwinLists(store, handmade.run_of(store, {"features": "f", "analyze": "a"}))
    for ask in (lists.niche, lists.mainstream):
        with pytest.raises(StoreError, match="OLD-ANALYSIS"):
            ask("ann", 1)


# -- about a user -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("user", "about"), [("ann", About(3, "r1")), ("dot", About(2, "r2")), ("gus", About(2, ""))])
def test_a_user_in_one_line_is_places_and_home(lists: TwinLists, user: str, about: About) -> None:
    """Of gus's places no region is known."""
    assert lists.about(user) == about


@pytest.mark.parametrize(("user", "code"), [("nobody", "UNKNOWN-USER"), ("cid", "TOO-FEW-FAVORS")])
def test_about_refuses_as_twins_does(lists: TwinLists, user: str, code: str) -> None:
    """The same question of the same run."""
    with pytest.raises(UsageError, match=code):
        lists.about(user)


def test_the_home_is_the_one_that_is_delivered(lists: TwinLists) -> None:
    """``about`` and ``result`` speak of the same home; hal has a place in either region."""
    for user, home in handmade.HOMES.items():
        if user != "cid":
            assert lists.about(user).home_region == (home or "")


# -- some users -------------------------------------------------------------------------------------------------------


def town_of(store: Store, lengths: dict[str, int], served: set[str]) -> TwinLists:
    """Users with so many places, all in one bucket, and who of them has a twin."""
    rows: list[dict[str, Any]] = [
        {"user_idno": user, "places": [2] * n, "visits": [0.0] * n, "ratings": [0.0] * n, "days": [0] * n, "favors": n}
        for user, n in sorted(lengths.items())
    ]
    handmade.generation(
        store, "features", "f", {"history": [pa.Table.from_pylist(rows, HISTORY)]}, facts={"buckets": 1}
    )
    pairs = [
        {"user_idno": user, "rank": rank, "twin_idno": "x", "score": 0.5, "percentile": 50.0}
        for user in sorted(served)
        for rank in (1, 2)
    ]
    twins = {"twins": [pa.Table.from_pylist(pairs, TWINS)]}
    handmade.generation(
        store, "analyze", "a", twins, facts={"buckets": 1}, settings={"min_favors": 3, **handmade.SAYS_ALL}
    )
    return TwinLists(store, handmade.run_of(store, {"features": "f", "analyze": "a"}))


def test_some_users_have_twins_and_a_usual_history(store: Store) -> None:
    """They are shown as examples; short and endless histories are no good ones."""
    lengths = {"few": 9, "least": 10, "most": 100, "many": 101, "alone": 50}
    lists = town_of(store, lengths, {"few", "least", "most", "many"})
    assert lists.some_users(10) == ["least", "most"]


def test_some_users_are_the_same_every_time_and_no_more_than_asked_for(store: Store) -> None:
    """A report rendered again is the same report; ascending, none twice."""
    users = {f"u{number:03}": 20 for number in range(60)}
    lists = town_of(store, users, set(users))
    some = lists.some_users(5)
    assert len(set(some)) == 5 and some == sorted(some)
    assert TwinLists(store, lists.run).some_users(5) == some
    assert some != sorted(users)[:5], "not always the first ids"


def test_where_nobody_is_usual_anyone_with_twins_will_do(store: Store) -> None:
    """A small town: an example of three places is better than none."""
    assert town_of(store, {"a": 3, "b": 4, "c": 5}, {"a", "c"}).some_users(10) == ["a", "c"]


def test_where_nobody_is_served_there_are_no_examples(store: Store) -> None:
    """And no error: the report has worse to tell."""
    assert town_of(store, {"a": 20}, set()).some_users(3) == []


# -- visitors ---------------------------------------------------------------------------------------------------------


def test_visitors_come_back_as_they_were_written(store: Store) -> None:
    """Four lists in one file; a shift by one would name what may not be named."""
    written = Visitors(7, np.array([0, 0, 3, 4]), np.array([5]), np.array([1, 2]))
    write_visitors(store, "x/visitors.parquet", written)
    found = read_visitors(store, "x/visitors.parquet")
    assert found.n_users == 7
    assert [part.tolist() for part in (found.places, found.categories, found.regions)] == [[0, 0, 3, 4], [5], [1, 2]]


# -- a whole run ------------------------------------------------------------------------------------------------------


def test_evidence_names_only_places_that_many_favor(journey: Journey) -> None:
    """Naming a place that few favor would reveal a visit; counted here from the histories themselves."""
    features = read_manifest(journey.store, "features", journey.first.generation("features"))
    rows = read_table(journey.store, features, "place_row", PLACE_ROWS)
    known = dict(zip(rows.column("place_id").to_pylist(), rows.column("visitors").to_pylist(), strict=True))
    lists = TwinLists(journey.store, journey.first)
    named = {
        shared.key: shared.visitors
        for user in lists.some_users(20)
        for twin in lists.twins(user, 10)
        for shared in twin.evidence.places
    }
    assert named
    assert all(K_ANONYMITY <= count <= known[place] for place, count in named.items())


def test_who_has_too_few_favors_is_told_so(journey: Journey) -> None:
    """The one with the shortest history of the town, and how many there would have to be."""
    features = read_manifest(journey.store, "features", journey.first.generation("features"))
    history = pa.concat_tables([pq.read_table(journey.store.path(path)) for path in features.paths("history")])
    user, places = min(zip(history["user_idno"].to_pylist(), history["places"].to_pylist(), strict=True), key=size)
    with pytest.raises(UsageError, match="TOO-FEW-FAVORS") as caught:
        TwinLists(journey.store, journey.first).twins(user, 10)
    assert f"has {len(places)} distinct places" in caught.value.problem.value


def size(row: tuple[str, list[int]]) -> int:
    return len(row[1])


# -- niche and mainstream ---------------------------------------------------------------------------------------------


def test_niche_and_mainstream_are_the_two_ends_of_the_first_fifty(journey: Journey) -> None:
    """No closer twin of the wanted kind is passed over, the order stays that of the list, and the sides differ."""
    lists = TwinLists(journey.store, journey.first)
    rows = lists.exposure.select(["user_idno", "mainstream"]).to_pydict().values()
    how = dict(zip(*rows, strict=True))
    for user in lists.some_users(5):
        first = [twin.twin_idno for twin in lists.twins(user, 10 * AMONG)]
        niche, usual = ([twin.twin_idno for twin in ask(user, 10)] for ask in (lists.niche, lists.mainstream))
        assert len(niche) == len(usual) == 10 and set(niche) | set(usual) <= set(first)
        assert [each for each in first if each in niche] == niche
        assert max(how[each] for each in niche) <= min(how[each] for each in set(first) - set(niche))
        assert min(how[each] for each in usual) >= max(how[each] for each in set(first) - set(usual))


def test_a_short_list_has_both_ends_at_once(lists: TwinLists) -> None:
    """Of two twins, the first two niche ones are both."""
    assert [twin.twin_idno for twin in lists.niche("ann", 2)] == ["bob", "dot"]
    assert [twin.twin_idno for twin in lists.mainstream("ann", 5)] == ["bob", "dot"]


# -- for who asks often -----------------------------------------------------------------------------------------------


def test_answers_from_memory_are_those_from_files(journey: Journey) -> None:
    """A process that answers many questions reads everybody once; nothing else may change by that."""
    read, held = (TwinLists(journey.store, journey.first) for _ in range(2))
    histories = held.hold()
    users = [*histories.user_ids[:40].tolist(), "", "nobody", "~"]
    assert list(histories.user_ids) == sorted(histories.user_ids)

    def answers(lists: TwinLists) -> list[object]:
        return [_said(lists, user) for user in users]

    assert answers(read) == answers(held)


def _said(lists: TwinLists, user: str) -> object:
    try:
        return lists.twins(user, 5), lists.about(user), lists.far(user, 3)
    except UsageError as error:
        # Who has too few favors is not held: both are refused, and the page gives both the same answer.
        return error.problem.code in ("UNKNOWN-USER", "TOO-FEW-FAVORS")


def test_a_page_of_a_list_is_the_same_as_that_part_of_the_whole(journey: Journey) -> None:
    lists = TwinLists(journey.store, journey.first)
    user = lists.some_users(1)[0]
    for ask in (lists.twins, lists.near, lists.far):
        assert ask(user, 20, 15) == ask(user, 20)[15:]
    assert lists.twins(user, 20, 20) == []


def test_an_entry_is_the_row_of_the_list_and_a_stranger_has_none(journey: Journey) -> None:
    lists = TwinLists(journey.store, journey.first)
    user = lists.some_users(1)[0]
    twins = lists.twins(user, 100)
    assert [lists.entry(user, twin.twin_idno) for twin in twins[:5]] == twins[:5]
    absent = next(each for each in lists.space[0] if each not in {user, *(twin.twin_idno for twin in twins)})
    assert lists.entry(user, absent) is None


def test_parts_and_evidence_of_any_two_are_those_of_the_list(journey: Journey) -> None:
    lists = TwinLists(journey.store, journey.first)
    user = lists.some_users(1)[0]
    for twin in lists.twins(user, 5):
        assert lists.evidence(user, twin.twin_idno) == twin.evidence
        assert lists.parts(user, twin.twin_idno) == pytest.approx((twin.taste, twin.home), abs=1e-5)


def test_exposure_is_counted_from_the_lists_and_favors_are_the_user_s_own(journey: Journey) -> None:
    lists = TwinLists(journey.store, journey.first)
    user = lists.twins(lists.some_users(1)[0], 1)[0].twin_idno
    listed = journey.tt.twins()
    assert lists.in_lists(user) == (pa.compute.sum(pa.compute.equal(listed["twin_idno"], user)).as_py(), "")
    row = lists.favors(user)
    assert row["user_idno"] == user and len(row["review_list"]) + len(row["like_list"]) > 0


def test_nobody_is_told_of_somebody_unknown(lists: TwinLists) -> None:
    asked: list[Callable[[str], object]] = [
        lists.favors,
        lists.in_lists,
        lambda user: lists.entry("ann", user),
        lambda user: lists.entry(user, "ann"),
        lambda user: lists.evidence(user, "ann"),
    ]
    for ask in asked:
        with pytest.raises(UsageError, match="UNKNOWN-USER"):
            ask("nobody")
