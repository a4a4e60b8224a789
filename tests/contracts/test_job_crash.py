"""Promise 1 for the daily job as a whole: struck anywhere, a reader sees old or new, and the same command heals it.

The real command line runs in a process of its own (``struck.py``) and is killed, or finds the disk failing or full, at
points spread over every part of the store, engine threads included. ``CRASH_POINTS`` is the number of points in each
part, or ``all``.
"""

from __future__ import annotations

import errno
import json
import os
import queue
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from tastetwin import generations, runs
from tastetwin.config import AnalyzeConfig, Config, DeliverConfig, EngineConfig, EvaluateConfig, MartConfig, TrainConfig
from tastetwin.errors import StoreError, UsageError
from tastetwin.evaluation.reports import report_path
from tastetwin.generations import FOLDERS, STAGES
from tastetwin.sources.synthetic import TownConfig, write_day, write_town
from tastetwin.store import Store
from tests.contracts import faults
from tests.contracts.struck import Ended, Striker

pytestmark = pytest.mark.slow

TOWN: Final = TownConfig(users=150, places=40, mean_favors=15, seed=3)
LENIENT: Final = EvaluateConfig(bootstrap=100, min_ratio_to_baseline=0, min_ratio_to_published=0)
SETTINGS: Final = Config(
    engine=EngineConfig(partitions=2),
    train=TrainConfig(epochs=1, width=16, heads=2, dim=16, batch_users=32, checkpoint_steps=2, device="cpu"),
    analyze=AnalyzeConfig(k=20),
    evaluate=LENIENT,
    deliver=DeliverConfig(keep_runs=2),
)
PARTS: Final = (*FOLDERS.values(), "checkpoints", "reports", "runs", runs.POINTER, ".")
"""What is struck, each by itself (last the root folder): engine threads mix the order of operations, but hardly their
number in a part."""
STRIKERS: Final = 2
POINTS: Final = os.environ.get("CRASH_POINTS", "1")

Seen = dict[str, str] | None
"""Stage -> digest of what the published run's stage made; None where nothing is published."""


@dataclass(frozen=True)
class Scene:
    """A job, the store it begins with, and what comes of it unharmed."""

    template: Path | None
    source: Path
    day: date
    log: list[faults.Entry]
    store: Path
    """Where the log was taken, finished."""
    before: Seen
    after: Seen


class Arena:
    """A town, and processes in which its daily job is struck."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = _write(folder / "settings.yaml", SETTINGS)
        self.first_day = write_town(TOWN, folder / "town").folder
        self.next_day = write_day(TOWN, 1, folder / "next").folder
        self._strikers = [Striker(folder / f"said-{number}") for number in range(STRIKERS)]
        self._free: queue.SimpleQueue[Striker] = queue.SimpleQueue()
        for striker in self._strikers:
            self._free.put(striker)

    def command(self, *arguments: str, root: Path, fault: faults.Fault | None = None) -> Ended:
        """``tastetwin``, on the store in the folder ``root``."""
        striker = self._free.get()
        try:
            return striker.run([*arguments, "--store", str(root / "store"), "--json"], root, fault)
        finally:
            self._free.put(striker)

    def run(self, source: Path, day: date, root: Path, fault: faults.Fault | None = None) -> Ended:
        """``tastetwin run``."""
        return self.command("run", *self._of(source, day), root=root, fault=fault)

    def template(self) -> Path:
        """A store with a published day, and with generations that the next publication prunes."""
        root = self.folder / "template"
        root.mkdir()
        assert self.command("collect", *self._of(self.first_day, TOWN.until), root=root).code == 0
        other = _write(self.folder / "other.yaml", SETTINGS.model_copy(update={"mart": MartConfig(rating_max=4.5)}))
        assert self.command("mart", "--config", str(other), root=root).code == 0
        for _ in range(2):
            assert self.run(self.first_day, TOWN.until, root).code == 0
        return root

    def scene(self, template: Path | None, source: Path, day: date) -> Scene:
        """The job unharmed."""
        root = self.begin(template, f"unharmed-{day}")
        before = what_a_reader_sees(root)
        ended = self.run(source, day, root)
        assert ended.code == 0, ended.said
        return Scene(template, source, day, ended.log, root / "store", before, what_a_reader_sees(root))

    def begin(self, template: Path | None, name: str) -> Path:
        """A folder with a copy of the template's store."""
        root = self.folder / name
        if template is None:
            root.mkdir()
        else:
            shutil.copytree(template, root)
        return root

    def close(self) -> None:
        """End the processes."""
        for striker in self._strikers:
            striker.close()

    def _of(self, source: Path, day: date) -> tuple[str, ...]:
        return ("--source", str(source), "--date", day.isoformat(), "--config", str(self.settings))


