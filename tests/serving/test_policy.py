"""Which route a path is of, beside a slow twin that tries every template as a regular expression."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.routing import compile_path

from tastetwin.serving.policy import Policy

SEGMENTS = st.sampled_from(["a", "b", "{x}", "{y}"])
TEMPLATES = st.lists(SEGMENTS, min_size=1, max_size=4, unique_by=lambda s: s if s[0] == "{" else object()).map(
    lambda segments: "/" + "/".join(segments)
)
ROUTES = st.lists(st.tuples(st.sampled_from(["GET", "POST"]), TEMPLATES), max_size=8)
PATHS = st.lists(st.sampled_from(["a", "b", "c", "", "{x}", "a b", "a\n"]), max_size=6).map(lambda s: "/" + "/".join(s))


def expression(template: str) -> str:
    return re.sub(r"\\{([a-z]+)\\}", r"(?P<\1>[^/]+)", re.escape(template))


def slow(routes: list[tuple[str, str]], method: str, path: str) -> tuple[str, dict[str, str]] | None:
    """Of all templates that match, the one that is literal where the others are not, from the left."""
    matches = [
        ([segment.startswith("{") for segment in template.split("/")], template, found.groupdict())
        for each, template in routes
        if each == method and (found := re.fullmatch(expression(template), path))
    ]
    matches.sort(key=lambda match: match[0])
    return matches[0][1:] if matches else None


def shape(template: str) -> str:
    return re.sub(r"\{[a-z]+\}", "{}", template)


@given(ROUTES, st.sampled_from(["GET", "POST", "PUT"]), PATHS)
def test_the_walk_finds_what_regular_expressions_find(routes: list[tuple[str, str]], method: str, path: str) -> None:
    """The route decides who may ask: a wrong one lets somebody in."""
    routes = list({(each, shape(template)): (each, template) for each, template in routes}.values())
    found = Policy(dict.fromkeys(routes, "twins")).match(method, path)
    assert (found and (found[0].template, found[1])) == slow(routes, method, path)


def test_a_literal_segment_goes_before_one_in_braces_in_whatever_order_they_were_given() -> None:
    """Else the route of a request, and its name in metrics, would hang on the order of a table."""
    policy = Policy({("GET", "/{x}/{y}"): None, ("GET", "/a/{y}"): None, ("GET", "/a/b"): None})
    for path, template in (("/a/b", "/a/b"), ("/a/c", "/a/{y}"), ("/c/b", "/{x}/{y}")):
        found = policy.match("GET", path)
        assert found is not None and found[0].template == template
    assert [route.template for route in policy.at("/a/c")] == ["/a/{y}"] and policy.at("/a") == []


@given(TEMPLATES, PATHS)
def test_starlette_takes_the_same_path_for_the_same_route(template: str, path: str) -> None:
    """What the door lets through is routed once more inside; there it must be the same route."""
    expected = compile_path(template)[0].match(path)
    found = Policy({("GET", template): "twins"}).match("GET", path)
    # Starlette lets a line feed at the end pass for the end; the door does not, and then it is a 404.
    if not path.endswith("\n"):
        assert (found and found[1]) == (expected and expected.groupdict())
    elif found is not None:
        assert expected is not None


@pytest.mark.parametrize("other", ["/users/{id}", "/{what}/me", "/{a}/{b}"])
def test_paths_of_two_routes_need_one_scope(other: str) -> None:
    """Else the order of routes inside the app would decide who may do what."""
    routes = [(("GET", "/users/me"), "app"), (("GET", other), "twins")]
    for order in (routes, routes[::-1]):
        with pytest.raises(ValueError, match="overlap"):
            Policy(dict(order))
    Policy({("GET", "/users/me"): "app", ("GET", other): "app"})
    Policy({("GET", "/users/me"): "app", ("POST", other): "twins"})


@pytest.mark.parametrize("template", ["", "users", "/users/", "/{}", "/{A B}", "/users/{id}.json", "/a?b", "/a b"])
def test_what_is_no_template_is_refused(template: str) -> None:
    """A route that can never match is a route that somebody misses."""
    with pytest.raises(ValueError, match="template"):
        Policy({("GET", template): None})


def test_a_path_of_many_slashes_is_no_work() -> None:
    """The longest path that comes through is 64 KiB."""
    assert Policy({("GET", "/{a}/{b}"): "x"}).match("GET", "/" * 65_536) is None
