"""What a server answers instead of the inner app: ready bytes, the same for everybody whom they concern."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import orjson

from tastetwin.errors import StoreError, TasteTwinError, UsageError

Headers = list[tuple[bytes, bytes]]
SECURITY: Final[Headers] = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
_TAIL: Final = b'"}'


class Refusal(NamedTuple):
    """An answer without the inner app."""

    status: int
    code: str
    """As in docs/reference/errors.md; the label in metrics and logs."""
    body: bytes
    """All but the request id and what closes the JSON."""
    headers: Headers

    def response(self, request_id: bytes) -> tuple[Headers, bytes]:
        """Headers and body; ``request_id`` has no character that JSON would escape."""
        body = self.body + request_id + _TAIL
        return [*self.headers, (b"content-length", b"%d" % len(body))], body


class Refused(Exception):
    """Ends a request with a refusal, from wherever it is thrown below the door."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.code)
        self.refusal = refusal


def refusal(status: int, problem: Mapping[str, str], headers: Headers | None = None) -> Refusal:
    """An answer of that status about a problem (see ``tastetwin.errors.Problem``); every 503 says to try again."""
    body = orjson.dumps({"error": dict(problem)})[:-1] + b',"request_id":"'
    own: Headers = [(b"content-type", b"application/json")]
    own += [(b"retry-after", b"1")] if status == 503 else []
    return Refusal(status, problem["code"], body, own + (headers or []))


def _fixed(status: int, code: str, place: str, rule: str, fix: str, headers: Headers | None = None) -> Refusal:
    return refusal(status, {"code": code, "place": place, "value": "", "rule": rule, "fix": fix}, headers)


NO_ROUTE: Final = _fixed(404, "HTTP-ROUTE", "method and path", "a route of this server", "see its documentation")
NO_KEY: Final = _fixed(
    401,
    "HTTP-KEY",
    "authorization or x-api-key",
    "a valid API key",
    "send `authorization: Bearer KEY`; tastetwin keys add makes one",
    [(b"www-authenticate", b"Bearer")],
)
BUSY: Final = _fixed(503, "HTTP-BUSY", "server", "fewer requests at once", "try again, later each time")
TOO_LARGE: Final = _fixed(413, "HTTP-BODY", "body", "no more bytes than the server takes", "send less at once")
TOO_LATE: Final = _fixed(504, "HTTP-DEADLINE", "server", "an answer within the server's time", "ask for less, or again")
ENDING: Final = _fixed(503, "HTTP-ENDING", "server", "a server that goes on", "try again", [(b"connection", b"close")])
INTERNAL: Final = _fixed(500, "HTTP-INTERNAL", "server", "no error in our code", "report it with the request's id")


def no_scope(scope: str) -> Refusal:
    """A caller whom we know, and whose key is for other things."""
    rule = f"a key of scope {scope}"
    return _fixed(403, "HTTP-SCOPE", "API key", rule, f"tastetwin keys add NAME --scope {scope} makes one")


def no_method(allowed: Sequence[str]) -> Refusal:
    """A caller who may go there by other methods."""
    those = ", ".join(allowed)
    told = [(b"allow", those.encode())]
    return _fixed(405, "HTTP-METHOD", "method", those, "see the documentation of the path", told)


def too_often(seconds: int) -> Refusal:
    """A caller above their rate, who may come back after so many seconds."""
    fix = "ask at the rate of the key"
    return _fixed(429, "HTTP-RATE", "API key", "no more requests", fix, [(b"retry-after", b"%d" % seconds)])


def of_error(error: TasteTwinError, statuses: Mapping[str, int]) -> Refusal:
    """What a caller is told of an error of ours.

    In full if its code is listed, or if it is about the request. Others are told by their code only, since they speak
    of folders and servers inside; the log has the rest.
    """
    problem = error.problem
    status = statuses.get(problem.code, 400 if isinstance(error, UsageError) else _unlisted(error))
    if problem.code in statuses or isinstance(error, UsageError):
        return refusal(status, vars(problem))
    return _fixed(status, problem.code, "server", "see docs/reference/errors.md", "report it with the request's id")


def _unlisted(error: TasteTwinError) -> int:
    return 503 if isinstance(error, StoreError) else 500
