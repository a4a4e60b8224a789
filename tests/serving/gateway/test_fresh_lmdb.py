"""Fresh favors in LMDB outlive whatever the machine does, and are gone once they are to be gone."""

from __future__ import annotations

import functools
import itertools
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

pytest.importorskip("lmdb")

from prometheus_client import CollectorRegistry

from tastetwin.errors import StoreError
from tastetwin.features.favors import merged
from tastetwin.privacy.opt_out import name_of
from tastetwin.serving.gateway.fresh import FreshLog, FreshMetrics, key_of
from tastetwin.serving.gateway.fresh_lmdb import CURRENT, LmdbLog
from tests.serving.gateway import fresh_logs
from tests.serving.gateway.fresh_logs import PROCESSES, Opened, like, review, users_of

ROOT: Final = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "fresh"


def test_whatever_was_acknowledged_is_there_after_kill_9(folder: Path) -> None:
    """An event that was acknowledged is never sent again."""
    shuffled, first, acknowledged = random.Random(5), 0, 0
    for _ in range(15):
        here, there = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=fresh_logs.add_until_killed, args=(str(folder), first, there))
        process.start()
        there.close()
        for _ in range(shuffled.randrange(1, 12)):
            acknowledged = here.recv()
        time.sleep(shuffled.random() * 0.01)
        process.kill()
        process.join(10)
        while here.poll():
            try:
                acknowledged = here.recv()
            except EOFError:
                break
        first = acknowledged + 1
        log = Opened(str(folder)).log
        reviews = {each.review_id for record in log.since(0)[0] for each in record.favors.reviews}
        likes = {each.at for record in log.since(0)[0] for each in record.favors.likes}
        log.close()
        assert {f"r{at}" for at in range(first)} <= reviews
        assert {like(at).likes[0].at for at in range(first)} <= likes
    assert first > 30, "the processes did add"


def test_a_user_who_adds_again_and_again_takes_one_place_in_the_order(folder: Path) -> None:
    """Or every look at the log would read all adds that ever were."""
    log = LmdbLog(folder, 1 << 20, FreshMetrics(CollectorRegistry()))
    for at in range(20):
        log.add_many({"a": review(at)}, 1.0)
    file = log._current()
    with file.env.begin() as transaction:
        assert transaction.stat(file.numbers)["entries"] == transaction.stat(file.records)["entries"] == 1
    log.close()


def test_every_add_is_synced(folder: Path) -> None:
    """What kill -9 cannot show: a power cut takes what only the page cache had."""
    log = LmdbLog(folder, 1 << 20, FreshMetrics(CollectorRegistry()))
    flags = log._current().env.flags()
    assert (flags["sync"], flags["metasync"], flags["writemap"], flags["map_async"]) == (True, True, False, False)
    log.close()


def test_a_full_log_refuses_whole_requests_and_goes_on_after_pruning(folder: Path) -> None:
    """The caller must know that events were not kept, and old ones must stay readable."""
    log = Opened(str(folder), 1).log
    with pytest.raises(StoreError) as raised:
        for at in itertools.count():
            log.add_many({f"{at}-{n}": review(n, "p" * 200) for n in range(50)}, float(at))
    assert raised.value.problem.code == "FRESH-FULL"
    users = users_of(log)
    assert users == [f"{done}-{n}" for done in range(at) for n in range(50)]
    log.prune(at - 1.0)
    assert users_of(log) == users[-50:]
    log.add_many({f"{at}-{n}": review(n, "p" * 200) for n in range(50)}, float(at))
    log.close()


ALONE: Final = ["unshare", "--map-root-user", "--mount"]
"""With a mount table of its own."""


