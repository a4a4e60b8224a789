"""Twin lists made on the engine: blocks of users look for their nearest in one shard after another.

In the end the same lists as ``twins.find_twins`` makes in one process, bit for bit where that looks at everybody. A
partial list never travels: the worker of a block goes through the shards and keeps the best so far. What the driver
holds is a few numbers a user.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from tastetwin.analysis import blocks as worker
from tastetwin.analysis.blocks import Blocks
from tastetwin.analysis.chance import Chance
from tastetwin.analysis.fill import CANDIDATES, first_depth, next_depth
from tastetwin.analysis.hubness import draw_bank
from tastetwin.analysis.index import MISSING, Floats, Ints, empty_lists, from_keys
from tastetwin.analysis.pairs import PairRules
from tastetwin.analysis.scale import ScoreScale
from tastetwin.analysis.search import TUNING_QUERIES
from tastetwin.analysis.shards import IDS, Shards, for_each, lost_rows
from tastetwin.analysis.twins import SearchFacts, first_of_each, max_exposure, scale_of
from tastetwin.config import AnalyzeConfig, ListsConfig
from tastetwin.engine import Engine
from tastetwin.generations import FileEntry
from tastetwin.progress import Progress, silent
from tastetwin.tables import read_files

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ShardedTwins:
    """As ``twins.Twins``, with the lists in files."""

    blocks: Blocks
    shown: Ints
    """[n_users] in how many lists each is."""
    served: int
    """Users who have a list."""
    densities: Floats
    """[n_users] r of everybody."""
    scale: ScoreScale
    """What a score is worth among random pairs."""
    facts: SearchFacts

    def write_rows(
        self, engine: Engine, axes: Floats, chance: Chance | None, places: Ints, folder: str
    ) -> list[FileEntry]:
        """The table ``twins``; ``places`` [n_users]: everybody's number of them."""
        self.blocks.put("places", places)
        job = functools.partial(
            worker.write_rows, blocks=self.blocks, axes=axes, scale=self.scale, chance=chance, folder=folder
        )
        told = for_each(engine, job, range(len(self.blocks.paths)))
        return sorted((FileEntry(**orjson.loads(text)) for text in told), key=lambda entry: entry.path)


def find_sharded(
    engine: Engine,
    shards: Shards,
    paths: Sequence[str],
    user_ids: npt.NDArray[np.object_],
    config: AnalyzeConfig,
    labels: Ints,
    may_be_shown: Mask,
    rules: PairRules,
    lists: ListsConfig,
    progress: Progress = silent,
) -> ShardedTwins:
    """The twins of every user.

    Args:
        engine: where blocks and shards are worked on.
        shards: vectors of everybody.
        paths: files of the same vectors; each is a block.
        user_ids: [n_users] ascending.
        config: k, exact or approximate search, hubness correction, seed. The bank, and whoever is looked for again
            because a list is short, is looked for among everybody.
        labels: [n_users] see ``find_twins``.
        may_be_shown: [n_users] see ``find_twins``.
        rules: who may be shown to whom.
        lists: ``exposure_cap`` is used; ``mutual`` must be off.
        progress: told of blocks done in the first search.

    Raises:
        StoreError: ENGINE-LOST-ROWS when the files are not of these users.
    """
    n, allowed = len(user_ids), np.flatnonzero(may_be_shown)
    members = first_of_each(labels, allowed)
    cap = max_exposure(lists.exposure_cap, config.k, n, len(members))
    filling = _Filling(engine, Blocks(shards, tuple(paths), rules.region, cap is not None), n if cap is None else cap)
    users = filling.begin(user_ids, labels, rules, config.k)
    densities = filling.measure(users, labels, draw_bank(members, config.csls_bank, config.seed), config)
    depth = first_depth(config.k, np.full(len(members), filling.most), rules)
    cells = filling.cells(members, depth, labels, config) if n * len(members) > config.exact_below**2 else Looked()
    searches = filling.fill(members, depth, cells.probes, progress)
    shown, served = filling.count()
    facts = SearchFacts(
        cells=cells.cells,
        probes=sum(cells.probes),
        recall=cells.recall,
        shown=len(members),
        hidden_duplicates=len(allowed) - len(members),
        searches=searches,
        short=sum(filling.short.values()),
        max_exposure=cap,
    )
    return ShardedTwins(filling.blocks, shown, served, densities, scale_of(shards, densities, config.seed), facts)


@dataclass(frozen=True)
class Looked:
    """How the approximate search looks for neighbours; by default at everybody."""

    cells: int = 0
    """Of all shards."""
    probes: tuple[int, ...] = ()
    """Cells looked into, of each shard."""
    recall: float = 1.0
    """Share of the exact lists of a sample that was found."""


