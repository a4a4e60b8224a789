"""What the gateway does with a request that was let in: find, encode, search, tell. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Final

from tastetwin.client.schemas import FavorEvent, History, PairRequest, TwinsBatchRequest, TwinsRequest, Wanted
from tastetwin.config import CollectConfig, Config, MartConfig
from tastetwin.errors import StoreError, UsageError
from tastetwin.features.favors import Favors, landed, read_favors, read_like, read_review
from tastetwin.features.histories import Histories, joined
from tastetwin.features.home import home_region
from tastetwin.mart.rules import GateRules
from tastetwin.privacy.opt_out import opt_out
from tastetwin.serving.gateway import answers
from tastetwin.serving.gateway.answers import Json
from tastetwin.serving.gateway.encode import Call, VectorSource
from tastetwin.serving.gateway.fresh import FreshLog
from tastetwin.serving.gateway.intake import REFUSED, Intake, history, list_vectors
from tastetwin.serving.gateway.pack import NOBODY, Near, Pack
from tastetwin.serving.gateway.people import People
from tastetwin.serving.gateway.search import Asker, closest, closest_each, listed
from tastetwin.serving.gateway.versions import DenySet, Version
from tastetwin.store import Store

TOGETHER: Final = 16
"""Users of a request who are answered before others have their turn."""


@dataclass(frozen=True)
class _One:
    """A user whose list is wanted."""

    position: int
    excluded: frozenset[int]
    fresh: bool
    """Favors came since the run, and a model has read them."""
    stale: bool
    """Favors came that no model could be reached for."""


class Service:
    """The versions held, and all that is asked of them. For one event loop."""

    def __init__(self, store: Store, config: Config, source: VectorSource, log: FreshLog, denied: DenySet) -> None:
        """Hold nothing yet; see ``hold``."""
        self.store, self.config, self.denied = store, config, denied
        self.intake = Intake(config, source, log, denied)
        self._source = source
        self.stale_answers = 0
        self.versions: dict[str, Version] = {}
        """Those held, by name."""
        self._hidings = 0

    # -- versions -----------------------------------------------------------------------------------------------------

    async def hold(self, versions: Sequence[Version]) -> None:
        """Answer from these and no others from now on, with the favors that came since in each."""
        for version in versions:
            self.denied.apply(version.people)
        await self.intake.serve([version.people for version in versions])
        for version in versions:
            self.denied.apply(version.people)  # of whoever left meanwhile
        self.versions = {version.name: version for version in versions}

    def apply_opt_outs(self) -> None:
        """Hide whom the deny set names now."""
        self._hidings += 1
        for version in self.versions.values():
            self.denied.apply(version.people)

    def origin(self, version: Version) -> Json:
        """``schemas.Origin``."""
        manifest = version.people.pack.manifest
        return {
            "model": self.config.app.model,
            "version": version.name,
            "bundle": manifest.bundle,
            "as_of": manifest.logical_date,
        }

    def moment(self) -> str:
        """Changes whenever other people may be shown than before: at once when somebody leaves, else once a second."""
        return f"{self._hidings} {self.intake.moment()}"

    # -- questions ----------------------------------------------------------------------------------------------------

    async def embed(self, version: Version, items: Sequence[History], call: Call) -> list[Json]:
        """``schemas.EmbedItem`` of each history; one that cannot be read fails alone.

        Raises:
            StoreError: BACKEND-UNAVAILABLE, DEADLINE-EXCEEDED.
        """
        pack = version.people.pack
        found = [self._read(pack, items[0])]
        for item in items[1:]:
            await asyncio.sleep(0)  # a large batch lets others have their turn
            found.append(self._read(pack, item))
        good = [each for each in found if isinstance(each, Histories)]
        vectors = iter(await self._source.encode(pack, joined(*good), call) if good else ())
        return [
            {"error": each}
            if not isinstance(each, Histories)
            else {"vector": next(vectors), "places": len(each.places)}
            for each in found
        ]

    def _read(self, pack: Pack, item: History) -> Histories | Json:
        try:
            return self._history(pack, item)
        except UsageError as error:
            return vars(error.problem)

    def _rules(self) -> GateRules:
        """The gate's, as of today."""
        return _rules_of(self.config.mart, self.config.collect, datetime.now(UTC).date())

    def _history(self, pack: Pack, item: History) -> Histories:
        favors = read_favors(
            {"reviews": item.reviews, "likes": item.likes}, self._rules(), self.config.gateway.max_favors
        )
        found = history(pack, favors)
        if not len(found.places):
            raise UsageError(
                "NO-KNOWN-PLACE",
                place="history",
                value=len(item.reviews) + len(item.likes),
                rule="at least one favor of a place that the model knows, by itself or by category and region",
                fix="send favors of other places",
            )
        return found

    async def twins(self, version: Version, request: TwinsRequest, with_scores: bool, call: Call) -> Json:
        """``schemas.Twins`` of a user, or of a history that was sent along.

        Raises:
            UsageError: UNKNOWN-USER; what is wrong with a history.
            StoreError: OPT-OUTS-UNKNOWN; for a history BACKEND-UNAVAILABLE, DEADLINE-EXCEEDED.
        """
        self.denied.check()
        if request.user is not None:
            return await self.twins_of(version, request.user, request, with_scores, call)
        people = version.people
        found = self._history(people.pack, History(reviews=request.reviews, likes=request.likes))
        vector = (await list_vectors(self._source, people.pack, found, call))[0]
        home = home_region(found.places, people.pack.vocabulary)
        excluded = self._positions(people, request.exclude) | self._not_shown_to(people, request.viewer)
        asker = Asker(vector, home, excluded=excluded)
        near = closest(people, asker, request.skip + request.k)
        rows = answers.twin_rows(people, near, found.places, request, with_scores)
        return {"source": "request", "stale": False, "twins": rows}

    async def twins_of(self, version: Version, user: str, wanted: Wanted, with_scores: bool, call: Call) -> Json:
        """``schemas.Twins`` of a user: searched anew where favors came since the run, else the run's own list.

        Raises:
            UsageError: UNKNOWN-USER.
            StoreError: OPT-OUTS-UNKNOWN.
        """
        self.denied.check()
        stale = not await self.intake.catch_up(version.people, user, call)
        one = self._one(version.people, user, wanted, stale)
        return self._told(version, one, self._near(version.people, [one], wanted)[0], wanted, with_scores)

    def _one(self, people: People, user: str, wanted: Wanted, stale: bool) -> _One:
        position = self._shown_or_unread(people, user, stale)
        excluded = people.excluded(position) | self._positions(people, wanted.exclude)
        return _One(position, excluded, people.is_fresh(position) and not stale, stale)

    def _near(self, people: People, users: Sequence[_One], wanted: Wanted) -> list[Near]:
        """The first of each: by the run's own list where it still stands and is long enough."""
        k = wanted.skip + wanted.k
        lists = [None if each.fresh else listed(people, each.position, each.excluded, k) for each in users]
        askers = [_asker(people, each) for each, near in zip(users, lists, strict=True) if near is None]
        searched = iter(closest_each(people, askers, k))
        return [next(searched) if near is None else near for near in lists]

    def _told(self, version: Version, one: _One, near: Near, wanted: Wanted, with_scores: bool) -> Json:
        people = version.people
        rows = answers.twin_rows(people, near, people.rows(one.position), wanted, with_scores)
        said: Json = {"source": "fresh" if one.fresh else "published", "stale": one.stale, "twins": rows}
        if one.stale:
            self.stale_answers += 1
            said["age_seconds"] = round(time.time() - version.published_at, 1)
        return said

    async def twins_batch(
        self, version: Version, request: TwinsBatchRequest, with_scores: bool, call: Call
    ) -> list[Json]:
        """``schemas.TwinsItem`` of each user; one who cannot be answered fails alone.

        Raises:
            StoreError: OPT-OUTS-UNKNOWN.
        """
        items: list[Json] = []
        for start in range(0, len(request.users), TOGETHER):
            items += await self._items(version, request.users[start : start + TOGETHER], request, with_scores, call)
            await asyncio.sleep(0)  # others are waiting, too
        return items

    async def _items(
        self, version: Version, users: Sequence[str], wanted: Wanted, with_scores: bool, call: Call
    ) -> list[Json]:
        self.denied.check()
        stale = {user: not await self.intake.catch_up(version.people, user, call) for user in users}
        items: list[Json] = [{"user": user} for user in users]
        ones: list[tuple[Json, _One]] = []
        for item in items:
            try:
                ones.append((item, self._one(version.people, item["user"], wanted, stale[item["user"]])))
            except (UsageError, StoreError) as error:  # UNKNOWN-USER, BACKEND-UNAVAILABLE
                item["error"] = vars(error.problem)
        lists = self._near(version.people, [one for _, one in ones], wanted)
        for (item, one), near in zip(ones, lists, strict=True):
            item["answer"] = self._told(version, one, near, wanted, with_scores)
        return items

    async def explain(self, version: Version, request: PairRequest, call: Call) -> Json:
        """``schemas.ExplainAnswer`` without its origin; errors as ``compare``."""
        first, second, stale = await self._pair(version, request, call)
        return {"stale": stale, "evidence": answers.explanation(version.people, first, second, request.language)}

    async def compare(self, version: Version, request: PairRequest, with_scores: bool, call: Call) -> Json:
        """``schemas.CompareAnswer`` without its origin.

        Raises:
            UsageError: SAME-USER, UNKNOWN-USER.
            StoreError: OPT-OUTS-UNKNOWN; BACKEND-UNAVAILABLE for a newcomer whom no model has read yet.
        """
        first, second, stale = await self._pair(version, request, call)
        return {"stale": stale} | answers.comparison(version.people, first, second, request.language, with_scores)

    async def _pair(self, version: Version, request: PairRequest, call: Call) -> tuple[int, int, bool]:
        """Positions of both, and whether the last favors of either are unread."""
        self.denied.check()
        if request.user == request.other:
            raise UsageError("SAME-USER", place="other", rule="two different users", fix="name another one")
        people, users = version.people, (request.user, request.other)
        stale = [not await self.intake.catch_up(people, user, call) for user in users]
        first, second = (self._shown_or_unread(people, user, each) for user, each in zip(users, stale, strict=True))
        return first, second, any(stale)

    def _shown_or_unread(self, people: People, user: str, stale: bool) -> int:
        try:
            position = self._shown(people, user)
        except UsageError:
            if stale:  # known to us, but to no model yet: that is no reason to say that there is nobody
                raise unread() from None
            raise
        if stale and (position >= len(people.pack) or not people.pack.has_vector(position)):
            raise unread()  # what is known of them came since the run, which has nothing to show instead
        return position

    def _shown(self, people: People, user: str) -> int:
        """Position of a user who has a vector and has not opted out: whoever else asks learns nothing.

        Not by the time it takes either: every step is taken for everybody, and none costs more for some.
        """
        position, is_denied = people.find(user), self.denied.has(user)
        has_vector = people.has_vector(position)
        if is_denied or not has_vector:
            raise unknown_user()
        return position

    def _not_shown_to(self, people: People, viewer: str | None) -> frozenset[int]:
        position = NOBODY if viewer is None else people.find(viewer)
        return frozenset() if position == NOBODY else people.excluded(position)

    def _positions(self, people: People, users: Sequence[str]) -> frozenset[int]:
        return frozenset(map(people.find, users)) - {NOBODY}

    # -- what came since ----------------------------------------------------------------------------------------------

    async def add_favors(
        self, version: Version, events: Sequence[FavorEvent], wanted: Wanted | None, with_scores: bool, call: Call
    ) -> list[Json]:
        """Take events in, durably, and answer ``schemas.FavorsItem`` of each user: from now on their twins know them.

        Whoever has opted out is passed over. Where no model can be reached the events are kept all the same, and what
        is answered is stale until one can.

        Raises:
            StoreError: OPT-OUTS-UNKNOWN; as ``FreshLog``: nothing was taken in then.
        """
        self.denied.check()
        came, refused = self._sorted_out(events)
        await self.intake.add(came, call)
        users = list(dict.fromkeys(event.user for event in events))
        items: list[Json] = []
        for start in range(0, len(users), TOGETHER):
            part = users[start : start + TOGETHER]
            good = [user for user in part if user not in refused]
            said = {user: _taken(user, self._places(version.people, user)) for user in good}
            if wanted is not None and good:
                for item in await self._items(version, good, wanted, with_scores, call):
                    refused_now = self.intake.is_refused(version.people, item["user"])
                    said[item["user"]] |= {"error": vars(unreadable().problem)} if refused_now else item
            items += [said.get(user, {"user": user, "taken": False, "error": refused.get(user)}) for user in part]
            await asyncio.sleep(0)  # others are waiting, too
        return items

    def _sorted_out(self, events: Sequence[FavorEvent]) -> tuple[dict[str, Favors], dict[str, Json]]:
        """Favors by user, and what is wrong with the first bad event of a user: none of theirs is taken then."""
        rules = self._rules()
        came: dict[str, Favors] = {}
        refused: dict[str, Json] = {}
        for event in events:
            try:
                new = _favors_of(event, rules)
            except UsageError as error:
                refused.setdefault(event.user, vars(error.problem))
                continue
            came[event.user] = landed(came.get(event.user, Favors()), new)
        return {
            user: favors for user, favors in came.items() if user not in refused and not self.denied.has(user)
        }, refused

    def _places(self, people: People, user: str) -> int:
        """Distinct places of a user, as far as they may be known of."""
        position = NOBODY if self.denied.has(user) else people.find(user)
        return 0 if position == NOBODY else len(people.rows(position))

    # -- who leaves ---------------------------------------------------------------------------------------------------

    async def opt_out(self, user: str) -> None:
        """Show a user to nobody from now on, here at once and everywhere as soon as they look.

        Raises:
            StoreError: STORE-UNWRITABLE: nothing has changed.
        """
        await asyncio.to_thread(opt_out, self.store, [user])
        self.denied.add(user)
        self.apply_opt_outs()


