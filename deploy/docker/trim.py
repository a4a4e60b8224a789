"""Take out of installed distributions what no program here reads: tests, headers, symbol tables of shared libraries.

Runs while an image is built: ``python trim.py FOLDER``. Takes a third off the gateway's image.
"""

from __future__ import annotations

import shutil
import struct
import sys
from pathlib import Path

FOLDERS = ("**/tests", "numpy/_core/include", "numpy/distutils", "pyarrow/include", "pyarrow/includes", "pyarrow/src")
FILES = ("**/*.pyx", "**/*.pxd", "**/*.pxi", "**/*.pyi", "pyarrow/*flight*", "pyarrow/libarrow_python*.so")


def trim(site: Path) -> None:
    """Trim all that is installed in a folder of distributions; torch, which compiles at run time, keeps its headers."""
    for pattern in FOLDERS:
        for folder in [each for each in site.glob(pattern) if "torch" not in each.parts]:
            shutil.rmtree(folder, ignore_errors=True)
    for pattern in FILES:
        for file in [each for each in site.glob(pattern) if "torch" not in each.parts]:
            file.unlink()
    for library in site.rglob("*.so*"):
        cut(library)


def cut(library: Path) -> None:
    """Cut a shared library behind what the loader maps: symbol tables and debugging data lie there."""
    with library.open("rb") as handle:
        header = handle.read(64)
    # 64 bits, little-endian, and not cut before: to write is to copy it into another layer.
    if header[:6] != b"\x7fELF\x02\x01" or header[40:48] == bytes(8):
        return
    table, entry, count = struct.unpack_from("<Q", header, 32)[0], *struct.unpack_from("<HH", header, 54)
    with library.open("r+b") as handle:
        handle.seek(table)
        programs = handle.read(entry * count)
        segments = [struct.unpack_from("<Q16xQ", programs, entry * number + 8) for number in range(count)]
        end = max(table + entry * count, *(start + size for start, size in segments))
        handle.truncate(end)
        # No table of sections any more: its place, its entries, the entry of their names.
        handle.seek(40)
        handle.write(bytes(8))
        handle.seek(60)
        handle.write(bytes(4))


if __name__ == "__main__":
    trim(Path(sys.argv[1]))
