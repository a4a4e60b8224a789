"""The server: routes, what may reach them, and what they answer. Server-rendered HTML; every value is escaped.

Who reaches it sees every user, so it listens on this machine unless told otherwise, answers to no other name than its
own (against DNS rebinding), changes something only by a form of its own (origin and a token of this process), and sends
a Content-Security-Policy that allows nothing from elsewhere and no inline script or style.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import parse_qs, unquote

import orjson
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from tastetwin.analysis.pair import Pair
from tastetwin.delivery.diff import ListDiff, diff_path, read_diff
from tastetwin.delivery.publish import promote_run, roll_back
from tastetwin.errors import TasteTwinError, UsageError
from tastetwin.evaluation.measures import measures
from tastetwin.page.card import AREAS, text_of
from tastetwin.page.render import Renderer, history_map, pair_map
from tastetwin.page.view import View
from tastetwin.runs import Run, published, published_run, read_run
from tastetwin.store import Store

PER_PAGE: Final = 20
MAX_BODY: Final = 4096
MAX_FIELDS: Final = 10
HEADERS: Final = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
_STATUS: Final = {
    "UNKNOWN-USER": 404,
    "TOO-FEW-FAVORS": 404,
    "UNKNOWN-RUN": 404,
    "NOT-PUBLISHED": 503,
    "PAGE-REFUSED": 403,
    "PAGE-PARAMETER": 400,
}
_CONFLICT: Final = 409
_UNAVAILABLE: Final = 503
_RECENT: Final = 20
"""Runs looked at for the newest one that is delivered."""

Id = Annotated[str, Query(max_length=1000)]
At = Annotated[int, Query(ge=1, le=50)]
By = Literal["list", "near", "far"]
Action = Literal["approve", "rollback"]


class Page:
    """What the routes share: the store, the view of the run that readers see now, the token of this process."""

    def __init__(self, store: Store, host: str, moved: Callable[[], None]) -> None:
        self.store = store
        self.moved = moved
        self.names = {"localhost", "127.0.0.1", "[::1]", host.lower(), f"[{host.lower()}]"}
        self.token = secrets.token_urlsafe(32)
        self.renderer = Renderer()
        self._lock = threading.Lock()
        self._view: View | None = None

    def view(self) -> View:
        """Of the published run, which may be another one than a moment ago.

        Raises:
            UsageError: NOT-PUBLISHED.
        """
        run = published_run(self.store)
        with self._lock:
            if self._view is None or self._view.run.run_id != run.run_id:
                self._view = View(self.store, run)
                self._view.warm()
            return self._view

    def newest(self) -> Run:
        """The newest delivered run by date and number; the published one where none of the latest is."""
        names = [name.removesuffix(".json").rpartition(".") for name in self.store.names("runs")]
        ids = sorted(((day, int(number)) for day, _, number in names if number.isdigit()), reverse=True)
        for day, number in ids[:_RECENT]:
            run = read_run(self.store, f"{day}.{number}")
            if run.status == "delivered":
                return run
        return published_run(self.store)

    def waiting(self) -> Run | None:
        """The newest delivered run, if readers do not see it."""
        newest = self.newest()
        return None if newest.run_id == published_run(self.store).run_id else newest

    def render(self, request: Request, template: str, status: int = 200, **values: Any) -> Response:
        """A page in the language of the request."""
        return Response(self.renderer.page(request, template, **values), status, media_type="text/html")

    def decide(self, action: str, run_id: str, beside: str) -> None:
        """Publish ``run_id``, or go back from it.

        Raises:
            UsageError: PAGE-STALE when readers see another run than ``beside``, which the page showed; or as
                ``promote_run`` and ``roll_back``.
            StoreError: STORE-BUSY.
        """
        with self.store.writing():
            now = published(self.store)
            if now is None or now.run_id != beside:
                raise UsageError(
                    "PAGE-STALE",
                    place=f"run {run_id}",
                    value=f"readers see {now.run_id if now else 'nothing'} now, not {beside}",
                    rule="what is decided is what the page showed",
                    fix="open the page anew and look again",
                )
            promote_run(self.store, run_id) if action == "approve" else roll_back(self.store)
        self.moved()


def refused(value: str, rule: str) -> UsageError:
    """A request that this server does not take."""
    return UsageError("PAGE-REFUSED", place="request", value=value, rule=rule, fix="open the page by its own address")


def create_app(store: Store, host: str = "127.0.0.1", moved: Callable[[], None] = lambda: None) -> FastAPI:
    """The pages of a store, answering to ``host`` and this machine's own names; ``moved`` hears of each publication.

    Raises:
        UsageError: NOT-PUBLISHED.
    """
    page = Page(store, host, moved)
    page.view()
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"))
    _guard(app, page)
    _explain(app, page)
    _users(app, page)
    _runs(app, page)
    return app


def _guard(app: FastAPI, page: Page) -> None:
    @app.middleware("http")
    async def guard(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        host = request.headers.get("host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if name.lower() not in page.names:
            answer = _told(page, request, refused(host[:200], "the Host header is this server's name"))
        else:
            answer = await go_on(request)
        for header, value in HEADERS.items():
            answer.headers[header] = value
        return answer


def _explain(app: FastAPI, page: Page) -> None:
    """Errors as pages."""

    @app.exception_handler(TasteTwinError)
    def ours(request: Request, error: TasteTwinError) -> Response:
        return _told(page, request, error)

    @app.exception_handler(RequestValidationError)
    def parameter(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        said = UsageError(
            "PAGE-PARAMETER",
            place=str(first["loc"][-1]),
            value=str(first.get("input"))[:200],
            rule=first["msg"],
            fix="follow the links of the page",
        )
        return _told(page, request, said)

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> Response:
        key = {404: "no_such_page", 405: "not_allowed"}.get(error.status_code, "unexpected")
        return page.render(request, "error.html", error.status_code, problem=None, sentence=key)

    @app.exception_handler(Exception)
    def unexpected(request: Request, error: Exception) -> Response:
        logging.getLogger("uvicorn.error").exception("unexpected", exc_info=error)
        answer = page.render(request, "error.html", 500, problem=None, sentence="unexpected")
        answer.headers.update(HEADERS)
        return answer


def _told(page: Page, request: Request, error: TasteTwinError) -> Response:
    code = error.problem.code
    status = _STATUS.get(code, _CONFLICT if isinstance(error, UsageError) else _UNAVAILABLE)
    # One answer for whoever is unknown, new or has opted out: it tells nobody which.
    unknown = code in ("UNKNOWN-USER", "TOO-FEW-FAVORS")
    problem = None if unknown else error.problem
    return page.render(request, "error.html", status, problem=problem, sentence="no_such_user" if unknown else None)


def _users(app: FastAPI, page: Page) -> None:
    @app.get("/")
    def start(request: Request) -> Response:
        view = page.view()
        examples = view.shown(view.examples, len(view.examples))
        return page.render(request, "start.html", view=view, examples=examples, waiting=page.waiting())

    @app.get("/suggest")
    def suggest(q: Annotated[str, Query(max_length=200)] = "") -> Response:
        users = page.view().suggest(q) if q else []
        return Response(orjson.dumps({"users": users}), media_type="application/json")

    @app.get("/users")
    def user_by_query(
        request: Request, user: Annotated[str, Query(alias="id", max_length=1000)], by: By = "list", at: At = 1
    ) -> Response:
        return _user(page, request, user, by, at)

    @app.get("/users/{user:path}")
    def user_by_path(request: Request, by: By = "list", at: At = 1) -> Response:
        (user,) = _ids(request, 1)
        return _user(page, request, user, by, at)

    @app.get("/pairs")
    def pair_by_query(request: Request, a: Id, b: Id) -> Response:
        return _pair(page, request, a, b)

    @app.get("/pairs/{pair:path}")
    def pair_by_path(request: Request) -> Response:
        a, b = _ids(request, 2)
        return _pair(page, request, a, b)

    @app.get("/map")
    def taste(request: Request, user: Annotated[str | None, Query(max_length=1000)] = None) -> Response:
        view = page.view()
        if user is not None:
            view.person(user)
        if view.map is None:
            return page.render(request, "wait.html")
        return page.render(request, "map.html", view=view, atlas=view.map[0], drawing=view.map[1], user=user)


def _ids(request: Request, count: int) -> list[str]:
    """Ids in a path, in which a slash of their own is escaped: routes see it unescaped, so the raw path is read."""
    parts = request.scope["raw_path"].decode("latin-1").split("?")[0].split("/")[2:]
    if len(parts) != count or not all(parts):
        raise HTTPException(404)
    return [unquote(part) for part in parts]


def _user(page: Page, request: Request, user: str, by: By, at: int) -> Response:
    view = page.view()
    person = view.person(user)
    find = {"list": view.lists.twins, "near": view.lists.near, "far": view.lists.far}[by]
    try:
        twins = find(user, at * PER_PAGE + 1, (at - 1) * PER_PAGE)
    except UsageError as error:
        if error.problem.code != "NO-TWINS":
            raise
        twins = []
    visits = view.visits(user)
    return page.render(
        request,
        "user.html",
        view=view,
        person=person,
        by=by,
        at=at,
        twins=twins[:PER_PAGE],
        explain=view.lists.explainer,
        more=len(twins) > PER_PAGE,
        visits=visits,
        where=history_map(visits),
        here=None if view.map is None else view.map[0].neighbourhoods[view.map[0].of(user)[0]],
    )


def _pair(page: Page, request: Request, a: str, b: str) -> Response:
    view = page.view()
    one, other = view.person(a), view.person(b)
    mine, theirs = ({visit.place.place_id: visit for visit in view.visits(user)} for user in (a, b))
    entry = view.lists.entry(a, b)
    return page.render(
        request,
        "pair.html",
        view=view,
        one=one,
        other=other,
        entry=entry,
        evidence=entry.evidence if entry else view.lists.evidence(a, b),
        explain=view.lists.explainer,
        steps=Pair(view.lists, a, b).why_not() if "why" in request.query_params and a != b else [],
        parts=view.lists.parts(a, b),
        shared=[(visit, theirs[place]) for place, visit in mine.items() if place in theirs],
        only_one=[visit for place, visit in mine.items() if place not in theirs],
        only_other=[visit for place, visit in theirs.items() if place not in mine],
        where=pair_map(mine, theirs),
    )


def _runs(app: FastAPI, page: Page) -> None:
    @app.get("/health")
    def health_card(request: Request) -> Response:
        view = page.view()
        health, card = view.evaluation.health, view.verdict.measures or measures(view.evaluation, view.rules)
        return page.render(request, "health.html", view=view, health=health, card=card, areas=AREAS, text_of=text_of)

    @app.get("/diff")
    def diff(request: Request, done: Action | None = None) -> Response:
        pointer = published(page.store)
        waiting = page.waiting()
        shown = published_run(page.store)
        run = waiting or shown
        found: ListDiff | None = None
        if page.store.exists(diff_path(run.run_id)):
            found = read_diff(page.store, run.run_id)
        previous = pointer.previous[-1] if pointer and pointer.previous else None
        return page.render(
            request,
            "diff.html",
            run=run,
            shown=shown,
            waiting=waiting,
            previous=previous,
            found=found,
            done=done,
            token=page.token,
        )

    @app.post("/diff/{action}")
    async def decide(request: Request, action: Action) -> Response:
        form = await _own_form(page, request)
        await run_in_threadpool(page.decide, action, form.get("run", ""), form.get("beside", ""))
        lang = f"&lang={form['lang']}" if form.get("lang") in ("ko", "en") else ""
        return RedirectResponse(f"/diff?done={action}{lang}", 303)


async def _own_form(page: Page, request: Request) -> dict[str, str]:
    """The fields of a form of this server's own page.

    Raises:
        UsageError: PAGE-REFUSED for any other.
    """
    origin = request.headers.get("origin", "")
    if origin != f"http://{request.headers.get('host', '')}":
        raise refused(origin[:200] or "no Origin header", "a form of this page is sent from this page")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise refused(f"more than {MAX_BODY} bytes", "a form of this page")
    try:
        form = {name: values[0] for name, values in parse_qs(body.decode("latin-1"), max_num_fields=MAX_FIELDS).items()}
    except ValueError:
        raise refused(f"more than {MAX_FIELDS} fields", "a form of this page") from None
    if not hmac.compare_digest(form.get("token", "").encode(), page.token.encode()):
        raise refused("wrong token", "a page of this process; it was started anew since, or somebody made the form up")
    return form
