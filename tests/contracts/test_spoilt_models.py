"""A worse model never ships: eleven ways to spoil a day, on the second day of a town, each made by the real stages.

Whatever is spoilt is a finished generation with an honest manifest, or what a worker gives back, so that no hash and no
missing file gives it away; all stages after it are the daily job's own. Readers must still see the first day.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper, numpy_helper

from tastetwin.analysis import stage as analysis_stage
from tastetwin.analysis.encode import encode_table
from tastetwin.errors import GateRefused, TasteTwinError
from tastetwin.evaluation.stage import verdict_of
from tastetwin.features.histories import FIRST_PLACE_ROW
from tastetwin.features.vocabulary import read_vocabulary
from tastetwin.generations import STAGES, FileEntry, Manifest, Stage, entry_of, finish, read_manifest
from tastetwin.pipeline import run_stage
from tastetwin.runs import Run, StageRecord, latest_run, published, record_stage
from tastetwin.sources.synthetic import TownConfig, write_day, write_town
from tastetwin.store import Store
from tastetwin.tables import put_table
from tests.world import NEXT_DAY, QUICK, TOWN, Journey

pytestmark = pytest.mark.slow

OTHER_TOWN: Final = TownConfig(users=TOWN.users, seed=TOWN.seed + 1)
"""Its people and places are called as in the first one, as ids that only count are."""
Tables = dict[str, list[FileEntry]]


@dataclass(frozen=True)
class Day:
    """The second day of a town whose first is published; every stage but the verdict is done."""

    store: Store
    run: Run
    first: Run
    patch: pytest.MonkeyPatch
    folder: Path
    """For whatever a test needs besides."""

    def made(self, stage: Stage, run: Run | None = None) -> Manifest:
        """What a stage of that day (of another run) made."""
        return read_manifest(self.store, stage, (run or self.run).generation(stage))

    def swap(self, stage: Stage, tables: Callable[[str], Tables], facts: dict[str, Any] | None = None) -> None:
        """Another generation in a stage's place: some tables are others; ``tables`` writes them into its folder."""
        honest = self.made(stage)
        spoilt = replace(honest, generation=f"{honest.generation}-spoilt", facts=facts or honest.facts)
        self.store.make_folder(spoilt.folder)
        finish(self.store, replace(spoilt, tables={**honest.tables, **tables(spoilt.folder)}))
        record_stage(self.store, self.run, stage, StageRecord(spoilt.generation, 0.0, honest.facts["counts"]))

    def rewritten(self, made: Manifest, table: str, folder: str, change: Callable[[pa.Table], pa.Table]) -> Tables:
        """A table of ``made`` with each file changed."""
        files = [entry for name in made.tables if name.split("/")[0] == table for entry in made.tables[name]]
        written = [(entry.path, change(pq.read_table(self.store.path(entry.path)))) for entry in files]
        names = [f"{folder}/{table}/{number}-{path.rsplit('/', 1)[-1]}" for number, (path, _) in enumerate(written)]
        return {table: [put_table(self.store, name, rows) for name, (_, rows) in zip(names, written, strict=True)]}

    def go_on(self, after: Stage) -> Run:
        """The stages after one, as the daily job carries them out, whatever of it the honest day has done already."""
        done = self.run
        for stage in STAGES[STAGES.index(after) + 1 :]:
            done = run_stage(self.store, stage, NEXT_DAY, QUICK, again=True)
        return done


