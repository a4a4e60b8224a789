"""What the gateway answers: the run's lists, what is new at once, and nobody who does not want to be shown."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tastetwin.client.schemas import (
    FavorEvent,
    FavorsItem,
    History,
    PairRequest,
    TwinsBatchRequest,
    TwinsRequest,
    Wanted,
)
from tastetwin.errors import StoreError, UsageError
from tastetwin.features.stage import read_place_rows
from tastetwin.features.taste import taste_histories
from tastetwin.features.user_favor import USER_FAVOR
from tastetwin.generations import read_manifest
from tastetwin.privacy.opt_out import opt_out
from tastetwin.runs import published_run
from tastetwin.serving.gateway.encode import Call
from tests.serving.gateway.world import World, names

Json = dict[str, Any]


def some_user(world: World, at: int = 0) -> str:
    """Users with a full list."""
    pack = world.version.people.pack
    served = [each for each in range(len(pack)) if len(pack.stored_list(each).people) == pack.manifest.k]
    return pack.people.name(served[at])


def a_newcomer_s_twin(world: World) -> tuple[list[FavorEvent], str]:
    """Events that give a newcomer the places of somebody with many of them, and who that is."""
    people = world.version.people
    model = max(range(len(people.pack)), key=lambda at: len(people.rows(at)) if at in people.pack.members else 0)
    favors = people.pack.favors([model])[0]
    reviews = [
        FavorEvent(
            user="newcomer", review={"review_id": f"n{at}", "review_place_id": each.place_id, "review_rating": 5}
        )
        for at, each in enumerate(favors.reviews)
    ]
    likes = [FavorEvent(user="newcomer", like={"like_contentsid": each.place_id}) for each in favors.likes]
    return [*reviews, *likes], people.name(model)


def add(world: World, events: list[FavorEvent], k: int = 0) -> list[Json]:
    wanted = Wanted(k=k, evidence=False) if k else None
    return world.run(world.service.add_favors(world.version, events, wanted, False, world.call()))


def twins(world: World, user: str, **options: Any) -> Json:
    request = TwinsRequest(user=user, **options)
    return world.run(world.service.twins(world.version, request, True, world.call()))


def test_a_known_user_gets_the_published_list_without_any_model(world: World) -> None:
    """Most questions are of this kind: they must not depend on a backend."""
    world.models.out = True
    user = some_user(world)
    found = twins(world, user, k=10)
    pack = world.version.people.pack
    expected = [pack.people.name(at) for at in pack.stored_list(pack.people.position(user)).people[:10].tolist()]
    assert names(found["twins"]) == expected
    assert (found["source"], found["stale"]) == ("published", False)
    assert [twin["rank"] for twin in found["twins"]] == list(range(1, 11))


def test_a_page_goes_on_where_the_one_before_ended(world: World) -> None:
    """Together, pages are the list."""
    user = some_user(world)
    whole = names(twins(world, user, k=30)["twins"])
    pages = [twins(world, user, k=10, skip=skip)["twins"] for skip in (0, 10, 20)]
    assert [name for page in pages for name in names(page)] == whole
    assert [twin["rank"] for twin in pages[2]] == list(range(21, 31))


def test_who_is_left_out_leaves_no_gap(world: World) -> None:
    """Dismissed people are gone, others move up, and the list is as long as before even when all of it is dismissed."""
    user = some_user(world)
    whole = names(twins(world, user, k=100)["twins"])
    found = twins(world, user, k=10, exclude=whole)["twins"]
    assert len(found) == 10
    assert not set(names(found)) & set(whole)
    assert names(twins(world, user, k=10, exclude=whole[:3])["twins"]) == whole[3:13]


def test_scores_are_for_those_who_may_see_them(world: World) -> None:
    """An exact score gives away visits (docs/explanation/privacy.md)."""
    request = TwinsRequest(user=some_user(world))
    found = world.run(world.service.twins(world.version, request, False, world.call()))
    assert all(set(twin) <= {"rank", "user", "evidence"} for twin in found["twins"])


def test_a_history_sent_along_gives_the_list_of_whoever_has_it(world: World) -> None:
    """Favors to tensors, by the version's own vocabulary, as the daily features make them."""
    people = world.version.people
    user = some_user(world)
    position = people.find(user)
    favors = people.pack.favors([position])[0]
    request = TwinsRequest(
        k=20,
        reviews=[
            {
                "review_id": each.review_id,
                "review_place_id": each.place_id,
                "review_rating": each.rating,
                "review_visited_date": None if each.at is None else each.at / 1e6,
            }
            for each in favors.reviews
        ],
        likes=[
            {"like_contentsid": each.place_id, "like_regymdt": None if each.at is None else each.at / 1e6}
            for each in favors.likes
        ],
        exclude=[user],
    )
    found = world.run(world.service.twins(world.version, request, True, world.call()))
    assert found["source"] == "request"
    stored = people.pack.stored_list(position)
    expected = {people.name(at) for at in stored.people[:20].tolist()}
    # The run's list passes over whoever is in too many lists; the search in between does not.
    assert len(expected & set(names(found["twins"]))) >= 15
    assert [twin["score"] for twin in found["twins"]] == sorted((t["score"] for t in found["twins"]), reverse=True)


