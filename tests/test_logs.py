"""Logs that a program reads: with TASTETWIN_LOG=json every line of every process of ours is one JSON object."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tastetwin.console import LOG
from tastetwin.serving.keys import SCOPES, add_key
from tastetwin.sources.synthetic import TownReport
from tests.serving.processes import started
from tests.serving.test_together import ask, free_ports
from tests.world import Journey

pytestmark = pytest.mark.slow

JSON: Final = {LOG: "json"}
SHIPPER: Final = Path(__file__).parent.parent / "deploy" / "monitoring" / "filebeat.yaml"


def parsed(lines: list[str]) -> list[dict[str, Any]]:
    """All lines; each says when, how grave, what and by whom."""
    found = [json.loads(line) for line in lines]
    for each in found:
        assert {"timestamp", "level", "event", "service"} <= set(each) or "logger" in each, each
        datetime.fromisoformat(each["timestamp"])
    return found


def said_by(*arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and stderr of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "tastetwin", *arguments], env={**os.environ, **JSON}, capture_output=True, timeout=120
    )
    return done.returncode, parsed(done.stderr.decode().splitlines())


def test_a_stage_names_its_run_and_itself_in_every_line(town: TownReport, tmp_path: Path) -> None:
    """Of several pods of several days one asks: what did this run say?"""
    store, source = str(tmp_path / "store"), str(town.folder)
    code, lines = said_by("collect", "--source", source, "--store", store, "--date", "2026-06-30")
    assert code == 0
    assert [line["event"] for line in lines] == ["started", "finished"]
    assert {(line["run"], line["stage"]) for line in lines} == {("2026-06-30.1", "collect")}
    assert lines[-1]["counts"]["files"] == 3 and lines[-1]["seconds"] >= 0


def test_a_count_and_its_details_are_never_in_one_line(town: TownReport, tmp_path: Path) -> None:
    """Elasticsearch refuses a document in which `quarantined` is a number and an object at once."""
    store = str(tmp_path / "store")
    said_by("collect", "--source", str(town.folder), "--store", store, "--date", "2026-06-30")
    _, lines = said_by("mart", "--store", store)
    counts = lines[-1]["counts"]
    assert counts["quarantined"] > 0 and not [name for name in counts if "." in name]


def test_what_goes_wrong_is_one_line_too(town: TownReport, tmp_path: Path) -> None:
    """An error in three lines of words would be three messages without a code."""
    store = str(tmp_path / "store")
    said_by("collect", "--source", str(town.folder), "--store", store, "--date", "2026-06-30")
    code, (line,) = said_by("train", "--store", store)
    assert code == 2 and (line["code"], line["exit_code"], line["level"]) == ("STAGE-MISSING", 2, "error")
    assert line["run"] == "2026-06-30.1"


def test_every_line_of_the_tiers_is_an_object(copied: Journey, tmp_path: Path) -> None:
    """What cannot be parsed is found by nobody when it matters."""
    store, key = copied.store.root, add_key(tmp_path / "keys.json", "all", list(SCOPES), 1e5, 100_000)
    port, user = free_ports(2), copied.tt.twins().column("user_idno")[0].as_py()
    with started(["serve", "backend", "--store", store, "--port", str(port)], JSON) as backend:
        more = {"TASTETWIN_GATEWAY__BACKENDS": f'["http://127.0.0.1:{port}"]', "TASTETWIN_SERVE__LOG_SHARE": "1"}
        more |= {"TASTETWIN_SERVE__DRAIN_SECONDS": "0", **JSON}
        words = ["serve", "gateway", "--store", store, "--keys", str(tmp_path / "keys.json"), "--port", str(port + 1)]
        with started(words, more) as gateway:
            backend.wait_for(re.compile('"ready"'))
            gateway.wait_for(re.compile("http://"))
            url = f"http://127.0.0.1:{port + 1}/v1/models/taste/twins"
            assert ask(url, key, {"user": user})["twins"]
            with pytest.raises(urllib.error.HTTPError):
                ask(url, key, {"user": "nobody"})
            backend.end(signal.SIGKILL)
            with pytest.raises(urllib.error.HTTPError):
                ask(url, key, {"likes": [{"like_contentsid": "100000001"}]})
            assert gateway.end() == 0
    lines = parsed(gateway.lines)
    assert {line["status"] for line in lines if line["event"] == "request"} >= {200, 404, 503}
    assert parsed(backend.lines)[-1]["event"] == "ready"
    assert not [line for line in gateway.lines if f'"{user}"' in line or "100000001" in line]


def test_an_exception_is_told_by_its_kind_and_place_without_its_message() -> None:
    """The message may quote a user's data."""
    code = """
import logging
from tastetwin.logs import log_as_json
log_as_json()
try:
    int("4" + "2 somebody's id")
except ValueError:
    logging.getLogger("ours").exception("request %s", "failed")
import warnings
warnings.warn("beware")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    first, second = parsed(done.stderr.splitlines())
    assert first["event"] == "request failed" and first["logger"] == "ours" and first["level"] == "error"
    assert first["errors"] == ["builtins.ValueError"] and first["trace"] == ["<string>:6 <module>"]
    assert "somebody" not in done.stderr and "beware" in second["event"]


def test_without_being_asked_to_people_are_told_in_words(town: TownReport, tmp_path: Path) -> None:
    """A terminal, and a log that somebody reads, stay as they were."""
    words = ["collect", "--source", str(town.folder), "--store", str(tmp_path / "store"), "--date", "2026-06-30"]
    done = subprocess.run([sys.executable, "-m", "tastetwin", *words], capture_output=True, text=True, timeout=120)
    assert re.fullmatch(r"\S+Z collect: started\n\S+Z collect: finished in .*\n", done.stderr)


def test_a_pod_that_says_one_line_and_ends_is_shipped_too(tmp_path: Path) -> None:
    """Filebeat never opens a file shorter than its fingerprint: the refusal that a task ended with would be nowhere."""
    words = [sys.executable, "-m", "tastetwin", "features", "--store", str(tmp_path), "--date", "2026-06-30"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=os.environ | JSON)
    (own,) = yaml.safe_load(SHIPPER.read_text(encoding="utf-8"))["filebeat.inputs"]
    shortest = min(len(line) for line in done.stderr.splitlines())
    assert done.returncode and own.get("prospector.scanner.fingerprint.length", 1024) <= shortest


def test_the_shipper_reads_our_pods_and_nobody_else_s() -> None:
    """MongoDB logs slow queries with the ids in them; the page has it in the namespace where we are."""
    (own,) = yaml.safe_load(SHIPPER.read_text(encoding="utf-8"))["filebeat.inputs"]
    pods = {
        "taste-app-2026-11-22-1-gateway-7d4f-x2": True, "tastetwin-daily-29400150-k8": True, "tastetwin-mart-a1": True,
        "job-tastetwin-train-2026-11-22-0-b2": True, "platform-mongodb-0": False, "platform-logs-es-default-0": False,
    }  # fmt: skip
    files = {pod: Path(f"/var/log/containers/{pod}_tastetwin_base-{'0' * 64}.log") for pod in pods}
    assert {pod: any(file.match(each) for each in own["paths"]) for pod, file in files.items()} == pods


def test_the_shipper_looks_for_the_fields_that_lines_have() -> None:
    """Elasticsearch cannot be had here, so what Filebeat is told is held to the lines at least."""
    (own,) = yaml.safe_load(SHIPPER.read_text(encoding="utf-8"))["filebeat.inputs"]
    container, ndjson = own["parsers"]
    assert own["type"] == "filestream" and own["prospector.scanner.symlinks"] and container["container"]
    target = ndjson["ndjson"]["target"]
    assert target == "tastetwin" and ndjson["ndjson"]["message_key"] == "event"
    stamp, dropped = (
        processor[name] for processor, name in zip(own["processors"], ("timestamp", "drop_fields"), strict=True)
    )
    assert stamp["field"] == f"{target}.timestamp"
    assert {datetime.fromisoformat(example).tzname() for example in stamp["test"]} == {"UTC"}
    assert {f"{target}.{name}" for name in ("place", "value", "fix")} <= set(dropped["fields"])
