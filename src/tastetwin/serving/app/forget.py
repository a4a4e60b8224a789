"""A person erased from what the app keeps; the rest is ``delivery.forget``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tastetwin.config import AppConfig
from tastetwin.errors import UsageError
from tastetwin.masks import masked
from tastetwin.serving.app.state import open_state

if TYPE_CHECKING:  # it loads libraries that no app needs
    from tastetwin.delivery.erase import Found, Users
    from tastetwin.delivery.forget import Look
    from tastetwin.store import Store

STATE: Final = "state"
"""Folder of the app's state in the home of tiers that run together."""
_REDIS_REMAINS: Final = "what that Redis keeps of deleted keys (append-only file, snapshots, replicas, backups)"


def app_places(config: AppConfig, home: Path | None) -> list[Look]:
    """Where the app keeps people.

    Args:
        config: names its state and its topics.
        home: as of ``serve --home``: its state is meant where the settings name none.

    Raises:
        UsageError: STATE-ADDRESS when there is no such home.
    """
    if home is not None and not home.is_dir():
        rule = "the folder that tastetwin serve made or was given"
        raise UsageError("STATE-ADDRESS", place="--home", value=str(home), rule=rule, fix="name that folder")
    address = config.state or (None if home is None else str(home / STATE))
    places: list[Look] = [] if address is None else [partial(_state, address)]
    return places if config.brokers is None else [*places, partial(_topics, config)]


def _state(address: str, store: Store, users: Users) -> Found:
    """Whom they dismissed or follow, and who dismissed or follows them.

    Raises:
        UsageError, StoreError, MissingExtra: as ``open_state`` and ``State.forget``; from ``erase``.
    """
    from tastetwin.delivery.erase import Found

    is_server = "://" in address
    if not is_server and not Path(address).exists():
        return Found(f"app's state {address}", 0, 0, 0, 0, "", lambda: None)

    def erase() -> None:
        state = open_state(address)
        try:
            for user in users:
                state.forget(user)
        finally:
            state.close()

    place, remains = (masked(address), _REDIS_REMAINS) if is_server else (address, "")
    return Found(f"app's state {place}", 1, len(users), len(users), 0, remains, erase)


def _topics(config: AppConfig, store: Store, users: Users) -> Found:
    """Nothing can be done there, and whoever reads the receipt has to know."""
    from tastetwin.delivery.erase import Found

    topics = f"{config.events_topic}, {config.dead_letter_topic} and {config.twins_topic}"
    remains = (
        "not searched and not erased, for Kafka cannot take single messages out: their events and dead letters, until "
        "the retention of those topics; their last list, and they in lists of others, until newer ones are sent"
    )
    return Found(f"Kafka topics {topics}", 0, 0, 0, 0, remains, lambda: None)
