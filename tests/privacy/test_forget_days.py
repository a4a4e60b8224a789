"""Two days with people who are then forgotten: every verb goes on working, and no backfill brings them back."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tastetwin import TasteTwin
from tastetwin.config import AnalyzeConfig, Config, DeliverConfig, EngineConfig, EvaluateConfig, MartConfig, TrainConfig
from tastetwin.delivery.export import export_published
from tastetwin.delivery.publish import promote_run, roll_back
from tastetwin.errors import GateRefused, UsageError
from tastetwin.features.taste import HISTORY
from tastetwin.features.user_favor import USER_FAVOR
from tastetwin.generations import read_manifest
from tastetwin.jsonline import Refused, parse_line
from tastetwin.pipeline import run_day, run_stage
from tastetwin.runs import Run
from tastetwin.schema import TWINS
from tastetwin.sources.synthetic import TownConfig, write_day, write_town
from tastetwin.store import Store
from tastetwin.tables import read_table
from tests.privacy.haunted import ODD, check_manifests, contents, naming

pytestmark = pytest.mark.slow

TOWN = TownConfig(users=150, places=40, mean_favors=15, seed=3)
SETTINGS = Config(
    engine=EngineConfig(partitions=2),
    mart=MartConfig(max_quarantine_share=0.5),
    train=TrainConfig(epochs=1, width=16, heads=2, dim=16, batch_users=32),
    analyze=AnalyzeConfig(k=20),
    evaluate=EvaluateConfig(bootstrap=100, min_ratio_to_baseline=0, min_ratio_to_published=0, min_users_to_published=0),
    deliver=DeliverConfig(keep_runs=5),
)
DAYS = [TOWN.until + timedelta(days=number) for number in range(3)]
CANARIES = [ODD, "골목-canary"]
NEARLY = "골목-canary2"
"""Somebody else, whose id begins like a canary's."""


@dataclass(frozen=True)
class World:
    """Three days of a town's events with the canaries among them, and a store with the first two."""

    sources: list[Path]
    store: Store

    @property
    def tt(self) -> TasteTwin:
        return TasteTwin(self.store.root, SETTINGS)

    def run(self, number: int, source: Path | None = None, *, again: bool = False) -> Run:
        return run_day(self.store, str(source or self.sources[number]), DAYS[number], SETTINGS, again=again)


def haunt(folder: Path, names: Sequence[str] = (*CANARIES, NEARLY)) -> Path:
    """Plant people in a town's raw files, as if they had the tastes of some who live there; all have friends."""
    reviews = next(folder.glob("reviews*.jsonl"))
    lines = list(_clean(reviews.read_bytes().splitlines()))
    users = list(dict.fromkeys(each["user_idno"] for each in lines if each.get("user_idno")))[:3]
    for user, name in zip(users, (*CANARIES, NEARLY), strict=True):
        named = [{**each, "user_idno": name, "review_id": f"c{at}"} for at, each in enumerate(lines)]
        own = [mine for mine, each in zip(named, lines, strict=True) if each.get("user_idno") == user]
        written = [json.dumps(each, ensure_ascii=name == ODD).encode() for each in own]
        refused = [written[0][:-9], b"not json " + name.encode() + b",4,5", b'{"user_idno": "' + name.encode() + b'"']
        likes = [{"user_idno": name, "like_contentsid": each.get("review_place_id")} for each in own]
        friendly = json.dumps({**lines[-1], "friends": ["x", name], "review_id": "f" + "0123"[users.index(user)]})
        mine = name in names
        _append(folder / "reviews-canary.jsonl", [*written[::2], *refused] if mine else [])
        _append(folder / "reviews-canary.jsonl.gz", [*(written[1::2] if mine else []), friendly.encode()])
        _append(folder / "likes-canary.jsonl.zst", [json.dumps(each).encode() for each in likes] if mine else [])
    return folder


