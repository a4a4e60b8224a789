"""What workers do about one block of users (those of one file of vectors), or one shard, when lists are made in shards.

A worker holds one block and one shard at a time. What lives from one task to the next lies in files of the block.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tastetwin.analysis.arrays import put_array, read_array
from tastetwin.analysis.blas import one_thread
from tastetwin.analysis.chance import Chance
from tastetwin.analysis.exposure import accepted
from tastetwin.analysis.fill import CANDIDATES, Filling
from tastetwin.analysis.hubness import mean_found
from tastetwin.analysis.index import MISSING, ExactIndex, Floats, Ints, Keys, Shown, from_keys, row_dots, sort_keys
from tastetwin.analysis.pairs import ANYWHERE, PairRules, Region
from tastetwin.analysis.parts import projected
from tastetwin.analysis.rows import parts_of, twin_rows
from tastetwin.analysis.scale import ScoreScale
from tastetwin.analysis.search import BLOCK
from tastetwin.analysis.shards import Shards, by_shard, gather
from tastetwin.analysis.stored import as_matrix, read_vectors_table
from tastetwin.schema import USER
from tastetwin.store import Store
from tastetwin.tables import put_table, told

_PAIRS_AT_A_TIME: Final = 1 << 16
_ASKED_AT_A_TIME: Final = 1 << 22


@dataclass(frozen=True)
class Blocks:
    """What every worker knows."""

    shards: Shards
    """Of the vectors whose nearest are looked for."""
    paths: tuple[str, ...]
    """The file of vectors of each block."""
    region: Region
    capped: bool

    @property
    def store(self) -> Store:
        """Opened where it is asked for."""
        return self.shards.store

    def put(self, name: str, array: npt.NDArray[Any]) -> None:
        """Keep an array that all share, or (``name/number``) that belongs to one block or shard."""
        put_array(self.store, f"{self.shards.folder}/{name}.npy", array)

    def get(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Rows of a kept array."""
        return read_array(self.store, f"{self.shards.folder}/{name}.npy", start, stop)

    def of_shard(self, name: str, number: int) -> npt.NDArray[Any]:
        """The rows of a shard in an array of all n users."""
        return self.get(name, *self.shards.bounds(number))

    def vectors(self, number: int) -> tuple[pa.Array, Floats]:
        """User ids, ascending, and vectors of a block, as they are stored."""
        table = read_vectors_table(self.store, [self.paths[number]]).sort_by(USER)
        return table.column(USER).combine_chunks(), as_matrix(table)

    def queries(self, number: int) -> Floats:
        """A block's vectors, whose nearest are looked for."""
        return self.shards.seen(self.vectors(number)[1])

    def filling(self, number: int) -> Filling:
        """A block's lists, in memory."""
        everywhere = np.broadcast_to(ANYWHERE, len(self.shards))
        homes = everywhere if self.region == "any" else self.get("homes")
        rules = PairRules(self.get(f"not_shown/{number}"), self.region, homes)
        neighbours, scores = (self.get(f"{name}/{number}").copy() for name in ("neighbours", "scores"))
        return Filling(self.get(f"users/{number}"), neighbours, scores, rules)


def measure_density(number: int, *, blocks: Blocks, neighbours: int) -> str:
    """``hubness.density`` of a block, against the shared ``bank``."""
    bank = blocks.get("bank")
    index = ExactIndex(Shown(bank, np.zeros(len(bank), np.float32), blocks.get("bank_labels")))
    queries, labels = blocks.queries(number), blocks.get(f"labels/{number}")
    density = np.empty(len(queries), np.float32)
    with one_thread():
        for at in range(0, len(queries), BLOCK):
            part = slice(at, at + BLOCK)
            density[part] = mean_found(index.top_k(queries[part], labels[part], neighbours)[0])
    blocks.put(f"density/{number}", density)
    return ""


