"""What workers do about one block of users (those of one file of vectors), or one shard, when lists are made in shards.

A worker holds one block and one shard at a time. What lives from one task to the next lies in files. No task writes
what it reads, so that an engine may begin any of them anew.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tastetwin.analysis.arrays import put_array, read_array
from tastetwin.analysis.blas import one_thread
from tastetwin.analysis.cells import CellIndex, Cells, nearest_points
from tastetwin.analysis.chance import Chance
from tastetwin.analysis.exposure import accepted
from tastetwin.analysis.fill import CANDIDATES, MARGIN, Filling
from tastetwin.analysis.hubness import mean_found
from tastetwin.analysis.index import (
    MISSING,
    SLACK,
    ExactIndex,
    Floats,
    Ints,
    Keys,
    Shown,
    from_keys,
    rank,
    row_dots,
    sort_keys,
)
from tastetwin.analysis.pairs import ANYWHERE, PairRules, Positions, Region
from tastetwin.analysis.parts import projected
from tastetwin.analysis.rows import parts_of, twin_rows
from tastetwin.analysis.scale import ScoreScale
from tastetwin.analysis.search import BLOCK
from tastetwin.analysis.shards import Shards, by_shard, gather
from tastetwin.analysis.stored import as_matrix, read_vectors_table
from tastetwin.schema import USER
from tastetwin.store import Store
from tastetwin.tables import put_table, told

Look = Callable[[Floats, Ints, int], tuple[Floats, Ints]]

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

    def put_lists(self, number: int, neighbours: Positions, scores: Floats, table: str = "lists") -> None:
        """What ``filling`` reads."""
        self.put(f"{table}/neighbours/{number}", neighbours)
        self.put(f"{table}/scores/{number}", scores)

    def vectors(self, number: int) -> tuple[pa.Array, Floats]:
        """User ids, ascending, and vectors of a block, as they are stored."""
        table = read_vectors_table(self.store, [self.paths[number]]).sort_by(USER)
        return table.column(USER).combine_chunks(), as_matrix(table)

    def queries(self, number: int) -> Floats:
        """A block's vectors, whose nearest are looked for."""
        return self.shards.seen(self.vectors(number)[1])

    def shown(self, shard: int) -> tuple[Shown, Ints]:
        """A shard's takers, who may be found now, and where among its users they are."""
        at = np.flatnonzero(self.of_shard("takers", shard))
        bias, labels = self.of_shard("half", shard)[at], self.of_shard("labels", shard)[at]
        return Shown(self.shards.read(shard)[at], bias, labels), at

    def cells(self, shard: int) -> Cells:
        """A shard's, where it has some."""
        return Cells(self.get(f"centres/{shard}"), self.get(f"home/{shard}"))

    def filling(self, number: int, table: str = "lists") -> Filling:
        """A block's lists, in memory."""
        everywhere = np.broadcast_to(ANYWHERE, len(self.shards))
        homes = everywhere if self.region == "any" else self.get("homes")
        rules = PairRules(self.get(f"not_shown/{number}"), self.region, homes)
        neighbours, scores = (self.get(f"{table}/{name}/{number}").copy() for name in ("neighbours", "scores"))
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


def fit_cells(number: int, *, blocks: Blocks, seed: int) -> str:
    """The cells of a shard, of those who may be shown; tells how many."""
    shown, at = blocks.shown(number)
    if not shown.size:
        return "0"
    with one_thread():
        cells = Cells.fit(blocks.shards.read(number), at, seed)
    blocks.put(f"centres/{number}", cells.centres)
    blocks.put(f"home/{number}", cells.home)
    return str(cells.size)


def search_sample(number: int, *, blocks: Blocks, depth: int) -> str:
    """The nearest in a shard of each of the shared ``sample`` of users: what ``choose_probes`` goes by."""
    shown, at = blocks.shown(number)
    with one_thread():
        keys = _keys(
            ExactIndex(shown).top_k,
            blocks.shards.starts[number] + at,
            blocks.get("sample"),
            depth,
            blocks.get("sample_labels"),
        )
    blocks.put(f"sample_nearest/{number}", keys)
    return ""


def choose_probes(number: int, *, blocks: Blocks, recall: float) -> str:
    """The fewest cells of a shard in which the share ``recall`` of the sample's lists is; and how much of them is."""
    shown, at = blocks.shown(number)
    low, high = blocks.shards.bounds(number)
    truth = blocks.get("sample_lists")
    mine = (truth >= low) & (truth < high)
    asked = np.flatnonzero(mine.any(axis=1))
    if not len(asked):
        return f"{number} 1 0"
    place = np.full(high - low, -1)
    place[at] = np.arange(len(at))
    theirs = np.where(mine[asked], place[np.where(mine[asked], truth[asked] - low, 0)], -1)
    with one_thread():
        index = CellIndex(shown, blocks.cells(number), at)
        probes, found = index.probes_needed(blocks.get("sample")[asked], theirs, recall)
    return f"{number} {probes} {round(found * mine.sum())}"


