"""Run a job in a child process that is killed, or gets an OSError, at its Nth file operation.

In the manner of SQLite's crash tests (sqlite.org/testing.html): fail at the first operation, then at the second, until
the job ends without reaching the fault. Operations are seen through Python's audit events (PEP 578) and a file class of
our own, so a write can also be cut in the middle; what C++ libraries read and write is not seen here. A fork has only
the thread that called it, so a job that needs the embedded engine must start that in the child (``struck.py``).
"""

from __future__ import annotations

import builtins
import fcntl
import io
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

Job = Callable[[], None]
Entry = tuple[str, str, str]
"""(operation, path, second path)."""
WRITING = frozenset({"open-write", "write", "fsync", "rename", "mkdir"})
"""What a full disk can refuse."""
CHANGING = WRITING | {"remove", "rmdir"}
"""What a disk looks different after; a kill at any other operation is one at the change before it."""
_ASIDE = re.compile(r"\.(.+)\.[0-9a-f]+\.tmp")


@dataclass(frozen=True)
class Fault:
    """What happens at operation number ``at`` (counted from 1) among those named in ``operations``."""

    at: int
    errno: int | None = None
    """The OSError to raise; None: SIGKILL."""
    lasting: bool = False
    """Whether every later operation fails, too."""
    operations: frozenset[str] | None = None
    within: str = ""
    """Only operations on this path are counted, see ``concerns``; empty: on every path."""

    def counts(self, operation: str, path: str) -> bool:
        """Whether this is one of the operations among which ``at`` is counted."""
        return (self.operations is None or operation in self.operations) and concerns(path, self.within)


def concerns(path: str, within: str) -> bool:
    """Whether a path is ``within``, below it, or an unfinished write of it; ``folder/.`` is just the folder."""
    folder, _, name = path.rpartition("/")
    aside = _ASIDE.fullmatch(name)
    whole = f"{folder}/{aside[1]}" if aside else path
    return not within or whole == within.removesuffix("/.") or whole.startswith(f"{within}/")


@dataclass(frozen=True)
class Outcome:
    """How the child ended."""

    killed: bool
    fired: bool
    error: str | None
    """Type, and code where it has one, of the exception that ended the job."""
    code: int
    """The exit status, or the signal's number below zero."""
    log: list[Entry] = field(default_factory=list)
    """What was done, in order."""


