"""What the APIs of gateway and app share: how a request is read."""

from __future__ import annotations

from typing import Final, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ValidationError

from tastetwin.errors import UsageError
from tastetwin.serving.exchange import Receive

DOCS: Final = "/docs"
OPENAPI: Final = "/openapi.json"
STATIC: Final = f"{DOCS}/static"
PAGES: Final = (
    DOCS,
    OPENAPI,
    *(f"{STATIC}/{name}" for name in ("swagger-ui.css", "swagger-ui-bundle.js", "start.js")),
)
"""Open to everybody; see ``swagger``."""
MAX_FIELDS: Final = 10
"""Of a query."""

Body = TypeVar("Body", bound=BaseModel)


def read(model: type[Body], raw: bytes) -> Body:
    """A request's body.

    Raises:
        UsageError: BAD-REQUEST with what is wrong first.
    """
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise _bad_request(error, "body") from None


def read_query(model: type[Body], query: bytes) -> Body:
    """What stands behind the question mark; each field once.

    Raises:
        UsageError: BAD-REQUEST with what is wrong first.
    """
    try:
        fields = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_FIELDS)
        if len(dict(fields)) != len(fields):
            raise ValueError("a field twice")
        return model.model_validate_strings(dict(fields))
    except ValidationError as error:
        raise _bad_request(error, "query") from None
    except ValueError:
        raise UsageError("BAD-REQUEST", place="query", rule="each field once", fix=f"see {DOCS}") from None


def _bad_request(error: ValidationError, whole: str) -> UsageError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    # The value is left out: errors are logged by some callers, and it may be somebody's id.
    place = ".".join(map(str, first["loc"])) or whole
    return UsageError("BAD-REQUEST", place=place, rule=first["msg"], fix=f"see {DOCS}")


async def body_of(receive: Receive) -> bytes:
    """A request's body: the door, which has read it, gives it out whole."""
    body: bytes = (await receive())["body"]
    return body
