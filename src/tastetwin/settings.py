"""Where settings come from: defaults < file (YAML or TOML) < environment (``TASTETWIN_TRAIN__EPOCHS=3``).

Unknown keys are errors that suggest the nearest known key.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import SettingsError

from tastetwin.config import ENV_PREFIX, Config, Section
from tastetwin.errors import UsageError
from tastetwin.masks import without_password, without_token


def load(path: Path | None = None) -> Config:
    """The settings in force.

    Without a .yaml, .yml or .toml file: defaults and environment only.

    Raises:
        UsageError: CONFIG-FILE when the file cannot be read; CONFIG-INVALID with every wrong key and value at once.
    """
    return from_values({} if path is None else _read(path), str(path or "environment"))


def from_values(values: Mapping[str, Any], place: str) -> Config:
    """Settings given as sections of keys; ``place`` says in errors where they came from.

    Raises:
        UsageError: CONFIG-INVALID with every wrong key and value at once.
    """
    problems = [f"environment variable {name}: unknown{_suggest(name, _env_names())}" for name in _unknown_env()]
    problems += [f"{key!r}: unknown section" for key in values if not isinstance(key, str)]
    if not problems:
        try:
            return Config(**values)
        except ValidationError as error:
            problems = [_describe(problem) for problem in error.errors()]
        except SettingsError as error:
            problems = [str(error)]
    raise UsageError(
        "CONFIG-INVALID",
        place=place,
        value="; ".join(problems),
        rule="every key is known and every value fits",
        fix="see: tastetwin config show",
    )


def origins(path: Path | None = None) -> Iterator[tuple[str, Any, str, str]]:
    """Every setting as (dotted key, value in force, where it came from, its sentence); secrets masked."""
    config = load(path)
    file_values = {} if path is None else _read(path)
    for section, key, field in _fields():
        env = variable(section, key)
        from_file = str(path) if key in (file_values.get(section) or {}) else "default"
        origin = f"environment {env}" if env in os.environ else from_file
        value = getattr(getattr(config, section), key)
        shown = without_password(without_token(value)) if isinstance(value, str) else value
        yield f"{section}.{key}", shown, origin, field.description or ""


def _fields() -> Iterator[tuple[str, str, FieldInfo]]:
    for section, outer in Config.model_fields.items():
        model = outer.annotation
        assert isinstance(model, type) and issubclass(model, Section)
        for key, field in model.model_fields.items():
            yield section, key, field


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, tomllib.TOMLDecodeError) as error:
        raise _file_error(path, str(error).replace("\n", " ")) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise _file_error(path, f"a {type(values).__name__}")
    return values


def _file_error(path: Path, value: str) -> UsageError:
    return UsageError(
        "CONFIG-FILE",
        place=str(path),
        value=value,
        rule="a readable YAML or TOML file of sections, such as `train: {epochs: 3}` or `[train]` and `epochs = 3`",
        fix="mend the file; `tastetwin config show` lists every section and key",
    )


def _describe(problem: Any) -> str:
    """One wrong key or value, with a suggestion for a key that is nearly known."""
    where = [str(part) for part in problem["loc"]]
    key = ".".join(where)
    if problem["type"] != "extra_forbidden":
        return f"{key} = {problem.get('input')!r}: {problem['msg']}"
    known = list(Config.model_fields) if len(where) == 1 else [k for s, k, _ in _fields() if s == where[0]]
    return f"{key}: unknown key{_suggest(where[-1], known)}"


def _suggest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def variable(section: str, key: str) -> str:
    """The environment variable of a setting."""
    return f"{ENV_PREFIX}{section}__{key}".upper()


def _env_names() -> list[str]:
    return [variable(section, key) for section, key, _ in _fields()]


def _unknown_env() -> list[str]:
    """Variables of our form that name no setting; pydantic would pass over them in silence."""
    names = set(_env_names())
    return sorted(name for name in os.environ if name.startswith(ENV_PREFIX) and "__" in name and name not in names)
