"""The messages: what goes through comes out, bit for bit, and everything else is refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tastetwin.errors import UsageError
from tastetwin.serving.protocol import (
    DTYPES,
    HEADER_LENGTH,
    InferRequest,
    infer_request,
    infer_response,
    read_infer_request,
    read_infer_response,
    tensor_from_bytes,
)

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
ARRAYS = st.sampled_from(list(DTYPES.values())).flatmap(lambda dtype: hnp.arrays(dtype, SHAPES))
FINITE = st.sampled_from(list(DTYPES.values())).flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        SHAPES,
        elements=hnp.from_dtype(dtype, allow_nan=False, allow_infinity=False) if dtype.kind == "f" else None,
    )
)
NAMES = st.text(min_size=1, max_size=8)
PLACES = np.array([[3, 4]], np.int64)


def same(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and left[name].tobytes() == right[name].tobytes()
        for name in left
    )


@given(st.dictionaries(NAMES, ARRAYS, min_size=1, max_size=4), st.lists(NAMES, unique=True, max_size=3), NAMES)
def test_a_request_arrives_as_it_was_sent(inputs: dict[str, Any], outputs: list[str], request_id: str) -> None:
    """A value that changed on the way would be a wrong vector, of which nobody would know."""
    found = read_infer_request(*infer_request(inputs, outputs, request_id))
    assert same(found.inputs, inputs)
    assert found.outputs == dict.fromkeys(outputs, True)
    assert found.id == request_id


@given(st.dictionaries(NAMES, FINITE, min_size=1, max_size=4), st.data())
def test_an_answer_arrives_as_it_was_sent(outputs: dict[str, Any], data: st.DataObject) -> None:
    """JSON and binary are two spellings of the same vectors, also mixed in one message."""
    binary = {name: data.draw(st.booleans()) for name in outputs}
    assert same(read_infer_response(*infer_response("taste", "1", outputs, binary, "id")), outputs)


def test_bytes_are_little_endian_and_row_major() -> None:
    """The protocol's other implementations read it so."""
    _, body = infer_request({"places": PLACES.astype(">i8")}, ["vector"])
    assert body.endswith(bytes([3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]))


def message(**changes: Any) -> bytes:
    tensor: dict[str, Any] = {"name": "places", "datatype": "INT64", "shape": [1, 2], "data": [3, 4]}
    tensor |= changes.pop("tensor", {})
    return orjson.dumps({"inputs": [tensor], **changes})


@pytest.mark.parametrize("data", [[3, 4], [[3, 4]]])
def test_data_is_flat_or_nested_as_its_shape(data: list[Any]) -> None:
    """The protocol allows both."""
    assert same(read_infer_request({}, message(tensor={"data": data})).inputs, {"places": PLACES})


def test_what_other_servers_add_to_an_answer_is_read_over() -> None:
    """KServe's Python server sends nulls for what it does not say."""
    head = {"model_name": "taste", "model_version": None, "id": "1", "parameters": None}
    output = {"name": "vector", "shape": [1, 2], "datatype": "FP32", "parameters": None, "data": [0.5, -1]}
    found = read_infer_response({"content-type": "application/json"}, orjson.dumps({**head, "outputs": [output]}))
    assert same(found, {"vector": np.array([[0.5, -1]], np.float32)})


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b"", "message"),
        (b"[]", "message"),
        (b"{", "message"),
        (b"\xff", "message"),
        (b"[" * 100_000, "message"),
        (b"{}", "inputs"),
        (b'{"inputs":[]}', "inputs"),
        (b'{"inputs":[3]}', "inputs"),
        (orjson.dumps({"inputs": [{"name": f"t{n}"} for n in range(100)]}), "inputs"),
        (message(surprise=1), "request"),
        (message(id=3), "id"),
        (message(parameters=[]), "request"),
        (message(outputs=[{"name": "vector", "parameters": {"binary_data": 1}}]), "vector"),
        (message(outputs=[{"name": "vector"}, {"name": "vector"}]), "vector"),
        (message(outputs=[{"name": "vector", "shape": [1]}]), "vector"),
        (message(outputs={"name": "vector"}), "outputs"),
        (message(tensor={"name": ""}), "inputs"),
        (message(tensor={"name": 3}), "inputs"),
        (message(tensor={"datatype": "INT65"}), "places"),
        (message(tensor={"datatype": "BYTES"}), "places"),
        (message(tensor={"datatype": ["INT64"]}), "places"),
        (message(tensor={"shape": [1, 3]}), "places"),
        (message(tensor={"shape": [-1, -2]}), "places"),
        (message(tensor={"shape": [1.0, 2]}), "places"),
        (message(tensor={"shape": [True, 2]}), "places"),
        (message(tensor={"shape": 2}), "places"),
        (message(tensor={"shape": [1] * 20, "data": [3]}), "places"),
        (message(tensor={"shape": [0, 1 << 60, 1 << 60], "data": []}), "places"),
        (message(tensor={"data": [[3], [4]]}), "places"),
        (message(tensor={"data": [[3, 4], 5]}), "places"),
        (message(tensor={"data": [[[3, 4]]]}), "places"),
        (message(tensor={"data": "34"}), "places"),
        (message(tensor={"data": [3, True]}), "places"),
        (message(tensor={"data": [3, 4.0]}), "places"),
        (message(tensor={"data": [3, None]}), "places"),
        (message(tensor={"data": [3, 1 << 63]}), "places"),
        (message(tensor={"datatype": "UINT8", "data": [3, 256]}), "places"),
        (message(tensor={"datatype": "FP32", "data": [3, 1e300]}), "places"),
        (message(tensor={"datatype": "BOOL", "data": [0, 1]}), "places"),
        (message(tensor={"surprise": 3}), "places"),
        (message(tensor={"parameters": {"binary_data_size": 16}}), "places"),
        (message(tensor={"parameters": {"shared_memory_region": "x"}}), "places"),
        (message() + b"\x00", "message"),
    ],
)
def test_a_message_that_is_not_the_protocols_is_refused_by_name(body: bytes, place: str) -> None:
    """Who wrote the client needs to know which part, and nothing half right may reach the model."""
    with pytest.raises(UsageError, match="OIP-MESSAGE") as refused:
        read_infer_request({}, body)
    assert place in refused.value.problem.place
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("length", ["-1", "x", "", "1e3", "٣", "999999999999999999", "99999"])
def test_a_head_that_ends_beyond_the_body_is_refused(length: str) -> None:
    """Else a reader would wait for, or read, bytes that are not its own."""
    _, body = infer_request({"places": PLACES}, [])
    with pytest.raises(UsageError, match=HEADER_LENGTH):
        read_infer_request({"Inference-Header-Content-Length": length}, body)


