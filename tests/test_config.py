"""Settings: defaults < file < environment, and nothing unknown passes in silence."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tastetwin.cli.settings import show
from tastetwin.config import ENV_PREFIX, DeployConfig
from tastetwin.errors import UsageError
from tastetwin.settings import load, origins


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
        monkeypatch.delenv(name)


def written(folder: Path, text: str, name: str = "c.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_the_environment_wins_over_the_file_and_the_file_over_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, "train: {epochs: 2, layers: 3}\n")
    monkeypatch.setenv("TASTETWIN_TRAIN__EPOCHS", "9")
    config = load(path)
    assert (config.train.epochs, config.train.layers, config.train.heads) == (9, 3, load().train.heads)
    told = {key: origin for key, _, origin, _ in origins(path)}
    assert told["train.epochs"] == "environment TASTETWIN_TRAIN__EPOCHS"
    assert (told["train.layers"], told["train.heads"]) == (str(path), "default")


def test_yaml_and_toml_say_the_same(tmp_path: Path) -> None:
    yaml = written(tmp_path, "features:\n  categories: [1, 2]\n  min_rating: 3.5\n")
    toml = written(tmp_path, "[features]\ncategories = [1, 2]\nmin_rating = 3.5\n", "c.toml")
    assert load(yaml) == load(toml) and load(yaml).features.categories == [1, 2]


def test_every_problem_is_told_at_once_with_a_suggestion(tmp_path: Path) -> None:
    """A typo that is ignored is a setting that silently does not apply."""
    path = written(tmp_path, "trian: {epochs: 1}\ntrain: {epoch: 1, layers: many}\nmart: {max_quarantine_share: 7}\n")
    with pytest.raises(UsageError) as caught:
        load(path)
    assert caught.value.problem.code == "CONFIG-INVALID"
    for part in ("'train'?", "'epochs'?", "train.layers = 'many'", "mart.max_quarantine_share = 7"):
        assert part in caught.value.problem.value


def test_an_unknown_variable_of_our_form_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASTETWIN_TRAIN__EPOCH", "9")
    with pytest.raises(UsageError, match="TASTETWIN_TRAIN__EPOCHS"):
        load()


@pytest.mark.parametrize("text", ["- a\n", "a: [\n", "\x00", "train: 3\n", "train:\n"])
def test_a_file_that_is_no_tree_of_sections_is_an_error_or_empty(tmp_path: Path, text: str) -> None:
    """Coded, whatever it holds: a stack trace names neither the file nor the fix."""
    with pytest.raises(UsageError) as caught:
        load(written(tmp_path, text))
    assert caught.value.problem.code in ("CONFIG-FILE", "CONFIG-INVALID")


def test_an_absent_file_is_an_error_and_an_empty_one_is_defaults(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="CONFIG-FILE"):
        load(tmp_path / "absent.yaml")
    assert load(written(tmp_path, "")) == load()


def test_heads_that_do_not_share_the_width_are_refused_before_hours_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASTETWIN_TRAIN__HEADS", "3")
    with pytest.raises(UsageError, match="multiple of train"):
        load()


def test_every_setting_has_its_sentence() -> None:
    assert [key for key, _, _, sentence in origins() if not sentence] == []


def test_a_bare_null_in_yaml_is_the_word_that_the_rule_is_called(tmp_path: Path) -> None:
    """The reference and `config show` say ``null``; YAML makes nothing of it."""
    assert load(written(tmp_path, "mart:\n  rating_outlier: null\n")).mart.rating_outlier == "null"


@pytest.mark.parametrize(
    ("text", "name"), [("mart: {earliest: 2010-01-01}", "c.yaml"), ("mart.earliest=2010-01-01", "c.toml")]
)
def test_a_bare_date_is_read_as_the_reference_writes_it(tmp_path: Path, text: str, name: str) -> None:
    """YAML and TOML make a date of it before we see it."""
    assert load(written(tmp_path, text, name)).mart.earliest == "2010-01-01"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1: {epochs: 2}", "1: unknown section"),
        ("mart: {future_hours: .inf}", "mart.future_hours = inf"),
        ("mart: {future_hours: 1.0e+300}", "mart.future_hours = 1e+300"),
        ("train: {seed: 9223372036854775807}", "train.seed = 9223372036854775807"),
        ("train: {max_steps: 99999999999999999999}", "train.max_steps = 99999999999999999999"),
        ("features: {categories: [1, 99999999999999999999]}", "64-bit"),
    ],
)
def test_what_no_stage_can_work_with_is_refused_at_the_door(tmp_path: Path, text: str, words: str) -> None:
    """And not with a traceback out of a stage, hours later: of a step's seed, of a manifest's JSON, of a time."""
    with pytest.raises(UsageError) as caught:
        load(written(tmp_path, text))
    assert caught.value.problem.code == "CONFIG-INVALID" and words in caught.value.problem.value


@pytest.mark.parametrize("key", ["lists.exposure_cap", "features.min_rating", "features.categories"])
def test_what_is_empty_can_be_said_by_the_environment_too(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """In a container there may be nothing else, and a cap by default could not be taken off."""
    section, name = key.split(".")
    monkeypatch.setenv(f"{ENV_PREFIX}{section}__{name}".upper(), "null")
    assert getattr(getattr(load(), section), name) is None


def test_what_config_show_prints_can_be_written_into_a_settings_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever copies a line and edits the next one meets no CONFIG-INVALID: Python's None and False are no YAML."""
    show()
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    wanted = {"lists.exposure_cap", "lists.inactive_days", "lists.mutual"}
    shown = {line[0]: line[1] for line in printed if line[0] in wanted}
    assert shown == {"lists.exposure_cap": "2.0", "lists.inactive_days": "null", "lists.mutual": "false"}
    copied = "".join(f"  {key.removeprefix('lists.')}: {value}\n" for key, value in shown.items())
    assert load(written(tmp_path, f"lists:\n{copied}")).lists == load().lists


