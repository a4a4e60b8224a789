"""Write each chart's values.schema.json from its values.yaml: python deploy/helm/generate_schemas.py.

A value's type is that of its default, its sentence the comment above it, its limits those of its name (``LIMITS``), and
``settings`` is what the package itself takes. A value without a sentence is an error; so is one that no chart knows.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import yaml

from tastetwin.config import Config

HELM: Final = Path(__file__).parent
CHARTS: Final = ("model", "app", "jobs", "sandbox", "platform")
SETTINGS: Final = {"model": ("backend",)}
"""Sections of the settings that a chart takes; all of them where it is not named."""

Schema = dict[str, Any]
_COUNT: Final[Schema] = {"type": "integer", "minimum": 1, "maximum": 1_000}
_PORT: Final[Schema] = {"type": "integer", "minimum": 1, "maximum": 65_535}
_QUANTITY: Final[Schema] = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"}
_QUANTITIES: Final[Schema] = {"type": "object", "additionalProperties": _QUANTITY}
_TEXTS: Final[Schema] = {"type": "array", "items": {"type": "string", "minLength": 1}}
_MAP: Final[Schema] = {"type": "object", "additionalProperties": {"type": "string"}}
_OBJECTS: Final[Schema] = {"type": "array", "items": {"type": "object"}}
_NAME: Final[Schema] = {"type": "string", "pattern": "^([a-z0-9]([a-z0-9.-]*[a-z0-9])?)?$", "maxLength": 253}
_PERCENT: Final[Schema] = {"type": "integer", "minimum": 1, "maximum": 100}
_CRON: Final[Schema] = {"type": "string", "pattern": r"^(\S+ ){4}\S+$"}
_URL: Final[Schema] = {"type": "string", "pattern": "^(https?://.+)?$"}
_MODES: Final = ["ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"]
_RESOURCES: Final[Schema] = {
    "type": "object",
    "required": ["requests"],
    "properties": {"requests": _QUANTITIES, "limits": _QUANTITIES},
    "additionalProperties": False,
}
_ACCOUNT: Final[Schema] = {
    "type": "object",
    "required": ["name", "namespace"],
    "properties": {"name": _NAME | {"minLength": 1}, "namespace": _NAME | {"minLength": 1}},
    "additionalProperties": False,
}

LIMITS: Final[dict[str, Schema]] = {
    "accessModes": {"type": "array", "minItems": 1, "items": {"enum": _MODES}},
    "accounts": {"type": "array", "items": _ACCOUNT},
    "backends": {"type": "array", "items": {"type": "string", "pattern": "^https?://.+"}},
    "brokerPorts": {"type": "array", "items": _PORT},
    "claim": _NAME,
    "clients": _OBJECTS,
    "collections": _TEXTS,
    "count": {"type": "integer", "minimum": 0, "maximum": 64},
    "cpu": _PERCENT,
    "egress": _OBJECTS,
    "entryPoints": _TEXTS | {"minItems": 1},
    "environment": {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}},
    "environmentSecret": _NAME,
    "instances": _COUNT,
    "interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"},
    "maxUnavailable": {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^[0-9]{1,3}%$"}]},
    "monitoring": _OBJECTS,
    "nodeSelector": _MAP,
    "partitions": _COUNT,
    "podAnnotations": _MAP,
    "port": _PORT,
    "ports": {"type": "array", "items": _PORT},
    "pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
    "pullSecrets": _TEXTS,
    "pushgateway": _URL,
    "redisPort": _PORT,
    "redisSecret": _NAME,
    "replicas": _COUNT,
    "resources": _RESOURCES,
    "retries": {"type": "integer", "minimum": 0, "maximum": 20},
    "schedule": _CRON,
    "secret": _NAME,
    "size": _QUANTITY,
    "sourceClaim": _NAME,
    "startupSeconds": {"type": "integer", "minimum": 10, "maximum": 7_200},
    "storageClass": _NAME,
    "tmpSize": _QUANTITY,
    "tokenSecret": _NAME,
    "tolerations": _OBJECTS,
}
"""By a value's own name, which means the same in every chart."""
BY_PATH: Final[dict[str, Schema]] = {
    "app.gateway": _URL,
    "cassandra.disk": _QUANTITY,
    "cassandra.size": _COUNT,
    "run.id": {"type": "string", "pattern": r"^(\d{4}-\d{2}-\d{2}\.\d+)?$"},
}
"""Where that would be wrong."""
_TYPES: Final = {bool: "boolean", int: "integer", float: "number", str: "string"}


