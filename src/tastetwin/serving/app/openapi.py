"""The description of the app's API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import TypeAdapter

from tastetwin.client.schemas import UserId
from tastetwin.serving import openapi, swagger
from tastetwin.serving.app.http import APP, Endpoint
from tastetwin.serving.app.tokens import SCOPE as ME
from tastetwin.serving.openapi import REFUSALS, Operation, path_parameter, query_parameters
from tastetwin.serving.swagger import Page

_TITLE: Final = "TasteTwin app"
_ABOUT: Final = """My twins, for the product's client.

The product's server has an API key of scope `app` and asks for a token for the user it serves; the client sends it as
`authorization: Bearer TOKEN` and reaches what is that user's, and nothing else.

An id with a slash cannot stand in a path."""
_REFUSALS: Final = {
    **REFUSALS,
    "401": "No valid key or token; its time may be over.",
    "403": "A key where a token is needed, or the other way round.",
    "404": "There is no such route.",
    "409": "There is no room for one more.",
    "503": "Overloaded, or the model gateway or the app's state cannot be reached.",
}
_GROUPS: Final = {APP: "the product's server, with its key", ME: "a user, with a token"}
_NAMED: Final = {"user": "the source's id of another user", "place": "the source's id of a place"}


def describe(answered: Sequence[Endpoint[Any]]) -> bytes:
    """The document, as JSON."""
    return openapi.describe(_TITLE, _ABOUT, [_operation(each) for each in answered], _REFUSALS)


def _operation(endpoint: Endpoint[Any]) -> Operation:
    takes, in_body = endpoint.takes, endpoint.method == "POST"
    schema = TypeAdapter(UserId).json_schema() | {"pattern": "^[^/]+$"}
    parameters = [
        path_parameter(name, schema, said) for name, said in _NAMED.items() if f"{{{name}}}" in endpoint.template
    ]
    if takes is not None and not in_body:
        parameters += query_parameters(takes)
    return Operation(
        _GROUPS[endpoint.scope],
        endpoint.method,
        endpoint.template,
        endpoint.answer.__name__ if "Listed" not in endpoint.answer.__qualname__ else _listed(endpoint),
        endpoint.summary,
        f"{endpoint.more} Scope: `{endpoint.scope}`.".strip(),
        endpoint.gives,
        takes if in_body else None,
        parameters,
    )


def _listed(endpoint: Endpoint[Any]) -> str:
    return f"{endpoint.answer.__name__}_{endpoint.template.split('/')[3]}"


def pages(answered: Sequence[Endpoint[Any]]) -> Mapping[str, Page]:
    """The description and the page that shows it, by path."""
    return swagger.pages(_TITLE, describe(answered))
