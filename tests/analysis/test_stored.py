"""However vectors are stored, readers get float32 of unit length, and as near to the original as is promised."""

from __future__ import annotations

from typing import Final, get_args

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tastetwin.analysis.index import Floats
from tastetwin.analysis.parts import unit
from tastetwin.analysis.stored import Form, as_matrix, packed, read_vectors, read_vectors_table, unpacked, vectors_table
from tastetwin.schema import VECTORS
from tastetwin.store import Store
from tastetwin.tables import put_table

FORMS: Final = get_args(Form)
seeds = st.integers(0, 2**32 - 1)


def some(seed: int, users: int = 20, dim: int = 48) -> tuple[pa.Array, Floats]:
    """Users and unit vectors, some components a thousand times others."""
    rng = np.random.default_rng(seed)
    vectors = unit(rng.standard_normal((users, dim)) * 10.0 ** rng.uniform(-3, 0, dim))
    return pa.array([f"u{at:03}" for at in range(users)]), vectors


def through(vectors: Floats, form: Form) -> Floats:
    ids = pa.array([str(at) for at in range(len(vectors))])
    return as_matrix(unpacked(packed(ids, vectors, form)))


def test_float32_is_stored_bit_by_bit() -> None:
    """The default: nothing is lost, and the file is what it always was."""
    ids, vectors = some(1)
    assert packed(ids, vectors, "float32").equals(vectors_table(ids, vectors))
    assert np.array_equal(through(vectors, "float32"), vectors)


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_int8_is_off_by_half_a_step_at_most(seed: int) -> None:
    """A step is the vector's largest component / 127; one component off by more would turn a vector unseen."""
    ids, vectors = some(seed)
    rows = packed(ids, vectors, "int8")
    scales = rows.column("scale").to_numpy()
    codes = np.array([np.frombuffer(code, np.int8) for code in rows.column("vector").to_pylist()])
    assert np.array_equal(np.abs(codes).max(axis=1), np.full(len(codes), 127))
    assert (np.abs(codes * scales[:, None] - vectors) <= scales[:, None] / 2 + 1e-7).all()


@settings(max_examples=50, deadline=None)
@given(seeds, st.sampled_from(FORMS))
def test_what_is_read_is_of_unit_length_and_near(seed: int, form: Form) -> None:
    """Readers never ask how it was stored. Half steps in 48 dimensions: an angle of less than two degrees."""
    _, vectors = some(seed)
    found = through(vectors, form)
    assert found.dtype == np.float32 and found.flags.c_contiguous
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-5
    steps = {"float32": 0.0, "float16": 2.0**-11, "int8": np.abs(vectors).max() / 254}[form]
    assert np.linalg.norm(found - vectors, axis=1).max() <= np.sqrt(48) * steps + 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_axes_and_zeros_survive(form: Form) -> None:
    """The ends of the scale: one component is all there is, or there is none."""
    rows = np.concatenate([np.eye(3), -np.eye(3), np.zeros((1, 3))]).astype(np.float32)
    with np.errstate(all="raise"):
        assert np.array_equal(through(rows, form), rows)


@pytest.mark.parametrize("form", FORMS)
def test_files_are_read_as_vectors_whatever_they_hold(memory_store: Store, form: Form) -> None:
    """Two buckets, an empty one among them, users in no order."""
    ids, vectors = some(2)
    backwards = packed(ids, vectors, form).take(pa.array(range(19, -1, -1)))
    paths = ["one.parquet", "none.parquet", "two.parquet"]
    for path, part in zip(paths, (backwards.slice(0, 7), backwards.slice(0, 0), backwards.slice(7)), strict=True):
        put_table(memory_store, path, part)
    users, found = read_vectors(memory_store, paths)
    assert users.tolist() == ids.to_pylist() and np.array_equal(found, through(vectors, form))
    one = read_vectors_table(memory_store, paths, filters=[("user_idno", "in", ["u003"])])
    assert one.schema == VECTORS and one.column("user_idno").to_pylist() == ["u003"]


@pytest.mark.parametrize("form", FORMS)
def test_nobody_is_a_table_too(form: Form) -> None:
    """A bucket in which nobody is eligible."""
    rows = packed(pa.array([], pa.string()), np.empty((0, 48), np.float32), form)
    assert unpacked(rows).schema == VECTORS and rows.num_rows == 0


def test_no_files_are_no_vectors(memory_store: Store) -> None:
    """A run without users."""
    assert read_vectors_table(memory_store, []).equals(VECTORS.empty_table())