def _write(file: Path, settings: Config) -> Path:
    file.write_text(settings.model_dump_json())
    return file


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    made = Arena(tmp_path_factory.mktemp("arena"))
    yield made
    made.close()


@pytest.fixture(scope="module", params=["into nothing", "over a published day"])
def scene(request: pytest.FixtureRequest, arena: Arena) -> Scene:
    if request.param == "into nothing":
        return arena.scene(None, arena.first_day, TOWN.until)
    return arena.scene(arena.template(), arena.next_day, TOWN.until + timedelta(days=1))


def what_a_reader_sees(root: Path) -> Seen:
    """What the published run's stages made, every byte of it checked."""
    try:
        store = Store.open(root / "store")
        run = runs.published_run(store)
    except (StoreError, UsageError) as error:
        assert error.problem.code in ("NO-STORE", "NOT-PUBLISHED"), error
        return None
    assert run.status == "delivered" and run in runs.list_runs(store)
    assert store.exists(report_path(run.run_id))
    manifests = {stage: generations.read_manifest(store, stage, run.generation(stage)) for stage in STAGES}
    for manifest in manifests.values():
        generations.verify(store, manifest)
    return {stage: manifest.digest() for stage, manifest in manifests.items()}


def points(scene: Scene, operations: frozenset[str] | None) -> list[tuple[str, int]]:
    """(part of the store, number of the operation in it): spread over every part and over what follows publication.

    The pointer is struck at every kind of operation: between two of them is the one moment that decides what is seen.
    """
    seen: Counter[str] = Counter()
    groups: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
    published = False
    for what, path, other in scene.log:
        part = next((part for part in PARTS if faults.concerns(path, f"{scene.store}/{part}")), None)
        if part is not None and (operations is None or what in operations):
            seen[part] += 1
            kind = f"{part} {what}" if part == runs.POINTER else part
            groups["after publication" if published else kind].append((part, seen[part]))
        published |= (what, other) == ("rename", f"{scene.store}/{runs.POINTER}")
    carried = scene.template is not None  # on the day after a full training nothing is learnt that needs a checkpoint
    assert set(PARTS) - seen.keys() <= ({"checkpoints"} if carried else set())
    return [point for group in groups.values() for point in _spread(group)]


