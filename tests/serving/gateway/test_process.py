"""The gateway as its users meet it: a process, keys, HTTP."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from pydantic import BaseModel
from schemathesis import GenerationMode

from tastetwin.analysis.lookup import TwinLists
from tastetwin.client.schemas import ModelsAnswer, Refusal
from tastetwin.config import GatewayConfig
from tastetwin.privacy.opt_out import opt_out
from tastetwin.runs import published_run
from tastetwin.serving.gateway.http import BASE, ENDPOINTS
from tastetwin.serving.keys import SCOPES, add_key
from tastetwin.store import Store
from tests.serving.processes import Server, started

pytestmark = pytest.mark.slow

Json = dict[str, Any]
MODEL = f"{BASE}/taste"


@dataclass
class Site:
    """A running gateway with its backend."""

    url: str
    keys: dict[str, str]
    """Scope -> a key of that scope alone; ``all`` has every scope."""
    store: Store
    gateway: Server
    backend: Server

    def ask(
        self, path: str, body: Any = None, key: str | None = "all", method: str | None = None, **headers: str
    ) -> tuple[int, Json]:
        """Status and body of an answer."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        if key is not None:
            request.add_header("authorization", f"Bearer {self.keys.get(key, key)}")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return int(answer.status), dict(json.loads(answer.read()))
        except urllib.error.HTTPError as error:
            return error.code, dict(json.loads(error.read() or b"{}"))

    def users(self, n: int) -> list[str]:
        """Users with a list."""
        return TwinLists(self.store, published_run(self.store)).some_users(n)


@pytest.fixture(scope="module")
def site(served: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("gateway")
    shutil.copytree(served.root, folder / "store")
    keys = {scope: add_key(folder / "keys.json", scope, [scope], 1e5, 100_000) for scope in SCOPES}
    keys["all"] = add_key(folder / "keys.json", "all", list(SCOPES), 1e5, 100_000)
    with started(["serve", "backend", "--store", str(folder / "store"), "--port", "0"]) as backend:
        environment = {"TASTETWIN_GATEWAY__BACKENDS": json.dumps([backend.url]), "TASTETWIN_SERVE__LOG_SHARE": "1"}
        arguments = ["serve", "gateway", "--store", str(folder / "store"), "--keys", str(folder / "keys.json")]
        with started([*arguments, "--port", "0"], environment) as gateway:
            site = Site(gateway.url, keys, Store.open(folder / "store"), gateway, backend)
            wait_until_ready(site.url)
            yield site


def wait_until_ready(url: str) -> None:
    for _ in range(300):
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise AssertionError("never ready")


def body_of(verb: str, users: list[str]) -> Json:
    """A good request."""
    user, other = users[:2]
    like = {"like_contentsid": "nowhere"}
    bodies: dict[str, Json] = {
        "embed": {"items": [{"likes": [like]}]},
        "twins": {"user": user, "k": 3},
        "twins/batch": {"users": users[:2], "k": 3},
        "explain": {"user": user, "other": other},
        "compare": {"user": user, "other": other},
        "favors": {"events": [{"user": "somebody new", "like": like}]},
        "opt-out": {"user": "nobody in particular"},
    }
    return bodies[verb]


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda each: each.verb)
def test_every_answer_is_what_the_description_says(site: Site, endpoint: Any) -> None:
    """The description is made of the models; the answers are not, for speed: so they are compared."""
    status, answer = site.ask(f"{MODEL}/{endpoint.verb}", body_of(endpoint.verb, site.users(2)))
    assert status == 200, answer
    model: type[BaseModel] = endpoint.gives
    read = model.model_validate(answer)
    assert set(answer) <= set(model.model_fields)
    assert read.model_dump(exclude_unset=True).keys() == answer.keys()


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda each: each.verb)
@pytest.mark.parametrize("caller", [None, "tt_unknown", *SCOPES, "all"])
def test_who_may_ask_what(site: Site, endpoint: Any, caller: str | None) -> None:
    """Deny by default: a key opens the routes of its scopes and no other."""
    status, answer = site.ask(f"{MODEL}/{endpoint.verb}", body_of(endpoint.verb, site.users(2)), key=caller)
    if caller in (None, "tt_unknown"):
        assert (status, answer["error"]["code"]) == (401, "HTTP-KEY")
    elif caller in ("all", endpoint.scope):
        assert status == 200
    else:
        assert (status, answer["error"]["code"]) == (403, "HTTP-SCOPE")