@pytest.fixture(scope="module")
def honest(journey: Journey, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the first day published and the second analyzed; read only."""
    folder = tmp_path_factory.mktemp("spoilt")
    shutil.copytree(journey.store.root, folder / "store")
    events = write_day(TOWN, 1, folder / "day").folder
    store = Store.open(folder / "store")
    for stage in STAGES[: STAGES.index("evaluate")]:
        run_stage(store, stage, NEXT_DAY, QUICK, source=str(events) if stage == "collect" else None)
    return folder / "store"


@pytest.fixture
def day(honest: Path, journey: Journey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Day:
    shutil.copytree(honest, tmp_path / "store")
    store = Store.open(tmp_path / "store")
    return Day(store, latest_run(store), journey.first, monkeypatch, tmp_path)


# -- spoilt models ----------------------------------------------------------------------------------------------------


def _model(day: Day, change: Callable[[onnx.ModelProto], None]) -> Stage:
    """The bundle with another model."""

    def tables(folder: str) -> Tables:
        model = onnx.load(day.store.path(day.made("train").paths("model")[0]))
        change(model)
        day.store.write_bytes(f"{folder}/encoder.onnx", model.SerializeToString())
        return {"model": [entry_of(day.store, f"{folder}/encoder.onnx")]}

    day.swap("train", tables)
    return "train"


def _weights(model: onnx.ModelProto, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.dims:
            changed = change(numpy_helper.to_array(tensor)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))


def random_weights(day: Day) -> Stage:
    """Every weight is noise of the size it had."""
    noise = np.random.default_rng(0)
    return _model(day, lambda model: _weights(model, lambda w: noise.normal(size=w.shape) * (w.std() + 1e-3)))


def nan_weight(day: Day) -> Stage:
    """One place's row of the tables is not a number."""

    def spoil(model: onnx.ModelProto) -> None:
        bags = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("views.bags"))
        table = numpy_helper.to_array(bags).copy()
        table[FIRST_PLACE_ROW + 1 :: 50] = np.nan
        bags.CopyFrom(numpy_helper.from_array(table, bags.name))

    return _model(day, spoil)


def collapsed(day: Day) -> Stage:
    """A model that gives everybody nearly the same unit vector."""

    def spoil(model: onnx.ModelProto) -> None:
        nodes, graph = model.graph.node, model.graph
        producer = next(node for node in nodes if "vector" in node.output)
        producer.output[0] = "own"
        dim = graph.output[0].type.tensor_type.shape.dim[1].dim_value
        graph.initializer.append(numpy_helper.from_array(np.full(dim, 100 / dim**0.5, np.float32), "everybody"))
        nodes.append(helper.make_node("Add", ["own", "everybody"], ["long"]))
        nodes.append(helper.make_node("LpNormalization", ["long"], ["vector"], axis=1, p=2))

    return _model(day, spoil)


def weights_of_other_rows(day: Day) -> Stage:
    """Weights and vocabulary as they should be, but for the order of the weights' rows: another vocabulary's."""
    rows = read_vocabulary(day.store, day.made("train").paths("vocabulary")[0]).n_rows
    order = np.random.default_rng(0).permutation(rows)
    return _model(day, lambda model: _weights(model, lambda w: w[order] if len(w) == len(order) else w))


def _vocabulary(day: Day, rows: Callable[[int], list[int]]) -> Stage:
    """The bundle with another vocabulary file."""
    known = pq.read_table(day.store.path(day.made("train").paths("vocabulary")[0]))
    other = known.take(pa.array(rows(len(known))))
    day.swap("train", lambda folder: {"vocabulary": [put_table(day.store, f"{folder}/vocabulary.parquet", other)]})
    return "train"


def shorter_vocabulary(day: Day) -> Stage:
    """As it was before the latest places came."""
    return _vocabulary(day, lambda n: list(range(n - 3)))


def reordered_vocabulary(day: Day) -> Stage:
    """The same places, two of them in each other's rows."""
    return _vocabulary(day, lambda n: [*range(n - 2), n - 1, n - 2])


# -- spoilt vectors ---------------------------------------------------------------------------------------------------


def _turned(history: pa.Table, **how: Any) -> pa.Table:
    made = encode_table(history, **how)
    return made.set_column(1, "vector", made.column("vector").take(pa.array(range(len(made) - 1, -1, -1))))


def _with_nan(history: pa.Table, **how: Any) -> pa.Table:
    made = encode_table(history, **how)
    lists = made.column("vector").to_pylist()
    lists[0] = [float("nan")] * len(lists[0])
    return made.set_column(1, "vector", pa.array(lists, made.schema.field("vector").type))