def test_vectors_are_those_of_the_run(world: World) -> None:
    """Embedding what the run knows of a user gives the run's vector."""
    people = world.version.people
    position = people.find(some_user(world))
    favors = people.pack.favors([position])[0]
    item = History(
        reviews=[
            {"review_id": r.review_id, "review_place_id": r.place_id, "review_rating": r.rating,
             "review_visited_date": None if r.at is None else r.at / 1e6}
            for r in favors.reviews
        ],
        likes=[
            {"like_contentsid": each.place_id, "like_displayid": each.display_id,
             "like_regymdt": None if each.at is None else each.at / 1e6}
            for each in favors.likes
        ],
    )  # fmt: skip
    bad = History(reviews=[{"review_place_id": ["no id"]}])
    strange = History(likes=[{"like_contentsid": "nobody has been there"}])
    items = world.run(world.service.embed(world.version, [bad, item, strange], world.call()))
    vector = people.vector(position)
    assert vector is not None
    np.testing.assert_allclose(items[1]["vector"], vector, atol=1e-5)
    assert items[0]["error"]["code"] == "FAVOR-REFUSED"
    assert items[2]["error"]["code"] == "NO-KNOWN-PLACE"


def test_the_same_history_is_encoded_once(world: World) -> None:
    """Same input, same version, same output."""
    item = History(likes=[{"like_contentsid": place} for place in places(world, 4)])
    first = world.run(world.service.embed(world.version, [item], world.call()))
    again = world.run(world.service.embed(world.version, [item, item], world.call()))
    assert [each["vector"].tolist() for each in again] == [first[0]["vector"].tolist()] * 2
    assert sum(world.models.rows) == 1


def places(world: World, n: int) -> list[str]:
    vocabulary = world.version.people.pack.vocabulary
    return [str(each) for each in vocabulary.place_ids[~vocabulary.is_group] if each][:n]


def test_the_time_of_one_asker_is_not_the_time_of_another(world: World) -> None:
    """Who joins a computation of somebody in a hurry waits for it, and then has one of their own."""
    original, items = world.models.infer, [History(likes=[{"like_contentsid": places(world, 1)[0]}])]

    async def hurried(version: str, inputs: Any, deadline: float, request_id: str) -> Any:
        if request_id == "in a hurry":
            await asyncio.sleep(0.01)
            raise StoreError("DEADLINE-EXCEEDED", place="version", rule="an answer within the request's time")
        return await original(version, inputs, deadline, request_id)

    world.models.infer = hurried  # type: ignore[method-assign]

    async def both() -> Any:
        calls = [Call(1e12, name) for name in ("in a hurry", "patient", "patient")]
        asked = [world.service.embed(world.version, items, call) for call in calls]
        return await asyncio.gather(*asked, return_exceptions=True)

    first, *others = world.run(both())
    assert isinstance(first, StoreError) and first.problem.code == "DEADLINE-EXCEEDED"
    assert [len(found[0]["vector"]) for found in others] == [world.version.people.pack.dim] * 2
    assert world.models.rows == [1], "one for both of them"


