"""An exported encoder, opened with ONNX Runtime; imports it at use only."""

from __future__ import annotations

from typing import Any, Final, Literal

from fsspec.implementations.local import LocalFileSystem

from tastetwin.errors import StoreError, UsageError
from tastetwin.filesystems import file_system

Provider = Literal["cpu", "cuda"]
PROVIDERS: Final[dict[Provider, str]] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
SILENT: Final = 4
"""ONNX Runtime's level that logs nothing but the end of the process: what goes wrong is told by our own errors."""


def open_session(model: str, provider: Provider = "cpu") -> Any:
    """An ``onnxruntime.InferenceSession`` whose calls run on one thread each; calls may run side by side.

    ``model`` is the path or fsspec URL of ``encoder.onnx``.

    Raises:
        StoreError: BAD-MODEL when ONNX Runtime cannot open it.
        UsageError: NO-PROVIDER when this machine or this build of ONNX Runtime has none of that kind.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = SILENT
    try:
        fs, path = file_system(model)
        with fs.open(path, "rb") as handle:
            source = path if isinstance(fs, LocalFileSystem) else handle.read()
        wanted = dict.fromkeys([PROVIDERS[provider], PROVIDERS["cpu"]])
        there = [name for name in wanted if name in ort.get_available_providers()]
        session = ort.InferenceSession(source, options, providers=there)
    except Exception as error:  # ONNX Runtime's errors share no base class with a file system's
        raise StoreError(
            "BAD-MODEL",
            place=model,
            value=f"{type(error).__name__}: {error}",
            rule="a readable encoder.onnx of a bundle",
            fix="train again, or roll back to an earlier run",
        ) from error
    if PROVIDERS[provider] != (found := session.get_providers()[0]):  # it falls back to the CPU without a word
        raise UsageError(
            "NO-PROVIDER",
            place="backend.provider",
            value=f"{provider}; ONNX Runtime took {found}",
            rule="a device that this machine has, and a build of ONNX Runtime that knows it",
            fix="backend.provider = cpu, or onnxruntime-gpu and its CUDA libraries",
        )
    return session
