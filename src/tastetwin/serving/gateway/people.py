"""Everybody a gateway can speak of: the people of a pack, and those whose favors came since.

Changes happen on the event loop only; nothing here waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tastetwin.analysis.index import Floats, Ints
from tastetwin.serving.gateway.pack import NOBODY, Pack, Positions, Rows

Mask = npt.NDArray[np.bool_]

_ROOM: Final = 1_024


class Changed(NamedTuple):
    """A user's new history."""

    user: str
    rows: Rows
    """Vocabulary rows, oldest first."""
    vector: Floats | None
    """[dim] unit vector, as lists are searched by; None with too few favors for one."""
    home: int
    """Index of the home region, -1 where unknown."""


class Fresh(NamedTuple):
    """People with favors since the run."""

    people: Ints
    """[m] positions."""
    vectors: Floats
    """[m, dim]"""
    crowding: Floats
    """[m] r"""
    homes: Positions
    """[m] index of the home region, -1 where unknown."""
    shown: Mask
    """[m] whether others may see them."""


class People:
    """Positions below ``len(pack)`` are the pack's; newcomers follow in the order in which they came."""

    def __init__(self, pack: Pack) -> None:
        self.pack = pack
        self.hidden: Mask = np.zeros(len(pack) + _ROOM, bool)
        """[>= n] who may be shown to nobody; more room than people."""
        self.denied: frozenset[str] = frozenset()
        """Hashes of the ids of those."""
        self._member: Mask = np.zeros(len(pack), bool)
        self._member[pack.members] = True
        self._replaced: Mask = np.zeros(len(pack), bool)
        self._newcomers: dict[str, int] = {}
        self._names: list[str] = []
        self._slots: dict[int, int] = {}
        self._rows: list[Rows] = []
        self._people: Ints = np.empty(_ROOM, np.int64)
        self._vectors: Floats = np.zeros((_ROOM, pack.dim), np.float32)
        self._crowding: Floats = np.zeros(_ROOM, np.float32)
        self._homes: Positions = np.empty(_ROOM, np.int32)
        self._shown: Mask = np.empty(_ROOM, bool)
        self._has_vector: Mask = np.zeros(_ROOM, bool)

    def __len__(self) -> int:
        """The pack's and newcomers."""
        return len(self.pack) + len(self._names)

    # -- who is who ---------------------------------------------------------------------------------------------------

    def find(self, user: str) -> int:
        """Position of a user; ``NOBODY`` where neither the run nor anything since knows them."""
        position, since = self.pack.people.position(user), self._newcomers.get(user, NOBODY)
        return since if position < 0 else position

    def name(self, position: int) -> str:
        """The user's id."""
        n = len(self.pack)
        return self._names[position - n] if position >= n else self.pack.people.name(position)

    def rows(self, position: int) -> Rows:
        """Vocabulary rows of a person, oldest first, as of now."""
        slot = self._slots.get(position)
        return self.pack.history(position) if slot is None else self._rows[slot]

    def places_of(self, people: Ints) -> Ints:
        """[m] distinct places of people, as of now."""
        slots = [self._slots.get(each) for each in people.tolist()]
        known = self.pack.places_of(np.minimum(people, len(self.pack) - 1))
        fresh = [
            int(count) if slot is None else len(self._rows[slot]) for slot, count in zip(slots, known, strict=True)
        ]
        return np.array(fresh, np.int64)

    def has_vector(self, position: int) -> bool:
        """Whether the person has one, as of now; not so for ``NOBODY``."""
        slot = self._slots.get(position)
        return self.pack.has_vector(position) if slot is None else bool(self._has_vector[slot])

    def vector(self, position: int) -> Floats | None:
        """[dim] as of now; None where the person has none."""
        slot = self._slots.get(position)
        if slot is not None:
            return np.asarray(self._vectors[slot]) if self._has_vector[slot] else None
        return np.asarray(self.pack.vectors[position]) if self.pack.has_vector(position) else None

    def home(self, position: int) -> int:
        """Index of the home region; -1 where unknown."""
        slot = self._slots.get(position)
        return int(self.pack.homes[position] if slot is None else self._homes[slot])

    @property
    def n_fresh(self) -> int:
        """How many have favors since the run."""
        return len(self._slots)

    def is_fresh(self, position: int) -> bool:
        """Whether favors came since the run."""
        return position in self._slots

    def own(self, position: int) -> frozenset[int]:
        """The person's own positions: their account, and the one that is shown instead of it."""
        if position >= len(self.pack):
            return frozenset({position})
        return frozenset({position, int(self.pack.instead[position])} - {NOBODY})

    def excluded(self, position: int) -> frozenset[int]:
        """Positions never to be shown to a person: their own, whom they follow, either side of a block."""
        own = self.own(position)
        return own if position >= len(self.pack) else own | set(self.pack.not_shown_to(position).tolist())

    # -- what came since ----------------------------------------------------------------------------------------------

    def put(self, changed: Sequence[Changed]) -> None:
        """Give users another history and the vector of it, from now on.

        Whom the run shows to nobody stays so; newcomers are shown. Without a vector, nobody is.
        """
        slots = [self._slot(each) for each in changed]
        told = [(slot, each.vector) for slot, each in zip(slots, changed, strict=True) if each.vector is not None]
        if told:
            mine = [slot for slot, _ in told]
            vectors = np.stack([vector for _, vector in told])
            self._vectors[mine] = vectors
            self._crowding[mine] = self.pack.crowding_of(vectors, list(map(self.own, self._people[mine].tolist())))

    def _slot(self, changed: Changed) -> int:
        """The user's slot, with all but the vector filled in."""
        position = self.find(changed.user)
        if position < 0:
            position = self._admit(changed.user)
        slot = self._slots.get(position)
        if slot is None:
            slot = self._take_slot(position)
        self._rows[slot], self._homes[slot] = changed.rows, changed.home
        self._has_vector[slot] = changed.vector is not None
        return slot

    def _admit(self, user: str) -> int:
        position = len(self)
        self._newcomers[user] = position
        self._names.append(user)
        if position >= len(self.hidden):
            self.hidden = np.concatenate([self.hidden, np.zeros(len(self.hidden), bool)])
        return position

    def _take_slot(self, position: int) -> int:
        slot = len(self._rows)
        if slot == len(self._people):
            for name in ("_people", "_vectors", "_crowding", "_homes", "_shown", "_has_vector"):
                array = getattr(self, name)
                setattr(self, name, np.concatenate([array, np.zeros_like(array)]))
        self._slots[position] = slot
        self._people[slot] = position
        self._shown[slot] = position >= len(self.pack) or self._member[position]
        if position < len(self.pack):
            self._replaced[position] = True
        self._rows.append(np.empty(0, np.int32))
        return slot

    def is_replaced(self, positions: Ints) -> Mask:
        """[m] whether the pack's vector of a person no longer stands."""
        return np.asarray(self._replaced[positions])

    def fresh(self) -> Fresh:
        """Those with favors since the run; views, of now."""
        m = len(self._rows)
        return Fresh(
            self._people[:m], self._vectors[:m], self._crowding[:m], self._homes[:m],
            self._shown[:m] & self._has_vector[:m],
        )  # fmt: skip

    def crowding(self, position: int) -> np.float32 | None:
        """r of a person with favors since the run; None of others."""
        slot = self._slots.get(position)
        return None if slot is None else self._crowding[slot]