def test_a_newcomer_is_known_at_once_and_found_by_others(world: World) -> None:
    """Read your writes: the answer to the very request that brought the favors knows them."""
    events, model = a_newcomer_s_twin(world)
    (item,) = add(world, events, k=5)
    assert item["answer"]["source"] == "fresh"
    assert model in names(item["answer"]["twins"])
    assert names(twins(world, "newcomer", k=5)["twins"]) == names(item["answer"]["twins"])
    history = [{"like_contentsid": event.like["like_contentsid"]} for event in events if event.like]
    history += [{"like_contentsid": event.review["review_place_id"]} for event in events if event.review]
    request = TwinsRequest(likes=history, k=3)
    found = world.run(world.service.twins(world.version, request, True, world.call()))
    assert "newcomer" in names(found["twins"])


def test_new_favors_make_the_history_that_tomorrow_s_features_make(world: World) -> None:
    """Online and batch are two ways to one history: otherwise lists would jump every morning."""
    people = world.version.people
    user = some_user(world, 3)
    position = people.find(user)
    base = people.pack.favors([position])[0]
    when = datetime(2026, 6, 30, 12, tzinfo=UTC)
    new: list[Json] = [
        {"review_id": "new-1", "review_place_id": place, "review_rating": 5, "review_visited_date": when.isoformat()}
        for place in places(world, 2)
    ]
    low = {"review_id": "new-2", "review_place_id": places(world, 9)[-1], "review_rating": 0.5}
    again = {"review_id": base.reviews[0].review_id, "review_place_id": base.reviews[0].place_id, "review_rating": 1}
    add(world, [FavorEvent(user=user, review=each) for each in (*new, low, again)])
    kept = base.reviews[1:]
    rows = [_row(each.review_id, each.rating, each.at, each.place_id) for each in kept]
    rows.append(_row("new-1", 5.0, int(when.timestamp() * 1e6), new[-1]["review_place_id"]))
    rows.sort(key=lambda each: (each["review_visited_date"] or 0, each["review_id"]))
    likes = [
        {"like_regymdt": each.at, "like_displayid": each.display_id, "like_contentsid": each.place_id}
        for each in base.likes
    ]
    table = pa.Table.from_pylist(
        [{"user_idno": user, "like_list": likes, "like_stat_list": [], "review_list": rows}], schema=USER_FAVOR
    )
    features = read_manifest(world.store, "features", published_run(world.store).generation("features"))
    expected, _ = taste_histories(table, read_place_rows(world.store, features.paths("place_row")[0]))
    assert people.rows(position).tolist() == expected.places.tolist()


def _row(name: str | None, rating: float | None, at: int | None, place: str) -> Json:
    return {"review_id": name, "review_rating": rating, "review_visited_date": at, "review_place_id": place}


def test_the_same_event_twice_counts_once(world: World) -> None:
    """Events are delivered at least once."""
    events, _ = a_newcomer_s_twin(world)
    add(world, events)
    people = world.version.people
    before = people.vector(people.find("newcomer"))
    assert before is not None
    before = before.copy()
    add(world, events + events)
    np.testing.assert_array_equal(people.vector(people.find("newcomer")), before)


def test_too_few_favors_are_kept_until_there_are_enough(world: World) -> None:
    """The third favor of a newcomer makes them somebody with twins; before, they are as unknown as nobody."""
    three = [FavorEvent(user="newcomer", like={"like_contentsid": place}) for place in places(world, 3)]
    for event in three[:2]:
        (item,) = add(world, [event], k=3)
        assert item["error"]["code"] == "UNKNOWN-USER"
    (item,) = add(world, three[2:], k=3)
    assert len(item["answer"]["twins"]) == 3


