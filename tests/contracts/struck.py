"""``python -m tests.contracts.struck``: commands of ``tastetwin``, each in a child of its own that a fault may strike.

The embedded engine runs Python in threads of its process, and a fork leaves threads behind: a test process that has an
engine cannot fork a job. This process imports everything, starts nothing, and forks a child for every order, so that
the watch is there before the engine and sees what its threads do. Orders are lines of JSON on stdin, answers on stdout.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import tastetwin
from tests.contracts import faults

SECONDS: Final = 300
"""A job that is not over by then hangs; it is ended by SIGALRM."""
HEAVY: Final = (
    *("torch._dynamo", "torch.distributed.tensor", "torch.onnx", "onnx", "onnxruntime", "faiss"),
    *("pyspark.sql.connect.session", "pyspark.worker", "pysail.spark", "jinja2.ext", "matplotlib.figure"),
)
"""What the stages import when they need it: seconds, saved for every child."""


@dataclass(frozen=True)
class Ended(faults.Outcome):
    """How a command ended, and what it printed."""

    said: str = ""


class Striker:
    """The test's side of one such process."""

    def __init__(self, said: Path) -> None:
        """``said``: a file of its own for what commands print."""
        self._said = said
        command = [sys.executable, "-m", "tests.contracts.struck"]
        # One thread each for linear algebra: several strikers share the cores, and the town is small.
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def run(self, arguments: Sequence[str], root: Path, fault: faults.Fault | None = None) -> Ended:
        """``tastetwin`` with these arguments, its operations below ``root`` watched."""
        order: dict[str, Any] = {"arguments": list(arguments), "root": str(root), "said": str(self._said)}
        order["fault"] = None if fault is None else asdict(fault)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(order, default=sorted) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        log = [(what, path, other) for what, path, other in answer.pop("log")]
        return Ended(**answer, log=log, said=self._said.read_text())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def _serve() -> None:
    for module in pkgutil.walk_packages(tastetwin.__path__, "tastetwin."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in HEAVY:
        importlib.import_module(name)
    for line in sys.stdin:
        order = json.loads(line)
        job = partial(_command, order["arguments"], order["said"])
        outcome = faults.run(job, order["root"], _fault(order["fault"]))
        sys.stdout.write(json.dumps(asdict(outcome)) + "\n")
        sys.stdout.flush()


def _fault(told: dict[str, Any] | None) -> faults.Fault | None:
    if told is None:
        return None
    operations = None if told["operations"] is None else frozenset(told["operations"])
    return faults.Fault(**{**told, "operations": operations})


def _command(arguments: list[str], said: str) -> None:
    """Never returns: the command line ends its process itself, with the code that its caller sees."""
    from tastetwin.cli import main

    signal.alarm(SECONDS)
    printed = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream in (1, 2):
        os.dup2(printed, stream)
    sys.argv = ["tastetwin", *arguments]
    main()


if __name__ == "__main__":
    _serve()
