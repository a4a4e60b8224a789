"""A backend that follows the published run loads what it needs, whatever goes wrong in between."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from tastetwin.config import BackendConfig
from tastetwin.runs import publish, published_run, rollback, write_run
from tastetwin.serving.backend import follow as following
from tastetwin.serving.backend.metrics import Metrics
from tastetwin.serving.backend.repository import Repository
from tastetwin.store import Store
from tests.serving.backend.test_repository import another_bundle
from tests.world import Journey


def another_run(store: Store, day: str) -> str:
    """A run like the published one, of a bundle of its own; returns the bundle. It is published then."""
    run = published_run(store)
    bundle = another_bundle(store, f"{day}-aaaaaaaaaaaa", run.generation("train"))
    stages = {**run.stages, "train": replace(run.stages["train"], generation=bundle)}
    publish(store, write_run(store, replace(run, run_id=f"{day}.1", stages=stages)).run_id)
    return bundle


def followed(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    body: Callable[[Repository, list[str]], Awaitable[None]],
    linger: float = 0.0,
) -> None:
    """What happens to a repository that follows, which has the published run's bundle from the start."""
    monkeypatch.setattr(following, "SECONDS", 0.01)
    monkeypatch.setattr(following, "LINGER", linger)
    told: list[str] = []

    async def whole() -> None:
        repository = Repository(store, BackendConfig(), Metrics(), lambda _: None)
        await repository.load(published_run(store).generation("train"))
        task = asyncio.create_task(following.follow(store, repository, told.append))
        async with asyncio.timeout(60):
            await body(repository, told)
        assert not task.done()
        task.cancel()

    asyncio.run(whole())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def test_it_holds_the_published_run_s_and_the_one_before(copied: Journey, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway swaps when it likes, and may swap back."""
    first = copied.first.generation("train")

    async def body(repository: Repository, told: list[str]) -> None:
        second = another_run(copied.store, "2027-01-01")
        await until(lambda: set(repository.versions()) == {first, second})
        third = another_run(copied.store, "2027-01-02")
        await until(lambda: set(repository.versions()) == {second, third})

    followed(copied.store, monkeypatch, body)


def test_a_run_that_was_rolled_back_stays_until_gateways_have_looked(
    copied: Journey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They answer from it for a second or more; without its bundle, what needs a model would fail at a rollback."""
    first = copied.first.generation("train")

    async def body(repository: Repository, told: list[str]) -> None:
        second = another_run(copied.store, "2027-01-01")
        await until(lambda: set(repository.versions()) == {first, second})
        rollback(copied.store, lambda _: True)
        await asyncio.sleep(0.3)
        assert set(repository.versions()) == {first, second}
        await until(lambda: repository.versions() == [first])

    followed(copied.store, monkeypatch, body, linger=1.0)


def test_what_somebody_loaded_by_hand_stays(copied: Journey, monkeypatch: pytest.MonkeyPatch) -> None:
    """A canary is such a version: taken away within a second, every request for it would fail."""
    canary = another_bundle(copied.store, "2027-01-01-aaaaaaaaaaaa", copied.first.generation("train"))

    async def body(repository: Repository, told: list[str]) -> None:
        await repository.load(canary)
        await asyncio.sleep(0.2)
        assert canary in repository.versions()

    followed(copied.store, monkeypatch, body)


def test_no_error_ends_the_following(copied: Journey, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would answer from that day's model for good, and nobody would know."""

    async def body(repository: Repository, told: list[str]) -> None:
        real: Any = repository.load
        with monkeypatch.context() as patch:

            async def broken(version: str) -> None:
                raise RuntimeError("of some library")

            patch.setattr(repository, "load", broken)
            await until(lambda: told == ["not loaded: RuntimeError"])
            patch.setattr(repository, "load", real)
        second = another_run(copied.store, "2027-01-01")
        await until(lambda: second in repository.versions())

    followed(copied.store, monkeypatch, body)


def test_a_run_before_that_cannot_be_read_keeps_nobody_from_the_new_one(
    copied: Journey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one before is only wanted in case; the new one is needed."""

    async def body(repository: Repository, told: list[str]) -> None:
        before = copied.first.run_id
        second = another_run(copied.store, "2027-01-01")
        copied.store.write_bytes(f"runs/{before}.json", b"{")
        await until(lambda: second in repository.versions())
        await until(lambda: len(told) == 1)

    followed(copied.store, monkeypatch, body)
