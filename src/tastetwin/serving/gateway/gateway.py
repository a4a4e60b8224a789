"""A running gateway: its service, and what keeps it up to date while it answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Self

from tastetwin.config import Config
from tastetwin.errors import TasteTwinError
from tastetwin.privacy.opt_out import read_forgotten
from tastetwin.serving.gateway.answers import Json
from tastetwin.serving.gateway.backends import Backends
from tastetwin.serving.gateway.encode import VectorSource
from tastetwin.serving.gateway.fresh import FreshLog
from tastetwin.serving.gateway.outputs import CachedVectors
from tastetwin.serving.gateway.routing import Routes
from tastetwin.serving.gateway.service import Service
from tastetwin.serving.gateway.versions import DenySet, Version, is_current, open_version, wanted_runs
from tastetwin.store import Store

TIDY_EVERY: Final = 5
"""Refreshes between looks at who was forgotten and what a newer run has."""
_LOG: Final = logging.getLogger(__name__)


class Gateway:
    """Opens what it answers from, and looks every ``refresh_seconds`` whether that has changed."""

    def __init__(self, store: Store, config: Config, backends: Backends, cached: CachedVectors, log: FreshLog) -> None:
        self.store, self.config = store, config
        self.backends = backends
        self._denied = DenySet(store, config.gateway.stale_opt_outs_seconds)
        self.service = Service(store, config, VectorSource(backends, cached), log, self._denied)
        self._log = log
        self._routes: Routes | None = None
        self._waiting: dict[str, Version] = {}
        """Opened, and perhaps not yet answered from."""
        self._refreshes = 0
        self._was_ready = False
        self._reader = ThreadPoolExecutor(1, "opt-outs")
        """Of its own: opt-outs are read in time even while everything else waits for a disk or a network."""
        self._keeping: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Open the versions that are routed to; from then on look after them.

        Raises:
            TasteTwinError: what is wrong with the store, a run or a pack.
        """
        await asyncio.to_thread(self._denied.refresh)
        await self._follow_pointer()
        # Two tasks, since a version may take minutes to open, and opt-outs must not wait for it.
        steps = ([self._follow_opt_outs], [self._follow_pointer, self.service.intake.follow, self._tidy])
        self._keeping = [asyncio.create_task(self._keep_up(each)) for each in steps]
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)
        self._reader.shutdown(wait=False)
        await asyncio.to_thread(self._log.close)

    @property
    def ready(self) -> bool:
        """Whether a load balancer should send requests here: once every version that answers could be encoded for.

        An outage of backends changes nothing then: published lists need none, and another gateway has no others.
        """
        versions = self.service.versions.values()
        if not self._was_ready:
            self._was_ready = bool(versions) and all(self.backends.ready(each.bundle) for each in versions)
        return self._was_ready

    def choose(self, sticky: bytes, named: str | None) -> Version:
        """The version that answers a request.

        Raises:
            UsageError: UNKNOWN-VERSION.
        """
        assert self._routes is not None, "entered"
        return self.service.versions[self._routes.choose(sticky, named)]

    def shadows(self, key: bytes, answered: Version) -> list[Version]:
        """The other versions that see a request."""
        assert self._routes is not None, "entered"
        return [self.service.versions[name] for name in self._routes.shadows(key) if name != answered.name]

    def described(self) -> Json:
        """``schemas.ModelsAnswer``."""
        assert self._routes is not None, "entered"
        versions = self.service.versions.values()
        return {
            "models": [
                self.service.origin(each)
                | {
                    "people": len(each.people),
                    "dim": each.people.pack.dim,
                    "weight": self._routes.weight(each.name),
                }
                for each in versions
            ]
        }

    async def _keep_up(self, steps: Sequence[Callable[[], Awaitable[None]]]) -> None:
        while True:
            await asyncio.sleep(self.config.gateway.refresh_seconds)
            for step in steps:
                try:
                    await step()
                except TasteTwinError as error:
                    # What was there before goes on answering, within the limits that ``DenySet.check`` sets.
                    _LOG.warning("%s", error.problem.code)
                except Exception as error:
                    # Whatever it was, the next look may succeed. Its message may quote somebody's data.
                    _LOG.error("%s while looking for what is new", type(error).__name__)

    async def _follow_opt_outs(self) -> None:
        if await asyncio.get_running_loop().run_in_executor(self._reader, self._denied.refresh):
            self.service.apply_opt_outs()

    async def _tidy(self) -> None:
        """Now and then, and not only when somebody was forgotten: an event of theirs may have been under way."""
        self._refreshes += 1
        if self._refreshes % TIDY_EVERY == 0:
            forgotten = await asyncio.to_thread(read_forgotten, self.store)
            await self.service.intake.tidy(forgotten.names)

    async def _follow_pointer(self) -> None:
        """Hold the versions that are routed to now, of the packs that the store has now; another one answers only once
        a backend is ready for it."""
        settings = self.config.gateway
        names = await asyncio.to_thread(wanted_runs, self.store, settings.weights, settings.shadow)
        held = self.service.versions
        opened = [await self._opened(name) for name in names]
        self._waiting = dict(zip(names, opened, strict=True))
        if {each.name: each for each in opened} == held:
            return
        before = [version.bundle for version in held.values()]
        await self.backends.want({*before, *(version.bundle for version in opened)})
        if held and not all(self.backends.ready(version.bundle) for version in opened):
            return
        await self.service.hold(opened)
        self._routes = Routes(settings.weights or {names[0]: 1.0}, settings.shadow)

    async def _opened(self, name: str) -> Version:
        version = self._waiting.get(name)
        if version is None or not await asyncio.to_thread(is_current, self.store, version):
            version = await asyncio.to_thread(open_version, self.store, name)
        self._waiting[name] = version
        return version