def shuffled_ids(day: Day) -> Stage:
    """Everybody gets somebody else's vector, before the lists are made: lists and vectors agree."""
    day.patch.setattr(analysis_stage, "encode_table", _turned)
    return "train"


def nan_row(day: Day) -> Stage:
    """A worker gives back a vector that is not a number."""
    day.patch.setattr(analysis_stage, "encode_table", _with_nan)
    return "train"


def nan_row_afterwards(day: Day) -> Stage:
    """The same, once nobody of ``analyze`` looks any more."""

    def change(rows: pa.Table) -> pa.Table:
        lists = rows.column("vector").to_pylist()
        lists[0] = [float("nan")] * len(lists[0])
        return rows.set_column(1, "vector", pa.array(lists, rows.schema.field("vector").type))

    analysis = day.made("analyze")
    day.swap("analyze", lambda folder: day.rewritten(analysis, "vectors", folder, change))
    return "analyze"


def yesterdays_vectors(day: Day) -> Stage:
    """Vectors and lists of the first day as the second's."""
    day.swap("analyze", lambda folder: day.made("analyze", day.first).tables)
    return "analyze"


# -- spoilt lists -----------------------------------------------------------------------------------------------------


def lists_of_another_index(day: Day) -> Stage:
    """The positions an index found, read in another one whose ids lie one further."""
    analysis = day.made("analyze")
    ids = sorted({user for path in analysis.paths("vectors") for user in _users(day.store, path)})
    following = dict(zip(ids, [*ids[1:], ids[0]], strict=True))

    def change(rows: pa.Table) -> pa.Table:
        twins = [following[twin] for twin in rows.column("twin_idno").to_pylist()]
        return rows.set_column(2, "twin_idno", pa.array(twins))

    day.swap("analyze", lambda folder: day.rewritten(analysis, "twins", folder, change))
    return "analyze"


def yesterdays_lists(day: Day) -> Stage:
    """Good lists, of the first day's vectors."""
    before = day.made("analyze", day.first)
    day.swap("analyze", lambda folder: {"twins": before.tables["twins"]})
    return "analyze"


def constant_lists(day: Day) -> Stage:
    """Everybody gets the list of the first."""
    analysis = day.made("analyze")
    first = pq.read_table(day.store.path(analysis.paths("twins")[0]))
    everybodys = first.column("twin_idno").to_pylist()[: QUICK.analyze.k + 1]

    def change(rows: pa.Table) -> pa.Table:
        twins = [everybodys[rank - 1] for rank in rows.column("rank").to_pylist()]
        return rows.set_column(2, "twin_idno", pa.array(twins))

    day.swap("analyze", lambda folder: day.rewritten(analysis, "twins", folder, change))
    return "analyze"


def _users(store: Store, path: str) -> list[str]:
    users: list[str] = pq.read_table(store.path(path), columns=["user_idno"]).column(0).to_pylist()
    return users


# -- spoilt data ------------------------------------------------------------------------------------------------------


def half_of_the_favors(day: Day) -> Stage:
    """Every other line of everybody is lost in the mart."""

    def every_other(rows: pa.Table) -> pa.Table:
        return rows.take(pa.array(range(0, len(rows), 2)))

    made = day.made("mart")

    def tables(folder: str) -> Tables:
        days = {name: name.split("/")[0] for name in made.tables if name.startswith(("reviews/", "likes/"))}
        kept = {kind: day.rewritten(made, kind, folder, every_other)[kind] for kind in set(days.values())}
        return {name: kept.pop(kind, []) for name, kind in days.items()}

    day.swap("mart", tables)
    return "mart"


