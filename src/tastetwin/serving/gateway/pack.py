"""An opened pack: one run's people, lists and places, mapped into memory and shared by all processes of a machine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tastetwin.analysis.chance import Chance
from tastetwin.analysis.evidence import EvidenceRules, Explainer
from tastetwin.analysis.index import Floats, Ints
from tastetwin.analysis.nearest import NearestIndex
from tastetwin.analysis.scale import ScoreScale
from tastetwin.analysis.sentences import LANGUAGES, Language
from tastetwin.analysis.visitors import read_visitors
from tastetwin.config import FeaturesConfig
from tastetwin.delivery.pack import PackManifest, make_pack, pack_folder, verify_pack
from tastetwin.features.favors import Favors, Like, Review
from tastetwin.features.ids import IdIndex, PlaceIndex
from tastetwin.features.vocabulary import read_vocabulary
from tastetwin.runs import Run
from tastetwin.schema import (
    LIKE_CONTENTS,
    LIKE_DISPLAY,
    LIKED_AT,
    NAME,
    PLACE,
    RATING,
    REVIEW_ID,
    REVIEW_PLACE,
    VISITED,
)
from tastetwin.serving.gateway.sound import check
from tastetwin.store import Store

SHOWN: Final = 300
"""Characters of what a library says of a damaged file."""

Rows = npt.NDArray[np.int32]
Positions = npt.NDArray[np.int32]
NOBODY: Final = -1


@dataclass(frozen=True)
class Near:
    """People by closeness to a vector."""

    people: Ints
    """[m] positions, closest first."""
    scores: Floats
    """[m] ``cos - (r + r) / 2``"""


class Pack:
    """One version of what the gateway answers from; nothing in it changes."""

    def __init__(self, store: Store, manifest: PackManifest) -> None:
        """Open the files, which were compared with the manifest; those of a store elsewhere from a copy.

        Raises:
            Exception: of many classes, where they are no pack.
        """
        self.manifest = manifest
        self._copy = None if store.is_local else tempfile.TemporaryDirectory(prefix="tastetwin-pack-")
        """Removed with the pack."""
        folder = Path(store.path(pack_folder(manifest.run_id)) if self._copy is None else self._copy.name)
        if self._copy is not None:
            _copy(store, manifest, folder)
        self._folder = folder
        self.people = IdIndex.open(folder / "people")
        self.places = PlaceIndex.open(folder / "places")
        self.vectors: Floats = self._array("vectors")
        self._vectored = self.vectors.any(axis=1).tobytes() + b"\0"
        """[n + 1] whether a person has a vector; nobody at the end, where ``people.NOBODY`` leads."""
        self.members: Positions = self._array("members")
        self.instead: Positions = self._array("instead")
        self.homes: Positions = self._array("homes")
        self.crowding: Floats = self._array("crowding")
        self.axes: Floats = self._array("axes")
        self.name_hashes: npt.NDArray[np.uint64] = self._array("name_hashes")
        self.histories = (self._array("history_offsets"), self._array("history_places"))
        self.others = (self._array("not_shown_offsets"), self._array("not_shown"))
        self.lists = (self._array("list_offsets"), self._array("list_people"), self._array("list_scores"))
        self.favored = pa.ipc.open_file(pa.memory_map(str(folder / "favors.arrow"))).get_batch(0)
        self.index = NearestIndex(folder / "people.faiss", manifest.probes)
        self.bank_people: Positions = self._array("bank")
        self.bank = NearestIndex(folder / "bank.faiss", manifest.bank_probes)
        self.scale = ScoreScale.from_json(manifest.scale)
        self.chance = Chance.from_json(manifest.chance)
        self.features = FeaturesConfig.model_validate(manifest.features)
        self.vocabulary = read_vocabulary(store, f"{pack_folder(manifest.run_id)}/vocabulary.parquet")
        self.explainers = self._explainers(store)
        check(self)

    @classmethod
    def of(cls, store: Store, run: Run) -> Pack:
        """The pack of an analysed run, made if there is none yet, checked and opened.

        Raises:
            StoreError: DAMAGED; as ``make_pack``.
        """
        manifest = make_pack(store, run)
        verify_pack(store, manifest)
        try:
            return cls(store, manifest)
        except Exception as error:  # numpy's, Arrow's, faiss's and our models' have no common class
            raise store.damaged(pack_folder(run.run_id), f"{type(error).__name__}: {error}"[:SHOWN]) from error

    def _array(self, name: str) -> Any:
        """A plain view: numpy's class of mapped arrays costs twice at every step."""
        return np.asarray(np.load(self._folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))

    def _explainers(self, store: Store) -> dict[Language, Explainer]:
        folder = pack_folder(self.manifest.run_id)
        visitors = read_visitors(store, f"{folder}/visitors.parquet")
        rules = EvidenceRules(sensitive_categories=frozenset(self.manifest.sensitive_categories))
        table = pq.read_table(self._folder / "names.parquet")
        names = dict(zip(table.column(PLACE).to_pylist(), table.column(NAME).to_pylist(), strict=True))
        return {each: Explainer(self.vocabulary, visitors, rules, names, each) for each in LANGUAGES}

    @property
    def version(self) -> str:
        """The run's id."""
        return self.manifest.run_id

    @property
    def dim(self) -> int:
        """Of vectors."""
        return int(self.vectors.shape[1])

    def __len__(self) -> int:
        """People with a favor."""
        return len(self.homes)

    def categories_of(self, place_id: str) -> list[int]:
        """Category codes of a place; none where they are unknown."""
        (row,) = self.places.of([place_id])
        starts = self.vocabulary.category_offsets
        if row < 0:
            return []
        codes = self.vocabulary.category_codes[self.vocabulary.categories[starts[row] : starts[row + 1]]]
        return [int(code) for code in codes]

    def has_vector(self, position: int) -> bool:
        """Whether the run gave the person a vector; not so for ``NOBODY``. As fast for all, or it would tell them."""
        return bool(self._vectored[position])

    def history(self, position: int) -> Rows:
        """Vocabulary rows of a person, oldest first."""
        offsets, places = self.histories
        return np.asarray(places[offsets[position] : offsets[position + 1]])

    def places_of(self, people: Ints) -> Ints:
        """[m] distinct places of people."""
        offsets = self.histories[0]
        return np.asarray(offsets[people + 1] - offsets[people])

    def not_shown_to(self, position: int) -> Positions:
        """Whom a person follows, and either side of a block."""
        offsets, others = self.others
        return np.asarray(others[offsets[position] : offsets[position + 1]])

    def stored_list(self, position: int) -> Near:
        """The list that the run made for a person: closest first."""
        offsets, people, scores = self.lists
        mine = slice(offsets[position], offsets[position + 1])
        return Near(np.asarray(people[mine], np.int64), np.asarray(scores[mine]))

    def crowding_of(self, vectors: Floats, own: Sequence[frozenset[int]]) -> Floats:
        """[n] r of [n, dim] vectors; see ``hubness``. ``own``: positions of whose each vector is."""
        neighbours = self.manifest.csls_neighbours
        similarities, at = self.bank.nearest(vectors, neighbours + max(map(len, own), default=0))
        people = np.where(at < 0, NOBODY, self.bank_people[at]).tolist()
        means = np.zeros(len(vectors), np.float32)
        for row, (near, mine) in enumerate(zip(people, own, strict=True)):
            others = [rank for rank, each in enumerate(near) if each != NOBODY and each not in mine][:neighbours]
            if others:
                means[row] = similarities[row, others].mean()
        return means

    def positions_of_names(self, names: frozenset[str]) -> Ints:
        """Positions of people whose ids hash to these names (``opt_out.name_of``)."""
        hashes = np.array(sorted(int(name[:16], 16) for name in names), np.uint64)
        return np.flatnonzero(np.isin(self.name_hashes, hashes))

    def favors(self, people: Sequence[int]) -> list[Favors]:
        """What the run counts as the favors of people at these positions."""
        at = pa.array(people, pa.int64())
        reviews = _structs(self.favored["review_list"].take(at), (REVIEW_ID, REVIEW_PLACE, RATING, VISITED))
        likes = _structs(self.favored["like_list"].take(at), (LIKE_CONTENTS, LIKE_DISPLAY, LIKED_AT))
        return [
            Favors(tuple(Review._make((*each, False)) for each in mine), tuple(map(Like._make, liked)))
            for mine, liked in zip(reviews, likes, strict=True)
        ]


def _structs(lists: pa.ListArray, fields: Sequence[str]) -> Iterator[list[tuple[Any, ...]]]:
    """Of each list, these fields of its structs; times as microseconds."""
    structs = lists.flatten()
    columns = (structs.field(name) for name in fields)
    plain = [each.cast(pa.int64()) if pa.types.is_timestamp(each.type) else each for each in columns]
    rows = list(zip(*(each.to_pylist() for each in plain), strict=True))
    for start, stop in pairwise(lists.offsets.to_pylist()):
        yield rows[start:stop]


def _copy(store: Store, manifest: PackManifest, folder: Path) -> None:
    for entry in manifest.files:
        path = folder / entry.path.removeprefix(f"{pack_folder(manifest.run_id)}/")
        path.parent.mkdir(exist_ok=True)
        with store.open_read(entry.path) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target)
