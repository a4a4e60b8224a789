"""Keys: made once, kept as hashes, read anew, and never let anybody in by accident."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tastetwin.cli import app
from tastetwin.errors import StoreError, UsageError
from tastetwin.serving.keys import Caller, Keys, add_key, read_keys, remove_key


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_key_opens_and_only_its_hash_is_kept(path: Path) -> None:
    """Whoever steals the file has no key."""
    key = add_key(path, "shop", ["twins", "score"], 5, 10)
    assert Keys(path).caller(key) == Caller("shop", frozenset({"twins", "score"}), 5, 10)
    assert key.startswith("tt_") and len(key) == 3 + 43
    assert key[3:].encode() not in path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["keys.json"]


def test_nearly_a_key_is_none(path: Path) -> None:
    """All of it counts, and nothing else does: neither the name nor the hash that is in the file."""
    key = add_key(path, "shop", ["twins"])
    keys = Keys(path)
    digest = read_keys(path)[0].sha256
    for near in ("", key[:-1], key + "a", key.swapcase(), f" {key}", "shop", digest, "\udcff", "é", "x" * 100_000):
        assert keys.caller(near) is None


def test_the_file_is_read_again_when_it_changed(path: Path) -> None:
    """A key that leaked is taken out while the servers run."""
    clock = Clock()
    first, second = add_key(path, "a", ["twins"]), add_key(path, "b", ["twins"])
    keys = Keys(path, clock)
    clock.now = 1.5
    assert keys.caller(first) is not None
    remove_key(path, "a")
    third = add_key(path, "c", ["app"])
    clock.now = 2.4
    assert keys.caller(first) is not None and keys.caller(third) is None
    clock.now = 2.5
    assert keys.caller(first) is None
    assert {caller.name for key in (second, third) if (caller := keys.caller(key))} == {"b", "c"}


GOOD: dict[str, Any] = {"name": "a", "sha256": "0" * 64, "scopes": [], "per_second": 1, "burst": 1, "created": ""}
DAMAGED = {
    "empty": b"",
    "half": b'{"version": 1, "keys": [',
    "not utf-8": b"\xff",
    "list": b"[]",
    "no keys": b'{"version": 1}',
    "of a later version": b'{"version": 2, "keys": []}',
    "a name twice": json.dumps({"keys": [GOOD, GOOD]}).encode(),
    "unknown scope": json.dumps({"keys": [GOOD | {"scopes": ["all"]}]}).encode(),
    "unknown field": json.dumps({"keys": [GOOD | {"key": "x"}]}).encode(),
    "short hash": json.dumps({"keys": [GOOD | {"sha256": "00"}]}).encode(),
    "rate of nan": json.dumps({"keys": [GOOD | {"per_second": "nan"}]}).encode(),
    "no burst": json.dumps({"keys": [GOOD | {"burst": 0}]}).encode(),
    "a line feed in a name": json.dumps({"keys": [GOOD | {"name": "a\n"}]}).encode(),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_stops_the_start_and_lets_nobody_in_later(path: Path, data: bytes) -> None:
    """Half a table of keys would be a table without limits, or without the key that was taken out."""
    path.write_bytes(data)
    with pytest.raises(StoreError, match="KEYS-FILE"):
        Keys(path)
    path.unlink()
    key, clock = add_key(path, "shop", ["twins"]), Clock()
    keys = Keys(path, clock)
    good = path.read_bytes()
    path.write_bytes(data)
    clock.now = 2
    for _ in range(2):  # not only at the look itself
        with pytest.raises(StoreError, match="KEYS-FILE"):
            keys.caller(key)
    path.write_bytes(good)
    with pytest.raises(StoreError, match="KEYS-FILE"):  # nor is every request a look
        keys.caller(key)
    clock.now = 4
    assert keys.caller(key) is not None


def test_a_file_that_comes_back_unchanged_lets_in_again(path: Path) -> None:
    """A mount that was away for a moment brings back the same file, to the nanosecond."""
    key, clock = add_key(path, "shop", ["twins"]), Clock()
    keys = Keys(path, clock)
    path.rename(path.with_suffix(".away"))
    clock.now = 2
    with pytest.raises(StoreError, match="KEYS-FILE"):
        keys.caller(key)
    path.with_suffix(".away").rename(path)
    clock.now = 4
    assert keys.caller(key) is not None


def test_no_file_is_no_open_door(path: Path) -> None:
    """A mount that failed must not look like a server without keys."""
    with pytest.raises(StoreError, match="KEYS-FILE"):
        Keys(path)


@pytest.mark.parametrize(
    ("name", "scopes", "rate", "burst"),
    [("a b", ["app"], 1, 1), ("", ["app"], 1, 1), ("a", ["all"], 1, 1), ("a", ["app"], 0, 1), ("a", ["app"], 1, 0),
     ("a", ["app"], float("nan"), 1), ("a", ["app"], float("inf"), 1)],
)  # fmt: skip
def test_an_entry_that_cannot_be_is_refused(path: Path, name: str, scopes: list[str], rate: float, burst: int) -> None:
    """It would be refused by every server later."""
    with pytest.raises(UsageError, match="KEYS-ENTRY"):
        add_key(path, name, scopes, rate, burst)
    assert not path.exists()


def test_names_are_given_once_and_only_what_is_there_is_removed(path: Path) -> None:
    """A second key under one name would survive the removal of the first."""
    add_key(path, "a", ["app"])
    before = path.read_bytes()
    with pytest.raises(UsageError, match="there already"):
        add_key(path, "a", ["app"])
    with pytest.raises(UsageError, match="not there"):
        remove_key(path, "b")
    assert path.read_bytes() == before


def test_keys_made_at_once_are_all_kept(path: Path) -> None:
    """One was shown to somebody each time."""
    code = "import sys; from pathlib import Path; from tastetwin.serving.keys import add_key; "
    code += "[add_key(Path(sys.argv[1]), f'{sys.argv[2]}-{n}', ['app']) for n in range(20)]"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with ThreadPoolExecutor(3) as pool:
        commands = ([sys.executable, "-c", code, str(path), str(each)] for each in range(3))
        list(pool.map(lambda command: subprocess.run(command, check=True, env=environment, timeout=60), commands))
    assert len(read_keys(path)) == 60


def test_the_command_line_shows_a_key_once(path: Path) -> None:
    """Afterwards nothing can show it."""
    run = CliRunner().invoke
    made = run(app, ["keys", "add", "shop", "--scope", "twins", "--scope", "score", "--file", str(path), "--json"])
    key = json.loads(made.stdout)["key"]
    assert Keys(path).caller(key) == Caller("shop", frozenset({"twins", "score"}), 100, 200)
    listed = run(app, ["keys", "list", "--file", str(path)])
    assert "shop" in listed.stdout and "twins, score" in listed.stdout and key not in listed.stdout
    entries = json.loads(run(app, ["keys", "list", "--file", str(path), "--json"]).stdout)["keys"]
    assert [(entry["name"], "sha256" in entry) for entry in entries] == [("shop", False)]
    assert run(app, ["keys", "remove", "shop", "--file", str(path)]).exit_code == 0
    assert read_keys(path) == []
