"""One contract for the app's state, wherever it is kept; and what a folder keeps when its process is killed."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tastetwin.errors import StoreError, UsageError
from tastetwin.serving.app import state as states
from tastetwin.serving.app import state_redis, state_sqlite
from tastetwin.serving.app.state import DROPS, KINDS, Kind, State, open_state

REDIS: Final = shutil.which("redis-server")
Open = Callable[[], State]


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if REDIS is None:
        pytest.skip("no redis-server")
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    folder = tmp_path_factory.mktemp("redis")
    command = [REDIS, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    url = f"redis://127.0.0.1:{port}"
    for _ in range(100):
        try:
            open_state(url).of("follows", "anybody")
            break
        except StoreError:
            time.sleep(0.05)
    yield url
    server.kill()
    server.wait()


@pytest.fixture(params=["memory", "folder", "redis"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[State]:
    if request.param == "redis":
        import redis

        url = request.getfixturevalue("redis_url")
        redis.Redis.from_url(url).flushall()
        opened = open_state(url)
    else:
        opened = open_state(None if request.param == "memory" else str(tmp_path / "state"))
    yield opened
    opened.close()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists of three."""
    for module in (states, state_redis, state_sqlite):
        monkeypatch.setattr(module, "LIMIT", 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_is_what_was_put_on_it_the_newest_first(state: State, kind: Kind) -> None:
    """Each once, and what is taken off is gone, however often it is said."""
    for other in ("a", "b", "a", "c"):
        state.add(kind, "me", other)
    assert state.of(kind, "me") == ["c", "b", "a"]
    for _ in range(2):
        state.remove(kind, "me", "b")
    assert state.of(kind, "me") == ["c", "a"]
    state.add(kind, "me", "b")
    assert state.of(kind, "me") == ["b", "c", "a"]


def test_lists_do_not_mix(state: State) -> None:
    """Neither of two users, whose ids may begin alike, nor of two kinds."""
    state.add("dismissed", "me", "a")
    state.add("follows", "me", "b")
    state.add("follows", "me2", "c")
    state.remove("follows", "me", "a")
    assert [state.of(kind, user) for kind in KINDS for user in ("me", "me2")] == [["a"], [], ["b"], ["c"]]


def test_the_oldest_dismissal_makes_room(state: State, small: None) -> None:
    """Nobody misses it; a refusal would leave somebody in view."""
    for other in "abcd":
        state.add("dismissed", "me", other)
    assert state.of("dismissed", "me") == ["d", "c", "b"]


def test_a_follow_too_many_is_refused(state: State, small: None) -> None:
    """Nobody is unfollowed in silence; one who is followed already is no further one."""
    for other in "abc":
        state.add("follows", "me", other)
    with pytest.raises(UsageError, match="FOLLOWS-FULL"):
        state.add("follows", "me", "d")
    state.add("follows", "me", "a")
    assert state.of("follows", "me") == ["c", "b", "a"]
    state.remove("follows", "me", "b")
    state.add("follows", "me", "d")
    assert state.of("follows", "me") == ["d", "c", "a"]


def test_a_forgotten_user_is_nowhere(state: State, small: None) -> None:
    """Neither as owner nor on a list, one that was full included, and nobody else is touched."""
    for kind in KINDS:
        for other in "abc":
            state.add(kind, "gone", other)
            state.add(kind, other, "gone")
            state.add(kind, other, "kept")
    for other in "defg":
        state.add("dismissed", "gone", other)
    state.forget("gone")
    state.forget("gone")
    for kind in KINDS:
        assert state.of(kind, "gone") == []
        assert [state.of(kind, other) for other in "abc"] == [["kept"]] * 3
    state.add("follows", "gone", "a")
    assert state.of("follows", "gone") == ["a"]


IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300)


@given(IDS, st.lists(IDS, max_size=8, unique=True))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ids_come_back_as_they_were(state: State, user: str, others: list[str]) -> None:
    """They are the source's: of any letters, and long."""
    for other in others:
        state.add("follows", user, other)
    assert state.of("follows", user) == others[::-1]
    state.forget(user)


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "add", "remove", "forget"]),
        st.sampled_from(KINDS),
        *[st.sampled_from("abcde")] * 2,
    ),
    max_size=40,
)


class Slow:
    """What every state is to do, in the plainest way."""

    def __init__(self) -> None:
        self.lists: dict[tuple[Kind, str], list[str]] = {(kind, user): [] for kind in KINDS for user in "abcde"}

    def add(self, kind: Kind, user: str, other: str) -> None:
        mine = self.lists[kind, user]
        if other not in mine and (DROPS[kind] or len(mine) < states.LIMIT):
            mine.append(other)
            del mine[: -states.LIMIT]

    def remove(self, kind: Kind, user: str, other: str) -> None:
        self.lists[kind, user] = [each for each in self.lists[kind, user] if each != other]

    def forget(self, user: str) -> None:
        kept = {key: [each for each in mine if each != user] for key, mine in self.lists.items()}
        self.lists = {key: [] if key[1] == user else mine for key, mine in kept.items()}


@given(CHANGES)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_state_does_what_a_plain_one_does(
    state: State, small: None, changes: list[tuple[str, Kind, str, str]]
) -> None:
    """Whatever the order of changes: which one is configured is nobody's concern."""
    truth = Slow()
    for user in "abcde":
        state.forget(user)
    for each in (truth, state):
        for what, kind, user, other in changes:
            try:
                each.forget(user) if what == "forget" else getattr(each, what)(kind, user, other)
            except UsageError:
                assert kind == "follows"
    for (kind, user), mine in truth.lists.items():
        assert state.of(kind, user) == mine[::-1]


