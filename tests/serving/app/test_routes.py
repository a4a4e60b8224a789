"""Every route of the app: it works, it refuses, and it stays quick when the gateway does not."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from tastetwin.client.schemas import MAX_DEPTH, FavorsRequest
from tastetwin.config import AppConfig
from tastetwin.serving.app.http import APP, ENDPOINTS, PEOPLE_OF_PLACE
from tastetwin.serving.app.openapi import describe
from tastetwin.serving.app.schemas import MAX_PAGE
from tastetwin.serving.app.tokens import SCOPE as ME
from tests.serving.app.conftest import Product, product
from tests.serving.gateways import BUSY, Gateway, closed_port, refused

LIKE = {"like": {"like_contentsid": "p1"}}
REQUESTS: dict[tuple[str, str], tuple[str, Any]] = {
    ("POST", "/v1/tokens"): ("/v1/tokens", {"user": "u42"}),
    ("DELETE", "/v1/users/{user}"): ("/v1/users/u7", None),
    ("GET", "/v1/me/twins"): ("/v1/me/twins", None),
    ("GET", "/v1/places/{place}/people"): ("/v1/places/p1/people", None),
    ("GET", "/v1/me/dismissed"): ("/v1/me/dismissed", None),
    ("POST", "/v1/me/dismissed"): ("/v1/me/dismissed", {"user": "u7"}),
    ("DELETE", "/v1/me/dismissed/{user}"): ("/v1/me/dismissed/u7", None),
    ("GET", "/v1/me/follows"): ("/v1/me/follows", None),
    ("POST", "/v1/me/follows"): ("/v1/me/follows", {"user": "u7"}),
    ("DELETE", "/v1/me/follows/{user}"): ("/v1/me/follows/u7", None),
    ("POST", "/v1/me/opt-out"): ("/v1/me/opt-out", None),
    ("POST", "/v1/me/favors"): ("/v1/me/favors", LIKE),
}
ASKS_THE_GATEWAY = [
    ("GET", "/v1/me/twins"),
    ("GET", "/v1/places/{place}/people"),
    ("POST", "/v1/me/opt-out"),
    ("POST", "/v1/me/favors"),
]
ALL = (*ENDPOINTS, PEOPLE_OF_PLACE)
LISTS = ["dismissed", "follows"]
TIMES_AND_SCORES = ("score", "percentile", "chance", "age_", "second", "as_of", "rank", "0.9", "9.5", "99")


# -- my twins ---------------------------------------------------------------------------------------------------------


def test_my_twins_are_people_with_what_we_share(shop: Product) -> None:
    """The product's first page."""
    status, said = shop.ask("GET", "/v1/me/twins")
    assert (status, [each["user"] for each in said["people"]]) == (200, ["u7", "u8", "u9"])
    assert said["people"][0]["evidence"]["sentence"] == "Both favor Noodles."
    assert (said["page"], said["next_page"], said["stale"]) == (1, None, True)


@pytest.mark.parametrize("path", ["/v1/me/twins", "/v1/places/p1/people"])
def test_no_score_and_no_time_reaches_a_user(shop: Product, path: str) -> None:
    """From scores one can work out what others did; the gateway's key may see them, the product's users may not."""
    said = orjson.dumps(shop.ask("GET", path)[1]).decode()
    assert "u8" in said
    assert not [word for word in TIMES_AND_SCORES if word in said]


def test_pages_follow_one_another_and_end(gateway: Gateway, tmp_path: Path) -> None:
    """Nobody is on two pages, nobody is left out, and nobody walks through everybody page by page."""
    everybody = [f"v{at}" for at in range(100)]
    gateway.people["u42"] = everybody
    with product(gateway, tmp_path, page_size=4) as shop:
        page, seen = 1, []
        while page is not None:
            _, said = shop.ask("GET", f"/v1/me/twins?page={page}")
            seen += [each["user"] for each in said["people"]]
            page = said["next_page"]
        assert seen == everybody[: 4 * MAX_PAGE]
        assert shop.ask("GET", f"/v1/me/twins?page={MAX_PAGE + 1}")[0] == 400