class _Filling:
    """As ``fill.fill_lists``, on the engine."""

    def __init__(self, engine: Engine, blocks: Blocks, most: int) -> None:
        """``most``: lists that anybody may be in."""
        self.engine, self.blocks, self.most = engine, blocks, most
        self.short: dict[int, int] = {}
        """Block -> lists that are not full."""

    def begin(self, user_ids: npt.NDArray[np.object_], labels: Ints, rules: PairRules, k: int) -> list[Ints]:
        """Empty lists, and the positions of each block's users."""
        blocks, known = self.blocks, pa.array(user_ids, pa.string())
        users, block_of = [], np.full(len(user_ids), -1)
        for number, path in enumerate(blocks.paths):
            ids = read_files(blocks.store, [path], IDS).column(0)
            mine = np.sort(pc.index_in(ids, value_set=known).to_numpy())
            users.append(mine.astype(np.int64))
            block_of[users[-1]] = number
        if sum(map(len, users)) != len(user_ids) or (block_of < 0).any():
            raise lost_rows(blocks.shards.folder)
        owner = block_of[rules.not_shown // len(user_ids)]
        for number, mine in enumerate(users):
            scores, neighbours = empty_lists(len(mine), k)
            blocks.put(f"users/{number}", mine)
            blocks.put(f"labels/{number}", labels[mine])
            blocks.put(f"not_shown/{number}", rules.not_shown[owner == number])
            blocks.put_lists(number, neighbours.astype(np.int32), scores)
            self.short[number] = len(mine)
        blocks.put("labels", labels)
        blocks.put("homes", rules.homes)
        return users

    def measure(self, users: list[Ints], labels: Ints, bank: Ints, config: AnalyzeConfig) -> Floats:
        """[n] ``hubness.density``."""
        blocks, densities = self.blocks, np.zeros(len(labels), np.float32)
        if config.csls_neighbours and len(bank):
            blocks.put("bank", blocks.shards[bank])
            blocks.put("bank_labels", labels[bank])
            self._each(worker.measure_density, range(len(users)), neighbours=config.csls_neighbours)
            for number, mine in enumerate(users):
                densities[mine] = blocks.get(f"density/{number}")
        else:
            for number, mine in enumerate(users):
                blocks.put(f"density/{number}", densities[mine])
        blocks.put("half", densities / np.float32(2))
        return densities

    def cells(self, members: Ints, depth: int, labels: Ints, config: AnalyzeConfig) -> Looked:
        """Cells of every shard, and how many to look into, so that ``config.recall`` of a sample's lists is found."""
        blocks, numbers = self.blocks, self.blocks.shards.numbers
        self._put_takers(members)
        counts = self._each(worker.fit_cells, numbers, seed=config.seed)
        drawn = np.random.default_rng(config.seed).permutation(len(labels))[:TUNING_QUERIES]
        blocks.put("sample", blocks.shards[drawn])
        blocks.put("sample_labels", labels[drawn])
        self._each(worker.search_sample, numbers, depth=depth)
        best = np.full((len(drawn), depth), MISSING)
        for shard in numbers:
            best = np.sort(np.concatenate([best, blocks.get(f"sample_nearest/{shard}")], axis=1), axis=1)[:, :depth]
        lists = from_keys(best)[1]
        blocks.put("sample_lists", lists)
        chosen = sorted(
            tuple(map(int, told.split())) for told in self._each(worker.choose_probes, numbers, recall=config.recall)
        )
        found = sum(each[2] for each in chosen) / max(int((lists >= 0).sum()), 1)
        return Looked(sum(map(int, counts)), tuple(each[1] for each in chosen), found)

    def fill(self, members: Ints, depth: int, probes: tuple[int, ...], progress: Progress) -> int:
        """Search until lists are full or nobody is left; how many searches that took."""
        self._search(members, np.full(len(self.blocks.shards), self.most), depth, probes, progress)
        searches, takers = 1, members
        while any(self.short.values()) and depth < len(takers):
            room = self.most - self.count()[0]
            takers = members[room[members] > 0]
            depth = next_depth(depth, len(takers))
            self._search(takers, room, depth, (), silent)
            searches += 1
        return searches

    def _search(self, takers: Ints, room: Ints, depth: int, probes: tuple[int, ...], progress: Progress) -> None:
        self._put_takers(takers)
        limit = max(CANDIDATES // depth, 1)
        asking = {number: -(-short // limit) for number, short in self.short.items()}
        for go in range(max(asking.values(), default=0)):
            if go:
                room = self.most - self.count()[0]
            self.blocks.put("room", room.astype(np.int32))
            numbers = [number for number, goes in asking.items() if go < goes]
            self._each(worker.search, numbers, progress, depth=depth, go=go, probes=probes)
            self._match(numbers)

    def _put_takers(self, takers: Ints) -> None:
        taking = np.zeros(len(self.blocks.shards), bool)
        taking[takers] = True
        self.blocks.put("takers", taking)

    def _match(self, numbers: Sequence[int]) -> None:
        """Deferred acceptance, in turns until nobody is refused."""
        for shard in self.blocks.shards.numbers:
            low, high = self.blocks.shards.bounds(shard)
            self.blocks.put(f"worst/0/{shard}", np.full(high - low, MISSING))
            self.blocks.put(f"held_whom/0/{shard}", np.empty(0, np.int32))
            self.blocks.put(f"held_keys/0/{shard}", np.empty(0, np.uint64))
        for turn in itertools.count():
            self._each(worker.propose, numbers, turn=turn)
            if not self.blocks.capped or not self._refused(numbers, turn):
                break
        for told in self._each(worker.keep, numbers, turn=turn):
            number, short = map(int, told.split())
            self.short[number] = short

    def _refused(self, numbers: Sequence[int], turn: int) -> int:
        settle = functools.partial(worker.settle, blocks=self.blocks, turn=turn, askers=tuple(numbers))
        return sum(map(int, for_each(self.engine, settle, self.blocks.shards.numbers)))

    def _each(
        self, job: Callable[..., str], numbers: Sequence[int], progress: Progress = silent, **more: Any
    ) -> list[str]:
        return for_each(self.engine, functools.partial(job, blocks=self.blocks, **more), numbers, progress)

    def count(self) -> tuple[Ints, int]:
        """[n] in how many lists each is, and how many lists are not empty; a block's lists in memory at a time."""
        shown, served = np.zeros(len(self.blocks.shards), np.int64), 0
        for number in range(len(self.blocks.paths)):
            neighbours = self.blocks.get(f"lists/neighbours/{number}")
            np.add.at(shown, neighbours[neighbours >= 0], 1)
            served += int((neighbours[:, 0] >= 0).sum())
        return shown, served
