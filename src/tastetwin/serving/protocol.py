"""Messages of the Open Inference Protocol v2, JSON and the binary tensor data extension; both sides of the wire.

Strict: a message is read whole or refused with ``OIP-MESSAGE``, which names the tensor or key, what was found and the
rule. What goes through comes out with the same names, shapes, types and bits. Tensors of numbers only; no text, no
shared memory. Parameters of a request that this side does not know are passed on, as the protocol allows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import numpy as np
import numpy.typing as npt
import orjson

from tastetwin.errors import UsageError

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]

DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
}
"""Type on the wire -> type in memory; the wire is little-endian."""
NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
HEADER_LENGTH: Final = "inference-header-content-length"
BINARY: Final = "application/octet-stream"
JSON: Final = "application/json"
MAX_TENSORS: Final = 64
MAX_DIMS: Final = 8
MAX_VALUES: Final = 1 << 40
_SIZE: Final = "binary_data_size"
_TENSOR_KEYS: Final = frozenset({"name", "shape", "datatype", "parameters", "data"})
_REQUEST_KEYS: Final = frozenset({"id", "parameters", "inputs", "outputs"})
_OUTPUT_KEYS: Final = frozenset({"name", "parameters"})
_KINDS: Final[dict[str, frozenset[type]]] = {
    "b": frozenset({bool}),
    "u": frozenset({int}),
    "i": frozenset({int}),
    "f": frozenset({int, float}),
}


@dataclass(frozen=True)
class InferRequest:
    """What a client asks for."""

    inputs: dict[str, Array]
    outputs: dict[str, bool] = field(default_factory=dict)
    """Name -> whether its data shall be binary; empty = all there are."""
    id: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)

    def binary(self, output: str) -> bool:
        """Whether that output's data goes out as bytes."""
        return self.outputs.get(output, bool(self.parameters.get("binary_data_output", False)))


# -- the client's side ----------------------------------------------------------------------------------------------


