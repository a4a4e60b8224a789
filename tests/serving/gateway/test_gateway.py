"""What keeps a gateway up to date: the pointer, the opt-outs, the backends; and which version answers whom."""

from __future__ import annotations

import asyncio
import gc
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from tastetwin.analysis.encode import OUTPUT, Encoder, open_encoder
from tastetwin.client.schemas import TwinsRequest
from tastetwin.config import Config, GatewayConfig
from tastetwin.delivery.forget import forget
from tastetwin.delivery.publish import promote_run, roll_back
from tastetwin.errors import UsageError
from tastetwin.generations import read_manifest
from tastetwin.pipeline import run_day
from tastetwin.privacy.opt_out import opt_in, opt_out
from tastetwin.runs import list_runs, published_run
from tastetwin.serving.door import RequestContext
from tastetwin.serving.gateway.encode import Call
from tastetwin.serving.gateway.fresh import MemoryLog
from tastetwin.serving.gateway.gateway import Gateway
from tastetwin.serving.gateway.http import Asked, Shadows
from tastetwin.serving.gateway.outputs import CachedVectors, MemoryOutputs, OutputMetrics
from tastetwin.serving.gateway.pack import Pack
from tastetwin.store import Store
from tests.serving.gateway.world import names
from tests.world import QUICK, TOWN, Journey

pytestmark = pytest.mark.slow

Answer = TypeVar("Answer")
FAST = 0.02
"""Seconds between looks."""


class Models:
    """Every bundle's own encoder, in this process; which are ready is the test's to say."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._encoders: dict[str, Encoder] = {}
        self.there: set[str] | None = None
        """None = all."""
        self.wanted: list[set[str]] = []

    async def want(self, versions: Collection[str]) -> None:
        self.wanted.append(set(versions))

    def ready(self, version: str) -> int:
        return int(self.there is None or version in self.there)

    async def infer(self, version: str, inputs: Any, deadline: float, request_id: str) -> npt.NDArray[np.float32]:
        if version not in self._encoders:
            self._encoders[version] = open_encoder(self._store, read_manifest(self._store, "train", version), 2048)
        found: npt.NDArray[np.float32] = self._encoders[version]._session.run([OUTPUT], dict(inputs))[0]
        return found


@pytest.fixture(scope="module")
def twice(journey: Journey, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with two delivered runs and their packs; the second is published. Read only."""
    folder = tmp_path_factory.mktemp("twice") / "store"
    shutil.copytree(journey.store.root, folder)
    store = Store.open(folder)
    run_day(store, str(journey.town.folder), TOWN.until, QUICK, again=True)
    for run in list_runs(store):
        Pack.of(store, run)
    return store


@pytest.fixture
def store(twice: Store, tmp_path: Path) -> Store:
    shutil.copytree(twice.root, tmp_path / "store")
    return Store.open(tmp_path / "store")


def runs(store: Store) -> tuple[str, str]:
    """The older and the newer."""
    older, newer = (run.run_id for run in list_runs(store))
    return older, newer


@asynccontextmanager
async def opened(store: Store, models: Models, **settings: Any) -> AsyncIterator[Gateway]:
    config = Config(gateway=GatewayConfig(refresh_seconds=FAST, **settings))
    cached = CachedVectors(MemoryOutputs(1 << 20), OutputMetrics(CollectorRegistry()))
    async with Gateway(store, config, models, cached, MemoryLog()) as gateway:  # type: ignore[arg-type]
        yield gateway


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not what():
            await asyncio.sleep(FAST)


def run(test: Awaitable[Answer]) -> Answer:
    async def ask() -> Answer:
        return await test

    return asyncio.run(ask())


def some_user(gateway: Gateway) -> str:
    pack = next(iter(gateway.service.versions.values())).people.pack
    return pack.people.name(next(at for at in range(len(pack)) if len(pack.stored_list(at).people) == pack.manifest.k))


async def twins(gateway: Gateway, user: str) -> list[str]:
    version = gateway.choose(user.encode(), None)
    found = await gateway.service.twins(version, TwinsRequest(user=user, k=20), True, Call(1e12, "test"))
    return names(found["twins"])


def test_the_published_run_answers_and_the_next_one_as_soon_as_it_is_published(store: Store) -> None:
    """A rollback of lists is a rollback of what is served, and needs no restart."""
    older, newer = runs(store)

    async def whole() -> None:
        async with opened(store, Models(store)) as gateway:
            assert set(gateway.service.versions) == {newer}
            roll_back(store)
            await until(lambda: set(gateway.service.versions) == {older})
            assert gateway.choose(b"anybody", None).name == older
            promote_run(store, newer)
            await until(lambda: gateway.choose(b"anybody", None).name == newer)
            with pytest.raises(UsageError, match="UNKNOWN-VERSION"):
                gateway.choose(b"anybody", older)

    run(whole())


def test_a_version_answers_only_once_a_backend_is_ready_for_it(store: Store) -> None:
    """Otherwise each swap would be an outage for whoever has new favors."""
    older, newer = runs(store)
    bundles = {each.run_id: each.generation("train") for each in list_runs(store)}
    assert bundles[older] != bundles[newer]

    async def whole() -> None:
        models = Models(store)
        models.there = {bundles[newer]}
        async with opened(store, models) as gateway:
            roll_back(store)
            await until(lambda: bundles[older] in models.wanted[-1])
            await asyncio.sleep(5 * FAST)
            assert gateway.choose(b"anybody", None).name == newer
            models.there.add(bundles[older])
            await until(lambda: gateway.choose(b"anybody", None).name == older)
            assert models.wanted[-1] == {bundles[older]} or models.wanted[-1] == set(bundles.values())

    run(whole())