@pytest.mark.parametrize(
    "query",
    ["page=0", "page=-1", "page=x", "page=1&page=2", "language=fr", "user=u7", "page=", "&".join("abcdefghijkl")],
)
def test_a_question_that_cannot_be_is_refused(shop: Product, query: str) -> None:
    """``user`` above all: it would look as if one could ask for somebody else."""
    status, said = shop.ask("GET", f"/v1/me/twins?{query}")
    assert (status, said["error"]["code"]) == (400, "BAD-REQUEST")
    assert not shop.gateway.asked


def test_the_language_is_passed_on(shop: Product) -> None:
    """Evidence is made by the gateway."""
    shop.ask("GET", "/v1/me/twins?language=ko")
    assert shop.gateway.asked[0][1]["language"] == "ko"


@pytest.mark.parametrize("kind", LISTS)
def test_whom_i_dismissed_or_follow_is_not_shown(shop: Product, kind: str) -> None:
    """Left out by the gateway, so that pages stay full."""
    assert shop.ask("POST", f"/v1/me/{kind}", body={"user": "u8"}) == (200, {"done": True})
    people = shop.ask("GET", "/v1/me/twins")[1]["people"]
    assert [each["user"] for each in people] == ["u7", "u9"]
    assert shop.gateway.asked[-1][1]["exclude"] == ["u8"]
    assert shop.ask("GET", "/v1/places/p1/people")[1]["people"] == [{"user": "u9"}]
    shop.ask("DELETE", f"/v1/me/{kind}/u8")
    assert len(shop.ask("GET", "/v1/me/twins")[1]["people"]) == 3


def test_whom_i_dismissed_is_not_shown_whatever_the_gateway_says(shop: Product) -> None:
    """Above what one question may exclude, the app itself leaves them out."""
    long = [f"{'x' * 990}{at:03}" for at in range(400)]
    shop.gateway.people["u42"] = [*long, "u9"]
    for each in long:
        shop.ask("POST", "/v1/me/dismissed", body={"user": each})
    shop.ask("GET", "/v1/me/twins")
    assert 0 < len(shop.gateway.asked[-1][1]["exclude"]) < 400
    assert not shop.ask("GET", "/v1/me/twins")[1]["people"]


def test_nobody_knows_why_a_list_is_empty(shop: Product) -> None:
    """Unknown, too new, opted out, or just alone: one body, so nothing can be concluded from it."""
    bodies = {orjson.dumps(shop.ask("GET", "/v1/me/twins", shop.token(user))) for user in ("lonely", "nobody")}
    bodies = {body.replace(b'"stale":true', b'"stale":false') for body in bodies}
    assert bodies == {orjson.dumps((200, {"people": [], "page": 1, "next_page": None, "stale": False}))}


# -- places -----------------------------------------------------------------------------------------------------------


def test_people_of_a_place_come_without_evidence_and_without_me(shop: Product) -> None:
    """Evidence about a place that one only names would say who was there."""
    status, said = shop.ask("GET", "/v1/places/p1/people")
    assert (status, said["people"]) == (200, [{"user": "u8"}, {"user": "u9"}])
    asked = shop.gateway.asked[-1][1]
    assert (
        asked["evidence"] is False and asked["exclude"] == ["u42"] and asked["viewer"] == "u42" and "user" not in asked
    )


def test_people_of_a_place_are_not_told_unless_the_operator_wants_it(gateway: Gateway, tmp_path: Path) -> None:
    """It tells much of who was there, so it is off until somebody has weighed that."""
    with product(gateway, tmp_path, place_people=False) as shop:
        assert shop.ask("GET", "/v1/places/p1/people")[0] == 404
        assert "/v1/places/{place}/people" not in shop.reply("GET", "/openapi.json", "").json()["paths"]
    assert AppConfig().place_people is False


def test_a_place_that_nobody_knows_has_no_people(shop: Product) -> None:
    """The same answer as for a place that nobody's taste fits."""
    assert shop.ask("GET", "/v1/places/nowhere/people") == (200, {"people": [], "stale": False})


# -- what I do --------------------------------------------------------------------------------------------------------


def test_an_event_of_mine_is_passed_on_as_mine(shop: Product) -> None:
    """Whatever user the event itself names."""
    body = {"review": {"review_place_id": "p1", "review_user_id": "u7"}}
    assert shop.ask("POST", "/v1/me/favors", body=body) == (200, {"done": True})
    assert shop.gateway.asked[-1][1]["events"][0]["user"] == "u42"


