"""An opened pack: one run's people, lists and places, mapped into memory and shared by all processes of a machine."""

from __future__ import annotations

import functools
import shutil
from dataclasses import dataclass
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
"""Characters of what is wrong with a pack."""

Rows = npt.NDArray[np.int32]
Positions = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Near:
    """People by closeness to a vector."""

    people: Ints
    """[m] positions, closest first."""
    scores: Floats
    """[m] ``cos - (r + r) / 2``"""


class Pack:
    """One version of what the gateway answers from; nothing in it changes."""

    def __init__(self, store: Store, manifest: PackManifest, folder: Path) -> None:
        """Open the files in ``folder``, which were compared with the manifest.

        Raises:
            Exception: of many classes, where they are no pack.
        """
        self.manifest = manifest
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
        self.index = NearestIndex(folder / "people.faiss", manifest.probes)
        self.bank_people: Positions = self._array("bank")
        self.bank = NearestIndex(folder / "bank.faiss", manifest.bank_probes)
        self.scale = ScoreScale.from_json(manifest.scale)
        self.chance = None if manifest.chance is None else Chance.from_json(manifest.chance)
        self.features = FeaturesConfig.model_validate(manifest.features)
        self.vocabulary = read_vocabulary(store, f"{pack_folder(manifest.run_id)}/vocabulary.parquet")
        self.explainers = self._explainers(store)
        check(self)

    @classmethod
    def of(cls, store: Store, run: Run, cache: Path | None = None) -> Pack:
        """The pack of a run, made if there is none yet, checked and opened.

        Args:
            store: where runs and packs are.
            run: analysed.
            cache: folder of this machine that packs of a store elsewhere are copied to.

        Raises:
            StoreError: DAMAGED; as ``make_pack``.
        """
        manifest = make_pack(store, run)
        verify_pack(store, manifest)
        folder = Path(store.path(pack_folder(run.run_id))) if store.is_local else (cache or Path.cwd()) / run.run_id
        if not store.is_local:
            _copy(store, manifest, folder)
        try:
            return cls(store, manifest, folder)
        except Exception as error:  # numpy's, Arrow's, faiss's and our models' have no common class
            raise store.damaged(pack_folder(run.run_id), f"{type(error).__name__}: {error}"[:SHOWN]) from error

    def _array(self, name: str) -> Any:
        return np.load(self._folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)

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

    def crowding_of(self, vector: Floats, own: frozenset[int] = frozenset()) -> float:
        """r of a [dim] vector; see ``hubness``. ``own``: positions of the one whose vector it is."""
        neighbours = self.manifest.csls_neighbours
        similarities, at = self.bank.nearest(vector, neighbours + len(own))
        others = similarities[~np.isin(self.bank_people[at], list(own))][:neighbours]
        return float(others.mean()) if len(others) else 0.0

    def positions_of_names(self, names: frozenset[str]) -> Ints:
        """Positions of people whose ids hash to these names (``opt_out.name_of``)."""
        hashes = np.array(sorted(int(name[:16], 16) for name in names), np.uint64)
        return np.flatnonzero(np.isin(self.name_hashes, hashes))

    def favors(self, position: int) -> Favors:
        """What the run counts as a person's favors."""
        reviews, likes = (_rows(lists, position) for lists in (self.favored["review_list"], self.favored["like_list"]))
        return Favors(
            tuple(Review(each[REVIEW_ID], each[REVIEW_PLACE], each[RATING], each[VISITED], False) for each in reviews),
            tuple(Like(each[LIKE_CONTENTS], each[LIKE_DISPLAY], each[LIKED_AT]) for each in likes),
        )

    @functools.cached_property
    def favored(self) -> pa.RecordBatch:
        """[n] ``USER_FAVOR`` of all people."""
        source = pa.memory_map(str(self._folder / "favors.arrow"))
        return pa.ipc.open_file(source).get_batch(0)


def _rows(lists: pa.ListArray, position: int) -> list[dict[str, Any]]:
    """The structs of one list, times as microseconds."""
    start, stop = (int(lists.offsets[at].as_py()) for at in (position, position + 1))
    structs = lists.values.slice(start, stop - start)
    kind, columns = structs.type, structs.flatten()
    plain = [each.cast(pa.int64()) if pa.types.is_timestamp(each.type) else each for each in columns]
    names = [kind.field(at).name for at in range(kind.num_fields)]
    return [dict(zip(names, row, strict=True)) for row in zip(*(each.to_pylist() for each in plain), strict=True)]


def _copy(store: Store, manifest: PackManifest, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for entry in manifest.files:
        path = folder / entry.path.removeprefix(f"{pack_folder(manifest.run_id)}/")
        path.parent.mkdir(exist_ok=True)
        with store.open_read(entry.path) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target)
