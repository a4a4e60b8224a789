"""Containers for the platform tests: the engine's settings, `podman` as a call, what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tastetwin import __version__

ROOT = Path(__file__).parents[2]
CONF = Path(__file__).with_name("containers.conf")
BASE = "localhost/tastetwin-base:bookworm"
TARGETS = ("jobs", "backend", "gateway", "app", "sandbox")
TOOLS = ("podman", "buildah", "runc", "debootstrap")


def image(target: str) -> str:
    """The name that `deploy/docker/build` gives to the image of a target."""
    return f"localhost/tastetwin/{target}:{__version__}"


def environment() -> dict[str, str]:
    """The environment in which podman and buildah work on a machine without systemd."""
    return {**os.environ, "CONTAINERS_CONF": str(CONF), "BASE": BASE}


def missing() -> str | None:
    """Why no container can run here, or None."""
    absent = [each for each in TOOLS if shutil.which(each) is None]
    if absent:
        return f"containers need {', '.join(absent)}: make test-platform installs them"
    return None if os.geteuid() == 0 else "containers need root here"


def run(*command: str | Path, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """A command in that environment, its output in the error when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment(), cwd=ROOT)
    if check and done.returncode:
        raise AssertionError(
            f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
    return done


def podman(*arguments: str | Path, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """`podman ARGUMENTS`."""
    return run("podman", *arguments, check=check, timeout=timeout)