@pytest.mark.parametrize("change", [lambda body: body + b"\x00", lambda body: body[:-1]])
def test_bytes_too_many_or_too_few_are_refused(change: Any) -> None:
    """Bytes that no tensor claims mean that the two sides disagree on the message."""
    headers, body = infer_request({"places": PLACES}, [])
    with pytest.raises(UsageError, match="OIP-MESSAGE"):
        read_infer_request(headers, change(body))


def test_a_tensor_twice_is_refused() -> None:
    """Which of both would count?"""
    body = orjson.loads(message())
    with pytest.raises(UsageError, match="second time"):
        read_infer_request({}, orjson.dumps({"inputs": body["inputs"] * 2}))


def test_a_byte_that_is_no_bool_is_refused() -> None:
    """NumPy would take it, and compute with it."""
    with pytest.raises(UsageError, match="BOOL"):
        tensor_from_bytes("t", "BOOL", [1], b"\x02")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_never_says_nan(value: float) -> None:
    """It would go out as null, and be another value on the other side."""
    with pytest.raises(UsageError, match="NaN"):
        infer_response("taste", "1", {"vector": np.array([value], np.float32)}, {})


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(sorted(DTYPES)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
TENSOR = st.fixed_dictionaries(
    {"name": NAMES | JSONS, "datatype": st.sampled_from(sorted(DTYPES)) | JSONS, "shape": JSONS},
    optional={"data": JSONS, "parameters": JSONS | st.fixed_dictionaries({"binary_data_size": JSONS})},
)


def reads_or_refuses(headers: Mapping[str, str], body: bytes) -> None:
    for read in (read_infer_request, read_infer_response):
        try:
            found = read(headers, body)
        except UsageError as error:
            assert error.problem.code == "OIP-MESSAGE"
        else:
            assert found.inputs if isinstance(found, InferRequest) else found


@given(st.lists(TENSOR | JSONS, max_size=3), st.dictionaries(NAMES, JSONS, max_size=2), st.binary(max_size=20))
def test_no_message_does_more_than_be_refused(tensors: list[Any], more: dict[str, Any], rest: bytes) -> None:
    """A crash at the door is a way to stop the server."""
    try:
        head = orjson.dumps({**more, "inputs": tensors, "outputs": tensors})
    except (TypeError, orjson.JSONEncodeError):  # integers beyond 64 bits
        return
    reads_or_refuses({HEADER_LENGTH: str(len(head))}, head + rest)


@given(st.data())
def test_no_damage_to_a_message_does_more_than_be_refused(data: st.DataObject) -> None:
    """Cut, changed or grown at any byte."""
    headers, body = infer_request({"places": PLACES, "visits": PLACES.astype(np.float32)}, ["vector"], "id")
    at = data.draw(st.integers(0, len(body)))
    changed = body[:at] + data.draw(st.binary(max_size=3)) + body[at + data.draw(st.integers(0, 3)) :]
    reads_or_refuses(headers, changed)
