"""Events to the gateway: all of a batch in order, bad ones found and left out, trouble waited out.

What the gateway refuses is split until the one bad event is alone; the good ones of the same user count. What it cannot
do now (it is away, busy, without a model, asks for another key) is tried again for as long as it takes: such an event
is never a dead letter.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple, Protocol

from tastetwin.client.schemas import FavorEvent, FavorsAnswer, FavorsItem, Origin
from tastetwin.errors import TasteTwinError
from tastetwin.serving.app.events.message import Message
from tastetwin.serving.app.events.metrics import Metrics

BAD_EVENT: Final = frozenset({"FAVOR-REFUSED", "FAVORS-SHAPE", "BAD-REQUEST", "HTTP-BODY"})
"""Said of a request of one event, these are about that event and will be said again."""
TOO_MUCH: Final = frozenset({"TOO-MANY"})
"""Fewer events at once may do; of one event it speaks of our settings, and somebody has to mend them."""
NO_LIST: Final = frozenset({"UNKNOWN-USER"})
"""The event was taken, and the user has no list: too few favors, or opted out."""
NO_NEW_LIST: Final = frozenset({"BACKEND-REFUSED"})
"""The event was taken, and no model makes a vector of the user's history: what was sent last stands."""
FIRST_WAIT: Final = 0.1
LONGEST_WAIT: Final = 15.0
MAX_BYTES: Final = 1 << 19
"""Of events in one request, as they came: half of what the gateway takes, for what JSON may add."""
_REASON: Final = re.compile(r"[a-z_]{1,64}")
_LOG: Final = logging.getLogger(__name__)


class Favors(Protocol):
    """What is used of ``tastetwin.client.client.Client``."""

    async def favors(self, events: Sequence[FavorEvent], *, k: int) -> FavorsAnswer:
        """Raises TasteTwinError with the gateway's code; any other Exception is trouble with reaching it."""


class Halted(Exception):
    """The process ends while the gateway is in trouble: what is under way stays uncommitted."""


class NobodyLeft(Exception):
    """None of the messages is ours any more."""


class Refused(Exception):
    """The gateway will not take these events together."""

    def __init__(self, error: TasteTwinError) -> None:
        self.code = error.problem.code
        super().__init__(self.code)


class Taken(NamedTuple):
    """A user's events are in."""

    origin: Origin
    item: FavorsItem
    last: Message
    """The last event of the user's."""


Keep = Callable[[Sequence[Message]], Awaitable[Sequence[Message]]]
"""Waits until it is known which messages are still ours to have an effect, and returns those."""


class Taking:
    """Asks the gateway; one request at a time, so that what came later is never overtaken."""

    def __init__(self, gateway: Favors, k: int, keep: Keep, metrics: Metrics, stopping: asyncio.Event) -> None:
        self._gateway, self._k, self._keep = gateway, k, keep
        self._metrics, self._stopping = metrics, stopping
        self.in_trouble = False
        """The gateway could not do what it was asked last."""

    async def take(self, messages: Sequence[Message]) -> list[Taken]:
        """Have the gateway take the events in; fills in ``reason`` of those that it refuses.

        Raises:
            Halted: the process is to end, and the gateway in trouble.
        """
        taken: dict[str, Taken] = {}
        for part in _parts(messages):
            await self._take(part, taken)
        return list(taken.values())

    async def _take(self, messages: Sequence[Message], taken: dict[str, Taken]) -> None:
        messages = await self._keep(messages)
        if not messages:
            return
        try:
            answer, messages = await self._ask(messages)
        except Refused as refused:
            return await self._narrow_down(messages, refused.code, taken)
        except NobodyLeft:
            return
        of_user: dict[str, list[Message]] = {}
        for message in messages:
            assert message.event is not None, "only events are taken"
            of_user.setdefault(message.event.user, []).append(message)
        for item in answer.items:
            mine = of_user[item.user]
            if item.error is None or item.error.code in NO_LIST:
                taken[item.user] = Taken(answer, item, mine[-1])
            elif item.error.code not in NO_NEW_LIST:
                reason = item.error.value if _REASON.fullmatch(item.error.value) else item.error.code
                await self._narrow_down(mine, reason, taken)

    async def _narrow_down(self, messages: Sequence[Message], reason: str, taken: dict[str, Taken]) -> None:
        """One of these is bad."""
        if len(messages) == 1:
            messages[0].reason = reason
            return
        half = len(messages) // 2
        for part in (messages[:half], messages[half:]):
            await self._take(part, taken)

    async def _ask(self, messages: Sequence[Message]) -> tuple[FavorsAnswer, Sequence[Message]]:
        """The answer, whenever it comes, and to which of the messages: those that were still ours.

        Raises:
            Refused, Halted, NobodyLeft.
        """
        wait = FIRST_WAIT
        while True:
            trouble, answer = await self._try(messages)
            self.in_trouble = bool(trouble)
            if answer is not None:
                return answer, messages
            if wait == FIRST_WAIT:
                _LOG.warning("the gateway takes no events now: %s", trouble)
            self._metrics.retries.labels(trouble).inc()
            await self._rest(wait)
            wait = min(wait * 2, LONGEST_WAIT)
            messages = await self._keep(messages)
            if not messages:
                raise NobodyLeft

    async def _try(self, messages: Sequence[Message]) -> tuple[str, FavorsAnswer | None]:
        events = [message.event for message in messages if message.event is not None]
        try:
            answer = await self._gateway.favors(events, k=self._k)
        except TasteTwinError as error:
            code = error.problem.code
            if code in BAD_EVENT or (code in TOO_MUCH and len(messages) > 1):
                raise Refused(error) from error
            return code, None
        except Exception as error:  # whatever a network may do
            return type(error).__name__, None
        if any(item.answer is not None and item.answer.stale for item in answer.items):
            return "STALE", None  # kept, but no model could be reached: the list does not know the events yet
        if any(item.error is not None and not _is_final(item.error.code) for item in answer.items):
            return next(i.error.code for i in answer.items if i.error is not None and not _is_final(i.error.code)), None
        return "", answer

    async def _rest(self, seconds: float) -> None:
        """Somewhere between half of it and all, so that several members do not come back together."""
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds * random.uniform(0.5, 1.0))
        except TimeoutError:
            return
        raise Halted


def _is_final(code: str) -> bool:
    return code in BAD_EVENT | NO_LIST | NO_NEW_LIST


def _parts(messages: Sequence[Message]) -> list[list[Message]]:
    """Runs of at most ``MAX_BYTES``."""
    parts: list[list[Message]] = []
    size = MAX_BYTES
    for message in messages:
        size += len(message.value or b"")
        if size > MAX_BYTES:
            parts.append([])
            size = len(message.value or b"")
        parts[-1].append(message)
    return parts
