"""One opened bundle: what it accepts, and what it computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tastetwin.config import BackendConfig
from tastetwin.errors import StoreError
from tastetwin.features.histories import PAD_ROW
from tastetwin.generations import read_manifest, verify
from tastetwin.model.batches import UNKNOWN_AGE
from tastetwin.model.files import model_file
from tastetwin.model.session import SILENT, open_session
from tastetwin.serving.backend.refusals import bad_input, too_large
from tastetwin.serving.protocol import Array, Tensors
from tastetwin.store import Store

Floats = npt.NDArray[np.float32]

INPUTS: Final[dict[str, np.dtype[Any]]] = {
    "places": np.dtype(np.int64),
    "visits": np.dtype(np.float32),
    "ratings": np.dtype(np.float32),
    "ages": np.dtype(np.float32),
}
PADDING: Final = {"places": PAD_ROW, "visits": 0, "ratings": 0, "ages": UNKNOWN_AGE}
"""As ``model.batches.pad`` fills what comes after a history's end."""
OUTPUT: Final = "vector"
_LENGTH_TOLERANCE: Final = 1e-3
_MOST_ROWS: Final = 1 << 31


@dataclass(frozen=True)
class Rows:
    """Histories of one request, checked: the model computes each of them, whatever lies beside it in a call."""

    inputs: dict[str, Array]
    """Each [n, length], by name, ``INPUTS``' types."""
    lengths: list[int]
    """Favors of each history; what comes after them is padding."""


class Model:
    """An exported encoder.

    Attributes:
        version: the bundle's id.
        logical_date: the bundle's.
        table_rows: places are integers below it.
        dim: of the vectors.
    """

    def __init__(self, version: str, logical_date: str, session: Any) -> None:
        """Wrap an ``onnxruntime.InferenceSession``."""
        self.version, self.logical_date = version, logical_date
        self._session = session
        self.dim = int(session.get_outputs()[0].shape[1])
        self.table_rows = self._count_rows()

    def check(self, inputs: Tensors, config: BackendConfig) -> Rows:
        """The histories of a request, once the model and the limits allow all of it.

        Raises:
            UsageError: BAD-INPUT, TOO-LARGE.
        """
        _check_names(inputs)
        places = inputs["places"]
        if places.shape[0] > config.max_rows:
            raise too_large("inputs", f"{places.shape[0]} histories", config.max_rows, "backend.max_rows")
        if places.shape[1] > config.max_length:
            raise too_large("inputs", f"histories of {places.shape[1]}", config.max_length, "backend.max_length")
        for name in ("visits", "ratings", "ages"):
            if not np.isfinite(inputs[name]).all():
                raise bad_input(f"tensor {name!r}", "NaN or infinity", "finite numbers")
        return Rows(dict(inputs), self._lengths(places))

    def _lengths(self, places: Array) -> list[int]:
        """Favors of each row of [n, length] places."""
        if places.size == 0:
            return [0] * len(places)
        if (highest := places.view(np.uint64).max()) >= self.table_rows:  # a negative one is a very high one
            rule = f"rows of the vocabulary, from 0 to {self.table_rows - 1}"
            raise bad_input("tensor 'places'", highest.astype(np.int64), rule)
        inside = places != PAD_ROW
        if np.count_nonzero(inside) == places.size:
            return [places.shape[1]] * len(places)
        lengths = np.count_nonzero(inside, axis=1)
        if not np.array_equal(inside, np.arange(places.shape[1]) < lengths[:, None]):
            raise bad_input("tensor 'places'", f"{PAD_ROW} before a place", "padding after the last favor only")
        return [int(length) for length in lengths]

    def vectors(self, rows: Sequence[tuple[Rows, int]]) -> Floats:
        """[n, dim] of some rows, each (of which request, which of its rows), in one call of the model.

        Raises:
            Exception: ONNX Runtime's, of no common class.
        """
        longest = max(1, *(of.lengths[row] for of, row in rows))
        batch: dict[str, Array] = {}
        for name, dtype in INPUTS.items():
            values = np.full((len(rows), longest), PADDING[name], dtype)
            for at, (of, row) in enumerate(rows):
                length = of.lengths[row]
                values[at, :length] = of.inputs[name][row, :length]
            batch[name] = values
        vectors: Floats = self._session.run([OUTPUT], batch)[0]
        return vectors

    def bad(self, vectors: Floats) -> StoreError:
        """The error for vectors of which none is finite and of unit length."""
        return StoreError(
            "BAD-VECTOR",
            place=f"model {self.version}",
            value=f"length {np.linalg.norm(vectors)}",
            rule="every taste vector is finite and of unit length",
            fix="train again, or serve an earlier version",
        )

    def _count_rows(self) -> int:
        """By trial: the file does not say it in a place that is the same for every kind of encoder."""
        low, high = 1, _MOST_ROWS
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self._takes(middle) else (low, middle)
        return low

    def _takes(self, place: int) -> bool:
        import onnxruntime as ort

        quiet = ort.RunOptions()
        quiet.log_severity_level = SILENT
        one = {name: np.full((1, 1), place if name == "places" else 1, dtype) for name, dtype in INPUTS.items()}
        try:
            self._session.run([OUTPUT], one, quiet)
        except Exception:  # ONNX Runtime's errors have no common class
            return False
        return True


def are_sound(vectors: Floats) -> npt.NDArray[np.bool_]:
    """[n] whether a vector is finite and of unit length."""
    squares = np.einsum("nd,nd->n", vectors, vectors)
    sound: npt.NDArray[np.bool_] = np.abs(squares - 1) <= 2 * _LENGTH_TOLERANCE  # written so that NaN is not
    return sound


def open_model(store: Store, version: str, config: BackendConfig) -> Model:
    """Open a bundle of a store, once its model file has the hash that its manifest says.

    Args:
        store: holds it.
        version: a generation id, checked.
        config: where to compute.

    Raises:
        StoreError: NO-GENERATION, DAMAGED, BAD-MODEL.
        UsageError: NO-PROVIDER.
    """
    bundle = read_manifest(store, "train", version)
    verify(store, bundle, ["model"])
    session = open_session(model_file(store, bundle), config.provider)
    _check_signature(session, store.path(bundle.paths("model")[0]))
    return Model(version, bundle.logical_date, session)


def _check_signature(session: Any, place: str) -> None:
    """Refuse a model of other inputs or outputs than ours."""
    kinds = {"tensor(int64)": np.dtype(np.int64), "tensor(float)": np.dtype(np.float32)}
    inputs = {each.name: kinds.get(each.type) for each in session.get_inputs()}
    outputs = {each.name: kinds.get(each.type) for each in session.get_outputs()}
    if inputs != INPUTS or outputs != {OUTPUT: np.dtype(np.float32)}:
        raise StoreError(
            "BAD-MODEL",
            place=place,
            value=f"inputs {sorted(inputs)}, outputs {sorted(outputs)}",
            rule=f"inputs {sorted(INPUTS)}, output {OUTPUT}",
            fix="train again, or roll back to an earlier run",
        )


def _check_names(inputs: Tensors) -> None:
    if set(inputs) != set(INPUTS):
        raise bad_input("inputs", ", ".join(sorted(inputs)), f"exactly {', '.join(INPUTS)}")
    shape = inputs["places"].shape
    for name, values in inputs.items():
        if values.dtype != INPUTS[name]:
            raise bad_input(f"tensor {name!r}", values.dtype, f"{INPUTS[name]}")
        if values.ndim != 2 or values.shape != shape:
            raise bad_input(f"tensor {name!r}", list(values.shape), "[n, length], the same for every input")