def test_a_full_disk_refuses_and_harms_nothing(tmp_path: Path) -> None:
    """Neither a record nor the process: what is mapped and has no block behind it would end it."""
    if not shutil.which("unshare") or subprocess.run([*ALONE, "true"], capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    script = 'mount -t tmpfs -o size=3m tmpfs "$1" && exec "$2" -m tests.serving.gateway.fresh_logs "$1/fresh"'
    words = [*ALONE, "sh", "-c", script, "sh", str(tmp_path), sys.executable]
    path = os.pathsep.join(each for each in sys.path if each)
    done = subprocess.run(
        words, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def bytes_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.mark.parametrize("drop", [lambda log: log.remove([name_of("u-5-secret")]), lambda log: log.prune(50.0)])
def test_nothing_of_the_forgotten_is_left_in_any_file(folder: Path, drop: Callable[[FreshLog], None]) -> None:
    """Pages that LMDB freed keep their content: to delete a key is not to forget."""
    log = Opened(str(folder)).log
    for at in range(40):  # grows, so that copies of it lie in many pages
        log.add_many({f"u-{n}-secret": review(at, f"place-of-{n}-") for n in range(at % 7, 10)}, float(at))
    log.add_many({f"u-{n}-secret": like(99) for n in range(10) if n != 5}, 99.0)
    before = bytes_in(folder)
    assert before.count(b"u-5-secret") > 1 and b"place-of-5-" in before
    drop(log)
    left = bytes_in(folder)
    key = key_of(name_of("u-5-secret"))
    assert b"u-5-secret" not in left and b"place-of-5-" not in left and key not in left
    assert b"u-6-secret" in left and len(users_of(log)) == 9
    log.close()


def test_the_old_file_is_overwritten_before_it_is_removed(folder: Path) -> None:
    """A removed file's blocks keep what was in them."""
    log = Opened(str(folder)).log
    log.add_many({"u-5-secret": review(1)}, 1.0)
    os.link(folder / "log-1" / "data.mdb", folder / "kept")
    log.remove([name_of("u-5-secret")])
    assert not (folder / "log-1").exists() and not any((folder / "kept").read_bytes())
    log.close()


def test_a_rewriting_that_was_broken_off_leaves_the_log_as_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the new file is in force, or after it is and the old one lies there yet."""
    log = Opened(str(folder)).log
    log.add_many({"a": review(1), "b": review(2)}, 1.0)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for place in ("_point", "_shred_others"):
        monkeypatch.setattr(LmdbLog, place, killed)
        with pytest.raises(KeyboardInterrupt):
            log.remove([name_of("a")])
        monkeypatch.undo()
    # The first two were stopped before anything changed; now the old file stays although another is in force.
    point = LmdbLog._point

    def and_killed(self: LmdbLog, name: str) -> None:
        point(self, name)
        raise KeyboardInterrupt

    assert users_of(log) == ["a", "b"]
    monkeypatch.setattr(LmdbLog, "_point", and_killed)
    with pytest.raises(KeyboardInterrupt):
        log.remove([name_of("a")])
    monkeypatch.undo()
    assert users_of(log) == ["b"]
    log.close()
    again = Opened(str(folder)).log
    assert users_of(again) == ["b"] and len(list(folder.glob("log-*"))) == 1
    again.close()


def test_other_processes_follow_to_the_new_file(folder: Path) -> None:
    """One gateway forgets somebody while others go on adding: into the file in force, not into the removed one."""
    log = Opened(str(folder)).log
    log.add_many({"a": review(1), "b": review(2)}, 1.0)
    adding = PROCESSES.Process(target=fresh_logs.add_for_all, args=(str(folder), ["c", "d"], 100, 200))
    adding.start()
    removed = 0
    while adding.is_alive():
        log.add_many({f"gone-{removed}": review(removed)}, 1.0)
        log.remove([name_of(f"gone-{removed}")])
        removed += 1
    adding.join(10)
    assert adding.exitcode == 0 and removed > 1
    wanted = functools.reduce(merged, map(review, range(100, 300)))
    assert {each.user: each.favors for each in log.since(0)[0]} == {
        "a": review(1),
        "b": review(2),
        "c": wanted,
        "d": wanted,
    }
    log.close()


@pytest.mark.parametrize("keeps", [0, 100, 4_096, 9_000])
def test_a_file_cut_off_is_refused_and_ends_no_process(folder: Path, keeps: int) -> None:
    """A look past the end of a mapped file would be a bus error."""
    log = Opened(str(folder)).log
    for at in range(30):
        log.add_many({f"{at}-{n}": review(n, "p" * 300) for n in range(20)}, 1.0)
    log.close()
    with (folder / "log-1" / "data.mdb").open("r+b") as file:
        file.truncate(keeps)
    with pytest.raises(StoreError) as raised:
        log = Opened(str(folder)).log
        log.since(0)
    assert raised.value.problem.code == "FRESH-DAMAGED"


def test_garbage_in_place_of_the_file_is_refused(folder: Path) -> None:
    """The log is told to be damaged; it is not taken for an empty one."""
    Opened(str(folder)).log.close()
    (folder / "log-1" / "data.mdb").write_bytes(random.Random(3).randbytes(20_000))
    with pytest.raises(StoreError) as raised:
        Opened(str(folder))
    assert raised.value.problem.code == "FRESH-DAMAGED"


def test_a_folder_that_cannot_be_made_is_refused_at_the_start(tmp_path: Path) -> None:
    """Not at the first event."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError) as raised:
        Opened(str(tmp_path / "file"))
    assert raised.value.problem.code == "STORE-UNWRITABLE"


def test_nobody_else_may_read_the_folder(folder: Path) -> None:
    """It says who liked what."""
    Opened(str(folder)).log.close()
    private = [folder, *(path for path in folder.rglob("*") if path.name in (CURRENT, "lock", "data.mdb"))]
    assert [path for path in private[:1] if path.stat().st_mode & 0o077] == []
    assert [path for path in private if path.name == "data.mdb" and path.stat().st_mode & 0o077] == []
