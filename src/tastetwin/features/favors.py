"""One user's favors as they come in online: read as the gate reads them, merged as the mart merges, ruled the same.

The batch says what is right (``mart.coerce``, ``mart.merge``, ``features.user_favor``); here is the same for one user
at a time in plain Python, tested against it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final, Literal, NamedTuple

from tastetwin.config import FeaturesConfig
from tastetwin.errors import UsageError
from tastetwin.features.taste import UNKNOWN_TIME
from tastetwin.features.user_favor import ROUNDING
from tastetwin.jsonline import Refused
from tastetwin.mart.coerce import MAX_TEXT, coerce_record
from tastetwin.mart.rules import GateRules
from tastetwin.schema import LIKE_CONTENTS, REVIEW_PLACE, USER

_SOMEBODY: Final = "somebody"
"""Whose favors they are is said beside them; the gate wants it in every event."""
_PLACE: Final = {"reviews": REVIEW_PLACE, "likes": LIKE_CONTENTS}

EventKind = Literal["reviews", "likes"]


class Review(NamedTuple):
    """A review as the mart has it, without its user."""

    review_id: str | None
    place_id: str
    rating: float | None
    at: int | None
    """Microseconds since 1970 UTC."""
    refused: bool
    """A rating was given that cannot be used."""


class Like(NamedTuple):
    """A like as the mart has it, without its user."""

    place_id: str
    display_id: str | None
    at: int | None
    """Microseconds since 1970 UTC."""


class Favors(NamedTuple):
    """What is known of one user, in the order of ``USER_FAVOR``, one of each key; ``landed`` and ``merged`` make it."""

    reviews: tuple[Review, ...] = ()
    likes: tuple[Like, ...] = ()


# -- reading ----------------------------------------------------------------------------------------------------------


def read_favors(raw: object, rules: GateRules, limit: int) -> Favors:
    """The favors in ``{"reviews": [...], "likes": [...]}``, events by the source's field names, as one landing.

    Either list may be missing or null; fields that nobody knows are ignored, as is a user named in an event. ``rules``
    are today's; ``limit`` is that of reviews and likes together.

    Raises:
        UsageError: FAVORS-SHAPE, TOO-MANY-FAVORS, FAVOR-REFUSED (the gate would quarantine the event).
    """
    if not isinstance(raw, Mapping) or not raw.keys() <= _PLACE.keys():
        raise _shape("favors", "an object with the lists 'reviews' and 'likes' and nothing else")
    reviews, likes = (_listed(raw, kind) for kind in _PLACE)
    if len(reviews) + len(likes) > limit:
        raise UsageError(
            "TOO-MANY-FAVORS",
            place="favors",
            value=len(reviews) + len(likes),
            rule=f"at most {limit} reviews and likes together",
            fix="send the most recent ones",
        )
    return landed(
        Favors(
            tuple(read_review(each, rules, f"reviews[{at}]") for at, each in enumerate(reviews)),
            tuple(read_like(each, rules, f"likes[{at}]") for at, each in enumerate(likes)),
        )
    )


def _listed(raw: Mapping[str, Any], kind: str) -> list[Any]:
    found = raw.get(kind)
    if found is not None and not isinstance(found, list):
        raise _shape(kind, "a list of events")
    return found or []


def _shape(place: str, rule: str) -> UsageError:
    return UsageError("FAVORS-SHAPE", place=place, rule=f"must be {rule}", fix="see the API's examples")


def read_review(raw: object, rules: GateRules, place: str = "review") -> Review:
    """One event by the source's field names; ``place`` is where it stands, for the error.

    Raises:
        UsageError: FAVORS-SHAPE, FAVOR-REFUSED.
    """
    review_id, _, rating, at, place_id, refused = _row(raw, "reviews", rules, place)
    return Review(review_id, place_id, rating, at, refused)


def read_like(raw: object, rules: GateRules, place: str = "like") -> Like:
    """One event by the source's field names; ``place`` is where it stands, for the error.

    Raises:
        UsageError: FAVORS-SHAPE, FAVOR-REFUSED.
    """
    _, at, display_id, place_id = _row(raw, "likes", rules, place)
    return Like(place_id, display_id, at)


def _row(raw: object, kind: EventKind, rules: GateRules, place: str) -> tuple[Any, ...]:
    """The event's row of ``MART[kind]``. The error tells the reason and not the id: it may be logged."""
    if not isinstance(raw, Mapping):
        raise _shape(place, "an object")
    try:
        _check_texts(raw)
        return coerce_record({**raw, USER: _SOMEBODY}, kind, rules, Counter())
    except Refused as refused:
        raise UsageError(
            "FAVOR-REFUSED",
            place=f"{place}.{_PLACE[kind]}" if refused.reason.startswith("place_") else place,
            value=refused.reason,
            rule=f"{_PLACE[kind]} must be text of 1 to {MAX_TEXT} characters or an integer; text must be valid Unicode",
            fix="leave the event out, or correct it",
        ) from None