def infer_request(inputs: Tensors, outputs: Sequence[str], request_id: str = "") -> tuple[dict[str, str], bytes]:
    """Headers and body of ``POST .../infer``: inputs as bytes, and outputs asked for as bytes.

    Raises:
        UsageError: OIP-MESSAGE for a type that the protocol has no name for.
    """
    head: dict[str, Any] = {"id": request_id} if request_id else {}
    head["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
    head["inputs"], blobs = _written(inputs, dict.fromkeys(inputs, True))
    return _framed(head, blobs)


def read_infer_response(headers: Mapping[str, str], body: bytes) -> dict[str, Array]:
    """Outputs of an answer with status 200, by name; read-only where they are views of ``body``.

    Raises:
        UsageError: OIP-MESSAGE.
    """
    head, rest = _opened(headers, body)
    return _read_tensors(head.get("outputs"), "outputs", rest)


# -- the server's side ----------------------------------------------------------------------------------------------


def read_infer_request(headers: Mapping[str, str], body: bytes) -> InferRequest:
    """What a request asks for.

    Args:
        headers: names in any case.
        body: all of it, not compressed.

    Raises:
        UsageError: OIP-MESSAGE.
    """
    head, rest = _opened(headers, body)
    _only(head, _REQUEST_KEYS, "request")
    identity = head.get("id") or ""
    if not isinstance(identity, str):
        refuse("id", identity, "text")
    parameters = _parameters(head, "request")
    return InferRequest(_read_tensors(head.get("inputs"), "inputs", rest), _asked(head), identity, parameters)


def infer_response(
    model: str, version: str, outputs: Tensors, binary: Mapping[str, bool], request_id: str = ""
) -> tuple[dict[str, str], bytes]:
    """Headers and body of the answer to a request.

    Raises:
        UsageError: OIP-MESSAGE for a type without a name, or NaN or infinity where JSON is asked for.
    """
    head: dict[str, Any] = {"model_name": model, "model_version": version}
    if request_id:
        head["id"] = request_id
    head["outputs"], blobs = _written(outputs, binary)
    return _framed(head, blobs)


# -- tensors --------------------------------------------------------------------------------------------------------


def datatype_of(name: str, values: Array) -> str:
    """The protocol's name of an array's type.

    Raises:
        UsageError: OIP-MESSAGE where it has none.
    """
    found = NAMES.get(values.dtype.newbyteorder("<"))
    return found if found is not None else refuse(f"tensor {name!r}", values.dtype, f"one of {', '.join(DTYPES)}")


def tensor_from_bytes(name: str, datatype: object, shape: object, data: bytes | memoryview) -> Array:
    """A tensor whose data is row-major, little-endian bytes; a read-only view of them.

    Raises:
        UsageError: OIP-MESSAGE.
    """
    dtype, dims = _dtype(name, datatype), _shape(name, shape)
    wanted = math.prod(dims) * dtype.itemsize
    if len(data) != wanted:
        refuse(f"tensor {name!r}", f"{len(data)} bytes", f"{wanted} bytes, which {dims} of {datatype} take")
    values = np.frombuffer(data, dtype).reshape(dims)
    if dtype.kind == "b" and (np.frombuffer(data, np.uint8) > 1).any():
        refuse(f"tensor {name!r}", "a byte above 1", "BOOL is a byte each, 0 or 1")
    return values


def tensor_from_numbers(name: str, datatype: object, shape: object, data: object) -> Array:
    """A tensor whose data is a list of numbers: flat in row-major order, or nested as the shape says.

    Raises:
        UsageError: OIP-MESSAGE.
    """
    dtype, dims = _dtype(name, datatype), _shape(name, shape)
    flat = _flat(name, dims, data)
    kinds = set(map(type, flat))
    if not kinds <= _KINDS[dtype.kind]:
        strange = ", ".join(sorted(kind.__name__ for kind in kinds - _KINDS[dtype.kind]))
        refuse(f"tensor {name!r}", strange, f"every value of the data fits {datatype}")
    try:
        with np.errstate(over="raise"):
            values = np.array(flat, dtype)
    except (OverflowError, FloatingPointError):
        refuse(f"tensor {name!r}", "a number that is too large", f"every value of the data fits {datatype}")
    return values.reshape(dims)


def refuse(place: str, value: object, rule: str) -> NoReturn:
    """Raise ``OIP-MESSAGE``."""
    shown = str(value)[:100]
    raise UsageError("OIP-MESSAGE", place=place, value=shown, rule=rule, fix="see the Open Inference Protocol v2")


def _flat(name: str, dims: tuple[int, ...], data: object) -> list[Any]:
    if not isinstance(data, list):
        refuse(f"tensor {name!r}", type(data).__name__, "data is a list of numbers, or binary_data_size says its bytes")
    if len(dims) > 1 and data and isinstance(data[0], list):
        return _unnested(name, dims, data)
    if len(data) != math.prod(dims):
        refuse(f"tensor {name!r}", f"{len(data)} values", f"{math.prod(dims)} values, as many as {dims} holds")
    return data


def _unnested(name: str, dims: tuple[int, ...], data: list[Any]) -> list[Any]:
    rows = [data]
    for size in dims:
        if any(type(row) is not list or len(row) != size for row in rows):
            refuse(f"tensor {name!r}", "lists of other lengths", f"data is nested as {dims} says, or flat")
        rows = [item for row in rows for item in row]
    return rows


def _dtype(name: str, datatype: object) -> np.dtype[Any]:
    found = DTYPES.get(datatype) if isinstance(datatype, str) else None
    return (
        found if found is not None else refuse(f"tensor {name!r}", datatype, f"datatype is one of {', '.join(DTYPES)}")
    )


def _shape(name: str, shape: object) -> tuple[int, ...]:
    if not isinstance(shape, list) or len(shape) > MAX_DIMS:
        refuse(f"tensor {name!r}", shape, f"shape is a list of at most {MAX_DIMS} sizes")
    most = 1
    for size in shape:
        if type(size) is not int or size < 0:
            refuse(f"tensor {name!r}", shape, "every size of the shape is an integer from 0 on")
        most *= size or 1
    if most > MAX_VALUES:
        refuse(f"tensor {name!r}", shape, f"a tensor of at most {MAX_VALUES} values")
    return tuple(shape)


# -- messages -------------------------------------------------------------------------------------------------------


def _written(tensors: Tensors, binary: Mapping[str, bool]) -> tuple[list[dict[str, Any]], list[bytes]]:
    heads, blobs = [], []
    for name, values in tensors.items():
        head: dict[str, Any] = {"name": name, "datatype": datatype_of(name, values), "shape": list(values.shape)}
        little = np.ascontiguousarray(values, DTYPES[head["datatype"]])
        if binary.get(name, False):
            blobs.append(little.tobytes())
            head["parameters"] = {_SIZE: len(blobs[-1])}
        elif little.dtype.kind == "f" and not np.isfinite(little).all():
            refuse(f"tensor {name!r}", "NaN or infinity", "JSON has finite numbers only; ask for binary data")
        else:
            head["data"] = little.ravel()
        heads.append(head)
    return heads, blobs


def _framed(head: dict[str, Any], blobs: list[bytes]) -> tuple[dict[str, str], bytes]:
    """JSON alone, or JSON and what follows it with a header that says where it ends."""
    text = orjson.dumps(head, option=orjson.OPT_SERIALIZE_NUMPY)
    if not blobs:
        return {"content-type": JSON}, text
    return {"content-type": BINARY, HEADER_LENGTH: str(len(text))}, b"".join([text, *blobs])


def _opened(headers: Mapping[str, str], body: bytes) -> tuple[dict[str, Any], memoryview]:
    """The JSON of a message, and the bytes after it."""
    length = _header_length(headers, len(body))
    view = memoryview(body)
    try:
        head = orjson.loads(view[:length])
    except orjson.JSONDecodeError as error:
        refuse("message", error, "its head is one JSON object in UTF-8")
    if not isinstance(head, dict):
        refuse("message", type(head).__name__, "its head is one JSON object in UTF-8")
    return head, view[length:]


def _header_length(headers: Mapping[str, str], size: int) -> int:
    text = next((value for name, value in headers.items() if name.lower() == HEADER_LENGTH), None)
    if text is None:
        return size
    if not (text.isascii() and text.isdigit() and len(text) < 12 and int(text) <= size):
        refuse(HEADER_LENGTH, text, f"bytes of the JSON head, at most the body's {size}")
    return int(text)


def _read_tensors(heads: object, place: str, rest: memoryview) -> dict[str, Array]:
    if not isinstance(heads, list) or not 0 < len(heads) <= MAX_TENSORS:
        refuse(place, type(heads).__name__, f"a list of 1 to {MAX_TENSORS} tensors")
    found: dict[str, Array] = {}
    for head in heads:
        name = _named(head, place, found)
        _only(head, _TENSOR_KEYS, f"tensor {name!r}")
        parameters = _parameters(head, f"tensor {name!r}")
        if _SIZE in parameters:
            data, rest = _cut(name, parameters[_SIZE], head, rest)
            found[name] = tensor_from_bytes(name, head.get("datatype"), head.get("shape"), data)
        else:
            found[name] = tensor_from_numbers(name, head.get("datatype"), head.get("shape"), head.get("data"))
    if len(rest):
        refuse(place, f"{len(rest)} bytes more", "the body ends with the last tensor's data")
    return found


def _cut(name: str, size: object, head: dict[str, Any], rest: memoryview) -> tuple[memoryview, memoryview]:
    if type(size) is not int or not 0 <= size <= len(rest):
        refuse(f"tensor {name!r}", size, f"{_SIZE} is an integer, and the body has so many bytes; {len(rest)} are left")
    if "data" in head:
        refuse(f"tensor {name!r}", "data", f"either data or {_SIZE}, not both")
    return rest[:size], rest[size:]


def _asked(head: dict[str, Any]) -> dict[str, bool]:
    outputs = head.get("outputs") or []
    if not isinstance(outputs, list) or len(outputs) > MAX_TENSORS:
        refuse("outputs", type(outputs).__name__, f"a list of at most {MAX_TENSORS} names")
    default = _parameters(head, "request").get("binary_data_output", False)
    asked: dict[str, bool] = {}
    for output in outputs:
        name = _named(output, "outputs", asked)
        _only(output, _OUTPUT_KEYS, f"output {name!r}")
        binary = _parameters(output, f"output {name!r}").get("binary_data", default)
        if not isinstance(binary, bool):
            refuse(f"output {name!r}", binary, "binary_data is true or false")
        asked[name] = binary
    return asked


def _named(head: object, place: str, known: Mapping[str, object]) -> str:
    if not isinstance(head, dict):
        refuse(place, type(head).__name__, "every tensor is a JSON object")
    name = head.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= 100:
        refuse(place, name, "every tensor has a name of 1 to 100 characters")
    if name in known:
        refuse(f"tensor {name!r}", "a second time", "every tensor once")
    return name


def _parameters(head: dict[str, Any], place: str) -> dict[str, Any]:
    found = head.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        refuse(place, type(found).__name__, "parameters are a JSON object")
    if shared := [key for key in found if key.startswith("shared_memory")]:
        refuse(place, shared[0], "shared memory is not served")
    return found


def _only(head: dict[str, Any], known: frozenset[str], place: str) -> None:
    if not known.issuperset(head):
        refuse(place, ", ".join(sorted(set(head) - known)), f"keys are {', '.join(sorted(known))}")
