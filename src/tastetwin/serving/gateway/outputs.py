"""Prediction-output store: same input, same version, same output, so it is computed once.

Three stores of one contract: this process's memory, LMDB (``outputs_lmdb``: all processes of a machine share a
folder), Redis (``outputs_redis``: several machines). A store is a cache: what it lost, cannot read or finds damaged
is a miss, never an error. ``CachedVectors`` stands in front of it and lets concurrent askers share a computation.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter

from tastetwin.config import GatewayConfig
from tastetwin.serving.addresses import is_redis

Floats = npt.NDArray[np.float32]
Given = TypeVar("Given")
Answer = TypeVar("Answer")

KEY_BYTES: Final = 16
OVERHEAD: Final = 200
"""Bytes that an entry in memory costs beside its value: key, two objects, the place in the dict."""
_SEAL: Final = struct.Struct("<II")


class Outputs(Protocol):
    """Values by key. Neither method raises for trouble of the store: that is a miss, counted as a failure."""

    blocking: bool
    """Whether a call may wait for a network, so that it must be made beside the event loop."""

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value of each key, None where there is none."""

    def put(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        """Keep these (key, value); others may be dropped for them."""

    def close(self) -> None:
        """Give back what the store holds open."""


class OutputMetrics:
    """How often the store helped."""

    def __init__(self, registry: CollectorRegistry) -> None:
        asked = Counter(
            "tastetwin_gateway_outputs", "Outputs asked for, by where they came from", ["result"], registry=registry
        )
        self.hit, self.miss, self.shared = (asked.labels(result) for result in ("hit", "miss", "shared"))
        self._failures = Counter(
            "tastetwin_gateway_outputs_failures",
            "Calls of the prediction-output store that failed",
            ["action"],
            registry=registry,
        )
        for action in ("get", "put"):  # an alert waits for the first
            self._failures.labels(action)

    def failed(self, action: str) -> None:
        """A ``get`` or ``put`` did not work."""
        self._failures.labels(action).inc()


def open_outputs(settings: GatewayConfig, metrics: OutputMetrics) -> Outputs:
    """The store that ``gateway.outputs`` names.

    Raises:
        UsageError: OUTPUTS-ADDRESS when it is neither a folder nor a Redis address.
        StoreError: STORE-UNWRITABLE when the folder cannot be written.
        MissingExtra: the client of that store is not installed.
    """
    address, size = settings.outputs, settings.outputs_mb << 20
    if not address:
        return MemoryOutputs(size)
    if is_redis(address, "OUTPUTS-ADDRESS", "gateway.outputs"):
        from tastetwin.serving.gateway.outputs_redis import RedisOutputs

        return RedisOutputs(address, metrics)
    from tastetwin.serving.gateway.outputs_lmdb import LmdbOutputs

    return LmdbOutputs(address, size, metrics)


def key_of(version: str, content: bytes) -> bytes:
    """[16] digest of an input and the version that is to answer it; no other pair gives the same."""
    name = version.encode()
    return blake2b(len(name).to_bytes(4, "little") + name + content, digest_size=KEY_BYTES).digest()


def seal(key: bytes, value: bytes) -> bytes:
    """The value with its length and a checksum over key and value before it."""
    return _SEAL.pack(zlib.crc32(value, zlib.crc32(key)), len(value)) + value


def unseal(key: bytes, sealed: bytes | None) -> bytes | None:
    """The value that was sealed under this key; None when there is none or it is damaged."""
    if sealed is None or len(sealed) < _SEAL.size:
        return None
    checksum, length = _SEAL.unpack_from(sealed)
    value = sealed[_SEAL.size :]
    return value if length == len(value) and checksum == zlib.crc32(value, zlib.crc32(key)) else None


class MemoryOutputs:
    """Of this process alone; the least recently used go first. For one thread."""

    blocking = False

    def __init__(self, size: int) -> None:
        """Room for ``size`` bytes."""
        self._size, self._used = size, 0
        self._values: OrderedDict[bytes, bytes] = OrderedDict()

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """As ``Outputs`` says."""
        found = [self._values.get(key) for key in keys]
        for key, value in zip(keys, found, strict=True):
            if value is not None:
                self._values.move_to_end(key)
        return found

    def put(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        """As ``Outputs`` says."""
        for key, value in pairs:
            before = self._values.pop(key, None)
            self._used += len(value) + OVERHEAD if before is None else len(value) - len(before)
            self._values[key] = bytes(memoryview(value))  # a copy: orjson's are in buffers of up to nine times the size
        while self._used > self._size:
            self._used -= len(self._values.popitem(last=False)[1]) + OVERHEAD

    def close(self) -> None:
        """Nothing is open."""


@dataclass(eq=False)
class _Flight:
    """A computation under way, for which keys, and how many wait for it."""

    keys: list[bytes]
    task: asyncio.Task[dict[bytes, bytes]]
    waiting: int = 0


class SingleFlight:
    """Concurrent askers of one key share one computation. For one event loop.

    The computation is a task of its own: an asker that is cancelled leaves the others theirs, and the last one to
    leave cancels it. What it raises reaches every asker. Nothing is kept once it ended.
    """

    def __init__(self) -> None:
        self._flights: dict[bytes, _Flight] = {}

    def __len__(self) -> int:
        """Keys under way."""
        return len(self._flights)

    async def ask(
        self, keys: Sequence[bytes], compute: Callable[[list[bytes]], Awaitable[dict[bytes, bytes]]]
    ) -> tuple[list[bytes], int]:
        """The value of each key, and for how many of them this call was the one to compute.

        Args:
            keys: any, in any order; one may come twice.
            compute: called at most once, with the keys that nobody computes yet; returns the value of each.

        Raises:
            Exception: what ``compute`` raised, this asker's or that of whom it shares with.
        """
        own = [key for key in dict.fromkeys(keys) if key not in self._flights]
        if own:
            self._depart(own, compute)
        flights = {key: self._flights[key] for key in keys}
        await self._land(set(flights.values()))
        return [flights[key].task.result()[key] for key in keys], len(own)

    def _depart(self, keys: list[bytes], compute: Callable[[list[bytes]], Awaitable[dict[bytes, bytes]]]) -> None:
        async def computed() -> dict[bytes, bytes]:
            return await compute(keys)

        flight = _Flight(keys, asyncio.create_task(computed()))
        self._flights.update(dict.fromkeys(keys, flight))

        def forget(task: asyncio.Task[dict[bytes, bytes]]) -> None:
            self._forget(flight)
            if not task.cancelled():
                task.exception()  # looked at, so that asyncio does not log one whose askers have all left

        flight.task.add_done_callback(forget)

    def _forget(self, flight: _Flight) -> None:
        for key in flight.keys:
            if self._flights.get(key) is flight:
                del self._flights[key]

    async def _land(self, flights: set[_Flight]) -> None:
        for flight in flights:
            flight.waiting += 1
        try:
            done, _ = await asyncio.wait({each.task for each in flights}, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            for flight in flights:
                flight.waiting -= 1
                if not flight.waiting and not flight.task.done():
                    self._forget(flight)  # at once: nobody may join what is about to be cancelled
                    flight.task.cancel()


class CachedVectors:
    """Vectors by key: from the store, from a computation under way, or computed."""

    def __init__(self, outputs: Outputs, metrics: OutputMetrics) -> None:
        self._outputs, self._metrics = outputs, metrics
        self._flight = SingleFlight()

    async def get(self, keys: Sequence[bytes], dim: int, compute: Callable[[list[int]], Awaitable[Floats]]) -> Floats:
        """The vector of each key.

        Args:
            keys: [n] of ``key_of``.
            dim: length of a vector.
            compute: called at most once, with the positions in ``keys`` [m] that nobody has; returns [m, dim] float32.

        Returns:
            [n, dim] float32, in the order of the keys, the caller's own.

        Raises:
            Exception: what ``compute`` raised.
        """
        found = await self._beside(self._outputs.get, keys)
        missing = [at for at, value in enumerate(found) if value is None or len(value) != 4 * dim]
        self._metrics.hit.inc(len(keys) - len(missing))
        if missing:
            for at, value in zip(missing, await self._compute(keys, missing, dim, compute), strict=True):
                found[at] = value
        whole = bytearray().join(value for value in found if value is not None)
        return np.frombuffer(whole, "<f4").reshape(len(keys), dim)

    async def _compute(
        self, keys: Sequence[bytes], missing: list[int], dim: int, compute: Callable[[list[int]], Awaitable[Floats]]
    ) -> list[bytes]:
        position = {keys[at]: at for at in reversed(missing)}

        async def rows(own: list[bytes]) -> dict[bytes, bytes]:
            vectors = np.ascontiguousarray(await compute([position[key] for key in own]), "<f4")
            if vectors.shape != (len(own), dim):
                raise ValueError(f"computed {vectors.shape}, wanted {(len(own), dim)}")
            values = {key: row.tobytes() for key, row in zip(own, vectors, strict=True)}
            await self._beside(self._outputs.put, list(values.items()))
            return values

        values, computed = await self._flight.ask([keys[at] for at in missing], rows)
        self._metrics.miss.inc(computed)
        self._metrics.shared.inc(len(missing) - computed)
        return values

    async def _beside(self, call: Callable[[Given], Answer], given: Given) -> Answer:
        return await asyncio.to_thread(call, given) if self._outputs.blocking else call(given)
