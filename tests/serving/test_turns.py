"""One piece of work a round of the loop."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from tastetwin.serving.turns import turn


def test_between_two_turns_the_loop_goes_round() -> None:
    """What came in meanwhile is heard, and refused if need be, before the next piece of work begins."""

    async def scene() -> list[str]:
        said: list[str] = []

        async def work(name: str) -> None:
            await turn()
            said.append(name)
            asyncio.get_running_loop().call_soon(said.append, "-")

        await asyncio.gather(*(work(name) for name in "abcd"))
        await asyncio.sleep(0)
        return said

    assert asyncio.run(scene()) == ["a", "-", "b", "-", "c", "-", "d", "-"]


def test_whoever_is_gone_holds_up_nobody() -> None:
    """A request whose time is over is cancelled while it waits."""

    async def scene() -> list[int]:
        done: list[int] = []

        async def work(number: int) -> None:
            await turn()
            done.append(number)

        tasks = [asyncio.create_task(work(number)) for number in range(5)]
        await asyncio.sleep(0)
        for each in (tasks[1], tasks[2], tasks[4]):
            each.cancel()
        for each in tasks:
            with suppress(asyncio.CancelledError):
                await each
        await asyncio.wait_for(turn(), 5)
        return done

    assert asyncio.run(scene()) == [0, 3]


def test_each_loop_has_its_own_turns() -> None:
    """Nobody waits for a loop that has ended."""

    async def taken() -> None:
        await turn()

    for _ in range(3):
        asyncio.run(taken())