def test_one_bad_event_takes_only_its_user_along(world: World) -> None:
    """Others in the same request are taken in; the bad one is named."""
    good, bad = some_user(world), some_user(world, 1)
    place = places(world, 1)[0]
    items = add(
        world,
        [
            FavorEvent(user=good, like={"like_contentsid": place}),
            FavorEvent(user=bad, like={"like_contentsid": place}),
            FavorEvent(user=bad, like={"like_contentsid": 1.5}),
        ],
    )
    assert [item["user"] for item in items] == [good, bad]
    assert items[1]["error"]["code"] == "FAVOR-REFUSED"
    assert [item["taken"] for item in items] == [True, False]
    people = world.version.people
    assert people.is_fresh(people.find(good))
    assert not people.is_fresh(people.find(bad))


def test_favors_that_were_taken_are_told_from_those_that_were_not(world: World) -> None:
    """Both have no list; whoever reads only that would send again what was kept, or give up what was not."""
    like = {"like_contentsid": places(world, 1)[0]}
    events = [FavorEvent(user="too new", like=like), FavorEvent(user="wrong", like={"like_contentsid": 1.5})]
    items = [FavorsItem.model_validate(item) for item in add(world, events, k=5)]
    assert all(item.error is not None and item.answer is None for item in items)
    assert [item.taken for item in items] == [True, False]


def test_while_no_model_answers_lists_are_stale_and_say_so(world: World) -> None:
    """Never a silent other answer: the run's list, marked, with its age; and fresh again as soon as a model is back."""
    user = some_user(world)
    world.models.out = True
    (item,) = add(world, [FavorEvent(user=user, like={"like_contentsid": place}) for place in places(world, 6)], k=5)
    assert item["answer"]["stale"]
    found = twins(world, user, k=5)
    assert (found["source"], found["stale"]) == ("published", True)
    assert found["age_seconds"] > 0
    assert (world.service.stale_answers, world.service.intake.unread) == (2, 1)
    with pytest.raises(StoreError, match="BACKEND-UNAVAILABLE"):
        world.run(
            world.service.twins(
                world.version, TwinsRequest(likes=[{"like_contentsid": places(world, 1)[0]}]), True, world.call()
            )
        )
    world.models.out = False
    found = twins(world, user, k=5)
    assert (found["source"], found["stale"]) == ("fresh", False)
    assert "age_seconds" not in found


@pytest.mark.parametrize("refused", [False, True], ids=["out", "refused"])
def test_whom_the_run_has_no_list_of_is_told_so_while_later_favors_are_unread(world: World, refused: bool) -> None:
    """A vector of theirs came since the run, so there is no list to fall back on; others of the request have theirs."""
    pack, known = world.version.people.pack, some_user(world)
    few = pack.people.name(next(at for at in range(len(pack)) if not pack.has_vector(at)))
    some, more = places(world, 6), places(world, 300) if refused else places(world, 7)
    for user in ("newcomer", few):
        (item,) = add(world, [FavorEvent(user=user, like={"like_contentsid": place}) for place in some], k=5)
        assert item["answer"]["source"] == "fresh"
    world.models.out, world.models.longest = not refused, 20
    for user in ("newcomer", few):
        events = [FavorEvent(user=user, like={"like_contentsid": place}) for place in more]
        (item,) = add(world, events, k=5)
        assert item["taken"] and item["error"]["code"] == ("BACKEND-REFUSED" if refused else "BACKEND-UNAVAILABLE")
        with pytest.raises(StoreError, match="BACKEND-UNAVAILABLE"):
            twins(world, user, k=5)
    request = TwinsBatchRequest(users=["newcomer", known, few], k=5)
    first, second, third = world.run(world.service.twins_batch(world.version, request, True, world.call()))
    assert first["error"] == third["error"] and len(second["answer"]["twins"]) == 5


