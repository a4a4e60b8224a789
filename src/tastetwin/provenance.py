"""What a generation was made with, besides its inputs: code, libraries, machine.

Kept in manifests and never part of an id: a commit alone makes no new generation. Equal inputs give equal bytes where
all three are equal; on another kind of machine the last bits of a matrix product may differ.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from tastetwin import __version__

PACKAGE: Final = Path(__file__).parent
LIBRARIES: Final = ("torch", "numpy", "scipy", "onnxruntime", "faiss-cpu", "pyarrow")
"""Whose versions can change what comes out."""
_GIT_SECONDS: Final = 10


@functools.cache
def made_with() -> dict[str, Any]:
    """Code, libraries and machine of this process, as small JSON."""
    code = {"version": __version__, "commit": commit(PACKAGE), "sources": source_digest()}
    return {"code": code, "libraries": {name: _version(name) for name in LIBRARIES}, "machine": machine()}


def commit(package: Path) -> str | None:
    """The commit checked out where ``package`` lies, if that repository has it: None for an installed package."""
    command = ["git", "-C", str(package), "rev-parse", "HEAD", "HEAD:./__init__.py"]  # the second fails for a stranger
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_GIT_SECONDS).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return said.split()[0]


def source_digest() -> str:
    """Hex SHA-256 of this package's source: tells apart what no version number or commit does."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def machine() -> dict[str, Any]:
    """The class of machine within which equal inputs give equal bytes: architecture, kernels of the BLAS, threads."""
    import numpy  # noqa: F401  # loads the BLAS that is asked for next
    from threadpoolctl import threadpool_info

    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    numpys = max(pools, key=lambda pool: "numpy" in pool["filepath"], default=None)
    blas = numpys and f"{numpys['internal_api']} {numpys['version']} {numpys.get('architecture', '')}".strip()
    threads = os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count())
    return {"architecture": platform.machine(), "blas": blas, "threads": threads}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