def test_versions_are_told(site: Site) -> None:
    """Whoever pins a version must be able to see which there are."""
    status, answer = site.ask(BASE)
    assert status == 200
    (version,) = ModelsAnswer.model_validate(answer).models
    assert version.version == published_run(site.store).run_id
    user = site.users(1)[0]
    assert site.ask(f"{MODEL}/twins", {"user": user}, **{"tastetwin-version": version.version})[0] == 200
    status, answer = site.ask(f"{MODEL}/twins", {"user": user}, **{"tastetwin-version": "2001-01-01.1"})
    assert (status, answer["error"]["code"]) == (404, "UNKNOWN-VERSION")


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        (f"{MODEL}/twins", {}, "BAD-REQUEST"),
        (f"{MODEL}/twins", {"user": "u", "likes": [{}]}, "BAD-REQUEST"),
        (f"{MODEL}/twins", {"user": "u", "k": 0}, "BAD-REQUEST"),
        (f"{MODEL}/twins", {"user": "u", "k": 10**30}, "BAD-REQUEST"),
        (f"{MODEL}/twins", {"user": "u", "k": 101}, "TOO-MANY"),
        (f"{MODEL}/twins", {"user": "u", "unknown": 1}, "BAD-REQUEST"),
        (f"{MODEL}/twins", {"user": "x" * 1_001}, "BAD-REQUEST"),
        (f"{MODEL}/twins", b"{", "BAD-REQUEST"),
        (f"{MODEL}/twins", b"[" * 10_000, "BAD-REQUEST"),
        (f"{MODEL}/twins", {"likes": [{"like_contentsid": "p"}] * 513}, "TOO-MANY-FAVORS"),
        (f"{MODEL}/twins/batch", {"users": ["u"] * 65}, "TOO-MANY"),
        (f"{MODEL}/embed", {"items": [{}] * 65}, "TOO-MANY"),
        (f"{BASE}/other/twins", {"user": "u"}, "UNKNOWN-MODEL"),
        (f"{MODEL}/nothing", {"user": "u"}, "HTTP-ROUTE"),
    ],
)
def test_bad_requests_die_at_the_door(site: Site, path: str, body: Any, code: str) -> None:
    """Each with what is wrong, and without what was sent."""
    status, answer = site.ask(path, body)
    refusal = Refusal.model_validate(answer)
    assert refusal.error.code == code
    assert status in (400, 404)
    assert refusal.request_id


def test_more_than_the_limit_of_bytes_is_not_read(site: Site) -> None:
    """Memory is bounded by limits, not by callers."""
    status, answer = site.ask(f"{MODEL}/twins", b" " * ((1 << 20) + 1))
    assert (status, answer["error"]["code"]) == (413, "HTTP-BODY")


def test_whoever_sends_slowly_keeps_nobody_out(site: Site) -> None:
    """By as many half-sent requests as the gateway works on at once, on real connections."""
    head = f"POST {MODEL}/twins HTTP/1.1\r\nhost: x\r\nx-api-key: {site.keys['all']}\r\ncontent-length: 9\r\n\r\n{{"
    host, port = site.url.removeprefix("http://").split(":")
    with ExitStack() as stack:
        for _ in range(GatewayConfig().in_flight + 6):
            connection = stack.enter_context(socket.create_connection((host, int(port)), 30))
            connection.sendall(head.encode())
        time.sleep(0.2)
        assert site.ask(f"{MODEL}/twins", body_of("twins", site.users(2)))[0] == 200
        connection.sendall(b"        ")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 400"), "answered once it is whole"