def test_an_event_that_the_gateway_refuses_is_refused_with_its_reason(shop: Product) -> None:
    """Or the product would think that it was taken."""
    status, said = shop.ask("POST", "/v1/me/favors", body={"like": {"bad": True}})
    assert (status, said["error"]["code"], said["error"]["rule"]) == (400, "FAVOR-REFUSED", "a rule")


def nested(levels: int) -> dict[str, Any]:
    return {"like_contentsid": "p1", "more": orjson.loads("[" * levels + "]" * levels)}


def test_how_deep_an_event_nests_is_said_by_the_first_tier(shop: Product) -> None:
    """What the app takes the gateway has to take: its refusal would be our fault, and a 503."""
    assert shop.ask("POST", "/v1/me/favors", body={"like": nested(MAX_DEPTH - 1)})[0] == 200
    FavorsRequest.model_validate_json(orjson.dumps(shop.gateway.asked[-1][1]))
    for levels in (MAX_DEPTH, 50, 150):
        status, said = shop.ask("POST", "/v1/me/favors", body={"like": nested(levels)})
        assert (status, said["error"]["code"], said["error"]["place"]) == (400, "BAD-REQUEST", "like")


@pytest.mark.parametrize("body", [{}, {"review": {}, "like": {}}, {**LIKE, "user": "u7"}, [], {"like": 3}])
def test_what_is_no_event_of_mine_does_not_get_through(shop: Product, body: Any) -> None:
    """Nobody acts in another's name."""
    assert shop.ask("POST", "/v1/me/favors", body=body)[0] == 400
    assert not shop.gateway.asked


def test_opting_out_is_for_myself(shop: Product) -> None:
    """And the same for whoever is not known."""
    for user in ("u42", "nobody"):
        assert shop.ask("POST", "/v1/me/opt-out", shop.token(user)) == (200, {"done": True})
        assert shop.gateway.asked[-1][:2] == ("/v1/models/taste/opt-out", {"user": user})


# -- my lists ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_has_the_newest_first_and_each_once(shop: Product, kind: str) -> None:
    """And taking off somebody who is not on it is no error: the client may have been told nothing the first time."""
    for user in ("u7", "u8", "u7"):
        shop.ask("POST", f"/v1/me/{kind}", body={"user": user})
    assert shop.ask("GET", f"/v1/me/{kind}") == (200, {"users": ["u8", "u7"]})
    for _ in range(2):
        assert shop.ask("DELETE", f"/v1/me/{kind}/u7") == (200, {"done": True})
    assert shop.ask("GET", f"/v1/me/{kind}") == (200, {"users": ["u8"]})


@pytest.mark.parametrize("kind", LISTS)
def test_i_cannot_be_on_my_own_list(shop: Product, kind: str) -> None:
    """It would mean nothing."""
    assert shop.ask("POST", f"/v1/me/{kind}", body={"user": "u42"})[1]["error"]["code"] == "SAME-USER"


def test_one_follow_too_many_is_refused_and_nothing_lost(shop: Product, monkeypatch: pytest.MonkeyPatch) -> None:
    """409: the user is told, instead of unfollowing somebody behind their back."""
    monkeypatch.setattr("tastetwin.serving.app.state_sqlite.LIMIT", 2)
    answers = [shop.ask("POST", "/v1/me/follows", body={"user": user})[0] for user in ("a", "b", "c")]
    assert answers == [200, 200, 409]
    assert shop.ask("GET", "/v1/me/follows")[1]["users"] == ["b", "a"]


def test_lists_are_nobody_elses(shop: Product) -> None:
    """A user reaches their own things only, and so does the wrong user with the right path."""
    for kind in LISTS:
        shop.ask("POST", f"/v1/me/{kind}", body={"user": "u8"})
        assert shop.ask("GET", f"/v1/me/{kind}", shop.token("u7")) == (200, {"users": []})
        shop.ask("DELETE", f"/v1/me/{kind}/u8", shop.token("u7"))
        assert shop.ask("GET", f"/v1/me/{kind}") == (200, {"users": ["u8"]})


def test_a_forgotten_user_is_on_no_list(shop: Product) -> None:
    """Neither side of it."""
    shop.ask("POST", "/v1/me/follows", body={"user": "u7"})
    shop.ask("POST", "/v1/me/dismissed", shop.token("u7"), {"user": "u42"})
    assert shop.ask("DELETE", "/v1/users/u7", shop.server_key) == (200, {"done": True})
    assert shop.ask("GET", "/v1/me/follows") == (200, {"users": []})
    assert shop.ask("GET", "/v1/me/dismissed", shop.token("u7")) == (200, {"users": []})


