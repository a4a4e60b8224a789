"""A store whose ids and names are hostile, the page served from it, and a client that sends what it is told to."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import numpy as np
import uvicorn

from tastetwin.config import DeliverConfig
from tastetwin.errors import GateRefused
from tastetwin.page.app import create_app
from tastetwin.pipeline import run_day
from tastetwin.store import Store
from tests.world import QUICK

CANARY: Final = "<script>alert(1)</script>"
HOSTILE: Final = (
    f'">{CANARY}',
    "a/b/c",
    "..",
    ".",
    "한글 사용자 😀",
    "100%2F%00",
    "q?x=1#y&lang=ko",
    "' OR 1=1 --",
    "back\\slash",
    "{{ 7*7 }}",
    "{t} {0}",
    "javascript:alert(1)",
    "l" * 120,
)
FIRST, SECOND = date(2026, 6, 1), date(2026, 6, 2)


def write_events(folder: Path, users: int = 70, places: int = 40) -> None:
    """Two tastes in two areas; every third user has a hostile id, and every place a name that is a script."""
    random = np.random.default_rng(1)
    ids = [f"u{number:03d}" for number in range(users)]
    ids[: 3 * len(HOSTILE) : 3] = HOSTILE
    folder.mkdir()
    reviews: list[dict[str, Any]] = []
    for number, user in enumerate(ids):
        mine = [place for place in range(places) if place % 2 == number % 2]
        for place in random.choice(mine, 12, replace=False):
            when = f"2026-05-{random.integers(1, 29):02d}T12:00:00"
            said = {"review_rating": 4, "review_visited_date": when, "review_place_id": f"p{place}"}
            reviews.append({"user_idno": user, "review_id": f"r{len(reviews)}", **said})
    described = [
        {
            "place_id": f"p{place}",
            "place_category_code_list": [100 + place % 2],
            "place_dongcode": f"11{place % 4}<b>",
            "place_name": f"{CANARY} 'n' \"{place}\" {{{{x}}}}",
            "place_lat": 37.5 + 0.01 * (place % 7),
            "place_lon": 127.0 + 0.01 * (place % 5),
        }
        for place in range(places)
    ]
    for kind, rows in {"reviews": reviews, "places": described}.items():
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"{kind}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_more(folder: Path) -> None:
    """A day on which a few users go somewhere."""
    folder.mkdir()
    rows = [
        {"user_idno": f"u{number:03d}", "review_id": f"n{number}", "review_rating": 5, "review_place_id": "p1"}
        for number in range(40, 60)
    ]
    (folder / "reviews.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")


def make_store(folder: Path) -> Store:
    """A published run, and one that awaits approval."""
    write_events(folder / "events")
    write_more(folder / "more")
    store = Store.create(folder / "store")
    run_day(store, str(folder / "events"), FIRST, QUICK)
    try:
        careful = QUICK.model_copy(update={"deliver": DeliverConfig(max_changed=0)})
        run_day(store, str(folder / "more"), SECOND, careful)
    except GateRefused as waits:
        assert waits.problem.code == "AWAITS-APPROVAL"
    return store


@dataclass(frozen=True)
class Answer:
    """What the server said."""

    status: int
    headers: Mapping[str, str]
    text: str


@dataclass(frozen=True)
class Site:
    """A server and how to ask it."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str, method: str = "GET", body: str = "", **headers: str) -> Answer:
        """One request; header names are given with underscores."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body or None, sent)
        found = connection.getresponse()
        text = found.read().decode()
        connection.close()
        return Answer(found.status, {name.lower(): value for name, value in found.getheaders()}, text)

    def post(self, path: str, fields: Mapping[str, str], **headers: str) -> Answer:
        """A form, from the page's own origin unless told otherwise."""
        told = {"content_type": "application/x-www-form-urlencoded", "origin": self.url, **headers}
        return self.ask(path, "POST", urlencode(fields), **told)

    def drawn(self) -> None:
        """Wait until the map is there."""
        for _ in range(600):
            if 'http-equiv="refresh"' not in self.ask("/map").text:
                return
            threading.Event().wait(0.1)
        raise AssertionError("no map")

    def form(self, action: str) -> dict[str, str]:
        """The fields of a form of /diff."""
        text = self.ask("/diff").text
        found = re.search(rf'action="/diff/{action}">(.*?)</form>', text, re.DOTALL)
        assert found is not None, f"no form to {action}"
        return dict(re.findall(r'name="(\w+)" value="([^"]*)"', found[1]))


@contextmanager
def serving(store: Store, moved: Callable[[], None] = lambda: None) -> Iterator[Site]:
    """The page of a store, on a free port, by the real server."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        server = uvicorn.Server(uvicorn.Config(create_app(store, moved=moved), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            yield Site(bound.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(60)


class Html(HTMLParser):
    """The tags, links and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def links(self) -> list[str]:
        return [link for _, attributes in self.tags if (link := attributes.get("href"))]


def crawl(site: Site, most: int = 400, **headers: str) -> dict[str, Answer]:
    """Every page that links lead to from the start, and what the address alone leads to."""
    waiting, found = ["/"], dict[str, Answer]()
    while waiting and len(found) < most:
        path = waiting.pop(0).split("#")[0]
        if not path or path in found or path.startswith("/static/"):
            continue
        found[path] = site.ask(path, **headers)
        links = Html(found[path].text).links
        # Each page offers itself in the other language, which would double the crawl.
        waiting += [link for link in links if "lang=" not in link]
    return found


def words(value: Any) -> str:
    """All text of a page, as a reader sees it."""
    return " ".join(Html(value).texts)
