"""Encoding with a tiny model whose answer is known: row p maps to a fixed vector, a user is the unit sum of theirs."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tastetwin.analysis.encode import Encoder, encode_table
from tastetwin.engine import Engine
from tastetwin.errors import StoreError
from tastetwin.features.histories import Histories
from tastetwin.features.taste import to_arrow
from tastetwin.privacy.opt_out import OptOuts
from tastetwin.schema import VECTORS
from tastetwin.store import Store
from tastetwin.tables import map_files, put_table

onnx = pytest.importorskip("onnx", reason="SKIPPED: the 'train' extra (onnx) is not installed")

ROWS, DIM, MAX_LENGTH = 30, 8, 6
TABLE = np.random.default_rng(5).standard_normal((ROWS, DIM)).astype(np.float32)


def write_model(path: Path, table: np.ndarray = TABLE) -> str:
    from onnx import TensorProto as T
    from onnx import helper, numpy_helper

    floats = ("visits", "ratings", "ages")
    inputs = [helper.make_tensor_value_info("places", T.INT64, ["B", "L"])]
    inputs += [helper.make_tensor_value_info(name, T.FLOAT, ["B", "L"]) for name in floats]
    nodes = [
        helper.make_node("Gather", ["table", "places"], ["rows"]),
        helper.make_node("Unsqueeze", ["visits", "last"], ["weights"]),
        helper.make_node("Mul", ["rows", "weights"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "axis"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["ratings", "axis"], ["rating"], keepdims=1),
        helper.make_node("ReduceSum", ["ages", "axis"], ["age"], keepdims=1),
        helper.make_node("Add", ["rating", "age"], ["extra"]),
        helper.make_node("Mul", ["extra", "zero"], ["nothing"]),
        helper.make_node("Add", ["sum", "nothing"], ["all"]),
        helper.make_node("LpNormalization", ["all"], ["vector"], axis=1, p=2),
    ]
    constants = {"last": np.array([2]), "axis": np.array([1]), "zero": np.array(0, np.float32), "table": table}
    graph = helper.make_graph(
        nodes,
        "tiny",
        inputs,
        [helper.make_tensor_value_info("vector", T.FLOAT, ["B", DIM])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path))
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("bundle") / "encoder.onnx")


def histories(n: int, seed: int = 0) -> Histories:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 12, n)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    places = np.concatenate([rng.permutation(np.arange(2, ROWS))[:length] for length in lengths]).astype(np.int32)
    ratings = np.where(rng.random(len(places)) < 0.5, np.nan, 0.5).astype(np.float32)
    visits = rng.integers(1, 4, len(places)).astype(np.float32)
    ids = np.array([f"u{number:04d}" for number in range(n)], dtype=object)
    return Histories(ids, offsets, places, visits, ratings, rng.integers(0, 100, len(places)).astype(np.int32))


def slow(known: Histories) -> np.ndarray:
    """One user at a time: the unit sum of the rows of the most recent places, weighted by visits."""
    vectors = []
    for start, end in zip(known.offsets[:-1], known.offsets[1:], strict=True):
        recent = slice(max(start, end - MAX_LENGTH), end)
        total = known.visits[recent] @ TABLE[known.places[recent]]
        vectors.append(total / np.linalg.norm(total))
    return np.array(vectors)


@pytest.mark.parametrize(("tokens", "threads"), [(512, 1), (7, 1), (64, 3)])
def test_vectors_equal_one_user_at_a_time(model: str, tokens: int, threads: int) -> None:
    """Bucketing, padding and threads must neither change nor permute anybody's vector."""
    known = histories(300)
    vectors = Encoder(model, MAX_LENGTH, tokens, threads).encode(known)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, slow(known), atol=1e-5)


def test_nobody_gives_no_vectors(model: str) -> None:
    """An empty day is no error here."""
    assert Encoder(model, MAX_LENGTH, 512).encode(histories(3).select(np.zeros(0, np.int64))).shape == (0, DIM)


def test_the_workers_function_keeps_rows_and_leaves_out_short_histories_and_opt_outs(model: str) -> None:
    """Rows stay in order, users with fewer places than asked for, or who opted out, get none."""
    known = histories(100)
    table = pa.Table.from_batches([to_arrow(known, np.ones(100, np.int32))])
    got = encode_table(
        table[10:],
        model=model,
        max_length=MAX_LENGTH,
        tokens=512,
        min_favors=4,
        form="float32",
        opt_outs=OptOuts(frozenset({"x"})),
    )
    eligible = 10 + np.flatnonzero(known.lengths()[10:] >= 4)
    assert got.schema == VECTORS
    assert got.column("user_idno").to_pylist() == known.user_ids[eligible].tolist()
    np.testing.assert_allclose(np.array(got.column("vector").to_pylist()), slow(known)[eligible], atol=1e-5)


def test_what_goes_wrong_in_a_worker_keeps_its_code(engine: Engine, tmp_path: Path) -> None:
    """An engine wraps a worker's exception in its own; the user must still read BAD-MODEL and what to do."""
    store = Store.create(tmp_path / "store")
    rows = pa.Table.from_batches([to_arrow(histories(3), np.ones(3, np.int32))])
    entry = put_table(store, "history/bucket-00000.parquet", rows)
    model = str(tmp_path / "none.onnx")
    work = functools.partial(
        encode_table, model=model, max_length=6, tokens=512, min_favors=1, form="float32", opt_outs=OptOuts(frozenset())
    )
    with pytest.raises(StoreError, match="BAD-MODEL") as caught:
        map_files(engine, store, [entry.path], "vectors", work)
    assert caught.value.problem.place == str(tmp_path / "none.onnx") and caught.value.problem.fix


def test_a_model_that_gives_no_unit_vector_is_refused(tmp_path: Path) -> None:
    """A NaN vector in the index would poison lists silently; whose it is stays out of logs and of the run's record."""
    spoilt = TABLE.copy()
    spoilt[5] = np.nan
    encoder = Encoder(write_model(tmp_path / "encoder.onnx", spoilt), MAX_LENGTH, 512)
    found = histories(50)
    with pytest.raises(StoreError, match="BAD-VECTOR") as caught:
        encoder.encode(found)
    assert not [user for user in found.user_ids if repr(user) in str(caught.value)]


@pytest.mark.parametrize("case", ["absent", "garbage", "empty"])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, case: str) -> None:
    """A coded error with the path, whatever is wrong with the file."""
    path = tmp_path / "encoder.onnx"
    if case != "absent":
        path.write_bytes(b"not a model" * 100 if case == "garbage" else b"")
    with pytest.raises(StoreError, match="BAD-MODEL") as caught:
        Encoder(str(path), MAX_LENGTH, 512)
    assert caught.value.problem.place == str(path)


def test_a_model_on_a_remote_store_opens(model: str) -> None:
    """Workers of a cluster read the bundle from the store's URL."""
    import fsspec

    with fsspec.open("memory://bundles/encoder.onnx", "wb") as handle:
        handle.write(Path(model).read_bytes())
    known = histories(5)
    np.testing.assert_allclose(
        Encoder("memory://bundles/encoder.onnx", MAX_LENGTH, 512).encode(known), slow(known), atol=1e-5
    )
