"""The pack of a run: all that the model gateway answers from, as files that are mapped into memory.

It holds nothing that the run's tables do not, ordered for one question at a time: whoever loses it makes it again.
Every array speaks of people by their *position*: their place among all users with a favor, ids ascending. A pack
without its manifest does not exist; ``forget`` removes all packs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tastetwin.analysis.hubness import draw_bank
from tastetwin.analysis.index import Floats, Ints, Shown
from tastetwin.analysis.nearest import build
from tastetwin.analysis.parts import read_axes, reweighted
from tastetwin.analysis.standing import EXPOSURE
from tastetwin.analysis.stored import read_vectors
from tastetwin.config import AnalyzeConfig
from tastetwin.errors import StoreError
from tastetwin.features.histories import Histories
from tastetwin.features.ids import IdIndex, PlaceIndex
from tastetwin.features.stage import NOT_SHOWN, read_histories, read_place_rows
from tastetwin.features.user_favor import USER_FAVOR
from tastetwin.features.vocabulary import read_vocabulary
from tastetwin.generations import FileEntry, Manifest, entry_of, read_manifest
from tastetwin.privacy.opt_out import name_of
from tastetwin.runs import Run
from tastetwin.schema import NAME, OTHER, PLACE, PLACES, TWINS, USER
from tastetwin.store import Store
from tastetwin.tables import read_table

FOLDER: Final = "packs"
FORMAT: Final = 2
MANIFEST: Final = "pack.json"
NOBODY: Final = np.int32(-1)
_COPIED: Final = 1 << 22


@dataclass(frozen=True)
class PackManifest:
    """What a pack is of, what was settled when its run was made, and its files."""

    run_id: str
    logical_date: str
    bundle: str
    """Generation of the encoder that its vectors are of."""
    max_length: int
    min_favors: int
    features: dict[str, Any]
    """``config.features`` of the run: what counts as a favor."""
    k: int
    csls_neighbours: int
    home_weight: float
    region: str
    """``config.lists.region`` of the run."""
    sensitive_categories: list[int]
    scale: dict[str, Any]
    chance: dict[str, Any] | None
    probes: int
    recall: float
    """Of the index, measured on a sample of its users."""
    bank_probes: int
    files: list[FileEntry]
    format: int = FORMAT


def pack_folder(run_id: str) -> str:
    """Where the pack of a run is, relative to the store's root."""
    return f"{FOLDER}/{run_id}"


def read_pack(store: Store, run_id: str) -> PackManifest | None:
    """The manifest of a finished pack of this format; None where there is none.

    Raises:
        StoreError: DAMAGED.
    """
    relative = f"{pack_folder(run_id)}/{MANIFEST}"
    if not store.exists(relative):
        return None
    raw = store.read_json(relative)
    if raw.get("format") != FORMAT:
        return None
    try:
        return PackManifest(files=[FileEntry(**entry) for entry in raw.pop("files")], **raw)
    except (KeyError, TypeError) as error:
        raise store.damaged(relative, str(error)) from error


def make_pack(store: Store, run: Run) -> PackManifest:
    """The pack of a run that is analysed; found finished, or made.

    Raises:
        UsageError: STAGE-MISSING.
        StoreError: NO-GENERATION, DAMAGED; STORE-UNWRITABLE, DISK-FULL: there is no pack then.
    """
    known = read_pack(store, run.run_id)
    if known is not None:
        return known
    while True:
        before = _sources(store, run)
        made = _made(store, run)
        # Of somebody who is forgotten meanwhile it may still know, or lack what was removed with the other packs.
        if _sources(store, run) == before and all(store.exists(entry.path) for entry in made.files):
            return made
        store.remove(f"{pack_folder(run.run_id)}/{MANIFEST}")


def _made(store: Store, run: Run) -> PackManifest:
    """Several at once do no harm: their files are the same, and each appears whole."""
    with tempfile.TemporaryDirectory(prefix="tastetwin-") as name:
        facts = _Making(store, run, Path(name)).write()
        files = [_kept(store, Path(name), path, pack_folder(run.run_id)) for path in _files(Path(name))]
    manifest = PackManifest(files=files, **facts)
    store.write_json(f"{pack_folder(run.run_id)}/{MANIFEST}", asdict(manifest))
    return manifest


def remove_packs(store: Store, kept: Iterable[str] = ()) -> list[str]:
    """Remove the packs of all runs but those; returns their folders."""
    removed = [pack_folder(run_id) for run_id in store.names(FOLDER) if run_id not in set(kept)]
    for folder in removed:
        store.remove(f"{folder}/{MANIFEST}")
        store.remove(folder)
    return removed


def is_served(store: Store) -> bool:
    """Whether anybody answers from this store online: then there is the pack of some run."""
    return bool(store.names(FOLDER))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _kept(store: Store, root: Path, path: Path, folder: str) -> FileEntry:
    relative = f"{folder}/{path.relative_to(root)}"
    with path.open("rb") as source, store.open_write(relative) as target:
        while chunk := source.read(_COPIED):
            target.write(chunk)
    path.unlink()
    return entry_of(store, relative)


