"""Nothing of a day's data, nor that there was a day, is told to anybody outside."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest

ADDRESS = re.compile(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"')


def called(trace: Path) -> set[str]:
    """Addresses that are not this machine's own."""
    found = {four or six for four, six in ADDRESS.findall(trace.read_text(errors="replace"))}
    return {each for each in found if not ip_address(each.removeprefix("::ffff:")).is_loopback}


def traced(trace: Path, *command: str) -> None:
    """Run a command and write down what it and its children connect or send to."""
    if shutil.which("strace") is None:
        pytest.skip("WHETHER ANYTHING CALLS OUT IS NOT TESTED: strace is not installed")
    watch = ["strace", "--seccomp-bpf", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(trace)]
    subprocess.run([*watch, *command], check=True, capture_output=True, timeout=240)


def test_a_day_s_job_and_its_model_ask_nobody(tmp_path: Path) -> None:
    """ONNX Runtime, for one, tells its maker of every model opened, ten seconds later, unless it is told not to."""
    tastetwin = [sys.executable, "-m", "tastetwin"]
    subprocess.run([*tastetwin, "town", str(tmp_path / "town"), "--users", "120"], check=True, capture_output=True)
    (tmp_path / "settings.yaml").write_text("train: {epochs: 1}\nevaluate: {min_ratio_to_baseline: 0}\n")
    job = ["run", "--source", str(tmp_path / "town"), "--store", str(tmp_path / "store")]
    traced(tmp_path / "job", *tastetwin, *job, "--config", str(tmp_path / "settings.yaml"))
    (model,) = (tmp_path / "store" / "bundles").glob("*/encoder.onnx")
    opened = f"from tastetwin.model.session import open_session; model = open_session({str(model)!r})"
    wait = f"import time; {opened}; time.sleep(15)"
    traced(tmp_path / "model", sys.executable, "-c", wait)
    assert called(tmp_path / "job") | called(tmp_path / "model") == set()


def test_a_call_outside_would_be_seen(tmp_path: Path) -> None:
    """A trace that misses calls finds nothing, whatever is called."""
    send = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 9))"
    traced(tmp_path / "trace", sys.executable, "-c", send)
    assert called(tmp_path / "trace") == {"192.0.2.1"}