# -- tokens and who may do what ---------------------------------------------------------------------------------------


def test_a_token_that_the_server_got_opens_the_users_things(shop: Product) -> None:
    """The whole way of it: server, token, client."""
    status, said = shop.ask("POST", "/v1/tokens", shop.server_key, {"user": "u7", "seconds": 60})
    assert (status, said["seconds"]) == (200, 60)
    assert shop.ask("GET", "/v1/me/twins", said["token"])[1]["people"][0]["user"] == "u42"


@pytest.mark.parametrize("body", [{}, {"user": ""}, {"user": "u", "seconds": 0}, {"user": "u", "seconds": 86_401}])
def test_a_token_for_nobody_or_for_ever_is_refused(shop: Product, body: Any) -> None:
    """A token that leaks must end."""
    assert shop.ask("POST", "/v1/tokens", shop.server_key, body)[0] == 400


def test_the_matrix_of_callers_and_routes(shop: Product) -> None:
    """Deny by default: each route lets in one kind of caller, and no other."""
    assert {(each.method, each.template) for each in ALL} == set(REQUESTS)
    callers = {"": None, "tt_unknown": None, shop.server_key: APP, shop.other_key: "", shop.token(): ME}
    for each in ALL:
        path, body = REQUESTS[each.method, each.template]
        for key, scope in callers.items():
            expected = 401 if scope is None else 200 if scope == each.scope else 403
            assert shop.ask(each.method, path, key, body)[0] == expected, (each.method, path, scope)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE"])
def test_what_is_not_in_the_table_does_not_exist(shop: Product, method: str) -> None:
    """Whoever asks, and by whatever method; whoever may use a path by another one is told so."""
    mine = {"/v1/tokens", "/v1/users/u7"}
    paths = {path for path, _ in REQUESTS.values()} | {"/v1/me", "/v1", "/v1/me/twins/u7", "/v1/users/u7/twins"}
    known = {(each, path) for (each, _), (path, _) in REQUESTS.items()}
    for path in paths:
        if (method, path) not in known:
            assert shop.reply(method, path, shop.server_key).status == (405 if path in mine else 404)


def test_a_user_who_asks_too_often_is_slowed_down_whichever_token_they_show(gateway: Gateway, tmp_path: Path) -> None:
    """And nobody else is."""
    with product(gateway, tmp_path, user_per_second=0.001, user_burst=2) as shop:
        tokens = [shop.token("u42", seconds) for seconds in (60, 61, 62)]
        assert [shop.ask("GET", "/v1/me/follows", token)[0] for token in tokens] == [200, 200, 429]
        assert shop.ask("GET", "/v1/me/follows", shop.token("u7"))[0] == 200


def test_no_user_and_no_place_is_in_the_log_or_the_metrics(shop: Product) -> None:
    """Logs are kept for longer, and read by more people, than anything else."""
    token = shop.token("canary-me")
    for (method, _), (path, body) in REQUESTS.items():
        there = path.replace("u7", "canary-you").replace("p1", "canary-place")
        shop.ask(method, there, token, None if body is None else {"user": "canary-you"})
    told = shop.log.getvalue() + shop.door._telemetry.render()
    assert b"/v1/me/dismissed/{user}" in told
    assert b"canary" not in told and token.encode() not in told


# -- a gateway that is slow, busy, gone or strange ---------------------------------------------------------------------


@pytest.mark.parametrize("route", ASKS_THE_GATEWAY, ids=lambda route: " ".join(route))
def test_a_gateway_that_is_gone(tmp_path: Path, route: tuple[str, str]) -> None:
    """503, to be tried again, under the request's id; and nothing of where the gateway was."""
    gone = Gateway(url=closed_port())
    with product(gone, tmp_path) as shop:
        path, body = REQUESTS[route]
        said = shop.reply(route[0], path, shop.token(), body, x_request_id="r-1")
    assert (said.status, said.headers["retry-after"], said.json()["request_id"]) == (503, "1", "r-1")
    assert said.json()["error"]["code"] == "GATEWAY-UNREACHABLE" and b"127.0.0.1" not in said.body


