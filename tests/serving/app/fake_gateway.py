"""A gateway that takes events as the real one does, fails in every way it may, and tells afterwards what it was sent.

The twins that it answers for a user are the numbers of the events known of them, so that a list shows which it knows.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import defaultdict
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
from aiohttp import web

from tastetwin.client.schemas import FavorEvent, FavorsAnswer, FavorsRequest
from tastetwin.errors import StoreError

ORIGIN: Final = {"model": "taste", "version": "2026-06-01.1", "bundle": "2026-06-01-aa", "as_of": "2026-06-01"}
BAD_PLACE: Final = "bad"
UNKNOWN: Final = "newcomer"
"""Users whose id begins so have no list."""
FAILURES: Final = ("503", "504", "429", "500", "garbage", "hang up", "hang up after", "stale")


def problem(code: str, value: str = "") -> dict[str, str]:
    return {"code": code, "place": "", "value": value, "rule": "", "fix": ""}


class FakeGateway:
    """In a thread of this process; outlives whoever is killed."""

    def __init__(self) -> None:
        self.known: dict[str, list[str]] = defaultdict(list)
        """User -> events in the order in which they first came."""
        self.requests = 0
        self.share_of_failures = 0.0
        self.seconds = 0.0
        """That an answer takes, after the events were taken."""
        self.down = threading.Event()
        """While set, every request is refused."""
        self._chance = random.Random(3)
        self._up = threading.Event()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, daemon=True).start()
        assert self._up.wait(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        self._loop.run_forever()

    async def _start(self) -> None:
        app = web.Application(client_max_size=1 << 20)
        app.router.add_post("/v1/models/taste/favors", self._favors)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert runner.addresses
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._up.set()

    async def _favors(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        asked = FavorsRequest.model_validate_json(await request.read())
        failure = self._failure()
        if failure in ("503", "504", "429", "500"):
            return web.json_response({"error": problem(f"HTTP-{failure}")}, status=int(failure))
        if failure == "garbage":
            return web.Response(text="<html>")
        if failure == "hang up":
            return self._hang_up(request)
        items = self._take(asked.events)
        if failure == "hang up after":
            return self._hang_up(request)
        await asyncio.sleep(self.seconds)
        for item in items if failure == "stale" else ():
            if "answer" in item:
                item["answer"] |= {"stale": True, "twins": []}
        return web.json_response({**ORIGIN, "items": items})

    def _failure(self) -> str:
        if self.down.is_set():
            return "503"
        return self._chance.choice(FAILURES) if self._chance.random() < self.share_of_failures else ""

    @staticmethod
    def _hang_up(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    def _take(self, events: Sequence[FavorEvent]) -> list[dict[str, Any]]:
        places: dict[str, list[str]] = {}
        for event in events:
            fields = event.like if event.like is not None else event.review or {}
            places.setdefault(event.user, []).append(str(fields.get("like_contentsid", fields.get("review_place_id"))))
        return [self._item(user, came) for user, came in places.items()]

    def _item(self, user: str, came: list[str]) -> dict[str, Any]:
        if BAD_PLACE in came:
            return {"user": user, "taken": False, "error": problem("FAVOR-REFUSED", "place_bad")}
        known = self.known[user]
        known += [place for place in dict.fromkeys(came) if place not in known]
        if user.startswith(UNKNOWN):
            return {"user": user, "places": len(known), "error": problem("UNKNOWN-USER")}
        twins = [{"rank": at, "user": place} for at, place in enumerate(known, 1)]
        return {"user": user, "places": len(known), "answer": {"source": "fresh", "twins": twins}}


class Adapter:
    """As much of a client as the consumer needs."""

    def __init__(self, url: str, key: str = "") -> None:
        self._url, self._headers = f"{url}/v1/models/taste/favors", {"authorization": f"Bearer {key}"}

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=aiohttp.ClientTimeout(total=10))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def favors(self, events: Sequence[FavorEvent], *, k: int) -> FavorsAnswer:
        body = FavorsRequest(events=list(events), k=k).model_dump_json(exclude_defaults=True)
        headers = {"content-type": "application/json"}
        async with self._session.post(self._url, data=body, headers=headers) as said:
            raw = await said.read()
            if said.status == 200:
                return FavorsAnswer.model_validate_json(raw)
            code = (await said.json())["error"]["code"]
            raise StoreError(code, place=self._url, value=str(said.status), rule="an answer")
