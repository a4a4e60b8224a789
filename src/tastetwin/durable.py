"""POSIX durability on a local disk: write aside, fsync the file, rename, fsync the folder."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO


@contextmanager
def written_aside(target: Path, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """A file that appears under its name, whole and durable, when the block ends well, and else not at all.

    ``mode`` are its rights, less the umask.
    """
    make_folder(target.parent)
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")  # in containers, all have one process id
    try:
        with open(aside, "wb", opener=partial(os.open, mode=mode)) as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        aside.replace(target)
    except BaseException:
        # What went wrong is told by the first error; a second one on the way out must not hide it.
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
    fsync(target.parent)


def folders(top: str | Path) -> Iterator[tuple[Path, list[str]]]:
    """``os.walk`` that raises: a folder it cannot list must not pass for an empty one."""

    def fail(error: OSError) -> None:
        raise error

    for base, _, names in os.walk(top, onerror=fail):
        yield Path(base), names


def walk(top: str) -> list[str]:
    """Paths of all files below a folder; none where there is no such folder."""
    try:
        return [f"{base}/{name}" for base, names in folders(top) for name in names]
    except (FileNotFoundError, NotADirectoryError):
        return []


def make_folder(folder: Path) -> None:
    """Make a folder and those above it; an fsync of a folder keeps its entries, not its own entry in its parent."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        fsync(made.parent)


def fsync(path: Path) -> None:
    """Make a file's bytes, or a folder's entries, outlive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
