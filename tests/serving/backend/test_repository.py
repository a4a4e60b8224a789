"""Versions at run time: load, unload, choose."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tastetwin.config import BackendConfig
from tastetwin.errors import StoreError, TasteTwinError, UsageError
from tastetwin.generations import finish, read_manifest
from tastetwin.serving.backend.metrics import Metrics
from tastetwin.serving.backend.repository import Repository
from tastetwin.store import Store
from tests.world import Journey


def nothing(_: str) -> None: ...


def another_bundle(store: Store, version: str, like: str) -> str:
    """A finished bundle with the files of another."""
    store.make_folder(f"bundles/{version}")
    finish(store, replace(read_manifest(store, "train", like), generation=version, logical_date=version[:10]))
    return version


def run(store: Store, work: Callable[[Repository], Awaitable[None]]) -> None:
    async def main() -> None:
        await work(Repository(store, BackendConfig(), Metrics(), nothing))

    asyncio.run(main())


def test_without_a_version_the_newest_answers(copied: Journey) -> None:
    """By its bundle's date, whatever was loaded last; then the one before, once it is unloaded."""
    first = copied.first.generation("train")
    old = another_bundle(copied.store, "2026-01-01-aaaaaaaaaaaa", first)

    async def work(repository: Repository) -> None:
        await repository.load(first)
        await repository.load(old)
        assert repository.versions() == [first, old]
        assert repository.get("taste").model.version == first
        assert repository.get("taste", old).model.version == old
        await repository.unload(first)
        assert repository.get("taste").model.version == old
        states = {each["version"]: each["state"] for each in repository.index()}
        assert states == {first: "UNAVAILABLE", old: "READY"}

    run(copied.store, work)


def test_unload_waits_for_requests_in_progress(journey: Journey) -> None:
    """They were accepted; new ones are not."""
    version = journey.first.generation("train")

    async def work(repository: Repository) -> None:
        await repository.load(version)
        with repository.using("taste", version):
            unloading = asyncio.create_task(repository.unload(version))
            await asyncio.sleep(0.05)
            assert not unloading.done()
            with pytest.raises(UsageError, match="UNKNOWN-MODEL"):
                repository.get("taste", version)
        await asyncio.wait_for(unloading, 10)

    run(journey.store, work)


def test_a_version_can_come_back_while_it_is_leaving(journey: Journey) -> None:
    """A rollback must not wait for the slowest request of what it replaces."""
    version = journey.first.generation("train")

    async def work(repository: Repository) -> None:
        await repository.load(version)
        with repository.using("taste", version):
            unloading = asyncio.create_task(repository.unload(version))
            await asyncio.sleep(0)
            await repository.load(version)
            assert repository.versions() == [version]
        await asyncio.wait_for(unloading, 10)
        assert repository.versions() == [version]

    run(journey.store, work)


@pytest.mark.parametrize(
    ("version", "code"),
    [
        ("2026-01-01-bbbbbbbbbbbb", "DAMAGED"),
        ("2026-01-01-cccccccccccc", "NO-GENERATION"),
        ("../lake", "BAD-VERSION"),
        ("2026-01-01-aaaaaaaaaaaa/../2026-01-01-bbbbbbbbbbbb", "BAD-VERSION"),
        ("2026-01-01-aaaaaaaaaaaa\n", "BAD-VERSION"),
        ("", "BAD-VERSION"),
    ],
)
def test_a_load_that_fails_leaves_everything_as_it_was(copied: Journey, version: str, code: str) -> None:
    """A bad release must not take the good one down, and no text of a request becomes a path."""
    first = copied.first.generation("train")
    damaged = another_bundle(copied.store, "2026-01-01-bbbbbbbbbbbb", first)
    path = f"bundles/{damaged}/encoder.onnx"
    (Path(copied.store.root) / path).write_bytes(b"no model")
    manifest = read_manifest(copied.store, "train", damaged)
    changed = {**manifest.tables, "model": [replace(manifest.tables["model"][0], path=path)]}
    finish(copied.store, replace(manifest, tables=changed))

    async def work(repository: Repository) -> None:
        await repository.load(first)
        with pytest.raises(TasteTwinError, match=code):
            await repository.load(version)
        assert repository.versions() == [first]
        with pytest.raises(UsageError, match="UNKNOWN-MODEL"):
            await repository.unload("2026-01-01-cccccccccccc")

    run(copied.store, work)


def test_a_file_that_is_no_model_is_refused(copied: Journey) -> None:
    """Its hash is right; ONNX Runtime cannot read it."""
    first = copied.first.generation("train")
    manifest = read_manifest(copied.store, "train", first)
    spoilt = replace(manifest, generation="2026-01-01-dddddddddddd", tables={"model": manifest.tables["vocabulary"]})
    copied.store.make_folder(spoilt.folder)
    finish(copied.store, spoilt)

    async def work(repository: Repository) -> None:
        with pytest.raises(StoreError, match="BAD-MODEL"):
            await repository.load(spoilt.generation)
        assert repository.versions() == []

    run(copied.store, work)
