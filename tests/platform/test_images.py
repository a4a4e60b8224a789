"""The five images, built for real: what is in them, what is not, and the daily job and its serving inside them."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.platform.containers import ROOT, TARGETS, podman
from tests.platform.stack import LOCKED_DOWN, Stack, call, stack, until_answered

USER = "10001:10001"
MEGABYTES = {"app": 200, "gateway": 400, "backend": 430}
"""Uncompressed, base included: the largest that each may be."""
ABSENT = {
    "backend": ("torch", "faiss", "pysail", "pandas", "scipy"),
    "gateway": ("torch", "onnxruntime", "pysail", "pandas", "scipy"),
    "app": ("torch", "onnxruntime", "faiss", "numpy", "pyarrow", "pysail", "pandas", "scipy"),
}


def inside(name: str, script: str) -> str:
    """What a shell script prints in a container of that image, as root without a network."""
    return podman("run", "--rm", "--network", "none", "--user", "0", "--entrypoint", "sh", name, "-c", script).stdout


def modules(name: str) -> set[str]:
    return set(inside(name, "ls /opt/tastetwin/lib/python3.11/site-packages").split())


@pytest.mark.parametrize("target", MEGABYTES)
def test_a_serving_image_stays_small(images: dict[str, str], target: str) -> None:
    """Blue-green pulls each image again on every node; what is big starts late."""
    size = json.loads(podman("image", "inspect", images[target]).stdout)[0]["Size"]
    assert size < MEGABYTES[target] * 1_000_000


@pytest.mark.parametrize("target", ABSENT)
def test_a_serving_image_holds_no_more_than_its_tier_imports(images: dict[str, str], target: str) -> None:
    """Code that is not there cannot be attacked, and the gateway must never be able to encode by itself."""
    assert not modules(images[target]) & set(ABSENT[target])


def test_a_backend_can_encode(images: dict[str, str]) -> None:
    """The premise of the test above: what is looked for is found where it belongs."""
    assert "onnxruntime" in modules(images["backend"])
    assert {"torch", "faiss", "pysail", "scipy"} <= modules(images["jobs"])


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_gives_whoever_breaks_in_no_tools(images: dict[str, str], target: str) -> None:
    """No program gains rights, nothing compiles or installs, and nothing that a build needed is left."""
    rights, tools, left = "find / -xdev -type f -perm /6000", "command -v gcc cc make pip", "ls -d /root/.cache /src"
    assert inside(images[target], f"{rights}; {tools}; {left}; ls -A /tmp /wheels; true") == ""


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_says_what_it_is_and_runs_as_nobody(images: dict[str, str], target: str) -> None:
    """Charts rely on the user and the entry point, people on the labels."""
    config: dict[str, Any] = json.loads(podman("image", "inspect", images[target]).stdout)[0]["Config"]
    assert config["User"] == USER
    assert config["Entrypoint"] == ["sandbox" if target == "sandbox" else "tastetwin"]
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert labels["title"] == f"tastetwin/{target}"
    assert labels["version"] == images[target].rpartition(":")[2]
    assert {"revision", "description", "licenses"} <= labels.keys()


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_with_nothing_to_write_and_no_rights(images: dict[str, str], target: str) -> None:
    """Clusters that enforce the restricted profile start it as it is."""
    run = podman(
        "run", "--rm", "--network", "none", *LOCKED_DOWN, "--entrypoint", "tastetwin", images[target], "--version"
    )
    assert run.stdout.strip() == images[target].rpartition(":")[2]


def test_the_jobs_image_can_deploy_to_a_cluster(images: dict[str, str]) -> None:
    """The pods of the deployment's steps are of this image."""
    said = inside(images["jobs"], "helm version --short && kubectl version --client")
    assert "v4." in said and "Client Version: v1." in said
    charts = {each.name for each in (ROOT / "deploy/helm").glob("*")}
    assert set(inside(images["jobs"], "ls deploy/helm || true").split()) == charts


def test_nobody_in_a_container_can_change_the_program(images: dict[str, str]) -> None:
    """Even where the root file system was left writable, the program belongs to somebody else."""
    script = "find /opt /usr /etc -xdev -user 10001 -o -xdev -perm -o=w ! -type l | grep . || true"
    assert inside(images["jobs"], script) == ""


@pytest.fixture(scope="module")
def served(images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A town's day by the jobs image, then the three tiers, each from its own image in one pod."""
    with stack(images, tmp_path_factory.mktemp("stack"), "tastetwin-images") as found:
        yield found


def test_the_images_do_the_daily_job_and_serve_it(served: Stack) -> None:
    """The whole product, from raw events to an answer of the app, with no file of this machine but the store."""
    answer = served.ask_gateway({"user": served.user, "k": 3})
    assert answer["source"] == "published"
    assert len(answer["twins"]) == 3
    page = served.ask_app()
    assert [each["user"] for each in page["people"]][:3] == [each["user"] for each in answer["twins"]]


def test_the_gateway_image_has_the_backend_image_encode(served: Stack) -> None:
    """A history that no run knows is the one request which needs all of both images."""
    places = served.ask_gateway({"user": served.user, "k": 1})["twins"][0]["evidence"]["places"]
    answer = served.ask_gateway({"likes": [{"like_contentsid": each} for each in places], "k": 3})
    assert (answer["source"], len(answer["twins"])) == ("request", 3)


def test_the_sandbox_serves_jupyter_and_code_server_behind_a_password(images: dict[str, str], tmp_path: Path) -> None:
    """Whoever reaches it without the password reads nothing: it holds the same secrets as the jobs."""
    (tmp_path / "sandbox").write_text("a-long-password\n")
    (tmp_path / "home").mkdir()
    os.chown(tmp_path / "home", 10001, 10001)
    secret = f"{tmp_path / 'sandbox'}:/run/secrets/tastetwin/sandbox:ro"
    mounts = ("-v", secret, "-v", f"{tmp_path / 'home'}:/home/tastetwin/state")
    ports = ("-p", "127.0.0.1::8888", "-p", "127.0.0.1::8080")
    name = podman("run", "--detach", *mounts, *ports, *LOCKED_DOWN, images["sandbox"]).stdout.strip()
    try:
        jupyter, code = (f"http://{podman('port', name, port).stdout.strip()}" for port in ("8888", "8080"))
        until_answered(f"{code}/healthz", name)
        until_answered(f"{jupyter}/api", name)
        assert call(f"{jupyter}/api/status?token=a-long-password", "")["kernels"] == 0
        with pytest.raises(urllib.error.HTTPError, match="403"):
            call(f"{jupyter}/api/status", "")
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with browser.open(f"{code}/", timeout=10) as answer:
            assert "/login" in answer.url
        with browser.open(f"{code}/login", b"password=a-long-password", timeout=30) as answer:
            assert b"vscode-workbench" in answer.read()
    finally:
        podman("rm", "--force", "--time", "2", name)
