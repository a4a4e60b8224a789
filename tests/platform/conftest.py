"""What the platform tests share: a base image, and the five images built from it once."""

from __future__ import annotations

import os

import pytest

from tests.platform.containers import BASE, CONF, ROOT, TARGETS, image, missing, run


@pytest.fixture(scope="session")
def base_image() -> str:
    """The base image that needs no image registry (two minutes at the first time)."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    os.environ["CONTAINERS_CONF"] = str(CONF)  # also for podman called without tests.platform.containers
    run(ROOT / "deploy/docker/base", timeout=400)
    return BASE


@pytest.fixture(scope="session")
def images(base_image: str) -> dict[str, str]:
    """Target -> name of its image, each as `deploy/docker/build` makes it now."""
    run(ROOT / "deploy/docker/build", timeout=900)
    return {target: image(target) for target in TARGETS}
