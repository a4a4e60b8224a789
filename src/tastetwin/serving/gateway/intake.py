"""Favors that come in while the gateway runs: kept, encoded, and from then on part of every version held.

One order for all: the number that the log gave to a user's last change. A vector that comes late does not undo a later
one. Where no model can be reached, favors are kept all the same and tried again. A history that the model refuses is
left out, alone, until the user's next favor or the next version.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import numpy as np

from tastetwin.analysis.index import Floats
from tastetwin.analysis.parts import reweighted
from tastetwin.config import Config
from tastetwin.errors import StoreError
from tastetwin.features.favors import Favors, favored, merged
from tastetwin.features.histories import Histories
from tastetwin.features.home import home_regions
from tastetwin.features.online import histories_of
from tastetwin.privacy.opt_out import name_of
from tastetwin.serving.gateway.encode import Call, VectorSource
from tastetwin.serving.gateway.fresh import FreshLog, FreshRecord, said_by_run
from tastetwin.serving.gateway.pack import Pack
from tastetwin.serving.gateway.people import Changed, People
from tastetwin.serving.gateway.versions import DenySet

OUTAGES: Final = ("BACKEND-UNAVAILABLE", "DEADLINE-EXCEEDED")
"""What is wrong when no model can be reached."""
REFUSED: Final = "BACKEND-REFUSED"
"""What is wrong when a model says that a history is."""
THREADS: Final = 8
"""Calls of the log at once."""
Answer = TypeVar("Answer")
_LOG: Final = logging.getLogger(__name__)


class Intake:
    """What came since the runs. For one event loop."""

    def __init__(self, config: Config, source: VectorSource, log: FreshLog, denied: DenySet) -> None:
        self._config, self._source, self._log, self._denied = config, source, log, denied
        self._people: Sequence[People] = ()
        self._changes = self._seen = 0
        self._looked = time.monotonic()
        self._latest: dict[str, int] = {}
        """Number of the last change known of each user."""
        self._unread: dict[tuple[People, str], FreshRecord] = {}
        """Changes that the model of a version could not be reached for yet."""
        self._passed_over: dict[str, FreshRecord] = {}
        """Changes of whoever had opted out then: they count once somebody opts in again."""
        self._refused: set[tuple[People, str]] = set()
        """Whose last change the model of a version refuses."""
        self._cursor = 0
        self._forgotten: frozenset[str] = frozenset()
        self._pruned = 0.0
        """Nothing older is in the log."""
        self._threads = ThreadPoolExecutor(THREADS, "fresh")
        """Of its own: while a log does not answer, opt-outs and look-ups of backends' addresses wait for no thread."""

    @property
    def unread(self) -> int:
        """People with favors that no model could be reached for yet."""
        return len({user for _, user in self._unread})

    @property
    def refused(self) -> int:
        """People whose favors the model of a version refuses."""
        return len({user for _, user in self._refused})

    def is_refused(self, people: People, user: str) -> bool:
        """Whether a version knows nothing of a user's last favors, since its model refuses the history."""
        return (people, user) in self._refused

    def moment(self) -> int:
        """How many vectors have changed, as of a second ago at most."""
        now = time.monotonic()
        if now - self._looked >= 1:
            self._looked, self._seen = now, self._changes
        return self._seen

    async def serve(self, people: Sequence[People]) -> None:
        """From now on, what came and comes is part of these, and no longer of others once all has been read in."""
        self._people = [*self._people, *(each for each in people if each not in self._people)]
        records, cursor = await self._beside(self._log.since, 0)
        await self._read_in(records, self._people)
        self._people = people
        kept = {each.user for each in records}
        self._latest = {user: at for user, at in self._latest.items() if at > cursor or user in kept}
        self._unread = {key: each for key, each in self._unread.items() if key[0] in people}
        self._refused = {(each, user) for each, user in self._refused if each in people and user in self._latest}
        self._passed_over = {user: each for user, each in self._passed_over.items() if user in kept}
        self._cursor = cursor  # only now: what an error kept from being read in is asked for again

    async def add(self, came: dict[str, Favors], call: Call) -> None:
        """Keep favors by user, durably, and read them in if a model can be reached.

        Raises:
            StoreError: as ``FreshLog``; they count as not kept then, and must be sent again.
        """
        if came:
            answering = self._people  # a request is answered by the version that it was given, gone since or not
            records = await self._beside(self._log.add_many, came, time.time())
            await self._try(records, [*dict.fromkeys([*self._people, *answering])], call)

    async def follow(self) -> None:
        """Read in what other gateways kept, what no model could be reached for, and what came of who opted in again."""
        records, cursor = await self._beside(self._log.since, self._cursor)
        new = {each.user: each for each in records if each.number > self._latest.get(each.user, 0)}
        back = {user: self._passed_over.pop(user) for user in [*self._passed_over] if not self._denied.has(user)}
        waiting = [*self._unread.items()]
        await self._read_in([*(back | new).values()], self._people)
        for people in self._people:
            await self._read_in([record for (each, _), record in waiting if each is people], [people])
        self._cursor = cursor

    async def tidy(self, forgotten: frozenset[str]) -> None:
        """Drop what the runs of all versions served have, and everything of whom these hashes of ids name.

        Raises:
            StoreError: as ``FreshLog``.
        """
        await self._beside(self._log.remove, forgotten)
        for user in await asyncio.to_thread(_named, list(self._latest), forgotten - self._forgotten):
            self._latest.pop(user, None)
            self._no_longer_unread(user)
            self._refused.difference_update([(people, user) for people in self._people])
        self._forgotten = forgotten
        for user in await asyncio.to_thread(_named, list(self._passed_over), forgotten):
            self._passed_over.pop(user, None)
        before = min((said_by_run(each.pack.manifest.logical_date) for each in self._people), default=0.0)
        if before > self._pruned:
            await self._beside(self._log.prune, before)
            self._pruned = before

    async def catch_up(self, people: People, user: str, call: Call) -> bool:
        """Whether the user's vector in a version is that of all favors known; tries to make it so."""
        record = self._unread.get((people, user))
        return (record is None or await self._try([record], [people], call)) and not self.is_refused(people, user)

    async def _beside(self, call: Callable[..., Answer], *given: Any) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *given)

    async def _read_in(self, records: Sequence[FreshRecord], versions: Sequence[People]) -> None:
        size, seconds = self._config.backend.max_rows, self._config.gateway.deadline_ms / 1_000
        for start in range(0, len(records), size):
            deadline = asyncio.get_running_loop().time() + seconds
            await self._try(records[start : start + size], versions, Call(deadline, "intake"))

    async def _try(self, records: Sequence[FreshRecord], versions: Sequence[People], call: Call) -> bool:
        """Whether the models of all these versions could be reached for all of them."""
        mine = [each for each in self._not_passed_over(records) if self._is_news(each)]
        for record in mine:
            self._latest[record.user] = record.number
            self._unread.update({(people, record.user): record for people in versions if people in self._people})
        return all([await self._reached(people, mine, call) for people in versions])  # none for want of another

    async def _reached(self, people: People, records: Sequence[FreshRecord], call: Call) -> bool:
        try:
            await self._read_into(people, records, call)
        except StoreError as error:
            if error.problem.code in OUTAGES:
                return False
            raise
        for record in self._not_passed_over(records):  # once more: who left while the model was asked was not read in
            if self._latest.get(record.user) == record.number:
                self._unread.pop((people, record.user), None)
        return True

    def _not_passed_over(self, records: Sequence[FreshRecord]) -> list[FreshRecord]:
        """Those of users who have not opted out; the others wait for their users to come back."""
        for record in records:
            if self._denied.has(record.user):
                self._passed_over[record.user] = record
                self._no_longer_unread(record.user)
        return [each for each in records if not self._denied.has(each.user)]

    def _no_longer_unread(self, user: str) -> None:
        for people in self._people:
            self._unread.pop((people, user), None)

    def _is_news(self, record: FreshRecord) -> bool:
        return record.number >= self._latest.get(record.user, 0)

    async def _read_into(self, people: People, records: Sequence[FreshRecord], call: Call) -> None:
        if not records:
            return
        pack = people.pack
        histories = _histories(pack, records)
        homes = home_regions(histories, pack.vocabulary)
        enough = np.flatnonzero(histories.lengths() >= pack.manifest.min_favors)
        vectors: list[Floats | None] = [None] * len(records)
        encoded = await self._each(pack, histories.select(enough), call) if len(enough) else []
        for at, vector in zip(enough.tolist(), encoded, strict=True):
            vectors[at] = vector
        # Both may have changed while the model was asked.
        current = [self._latest.get(each.user) == each.number and not self._denied.has(each.user) for each in records]
        refused = {at for at, vector in zip(enough.tolist(), encoded, strict=True) if vector is None and current[at]}
        rows = np.split(histories.places, histories.offsets[1:-1])
        changed = [
            Changed(records[at].user, rows[at], vectors[at], int(homes[at]))
            for at in range(len(records))
            if current[at] and at not in refused
        ]
        self._changes += len(changed)
        people.put(changed)
        self._refused.difference_update([(people, each.user) for each in changed])
        self._refused.update([(people, records[at].user) for at in refused])
        if refused:
            _LOG.warning("%s: %d of %d histories, version %s", REFUSED, len(refused), len(records), pack.version)

    async def _each(self, pack: Pack, histories: Histories, call: Call) -> list[Floats | None]:
        """[n] vectors as of ``list_vectors``; None of a history that the model refuses, even alone."""
        try:
            return [*await list_vectors(self._source, pack, histories, call)]
        except StoreError as error:
            if error.problem.code != REFUSED:
                raise
        if histories.n_users == 1:
            return [None]
        halves = np.array_split(np.arange(histories.n_users), 2)
        return [vector for half in halves for vector in await self._each(pack, histories.select(half), call)]


