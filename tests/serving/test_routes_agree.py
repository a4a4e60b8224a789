"""What a server answers, what its policy lets in and what its description says are the same routes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tastetwin.config import AppConfig
from tastetwin.serving.api import PAGES
from tastetwin.serving.app import http as app
from tastetwin.serving.app import openapi as app_openapi
from tastetwin.serving.gateway import http as gateway
from tastetwin.serving.gateway import openapi as gateway_openapi
from tastetwin.serving.policy import LIVE, READY, Policy
from tests.serving.backend.process import backend
from tests.world import Journey

Routes = set[tuple[str, str]]
OPEN: Routes = {("GET", each) for each in (*PAGES, LIVE, READY)}


def described(document: bytes) -> Routes:
    paths = json.loads(document)["paths"]
    return {(method.upper(), path) for path, item in paths.items() for method in item}


def of_gateway() -> tuple[Routes, Policy, bytes]:
    answered = {("POST", each.template) for each in gateway.ENDPOINTS} | {("GET", gateway.BASE)}
    return answered, gateway.policy(), gateway_openapi.describe()


def of_app() -> tuple[Routes, Policy, bytes]:
    answered = app.endpoints(AppConfig(place_people=True))
    return {(each.method, each.template) for each in answered}, app.policy(answered), app_openapi.describe(answered)


@pytest.mark.parametrize("routes", [of_gateway, of_app])
def test_code_policy_and_description_name_the_same_routes(routes: Callable[[], tuple[Routes, Policy, bytes]]) -> None:
    """A route that only one of them knows is a hole, or nobody's."""
    answered, policy, document = routes()
    assert {(each.method, each.template) for each in policy.routes} == answered | OPEN
    assert described(document) == answered


@pytest.mark.parametrize("routes", [of_gateway, of_app])
def test_only_what_is_meant_for_everybody_needs_no_scope(routes: Callable[[], tuple[Routes, Policy, bytes]]) -> None:
    """Deny by default."""
    _, policy, document = routes()
    assert {(each.method, each.template) for each in policy.routes if each.scope is None} == OPEN
    needed = {(each.method, each.template): each.scope for each in policy.routes}
    for path, item in json.loads(document)["paths"].items():
        for method, operation in item.items():
            assert f"Scope: `{needed[method.upper(), path]}`." in operation["description"]


METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"]


def test_every_method_and_path_of_a_backend(journey: Journey) -> None:
    """Its two listeners share nothing: versions are changed by the one that is off by default, and by no other."""
    version = journey.first.generation("train")
    model = "/v2/models/taste"
    told = ["/v2", "/v2/health/live", "/v2/health/ready", "/metrics", model, f"{model}/ready"]
    told += [f"{model}/versions/{version}", f"{model}/versions/{version}/ready"]
    infer = [f"{model}/infer", f"{model}/versions/{version}/infer"]
    admin = ["/v2/repository/index", "/v2/repository/models/taste/load", "/v2/repository/models/taste/unload"]
    nowhere = ["/", "//", "/v2/", "/v2/models", f"{model}/infer/", "/v2/models/../repository/index", "/docs", "/V2"]
    with backend(journey.store, "--admin-port", "0") as process:

        def statuses(where: str, paths: list[str]) -> dict[tuple[str, str], int]:
            return {(each, path): process.ask(each, path, where=where)[0] for each in METHODS for path in paths}

        public = statuses("http", [*told, *infer, *admin, *nowhere])
        private = statuses("admin", [*told, *infer, *admin, *nowhere])
    for (method, path), status in public.items():
        expected: Any = {404, 405}
        if path in infer:
            expected = {400} if method == "POST" else {405}
        elif path in told:
            expected = {200} if method in ("GET", "HEAD") else {200, 405}
        assert status in expected, (method, path, status)
    for (method, path), status in private.items():
        expected = {405} if method != "POST" else {404}
        if path in admin and method == "POST":
            expected = {200} if path.endswith("index") else {400}
        assert status in expected, (method, path, status)
