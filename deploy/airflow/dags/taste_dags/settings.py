"""One YAML file says everything that differs between installations; checked whole when the DAGs are read."""

from __future__ import annotations

import os
from collections import Counter
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

import yaml
from kubernetes.client import models
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

FILE: Final = "TASTETWIN_AIRFLOW"
"""The environment variable that names the file; without it, the one beside the DAGs."""
Stage = Literal["collect", "mart", "features", "train", "analyze", "evaluate", "deliver"]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
SENDS: Final = ("push", "load")
STEPS: Final = ("deploy_model", "deploy_app", "switch", "check", "remove_app", "remove_model", "rollback")
TASKS: Final = (*STAGES, *SENDS, *STEPS)

Seconds = Annotated[timedelta, Field(gt=timedelta(0))]
Name = Annotated[str, Field(min_length=1)]


class SettingsError(ValueError):
    """The file cannot be used; the message names the file, each place in it, and the rule."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Cluster(_Strict):
    """A Kubernetes cluster, by its Airflow connection, and the namespace of our pods there."""

    connection: Name
    namespace: Name


class Notebook(_Strict):
    """A notebook that takes a stage's place, and where the carried-out one is kept; both as the pod sees them."""

    path: Name
    output: Name


class Task(_Strict):
    """How one task runs."""

    cluster: Name
    image: Name
    pod: dict[str, Any] = {}
    container: dict[str, Any] = {}
    arguments: list[str] = []
    notebook: Notebook | None = None
    retries: int = Field(3, ge=0, le=50)
    retry_delay: timedelta = Field(timedelta(minutes=1), ge=timedelta(0))
    longest_retry_delay: Seconds = timedelta(minutes=30)
    timeout: Seconds = timedelta(hours=6)
    startup_timeout: Seconds = timedelta(minutes=10)

    @field_validator("pod", "container")
    @classmethod
    def _is_kubernetes(cls, value: dict[str, Any], info: Any) -> dict[str, Any]:
        kind = {"pod": "V1PodSpec", "container": "V1Container"}[info.field_name]
        wrong = _strangers(kind, value, "")
        if wrong:
            raise ValueError("; ".join(wrong))
        return value


class Training(_Strict):
    """Training in a pod like any other stage."""

    where: Literal["pod"] = "pod"


class TorchrunTraining(_Strict):
    """Training by torchrun in an Indexed Job: so many nodes, so many processes on each."""

    where: Literal["torchrun"]
    service: Name
    nodes: int = Field(1, ge=1, le=1000)
    processes: int = Field(1, ge=1, le=64)
    port: int = Field(29500, ge=1, le=65535)


class RayTraining(_Strict):
    """Training by torchrun on one node of a Ray cluster that KubeRay starts for it."""

    where: Literal["ray"]
    version: Name
    processes: int = Field(1, ge=1, le=64)
    gpus: int = Field(0, ge=0, le=64)
    cpus: int = Field(1, ge=1, le=1024)


class Deploy(_Strict):
    """The deploy DAG's commands."""

    target: Literal["local", "kubernetes"] = "kubernetes"
    arguments: list[str] = []


class Settings(_Strict):
    """The whole file."""

    start_date: date
    schedule: Name = "0 3 * * *"
    timezone: Name = "UTC"
    catchup: bool = True
    store: Name
    source: Name
    config: str | None = None
    clusters: dict[str, Cluster] = Field(min_length=1)
    tasks: dict[Literal[TASKS], Task]  # type: ignore[valid-type]
    training: Annotated[Training | TorchrunTraining | RayTraining, Field(discriminator="where")] = Training()
    push: Name | None = None
    load: Name | None = None
    deploy: Deploy | None = None
    deadline: Seconds | None = None
    alerts: Name | None = None

    @model_validator(mode="before")
    @classmethod
    def _every_task(cls, raw: Any) -> Any:
        """``defaults`` under each task's own."""
        if not isinstance(raw, dict):
            raise ValueError("a mapping is wanted")
        raw = dict(raw)
        defaults, own = raw.pop("defaults", None) or {}, raw.get("tasks") or {}
        if not isinstance(defaults, dict) or not isinstance(own, dict):
            raise ValueError("defaults and tasks are mappings")
        raw["tasks"] = {name: merged(defaults, own.get(name) or {}) for name in dict.fromkeys((*TASKS, *own))}
        return raw

    @model_validator(mode="after")
    def _hangs_together(self) -> Settings:
        for name, task in self.tasks.items():
            if task.cluster not in self.clusters:
                raise ValueError(
                    f"tasks.{name}.cluster: {task.cluster!r} is none of clusters: {', '.join(self.clusters)}"
                )
            if task.notebook and name not in STAGES:
                raise ValueError(f"tasks.{name}.notebook: a notebook takes the place of a stage: {', '.join(STAGES)}")
        if self.deadline and not self.alerts:
            raise ValueError("deadline: needs alerts, the connection that hears of it")
        if self.tasks["train"].notebook and self.training.where != "pod":
            raise ValueError("tasks.train.notebook: needs training.where: pod")
        return self


def merged(under: Any, over: Any) -> Any:
    """Mappings key by key; anything else, lists too, replaces what is under it."""
    if isinstance(under, dict) and isinstance(over, dict):
        return {**under, **{key: merged(under.get(key), value) for key, value in over.items()}}
    return over


def _strangers(kind: str, value: Any, place: str) -> list[str]:
    """What Kubernetes would silently drop: keys that the type has not, and no mapping where it wants one."""
    if kind.startswith("list[") and isinstance(value, list):
        inner = kind.removeprefix("list[").removesuffix("]")
        return [each for i, item in enumerate(value) for each in _strangers(inner, item, f"{place}[{i}]")]
    model = getattr(models, kind, None)
    if model is None:
        return []
    if not isinstance(value, dict):
        return [f"{place or kind}: a mapping is wanted"]
    types = {model.attribute_map[name]: inner for name, inner in model.openapi_types.items()}
    wrong = [f"{place}.{key}: no field of Kubernetes' {kind}".lstrip(".") for key in value if key not in types]
    known = [(key, item) for key, item in value.items() if key in types]
    return wrong + [each for key, item in known for each in _strangers(types[key], item, f"{place}.{key}".lstrip("."))]


def load(path: Path | None = None) -> Settings:
    """The settings in force.

    Raises:
        SettingsError: the file is not there, is no YAML, or breaks a rule; all broken rules are named at once.
    """
    path = path or Path(os.environ.get(FILE) or Path(__file__).parent.parent / "tastetwin.yaml")
    try:
        return Settings.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}); {FILE} names the file") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: no YAML: {error}") from None
    except ValidationError as error:
        raise SettingsError("\n".join([f"{path}:", *_said(error)])) from None


def _said(error: ValidationError) -> list[str]:
    """A line for each broken rule; what is wrong in every task is wrong in the defaults."""
    found = [(each["loc"], each["msg"].removeprefix("Value error, ")) for each in error.errors()]
    shared = Counter((loc[2:], msg) for loc, msg in found if loc[:1] == ("tasks",))
    lines: dict[str, None] = {}
    for loc, msg in found:
        if loc[:1] == ("tasks",) and shared[loc[2:], msg] == len(TASKS):
            loc = ("defaults", *loc[2:])
        lines[f"  {'.'.join(map(str, loc))}: {msg}".replace("  : ", "  ")] = None
    return list(lines)
