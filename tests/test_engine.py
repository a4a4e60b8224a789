"""The embedded engine."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

import pytest

LIVES_ON: Final = """
import os, time
if os.environ.get("SAIL_SPARK__SESSION_TIMEOUT_SECS") is None:
    from tastetwin.engine import connect
    connect(None, 1)
    assert int(os.environ["SAIL_SPARK__SESSION_TIMEOUT_SECS"]) >= 7 * 24 * 3600
else:
    from tastetwin.engine import connect
    spark = connect(None, 1).spark
    time.sleep(4)
    try:
        spark.range(3).count()
    except Exception:
        print("ended")
"""


def run(timeout: str | None) -> str:
    environment = {} if timeout is None else {"SAIL_SPARK__SESSION_TIMEOUT_SECS": timeout}
    done = subprocess.run([sys.executable, "-c", LIVES_ON], capture_output=True, text=True, check=True, env=environment)
    return done.stdout.strip()


@pytest.mark.slow
def test_a_session_outlives_a_long_training() -> None:
    """An idle session ends after what that variable says, which is a week at least unless somebody set it."""
    assert run("1") == "ended", "the engine reads another variable now"
    assert run(None) == ""
