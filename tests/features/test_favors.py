"""One user's favors online, beside the gate, the mart and the favor rule of the batch."""

from __future__ import annotations

import json
import random
from collections import Counter
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tastetwin.config import Config, FeaturesConfig
from tastetwin.engine import Engine
from tastetwin.errors import UsageError
from tastetwin.features.favors import Favors, Like, Review, favored, landed, merged, read_favors, read_like, read_review
from tastetwin.features.online import histories_of
from tastetwin.features.stage import favor_rows
from tastetwin.features.taste import taste_histories
from tastetwin.features.user_favor import favored_likes, favored_reviews, group_favors
from tastetwin.features.vocabulary import PlaceRows
from tastetwin.mart.merge import LAYOUTS
from tastetwin.mart.rules import GateRules
from tastetwin.schema import LANDED, LIKES, PLACES, REVIEWS
from tastetwin.tables import lay_out
from tests.conftest import Mart

CONFIG = Config()
RULES = GateRules.of(CONFIG.mart, CONFIG.collect, date(2026, 6, 30))
CATEGORIES = {"p1": [1, 2], "p2": [3], "p3": [], "p4": None, "카페": [2, 3]}

times = st.sampled_from([None, -1, 0, 10**15, 10**15 + 1])
ratings = st.sampled_from([None, 0.0, 1.0, 3.0, 3.3, 4.1, 5.0])
places = st.sampled_from(["p1", "p2", "카페"])
reviews = st.tuples(st.sampled_from([None, "r1", "r2", "r3"]), places, ratings, times, st.booleans()).map(
    lambda each: Review(*each[:4], each[4] and each[2] is None)
)
likes = st.builds(Like, places, st.sampled_from([None, "main", "list"]), times)
arrivals = st.builds(Favors, st.lists(reviews, max_size=6).map(tuple), st.lists(likes, max_size=5).map(tuple))


# -- reading ----------------------------------------------------------------------------------------------------------


def test_events_are_read_by_the_source_s_names() -> None:
    """A request holds what the source's files hold, so that whoever writes one can write the other."""
    raw = {
        "reviews": [
            {"review_id": " r1 ", "review_place_id": 9, "review_rating": "4.5",
             "review_visited_date": "2026-05-20T12:00:00Z", "what": "else"},
            {"review_place_id": "p1", "review_rating": 77, "review_visited_date": "1999-01-01", "user_idno": None},
            {"review_place_id": "p1", "review_rating": None},
        ],
        "likes": [{"like_contentsid": "p3", "like_displayid": "d", "like_regymdt": 1_700_000_000}],
    }  # fmt: skip
    assert read_favors(raw, RULES, 4) == Favors(
        (
            Review(None, "p1", None, None, False),
            Review(None, "p1", None, None, True),
            Review("r1", "9", 4.5, 1_779_278_400_000_000, False),
        ),
        (Like("p3", "d", 1_700_000_000_000_000),),
    )
    assert read_favors({}, RULES, 0) == read_favors({"reviews": None, "likes": []}, RULES, 0) == Favors()


