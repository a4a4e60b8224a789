"""The description of the gateway's API."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from tastetwin.client.schemas import ModelsAnswer
from tastetwin.serving import openapi, swagger
from tastetwin.serving.gateway.http import BASE, ENDPOINTS, VERSION_HEADER, Endpoint
from tastetwin.serving.openapi import Operation, path_parameter
from tastetwin.serving.swagger import Page

_TITLE: Final = "TasteTwin model gateway"
_GROUP: Final = "model"
_ABOUT: Final = """Who shares my taste? Users and places go in and come back under the source's own ids.

Every answer says which run and which model it comes from, and how old the data are. Ask with
`authorization: Bearer KEY`; a key needs the scope that the route names."""
_VERSION: Final = {
    "name": VERSION_HEADER.decode(),
    "in": "header",
    "schema": {"type": "string"},
    "description": "a version by name; without it, by weight",
}


def describe() -> bytes:
    """The document, as JSON."""
    return openapi.describe(_TITLE, _ABOUT, list(_operations()))


def _operations() -> Iterator[Operation]:
    yield Operation(_GROUP, "GET", BASE, "models", "The versions that answer", "Scope: `twins`.", ModelsAnswer)
    yield from map(_asked, ENDPOINTS)


def _asked(endpoint: Endpoint[Any]) -> Operation:
    model = path_parameter("model", {"type": "string"}, "its name") | {"example": "taste"}
    return Operation(
        _GROUP,
        "POST",
        endpoint.template,
        endpoint.verb.replace("/", "_"),
        endpoint.summary,
        f"Scope: `{endpoint.scope}`.",
        endpoint.gives,
        endpoint.takes,
        [model, _VERSION],
    )


def pages() -> Mapping[str, Page]:
    """The description and the page that shows it, by path."""
    return swagger.pages(_TITLE, describe())