def test_a_folder_outlives_its_process(tmp_path: Path) -> None:
    """And so does the order."""
    for at in range(3):
        state = open_state(str(tmp_path / "state"))
        state.add("follows", "me", f"u{at}")
        state.close()
    reopened = open_state(str(tmp_path / "state"))
    assert reopened.of("follows", "me") == ["u2", "u1", "u0"]
    reopened.close()


def found(folder: Path, what: bytes) -> int:
    return sum(path.read_bytes().count(what) for path in folder.iterdir())


def test_nothing_is_left_of_a_forgotten_user_on_the_disk(tmp_path: Path) -> None:
    """Whoever reads the files byte for byte does not find them, but does find others."""
    folder = tmp_path / "state"
    state = open_state(str(folder))
    for at in range(150):
        state.add("dismissed", "canary-person", f"somebody-{at}")
        state.add("dismissed", f"somebody-{at}", "kept-person")
        if at % 3 == 0:
            state.add("follows", f"somebody-{at}", "canary-person")
    state.remove("follows", "somebody-3", "canary-person")
    assert found(folder, b"canary-person") > 100
    state.forget("canary-person")
    assert found(folder, b"canary-person") == 0
    assert found(folder, b"kept-person") > 100
    state.close()


def test_a_file_that_is_no_state_is_refused_and_left_alone(tmp_path: Path) -> None:
    """It may be the only copy of something."""
    (tmp_path / state_sqlite.FILE).write_bytes(b"something else entirely " * 100)
    with pytest.raises(StoreError, match="STATE-UNAVAILABLE"):
        open_state(str(tmp_path))
    assert (tmp_path / state_sqlite.FILE).read_bytes().startswith(b"something else")


def test_a_full_disk_is_told_as_such_and_changes_nothing(tmp_path: Path) -> None:
    """SQLite goes back by itself then; that nothing was left to go back from would tell nobody what to mend."""
    state = open_state(str(tmp_path / "state"))
    assert isinstance(state, state_sqlite.SqliteState)
    ((pages,),) = state._database.execute("PRAGMA page_count")
    state._database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match=r"STATE-UNAVAILABLE.*disk is full"):
        for at in range(1_000):
            state.add("follows", "me", f"u{at}" * 100)
    assert len(state.of("follows", "me")) == at
    state._database.execute("PRAGMA max_page_count = 1000")
    state.add("follows", "me", f"u{at}" * 100)
    assert len(state.of("follows", "me")) == at + 1
    state.close()


WRITER: Final = """
import sys
from tastetwin.serving.app.state import open_state
state = open_state(sys.argv[1])
for at in range(1_000_000):
    state.add("dismissed", f"me{at // 50}", f"u{at}")
    sys.stdout.write(f"{at}\\n"); sys.stdout.flush()
"""


def test_what_was_acknowledged_outlives_kill_9(tmp_path: Path) -> None:
    """A dismissal that comes back is an insult; one that was never acknowledged may be there or not."""
    folder = str(tmp_path / "state")
    acknowledged = 0
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", WRITER, folder], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            lines = [writer.stdout.readline() for _ in range(40)]
            writer.send_signal(signal.SIGKILL)
            lines += writer.stdout.readlines()
        assert writer.returncode == -signal.SIGKILL
        acknowledged = max(acknowledged, *(int(line) for line in lines if line.endswith("\n")))
        state = open_state(folder)
        kept = {other for at in range(acknowledged // 50 + 2) for other in state.of("dismissed", f"me{at}")}
        state.close()
        assert {f"u{at}" for at in range(acknowledged + 1)} <= kept
        assert len(kept) <= acknowledged + 2


def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    """Several apps on one machine."""
    folder = str(tmp_path / "state")
    state = open_state(folder)
    state.add("follows", "me", "a")
    code = (
        WRITER.replace("range(1_000_000)", "range(3)")
        .replace('"dismissed"', '"follows"')
        .replace('f"me{at // 50}"', '"me"')
    )
    subprocess.run([sys.executable, "-c", code, folder], check=True, stdout=subprocess.DEVNULL)
    state.add("follows", "me", "b")
    assert state.of("follows", "me") == ["b", "u2", "u1", "u0", "a"]
    state.close()


def test_a_server_that_is_gone_is_told_without_its_password() -> None:
    """503 for the user; the log must not have it either."""
    state = open_state("redis://somebody:hunter2@127.0.0.1:1/0")
    with pytest.raises(StoreError, match="STATE-UNAVAILABLE") as caught:
        state.add("follows", "me", "a")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("address", ["redis://:hunter2@host:port/", "memcached://hunter2@host"])
def test_an_address_that_is_none_is_refused_at_once(address: str) -> None:
    """Not at the first dismissal; and without its password."""
    with pytest.raises(UsageError, match="STATE-ADDRESS") as caught:
        open_state(address)
    assert "hunter2" not in str(caught.value)


def test_a_folder_that_cannot_be_is_refused_at_once(tmp_path: Path) -> None:
    """Not at the first dismissal."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="STATE-UNAVAILABLE"):
        open_state(str(tmp_path / "file"))
