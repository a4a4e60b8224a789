"""The versions that a gateway holds, each a run's pack with what came since, and who is shown to nobody."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from tastetwin.delivery.pack import MANIFEST, pack_folder, read_pack
from tastetwin.errors import StoreError, UsageError
from tastetwin.privacy.opt_out import OptOuts, OptOutWatch, name_of
from tastetwin.runs import published, read_run
from tastetwin.serving.gateway.pack import Pack
from tastetwin.serving.gateway.people import People
from tastetwin.store import Store

Clock = Callable[[], float]


@dataclass(frozen=True)
class Version:
    """One version."""

    people: People
    published_at: float
    """When readers first saw it, seconds since 1970; of another run than the published one, when it began."""

    @property
    def name(self) -> str:
        """The run's id."""
        return self.people.pack.version

    @property
    def bundle(self) -> str:
        """Generation of the encoder."""
        return self.people.pack.manifest.bundle


def open_version(store: Store, run_id: str) -> Version:
    """A run's version; takes seconds where its pack has to be made.

    Raises:
        UsageError, StoreError: as ``Pack.of``.
    """
    run, pointer = read_run(store, run_id), published(store)
    since = run.started_at if pointer is None or pointer.run_id != run_id else pointer.published_at
    return Version(People(Pack.of(store, run)), moment_of(since))


def is_current(store: Store, version: Version) -> bool:
    """Whether the store has the pack that the version is of: whoever is forgotten takes all packs along.

    Raises:
        StoreError: DAMAGED, STORE-UNREADABLE.
    """
    known = read_pack(store, version.name)
    if known is None:  # one that another release keeps in a format of its own is theirs to look after
        return store.exists(f"{pack_folder(version.name)}/{MANIFEST}")
    return known == version.people.pack.manifest


def moment_of(text: str) -> float:
    """Seconds since 1970 of an ISO time."""
    return datetime.fromisoformat(text).timestamp()


class DenySet:
    """Who has opted out, read again and again; when it cannot be read any more, nobody is shown."""

    def __init__(self, store: Store, stale_after: float, clock: Clock = time.monotonic) -> None:
        """Nothing is read yet; ``stale_after`` seconds without a reading, ``check`` refuses."""
        self._store, self._stale_after, self._clock = store, stale_after, clock
        self._watch = OptOutWatch(store)
        self._read_at: float | None = None
        self._added: set[str] = set()
        """Names that the last reading may have come too early for."""
        self._lock = threading.Lock()
        self.opt_outs = OptOuts()

    def refresh(self) -> bool:
        """Read; returns whether somebody came or went.

        Raises:
            StoreError: OPT-OUTS-DAMAGED, STORE-UNREADABLE; what was read before stands.
        """
        began = self._clock()
        with self._lock:
            before = frozenset(self._added)
        found = self._watch.read().names
        with self._lock:
            self._added -= before
            names = found | self._added
            changed = names != self.opt_outs.names
            self.opt_outs, self._read_at = OptOuts(names), began
        return changed

    def add(self, user: str) -> None:
        """Count a user who was just opted out in the store."""
        with self._lock:
            self._added.add(name_of(user))
            self.opt_outs = OptOuts(self.opt_outs.names | {name_of(user)})

    def age(self) -> float:
        """Seconds since the last reading began; infinite before the first."""
        return math.inf if self._read_at is None else self._clock() - self._read_at

    def check(self) -> None:
        """Refuse to show anybody unless it is known whom not to.

        Raises:
            StoreError: OPT-OUTS-UNKNOWN.
        """
        age = self.age()
        if age > self._stale_after:
            raise StoreError(
                "OPT-OUTS-UNKNOWN",
                place=self._store.path("privacy"),
                value="never read" if age == math.inf else f"read {age:.0f} s ago",
                rule=f"nobody is shown unless it was read within {self._stale_after:g} s who has opted out",
                fix="see that the gateway can read the store",
            )

    def has(self, user: str) -> bool:
        """Whether a user has opted out."""
        return name_of(user) in self.opt_outs.names

    def apply(self, people: People) -> None:
        """Hide them; whoever came back is shown as the run does.

        Among millions all of them would take a second, so only those who are new are looked for.
        """
        names = self.opt_outs.names
        if people.denied - names:
            people.hidden[:], people.denied = False, frozenset()
        new = names - people.denied
        newcomers = [at for at in range(len(people.pack), len(people)) if name_of(people.name(at)) in names]
        people.hidden[people.pack.positions_of_names(new)] = True
        people.hidden[np.array(newcomers, np.int64)] = True
        people.denied = names


def wanted_runs(store: Store, weights: dict[str, float], shadow: dict[str, float]) -> tuple[str, ...]:
    """Ids of the runs that a gateway with these routes must hold; the published one where none is weighted.

    Raises:
        UsageError: NOT-PUBLISHED.
    """
    pointer = published(store)
    if not weights and pointer is None:
        raise UsageError(
            "NOT-PUBLISHED", place=store.root, value="no run", rule="a run is published", fix="tastetwin run"
        )
    first = tuple(weights) if weights or pointer is None else (pointer.run_id,)
    return tuple(dict.fromkeys((*first, *shadow)))