def regions_all_alike(day: Day) -> Stage:
    """Every place comes with the same region code: nobody's home area is theirs any more."""

    def alike(rows: pa.Table) -> pa.Table:
        at = rows.schema.get_field_index("place_dongcode")
        return rows.set_column(at, rows.schema.field(at), pa.array(["1100000000"] * len(rows)))

    made = day.made("mart")

    def tables(folder: str) -> Tables:
        first, *others = [name for name in made.tables if name.startswith("places/")]
        rewritten = day.rewritten(made, "places", folder, alike)["places"]
        return {first: rewritten, **{name: [] for name in others}}

    day.swap("mart", tables)
    return "mart"


def half_of_the_users(day: Day) -> Stage:
    """Half of the files of histories are lost."""
    files = day.made("features").tables["history"]
    day.swap("features", lambda folder: {"history": files[: len(files) // 2]})
    return "features"


def yesterdays_features(day: Day) -> Stage:
    """The first day's features as the second's."""
    before = day.made("features", day.first)
    day.swap("features", lambda folder: before.tables, before.facts)
    return "features"


def another_towns_features(day: Day) -> Stage:
    """Those of a town where the same ids are other people and other places."""
    store = Store.create(day.folder / "other")
    source = str(write_town(OTHER_TOWN, day.folder / "town").folder)
    for stage in ("collect", "mart", "features"):
        run = run_stage(store, stage, NEXT_DAY, QUICK, source=source if stage == "collect" else None)
    made = read_manifest(store, "features", run.generation("features"))
    shutil.copytree(store.path(made.folder), day.store.path(made.folder))
    day.swap("features", lambda folder: made.tables, made.facts)
    return "features"


SPOILT: Final[dict[Callable[[Day], Stage], str]] = {
    random_weights: "WORSE-THAN-PUBLISHED",
    shuffled_ids: "VECTORS-OTHER-MODEL",
    nan_weight: "BAD-VECTOR",
    nan_row: "BAD-VECTOR",
    nan_row_afterwards: "VECTORS-NOT-FINITE",
    shorter_vocabulary: "OTHER-VOCABULARY",
    reordered_vocabulary: "OTHER-VOCABULARY",
    weights_of_other_rows: "WORSE-THAN-PUBLISHED",
    lists_of_another_index: "LISTS-OTHER-VECTORS",
    yesterdays_lists: "LISTS-OTHER-VECTORS",
    half_of_the_favors: "FAVORS-LOST",
    half_of_the_users: "FEWER-USERS",
    collapsed: "VECTORS-COLLAPSED",
    constant_lists: "LISTS-CONSTANT",
    yesterdays_features: "STALE-DATA",
    yesterdays_vectors: "VECTORS-OTHER-MODEL",
    another_towns_features: "FAVORS-LOST",
    regions_all_alike: "DATA-SHIFTED",
}
"""What is spoilt, and the code that says so; eleven kinds, some of them at two or three places."""
STORE: Final = 4
GATE: Final = 5


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(("spoil", "code"), SPOILT.items(), ids=[spoil.__name__ for spoil in SPOILT])
def test_a_spoilt_day_is_stopped_and_the_day_before_is_seen(day: Day, spoil: Callable[[Day], Stage], code: str) -> None:
    """By the stage that is handed the spoilt part, or by the gate; with the code, and the exit code of its class."""
    after = spoil(day)
    with pytest.raises(TasteTwinError) as stopped:
        day.go_on(after)
    problem, by_gate = stopped.value.problem, isinstance(stopped.value, GateRefused)
    assert code in (problem.value if by_gate else problem.code)
    assert stopped.value.exit_code == (GATE if by_gate else STORE)
    pointer = published(day.store)
    assert pointer is not None and pointer.run_id == day.first.run_id
    ended = latest_run(day.store)
    assert ended.status == ("refused" if by_gate else "failed") and ended.error is not None and code in ended.error
    assert "deliver" not in ended.stages


def test_the_same_day_unspoilt_is_published(day: Day) -> None:
    """The premise: the gate finds nothing in what the tests above begin with."""
    done = day.go_on("analyze")
    assert done.status == "delivered" and verdict_of(day.made("evaluate", done)).findings == []
    pointer = published(day.store)
    assert pointer is not None and pointer.run_id == done.run_id
