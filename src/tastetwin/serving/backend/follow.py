"""A backend that follows the published run: its bundle is loaded before anybody asks for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from tastetwin.errors import TasteTwinError
from tastetwin.runs import published, read_run
from tastetwin.serving.backend.repository import Repository
from tastetwin.store import Store

SECONDS: Final = 1.0
"""Between two looks at the pointer."""


def wanted_bundles(store: Store) -> list[str]:
    """Bundles of the published run and of the one before, which gateways may still answer from or go back to.

    Raises:
        StoreError: DAMAGED, STORE-UNREADABLE.
    """
    pointer = published(store)
    if pointer is None:
        return []
    runs = (read_run(store, run_id) for run_id in (pointer.run_id, *pointer.previous[-1:]))
    return list(dict.fromkeys(run.generation("train") for run in runs))


async def follow(store: Store, repository: Repository, tell: Callable[[str], None]) -> None:
    """Load what is wanted, then let go of what is not, for ever. What cannot be loaded is told once and tried again."""
    said = ""
    while True:
        await asyncio.sleep(SECONDS)
        try:
            wanted = await asyncio.to_thread(wanted_bundles, store)
            for bundle in wanted:
                await repository.load(bundle)
            for bundle in set(repository.versions()) - set(wanted) if wanted else ():
                await repository.unload(bundle)
            said = ""
        except TasteTwinError as error:
            if said != str(error):
                tell(said := str(error))