def test_a_pair_is_not_told_unknown_while_one_of_them_is_unread(world: World) -> None:
    """404 says that nobody needs to ask again, of somebody whose favors were acknowledged a moment ago."""
    known = some_user(world)
    request = PairRequest(user=known, other="newcomer")
    world.models.out = True
    add(world, [FavorEvent(user="newcomer", like={"like_contentsid": place}) for place in places(world, 6)])
    for ask in (world.service.explain(world.version, request, world.call()),
                world.service.compare(world.version, request, True, world.call())):  # fmt: skip
        with pytest.raises(StoreError, match="BACKEND-UNAVAILABLE"):
            world.run(ask)
    world.models.out = False
    assert world.run(world.service.compare(world.version, request, True, world.call()))["score"]


@pytest.mark.parametrize("turned", [False, True], ids=["asking", "asked about"])
def test_a_pair_of_whom_one_is_not_up_to_date_is_said_to_be_stale(world: World, turned: bool) -> None:
    """What both share without yesterday's visit must not pass for what they share now; read, it is there."""
    mine, theirs = some_user(world), some_user(world, 1)
    request = PairRequest(user=theirs, other=mine) if turned else PairRequest(user=mine, other=theirs)

    def ask() -> list[Json]:
        asked = (
            world.service.explain(world.version, request, world.call()),
            world.service.compare(world.version, request, True, world.call()),
        )
        return [world.run(each) for each in asked]

    before = ask()
    world.models.out = True
    add(world, [FavorEvent(user=mine, like={"like_contentsid": place}) for place in places(world, 6)])
    during = ask()
    world.models.out = False
    after = ask()
    assert [[each["stale"] for each in said] for said in (before, during, after)] == [
        [False] * 2,
        [True] * 2,
        [False] * 2,
    ]
    assert during == [{**each, "stale": True} for each in before]
    assert before[1]["score"] != after[1]["score"]


def test_whoever_s_history_is_refused_has_the_run_s_list_and_everybody_else_a_fresh_one(world: World) -> None:
    """The favors were kept, so the request did not fail; what is shown says that it does not know them."""
    odd, other = some_user(world), some_user(world, 1)
    people = world.version.people
    few, many = places(world, 1), places(world, 300)
    world.models.longest = len(people.rows(people.find(other))) + 1
    events = [FavorEvent(user=odd, like={"like_contentsid": place}) for place in many]
    events += [FavorEvent(user=other, like={"like_contentsid": place}) for place in few]
    first, second = add(world, events, k=5)
    assert first["error"]["code"] == "BACKEND-REFUSED" and "answer" not in first and first["taken"]
    assert second["answer"]["source"] == "fresh"
    found = twins(world, odd, k=5)
    assert (found["source"], found["stale"]) == ("published", True)
    assert twins(world, other, k=5)["stale"] is False


def test_what_came_during_an_outage_is_read_in_without_being_asked_for(world: World) -> None:
    """Others must find a newcomer whom nobody asked about."""
    events, _ = a_newcomer_s_twin(world)
    world.models.out = True
    add(world, events)
    assert world.version.people.find("newcomer") < 0
    world.models.out = False
    world.run(world.service.intake.follow())
    assert world.version.people.find("newcomer") >= 0


def test_who_opts_out_is_gone_at_once_on_both_sides(world: World) -> None:
    """From the next answer on they are in no list and have none."""
    user = some_user(world)
    seen = names(twins(world, user, k=5)["twins"])[0]
    world.run(world.service.opt_out(seen))
    assert seen not in names(twins(world, user, k=100)["twins"])
    with pytest.raises(UsageError, match="UNKNOWN-USER"):
        twins(world, seen)
    with pytest.raises(UsageError, match="UNKNOWN-USER"):
        world.run(world.service.explain(world.version, PairRequest(user=user, other=seen), world.call()))


