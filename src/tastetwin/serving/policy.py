"""Which routes there are, and which scope each needs. What is not in the table does not exist for anybody."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from itertools import combinations
from typing import Final, NamedTuple

LIVE: Final = "/healthz"
READY: Final = "/readyz"
REMEMBERED: Final = 256
"""Paths whose route is known without a walk: most requests come on few. A path has 64 KiB at most."""
_TEMPLATE: Final = re.compile(r"/|(/([A-Za-z0-9._~:-]+|\{[a-z_]+\}))+")


class Route(NamedTuple):
    """One line of the table."""

    method: str
    template: str
    """Such as ``/v1/models/{model}/twins``: the only name of a path in metrics, logs and traces."""
    scope: str | None
    """That a caller's key must have; None = open to everybody."""
    names: tuple[tuple[int, str], ...]
    """Segment and name of each part in braces."""


class Policy:
    """Scope needed per (method, route template); everything else is denied.

    Health and readiness are always there and open. A path is matched as Starlette sees it: percent-decoded, so that
    both speak of the same route; a slash that came escaped is a slash. A literal segment goes before one in braces.

    Raises:
        ValueError: a template that is none, or two that one path could match but that need different scopes: which
            of them the inner app takes would then decide who may do what.
    """

    def __init__(self, routes: Mapping[tuple[str, str], str | None]) -> None:
        own = (_route("GET", LIVE, None), _route("GET", READY, None))
        given = tuple(_route(method, template, scope) for (method, template), scope in routes.items())
        _refuse_conflicts(given)  # what the door itself answers cannot be mistaken inside
        self.routes = (*given, *own)
        split = [(_segments(route.template), route) for route in self.routes]
        self._ordered = sorted(split, key=lambda each: [segment.startswith("{") for segment in each[0]])
        self._deepest = max(len(segments) for segments, _ in split)

        self.match: Callable[[str, str], tuple[Route, Mapping[str, str]] | None] = lru_cache(REMEMBERED)(self._match)
        """The route of a request and the values of its named segments; None = there is no such route."""

    def at(self, path: str) -> list[Route]:
        """The routes of a path, whatever the method."""
        found = (self._match(method, path) for method in {route.method for route in self.routes})
        return [each[0] for each in found if each is not None]

    def _match(self, method: str, path: str) -> tuple[Route, Mapping[str, str]] | None:
        given = path.split("/", self._deepest)  # a path of thousands of slashes costs no more than a long one
        for segments, route in self._ordered:
            if route.method == method and _fits(segments, given):
                return route, {name: given[at] for at, name in route.names}
        return None


def _segments(template: str) -> list[str]:
    return template.split("/")


def _fits(template: list[str], path: list[str]) -> bool:
    pairs = zip(template, path, strict=False)
    return len(template) == len(path) and all(a == b or (a.startswith("{") and b) for a, b in pairs)


def _route(method: str, template: str, scope: str | None) -> Route:
    if not _TEMPLATE.fullmatch(template) or not method.isupper():
        raise ValueError(f"{method} {template}: no METHOD and /route/{{template}}")
    named = ((at, segment[1:-1]) for at, segment in enumerate(_segments(template)) if segment.startswith("{"))
    return Route(method, template, scope, tuple(named))


def _refuse_conflicts(routes: Iterable[Route]) -> None:
    for one, other in combinations(routes, 2):
        if one.method == other.method and one.scope != other.scope and _overlap(one.template, other.template):
            raise ValueError(f"{one.method} {one.template} and {other.template} overlap but need different scopes")


def _overlap(one: str, other: str) -> bool:
    pairs = list(zip(_segments(one), _segments(other), strict=False))
    same_length = one.count("/") == other.count("/")
    return same_length and all(a == b or a.startswith("{") or b.startswith("{") for a, b in pairs)
