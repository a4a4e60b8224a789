"""Taste histories -> taste vectors, with ONNX Runtime: in this process, or on a cluster, a bucket a task."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tastetwin.analysis.stored import Form, packed
from tastetwin.errors import StoreError
from tastetwin.features.histories import Histories
from tastetwin.features.taste import from_arrow
from tastetwin.generations import Manifest
from tastetwin.model.batches import length_buckets, pad
from tastetwin.model.files import model_file
from tastetwin.model.session import open_session
from tastetwin.privacy.opt_out import OptOuts
from tastetwin.schema import USER
from tastetwin.store import Store

Floats = npt.NDArray[np.float32]

OUTPUT: Final = "vector"
_LENGTH_TOLERANCE: Final = 1e-3


class Encoder:
    """An opened ``encoder.onnx``.

    Each call of the model runs on one thread; ``threads`` calls run side by side. On batches of this size that beats
    threads inside a call, and vectors do not depend on the number of threads.
    """

    def __init__(self, model: str, max_length: int, tokens: int, threads: int = 1) -> None:
        """Open the model.

        Args:
            model: path or fsspec URL of ``encoder.onnx``.
            max_length: favors read per user, the most recent ones; as in training.
            tokens: padded favors per call of the model, at most.
            threads: calls side by side.

        Raises:
            StoreError: BAD-MODEL when ONNX Runtime cannot open it.
        """
        self.model, self.max_length, self.tokens, self.threads = model, max_length, tokens, threads
        self._session = open_session(model)
        self.dim = int(self._session.get_outputs()[0].shape[1])

    def encode(self, histories: Histories) -> Floats:
        """[n_users, dim] unit vectors, in the order of the histories.

        Raises:
            StoreError: BAD-VECTOR when the model gives one that is not finite or not of unit length.
        """
        vectors = np.empty((histories.n_users, self.dim), np.float32)

        def run(users: npt.NDArray[np.int64]) -> None:
            inputs = pad(histories, users, self.max_length).inputs()
            vectors[users] = self._session.run([OUTPUT], inputs)[0]

        buckets = length_buckets(histories.lengths(), self.tokens, self.max_length)
        if self.threads == 1:
            for users in buckets:
                run(users)
        else:
            with ThreadPoolExecutor(self.threads) as pool:
                list(pool.map(run, buckets))
        check_vectors(vectors, self.model)
        return vectors


def check_vectors(vectors: Floats, place: str) -> None:
    """Refuse [n, dim] vectors unless all are finite and of unit length; ``place`` says where they come from.

    Logs and records of runs keep what is said: it names nobody.

    Raises:
        StoreError: BAD-VECTOR.
    """
    lengths = np.linalg.norm(vectors, axis=1)
    bad = np.flatnonzero(~(np.abs(lengths - 1) <= _LENGTH_TOLERANCE))  # written so that NaN is bad
    if len(bad):
        raise StoreError(
            "BAD-VECTOR",
            place=place,
            value=f"{len(bad)} users, the first with length {lengths[bad[0]]}",
            rule="every taste vector is finite and of unit length",
            fix="train again; publish nothing of this model",
        )


def open_encoder(store: Store, bundle: Manifest, tokens: int) -> Encoder:
    """The encoder of a bundle, on this machine."""
    return Encoder(model_file(store, bundle), bundle.settings["train"]["max_length"], tokens)


@functools.lru_cache(maxsize=2)
def _cached_encoder(model: str, max_length: int, tokens: int) -> Encoder:
    """One per worker process: bundles never change, so their path is a safe key."""
    return Encoder(model, max_length, tokens)


def encode_table(
    history: pa.Table, *, model: str, max_length: int, tokens: int, min_favors: int, form: Form, opt_outs: OptOuts
) -> pa.Table:
    """The worker's side of ``analyze``: rows of the users with enough places, in their order, see ``stored.packed``.

    ``history`` are ``HISTORY`` rows; ``model`` is the bundle's ``encoder.onnx`` as workers see it, opened once per
    process, with ``max_length`` and ``tokens`` as of ``Encoder``; ``opt_outs`` get no vector.

    Raises:
        StoreError: BAD-MODEL, BAD-VECTOR.
    """
    eligible = history.filter(pc.greater_equal(pc.list_value_length(history.column("places")), min_favors))
    eligible = opt_outs.without(eligible, USER)
    encoder = _cached_encoder(model, max_length, tokens)
    return packed(eligible.column(USER), encoder.encode(from_arrow(eligible)), form)