def _named(users: Sequence[str], names: frozenset[str]) -> list[str]:
    return [user for user in users if name_of(user) in names] if names else []


def _histories(pack: Pack, records: Sequence[FreshRecord]) -> Histories:
    """As ``history``, of what the run has of each user and what came since."""
    positions = pack.people.positions([each.user for each in records])
    known = [position for position in positions if position >= 0]
    base = iter(pack.favors(known) if known else ())
    whole = [
        each.favors if position < 0 else merged(next(base), each.favors)
        for each, position in zip(records, positions, strict=True)
    ]
    counted = [favored(each, pack.features, pack.categories_of) for each in whole]
    return histories_of([""] * len(records), counted, pack.places.of)


def history(pack: Pack, favors: Favors) -> Histories:
    """The taste history, of one user, that the run's own features would make of favors."""
    counted = favored(favors, pack.features, pack.categories_of)
    return histories_of([""], [counted], pack.places.of)


async def list_vectors(source: VectorSource, pack: Pack, histories: Histories, call: Call) -> Floats:
    """[n, dim] vectors of histories in the space that lists are searched in.

    Raises:
        StoreError: one of ``OUTAGES``; ``REFUSED``.
    """
    return reweighted(await source.encode(pack, histories, call), pack.axes, pack.manifest.home_weight)
