"""The app's API: which routes there are, whom each is for, what it takes and gives.

Two kinds of callers: the product's server, with an API key of scope ``app``, makes tokens; the product's client, with a
token, reaches what is its own user's. Bare ASGI behind the ``Door``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic

from pydantic import BaseModel

from tastetwin.client.schemas import MAX_ID, Favor
from tastetwin.config import AppConfig
from tastetwin.errors import UsageError
from tastetwin.serving.api import DOCS, PAGES, body_of, read, read_query
from tastetwin.serving.app import gateway, routes, schemas
from tastetwin.serving.app.routes import App, Asked, Given, Listed
from tastetwin.serving.app.tokens import SCOPE as ME
from tastetwin.serving.door import RequestContext, Scope, context
from tastetwin.serving.exchange import Receive, Send, respond
from tastetwin.serving.policy import Policy
from tastetwin.serving.swagger import Page, respond_page

STATUSES: Final[Mapping[str, int]] = {**gateway.STATUSES, "FOLLOWS-FULL": 409}
APP: Final = "app"
_DISMISSED: Final = Listed("dismissed")
_FOLLOWS: Final = Listed("follows")


@dataclass(frozen=True)
class Endpoint(Generic[Given]):
    """One method of one path."""

    method: str
    template: str
    scope: str
    summary: str
    answer: Callable[[Asked[Given]], Awaitable[BaseModel]]
    gives: type[BaseModel]
    takes: type[Given] | None = None
    """The body of a POST, the query of a GET; None = nothing is read."""
    more: str = ""
    """To be known besides the summary."""


ENDPOINTS: Final[tuple[Endpoint[Any], ...]] = (
    Endpoint(
        "POST",
        "/v1/tokens",
        APP,
        "A token for one user",
        routes.make_token,
        schemas.Token,
        schemas.TokenRequest,
        "For the product's server, which knows who its client is. Whoever has the token is that user until it ends.",
    ),
    Endpoint(
        "DELETE",
        "/v1/users/{user}",
        APP,
        "Forget a user's lists, and the user on everybody else's",
        routes.forget,
        schemas.Done,
        more="What the model gateway and the store hold of them is not touched; see `tastetwin forget`.",
    ),
    Endpoint(
        "GET",
        "/v1/me/twins",
        ME,
        "Who shares my taste, and what we share",
        routes.my_twins,
        schemas.MyTwins,
        schemas.TwinsQuery,
        "Without whom I dismissed or follow. Empty, and nothing else, for whoever is not known, has too few favors or "
        "has opted out.",
    ),
    Endpoint("GET", "/v1/me/dismissed", ME, "Whom I do not want to see", _DISMISSED.all, schemas.Users),
    Endpoint(
        "POST",
        "/v1/me/dismissed",
        ME,
        "Do not show me somebody",
        _DISMISSED.add,
        schemas.Done,
        schemas.Other,
        "Of more than 1,000, the oldest can be shown again.",
    ),
    Endpoint("DELETE", "/v1/me/dismissed/{user}", ME, "Show me somebody again", _DISMISSED.remove, schemas.Done),
    Endpoint("GET", "/v1/me/follows", ME, "Whom I follow", _FOLLOWS.all, schemas.Users),
    Endpoint(
        "POST",
        "/v1/me/follows",
        ME,
        "I follow somebody",
        _FOLLOWS.add,
        schemas.Done,
        schemas.Other,
        "1,000 at most; 409 for one more. Whom I follow is not among my twins, for I know them.",
    ),
    Endpoint("DELETE", "/v1/me/follows/{user}", ME, "I follow somebody no more", _FOLLOWS.remove, schemas.Done),
    Endpoint("POST", "/v1/me/opt-out", ME, "Show me to nobody", routes.opt_out, schemas.Done),
    Endpoint(
        "POST",
        "/v1/me/favors",
        ME,
        "Something I did: a review or a like",
        routes.add_favor,
        schemas.Done,
        Favor,
        "From now on my twins know it. The same event twice counts once.",
    ),
)


PEOPLE_OF_PLACE: Final = Endpoint(
    "GET",
    "/v1/places/{place}/people",
    ME,
    "People whose taste fits a place",
    routes.people_of_place,
    schemas.PlacePeople,
    more="The twins of somebody who favors this place and nothing else. Some of them were there and some were not, and "
    "the answer does not say which; yet who was there is found in it far more often than by chance.",
)
"""Only where the operator wants it: of the first 20, 23 to 77 % did favor the place, of all people 1 to 8 %; and one's
own favor of the place, all else equal, is told from its absence with an AUC of .71 (a town of 700 users)."""


def endpoints(config: AppConfig) -> tuple[Endpoint[Any], ...]:
    """What this app answers."""
    return (*ENDPOINTS, PEOPLE_OF_PLACE) if config.place_people else ENDPOINTS


def policy(answered: Sequence[Endpoint[Any]]) -> Policy:
    """Which scope each route needs."""
    table: dict[tuple[str, str], str | None] = {("GET", page): None for page in PAGES}
    return Policy({**table, **{(each.method, each.template): each.scope for each in answered}})


class Api:
    """The inner app."""

    def __init__(self, app: App, pages: Mapping[str, Page]) -> None:
        """``pages``: ready answers by path."""
        self._app, self._pages = app, pages
        self._endpoints = {(each.method, each.template): each for each in endpoints(app.config)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        asked = context(scope)
        endpoint = self._endpoints.get((scope["method"], asked.route))
        if endpoint is None:
            return await respond_page(send, self._pages[asked.route])
        said = await self._answer(endpoint, scope, receive, asked)
        await respond(send, said.model_dump_json().encode())

    async def _answer(
        self, endpoint: Endpoint[Any], scope: Scope, receive: Receive, asked: RequestContext
    ) -> BaseModel:
        _check_ids(asked.params)
        given = None
        if endpoint.takes is not None and endpoint.method == "POST":
            given = read(endpoint.takes, await body_of(receive))
        elif endpoint.takes is not None:
            given = read_query(endpoint.takes, scope["query_string"])
        return await endpoint.answer(Asked(self._app, asked, given))


def _check_ids(params: Mapping[str, str]) -> None:
    """Of a path: as long as one in a body may be."""
    for name, value in params.items():
        if len(value) > MAX_ID:
            rule = f"an id of at most {MAX_ID} characters"
            raise UsageError("BAD-REQUEST", place=name, rule=rule, fix=f"see {DOCS}")
