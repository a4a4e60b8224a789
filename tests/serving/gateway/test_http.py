"""The gateway's API without a network: what may be answered from what was answered before."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any

import orjson
import pytest
from prometheus_client import CollectorRegistry

from tastetwin.config import Config, GatewayConfig
from tastetwin.errors import StoreError
from tastetwin.serving.door import CONTEXT, RequestContext
from tastetwin.serving.gateway import http
from tastetwin.serving.gateway.http import BASE, Api, Shadows
from tastetwin.serving.gateway.outputs import MemoryOutputs, OutputMetrics, open_outputs
from tastetwin.serving.gateway.serve import answers_of
from tests.serving.gateway.world import World


@dataclass
class Held:
    """Stands for ``Gateway``: one version."""

    world: World
    config: Config = Config()  # noqa: RUF009

    @property
    def service(self) -> Any:
        return self.world.service

    def choose(self, sticky: bytes, named: str | None) -> Any:
        return self.world.version

    def shadows(self, key: bytes, answered: Any) -> list[Any]:
        return []


def ask(api: Api, verb: str, body: Any) -> Any:
    route = f"{BASE}/{{model}}/{verb}"
    scope = {"headers": [], CONTEXT: RequestContext("r", None, route, {"model": "taste"}, 1e12, None)}
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": orjson.dumps(body)}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(api(scope, receive, send))
    return orjson.loads(sent[1]["body"])


def api_of(world: World, kept: Any = None) -> Api:
    held: Any = Held(world)
    return Api(held, {}, kept or MemoryOutputs(1 << 20), Shadows(CollectorRegistry()))


def history(world: World) -> dict[str, Any]:
    pack = world.version.people.pack
    favors = pack.favors([int(pack.members[0])])[0]
    places = [*(each.place_id for each in favors.reviews), *(each.place_id for each in favors.likes)]
    return {"likes": [{"like_contentsid": place} for place in places], "k": 5, "evidence": False}


def test_an_answer_that_is_kept_is_no_way_past_the_opt_outs(world: World) -> None:
    """Whoever cannot know who has opted out must show nobody, what was shown a moment ago included."""
    api, body = api_of(world), history(world)
    assert ask(api, "twins", body)["twins"]
    assert ask(api, "twins", body)["twins"]
    world.clock.now += 6.0
    with pytest.raises(StoreError, match="OPT-OUTS-UNKNOWN"):
        ask(api, "twins", body)


@contextmanager
def at(monkeypatch: pytest.MonkeyPatch, moment: datetime) -> Iterator[None]:
    class Frozen(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Frozen:
            return cls.fromtimestamp(moment.timestamp(), tz)

    with monkeypatch.context() as patch:
        patch.setattr(http, "datetime", Frozen)
        yield


def test_the_day_ends_at_midnight_of_utc_wherever_the_server_is(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for the gate, which refuses events of the future: what was refused yesterday may be right today."""
    kept = MemoryOutputs(1 << 20)
    monkeypatch.setenv("TZ", "Asia/Seoul")
    api, body = api_of(world, kept), {"items": [{"likes": history(world)["likes"]}]}
    for moment in ("2026-11-25T23:59+00:00", "2026-11-26T00:01+00:00"):
        with at(monkeypatch, datetime.fromisoformat(moment).astimezone(UTC)):
            ask(api, "embed", body)
    assert len(kept._values) == 2


def test_no_id_of_a_user_is_ever_written_to_the_prediction_output_store(world: World, tmp_path: Path) -> None:
    """A person who is forgotten would be found in it: nobody erases them there."""
    settings = GatewayConfig(outputs=str(tmp_path / "outputs"))
    outputs = open_outputs(settings, OutputMetrics(CollectorRegistry()))
    twins = ask(api_of(world, answers_of(outputs, settings)), "twins", history(world))["twins"]
    outputs.close()
    written = b"".join(path.read_bytes() for path in (tmp_path / "outputs").rglob("*") if path.is_file())
    assert twins
    assert not [twin["user"] for twin in twins if twin["user"].encode() in written]