def _clean(lines: list[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        with suppress(Refused):
            yield parse_line(line)


def _append(path: Path, lines: list[bytes]) -> None:
    data = b"".join(line + b"\n" for line in lines)
    if path.suffix == ".gz":
        data = gzip.compress(data)
    if path.suffix == ".zst":
        data = zstandard.ZstdCompressor().compress(data)
    with path.open("ab") as file:
        file.write(data)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("haunted")
    sources = [haunt(write_town(TOWN, folder / "day-0").folder)]
    sources += [haunt(write_day(TOWN, number, folder / f"day-{number}").folder) for number in (1, 2)]
    made = World(sources, Store.create(folder / "store"))
    made.run(0)
    made.run(1)
    assert set(CANARIES) <= set(made.tt.twins().column("twin_idno").to_pylist())
    made.tt.forget(*CANARIES)
    return made


def named(store: Store) -> list[str]:
    """Files that name a canary, the neighbour's name aside; all manifests hold."""
    check_manifests(store)
    said = {
        path: text.replace(NEARLY, "").replace(json.dumps(NEARLY)[1:-1], "") for path, text in contents(store).items()
    }
    return [path for user in CANARIES for path in naming(user, said)]


@pytest.fixture(autouse=True)
def _nobody_is_back(world: World) -> Iterator[None]:
    """Whatever a test does, at its end no byte of the store names them."""
    yield
    assert named(world.store) == []


def test_no_list_holds_them_and_a_neighbour_in_name_has_all_that_there_was(world: World) -> None:
    """Whose id begins like theirs is somebody else."""
    assert named(world.store) == []
    twins = world.tt.twins()
    assert not set(CANARIES) & set(twins.column("user_idno").to_pylist() + twins.column("twin_idno").to_pylist())
    assert len(world.tt.similar(NEARLY, k=5)) == 5


def test_everything_that_can_be_asked_is_answered(world: World, tmp_path: Path) -> None:
    """As in any store; they are as unknown as a stranger."""
    for ask in (world.tt.similar, world.tt.near, world.tt.far):
        assert not set(CANARIES) & set(ask(NEARLY, k=20).column("twin_idno").to_pylist())
        with pytest.raises(UsageError) as caught:
            ask(ODD)
        assert caught.value.problem.code == "UNKNOWN-USER"
    users = world.tt.vectors().num_rows
    for view in ("result", "twins", "user_favor", "place", "quarantine", "runs"):
        assert world.tt.sql(f"FROM {view}").num_rows > 0
    assert world.tt.sql("SELECT count(*) AS n FROM result").column("n").to_pylist() == [users]
    for what, suffix in (("twins", ".csv"), ("vectors", ".parquet"), ("report", ".html")):
        export_published(world.store, what, tmp_path / f"{what}{suffix}")
    vectors, unusable = world.tt.embed(str(world.sources[0]))
    assert not set(CANARIES) & {*vectors.column("user_idno").to_pylist(), *unusable}
    assert NEARLY in vectors.column("user_idno").to_pylist()


def test_readers_can_go_back_and_forth(world: World) -> None:
    """What was delivered before is whole still."""
    now = world.tt.runs()[1].run_id
    assert roll_back(world.store).run_id == world.tt.runs()[0].run_id
    assert len(world.tt.similar(NEARLY, k=5)) == 5
    assert promote_run(world.store, now).run_id == now


def test_the_run_can_be_evaluated_again(world: World) -> None:
    """Vectors, lists and histories still belong to each other."""
    assert run_stage(world.store, "evaluate", DAYS[1], SETTINGS).status == "open"


def test_the_next_day_goes_on_without_them(world: World) -> None:
    """Its source has them still: their lines are held back, those of all others are counted as ever."""
    run = world.run(2)
    assert run.status == "delivered"
    counts = read_manifest(world.store, "mart", run.generation("mart")).facts["counts"]
    assert counts["accepted"] + counts["quarantined"] == counts["lines_read"] and "forgotten" not in counts
    lake = read_manifest(world.store, "collect", run.generation("collect"))
    assert lake.facts["counts"]["held_back"] > 10


@pytest.mark.parametrize("how", ["the same source", "the source written again", "once more"])
def test_no_backfill_brings_them_back(world: World, how: str) -> None:
    """The first day anew, from the source that has them: its lake found finished, made anew, or made once more."""
    if how == "the source written again":
        for path in world.sources[0].iterdir():
            os.utime(path, (1, 1))
    with pytest.raises(GateRefused, match="STALE-DAY"):
        world.run(0, again=how == "once more")
    made = read_manifest(world.store, "analyze", world.tt.runs()[-1].generation("analyze"))
    twins = read_table(world.store, made, "twins", TWINS)
    assert twins.num_rows and not set(CANARIES) & set(twins.column("twin_idno").to_pylist())


def test_after_a_backfill_everything_is_as_if_they_had_never_been(world: World, tmp_path: Path) -> None:
    """Favors, histories and places of all others, beside a store whose source never had them."""
    folder = write_town(TOWN, tmp_path / "town").folder
    tables = []
    for store, source in ((world.store, world.sources[0]), (Store.create(tmp_path / "s"), haunt(folder, [NEARLY]))):
        run_stage(store, "collect", DAYS[0], SETTINGS, source=str(source))
        run_stage(store, "mart", DAYS[0], SETTINGS)
        made = read_manifest(store, "features", run_stage(store, "features", DAYS[0], SETTINGS).generation("features"))
        rows = [
            read_table(store, made, *each).to_pylist() for each in (("user_favor", USER_FAVOR), ("history", HISTORY))
        ]
        tables.append((str(rows), made.facts["counts"]))  # as text: unknown ratings are NaN, which nothing equals
    assert tables[0] == tables[1]
