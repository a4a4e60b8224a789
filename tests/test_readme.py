"""The README and the how-tos run: every command line parses, and the README's own-data block is carried out."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from typer.main import get_command

from tastetwin.cli import app
from tastetwin.config import CollectConfig, Config, MartConfig
from tastetwin.mart.gate import GateRules, gate_split, plan_splits
from tastetwin.sources.synthetic import TownConfig, write_town
from tastetwin.sources.synthetic_text import DIRT

ROOT: Final = Path(__file__).parent.parent
PAGES: Final = [ROOT / "README.md", ROOT / "README.ko.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
EXAMPLE_USER: Final = "42"
BIN: Final = Path(sys.executable).parent


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def commands(page: Path, program: str, language: str = "(?:ba)?sh") -> list[list[str]]:
    """The arguments of every line that starts ``program``, of bash blocks and of those in sh, which no test runs."""
    lines = [line for block in blocks(page, language) for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith(f"{program} ")]


def examples() -> list[list[str]]:
    """The example of every ``--help``."""
    group: Any = get_command(app)
    helps = [command.help or "" for command in group.commands.values()]
    helps += [command.help or "" for command in group.commands["config"].commands.values()]
    helps.append(app.info.help or "")
    return [
        shlex.split(found)[1:] for text in helps for found in re.findall(r"Example: `(.*?)`", text, flags=re.DOTALL)
    ]


TASTETWIN_LINES: Final = [*examples(), *(line for page in PAGES for line in commands(page, "tastetwin"))]
MAKE_LINES: Final = [line for page in PAGES for line in commands(page, "make")]


@pytest.mark.parametrize("arguments", TASTETWIN_LINES, ids=" ".join)
def test_every_command_line_parses(arguments: list[str]) -> None:
    """What is written can be typed: the verb exists, and so do its options and their kinds of value."""
    command: Any = get_command(app)
    context = command.make_context("tastetwin", list(arguments))
    while hasattr(command, "commands") and (left := [*context._protected_args, *context.args]):
        name, command, rest = command.resolve_command(context, left)
        context = command.make_context(name, rest, parent=context)
    assert not hasattr(command, "commands") or command.invoke_without_command


def test_every_verb_shows_an_example() -> None:
    """``--help`` is where most people look, and most of them copy."""
    group: Any = get_command(app)
    verbs = {name for name, command in group.commands.items() if not hasattr(command, "commands")}
    assert verbs <= {words[0] for words in examples()}


@pytest.mark.parametrize("arguments", MAKE_LINES, ids=" ".join)
def test_every_make_target_exists(arguments: list[str]) -> None:
    """``make demo`` and ``make test`` are all that a newcomer is asked to type."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {word for line in re.findall(r"^([\w .-]+):(?!=)", makefile, flags=re.MULTILINE) for word in line.split()}
    assert {word for word in arguments if "=" not in word} <= targets


def test_what_the_pages_tell_people_to_make_stays_out_of_git() -> None:
    """``git add .`` after an afternoon with the README must not commit somebody's events."""
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    words = {word for line in TASTETWIN_LINES for word in line}
    folders = {word for word in words if re.fullmatch(r"[a-z][a-z0-9-]*/", word)}
    assert {"events/", "store/"} <= folders
    assert {f"/{folder}" for folder in folders} <= set(ignored)


def test_the_example_lines_pass_the_gate(tmp_path: Path) -> None:
    """Somebody writes an exporter after these three lines: each must be taken as it stands, no value lost."""
    lines = blocks(ROOT / "README.md", "json")[0].splitlines()
    rules = GateRules.of(MartConfig(), CollectConfig(), date(2026, 11, 22))
    for kind, line in zip(DIRT, lines, strict=True):
        path = tmp_path / f"{kind}.jsonl"
        path.write_text(line + "\n", encoding="utf-8")
        split, *others = plan_splits(kind, str(path), path.stat().st_size, 1 << 20)
        (batch,) = gate_split(split, rules)
        assert not others and batch.counts["lines_read"] == batch.counts["accepted"] == 1
        assert not batch.counts["ratings_refused"] and not [name for name in batch.counts if "." in name]
        written, taken = json.loads(line), batch.accepted.to_pylist()[0]
        assert {name for name, value in taken.items() if value not in (None, False)} == set(written)


def test_the_korean_readme_shows_what_the_english_one_shows() -> None:
    """A translation falls behind in silence: commands, outputs, names and links are those of the original, in order."""
    english, korean = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.ko.md"))
    fence = re.compile(r"^```.*?^```$", flags=re.MULTILINE | re.DOTALL)
    assert fence.findall(korean) == fence.findall(english)
    shown, translated = (fence.sub("", text) for text in (english, korean))
    for what in (r"`[^`]+`", r"(?<=\]\()docs/[^)]+", r"^##? ", r"^\|", r"https?://[^>)\s]+"):
        first, second = (re.findall(what, text, flags=re.MULTILINE) for text in (shown, translated))
        assert sorted(second) == sorted(first), what
    assert "(README.ko.md)" in english and "(README.md)" in korean


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_shown_are_settings_that_exist(page: Path) -> None:
    """An unknown key is an error, so a page must not show one."""
    for block in blocks(page, "yaml"):
        Config(**yaml.safe_load(block))


@pytest.mark.slow
def test_the_readme_s_own_data_block_runs(tmp_path: Path) -> None:
    """From a folder of events to published twins, SQL and a file, by the README's lines alone."""
    write_town(TownConfig(users=300, seed=3, dirt_share=0), tmp_path / "events")
    for kind in DIRT:
        (tmp_path / "events" / f"{kind}-00000.jsonl").rename(tmp_path / "events" / f"{kind}.jsonl")
    for arguments in commands(ROOT / "README.md", "tastetwin", "bash"):
        # A town's users are not called 42.
        user = _somebody(tmp_path) if any(EXAMPLE_USER in word for word in arguments) else ""
        told = [re.sub(rf"\b{EXAMPLE_USER}\b", user, word) for word in arguments]
        done = _run([str(BIN / "tastetwin"), *told], tmp_path)
        assert done.returncode == 0, done.stderr
        assert arguments[0] == "run" or not user or user in done.stdout
    assert (tmp_path / "twins.parquet").stat().st_size > 0
    for block in [*blocks(ROOT / "README.md", "python"), *blocks(ROOT / "docs/how-to/own-data.md", "python")]:
        shown = re.sub(rf'"{EXAMPLE_USER}"', f'"{_somebody(tmp_path)}"', block)
        (tmp_path / "example.py").write_text(shown, encoding="utf-8")
        done = _run([sys.executable, "example.py"], tmp_path)
        assert done.returncode == 0, done.stderr


def _somebody(folder: Path) -> str:
    asked = "SELECT idno FROM result ORDER BY idno LIMIT 1"
    done = _run([str(BIN / "tastetwin"), "sql", asked, "--store", "store/", "--json"], folder)
    return str(json.loads(done.stdout)["idno"])


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TASTETWIN_TRAIN__EPOCHS": "1", "TASTETWIN_TRAIN__THREADS": "1"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=environment)