def test_an_opt_out_elsewhere_holds_as_soon_as_it_is_read(world: World) -> None:
    """Another gateway, the command line, the page: all write to the store."""
    user = some_user(world)
    seen = names(twins(world, user, k=5)["twins"])[0]
    opt_out(world.store, [seen])
    assert world.service.denied.refresh()
    world.service.apply_opt_outs()
    assert seen not in names(twins(world, user, k=100)["twins"])


def test_favors_of_who_opted_out_are_passed_over(world: World) -> None:
    """Nothing of theirs is shown, searched for or kept."""
    events, _ = a_newcomer_s_twin(world)
    world.run(world.service.opt_out("newcomer"))
    (item,) = add(world, events, k=3)
    assert item["places"] == 0
    assert item["error"]["code"] == "UNKNOWN-USER"
    assert world.version.people.find("newcomer") < 0


def test_unknown_new_and_opted_out_are_told_the_same(world: World) -> None:
    """The answer tells nobody which of the three somebody is."""
    gone = some_user(world)
    world.run(world.service.opt_out(gone))
    add(world, [FavorEvent(user="newcomer", like={"like_contentsid": places(world, 1)[0]})])
    said = set()
    for user in ("nobody", "newcomer", gone):
        with pytest.raises(UsageError) as caught:
            twins(world, user)
        said.add(str(caught.value))
    assert len(said) == 1


def test_if_nobody_knows_who_opted_out_nobody_is_shown(world: World) -> None:
    """A store that cannot be read must not bring back whoever left: fail closed."""
    user = some_user(world)
    world.clock.now = 4.9
    assert twins(world, user)["twins"]
    world.clock.now = 5.1
    with pytest.raises(StoreError, match="OPT-OUTS-UNKNOWN"):
        twins(world, user)
    world.service.denied.refresh()
    assert twins(world, user)["twins"]


def test_of_several_users_one_who_is_unknown_fails_alone(world: World) -> None:
    """A list of people to be shown on one page has always somebody who just left."""
    request = TwinsBatchRequest(users=[some_user(world), "nobody", some_user(world, 1)], k=3)
    items = world.run(world.service.twins_batch(world.version, request, True, world.call()))
    assert [item["user"] for item in items] == request.users
    assert [len(item["answer"]["twins"]) if "answer" in item else item["error"]["code"] for item in items] == [
        3,
        "UNKNOWN-USER",
        3,
    ]


def test_a_comparison_is_symmetric_where_it_should_be(world: World) -> None:
    """The score of two people is one number, whoever asks."""
    one, other = some_user(world), some_user(world, 5)
    there, back = (
        world.run(world.service.compare(world.version, PairRequest(user=a, other=b), True, world.call()))
        for a, b in ((one, other), (other, one))
    )
    assert there["score"] == back["score"]
    assert there["more"] == back["less"]
    assert there["evidence"]["places"] == back["evidence"]["places"]


def test_a_late_vector_does_not_undo_a_later_one(world: World) -> None:
    """Two requests for one user overlap; the older one's model call ends last."""
    user = "newcomer"
    first, second = places(world, 3), places(world, 6)
    release = asyncio.Event()
    original = world.models.infer
    calls = 0

    async def slow_first(version: str, inputs: Any, deadline: float, request_id: str) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            await release.wait()
        return await original(version, inputs, deadline, request_id)

    world.models.infer = slow_first  # type: ignore[method-assign]

    async def both() -> None:
        events = [[FavorEvent(user=user, like={"like_contentsid": p}) for p in these] for these in (first, second)]
        late = asyncio.create_task(world.service.add_favors(world.version, events[0], None, False, world.call()))
        await asyncio.sleep(0.01)
        await world.service.add_favors(world.version, events[1], None, False, world.call())
        release.set()
        await late

    asyncio.run(both())
    people = world.version.people
    assert len(people.rows(people.find(user))) == 6
