"""The three tiers together, each a process, on the store of a finished run."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tastetwin.client import Client, GatewayError, schemas
from tastetwin.serving.keys import add_key
from tests.serving.gateways import request
from tests.serving.processes import Server, started
from tests.world import Journey

pytestmark = pytest.mark.slow


@dataclass
class Tiers:
    """Addresses and keys."""

    gateway: Server
    app: Server
    gateway_key: str
    app_key: str

    def ask(self, method: str, path: str, key: str, body: object = None) -> tuple[int, dict[str, object]]:
        sent = None if body is None else json.dumps(body).encode()
        said = request(self.app.url, method, path, {"authorization": f"Bearer {key}"}, sent)
        return said.status, said.json()

    def token(self, user: str) -> str:
        return str(self.ask("POST", "/v1/tokens", self.app_key, {"user": user})[1]["token"])


@pytest.fixture(scope="module")
def tiers(journey: Journey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiers]:
    folder = tmp_path_factory.mktemp("tiers")
    store = str(folder / "store")
    shutil.copytree(journey.store.root, store)
    keys = folder / "keys.json"
    key = add_key(keys, "app", ["twins", "score", "favors", "opt-out", "embed"], 1e5, 100_000)
    app_key = add_key(keys, "shop", ["app"], 1e5, 100_000)
    (folder / "gateway.key").write_text(key)
    with ExitStack() as stack:
        backend = stack.enter_context(started(["serve", "backend", "--store", store, "--port", "0"]))
        told = {"TASTETWIN_GATEWAY__BACKENDS": json.dumps([backend.url])}
        gateway = stack.enter_context(
            started(["serve", "gateway", "--store", store, "--keys", str(keys), "--port", "0"], told)
        )
        files = ["--keys", str(keys), "--secret", str(folder / "secret"), "--gateway-key", str(folder / "gateway.key")]
        told = {"TASTETWIN_APP__GATEWAY": gateway.url, "TASTETWIN_APP__STATE": str(folder / "state")}
        told |= {"TASTETWIN_APP__PLACE_PEOPLE": "true"}
        app = stack.enter_context(started(["serve", "app", *files, "--port", "0"], told))
        yield Tiers(gateway, app, key, app_key)


def served(journey: Journey) -> list[str]:
    users: list[str] = journey.tt.twins()["user_idno"].unique().to_pylist()
    return users


def places_of(tiers: Tiers, user: str) -> list[str]:
    """Some that the user favors."""
    people = tiers.ask("GET", "/v1/me/twins", tiers.token(user))[1]["people"]
    assert isinstance(people, list)
    found = [place for each in people for place in each["evidence"]["places"]]
    assert found, "twins of the town share places"
    return list(dict.fromkeys(found))[:8]


def test_my_twins_are_those_of_the_published_run(tiers: Tiers, journey: Journey) -> None:
    """From the daily job to the product's screen, nothing is changed or lost."""
    me = served(journey)[0]
    expected = journey.tt.similar(me, 20)
    status, said = tiers.ask("GET", "/v1/me/twins", tiers.token(me))
    people = said["people"]
    assert status == 200 and isinstance(people, list)
    assert [each["user"] for each in people] == expected["twin_idno"].to_pylist()
    assert people[0]["evidence"]["sentence"] == expected["evidence"][0].as_py()


def test_what_i_did_a_moment_ago_counts(tiers: Tiers, journey: Journey) -> None:
    """Read your writes, through all three."""
    me, other = served(journey)[1:3]
    before = tiers.ask("GET", "/v1/me/twins", tiers.token(me))[1]
    for place in places_of(tiers, other):
        assert tiers.ask("POST", "/v1/me/favors", tiers.token(me), {"like": {"like_contentsid": place}})[0] == 200
    after = tiers.ask("GET", "/v1/me/twins", tiers.token(me))[1]
    assert after["stale"] is False and after["people"] != before["people"]


def test_the_client_asks_every_question_of_the_real_gateway(tiers: Tiers, journey: Journey) -> None:
    """The fake one of other tests may be wrong."""
    first, second = served(journey)[3:5]
    places = places_of(tiers, first)

    async def ask() -> None:
        async with Client(tiers.gateway.url, tiers.gateway_key) as client:
            assert len((await client.twins(first, k=3)).twins) == 3
            history = [{"like_contentsid": each} for each in places]
            found = await client.twins(likes=history)
            assert found.source == "request"
            closest = found.twins[0].user
            seen = await client.twins(likes=history, viewer=closest)
            assert [each.user for each in seen.twins[:-1]] == [each.user for each in found.twins[1:]]
            assert [each.error for each in (await client.twins_batch([first, second], k=2)).items] == [None, None]
            assert (await client.explain(first, second)).evidence.sentence
            assert (await client.compare(first, second)).score is not None
            assert (await client.embed([schemas.History(likes=history)])).items[0].vector is not None
            like = schemas.FavorEvent(user=first, like=history[0])
            assert (await client.favors([like])).items[0].error is None
            assert (await client.models()).models[0].weight == 1.0
            with pytest.raises(GatewayError) as caught:
                await client.twins("nobody")
            assert (caught.value.problem.code, caught.value.status) == ("UNKNOWN-USER", 404)

    asyncio.run(ask())


def test_whoever_opts_out_is_shown_to_nobody_and_looks_like_nobody(tiers: Tiers, journey: Journey) -> None:
    """At once; and their own list is, byte for byte, that of somebody who was never here."""
    me, gone = journey.tt.twins()["user_idno"][0].as_py(), journey.tt.twins()["twin_idno"][0].as_py()
    place = places_of(tiers, gone)[0]
    assert tiers.ask("POST", "/v1/me/opt-out", tiers.token(gone)) == (200, {"done": True})
    for path in ("/v1/me/twins", f"/v1/places/{place}/people"):
        people = tiers.ask("GET", path, tiers.token(me))[1]["people"]
        assert isinstance(people, list) and people
        assert gone not in [each["user"] for each in people]
    for method, path, body in (
        ("GET", "/v1/me/twins", None),
        ("POST", "/v1/me/opt-out", None),
        ("POST", "/v1/me/favors", {"like": {"like_contentsid": place}}),
    ):
        assert tiers.ask(method, path, tiers.token(gone), body) == tiers.ask(method, path, tiers.token("never"), body)


def test_the_app_ends_as_it_should(tiers: Tiers) -> None:
    """0 for the orchestrator, and no secret in what it said; the last test of these."""
    assert tiers.app.end() == 0
    said = "".join(tiers.app.lines)
    assert tiers.gateway_key not in said and tiers.app_key not in said