def search(number: int, *, blocks: Blocks, depth: int, go: int) -> str:
    """The ``depth`` nearest of users of a block whose lists are short, less those against the rules.

    ``go``: which of them, where they are too many to hold their candidates at a time.
    """
    filling, limit = blocks.filling(number), max(CANDIDATES // depth, 1)
    if go == 0:
        blocks.put(f"short/{number}", filling.short(np.arange(len(filling.users))))
    rows = blocks.get(f"short/{number}", go * limit, (go + 1) * limit)
    best = _nearest(blocks, blocks.queries(number)[rows], blocks.get(f"labels/{number}")[rows], depth)
    scores, found = from_keys(best)
    half = blocks.get(f"density/{number}")[rows] / np.float32(2)
    blocks.put(f"rows/{number}", rows)
    blocks.put(f"closeness/{number}", scores - half[:, None])
    blocks.put(f"candidates/{number}", filling.possible(rows, found.astype(np.int32)))
    return ""


def _nearest(blocks: Blocks, queries: Floats, labels: Ints, depth: int) -> Keys:
    """[m, depth] keys of the nearest takers, from shard to shard the best of what was found so far."""
    best = np.full((len(queries), depth), MISSING)
    for shard in blocks.shards.numbers:
        at = np.flatnonzero(blocks.of_shard("takers", shard))
        names = np.append(blocks.shards.starts[shard] + at, -1)
        bias, own = blocks.of_shard("half", shard)[at], blocks.of_shard("labels", shard)[at]
        index = ExactIndex(Shown(blocks.shards.read(shard)[at], bias, own))
        with one_thread():
            for start in range(0, len(queries), BLOCK):
                part = slice(start, start + BLOCK)
                scores, found = index.top_k(queries[part], labels[part], depth)
                keys = np.where(found < 0, MISSING, sort_keys(scores, names[found]))
                best[part] = np.sort(np.concatenate([best[part], keys], axis=1), axis=1)[:, :depth]
    return best


def propose(number: int, *, blocks: Blocks) -> str:
    """Whom a block's lists ask for: deferred acceptance (see ``exposure``) within the block.

    Of those who were full in earlier rounds only where they were not better asked, see ``settle``.
    """
    rows, closeness, candidates = (blocks.get(f"{name}/{number}") for name in ("rows", "closeness", "candidates"))
    filling, shards = blocks.filling(number), blocks.shards
    there = candidates >= 0
    names = np.unique(candidates[there])
    at = np.where(there, np.searchsorted(names, candidates), -1).astype(np.int32)
    room = gather(names, shards, functools.partial(blocks.of_shard, "room"), np.zeros(len(names) + 1, np.int64))
    worst = gather(names, shards, lambda shard: blocks.get(f"worst/{shard}"), np.full(len(names) + 1, MISSING))
    keys = sort_keys(closeness, filling.users[rows][:, None])
    possible = np.where(there & (keys <= worst[at]), at, np.int32(-1))
    chosen = accepted(possible, closeness.astype(np.float64), filling.missing(rows), room)
    blocks.put(f"chosen/{number}", chosen)
    if blocks.capped:
        order = np.argsort(candidates[chosen], kind="stable")
        whom = candidates[chosen][order]
        blocks.put(f"whom/{number}", whom)
        blocks.put(f"keys/{number}", keys[chosen][order])
        blocks.put(f"ends/{number}", np.searchsorted(whom, shards.starts))
    return ""


def settle(number: int, *, blocks: Blocks, askers: tuple[int, ...]) -> str:
    """Whoever of a shard is asked by more lists than have room keeps the best; tells how many are refused.

    ``worst`` [size] is the last key that somebody full keeps. No list that comes later in that order is ever taken, and
    so need not ask again: the better ones that are kept go on asking, as nobody leaves whom they got.
    """
    low, _ = blocks.shards.bounds(number)
    room, worst = blocks.of_shard("room", number), blocks.get(f"worst/{number}").copy()
    held = Asked(np.empty(0, np.int32), np.empty(0, np.uint64))
    full, refused, new = np.zeros(len(room), bool), 0, [held]
    for place, asker in enumerate(askers):
        start, stop = (int(end) for end in blocks.get(f"ends/{asker}", number, number + 2))
        whom = blocks.get(f"whom/{asker}", start, stop) - np.int32(low)
        new.append(Asked(whom, blocks.get(f"keys/{asker}", start, stop)))
        if place == len(askers) - 1 or sum(len(each.whom) for each in new) > 2 * len(held.whom) + _ASKED_AT_A_TIME:
            held, late = Asked.together(new).within(room)
            full[late] = True
            refused += len(late)
            new = [held]
    last = np.flatnonzero(np.diff(held.whom, append=-1))
    last = last[full[held.whom[last]]]
    worst[held.whom[last]] = held.keys[last]
    blocks.put(f"worst/{number}", worst)
    return str(refused)


@dataclass(frozen=True)
class Asked:
    """Who asks whom."""

    whom: npt.NDArray[np.int32]
    """[m] counted from the first of a shard."""
    keys: Keys
    """[m] ``sort_keys`` of the closeness and of who asks."""

    @classmethod
    def together(cls, parts: list[Asked]) -> Asked:
        """All of them."""
        return cls(np.concatenate([part.whom for part in parts]), np.concatenate([part.keys for part in parts]))

    def within(self, room: npt.NDArray[np.int32]) -> tuple[Asked, npt.NDArray[np.int32]]:
        """The best of each as far as there is ``room``, in order; and whom the others asked."""
        order = np.lexsort((self.keys, self.whom))
        whom, keys = self.whom[order], self.keys[order]
        late = np.arange(len(whom)) - np.searchsorted(whom, whom) >= room[whom]
        return Asked(whom[~late], keys[~late]), whom[late]


def keep(number: int, *, blocks: Blocks) -> str:
    """Put whom a block's lists got into them; tells how many are still short."""
    filling = blocks.filling(number)
    rows, candidates, closeness, chosen = (
        blocks.get(f"{name}/{number}") for name in ("rows", "candidates", "closeness", "chosen")
    )
    filling.put(rows, candidates, closeness, chosen)
    everybody = np.arange(len(filling.users))
    filling.in_order(everybody)
    blocks.put(f"neighbours/{number}", filling.neighbours)
    blocks.put(f"scores/{number}", filling.scores)
    return f"{number} {len(filling.short(everybody))}"


def write_rows(
    number: int, *, blocks: Blocks, axes: Floats, scale: ScoreScale, chance: Chance | None, folder: str
) -> str:
    """A block's rows of ``twins``, in a file of the same name as that of its vectors; tells the file entry."""
    user_ids, vectors = blocks.vectors(number)
    tables = []
    for users in parts_of(np.arange(len(vectors))):
        neighbours, scores = (blocks.get(f"{name}/{number}")[users] for name in ("neighbours", "scores"))
        there = neighbours >= 0
        mine, twins, scores = users[np.nonzero(there)[0]], neighbours[there].astype(np.int64), scores[there]
        chances = None
        if chance is not None:
            places = gather(twins, blocks.shards, functools.partial(blocks.of_shard, "places"), np.empty_like(twins))
            chances = chance.of(scale.percentile(scores), places)
        parts = _parts(blocks.shards.stored(), axes, vectors, mine, twins)
        ids = user_ids.take(pa.array(users))
        tables.append(twin_rows(ids, _ids(blocks.shards, twins), there, scores, scale, parts, chances))
    return told(
        put_table(blocks.store, f"{folder}/{blocks.paths[number].rsplit('/', 1)[-1]}", pa.concat_tables(tables))
    )


def _parts(shards: Shards, axes: Floats, vectors: Floats, users: Ints, others: Ints) -> tuple[Floats, Floats]:
    """As ``parts.Split.parts`` of pairs [t] of rows of a block and positions."""
    whole, home = np.zeros(len(users), np.float32), np.zeros(len(users), np.float32)
    mine = projected(vectors, axes)
    for number, at in by_shard(others, shards):
        theirs = shards.read(number)
        along = projected(theirs, axes)
        for start in range(0, len(at), _PAIRS_AT_A_TIME):
            part = at[start : start + _PAIRS_AT_A_TIME]
            user, other = users[part], others[part] - shards.starts[number]
            whole[part] = row_dots(vectors[user], theirs[other])
            if len(axes):
                home[part] = row_dots(mine[user], along[other])
    return whole - home, home


def _ids(shards: Shards, positions: Ints) -> pa.Array:
    """[m] the user ids of ``positions``."""
    distinct = np.unique(positions)
    pieces = [
        shards.ids(number).combine_chunks().take(pa.array(distinct[at] - shards.starts[number]))
        for number, at in by_shard(distinct, shards)
    ]
    names = pa.concat_arrays([pa.array([], pa.string()), *pieces])
    return names.take(pa.array(np.searchsorted(distinct, positions)))