def unread() -> StoreError:
    """Of a user of whom nothing can be said until a model can be reached."""
    return StoreError(
        "BACKEND-UNAVAILABLE",
        place="model backends",
        rule="one that can read the favors that came since the run",
        fix="ask again later",
    )


def unreadable() -> StoreError:
    """Of a user whose favors were taken in, and whose history no list can be made of."""
    return StoreError(
        REFUSED,
        place="model backends",
        rule="a history that the model takes",
        fix="their last list stands until their next favor or the next run; see the log of the backends",
    )


def unknown_user() -> UsageError:
    """One answer for whoever is not known, too new, or has opted out: it tells nobody which."""
    return UsageError(
        "UNKNOWN-USER",
        place="user",
        rule="a user with enough favors who may be shown",
        fix="send favors of theirs, or a history with the request",
    )


def _asker(people: People, one: _One) -> Asker:
    vector = people.vector(one.position)
    if vector is None:
        raise unknown_user()
    at = one.position
    return Asker(vector, people.home(at), people.own(at), one.excluded, people.crowding(at))


def _taken(user: str, places: int) -> Json:
    return {"user": user, "taken": True, "places": places}


def _favors_of(event: FavorEvent, rules: GateRules) -> Favors:
    if event.review is not None:
        return Favors((read_review(event.review, rules),), ())
    return Favors((), (read_like(event.like, rules),))


@functools.lru_cache(maxsize=2)
def _rules_of(mart: MartConfig, collect: CollectConfig, today: date) -> GateRules:
    return GateRules.of(mart, collect, today)
