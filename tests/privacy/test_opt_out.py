"""Requests to be shown to nobody: none is lost, none is half done, and who cannot know them shows nobody."""

from __future__ import annotations

import hashlib
import os
import random
import time
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tastetwin.errors import StoreError, UsageError
from tastetwin.privacy.opt_out import (
    FOLDER,
    OptOuts,
    OptOutWatch,
    deny,
    is_opted_out,
    name_of,
    opt_in,
    opt_out,
    read_forgotten,
    read_opt_outs,
)
from tastetwin.store import Store

IDS = st.text(st.characters(codec=None, categories=["Cs", "Ll", "Lo", "Zs", "Cc", "Po"]), max_size=12)


@given(st.lists(st.tuples(st.booleans(), IDS), max_size=20))
@example([(True, "\ud800"), (True, "a/b"), (True, "")])
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_last_word_of_everybody_holds(memory_store: Store, said: list[tuple[bool, str]]) -> None:
    """Whatever the order, however often, whatever the id: lone surrogates, slashes, nothing at all."""
    memory_store.remove(FOLDER)
    for out, user in said:
        (opt_out if out else opt_in)(memory_store, [user])
    last = {user: out for out, user in said}
    found = read_opt_outs(memory_store)
    assert found.names == {name_of(user) for user, out in last.items() if out}
    assert found.of(list(last)).tolist() == list(last.values())
    assert [is_opted_out(memory_store, user) for user in last] == list(last.values())


def test_who_was_forgotten_has_opted_out_and_no_opt_in_undoes_that(memory_store: Store) -> None:
    """A list of opt-ins from another system may be older than the request, and is taken whole or not at all."""
    opt_out(memory_store, ["before", "behind"])
    deny(memory_store, ["a"])
    with pytest.raises(UsageError, match="FORGOTTEN"):
        opt_in(memory_store, ["before", "a", "behind"])
    assert read_forgotten(memory_store).names == {name_of("a")}
    assert read_opt_outs(memory_store).of(["a", "before", "behind"]).all()


def test_nobody_at_first(memory_store: Store) -> None:
    assert read_opt_outs(memory_store) == OptOuts(frozenset())
    assert read_opt_outs(memory_store).of(["a", "b"]).tolist() == [False, False]


def test_a_name_is_the_beginning_of_the_sha256_of_the_id() -> None:
    """Written out: every store in the world has its requests filed by it, and DuckDB must find the same."""
    assert name_of("골목") == hashlib.sha256("골목".encode()).hexdigest()[:32]


def test_the_digest_tells_who_and_not_when(memory_store: Store, tmp_path: Path) -> None:
    """A day is made anew when somebody opted out since, and only then."""
    other = Store.create(tmp_path / "store")
    opt_out(memory_store, ["a", "b"])
    opt_out(other, ["b", "a", "a"])
    assert read_opt_outs(memory_store).digest() == read_opt_outs(other).digest()
    opt_in(other, ["a"])
    assert read_opt_outs(memory_store).digest() != read_opt_outs(other).digest()


def test_a_row_goes_by_any_of_its_columns(memory_store: Store) -> None:
    opt_out(memory_store, ["b"])
    table = pa.table({"user": ["a", "b", "c", None], "twin": ["b", "a", "a", "a"], "n": [1, 2, 3, 4]})
    kept = read_opt_outs(memory_store).without(table, "user", "twin")
    assert kept.column("n").to_pylist() == [3, 4]
    assert read_opt_outs(memory_store).without(table, "user").column("n").to_pylist() == [1, 3, 4]


def test_what_a_killed_request_left_is_no_opt_out(tmp_path: Path) -> None:
    """Nobody was told that it holds; it must not stop the day either."""
    store = Store.create(tmp_path / "store")
    opt_out(store, ["a"])
    name = name_of("b")
    (tmp_path / "store" / FOLDER / name[:2]).mkdir(exist_ok=True)
    (tmp_path / "store" / FOLDER / name[:2] / f".{name}.7.tmp").touch()
    assert read_opt_outs(store).names == {name_of("a")}


