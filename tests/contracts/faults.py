"""Run a job in a child process that is killed, or gets an OSError, at its Nth file operation.

In the manner of SQLite's crash tests (sqlite.org/testing.html): fail at the first operation, then at the second, until
the job ends without reaching the fault. Operations are seen through Python's audit events (PEP 578) and a file class of
our own, so a write can also be cut in the middle; what C++ libraries write is not seen here.
"""

from __future__ import annotations

import builtins
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

Job = Callable[[], None]
WRITING = frozenset({"open-write", "write", "fsync", "rename", "mkdir"})


@dataclass(frozen=True)
class Fault:
    """What happens at operation number ``at`` (counted from 1) among those named in ``operations``."""

    at: int
    errno: int | None = None
    """The OSError to raise; None: SIGKILL."""
    lasting: bool = False
    """Whether every later operation fails, too."""
    operations: frozenset[str] | None = None


@dataclass
class Outcome:
    """How the child ended."""

    killed: bool
    fired: bool
    error: str | None
    """Type, and code where it has one, of the exception that ended the job."""
    log: list[tuple[str, str, str]] = field(default_factory=list)
    """(operation, path, second path) in order."""


def run(job: Job, root: str, fault: Fault | None = None) -> Outcome:
    """Fork, run the job there with its operations below ``root`` watched, and wait."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _child(job, root, fault, writing)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        told = [json.loads(line) for line in pipe]
    status = os.waitpid(child, 0)[1]
    return Outcome(
        killed=os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
        fired=["fault", "", ""] in told,
        error=next((text for what, text, _ in told if what == "error"), None),
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
    def __init__(self, root: str, fault: Fault | None, pipe: int) -> None:
        self.root, self.fault, self.pipe, self.count = root, fault, pipe, 0
        self.open_fds: dict[int, str] = {}

    def tell(self, what: str, path: str, other: str) -> None:
        os.write(self.pipe, (json.dumps([what, path, other]) + "\n").encode())

    def due(self, name: str) -> bool:
        """Count an operation; whether the fault strikes it."""
        fault = self.fault
        if fault is None or (fault.operations is not None and name not in fault.operations):
            return False
        self.count += 1
        return self.count == fault.at or (fault.lasting and self.count > fault.at)

    def strike(self) -> NoReturn:
        assert self.fault is not None
        self.tell("fault", "", "")
        if self.fault.errno is None:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(self.fault.errno, os.strerror(self.fault.errno or 0))

    def operation(self, name: str, path: object, other: object = "") -> None:
        text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
        if not text.startswith(self.root):
            return
        if self.due(name):
            self.strike()
        self.tell(name, text, os.fsdecode(other) if isinstance(other, (str, bytes, os.PathLike)) else "")

    def install(self) -> None:
        real_open, real_os_open, real_fsync, watch = io.open, os.open, os.fsync, self

        class Cut(io.FileIO):
            def write(self, data: Any) -> int:
                if watch.due("write"):
                    super().write(memoryview(data)[: len(data) // 2])
                    watch.strike()
                watch.tell("write", os.fsdecode(self.name), "")
                return super().write(data)

        def watched_open(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            binary_write = "b" in mode and set(mode) & set("wax+")
            if not binary_write or not os.fsdecode(file).startswith(self.root):
                return real_open(file, mode, *args, **kwargs)
            raw = Cut(os.fspath(file), mode.replace("b", ""))
            self.open_fds[raw.fileno()] = os.fsdecode(file)
            return io.BufferedWriter(raw)

        def watched_os_open(path: Any, *args: Any, **kwargs: Any) -> int:
            handle = real_os_open(path, *args, **kwargs)
            self.open_fds[handle] = os.fsdecode(path)
            return handle

        def watched_fsync(handle: Any) -> None:
            number = handle if isinstance(handle, int) else handle.fileno()
            self.operation("fsync", self.open_fds[number])
            real_fsync(handle)

        io.open = builtins.open = watched_open
        os.open, os.fsync = watched_os_open, watched_fsync  # type: ignore[assignment]
        sys.addaudithook(self.audit)

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            writes = args[2] & (os.O_WRONLY | os.O_RDWR) if isinstance(args[2], int) else 0
            self.operation("open-write" if writes else "open-read", args[0])
        elif event in ("os.rename", "os.link", "os.symlink"):
            self.operation(event[3:], args[0], args[1])
        elif event == "os.mkdir" and Path(args[0]).is_dir():
            return  # makes nothing
        elif event in ("os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.listdir", "os.scandir"):
            self.operation(event[3:], args[0])