def test_ready_once_and_then_for_good(store: Store) -> None:
    """Without any backend there are still the published lists; a gateway that is taken out for it has none."""

    async def whole() -> None:
        models = Models(store)
        models.there = set()
        async with opened(store, models) as gateway:
            assert not gateway.ready
            models.there = None
            assert gateway.ready
            models.there = set()
            assert gateway.ready

    run(whole())


def test_a_canary_gets_its_share_and_everybody_stays_with_a_version(store: Store) -> None:
    """A new run can be tried on a tenth of the users."""
    older, newer = runs(store)

    async def whole() -> None:
        async with opened(store, Models(store), weights={older: 9.0, newer: 1.0}) as gateway:
            users = [f"user {number}".encode() for number in range(2_000)]
            first = [gateway.choose(user, None).name for user in users]
            assert [gateway.choose(user, None).name for user in users] == first
            assert 120 < Counter(first)[newer] < 280
            assert gateway.choose(users[0], older).name == older
            assert gateway.choose(users[0], newer).name == newer
            weights = {each["version"]: each["weight"] for each in gateway.described()["models"]}
            assert weights == {older: 9.0, newer: 1.0}

    run(whole())


def test_a_shadow_is_measured_and_unseen(store: Store) -> None:
    """How a run's lists would differ is known before anybody gets them."""
    older, newer = runs(store)

    async def whole() -> str:
        registry = CollectorRegistry()
        async with opened(store, Models(store), shadow={older: 1.0}) as gateway:
            user = some_user(gateway)
            shadows = Shadows(registry)
            version = gateway.choose(user.encode(), None)
            assert version.name == newer
            request = TwinsRequest(user=user, k=10)
            said = await gateway.service.twins(version, request, False, Call(1e12, "test"))
            context = RequestContext("r", None, "", {}, 1e12, None)
            shadows.see(Asked(gateway, version, request, context), said)
            await until(lambda: not shadows._tasks)
        return generate_latest(registry).decode()

    told = run(whole())
    assert f'tastetwin_gateway_shadow_overlap_count{{version="{older}"}} 1.0' in told


def test_a_shadow_that_is_broken_is_counted_and_quotes_nobody(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Before anybody gets its lists is when that must be seen; it has no weight, and GET /v1/models says so."""
    older, newer = runs(store)

    async def whole() -> str:
        registry = CollectorRegistry()
        async with opened(store, Models(store), shadow={older: 1.0}) as gateway:
            weights = {each["version"]: each["weight"] for each in gateway.described()["models"]}
            assert weights == {older: 0.0, newer: 1.0}

            async def broken(*asked: Any) -> Any:
                raise IndexError("somebody's id")

            monkeypatch.setattr(gateway.service, "twins", broken)
            shadows, request = Shadows(registry), TwinsRequest(user=some_user(gateway), k=10)
            context = RequestContext("r", None, "", {}, 1e12, None)
            shadows.see(Asked(gateway, gateway.choose(b"", None), request, context), {"twins": []})
            await until(lambda: not shadows._tasks)
        return generate_latest(registry).decode()

    assert f'tastetwin_gateway_shadow_failures_total{{version="{older}"}} 1.0' in run(whole())
    gc.collect()  # asyncio tells of an error that nobody looked at when its task goes
    assert "IndexError" in caplog.text and "somebody's id" not in caplog.text


def test_opt_outs_come_and_go_without_a_restart(store: Store) -> None:
    """Within a refresh; and whoever comes back is shown again, as in the next run."""

    async def whole() -> None:
        async with opened(store, Models(store)) as gateway:
            user = some_user(gateway)
            seen = (await twins(gateway, user))[0]
            opt_out(store, [seen])
            async with asyncio.timeout(5):
                while seen in await twins(gateway, user):
                    await asyncio.sleep(FAST)
            opt_in(store, [seen])
            async with asyncio.timeout(5):
                while seen not in await twins(gateway, user):
                    await asyncio.sleep(FAST)

    run(whole())


def test_while_opt_outs_cannot_be_read_nobody_is_shown_and_then_again(store: Store) -> None:
    """Fail closed, and get over it."""

    async def whole() -> None:
        async with opened(store, Models(store), stale_opt_outs_seconds=0.3) as gateway:
            user = some_user(gateway)
            stray = Path(store.path("privacy/opted_out/zz/no-hash"))
            stray.parent.mkdir(parents=True)
            stray.write_text("")
            code = ""
            async with asyncio.timeout(5):
                while not code:
                    await asyncio.sleep(FAST)
                    try:
                        await twins(gateway, user)
                    except Exception as error:
                        code = error.problem.code  # type: ignore[attr-defined]
            assert code == "OPT-OUTS-UNKNOWN"
            shutil.rmtree(stray.parent)
            async with asyncio.timeout(5):
                while True:
                    await asyncio.sleep(FAST)
                    try:
                        assert await twins(gateway, user)
                        break
                    except Exception as error:
                        assert error.problem.code == code  # type: ignore[attr-defined]

    run(whole())


def test_who_is_forgotten_while_it_serves_is_gone_from_every_answer(store: Store) -> None:
    """forget removes the pack under the gateway; what is mapped goes on answering, without them."""

    async def whole() -> None:
        async with opened(store, Models(store)) as gateway:
            user = some_user(gateway)
            seen = (await twins(gateway, user))[0]
            await asyncio.to_thread(forget, store, [seen])
            async with asyncio.timeout(5):
                while seen in await twins(gateway, user):
                    await asyncio.sleep(FAST)
            with pytest.raises(UsageError, match="UNKNOWN-USER"):
                await twins(gateway, seen)
            assert published_run(store).run_id in gateway.service.versions

    run(whole())
