"""The page on which an API can be read and tried: Swagger UI, from this server alone, so that no network is needed.

The files are those of swagger-ui-dist, from the package ``fastapi-swagger``; no line of its Python is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

from tastetwin.errors import MissingExtra
from tastetwin.serving.api import DOCS, OPENAPI, STATIC
from tastetwin.serving.exchange import JSON, Send, respond

_PACKAGE: Final = "fastapi_swagger"
_CSS: Final = b"text/css; charset=utf-8"
_SCRIPT: Final = b"text/javascript; charset=utf-8"
_HTML: Final = b"text/html; charset=utf-8"
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Nothing comes from elsewhere and nothing goes there: the page is given an API key to try requests with."""
_HEADERS: Final = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{static}/swagger-ui.css">
</head>
<body>
<div id="api"></div>
<noscript>Without JavaScript: <a href="{openapi}">the description itself</a>.</noscript>
<script src="{static}/swagger-ui-bundle.js"></script>
<script src="{static}/start.js"></script>
</body>
</html>
"""
_START: Final = f"""SwaggerUIBundle({{
  url: "{OPENAPI}",
  dom_id: "#api",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  validatorUrl: null,
}});
"""


class Page(NamedTuple):
    """A ready answer."""

    kind: bytes
    """Media type."""
    body: bytes


def pages(title: str, document: bytes) -> Mapping[str, Page]:
    """All of ``api.PAGES`` by path.

    Args:
        title: of the page, text.
        document: the description, JSON.

    Raises:
        MissingExtra: Swagger UI is not installed (``tastetwin[serve]``).
    """
    files = _files()
    page = _PAGE.format(title=escape(title), static=STATIC, openapi=OPENAPI)
    return {
        DOCS: Page(_HTML, page.encode()),
        OPENAPI: Page(JSON, document),
        f"{STATIC}/swagger-ui.css": Page(_CSS, (files / "swagger-ui.css").read_bytes()),
        f"{STATIC}/swagger-ui-bundle.js": Page(_SCRIPT, (files / "swagger-ui-bundle.js").read_bytes()),
        f"{STATIC}/start.js": Page(_SCRIPT, _START.encode()),
    }


async def respond_page(send: Send, page: Page) -> None:
    """One of them."""
    await respond(send, page.body, page.kind, _HEADERS)


def _files() -> Path:
    found = find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise MissingExtra.of(_PACKAGE, "serve")
    return Path(next(iter(found.submodule_search_locations))) / "resources"