@pytest.mark.parametrize("stranger", ["notes.txt", "A" * 32, "ab" * 15, "cd" + "0" * 30])
def test_what_is_no_opt_out_stops_everything(tmp_path: Path, stranger: str) -> None:
    """A folder that somebody tidied up may have lost names: better no lists than a shown opt-out."""
    store = Store.create(tmp_path / "store")
    opt_out(store, ["a"])
    store.write_bytes(f"{FOLDER}/ab/{stranger}", b"")
    with pytest.raises(StoreError) as caught:
        read_opt_outs(store)
    assert caught.value.problem.code == "OPT-OUTS-DAMAGED"
    assert stranger in caught.value.problem.place


@pytest.mark.parametrize("ask", [read_opt_outs, lambda store: is_opted_out(store, "a")])
def test_a_folder_that_cannot_be_read_is_not_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: object
) -> None:
    """Fail closed."""
    store = Store.create(tmp_path / "store")
    opt_out(store, ["a"])

    def broken(*_: object, **__: object) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store.fs, "ls", broken)
    monkeypatch.setattr(Path, "stat", broken)
    with pytest.raises(StoreError) as caught:
        ask(store)  # type: ignore[operator]
    assert caught.value.problem.code == "STORE-UNREADABLE"


@pytest.mark.parametrize(
    "ask", [read_opt_outs, lambda store: OptOutWatch(store).read(), lambda store: opt_out(store, ["b"])]
)
def test_a_store_that_is_gone_is_not_one_without_opt_outs(tmp_path: Path, ask: object) -> None:
    """A volume that is no longer mounted looks like an empty folder: everybody who left would be shown, and whoever
    leaves now would be lost when it is back."""
    store = Store.create(tmp_path / "store")
    opt_out(store, ["a"])
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    (tmp_path / "store").mkdir()
    with pytest.raises(StoreError) as caught:
        ask(store)  # type: ignore[operator]
    assert caught.value.problem.code == "NO-STORE"
    assert not list((tmp_path / "store").iterdir())


def test_a_watch_sees_what_a_reading_sees(tmp_path: Path) -> None:
    """A gateway looks every second: it must miss nobody who comes or goes, in whatever order and however fast."""
    store, random_ = Store.create(tmp_path / "store"), random.Random(3)
    watch, users = OptOutWatch(store), [f"user {number}" for number in range(40)]
    for step in range(300):
        user = random_.choice(users)
        (opt_out if random_.random() < 0.6 else opt_in)(store, [user])
        if random_.random() < 0.5:
            assert watch.read() == read_opt_outs(store), step
    for shard in store.names(FOLDER):  # as if long ago
        os.utime(store.path(f"{FOLDER}/{shard}"), ns=(0, 10**18))
    assert watch.read() == watch.read() == read_opt_outs(store)
    opt_out(store, ["somebody else"])
    assert watch.read() == read_opt_outs(store)


def beside(user: str) -> str:
    """Another user, of the same folder."""
    return next(other for other in map(str, range(10**5)) if name_of(other)[:2] == name_of(user)[:2])


def test_a_watch_of_a_store_that_tells_no_times_misses_nobody(memory_store: Store) -> None:
    """Object stores keep no time of change of a folder."""
    watch = OptOutWatch(memory_store)
    for user in ("a", beside("a")):
        opt_out(memory_store, [user])
        assert watch.read() == read_opt_outs(memory_store)


def test_a_watch_lists_only_folders_that_changed_or_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look every second must not cost more with every opt-out; but one clock tick may hold two of them."""
    store, listed, names = Store.create(tmp_path / "store"), list[str](), Store.names
    opt_out(store, ["a"])
    folder = store.path(f"{FOLDER}/{name_of('a')[:2]}")

    def told(at: Store, relative: str) -> list[str]:
        listed.append(relative)
        return names(at, relative)

    monkeypatch.setattr(Store, "names", told)
    watch, now = OptOutWatch(store), time.time_ns()
    for changed, looked_into in ((10**18, True), (10**18, False), (now, True), (now, True)):
        os.utime(folder, ns=(0, changed))
        listed.clear()
        watch.read()
        assert (len(listed) == 2) is looked_into


def test_a_watch_refuses_what_a_reading_refuses(tmp_path: Path) -> None:
    """Whoever cannot know must show nobody."""
    store = Store.create(tmp_path / "store")
    opt_out(store, ["a"])
    watch = OptOutWatch(store)
    watch.read()
    shard = store.names(FOLDER)[0]
    Path(store.path(f"{FOLDER}/{shard}/stray")).write_text("")
    with pytest.raises(StoreError, match="OPT-OUTS-DAMAGED"):
        watch.read()