def test_an_opt_out_elsewhere_holds_within_seconds(site: Site) -> None:
    """Promised: 5 s. Written to the store by another process, here read without a restart."""
    user = site.users(1)[0]
    _, before = site.ask(f"{MODEL}/twins", {"user": user, "k": 5})
    gone = before["twins"][0]["user"]
    opt_out(site.store, [gone])
    until = time.monotonic() + 5
    while gone in (names := [twin["user"] for twin in site.ask(f"{MODEL}/twins", {"user": user, "k": 5})[1]["twins"]]):
        assert time.monotonic() < until, names
        time.sleep(0.1)
    assert site.ask(f"{MODEL}/twins", {"user": gone})[0] == 404


def test_nothing_personal_is_logged(site: Site) -> None:
    """Logs are read by more people than the data."""
    canary = "canary-4711"
    event = {"user": canary, "like": {"like_contentsid": "canary-place"}}
    site.ask(f"{MODEL}/favors", {"events": [event]})
    site.ask(f"{MODEL}/twins", {"user": canary, "k": canary})
    site.ask(f"{MODEL}/{canary}?user={canary}", {"user": canary})
    user = site.users(1)[0]
    site.ask(f"{MODEL}/twins", {"user": user, "k": 5})
    time.sleep(0.2)
    said = "\n".join(site.gateway.lines + site.backend.lines)
    assert "twins" in said
    assert "canary" not in said
    assert not re.search(rf'"{user}"', said)
    assert site.keys["all"] not in said


def test_whatever_is_sent_nothing_breaks(site: Site) -> None:
    """Generated requests, good and bad: no 5xx, and every answer is of the form that the description gives."""
    schema = schemathesis.openapi.from_url(f"{site.url}/openapi.json")
    schema.config.generation.update(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
    headers = {"authorization": f"Bearer {site.keys['all']}"}
    asked: list[int] = []

    def ask(operation: Any) -> None:
        @given(case=operation.as_strategy())
        @settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def each(case: Any) -> None:
            if "model" in (case.path_parameters or {}):
                case.path_parameters["model"] = "taste"
            answer = case.call(base_url=site.url, headers=headers)
            asked.append(answer.status_code)
            assert answer.status_code < 500, (case.method, case.path, case.body, answer.text)
            if answer.status_code >= 400:
                Refusal.model_validate_json(answer.content)

        each()

    for operation in schema.get_all_operations():
        ask(operation.ok())  # type: ignore[union-attr]
    assert asked.count(200) > 50
    assert sum(status >= 400 for status in asked) > 50
    assert site.ask(BASE)[0] == 200


def test_what_was_accepted_is_answered_when_the_process_ends(served: Store, tmp_path: Path) -> None:
    """SIGTERM: not ready first, the request in progress is answered, exit 0."""
    key = add_key(tmp_path / "keys.json", "all", list(SCOPES), 1e5, 100_000)
    arguments = ["serve", "gateway", "--store", served.root, "--keys", str(tmp_path / "keys.json"), "--port", "0"]
    with started(arguments, {"TASTETWIN_SERVE__DRAIN_SECONDS": "1"}) as gateway:
        url = gateway.url
        gateway.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{url}/readyz", timeout=5)
        assert caught.value.code == 503
        request = urllib.request.Request(f"{url}{BASE}", headers={"authorization": f"Bearer {key}"})
        with urllib.request.urlopen(request, timeout=5) as answer:
            assert answer.status == 200
        assert gateway.process.wait(30) == 0


def test_without_a_keys_file_it_does_not_start(served: Store, tmp_path: Path) -> None:
    """A server that nobody can be kept out of must not run."""
    arguments = ["serve", "gateway", "--store", served.root, "--keys", str(tmp_path / "none"), "--port", "0"]
    with started(arguments) as gateway:
        assert gateway.process.wait(60) == 4
        gateway.wait_for(re.compile("KEYS-FILE"))