def _spread(group: list[tuple[str, int]]) -> list[tuple[str, int]]:
    wanted = len(group) if POINTS == "all" else min(int(POINTS), len(group))
    return [group[(2 * number + 1) * len(group) // (2 * wanted)] for number in range(wanted)]


FAULTS: Final[dict[str, dict[str, Any]]] = {
    "kill": {"operations": faults.CHANGING},
    "EIO": {"errno": errno.EIO},
    "disk full": {"errno": errno.ENOSPC, "operations": faults.WRITING},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_job_struck_in_any_part_of_the_store_leaves_old_or_new_and_is_healed_by_itself(
    arena: Arena, scene: Scene, fault: dict[str, Any]
) -> None:
    """Half of the failing disks recover at once and half never, so that the way out of an error is struck as well."""
    chosen = points(scene, fault.get("operations"))
    if POINTS == "1" and "errno" in fault:  # every part fails with one error in one scene, with the other in the other
        chosen = chosen[(fault["errno"] == errno.EIO) ^ (scene.template is None) :: 2]
    with ThreadPoolExecutor(STRIKERS) as pool:
        strikes = [
            pool.submit(_strike, arena, scene, part, {"at": at, "lasting": number % 2 == 1, **fault})
            for number, (part, at) in enumerate(chosen)
        ]
    problems = {point: strike.exception() for point, strike in zip(chosen, strikes, strict=True)}
    wrong = [f"{point}: {type(problem).__name__}: {problem}" for point, problem in problems.items() if problem]
    assert not wrong, f"{len(wrong)} of {len(strikes)} points\n" + "\n\n".join(wrong)
    seen = [strike.result() for strike in strikes]
    if fault == FAULTS["kill"]:
        assert scene.before in seen and scene.after in seen, "kills on both sides of the one moment of publication"


def _strike(arena: Arena, scene: Scene, part: str, fault: dict[str, Any]) -> Seen:
    """Strike a job, look at the store as a reader does, run the job again; returns what the reader saw."""
    name = f"{part}-{fault['at']}-{fault.get('errno', 'kill')}-{scene.day}"
    root = arena.begin(scene.template, name)
    ended = arena.run(scene.source, scene.day, root, faults.Fault(**fault, within=f"{root}/store/{part}"))
    _assert_ended_as_injected(name, ended, fault.get("errno"))
    seen = what_a_reader_sees(root)
    assert seen in (scene.before, scene.after), name
    again = arena.run(scene.source, scene.day, root)
    assert again.code == 0, f"{name}: {again.said}"
    _assert_healed(name, scene, root)
    shutil.rmtree(root)
    return seen


def _assert_ended_as_injected(name: str, ended: Ended, number: int | None) -> None:
    if POINTS == "all" and not ended.fired and ended.code == 0:
        return  # the last few of a part: threads that make the same folder at once try that once more or less
    assert ended.fired, f"{name}: the job ended before the fault: {ended.said}"
    if number is None:
        assert ended.killed, f"{name}: {ended.said}"
        return
    assert "Traceback" not in ended.said, f"{name}: {ended.said}"
    assert ended.code == StoreError.exit_code, f"{name}: exit {ended.code}: {ended.said}"
    codes = {"DISK-FULL"} if number == errno.ENOSPC else {"STORE-UNREADABLE", "STORE-UNWRITABLE"}
    assert _code_said(ended.said) in codes, f"{name}: {ended.said}"


def _code_said(said: str) -> str:
    """The code of the error that ``--json`` printed among other things."""
    told = next(json.loads(line) for line in said.splitlines() if line.startswith('{"error"'))
    return str(told["error"]["code"])


def _assert_healed(name: str, scene: Scene, root: Path) -> None:
    store = Store.open(root / "store")
    healed = what_a_reader_sees(root)
    assert healed is not None and scene.after is not None
    assert runs.published_run(store).logical_date == scene.day.isoformat(), name
    # Once the job is published, running it again judges it against itself: another evaluation of the same lists.
    differing = {stage for stage in STAGES if healed[stage] != scene.after[stage]}
    assert differing <= {"evaluate"}, f"{name}: {differing}"
    left = {run.run_id: run.status for run in runs.list_runs(store) if run.status == "running"}
    assert not left, f"{name}: the next run notes what became of one that was killed: {left}"


def test_all_that_a_job_s_pointer_leads_to_is_durable_before_the_pointer_moves(scene: Scene) -> None:
    """A power cut keeps only what was fsynced; libraries write files too, so each file's own fsync is looked for."""
    _, renames = faults.replay(scene.log, str(scene.store))
    assert renames.count(f"{scene.store}/{runs.POINTER}") == 1
    store = Store.open(scene.store)
    run = runs.published_run(store)
    for stage in STAGES:
        manifest = generations.read_manifest(store, stage, run.generation(stage))
        until = renames_at(scene.log, store.path(f"{manifest.folder}/{generations.MANIFEST}"))
        own = [entry.path for files in manifest.tables.values() for entry in files]
        for relative in own:
            if relative.startswith(f"{manifest.folder}/"):
                _assert_durable(scene.log[:until], Path(store.path(relative)), scene.store)


def renames_at(log: Sequence[faults.Entry], target: str) -> int:
    """Where in the log a file gets its name."""
    return next(at for at, (what, _, other) in enumerate(log) if (what, other) == ("rename", target))


def _assert_durable(log: Sequence[faults.Entry], file: Path, root: Path) -> None:
    """The file is fsynced, after that its folder, and every folder above after that below it was made."""
    synced = {path: at for at, (what, path, _) in enumerate(log) if what == "fsync"}
    made = {path: at for at, (what, path, _) in enumerate(log) if what == "mkdir"}
    assert str(file) in synced, f"{file} has no fsync before its manifest is there"
    since = synced[str(file)]
    for folder in file.parents[: len(file.relative_to(root).parts)]:
        assert synced.get(str(folder), -1) > since, f"{folder} has no fsync after {file} or its folder got a name there"
        since = made.get(str(folder), -1)
