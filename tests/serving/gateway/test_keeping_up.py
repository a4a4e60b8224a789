"""A gateway looks after what it answers from: whatever takes long or goes wrong, who opts out is hidden in time."""

from __future__ import annotations

import asyncio
import gc
import shutil
import threading
import weakref
from collections.abc import Awaitable, Callable, Collection
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tastetwin.client.schemas import FavorEvent
from tastetwin.config import Config, GatewayConfig
from tastetwin.delivery.forget import forget
from tastetwin.errors import StoreError
from tastetwin.privacy import opt_out as privacy
from tastetwin.privacy.opt_out import opt_out
from tastetwin.runs import publish, published_run, write_run
from tastetwin.serving.gateway import gateway as gateways
from tastetwin.serving.gateway import versions
from tastetwin.serving.gateway.encode import Call
from tastetwin.serving.gateway.fresh import MemoryLog
from tastetwin.serving.gateway.gateway import Gateway
from tastetwin.serving.gateway.outputs import CachedVectors, MemoryOutputs, OutputMetrics
from tastetwin.serving.gateway.versions import DenySet
from tastetwin.store import Store
from tests.serving.gateway.world import World, at_home

CALL = Call(1e12, "test")


class Pool:
    """Backends that have every version ready."""

    def __init__(self, world: World) -> None:
        self.infer = world.models.infer
        self.out = False

    async def want(self, versions: Collection[str]) -> None:
        """Nothing to look for."""

    def ready(self, version: str) -> int:
        return int(not self.out)


def kept_up(world: World, body: Callable[[Gateway], Awaitable[None]], **settings: Any) -> None:
    """What happens to a gateway that looks all the time."""
    config = Config(gateway=GatewayConfig(refresh_seconds=0.01, **settings))
    cached = CachedVectors(MemoryOutputs(1 << 20), OutputMetrics(CollectorRegistry()))

    async def whole() -> None:
        async with asyncio.timeout(60), AsyncExitStack() as stack:
            pool: Any = Pool(world)
            await body(await stack.enter_async_context(Gateway(world.store, config, pool, cached, MemoryLog())))

    asyncio.run(whole())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def another_run(store: Store, run_id: str = "2027-01-01.1") -> str:
    """The published run once more, under another name; not published yet."""
    write_run(store, replace(published_run(store), run_id=run_id))
    return run_id


def somebody(gateway: Gateway) -> tuple[str, int]:
    (version,) = gateway.service.versions.values()
    position = int(version.people.pack.members[0])
    return version.people.name(position), position


def is_hidden(gateway: Gateway, user: str) -> bool:
    return all(bool(each.people.hidden[each.people.find(user)]) for each in gateway.service.versions.values())