def search(number: int, *, blocks: Blocks, depth: int, go: int, probes: tuple[int, ...]) -> str:
    """The ``depth`` nearest of users of a block whose lists are short, less those against the rules.

    Args:
        number: of the block.
        blocks: see there.
        depth: candidates per user.
        go: which of the users, where they are too many to hold their candidates at a time.
        probes: cells of each shard to look into; empty = look at everybody.
    """
    filling, limit = blocks.filling(number), max(CANDIDATES // depth, 1)
    if go == 0:
        blocks.put(f"short/{number}", filling.short(np.arange(len(filling.users))))
    rows = blocks.get(f"short/{number}", go * limit, (go + 1) * limit)
    queries, labels = blocks.queries(number)[rows], blocks.get(f"labels/{number}")[rows]
    best = _nearest(blocks, queries, labels, depth, probes)
    lost = np.flatnonzero(best[:, -1] == MISSING) if probes else rows[:0]
    best[lost] = _nearest(blocks, queries[lost], labels[lost], depth, ())
    scores, found = from_keys(best)
    half = blocks.get(f"density/{number}")[rows] / np.float32(2)
    candidates = filling.possible(rows, found.astype(np.int32))
    names = np.unique(candidates[candidates >= 0])
    blocks.put_lists(number, filling.neighbours, filling.scores, "before")
    blocks.put(f"rows/{number}", rows)
    blocks.put(f"closeness/{number}", scores - half[:, None])
    blocks.put(f"names/{number}", names)
    blocks.put(f"at/{number}", np.where(candidates < 0, -1, np.searchsorted(names, candidates)).astype(np.int32))
    return ""


def _nearest(blocks: Blocks, queries: Floats, labels: Ints, depth: int, probes: tuple[int, ...]) -> Keys:
    """[m, depth] keys of the nearest takers, from shard to shard the best of what was found so far."""
    best, order = np.full((len(queries), depth), MISSING), np.arange(len(queries))
    for seen, shard in enumerate(blocks.shards.numbers, start=1):
        shown, at = blocks.shown(shard)
        if not shown.size or not len(queries):
            continue
        names = blocks.shards.starts[shard] + at
        few = min(depth, -(-MARGIN * depth // seen))  # a shard's share is small; where it is not, more are asked for
        with one_thread():
            look = ExactIndex(shown).top_k
            if probes:
                cells = blocks.cells(shard)
                look = functools.partial(_look_into_cells, CellIndex(shown, cells, at), probes=probes[shard])
                order = np.argsort(nearest_points(queries, cells.centres, 1)[:, 0], kind="stable")
            for start in range(0, len(queries), BLOCK):
                rows = order[start : start + BLOCK]
                keys = _keys(look, names, queries[rows], few, labels[rows])
                best[rows] = _merged(best[rows], keys)
                rows = rows[keys[:, -1] < best[rows, -1]]
                if few < depth and len(rows):
                    keys = _keys(look, names, queries[rows], depth, labels[rows])
                    best[rows] = _merged(best[rows], keys[:, few:])
    return best


def _look_into_cells(index: CellIndex, queries: Floats, labels: Ints, k: int, probes: int) -> tuple[Floats, Ints]:
    """As ``search.look_into_cells``, and fewer where the cells hold fewer: other shards have more."""
    return rank(index.shown, queries, labels, index.candidates(queries, min(k + SLACK, index.shown.size), probes), k)


def _keys(look: Look, names: Ints, queries: Floats, k: int, labels: Ints) -> Keys:
    scores, found = look(queries, labels, k)
    return np.where(found < 0, MISSING, sort_keys(scores, np.append(names, -1)[found]))


def _merged(best: Keys, keys: Keys) -> Keys:
    return np.sort(np.concatenate([best, keys], axis=1), axis=1)[:, : best.shape[1]]


def propose(number: int, *, blocks: Blocks, turn: int) -> str:
    """Whom a block's lists ask for: deferred acceptance (see ``exposure``) within the block.

    Whoever kept better ones in earlier turns (see ``settle``) is not asked. What is written for them is what is new.
    """
    rows, closeness, names, at = (blocks.get(f"{name}/{number}") for name in ("rows", "closeness", "names", "at"))
    filling, shards = blocks.filling(number, "before"), blocks.shards
    room = gather(names, shards, functools.partial(blocks.of_shard, "room"), np.zeros(len(names) + 1, np.int64))
    worst = np.full(len(names) + 1, MISSING)  # one more, which position -1 reads
    gather(names, shards, lambda shard: blocks.get(f"worst/{turn % 2}/{shard}"), worst)
    keys = sort_keys(closeness, filling.users[rows][:, None])
    possible = np.where(keys <= worst[at], at, np.int32(-1))
    chosen = accepted(possible, closeness.astype(np.float64), filling.missing(rows), room)
    blocks.put(f"chosen/{turn % 2}/{number}", chosen)
    if blocks.capped:
        new = chosen & ~blocks.get(f"chosen/{(turn - 1) % 2}/{number}") if turn else chosen
        order = np.argsort(at[new], kind="stable")
        whom = names[at[new][order]]
        blocks.put(f"whom/{number}", whom)
        blocks.put(f"keys/{number}", keys[new][order])
        blocks.put(f"ends/{number}", np.searchsorted(whom, shards.starts))
    return ""


def settle(number: int, *, blocks: Blocks, turn: int, askers: tuple[int, ...]) -> str:
    """Whoever of a shard is asked by more lists than have room keeps the best; tells how many are refused.

    ``worst`` [size] is the last key that somebody full keeps: no list that comes after it can ever be taken.
    """
    low, _ = blocks.shards.bounds(number)
    room, worst = blocks.of_shard("room", number), blocks.get(f"worst/{turn % 2}/{number}").copy()
    held = Asked(*(blocks.get(f"held_{name}/{turn % 2}/{number}") for name in ("whom", "keys")))
    refused, new = 0, list[Asked]()
    for place, asker in enumerate(askers):
        start, stop = (int(end) for end in blocks.get(f"ends/{asker}", number, number + 2))
        whom = blocks.get(f"whom/{asker}", start, stop) - np.int32(low)
        new.append(Asked(whom, blocks.get(f"keys/{asker}", start, stop)))
        size = sum(len(each.whom) for each in new)
        if place == len(askers) - 1 or size > len(held.whom) + _ASKED_AT_A_TIME:
            others, concerned = held.parted(Asked.together(new), len(room))
            kept, full = concerned.within(room)
            worst[full.whom] = full.keys
            refused += len(concerned.whom) - len(kept.whom)
            held, new = Asked.together([others, kept]), []
    blocks.put(f"worst/{(turn + 1) % 2}/{number}", worst)
    blocks.put(f"held_whom/{(turn + 1) % 2}/{number}", held.whom)
    blocks.put(f"held_keys/{(turn + 1) % 2}/{number}", held.keys)
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

    def parted(self, new: Asked, size: int) -> tuple[Asked, Asked]:
        """Those who ask others than the ``new`` ones do; and the rest with the new ones."""
        asked = np.zeros(size, bool)
        asked[new.whom] = True
        again = asked[self.whom]
        rest = Asked(self.whom[again], self.keys[again])
        return Asked(self.whom[~again], self.keys[~again]), Asked.together([rest, new])

    def within(self, room: npt.NDArray[np.int32]) -> tuple[Asked, Asked]:
        """The best of each as far as there is ``room``, in order; and the last of these where others were refused."""
        order = np.lexsort((self.keys, self.whom))
        whom, keys = self.whom[order], self.keys[order]
        starts = np.flatnonzero(np.diff(whom, prepend=-1))
        sizes = np.diff(np.append(starts, len(whom)))
        kept = np.arange(len(whom)) - np.repeat(starts, sizes) < room[whom]
        crowded = sizes > room[whom[starts]]
        last = starts[crowded] + room[whom[starts[crowded]]] - 1
        return Asked(whom[kept], keys[kept]), Asked(whom[last], keys[last])


def keep(number: int, *, blocks: Blocks, turn: int) -> str:
    """Put whom a block's lists got in the last turn into them; tells how many are still short."""
    filling = blocks.filling(number, "before")
    rows, closeness, names, at = (blocks.get(f"{name}/{number}") for name in ("rows", "closeness", "names", "at"))
    filling.put(rows, np.append(names, -1)[at], closeness, blocks.get(f"chosen/{turn % 2}/{number}"))
    everybody = np.arange(len(filling.users))
    filling.in_order(everybody)
    blocks.put_lists(number, filling.neighbours, filling.scores)
    return f"{number} {len(filling.short(everybody))}"


def write_rows(
    number: int, *, blocks: Blocks, axes: Floats, scale: ScoreScale, chance: Chance | None, folder: str
) -> str:
    """A block's rows of ``twins``, in a file of the same name as that of its vectors; tells the file entry."""
    user_ids, vectors = blocks.vectors(number)
    tables = []
    for users in parts_of(np.arange(len(vectors))):
        neighbours, scores = (blocks.get(f"lists/{name}/{number}")[users] for name in ("neighbours", "scores"))
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
