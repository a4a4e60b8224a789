"""Whoever is forgotten is gone from what the app keeps, and the receipt says so, and what of Kafka is out of reach."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tastetwin.cli import app
from tastetwin.config import AppConfig
from tastetwin.delivery.forget import forget
from tastetwin.errors import StoreError, UsageError
from tastetwin.serving.app.forget import app_places
from tastetwin.serving.app.state import KINDS, open_state
from tastetwin.store import Store
from tests.world import Journey

GONE = "gone-canary"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    state = open_state(str(folder / "state"))
    for kind in KINDS:
        state.add(kind, GONE, "other")
        state.add(kind, "ann", GONE)
        state.add(kind, "ann", "bob")
    state.close()
    return folder


def is_named(folder: Path) -> bool:
    return any(GONE.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_the_command_cleans_the_app_s_state_and_names_it(copied: Journey, home: Path) -> None:
    """Somebody whom the store forgot would else still be on others' lists, by id."""
    words = ["forget", GONE, "--store", copied.store.root, "--home", str(home), "--json"]
    planned = json.loads(CliRunner().invoke(app, [*words, "--dry-run"]).stdout)
    assert is_named(home)
    done = json.loads(CliRunner().invoke(app, words).stdout)
    place = {"place": f"app's state {home / 'state'}", "searched": 1, "found": 1, "rewritten": 1, "removed": 0}
    assert planned["places"][-1] == done["places"][-1] == place | {"remains": ""}
    assert not is_named(home)
    state = open_state(str(home / "state"))
    assert [state.of(kind, "ann") for kind in KINDS] == [["bob"]] * len(KINDS)
    state.close()


def test_settings_name_the_state_as_they_do_for_the_app(copied: Journey, home: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"app: {{state: {home / 'state'}}}")
    words = ["forget", GONE, "--store", copied.store.root, "--config", str(settings)]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert not is_named(home)


def test_a_home_that_is_not_there_is_an_error_and_one_without_state_is_none(copied: Journey, tmp_path: Path) -> None:
    """A folder that was mistyped must not look like one that was searched; and nothing is made."""
    words = ["forget", GONE, "--store", copied.store.root, "--json", "--home"]
    with pytest.raises(UsageError, match="STATE-ADDRESS"):
        CliRunner().invoke(app, [*words, str(tmp_path / "nowhere")], catch_exceptions=False)
    (tmp_path / "empty").mkdir()
    said = json.loads(CliRunner().invoke(app, [*words, str(tmp_path / "empty")]).stdout)
    assert said["places"][-1]["searched"] == 0 and not list((tmp_path / "empty").iterdir())


def test_what_kafka_keeps_is_told_where_there_are_brokers(memory_store: Store) -> None:
    """Dead letters hold events as they came; a receipt that left them out would be believed."""
    *_, last = forget(memory_store, [GONE], besides=app_places(AppConfig(brokers="localhost:9092"), None)).places
    assert "tastetwin.events.dead" in last.place and "not erased" in last.remains and "dead letters" in last.remains
    assert app_places(AppConfig(), None) == []


def test_a_state_that_cannot_be_reached_is_no_silent_success(memory_store: Store) -> None:
    """No receipt: the same command does the rest once it is back."""
    state: Any = app_places(AppConfig(state="redis://user:secret@127.0.0.1:1/0"), None)
    assert "secret" not in state[0](memory_store, [GONE]).place
    with pytest.raises(StoreError, match="STATE-UNAVAILABLE"):
        forget(memory_store, [GONE], besides=state)