def test_opt_outs_are_heard_while_a_new_version_is_opened(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """To make and check a pack takes as long as it takes; nobody is to be shown for as long, nor all to be refused."""
    opening = threading.Event()
    real = versions.open_version

    def slow(store: Store, name: str) -> Any:
        if name != "2027-01-01.1":
            return real(store, name)
        opening.wait(30)
        return real(store, name)

    monkeypatch.setattr(gateways, "open_version", slow)

    async def body(gateway: Gateway) -> None:
        user, _ = somebody(gateway)
        publish(world.store, another_run(world.store))
        await asyncio.sleep(0.1)
        try:
            opt_out(world.store, [user])
            await until(lambda: is_hidden(gateway, user))
            await asyncio.sleep(0.6)
            gateway.service.denied.check()
        finally:
            opening.set()
        await until(lambda: list(gateway.service.versions) == ["2027-01-01.1"])
        assert is_hidden(gateway, user)

    kept_up(world, body, stale_opt_outs_seconds=0.5)


def test_no_error_ends_the_looking(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A task that died in silence would leave the gateway with the run of that day for good."""

    async def body(gateway: Gateway) -> None:
        def broken(cursor: int) -> Any:
            raise ValueError("somebody's id")

        with monkeypatch.context() as patch:
            patch.setattr(gateway.service.intake._log, "since", broken)
            await until(lambda: "ValueError" in caplog.text)
        publish(world.store, another_run(world.store))
        await until(lambda: list(gateway.service.versions) == ["2027-01-01.1"])

    kept_up(world, body)
    assert "somebody's id" not in caplog.text


def test_an_outage_of_backends_takes_no_gateway_out(world: World) -> None:
    """All of them at once would be out, though most questions need no model; before it had one, it is not ready."""

    async def body(gateway: Gateway) -> None:
        pool: Any = gateway.backends
        pool.out = True
        assert not gateway.ready
        pool.out = False
        assert gateway.ready
        pool.out = True
        assert gateway.ready

    kept_up(world, body)


def test_a_forgotten_person_leaves_the_memory_too(world: World) -> None:
    """The pack that the gateway holds is gone from the store: it answers from one without them, and nothing breaks."""

    async def body(gateway: Gateway) -> None:
        user, _ = somebody(gateway)
        other = next(iter(gateway.service.versions.values())).people.name(1)
        await asyncio.to_thread(forget, world.store, [user])
        like = FavorEvent(user=other, like={"like_contentsid": "nowhere"})
        await gateway.service.add_favors(gateway.choose(b"", None), [like], None, False, CALL)
        await until(lambda: gateway.choose(b"", None).people.find(user) < 0)
        assert world.store.files("packs")

    kept_up(world, body)


def test_an_old_version_is_let_go(world: World) -> None:
    """A version a day for a year: neither files nor memory may pile up. Without the collector, which does not look
    at what was there at the start."""

    async def body(gateway: Gateway) -> None:
        names = [another_run(world.store, f"2027-01-0{day}.1") for day in range(1, 6)]
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            seen, files = [], []
            for name in names:
                publish(world.store, name)
                await until(lambda name=name: list(gateway.service.versions) == [name])  # type: ignore[misc]
                _, position = somebody(gateway)
                gateway.choose(b"", None).people.pack.favors([position])
                pack = gateway.choose(b"", None).people.pack
                seen.append([weakref.ref(each) for each in (pack, *pack.explainers.values())])
                del pack
                files.append(sum(1 for _ in Path("/proc/self/fd").iterdir()))
            assert [{each() is None for each in version} for version in seen] == [{True}] * 4 + [{False}]
            assert files[-1] <= files[0] + 1
        finally:
            gc.enable()
            gc.unfreeze()

    kept_up(world, body)


def test_whoever_opts_out_while_opt_outs_are_read_stays_hidden(
    served: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reading had begun before: what it found is older than what was answered."""
    shutil.copytree(served.root, tmp_path / "store")
    store = Store.open(tmp_path / "store")
    denied = DenySet(store, 5.0)

    def reading(watch: privacy.OptOutWatch) -> privacy.OptOuts:
        found = privacy.read_opt_outs(store)
        opt_out(store, ["u1"])
        denied.add("u1")
        return found

    monkeypatch.setattr(privacy.OptOutWatch, "read", reading)
    denied.refresh()
    assert denied.has("u1")
    monkeypatch.undo()
    denied.refresh()
    assert denied.has("u1")
    privacy.opt_in(store, ["u1"])
    assert denied.refresh()
    assert not denied.has("u1")


def test_only_who_is_new_is_looked_for_and_whoever_came_back_is_shown(world: World) -> None:
    """Step by step, the same people are hidden as at once; one more among hundreds of thousands costs little."""
    denied, people = world.service.denied, world.version.people
    users = [people.name(at) for at in range(6)]
    looked: list[int] = []
    real = people.pack.positions_of_names

    def counted(names: frozenset[str]) -> Any:
        looked.append(len(names))
        return real(names)

    people.pack.positions_of_names = counted  # type: ignore[method-assign]
    for leave, back in ((users[:4], []), (users[4:5], []), ([], users[1:3]), (users[2:3], [])):
        opt_out(world.store, leave)
        privacy.opt_in(world.store, back)
        denied.refresh()
        denied.apply(people)
        assert [bool(people.hidden[at]) for at in range(6)] == [denied.has(user) for user in users]
    assert looked == [4, 1, 3, 1]


def test_the_age_of_a_run_that_is_not_the_published_one_is_its_own(world: World) -> None:
    """A version that is pinned by its weight may be weeks old, however new the pointer is."""
    run = published_run(world.store)
    publish(world.store, another_run(world.store))
    pinned = versions.open_version(world.store, run.run_id)
    began = versions.moment_of(run.started_at)
    assert pinned.published_at == began
    assert versions.open_version(world.store, "2027-01-01.1").published_at > began


def test_opt_outs_that_cannot_be_read_are_refused_in_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever cannot know must show nobody."""

    def unreadable(watch: privacy.OptOutWatch) -> Any:
        raise StoreError("STORE-UNREADABLE", place="store", rule="read")

    async def body(gateway: Gateway) -> None:
        monkeypatch.setattr(privacy.OptOutWatch, "read", unreadable)
        await asyncio.sleep(0.3)
        with pytest.raises(StoreError, match="OPT-OUTS-UNKNOWN"):
            gateway.service.denied.check()

    kept_up(world, body, stale_opt_outs_seconds=0.1)


def test_a_world_without_hubness_correction_answers(served: Store, tmp_path: Path) -> None:
    """``analyze.csls_neighbours`` 0 turns it off; a search for no neighbours is none."""
    shutil.copytree(served.root, tmp_path / "store")
    world = at_home(Store.open(tmp_path / "store"))
    pack = world.version.people.pack
    pack.manifest = replace(pack.manifest, csls_neighbours=0)
    assert pack.crowding_of(pack.vectors[pack.members[:1]], [frozenset()]).tolist() == [0.0]
