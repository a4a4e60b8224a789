"""The description of the gateway's API (OpenAPI 3.1), made of the same models that check requests."""

from __future__ import annotations

from typing import Any, Final

import orjson
from fastapi.openapi.docs import get_swagger_ui_html
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from tastetwin import __version__
from tastetwin.client.schemas import ModelsAnswer, Refusal
from tastetwin.serving.gateway.http import BASE, DOCS, ENDPOINTS, OPENAPI, VERSION_HEADER, Endpoint

_REF: Final = "#/components/schemas/{model}"
_ABOUT: Final = """Who shares my taste? Users and places go in and come back under the source's own ids.

Every answer says which run and which model it comes from, and how old the data are. Ask with
`authorization: Bearer KEY`; a key needs the scope that the route names."""
_REFUSALS: Final = {
    "400": "The request is wrong; the answer says how.",
    "401": "No valid key.",
    "403": "The key lacks the scope.",
    "404": "There is no such model or version, or nobody who may be shown of that id.",
    "413": "Too large.",
    "429": "Above the key's rate.",
    "503": "Overloaded, or a model or the store cannot be reached.",
    "504": "Not done in time.",
}


def describe() -> bytes:
    """The document, as JSON."""
    models = [each for endpoint in ENDPOINTS for each in (endpoint.takes, endpoint.gives)] + [ModelsAnswer, Refusal]
    wanted = [(each, "validation") for each in dict.fromkeys(models)]
    _, schemas = models_json_schema(wanted, ref_template=_REF)  # type: ignore[arg-type]
    paths: dict[str, Any] = {
        BASE: {"get": _operation("models", "The versions that answer", "twins", ModelsAnswer)},
        **{each.template: {"post": _asked(each)} for each in ENDPOINTS},
    }
    document = {
        "openapi": "3.1.0",
        "info": {"title": "TasteTwin model gateway", "version": __version__, "description": _ABOUT},
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }
    return orjson.dumps(document)


def _asked(endpoint: Endpoint[Any]) -> dict[str, Any]:
    version = {
        "name": VERSION_HEADER.decode(),
        "in": "header",
        "schema": {"type": "string"},
        "description": "a version by name; without it, by weight",
    }
    model = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}, "example": "taste"}
    operation = _operation(endpoint.verb.replace("/", "_"), endpoint.summary, endpoint.scope, endpoint.gives)
    body = {"required": True, "content": {"application/json": {"schema": _schema(endpoint.takes)}}}
    return operation | {"parameters": [model, version], "requestBody": body}


def _operation(name: str, summary: str, scope: str, gives: type[BaseModel]) -> dict[str, Any]:
    refusal = {"content": {"application/json": {"schema": _schema(Refusal)}}}
    return {
        "operationId": name,
        "summary": summary,
        "description": f"Scope: `{scope}`.",
        "responses": {
            "200": {"description": "The answer.", "content": {"application/json": {"schema": _schema(gives)}}},
            **{status: {"description": said} | refusal for status, said in _REFUSALS.items()},
        },
    }


def _schema(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF.format(model=model.__name__)}


def pages() -> dict[str, tuple[bytes, bytes]]:
    """Ready answers by path: content type and body."""
    page = get_swagger_ui_html(openapi_url=OPENAPI, title="TasteTwin model gateway")
    return {DOCS: (b"text/html; charset=utf-8", bytes(page.body)), OPENAPI: (b"application/json", describe())}
