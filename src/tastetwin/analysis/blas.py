"""faiss, imported with the BLAS kernel that fits this machine.

The OpenBLAS inside the faiss wheel does not know recent AMD CPUs and falls back to kernels of 2008 that are 3 times
slower. Its environment variable is read when the library is loaded, so it must be set before the first import.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from threadpoolctl import threadpool_limits

CORETYPE: Final = "OPENBLAS_CORETYPE"
_LOADING: Final = threading.Lock()
"""The embedded engine's workers are threads of one process, and all load it when they begin."""
_AVX512: Final = frozenset({"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"})
_AVX2: Final = frozenset({"avx2", "fma"})


def coretype(flags: frozenset[str]) -> str | None:
    """The OpenBLAS kernel for a CPU with these flags; None where OpenBLAS had better decide itself."""
    if flags >= _AVX512:
        return "SkylakeX"
    return "Haswell" if flags >= _AVX2 else None


def cpu_flags() -> frozenset[str]:
    """Flags of the first CPU as Linux states them; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


@functools.cache
def load_faiss() -> Any:
    """The faiss module. The variable is put back afterwards: child processes choose for themselves."""
    with _LOADING:
        kernel = None if CORETYPE in os.environ else coretype(cpu_flags())
        if kernel is not None:
            os.environ[CORETYPE] = kernel
        try:
            import faiss
        finally:
            if kernel is not None:
                del os.environ[CORETYPE]
    return faiss


@contextmanager
def side_by_side() -> Iterator[ThreadPoolExecutor]:
    """As many threads as OpenMP would use (``OMP_NUM_THREADS``), each with single-threaded linear algebra and faiss.

    Many small products run faster side by side than each spread over all cores, and do not stall where a core is busy.
    """
    faiss = load_faiss()
    workers = ThreadPoolExecutor(faiss.omp_get_max_threads(), initializer=faiss.omp_set_num_threads, initargs=(1,))
    with threadpool_limits(1, user_api="blas"), workers as pool:
        yield pool


@contextmanager
def one_thread() -> Iterator[None]:
    """Linear algebra and faiss on the calling thread alone: an engine starts as many tasks as there are cores."""
    load_faiss().omp_set_num_threads(1)
    with threadpool_limits(1, user_api="blas"):
        yield
