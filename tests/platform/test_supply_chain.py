"""What the images are made of: pinned, listed, and read by a security linter."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.platform.containers import ROOT, TARGETS

DOCKER = ROOT / "deploy/docker"
SECURITY = ROOT / ".venv-security/bin"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(path: Path) -> dict[str, str]:
    """Name -> version of the lines ``name==version``."""
    lines = [line.split()[0].split("==") for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return {canonical(name): version for name, version in lines}


def named(requirements: Path) -> set[str]:
    """The distributions that a file of requirements names, those of the files it names too."""
    found: set[str] = set()
    for line in requirements.read_text().splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("-r "):
            found |= named(requirements.with_name(line[3:]))
        elif line and not line.startswith("."):
            found.add(canonical(line))
    return found


@pytest.fixture(scope="module")
def security() -> Path:
    if not SECURITY.exists():
        pytest.skip("no .venv-security: make test-platform makes it")
    return SECURITY


@pytest.mark.parametrize("target", ("build", *TARGETS))
def test_each_line_of_a_lock_has_a_version_and_a_hash(target: str) -> None:
    """pip compares every file with its hash only if every line has one."""
    lines = (DOCKER / f"locks/{target}.txt").read_text().splitlines()
    assert all(re.fullmatch(r"#.*|[\w.-]+==[\w.]+ --hash=sha256:[0-9a-f]{64}", line) for line in lines)


@pytest.mark.parametrize("target", ("build", *TARGETS))
def test_a_lock_has_the_versions_that_were_tested(target: str) -> None:
    """The tests run with constraints.txt; an image with other versions would be another program."""
    tested, locked = pins(ROOT / "constraints.txt"), pins(DOCKER / f"locks/{target}.txt")
    known = locked.keys() & tested.keys()
    assert {name: locked[name] for name in known} == {name: tested[name] for name in known}
    if target != "sandbox":  # JupyterLab is tested nowhere else
        assert locked.keys() - tested.keys() <= {"async-timeout"}


@pytest.mark.parametrize("target", TARGETS)
def test_a_lock_holds_all_that_its_requirements_name(target: str) -> None:
    """Whoever adds a requirement has to lock again."""
    assert named(DOCKER / f"requirements/{target}.in") <= pins(DOCKER / f"locks/{target}.txt").keys()


@pytest.mark.parametrize("target", ("backend", "gateway", "app"))
def test_a_serving_image_needs_nothing_that_the_package_does_not_declare(target: str) -> None:
    """The lists of the images are parts of pyproject's, never more."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    declared = {canonical(re.match(r"[\w.-]+", line).group()) for line in lines}  # type: ignore[union-attr]
    assert named(DOCKER / f"requirements/{target}.in") - declared <= {"async-timeout"}


def test_helm_can_fetch_charts_where_the_home_is_read_only() -> None:
    """It keeps what it fetches: a deployment by oci:// ended with mkdir: read-only file system, in a pod alone."""
    (jobs,) = re.findall(r"^FROM base AS jobs\n(.*?)^FROM", (DOCKER / "Containerfile").read_text(), re.M | re.S)
    assert re.findall(r"^ENV HELM_CACHE_HOME=/tmp/", jobs, re.M)


def test_a_list_of_contents_names_each_distribution_of_an_image(security: Path, tmp_path: Path) -> None:
    """Whoever asks which image holds a version that has a hole gets an answer without opening any."""
    subprocess.run([DOCKER / "sbom", tmp_path, "app"], check=True, timeout=120)
    found = json.loads((tmp_path / "app.cdx.json").read_text())
    assert found["bomFormat"] == "CycloneDX"
    assert {canonical(each["name"]): each["version"] for each in found["components"]} == pins(DOCKER / "locks/app.txt")


def test_the_security_linter_finds_nothing_that_is_not_explained(security: Path) -> None:
    """What it minds and is right has its reason beside it, a line at a time, so that the next one is seen."""
    done = subprocess.run(
        [security / "bandit", "--quiet", "-ll", "--recursive", "src"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
