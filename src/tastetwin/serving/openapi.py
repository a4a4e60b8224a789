"""The description of an API (OpenAPI 3.1), made of the same models that check its requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from tastetwin import __version__
from tastetwin.client.schemas import Refusal

Json = dict[str, Any]
_REF: Final = "#/components/schemas/{model}"
REFUSALS: Final[Mapping[str, str]] = {
    "400": "The request is wrong; the answer says how.",
    "401": "No valid key.",
    "403": "The key lacks the scope.",
    "404": "There is no such model or version, or nobody who may be shown of that id.",
    "413": "Too large.",
    "429": "Above the key's rate.",
    "503": "Overloaded, or a model or the store cannot be reached.",
    "504": "Not done in time.",
}


@dataclass(frozen=True)
class Operation:
    """A method of a path."""

    group: str
    """Under which heading it stands."""
    method: str
    path: str
    """Template."""
    name: str
    summary: str
    description: str
    gives: type[BaseModel]
    takes: type[BaseModel] | None = None
    parameters: Sequence[Json] = ()


def describe(title: str, about: str, operations: Sequence[Operation], refusals: Mapping[str, str] = REFUSALS) -> bytes:
    """The document, as JSON; ``refusals``: what each status means that is no answer."""
    models = [each for operation in operations for each in (operation.takes, operation.gives) if each is not None]
    wanted = [(each, "validation") for each in dict.fromkeys([*models, Refusal])]
    _, schemas = models_json_schema(wanted, ref_template=_REF)  # type: ignore[arg-type]
    paths: dict[str, Json] = {}
    for each in operations:
        paths.setdefault(each.path, {})[each.method.lower()] = _described(each, refusals)
    document = {
        "openapi": "3.1.0",
        "info": {"title": title, "version": __version__, "description": about},
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }
    return orjson.dumps(document)


def _described(operation: Operation, refusals: Mapping[str, str]) -> Json:
    said: Json = {
        "tags": [operation.group],
        "operationId": operation.name,
        "summary": operation.summary,
        "description": operation.description,
        "responses": {
            "200": {"description": "The answer."} | _content(operation.gives),
            **{status: {"description": meaning} | _content(Refusal) for status, meaning in refusals.items()},
        },
    }
    if operation.parameters:
        said["parameters"] = list(operation.parameters)
    if operation.takes is not None:
        said["requestBody"] = {"required": True} | _content(operation.takes)
    return said


def _content(model: type[BaseModel]) -> Json:
    return {"content": {"application/json": {"schema": {"$ref": _REF.format(model=model.__name__)}}}}


def path_parameter(name: str, schema: Json, description: str) -> Json:
    """A segment in braces."""
    return {"name": name, "in": "path", "required": True, "schema": schema, "description": description}


def query_parameters(model: type[BaseModel]) -> list[Json]:
    """The fields of a query."""
    return [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in model.model_json_schema()["properties"].items()
    ]