def _check_texts(raw: Mapping[str, Any]) -> None:
    """The gate's parser lets no lone surrogate through; not every parser of requests is as strict."""
    try:
        for value in raw.values():
            if isinstance(value, str):
                value.encode()
    except UnicodeEncodeError:
        raise Refused("lone_surrogate") from None


# -- merging ----------------------------------------------------------------------------------------------------------


def landed(*parts: Favors) -> Favors:
    """Favors that arrived together, like the events of one day, in whatever order and however often.

    Of several reviews with one id the greatest wins: the latest visit, then the highest rating.
    """
    reviews = sorted((review for part in parts for review in part.reviews), key=_greatness)
    return _in_order(reviews, (like for part in parts for like in part.likes))


def merged(base: Favors, new: Favors) -> Favors:
    """``new`` landed after ``base``: its reviews replace those with the same id, whichever way a rating went."""
    return _in_order((*base.reviews, *new.reviews), (*base.likes, *new.likes))


def _in_order(reviews: Iterable[Review], likes: Iterable[Like]) -> Favors:
    """One of each key: of reviews with one id the last, of rows that are equal throughout one."""
    kept = {review if review.review_id is None else review.review_id: review for review in reviews}
    return Favors(tuple(sorted(kept.values(), key=_review_order)), tuple(sorted(set(likes), key=_like_order)))


def _greatness(review: Review) -> tuple[int, float, str, bool]:
    """The order of ``LAYOUTS["reviews"]`` within an id."""
    return (_time(review.at), _number(review.rating), review.place_id, review.refused)


def _review_order(review: Review) -> tuple[int, str, str, float, bool]:
    """By time, id, place and rating, what is unknown first; ids are never empty."""
    return (_time(review.at), review.review_id or "", review.place_id, _number(review.rating), review.refused)


def _like_order(like: Like) -> tuple[int, str, str]:
    return (_time(like.at), like.display_id or "", like.place_id)


def _time(at: int | None) -> int:
    return UNKNOWN_TIME if at is None else at


def _number(rating: float | None) -> float:
    return -math.inf if rating is None else rating


# -- the favor rule ---------------------------------------------------------------------------------------------------


def favored(favors: Favors, rules: FeaturesConfig, categories_of: Callable[[str], Collection[int]]) -> Favors:
    """What of it counts as a favor, as ``favored_reviews`` and ``favored_likes`` decide.

    ``favors`` are all that is known of the user, reviews that are no favors too: the user's own mean is of all of them.
    ``categories_of`` gives a place's category codes, empty where unknown; asked only if the rule names categories.
    """
    reviews, likes = favors
    if rules.categories is not None:
        wanted = frozenset(rules.categories)
        reviews = tuple(review for review in reviews if not wanted.isdisjoint(categories_of(review.place_id)))
        likes = tuple(like for like in likes if not wanted.isdisjoint(categories_of(like.place_id)))
    return Favors(_liked_enough(reviews, rules), _displayed(likes, rules))


def _liked_enough(reviews: tuple[Review, ...], rules: FeaturesConfig) -> tuple[Review, ...]:
    least = _own_mean(reviews) - ROUNDING if rules.relative_to_user_mean else rules.min_rating
    if least is None:
        return reviews
    return tuple(r for r in reviews if (not r.refused if r.rating is None else r.rating >= least))


def _own_mean(reviews: tuple[Review, ...]) -> float:
    given = [review.rating for review in reviews if review.rating is not None]
    return sum(given) / len(given) if given else 0.0


def _displayed(likes: tuple[Like, ...], rules: FeaturesConfig) -> tuple[Like, ...]:
    if not rules.likes:
        return ()
    if rules.like_displays is None:
        return likes
    return tuple(like for like in likes if like.display_id in rules.like_displays)
