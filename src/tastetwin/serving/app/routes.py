"""What the app does with a request that was let in. Whose it is, its token says; no path or body names them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from tastetwin.client import Call, Client
from tastetwin.client.schemas import Favor, FavorEvent
from tastetwin.config import AppConfig
from tastetwin.errors import UsageError
from tastetwin.serving.app import schemas
from tastetwin.serving.app.gateway import NO_PLACE, NOBODY, answer_of, call_of, excludable
from tastetwin.serving.app.state import Kind, State
from tastetwin.serving.app.tokens import Tokens, UserCaller
from tastetwin.serving.door import RequestContext

THREADS: Final = 16
"""Calls of the state at once."""
Given = TypeVar("Given")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class App:
    """What all requests share."""

    client: Client
    state: State
    tokens: Tokens
    config: AppConfig
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(THREADS, "state"))
    """For the state alone: while it does not answer, look-ups of the gateway's address wait for no thread."""

    async def beside(self, call: Callable[..., Answer], *given: Any) -> Answer:
        """What the state answers, which may wait for a disk or a server."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, call, *given)


@dataclass(frozen=True)
class Asked(Generic[Given]):
    """A request that was let in and read."""

    app: App
    context: RequestContext
    given: Given
    """The body, or what stands behind the question mark."""

    @property
    def me(self) -> str:
        """Whose token it came with."""
        caller = self.context.caller
        assert isinstance(caller, UserCaller), "the policy lets nobody else in"
        return caller.user

    @property
    def call(self) -> Call:
        """How to ask the gateway on behalf of it."""
        return call_of(self.context)


# -- for the product's server -----------------------------------------------------------------------------------------


async def make_token(asked: Asked[schemas.TokenRequest]) -> schemas.Token:
    """For whoever it names: whether they are known is not looked at."""
    token = asked.app.tokens.make(asked.given.user, asked.given.seconds)
    return schemas.Token(token=token, seconds=asked.given.seconds)


async def forget(asked: Asked[None]) -> schemas.Done:
    """Everything that the app keeps of a user."""
    await asked.app.beside(asked.app.state.forget, asked.context.params["user"])
    return schemas.Done()


# -- for a user -------------------------------------------------------------------------------------------------------


async def my_twins(asked: Asked[schemas.TwinsQuery]) -> schemas.MyTwins:
    """Without whom I dismissed and whom I follow already.

    One answer for whoever has no twins, whether too new, opted out or not known: that of a user who has none.
    """
    app, page, size = asked.app, asked.given.page, asked.app.config.page_size
    hidden = await _hidden(asked)
    ask = app.client.twins(
        asked.me,
        k=size,
        skip=(page - 1) * size,
        language=asked.given.language,
        exclude=excludable(hidden),
        call=asked.call,
    )
    found = await answer_of(ask, NOBODY)
    if found is None:
        return schemas.MyTwins(people=[], page=page, next_page=None, stale=False)
    people = [schemas.Fellow(user=twin.user, evidence=twin.evidence) for twin in found.twins if twin.user not in hidden]
    more = len(found.twins) == size and page < schemas.MAX_PAGE
    return schemas.MyTwins(people=people, page=page, next_page=page + 1 if more else None, stale=found.stale)


async def people_of_place(asked: Asked[None]) -> schemas.PlacePeople:
    """The twins of somebody who favors this place and nothing else. Without evidence: it would tell who was there."""
    hidden = [asked.me, *await _hidden(asked)]
    ask = asked.app.client.twins(
        likes=[{"like_contentsid": asked.context.params["place"]}],
        k=asked.app.config.page_size,
        evidence=False,
        exclude=excludable(hidden),
        viewer=asked.me,
        call=asked.call,
    )
    found = await answer_of(ask, NO_PLACE)
    if found is None:
        return schemas.PlacePeople(people=[], stale=False)
    people = [schemas.Other(user=twin.user) for twin in found.twins if twin.user not in hidden]
    return schemas.PlacePeople(people=people, stale=found.stale)


async def add_favor(asked: Asked[Favor]) -> schemas.Done:
    """The same answer whether or not I am known, or have opted out.

    Raises:
        UsageError: what the gateway finds wrong with the event.
    """
    event = FavorEvent(user=asked.me, review=asked.given.review, like=asked.given.like)
    took = await answer_of(asked.app.client.favors([event], call=asked.call))
    refused = [item.error for item in took.items if not item.taken] if took is not None else []
    for problem in filter(None, refused):
        raise UsageError(problem.code, place=problem.place, value=problem.value, rule=problem.rule, fix=problem.fix)
    return schemas.Done()


async def opt_out(asked: Asked[None]) -> schemas.Done:
    """I am shown to nobody from now on."""
    await answer_of(asked.app.client.opt_out(asked.me, call=asked.call))
    return schemas.Done()


async def _hidden(asked: Asked[schemas.TwinsQuery] | Asked[None]) -> list[str]:
    """Whom I dismissed, and whom I follow."""

    def both() -> list[str]:
        state = asked.app.state
        return [*state.of("dismissed", asked.me), *state.of("follows", asked.me)]

    return await asked.app.beside(both)


@dataclass(frozen=True)
class Listed:
    """The routes of one kind of list."""

    kind: Kind

    async def all(self, asked: Asked[None]) -> schemas.Users:
        """Who is on my list."""
        return schemas.Users(users=await asked.app.beside(asked.app.state.of, self.kind, asked.me))

    async def add(self, asked: Asked[schemas.Other]) -> schemas.Done:
        """Whoever it is: an answer that told unknown users from known ones would tell who is here.

        Raises:
            UsageError: SAME-USER, FOLLOWS-FULL.
        """
        if asked.given.user == asked.me:
            raise UsageError("SAME-USER", place="user", rule="two different users", fix="name another one")
        await asked.app.beside(asked.app.state.add, self.kind, asked.me, asked.given.user)
        return schemas.Done()

    async def remove(self, asked: Asked[None]) -> schemas.Done:
        """Whether or not they were on it."""
        await asked.app.beside(asked.app.state.remove, self.kind, asked.me, asked.context.params["user"])
        return schemas.Done()