def _sources(store: Store, run: Run) -> tuple[Manifest, Manifest, Manifest]:
    """Features, bundle and analysis that a pack is made of."""
    features, bundle = (read_manifest(store, stage, run.generation(stage)) for stage in ("features", "train"))
    return features, bundle, read_manifest(store, "analyze", run.generation("analyze"))


class _Making:
    """One pack in the making; n people in all.

    While somebody is being forgotten, features may be without them and the analysis not yet: people are those of the
    features, and whatever speaks of others is left out.
    """

    def __init__(self, store: Store, run: Run, folder: Path) -> None:
        self.store, self.run, self.folder = store, run, folder
        self.features, self.bundle, self.analysis = _sources(store, run)
        self.histories: Histories = read_histories(store, self.features, 0)
        self.ids = pa.array(self.histories.user_ids, pa.string())

    def write(self) -> dict[str, Any]:
        """Write all files; returns the facts for the manifest."""
        IdIndex.write(self.folder / "people", self.ids)
        self._save(
            "name_hashes", np.array([int(name_of(user)[:16], 16) for user in self.histories.user_ids], np.uint64)
        )
        self._histories()
        self._favors()
        self._places()
        exposure = self._standing()
        self._not_shown()
        self._lists()
        return self._search(exposure) | self._settled()

    def _save(self, name: str, array: npt.NDArray[Any]) -> None:
        np.save(self.folder / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)

    def _positions(self, ids: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.int32]:
        found = pc.fill_null(pc.index_in(ids, value_set=self.ids), int(NOBODY))
        return np.asarray(found.to_numpy(), np.int32)

    def _of_ours(self, table: pa.Table, *columns: str) -> pa.Table:
        """The rows in which all of these columns name people of the pack."""
        for column in columns:
            table = table.filter(pc.is_in(table.column(column), value_set=self.ids))
        return table

    def _histories(self) -> None:
        """``history_offsets`` int64 [n + 1] into ``history_places`` int32: vocabulary rows, oldest first."""
        self._save("history_offsets", self.histories.offsets)
        self._save("history_places", self.histories.places)

    def _favors(self) -> None:
        """``favors.arrow``: ``USER_FAVOR`` in the order of positions, one record batch."""
        table = read_table(self.store, self.features, "user_favor", USER_FAVOR).sort_by(USER).combine_chunks()
        batches = table.to_batches()
        with pa.OSFile(str(self.folder / "favors.arrow"), "wb") as sink, pa.ipc.new_file(sink, USER_FAVOR) as writer:
            for batch in batches or [pa.RecordBatch.from_pylist([], schema=USER_FAVOR)]:
                writer.write_batch(batch)

    def _places(self) -> None:
        """All known places and the rows that they are read as; the vocabulary, visitors, names."""
        rows = read_place_rows(self.store, self.features.paths("place_row")[0])
        PlaceIndex.write(self.folder / "places", rows.place_ids, rows.rows)
        for name, path in (
            ("vocabulary", self.features.paths("vocabulary")[0]),
            ("visitors", self.analysis.paths("visitors")[0]),
        ):
            (self.folder / f"{name}.parquet").write_bytes(self.store.read_bytes(path))
        named = read_table(self.store, self.features, "place", pa.schema([PLACES.field(PLACE), PLACES.field(NAME)]))
        named = named.filter(pc.is_valid(named.column(NAME)))
        pq.write_table(named, self.folder / "names.parquet")

    def _standing(self) -> pa.Table:
        """[n] ``instead`` int32 who is shown in place of whom, ``homes`` int32 region index; -1 = nobody, unknown."""
        exposure = self._of_ours(read_table(self.store, self.analysis, "exposure", EXPOSURE), USER)
        at = self._positions(exposure.column(USER))
        codes = read_vocabulary(self.store, self.features.paths("vocabulary")[0]).region_codes
        homes = pc.index_in(exposure.column("home_region"), value_set=pa.array(codes, pa.string()), skip_nulls=True)
        self._save("instead", self._spread(at, self._positions(exposure.column("instead_idno")), NOBODY))
        self._save("homes", self._spread(at, pc.fill_null(homes, -1).to_numpy().astype(np.int32), NOBODY))
        self._save("crowding", self._spread(at, exposure.column("crowding").to_numpy(), np.float32(0)))
        return exposure

    def _spread(self, at: npt.NDArray[np.int32], values: npt.NDArray[Any], other: np.generic) -> npt.NDArray[Any]:
        """[n] the values at those positions, ``other`` elsewhere."""
        whole = np.full(self.histories.n_users, other)
        whole[at] = values
        return whole

    def _not_shown(self) -> None:
        """``not_shown_offsets`` int64 [n + 1] into ``not_shown`` int32: who is followed or blocked."""
        pairs = self._of_ours(read_table(self.store, self.features, "not_shown", NOT_SHOWN), USER, OTHER)
        users, others = (self._positions(pairs.column(name)) for name in (USER, OTHER))
        self._grouped("not_shown", users, {"not_shown": others})

    def _lists(self) -> None:
        """``list_offsets`` int64 [n + 1] into ``list_people`` int32 and ``list_scores`` float32, by rank."""
        columns = [TWINS.field(name) for name in (USER, "rank", "twin_idno", "score")]
        twins = read_table(self.store, self.analysis, "twins", pa.schema(columns))
        twins = self._of_ours(twins, USER, "twin_idno").sort_by([(USER, "ascending"), ("rank", "ascending")])
        values = {"list_people": self._positions(twins.column("twin_idno")), "list_scores": twins["score"].to_numpy()}
        self._grouped("list", self._positions(twins.column(USER)), values)

    def _grouped(self, name: str, owner: npt.NDArray[np.int32], values: dict[str, npt.NDArray[Any]]) -> None:
        order = np.argsort(owner, kind="stable")
        counts = np.bincount(owner, minlength=self.histories.n_users)
        self._save(f"{name}_offsets", np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
        for key, array in values.items():
            self._save(key, array[order])

    def _search(self, exposure: pa.Table) -> dict[str, Any]:
        """``vectors`` float32 [n, dim] that lists are searched by (zeros = none), ``axes`` of home; ``members`` int32
        [m] who may be shown, whom ``people.faiss`` is of; ``bank`` int32 and ``bank.faiss``, which crowding is measured
        in."""
        settings = AnalyzeConfig.model_validate(self.analysis.settings["analyze"])
        ids, vectors = read_vectors(self.store, self.analysis.paths("vectors"))
        if not len(ids):  # all were forgotten since, and with them how long a vector is
            vectors = np.zeros((0, self.bundle.settings["train"]["dim"]), np.float32)
        axes = read_axes(self.store, self.analysis, vectors.shape[1])
        at = self._positions(pa.array(ids, pa.string()))
        looked_at = self._spread_rows(at[at >= 0], vectors[at >= 0], axes, settings.home_weight)
        self._save("vectors", looked_at)
        self._save("axes", axes)
        shown = self._positions(exposure.filter(pc.is_null(exposure.column("hidden"))).column(USER))
        members = np.sort(shown).astype(np.int64)
        self._save("members", members.astype(np.int32))
        crowding: Floats = np.load(self.folder / "crowding.npy", allow_pickle=False)
        bank = draw_bank(members, settings.csls_bank, settings.seed)
        people = build(_shown(looked_at, members, crowding / np.float32(2)), settings.k, settings)
        self._save("bank", bank.astype(np.int32))
        near = build(_shown(looked_at, bank, np.zeros_like(crowding)), max(settings.csls_neighbours, 1), settings)
        for name, made in (("people", people), ("bank", near)):
            (self.folder / f"{name}.faiss").write_bytes(made.data.tobytes())
        return {"probes": people.probes, "recall": people.recall, "bank_probes": near.probes}

    def _spread_rows(self, at: npt.NDArray[np.int32], vectors: Floats, axes: Floats, weight: float) -> Floats:
        whole = np.zeros((self.histories.n_users, vectors.shape[1]), np.float32)
        whole[at] = reweighted(vectors, axes, weight)
        return whole

    def _settled(self) -> dict[str, Any]:
        analyze = AnalyzeConfig.model_validate(self.analysis.settings["analyze"])
        return {
            "run_id": self.run.run_id,
            "logical_date": self.run.logical_date,
            "bundle": self.bundle.generation,
            "max_length": int(self.bundle.settings["train"]["max_length"]),
            "min_favors": int(self.analysis.settings["min_favors"]),
            "features": self.features.settings["features"],
            "k": analyze.k,
            "csls_neighbours": analyze.csls_neighbours,
            "home_weight": analyze.home_weight,
            "region": self.analysis.settings["lists"]["region"],
            "sensitive_categories": analyze.sensitive_categories,
            "scale": self.analysis.facts["scale"],
            "chance": self.analysis.facts["chance"],
        }


def _shown(vectors: Floats, at: Ints, bias: Floats) -> Shown:
    return Shown(np.ascontiguousarray(vectors[at]), np.ascontiguousarray(bias[at]), at)


def verify_pack(store: Store, manifest: PackManifest) -> None:
    """Compare the files of a pack with its manifest.

    Raises:
        StoreError: DAMAGED for the first that differs or is absent.
    """
    for entry in manifest.files:
        found = store.sha256(entry.path) if store.exists(entry.path) else "absent"
        if found != entry.sha256:
            raise StoreError(
                "DAMAGED",
                place=store.path(entry.path),
                value=f"sha256 {found}, {MANIFEST} says {entry.sha256}",
                rule="the files of a pack never change",
                fix=f"remove the folder {FOLDER}/{manifest.run_id}; it is made again",
            )
