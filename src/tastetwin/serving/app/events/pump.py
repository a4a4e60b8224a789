"""Events in, twin lists out: three steps that run side by side, each in the order of arrival.

reading    takes batches from the cluster, and commits what the last step is done with
taking     has the gateway take a batch in
giving     sends its dead letters and lists, until every one is confirmed

A crash anywhere leaves what was not committed to be read again: the gateway counts the same event once, and the last
value of a key is all that the twins topic keeps.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from confluent_kafka import Message as Received

from tastetwin.config import AppConfig
from tastetwin.errors import StoreError
from tastetwin.mart.rules import GateRules
from tastetwin.serving.app.events.lanes import Lane
from tastetwin.serving.app.events.letters import Outgoing, bury
from tastetwin.serving.app.events.membership import Membership
from tastetwin.serving.app.events.message import Message, read, receive
from tastetwin.serving.app.events.metrics import Metrics
from tastetwin.serving.app.events.outbox import Doubtful, Outbox
from tastetwin.serving.app.events.taking import Favors, Halted, Taken, Taking
from tastetwin.serving.app.events.updates import update

AHEAD: Final = 2
"""Batches that wait for a step."""
STALL_SECONDS: Final = 0.5
"""How long a batch waits for room before the partitions are paused."""
SETTLE_SECONDS: Final = 5.0
"""How long a rebalance waits for what is under way."""
GRACE_SECONDS: Final = 15.0
"""How long the end waits for it."""
_TICK: Final = 0.02

T = TypeVar("T")


@dataclass
class Batch:
    """Messages that came together, and what became of them."""

    messages: list[Message]
    taken: list[Taken] = field(default_factory=list)
    arrived: float = field(default_factory=time.monotonic)

    @property
    def lanes(self) -> list[Lane]:
        """Those that have messages in it."""
        return list({id(message.lane): message.lane for message in self.messages}.values())


class Pump:
    """One member of the group.

    Args:
        config: topics and sizes.
        consumer: settings of librdkafka's consumer, see ``consumer_settings``.
        outbox: where letters and lists go.
        gateway: takes the events.
        rules: how the mart reads user ids.
        metrics: counted here.
    """

    def __init__(
        self,
        config: AppConfig,
        consumer: dict[str, Any],
        outbox: Outbox,
        gateway: Favors,
        rules: GateRules,
        metrics: Metrics,
    ) -> None:
        self._config, self._outbox, self._rules, self._metrics = config, outbox, rules, metrics
        self._loop = asyncio.get_running_loop()
        self._reader = ThreadPoolExecutor(1, "kafka-consumer")
        self._sender = ThreadPoolExecutor(1, "kafka-producer")
        self._stopping = asyncio.Event()
        self._arrived: asyncio.Queue[Batch | None] = asyncio.Queue(AHEAD)
        self._done: asyncio.Queue[Batch | None] = asyncio.Queue(AHEAD)
        self._room = asyncio.Event()
        self._sending = self._closing = self._given_up = False
        self._taking = Taking(gateway, config.events_twins, self._keep, metrics, self._stopping)
        self._member = Membership(consumer, config.events_topic, self._settle)
        metrics.watch(lambda: list(self._member.lanes.values()))

    def stop(self) -> None:
        """Take no more; ``run`` ends once what is under way is done."""
        self._stopping.set()

    async def run(self) -> None:
        """Until ``stop``.

        Raises:
            StoreError: KAFKA-UNDELIVERED, KAFKA-UNREACHABLE: nothing is lost, begin again.
        """
        try:
            async with asyncio.TaskGroup() as group:
                giving = group.create_task(self._give_all())
                group.create_task(self._take_all())
                group.create_task(self._read_all(giving))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self._closing = True
            self._outbox.stop()
            await self._in(self._reader, self._member.leave)
            self._reader.shutdown(wait=False)
            self._sender.shutdown(wait=False)

    async def _in(self, thread: ThreadPoolExecutor, work: Callable[..., T], *args: Any) -> T:
        return await self._loop.run_in_executor(thread, work, *args)

    # -- reading ------------------------------------------------------------------------------------------------------

    async def _read_all(self, giving: asyncio.Task[None]) -> None:
        waiting: deque[Batch] = deque()
        while not self._stopping.is_set():
            waiting.extend(await self._turn(still=bool(waiting)))
            await self._pass_on(waiting)
        self._loop.call_later(GRACE_SECONDS, self._give_up)
        ending = asyncio.create_task(self._arrived.put(None))
        while not giving.done():  # the member stays one until all is confirmed
            await self._turn(still=True)
        await ending

    def _give_up(self) -> None:
        """The end waits no longer: what is not confirmed is not committed."""
        self._given_up = True
        self._outbox.stop()

    async def _turn(self, still: bool) -> list[Batch]:
        wait = self._config.events_wait_ms / 1_000
        found = await self._in(self._reader, self._member.turn, self._config.events_batch, wait, still)
        return [self._begun(found)] if found else []

    def _begun(self, found: Sequence[Received]) -> Batch:
        batch = Batch([])
        of_lane: dict[int, list[Message]] = {}
        for raw in found:
            lane = self._member.lanes.get(raw.partition() or 0)
            if lane is not None:
                message = receive(raw, lane)
                batch.messages.append(message)
                of_lane.setdefault(lane.partition, []).append(message)
        for messages in of_lane.values():
            messages[0].lane.begin([each.offset for each in messages], messages[0].at)
        self._metrics.size.observe(len(batch.messages))
        return batch

    async def _pass_on(self, waiting: deque[Batch]) -> None:
        """What there is room for; waits a little for room."""
        while waiting:
            if self._arrived.full():
                self._room.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._room.wait(), STALL_SECONDS)
                if self._arrived.full():
                    return
            read(waiting[0].messages, self._rules, self._config.event_bytes)
            self._arrived.put_nowait(waiting.popleft())

    # -- taking -------------------------------------------------------------------------------------------------------

    async def _take_all(self) -> None:
        halted = False
        while (batch := await self._arrived.get()) is not None:
            self._room.set()
            if halted:
                continue
            try:
                batch.taken = await self._taking.take([each for each in batch.messages if not each.reason])
            except Halted:
                halted = True
                continue
            await self._done.put(batch)
        await self._done.put(None)

    async def _keep(self, messages: Sequence[Message]) -> Sequence[Message]:
        while not self._member.trusted():
            if self._given_up:
                raise Halted
            await asyncio.sleep(_TICK)
        return [each for each in messages if not each.lane.gone]

    # -- giving -------------------------------------------------------------------------------------------------------

    async def _give_all(self) -> None:
        failed = False
        while (batch := await self._done.get()) is not None:
            failed = failed or not await self._give(batch)

    async def _give(self, batch: Batch) -> bool:
        """Whether all is confirmed; if not the process is to end, and nothing of it is committed."""
        try:
            while (done := await self._sent(batch)) is None:
                pass
        except Halted:
            return False
        except StoreError:
            if not self._stopping.is_set():
                raise
            return False
        self._count(batch)
        for lane in done:
            lane.end()
        return True

    async def _sent(self, batch: Batch) -> list[Lane] | None:
        """Of which lanes all is confirmed; None where it became doubtful meanwhile whether the batch is ours.

        A lane that was gone before has had no effect: it must not seem done, for it may yet be committed.
        """
        await self._keep([])
        lanes, outgoing = [lane for lane in batch.lanes if not lane.gone], self._outgoing(batch)
        self._sending = True
        try:
            await self._in(self._sender, self._outbox.send, outgoing, self._member.trusted)
        except Doubtful:
            return None
        finally:
            self._sending = False
        return lanes

    def _outgoing(self, batch: Batch) -> list[Outgoing]:
        letters = [
            bury(each, self._config.dead_letter_topic) for each in batch.messages if each.reason and not each.lane.gone
        ]
        topic = self._config.twins_topic
        return letters + [
            update(topic, each.origin, each.item, each.last) for each in batch.taken if not each.last.lane.gone
        ]

    def _count(self, batch: Batch) -> None:
        held = [each for each in batch.messages if not each.lane.gone]
        for message in held:
            if message.reason:
                self._metrics.dead.labels(message.reason).inc()
        dead = sum(bool(each.reason) for each in held)
        lists = sum(each.item.answer is not None for each in batch.taken)
        self._metrics.messages.labels("dead").inc(dead)
        self._metrics.messages.labels("taken").inc(len(held) - dead)
        self._metrics.updates.labels("list").inc(lists)
        self._metrics.updates.labels("none").inc(len(batch.taken) - lists)
        self._metrics.seconds.observe(time.monotonic() - batch.arrived)

    # -- giving up partitions -----------------------------------------------------------------------------------------

    def _settle(self, lanes: Sequence[Lane]) -> None:
        """In the reader's thread, from within a poll."""
        asyncio.run_coroutine_threadsafe(self._settled(lanes), self._loop).result()

    async def _settled(self, lanes: Sequence[Lane]) -> None:
        """Finish what is under way, or drop it where that takes too long."""
        until = self._loop.time() + SETTLE_SECONDS
        while not self._closing and not self._taking.in_trouble and not all(lane.idle for lane in lanes):
            if self._loop.time() > until:
                break
            self._member.alive()  # the poll that we are in is no gap
            await asyncio.sleep(_TICK)
        for lane in lanes:
            lane.gone = True
        while self._sending and not self._closing and self._loop.time() < until + SETTLE_SECONDS:
            self._member.alive()
            await asyncio.sleep(_TICK)
