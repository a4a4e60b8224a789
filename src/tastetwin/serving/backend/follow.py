"""A backend that follows the published run: its bundle is loaded before anybody asks for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from tastetwin.errors import TasteTwinError
from tastetwin.runs import published, read_run
from tastetwin.serving.backend.repository import Repository
from tastetwin.store import Store

SECONDS: Final = 1.0
"""Between two looks at the pointer."""
LINGER: Final = 60.0
"""Seconds that a bundle stays once no run needs it: after a rollback gateways answer from it until they looked, too."""


async def follow(store: Store, repository: Repository, tell: Callable[[str], None]) -> None:
    """Load what the published run needs, then let go of what it no longer does, for ever.

    What cannot be loaded is told once and tried again. What somebody else loaded stays.
    """
    mine, said = dict.fromkeys(repository.versions(), time.monotonic()), ""
    while True:
        await asyncio.sleep(SECONDS)
        trouble = ""
        try:
            await _follow_once(store, repository, mine)
        except TasteTwinError as error:
            trouble = str(error)
        except Exception as error:  # ONNX Runtime's have no common class, and the next look may succeed
            trouble = f"not loaded: {type(error).__name__}"
        if trouble and trouble != said:
            tell(trouble)
        said = trouble


async def _follow_once(store: Store, repository: Repository, mine: dict[str, float]) -> None:
    """``mine``: what was loaded by following, and when it was needed last; kept up to date."""
    wanted = set()
    for run_id in await asyncio.to_thread(_runs, store):
        bundle = (await asyncio.to_thread(read_run, store, run_id)).generation("train")
        await repository.load(bundle)
        wanted.add(bundle)
    now = time.monotonic()
    mine.update(dict.fromkeys(wanted, now))
    for bundle in [each for each, needed in mine.items() if now - needed > LINGER] if wanted else ():
        del mine[bundle]
        if bundle in repository.versions():
            await repository.unload(bundle)


def _runs(store: Store) -> list[str]:
    """The published run first, then the one before, which gateways may still answer from or go back to."""
    pointer = published(store)
    return [] if pointer is None else [pointer.run_id, *pointer.previous[-1:]]