def test_a_token_in_an_address_is_shown_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """`config show` ends up in tickets and logs."""
    monkeypatch.setenv("TASTETWIN_ENGINE__REMOTE", "sc://spark:15002/;use_ssl=true;token=s3cret;user_id=me")
    shown = {key: value for key, value, _, _ in origins()}
    assert shown["engine.remote"] == "sc://spark:15002/;use_ssl=true;token=***;user_id=me"
    assert "s3cret" in (load().engine.remote or "")


def test_a_password_in_an_address_is_shown_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is in it: a password may hold a slash or an @ that nobody escaped."""
    monkeypatch.setenv("TASTETWIN_TRACKING__MLFLOW", "https://ann:s3/cr@et@mlflow.example")
    monkeypatch.setenv("TASTETWIN_GATEWAY__FRESH", "redis://:s3cret@redis.example:6379/1")
    shown = {key: value for key, value, _, _ in origins()}
    assert shown["tracking.mlflow"] == "https://***@mlflow.example"
    assert shown["gateway.fresh"] == "redis://***@redis.example:6379/1"


def test_every_setting_is_read_somewhere() -> None:
    """One that nobody reads promises what does not happen."""
    source = Path(__file__).parent.parent / "src" / "tastetwin"
    read = "\n".join(path.read_text() for path in source.rglob("*.py") if path != source / "config.py")
    keys = [key.split(".")[1] for key, *_ in origins()]
    assert not [key for key in keys if not re.search(rf"\.{key}\b", read)]


def test_a_deployment_waits_as_long_as_the_charts_do() -> None:
    """Else it gives up on, and takes away, a gateway that the cluster would still have waited for."""
    charts = Path(__file__).parents[1] / "deploy" / "helm"
    said = "".join(file.read_text(encoding="utf-8") for file in charts.glob("*/values.yaml"))
    seconds = [int(each) for each in re.findall(r"^ *startupSeconds: (\d+)$", said, re.MULTILINE)]
    assert len(seconds) == 4, "of backend, gateway, app and events"
    assert load().deploy.ready_seconds == max(seconds)
    most = re.search(
        r'"startupSeconds": \{[^}]*?"maximum": (\d+)',
        (charts / "tastetwin-app" / "values.schema.json").read_text(encoding="utf-8"),
    )
    assert most is not None
    assert DeployConfig(ready_seconds=float(most[1])).ready_seconds == float(most[1])
