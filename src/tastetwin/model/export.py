"""The trained encoder as one ONNX file, tables included, and its weights as safetensors.

One protobuf holds 2 GB, and so the tables of some 600,000 rows of vocabulary; a larger model needs external data of
ONNX, which this version does not write. ``require_room`` tells before anything is fitted.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file

from tastetwin.errors import StoreError
from tastetwin.features.histories import FIRST_PLACE_ROW, Vocabulary
from tastetwin.model.encoder import Encoder
from tastetwin.model.served import Served
from tastetwin.model.views import table_floats

OPSET: Final = 18
OUTPUT: Final = "vector"
MAX_BYTES: Final = 2_000_000_000


def require_room(n_users: int, vocabulary: Vocabulary, width: int) -> None:
    """Be sure that one file can hold the tables of what is learnt from so many users, at that ``train.width``.

    Raises:
        StoreError: MODEL-TOO-LARGE.
    """
    floats = table_floats(n_users, vocabulary) + width
    if (size := 4 * floats * vocabulary.n_rows) > MAX_BYTES:
        value = f"{vocabulary.n_rows} rows of vocabulary of {floats} float32 each, {size} bytes"
        raise _too_large("vocabulary", value)


def _too_large(place: str, value: str) -> StoreError:
    return StoreError(
        "MODEL-TOO-LARGE",
        place=place,
        value=value,
        rule=f"an ONNX file holds at most {MAX_BYTES} bytes",
        fix="raise features.min_visitors, so that fewer places have a row of their own",
    )


def export_onnx(encoder: Encoder, path: Path) -> None:
    """Write ``path``: inputs ``places`` int64, ``visits``, ``ratings``, ``ages`` float32, each [n, length].

    Output ``vector`` float32 [n, dim]. Raises ``StoreError`` MODEL-TOO-LARGE when one file cannot hold the tables.
    """
    served = Served(encoder).eval()
    if served.size > MAX_BYTES:
        raise _too_large(str(path), f"{served.size} bytes")
    places = torch.tensor([[0, 0, 0], [1, 0, 0]]) + torch.tensor([[1, 1, 1], [1, 0, 0]])
    places = places * min(FIRST_PLACE_ROW, len(encoder.views.bags) - 1)
    floats = torch.where(places > 0, 1.0, 0.0)
    inputs = ("places", "visits", "ratings", "ages")
    dynamic = {name: {0: "batch", 1: "length"} for name in inputs} | {OUTPUT: {0: "batch"}}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        # The tracing exporter: the graph has no branches, and the newer one takes 25 s where this takes half a second.
        torch.onnx.export(
            served,
            (places, floats, floats * 0, floats * 0),
            path,
            input_names=list(inputs),
            output_names=[OUTPUT],
            opset_version=OPSET,
            dynamo=False,
            dynamic_axes=dynamic,
        )


def export_weights(encoder: Encoder, path: Path) -> None:
    """Write every tensor of the encoder, tables included, under its name in the module."""
    save_file({name: value.contiguous() for name, value in encoder.state_dict().items()}, path)