@pytest.mark.parametrize("route", ASKS_THE_GATEWAY, ids=lambda route: " ".join(route))
def test_a_gateway_that_is_slow(gateway: Gateway, tmp_path: Path, route: tuple[str, str]) -> None:
    """504 within the app's own time, which the gateway was told."""
    gateway.seconds = 20.0
    with product(gateway, tmp_path, deadline_ms=300) as shop:
        began = time.monotonic()
        path, body = REQUESTS[route]
        status, said = shop.ask(route[0], path, body=body)
        assert (status, said["error"]["code"]) == (504, "GATEWAY-TIMEOUT")
        assert time.monotonic() - began < 10.0  # not the gateway's time
    assert int(gateway.asked[0][2]["tastetwin-timeout-ms"]) < 300


@pytest.mark.parametrize("answer", [BUSY, refused(429, "HTTP-RATE", retry_after="5")], ids=["busy", "rate"])
def test_a_gateway_that_is_overloaded(shop: Product, answer: Any) -> None:
    """The user is not at fault and is told to come back."""
    shop.gateway.always = answer
    status, said = shop.ask("GET", "/v1/me/twins")
    assert (status, said["error"]["code"]) == (503, "GATEWAY-UNREACHABLE")


@pytest.mark.parametrize("answer", [refused(401, "HTTP-KEY"), refused(400, "TOO-MANY"), refused(500, "HTTP-INTERNAL")])
def test_a_gateway_that_does_not_understand_us(shop: Product, answer: Any) -> None:
    """Told by the code alone; the log has the rest. Never 401: the user's token is good."""
    shop.gateway.always = answer
    status, said = shop.ask("GET", "/v1/me/twins")
    assert (status, said["error"]["code"], said["error"]["rule"]) == (
        503,
        "GATEWAY-REFUSED",
        "see docs/reference/errors.md",
    )
    assert answer.body["error"]["code"].encode() in shop.log.getvalue()


def test_lists_can_be_read_and_changed_without_a_gateway(tmp_path: Path) -> None:
    """What the app itself remembers does not depend on anybody."""
    with product(Gateway(url=closed_port()), tmp_path) as shop:
        assert shop.ask("POST", "/v1/me/dismissed", body={"user": "u7"})[0] == 200
        assert shop.ask("GET", "/v1/me/dismissed")[1]["users"] == ["u7"]


def test_the_gateway_logs_a_request_under_the_same_id(shop: Product) -> None:
    """One id through all tiers."""
    shop.reply("GET", "/v1/me/twins", shop.token(), x_request_id="r-7")
    assert shop.gateway.asked[0][2]["x-request-id"] == "r-7"


# -- the description --------------------------------------------------------------------------------------------------


def test_the_description_is_there_for_everybody_and_names_every_route(shop: Product) -> None:
    """Product teams start from it."""
    document = shop.reply("GET", "/openapi.json", "").json()
    found = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert found == {(each.method, each.template) for each in ALL}
    names = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(set(names)) == len(names)
    assert b"/openapi.json" in shop.reply("GET", "/docs", "").body


def test_examples_of_the_description_are_accepted(shop: Product) -> None:
    """Whoever presses *try it out* gets an answer."""
    document = orjson.loads(describe(ALL))
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if "requestBody" not in operation:
                continue
            name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
            key = shop.server_key if path == "/v1/tokens" else None
            for example in document["components"]["schemas"][name]["examples"]:
                assert shop.ask(method.upper(), path, key, example)[0] == 200


def test_a_state_that_does_not_answer_keeps_nothing_else_waiting(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Favors and opt-outs need none; the look-up of the gateway's address needs a thread."""
    answers = threading.Event()

    def hangs(*asked: Any) -> list[str]:
        assert answers.wait(60)
        return []

    by_name = replace(gateway, url=gateway.url.replace("127.0.0.1", "localhost"))
    with product(by_name, tmp_path, deadline_ms=60_000) as shop, ThreadPoolExecutor(61) as callers:
        monkeypatch.setattr(shop.state, "of", hangs)
        asked = [callers.submit(shop.ask, "GET", "/v1/me/follows") for _ in range(60)]
        try:
            end = time.monotonic() + 20
            while shop.door.in_flight < 60:
                assert time.monotonic() < end
                time.sleep(0.01)
            assert callers.submit(shop.ask, "POST", "/v1/me/opt-out").result(20) == (200, {"done": True})
        finally:
            answers.set()
        assert {each.result()[0] for each in asked} == {200}
