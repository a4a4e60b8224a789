"""What the tests of the gateway share: a service without HTTP, and models that can be out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry

from tastetwin.analysis.encode import OUTPUT, open_encoder
from tastetwin.config import Config
from tastetwin.errors import StoreError
from tastetwin.generations import read_manifest
from tastetwin.runs import published_run
from tastetwin.serving.gateway.encode import Call, VectorSource
from tastetwin.serving.gateway.fresh import MemoryLog
from tastetwin.serving.gateway.outputs import CachedVectors, MemoryOutputs, OutputMetrics
from tastetwin.serving.gateway.service import Service
from tastetwin.serving.gateway.versions import DenySet, Version, open_version
from tastetwin.serving.protocol import Tensors
from tastetwin.store import Store

Answer = TypeVar("Answer")
Json = dict[str, Any]


@dataclass
class Models:
    """The run's own encoder, asked as a backend would be; can be out, and counts."""

    session: Any
    out: bool = False
    longest: int = 1_000
    """Longer histories are refused."""
    rows: list[int] = field(default_factory=list)

    async def infer(self, version: str, inputs: Tensors, deadline: float, request_id: str) -> npt.NDArray[np.float32]:
        await asyncio.sleep(0)
        if self.out:
            raise StoreError("BACKEND-UNAVAILABLE", place="backends", rule="one that answers")
        if inputs["places"].shape[1] > self.longest:
            raise StoreError("BACKEND-REFUSED", place="backends", rule="a history that is not too long")
        self.rows.append(len(inputs["places"]))
        found: npt.NDArray[np.float32] = self.session.run([OUTPUT], dict(inputs))[0]
        return found


class Clock:
    """Time that passes when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    """A service and what it rests on."""

    store: Store
    models: Models
    service: Service
    version: Version
    clock: Clock

    def run(self, asked: Awaitable[Answer]) -> Answer:
        """The answer to one question."""

        async def ask() -> Answer:
            return await asked

        return asyncio.run(ask())

    def call(self) -> Call:
        return Call(1e12, "test")


def at_home(store: Store, config: Config | None = None) -> World:
    """A service of the published run."""
    run = published_run(store)
    encoder = open_encoder(store, read_manifest(store, "train", run.generation("train")), 2048)
    models, clock = Models(encoder._session), Clock()
    cached = CachedVectors(MemoryOutputs(1 << 20), OutputMetrics(CollectorRegistry()))
    denied = DenySet(store, 5.0, clock)
    denied.refresh()
    service = Service(store, config or Config(), VectorSource(models, cached), MemoryLog(), denied)
    version = open_version(store, run.run_id)
    asyncio.run(service.hold([version]))
    return World(store, models, service, version, clock)


def names(twins: Sequence[Json]) -> list[str]:
    """Ids of a list."""
    return [twin["user"] for twin in twins]