def schema_of(chart: str) -> Schema:
    """The schema of a chart's values.

    Raises:
        KeyError: a value has no sentence, or a list no limits.
    """
    text = (HELM / f"tastetwin-{chart}" / "values.yaml").read_text(encoding="utf-8")
    says = sentences(text)
    values, foreign = yaml.safe_load(text), _foreign(chart)
    properties = {name: _value(name, each, says) for name, each in values.items() if name not in {"settings", *foreign}}
    if "settings" in values:
        properties["settings"] = {"description": says["settings"]} | _settings(chart)
    properties |= {name: _switched(name, says) for name in foreign}
    properties |= {"global": {"type": "object"}, "tastetwin-common": {"type": "object"}}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"Values of tastetwin-{chart}"}
    return head | {"type": "object", "properties": properties, "additionalProperties": False}


def sentences(text: str) -> dict[str, str]:
    """Dotted path -> the comment above it; a path under an alias has those of the anchor."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    anchors: dict[str, str] = {}
    said: list[str] = []
    for line in text.splitlines():
        comment = re.match(r" *# (.*)", line)
        key = re.match(r"( *)([\w.-]+):(?: ([&*])(\w+))?", line)
        if comment:
            said.append(comment[1])
        elif key:
            path = [*(each for each in path if each[0] < len(key[1])), (len(key[1]), key[2])]
            dotted = ".".join(name for _, name in path)
            if said:
                found[dotted] = " ".join(said)
            if key[3] == "&":
                anchors[key[4]] = dotted
            elif key[3] == "*":
                of = anchors[key[4]] + "."
                found |= {f"{dotted}.{name[len(of) :]}": what for name, what in found.items() if name.startswith(of)}
            said = []
        else:
            said = []
    return found


def _value(path: str, value: Any, says: dict[str, str]) -> Schema:
    limits = BY_PATH.get(path) or LIMITS.get(path.rpartition(".")[2])
    if limits is None and isinstance(value, dict):
        inner = {key: _value(f"{path}.{key}", each, says) for key, each in value.items()}
        return {"type": "object", "properties": inner, "additionalProperties": False}
    return {"description": says[path]} | (limits or {"type": _TYPES[type(value)]})


def _switched(name: str, says: dict[str, str]) -> Schema:
    """Another's chart: its values are its own, but for the switch."""
    switch = {"description": says[f"{name}.enabled"], "type": "boolean"}
    return {"type": "object", "required": ["enabled"], "properties": {"enabled": switch}}


def _foreign(chart: str) -> list[str]:
    """Charts of others, whose values are theirs."""
    about = yaml.safe_load((HELM / f"tastetwin-{chart}" / "Chart.yaml").read_text(encoding="utf-8"))
    names = [each.get("alias", each["name"]) for each in about["dependencies"]]
    return [name for name in names if name != "tastetwin-common"]


def _settings(chart: str) -> Schema:
    """What ``tastetwin.config`` takes, without names of classes and defaults."""
    whole = Config.model_json_schema()
    sections = SETTINGS.get(chart, tuple(whole["properties"]))
    inner = {name: whole["$defs"][whole["properties"][name]["$ref"].rpartition("/")[2]] for name in sections}
    for section in inner.values():
        for key in section["properties"].values():
            key.pop("default", None)
    plain: Schema = _without_titles(inner)
    return {"type": "object", "properties": plain, "additionalProperties": False}


def _without_titles(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without_titles(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: _without_titles(each) for key, each in schema.items() if key != "title"}


def rendered(chart: str) -> str:
    """As the file has it."""
    return json.dumps(schema_of(chart), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for each in CHARTS:
        (HELM / f"tastetwin-{each}" / "values.schema.json").write_text(rendered(each), encoding="utf-8")