@pytest.mark.parametrize(
    ("raw", "code", "place", "value"),
    [
        (None, "FAVORS-SHAPE", "favors", ""),
        ([], "FAVORS-SHAPE", "favors", ""),
        ({"review": []}, "FAVORS-SHAPE", "favors", ""),
        ({"reviews": {}}, "FAVORS-SHAPE", "reviews", ""),
        ({"likes": "p1"}, "FAVORS-SHAPE", "likes", ""),
        ({"likes": ["p1"]}, "FAVORS-SHAPE", "likes[0]", ""),
        ({"likes": [{"like_contentsid": "p"}] * 2, "reviews": [{}] * 2}, "TOO-MANY-FAVORS", "favors", "4"),
        ({"reviews": [{"review_place_id": "p"}, {}]}, "FAVOR-REFUSED", "reviews[1].review_place_id", "place_missing"),
        ({"likes": [{"like_contentsid": "x" * 257}]}, "FAVOR-REFUSED", "likes[0].like_contentsid", "place_too_long"),
        ({"likes": [{"like_contentsid": ["p"]}]}, "FAVOR-REFUSED", "likes[0].like_contentsid", "place_type"),
        ({"likes": [{"like_contentsid": "a\nb"}]}, "FAVOR-REFUSED", "likes[0].like_contentsid", "place_control"),
        ({"likes": [{"like_contentsid": "\ud800"}]}, "FAVOR-REFUSED", "likes[0]", "lone_surrogate"),
        (
            {"reviews": [{"review_place_id": "p", "review_id": "\udfff"}]},
            "FAVOR-REFUSED",
            "reviews[0]",
            "lone_surrogate",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(raw: Any, code: str, place: str, value: str) -> None:
    """Whoever sent it must learn which event and why; the id itself is in no message that could be logged."""
    with pytest.raises(UsageError) as error:
        read_favors(raw, RULES, 3)
    problem = error.value.problem
    assert (problem.code, problem.place, problem.value) == (code, place, value)
    assert problem.rule and problem.fix


values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-(10**400), 10**400) | st.text(max_size=6)
    | st.sampled_from(["p1", "nan", "20260601", "2026-06-01T10:00:00+09:00", "1e999", 10**400]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=3,
)  # fmt: skip


@given(st.fixed_dictionaries({}, optional=dict.fromkeys([*REVIEWS.names, *LIKES.names], values)))
@settings(max_examples=300, deadline=None)
def test_any_event_is_read_or_refused(raw: dict[str, Any]) -> None:
    """A stranger's request must not be able to raise what nobody expects."""
    for read in (read_review, read_like):
        try:
            found = read(raw, RULES)
        except UsageError as error:
            assert error.problem.code == "FAVOR-REFUSED"
        else:
            assert found.place_id and found == read(raw, RULES)


# -- merging ----------------------------------------------------------------------------------------------------------


def by_mart(*landings: Favors) -> Favors:
    """Each landing one per key by the mart's own function, later landings over earlier; for one user."""
    known: dict[Any, Review] = {}
    liked: set[Like] = set()
    for landing in landings:
        for row in lay_out(review_rows([("u", landing)]), LAYOUTS["reviews"]).to_pylist():
            review = Review(*(row[name] for name in REVIEW_FIELDS))
            known[review if review.review_id is None else review.review_id] = review
        liked |= {Like(*(row[name] for name in LIKE_FIELDS))
                  for row in lay_out(like_rows([("u", landing)]), LAYOUTS["likes"]).to_pylist()}  # fmt: skip
    return Favors(tuple(known.values()), tuple(liked))


REVIEW_FIELDS = ("review_id", "review_place_id", "review_rating", "review_visited_date", "review_rating_refused")
LIKE_FIELDS = ("like_contentsid", "like_displayid", "like_regymdt")


def review_rows(users: list[tuple[str, Favors]]) -> pa.Table:
    rows = [
        {"user_idno": user, LANDED: "", **dict(zip(REVIEW_FIELDS, review, strict=True))}
        for user, favors in users
        for review in favors.reviews
    ]
    return times_as_numbers(pa.Table.from_pylist(rows, LAYOUTS["reviews"].schema), "review_visited_date")


def like_rows(users: list[tuple[str, Favors]]) -> pa.Table:
    rows = [
        {"user_idno": user, LANDED: "", **dict(zip(LIKE_FIELDS, like, strict=True))}
        for user, favors in users
        for like in favors.likes
    ]
    return times_as_numbers(pa.Table.from_pylist(rows, LAYOUTS["likes"].schema), "like_regymdt")


def times_as_numbers(rows: pa.Table, column: str) -> pa.Table:
    return rows.set_column(rows.column_names.index(column), column, rows[column].cast(pa.int64()))


def unordered(favors: Favors) -> tuple[frozenset[Review], frozenset[Like]]:
    return frozenset(favors.reviews), frozenset(favors.likes)


@given(st.lists(arrivals, min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_merging_leaves_what_the_mart_leaves(landings: list[Favors]) -> None:
    """Days that land one after the other, each with edits, repeats and reviews without an id."""
    found = Favors()
    for each in landings:
        found = merged(found, landed(each))
    assert unordered(found) == unordered(by_mart(*landings))
    assert len(found.reviews) == len(set(found.reviews)) and len(found.likes) == len(set(found.likes))


@given(base=arrivals, first=arrivals, second=arrivals)
@settings(max_examples=200, deadline=None)
def test_merging_in_one_go_is_merging_one_by_one(base: Favors, first: Favors, second: Favors) -> None:
    """Events are merged among themselves while they wait, and onto the published run when they are asked for."""
    base, first, second = map(landed, (base, first, second))
    assert merged(merged(base, first), second) == merged(base, merged(first, second))


@given(base=arrivals, new=arrivals)
@settings(max_examples=200, deadline=None)
def test_an_event_twice_is_an_event_once(base: Favors, new: Favors) -> None:
    """Events are delivered at least once: a repeat must change nothing."""
    once = merged(landed(base), landed(new))
    assert merged(once, landed(new)) == once == merged(once, once)
    assert merged(landed(base), Favors()) == landed(base) == merged(Favors(), landed(base))


@given(parts=st.lists(arrivals, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_what_landed_together_has_no_order(parts: list[Favors], seed: int) -> None:
    """A day's files are read in any order, by many workers; online, messages may come late and again."""
    shuffled = random.Random(seed).sample(parts + parts[:2], len(parts) + len(parts[:2]))
    assert landed(*shuffled) == landed(*parts) == landed(landed(*parts[:1]), *parts)


def test_an_edit_counts_whichever_way_it_goes() -> None:
    """Somebody who takes two stars back is not shown as content."""
    before, after = (Favors((Review("r", "p1", rating, 5, False),)) for rating in (5.0, 1.0))
    assert merged(before, after) == after
    assert landed(before, after) == landed(after, before) == before


# -- the favor rule, and everything in a row --------------------------------------------------------------------------

RULE_SETS = [
    {},
    {"min_rating": None},
    {"min_rating": 3.3, "like_displays": ["main"]},
    {"relative_to_user_mean": True, "likes": False},
    {"relative_to_user_mean": True, "categories": [2]},
    {"categories": [], "like_displays": []},
    {"categories": [3, 99], "min_rating": None},
]


def dirty(users: int, seed: int) -> list[tuple[str, Favors]]:
    """Users of every kind of review and like, many alike."""
    rng = random.Random(seed)
    found = []
    for number in range(users):
        stars: list[float | None] = rng.choice([[None], [3.3], [0.0, 1.0, 3.0, 3.3, 4.1, 5.0, None], [4.1, 4.1, 0.1]])
        made = []
        for each in range(rng.randrange(9)):
            rating = rng.choice(stars)
            place, at = rng.choice([*CATEGORIES, "unheard of"]), rng.choice([None, 0, 10**15])
            made.append(Review(f"r{each}", place, rating, at, rating is None and rng.random() < 0.5))
        liked = [Like(rng.choice([*CATEGORIES, "unheard of"]), rng.choice([None, "main", "list"]), each)
                 for each in range(rng.randrange(5))]  # fmt: skip
        found.append((f"u{number:03d}", landed(Favors(tuple(made), tuple(liked)))))
    return found


@pytest.mark.parametrize("rule", RULE_SETS, ids=str)
def test_the_rule_is_the_batch_s(engine: Engine, rule: dict[str, Any]) -> None:
    """A favor that counts online and not at night, or the other way, would make the lists jump every morning."""
    config = FeaturesConfig(**rule)
    users = dirty(150, seed=3)
    listed = [{"place_id": place, "place_category_code_list": codes} for place, codes in CATEGORIES.items()]
    frame = engine.table(pa.Table.from_pylist(listed, PLACES))
    reviews = favored_reviews(engine.table(review_rows(users)), frame, config).toArrow().to_pylist()
    likes = favored_likes(engine.table(like_rows(users)), frame, config).toArrow().to_pylist()
    found = [(user, favored(favors, config, lambda place: CATEGORIES.get(place) or ())) for user, favors in users]
    assert {(row["user_idno"], *(row[name] for name in REVIEW_FIELDS)) for row in reviews} == {
        (user, *review) for user, favors in found for review in favors.reviews
    }
    assert {(row["user_idno"], *(row[name] for name in LIKE_FIELDS)) for row in likes} == {
        (user, *like) for user, favors in found for like in favors.likes
    }


def raw_day(rng: random.Random, users: int) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """User -> the favors of a day as a source writes them, spoilt here and there."""
    stars = [None, 1, "3", 3.3, 4.1, 5, 9, "many", "null"]
    whens = [None, "2026-05-01", "2026-05-01T10:00:00Z", 1_760_000_000, "1890-01-01", "2026-05-02 09:30"]
    names = ["p1", "p2", "p3", " p4 ", "카페", 7, "unheard of"]
    return {
        f"u{number:02d}": {
            "reviews": [
                {"review_id": rng.choice([None, "a", "b", 3, "null"]), "review_place_id": rng.choice(names),
                 "review_rating": rng.choice(stars), "review_visited_date": rng.choice(whens)}
                for _ in range(rng.randrange(8))
            ],
            "likes": [
                {"like_contentsid": rng.choice(names), "like_displayid": rng.choice([None, "main", "list"]),
                 "like_regymdt": rng.choice(whens)} for _ in range(rng.randrange(5))
            ],
        }
        for number in range(users)
    }  # fmt: skip


@pytest.mark.parametrize("rule", [{}, {"min_rating": None}, {"relative_to_user_mean": True}], ids=str)
def test_three_days_online_are_three_days_of_the_batch(mart: Mart, rule: dict[str, Any]) -> None:
    """From what the source writes to the history the model reads: the same, to the bit, on both ways."""
    config = mart.config.model_copy(update={"features": FeaturesConfig(**rule)})
    rng = random.Random(11)
    known: dict[str, Favors] = {}
    for day in (1, 2, 3):
        sent = raw_day(rng, users=30)
        files = {
            f"{kind}.jsonl": [{"user_idno": user, **each} for user, raw in sent.items() for each in raw[kind]]
            for kind in ("reviews", "likes")
        }
        built = mart.day(day, files)
        rules = GateRules.of(config.mart, config.collect, date(2026, 6, day))
        for user, raw in sent.items():
            new = read_favors(json.loads(json.dumps(raw)), rules, 50)
            known[user] = merged(known.get(user, Favors()), new)
    assert {user: len(favors.reviews) for user, favors in known.items() if favors.reviews} == Counter(
        row["user_idno"] for row in mart.rows("reviews")
    )
    stored = group_favors(favor_rows(mart.engine, mart.store, built, config.features).toArrow())
    place_rows = {"p1": 2, "p2": 3, "p3": 3, "p4": 4, "카페": 5, "7": 6}
    wanted, _ = taste_histories(
        stored, PlaceRows(pa.array(list(place_rows)), np.array(list(place_rows.values()), np.int32))
    )
    ruled = {user: favored(favors, config.features, lambda _: ()) for user, favors in sorted(known.items())}
    ruled = {user: favors for user, favors in ruled.items() if favors != Favors()}
    found = histories_of(list(ruled), list(ruled.values()), lambda ids: [place_rows.get(each, -1) for each in ids])
    assert found.user_ids.tolist() == wanted.user_ids.tolist() and found.n_users > 20
    for name in ("offsets", "places", "visits", "ratings", "days"):
        assert getattr(found, name).tobytes() == getattr(wanted, name).tobytes(), name
