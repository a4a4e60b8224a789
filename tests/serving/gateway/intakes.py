"""An intake with stand-ins for the model, the versions and the opt-outs."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final

import numpy as np

from tastetwin.analysis.index import Floats
from tastetwin.config import Config, FeaturesConfig
from tastetwin.errors import StoreError
from tastetwin.features.favors import Favors, Like
from tastetwin.features.histories import Histories
from tastetwin.serving.gateway.encode import Call
from tastetwin.serving.gateway.fresh import FreshLog
from tastetwin.serving.gateway.intake import Intake
from tastetwin.serving.gateway.people import Changed
from tests import handmade

CALL: Final = Call(0.0, "request")
MICROSECONDS: Final = 1_000_000


def likes(places: str, since: int = 0) -> Favors:
    """Of places a .. f, one a second."""
    return Favors((), tuple(Like(each, None, (since + at) * MICROSECONDS) for at, each in enumerate(places)))


def vector_of(places: str) -> list[float]:
    """What the model of these tests makes of a history."""
    return [float(places.count(each)) for each in "abcdef"]


class Model:
    """Counts places. Can be down, or keep the calls of ``held`` waiting until they are let go, in any order."""

    def __init__(self) -> None:
        self.down: str | None = None
        self.away: Everybody | None = None
        """A version that no model is there for."""
        self.refuses = ""
        """A place: a call with a history that has it is refused."""
        self.calls = 0
        self.holds = False
        self.held: list[asyncio.Event] = []

    async def encode(self, pack: Any, histories: Histories, call: Call) -> Floats:
        self.calls += 1
        down = "BACKEND-UNAVAILABLE" if self.away is not None and pack is self.away.pack else self.down
        if self.holds:
            self.held.append(asyncio.Event())
            await self.held[-1].wait()
        if down is not None:
            raise StoreError(down, place="backend", rule="a model answers")
        if self.refuses and handmade.row_of(self.refuses) in histories.places:
            raise StoreError("BACKEND-REFUSED", place="backend", rule="a history that the model takes")
        rows = np.split(histories.places, histories.offsets[1:-1])
        return np.array([np.bincount(each - 2, minlength=8)[:6] for each in rows], np.float32)

    async def waits(self, calls: int) -> None:
        """Until so many calls are kept waiting."""
        for _ in range(2_000):
            if len(self.held) >= calls:
                return
            await asyncio.sleep(0.001)
        raise AssertionError("the model was not called")


class Everybody:
    """Stands for ``People``: what was put last of each user."""

    def __init__(self, logical_date: str = "2026-11-20", min_favors: int = 1) -> None:
        manifest = SimpleNamespace(min_favors=min_favors, home_weight=1.0, logical_date=logical_date)
        self.pack = SimpleNamespace(
            version="a run",
            manifest=manifest,
            vocabulary=handmade.vocabulary(),
            axes=np.empty((0, 6), np.float32),
            features=FeaturesConfig(),
            categories_of=lambda _: [],
            places=SimpleNamespace(of=lambda ids: [handmade.row_of(each) for each in ids]),
            people=SimpleNamespace(positions=lambda users: [-1] * len(users)),
        )
        self.vectors: dict[str, list[float] | None] = {}

    def put(self, changed: Sequence[Changed]) -> None:
        for each in changed:
            self.vectors[each.user] = None if each.vector is None else each.vector.tolist()


@dataclass
class Denied:
    """Stands for ``DenySet``."""

    users: set[str] = field(default_factory=set)

    def has(self, user: str) -> bool:
        return user in self.users


class Gateway:
    """An intake with one version."""

    def __init__(self, log: FreshLog, *people: Everybody) -> None:
        self.model, self.denied, self.log = Model(), Denied(), log
        self.versions: Sequence[Any] = people or (Everybody(),)
        self.intake = Intake(Config(), self.model, log, self.denied)  # type: ignore[arg-type]

    @property
    def vectors(self) -> dict[str, list[float] | None]:
        vectors: dict[str, list[float] | None] = self.versions[0].vectors
        return vectors

    async def start(self) -> None:
        await self.intake.serve(self.versions)

    async def add(self, user: str, favors: Favors) -> None:
        await self.intake.add({user: favors}, CALL)


def run(whole: Coroutine[Any, Any, None]) -> None:
    """To its end, within a limit."""

    async def limited() -> None:
        await asyncio.wait_for(whole, 20)

    asyncio.run(limited())