def run(job: Job, root: str, fault: Fault | None = None) -> Outcome:
    """Fork, run the job there with its operations below ``root`` watched, and wait."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _child(job, root, fault, writing)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        told = [json.loads(line) for line in pipe]
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Outcome(
        killed=code == -signal.SIGKILL,
        fired=["fault", "", ""] in told,
        error=next((text for what, text, _ in told if what == "error"), None),
        code=code,
        log=[(what, path, other) for what, path, other in told if what not in ("fault", "error")],
    )


def every_point(prepare: Callable[[], None], job: Job, root: str, **fault: Any) -> Iterator[Outcome]:
    """The outcome of a fault at the first operation, the second, ... until the job no longer reaches it."""
    at = 0
    while True:
        at += 1
        prepare()
        outcome = run(job, root, Fault(at, **fault))
        if not outcome.fired:
            assert outcome.error is None, f"without a fault the job must end well: {outcome.error}"
            return
        yield outcome


def replay(log: list[Entry], root: str) -> tuple[set[str], list[str]]:
    """Walk the log as a disk without power would: (names not durable at the end, targets of renames).

    Asserts that no file is renamed before its contents are durable, and that nothing at all is pending (asides and the
    lock apart) when the pointer moves.
    """
    contents: set[str] = set()
    names: set[str] = set()
    renames = []
    for what, path, other in log:
        if what in ("open-write", "write"):
            contents.add(path)
            names.add(path)
        elif what == "mkdir":
            names.add(path)
        elif what == "fsync":
            contents.discard(path)
            names = {name for name in names if str(Path(name).parent) != path}
        elif what in ("remove", "rmdir"):
            contents.discard(path)
            names.discard(path)
        elif what == "rename":
            assert path not in contents, f"{path} renamed before its fsync"
            names.discard(path)
            if other == f"{root}/published.json":
                assert {name for name in contents | names if not name.endswith("/.lock")} == set()
            names.add(other)
            renames.append(other)
    return contents | names, renames


def _child(job: Job, root: str, fault: Fault | None, pipe: int) -> NoReturn:
    watch = _Watch(root, fault, pipe)
    try:
        watch.install()
        job()
    except BaseException as error:
        problem = getattr(error, "problem", None)
        watch.tell("error", f"{type(error).__name__} {problem.code if problem else error}", "")
    finally:
        os._exit(0)


class _Watch:
    """Sees the operations of every thread of this process."""

    def __init__(self, root: str, fault: Fault | None, pipe: int) -> None:
        self.root, self.fault, self.pipe, self.count = root, fault, pipe, 0
        self.counting = threading.RLock()

    def tell(self, what: str, path: str, other: str) -> None:
        os.write(self.pipe, (json.dumps([what, path, other]) + "\n").encode())

    def due(self, name: str, path: str) -> bool:
        """Count an operation; whether the fault strikes it."""
        fault = self.fault
        if fault is None or not fault.counts(name, path):
            return False
        with self.counting:
            self.count += 1
            return self.count == fault.at or (fault.lasting and self.count > fault.at)

    def strike(self) -> NoReturn:
        assert self.fault is not None
        self.tell("fault", "", "")
        if self.fault.errno is None:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(self.fault.errno, os.strerror(self.fault.errno or 0))

    def operation(self, name: str, path: str, other: str = "") -> None:
        if not path.startswith(self.root):
            return
        if self.due(name, path):
            self.strike()
        self.tell(name, path, other)

    def install(self) -> None:
        real_open, real_fsync, watch = io.open, os.fsync, self

        class Cut(io.FileIO):
            def write(self, data: Any) -> int:
                path = os.fsdecode(self.name)
                if watch.due("write", path):
                    super().write(memoryview(data)[: len(data) // 2])
                    watch.strike()
                watch.tell("write", path, "")
                return super().write(data)

        def watched_open(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            binary_write = "b" in mode and set(mode) & set("wax+")
            if not binary_write or not _path_of(file).startswith(self.root):
                return real_open(file, mode, *args, **kwargs)
            return io.BufferedWriter(Cut(os.fspath(file), mode.replace("b", "")))

        def watched_fsync(handle: Any) -> None:
            self.operation("fsync", _path_of(handle if isinstance(handle, int) else handle.fileno()))
            real_fsync(handle)

        io.open = builtins.open = watched_open
        os.fsync = watched_fsync  # type: ignore[assignment]
        sys.addaudithook(self.audit)

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            writes = args[2] & (os.O_WRONLY | os.O_RDWR) if isinstance(args[2], int) else 0
            self.operation("open-write" if writes else "open-read", _path_of(args[0]))
        elif event in ("os.rename", "os.link", "os.symlink"):
            self.operation(event[3:], _path_of(args[0]), _path_of(args[1]))
        elif event in ("os.remove", "os.rmdir"):
            self.operation(event[3:], _path_of(*args))
        elif event == "os.mkdir" and Path(args[0]).is_dir():
            return  # makes nothing
        elif event in ("os.mkdir", "os.truncate", "os.listdir", "os.scandir"):
            self.operation(event[3:], _path_of(args[0]))


def _path_of(file: object, folder: int = -1) -> str:
    """The path of a name (in the folder of that descriptor: how ``shutil.rmtree`` removes) or of a descriptor."""
    if isinstance(file, int):
        if sys.platform == "darwin":
            return os.fsdecode(fcntl.fcntl(file, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0"))
        return str(Path(f"/proc/self/fd/{file}").readlink())
    if not isinstance(file, (str, bytes, os.PathLike)):
        return ""
    return os.fsdecode(file) if folder < 0 else f"{_path_of(folder)}/{os.fsdecode(file)}"
