"""The right kernels, without a trace in the environment."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tastetwin.analysis.blas import CORETYPE, coretype

AVX512 = frozenset({"avx2", "fma", "avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"})


def test_the_kernel_follows_the_flags() -> None:
    """A kernel the CPU cannot run would be an illegal instruction."""
    assert coretype(AVX512) == "SkylakeX"
    assert coretype(AVX512 - {"avx512vl"}) == "Haswell"
    assert coretype(frozenset({"avx2"})) is None
    assert coretype(frozenset()) is None


@pytest.mark.parametrize("wanted", [None, "Haswell"])
def test_loading_leaves_the_environment_as_it_was(wanted: str | None) -> None:
    """The user's own choice wins, and child processes must not inherit ours. Torch and faiss stay out until used."""
    program = (
        "import os, sys; from tastetwin.analysis import index, twins, blas\n"
        "assert 'faiss' not in sys.modules and 'torch' not in sys.modules\n"
        "blas.load_faiss(); print(os.environ.get(blas.CORETYPE)); assert 'torch' not in sys.modules"
    )
    environment = {name: value for name, value in os.environ.items() if name != CORETYPE}
    environment |= {CORETYPE: wanted} if wanted else {}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(wanted)


def test_threads_may_load_it_at_the_same_time() -> None:
    """Workers of the embedded engine are threads and begin together; each gets the module, and no trace is left."""
    program = (
        "import os, threading; from tastetwin.analysis import blas\n"
        "begin, found = threading.Barrier(8), []\n"
        "work = lambda: (begin.wait(), found.append(blas.load_faiss()))\n"
        "threads = [threading.Thread(target=work) for _ in range(8)]\n"
        "[each.start() for each in threads]; [each.join() for each in threads]\n"
        "print(len(found), len(set(found)), blas.CORETYPE in os.environ)"
    )
    environment = {name: value for name, value in os.environ.items() if name != CORETYPE}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["8", "1", "False"]
