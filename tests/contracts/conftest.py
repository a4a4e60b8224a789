"""An S3 server on loopback: moto's, which speaks the protocol over TCP, in an environment and a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow.fs as pafs
import pytest

ROOT: Final = Path(__file__).parents[2]
STARTED_WITHIN: Final = 60.0


@dataclass(frozen=True)
class S3Server:
    """A running server with one bucket."""

    host: str
    bucket: str

    @property
    def environment(self) -> dict[str, str]:
        """What tells both halves of the program where S3 is and who asks; nothing is looked up on the network."""
        return {
            "AWS_ENDPOINT_URL": f"http://{self.host}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def client(self, **more: bool) -> pafs.S3FileSystem:
        """PyArrow's client, for what a test does besides the program."""
        return pafs.S3FileSystem(
            access_key="key", secret_key="secret", scheme="http", endpoint_override=self.host, **more
        )


def s3_python() -> Path | None:
    """The Python of the server's own environment."""
    found = Path(os.environ.get("TASTETWIN_S3_PYTHON") or ROOT / ".venv-s3" / "bin" / "python")
    return found if found.exists() else None


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The server, for as long as tests run."""
    python = s3_python()
    if python is None:
        pytest.skip("NOT TESTED: stores on S3. The server needs its environment: make s3-env (pip install 'moto[s3]')")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("s3") / "log"
    command = [str(python), "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=log.parent)
    try:
        _wait_for(port, process, log)
        server = S3Server(f"127.0.0.1:{port}", "town")
        server.client(allow_bucket_creation=True).create_dir(server.bucket)
        yield server
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + STARTED_WITHIN
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(log.read_text())


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An address on the server that nobody else uses, and the environment that goes with it."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{s3_server.bucket}/{uuid.uuid4()}"
