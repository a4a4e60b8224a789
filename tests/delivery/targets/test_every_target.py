"""What every database promises, whatever its kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tastetwin import TasteTwin
from tastetwin.delivery.load import (
    Loaded,
    erase_loaded,
    load_published,
    plan_load,
    roll_back_loaded,
    without_users,
)
from tastetwin.delivery.targets.base import Version, open_target
from tastetwin.errors import TasteTwinError, UsageError
from tastetwin.privacy.opt_out import deny, opt_in, opt_out
from tastetwin.runs import publish
from tastetwin.schema import RESULT
from tastetwin.store import Store
from tests.delivery.targets.conftest import Served, payload, publish_lists, twin

FIRST = {"ann": payload(twin("bob"), twin("dot")), "bob": payload(twin("ann")), "dot": payload(twin("ann"))}
SECOND = {"ann": payload(twin("gus")), "gus": payload(twin("ann"), twin("bob"))}
THIRD = {"hal": payload(twin("ann"))}

HOSTILE = ["42", 'a"b', "back\\slash", "\\N", "\\.", "o'neil", "%s {}", "é中🍜", "\u2028", "$where", "a.b", "x" * 256]
"""Ids that one or the other language reads as something else."""


def code(failure: Any, *arguments: Any) -> str:
    with pytest.raises(TasteTwinError) as caught:
        failure(*arguments)
    return caught.value.problem.code


def test_readers_get_every_row_as_the_result_table_has_it(database: Served, store: Store) -> None:
    """Ids of any script, float32 numbers to the last bit, nulls and empty lists."""
    scores = [float(np.float32(score)) for score in (0.1, 1 / 3, 1e-9, -0.75, 16_777_216, 3.4e38)] * 2
    twins = list(map(twin, HOSTILE, scores))
    lists = {user: payload(*twins) for user in HOSTILE}
    lists["nobody"] = payload(favors=None, home_region=None)
    lists["old"] = payload({**twin("42"), "taste": None, "home": None, "chance": None})
    run = publish_lists(store, lists, "d1")
    assert load_published(store, database.address).rows == len(lists)
    with open_target(database.address) as target:
        (version,) = target.versions()
        assert version.run_id == run.run_id
        found = target.read(version, list(lists))
    assert {row["idno"]: row["payload"] for row in found.to_pylist()} == lists
    seen = database.seen()
    assert list(seen["42"]) == ["logical_date", "favors", "places", "home_region", "twins"]
    assert {user: [each["twin_idno"] for each in row["twins"]] for user, row in seen.items()} == {
        user: [each["twin_idno"] for each in row["twins"]] for user, row in lists.items()
    }


def test_a_run_that_is_there_is_not_loaded_again(database: Served, store: Store) -> None:
    """A scheduler runs the same command twice; the second must cost nothing and change nothing."""
    run = publish_lists(store, FIRST, "d1")
    first, second = (TasteTwin(store.root).load(database.address) for _ in range(2))
    assert (first.run_id, first.rows, first.previous) == (run.run_id, 3, None)
    assert second == Loaded(first.to, run.run_id, 0, None)
    assert database.seen() == FIRST
    assert database.versions() == 1


def test_rows_that_vanished_are_gone_and_one_earlier_version_is_kept(database: Served, store: Store) -> None:
    """A user who is no longer served must not go on with an old list."""
    runs = []
    for name, lists in (("d1", FIRST), ("d2", SECOND), ("d3", THIRD)):
        runs.append(publish_lists(store, lists, name).run_id)
        assert load_published(store, database.address).previous == (runs[-2] if len(runs) > 1 else None)
        assert database.seen() == lists
    assert database.versions() == 2


def test_rollback_shows_what_readers_saw_before(database: Served, store: Store) -> None:
    """At once, and the next load goes on from there."""
    assert code(roll_back_loaded, store, database.address) == "DATABASE-NO-PREVIOUS"
    old, new = (publish_lists(store, lists, name).run_id for name, lists in (("d1", FIRST), ("d2", SECOND)))
    publish(store, old)
    load_published(store, database.address)
    assert code(roll_back_loaded, store, database.address) == "DATABASE-NO-PREVIOUS"
    publish(store, new)
    load_published(store, database.address)
    back = roll_back_loaded(store, database.address)
    assert (back.run_id, back.previous) == (old, new)
    assert database.seen() == FIRST
    publish_lists(store, THIRD, "d3")
    assert load_published(store, database.address).previous == old
    assert database.seen() == THIRD
    assert database.versions() == 2


def test_a_run_promoted_again_is_shown_again_without_being_loaded(database: Served, store: Store) -> None:
    """It is still there as the one kept."""
    old = publish_lists(store, FIRST, "d1").run_id
    load_published(store, database.address)
    publish_lists(store, SECOND, "d2")
    load_published(store, database.address)
    publish(store, old)
    assert load_published(store, database.address).rows == 0
    assert database.seen() == FIRST


def test_runs_of_two_stores_with_one_id_are_two_runs(database: Served, store: Store, tmp_path: Any) -> None:
    """Run ids count up from 1 in every store."""
    from tests import handmade

    other = Store.create(tmp_path / "other")
    handmade.publish_by_hand(other)
    ids = {publish_lists(place, lists, "d1").run_id for place, lists in ((store, FIRST), (other, SECOND))}
    assert len(ids) == 1
    for place, lists in ((store, FIRST), (other, SECOND)):
        load_published(place, database.address)
        assert database.seen() == lists


def test_nobody_who_has_opted_out_is_loaded(database: Served, store: Store) -> None:
    """Also who did so after the run was made: neither as a user nor in the lists of others."""
    publish_lists(store, FIRST, "d1")
    opt_out(store, ["bob"])
    assert load_published(store, database.address).rows == 2
    assert database.seen() == {"ann": payload(twin("dot")), "dot": payload(twin("ann"))}


def test_nobody_is_loaded_who_is_being_forgotten(database: Served, store: Store) -> None:
    """The features are cleaned before the results: in between, nothing but these has the id."""
    publish_lists(store, {"ann": payload(twin("zoe"), twin("bob")), "zoe": payload(twin("ann"))}, "d1")
    deny(store, ["zoe"])
    assert load_published(store, database.address).rows == 1
    assert database.seen() == {"ann": payload(twin("bob"))}


def test_who_opts_out_while_lists_are_loaded_is_not_shown(database: Served, store: Store) -> None:
    """A load takes minutes; an opt-out holds from the moment it is made."""
    publish_lists(store, FIRST, "d1")
    load_published(store, database.address, progress=lambda *_: opt_out(store, ["dot"]))
    assert database.seen() == {"ann": payload(twin("bob")), "bob": payload(twin("ann"))}


def test_the_next_load_removes_who_has_opted_out_from_all_that_is_kept(database: Served, store: Store) -> None:
    """Even where the run itself is there already; a rollback then must not bring anybody back."""
    for name, lists in (("d1", FIRST), ("d2", SECOND)):
        publish_lists(store, lists, name)
        load_published(store, database.address)
    opt_out(store, ["bob"])
    assert load_published(store, database.address).rows == 0
    assert database.seen() == {"ann": payload(twin("gus")), "gus": payload(twin("ann"))}
    opt_in(store, ["bob"])
    roll_back_loaded(store, database.address)
    assert database.seen() == {"ann": payload(twin("dot")), "dot": payload(twin("ann"))}


def test_a_rollback_brings_nobody_back_who_has_opted_out_since(database: Served, store: Store) -> None:
    for name, lists in (("d1", FIRST), ("d2", SECOND)):
        publish_lists(store, lists, name)
        load_published(store, database.address)
    opt_out(store, ["dot"])
    roll_back_loaded(store, database.address)
    assert database.seen() == {"ann": payload(twin("bob")), "bob": payload(twin("ann"))}


@pytest.mark.parametrize("leave", [opt_out, deny])
def test_the_kept_version_is_cleaned_of_whom_the_published_run_does_not_know(
    database: Served, store: Store, leave: Any
) -> None:
    """Who is in an older run alone, or was forgotten since, is in no history of the published one; only the hash of the
    id says that nobody may see them."""
    older = {"zoe": payload(twin("ann"), twin("yan")), "ann": payload(twin("zoe"), twin("bob"))}
    for name, lists in (("d1", older), ("d2", SECOND)):
        publish_lists(store, lists, name)
        load_published(store, database.address)
    leave(store, ["zoe", "yan"])
    load_published(store, database.address)
    roll_back_loaded(store, database.address)
    assert database.seen() == {"ann": payload(twin("bob"))}


def test_erased_users_are_in_no_version(database: Served, store: Store) -> None:
    """Rows and appearances, in what is shown and in what is kept; the order of lists stays."""
    erase_loaded(database.address, ["ann"])  # nothing is there yet, and nothing to be done
    latest = SECOND | {"hal": payload(*map(twin, ("dot", "ann", "gus", "bob", "cid")))}
    for name, lists in (("d1", FIRST), ("d2", latest)):
        publish_lists(store, lists, name)
        load_published(store, database.address)
    erase_loaded(database.address, ["ann", "stranger"])
    assert database.seen() == {
        "gus": payload(twin("bob")),
        "hal": payload(*map(twin, ("dot", "gus", "bob", "cid"))),
    }
    roll_back_loaded(store, database.address)
    assert database.seen() == {"bob": payload(), "dot": payload()}


def test_a_load_that_breaks_off_changes_nothing_and_the_next_succeeds(database: Served, store: Store) -> None:
    """Readers see the old version throughout, and what the broken load left is gone after the next."""
    publish_lists(store, FIRST, "d1")
    load_published(store, database.address)
    publish_lists(store, SECOND, "d2")

    def stop(*_: Any) -> None:
        assert database.seen() == FIRST
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_published(store, database.address, progress=stop)
    assert database.seen() == FIRST
    load_published(store, database.address)
    assert database.seen() == SECOND
    assert database.versions() == 2


def test_what_is_loaded_but_not_shown_is_seen_by_nobody(database: Served, store: Store) -> None:
    """A check that fails comes after the load and before the swap."""
    publish_lists(store, FIRST, "d1")
    load_published(store, database.address)
    rows = pa.Table.from_pylist([{"idno": "eve", "payload": payload()}], RESULT)
    with open_target(database.address) as target:
        assert target.load(Version("2026-06-02.1", "0" * 12, "0" * 12), [rows]) == 1
    with open_target(database.address) as target:
        assert len(target.versions()) == 1
    assert database.seen() == FIRST


def test_one_load_at_a_time(database: Served, store: Store) -> None:
    """Two at once would drop each other's tables."""
    publish_lists(store, FIRST, "d1")
    with open_target(database.address):
        assert code(load_published, store, database.address) == "DATABASE-BUSY"
    assert load_published(store, database.address).rows == 3


def test_a_rehearsal_writes_nothing(database: Served, store: Store) -> None:
    """It says what would be loaded, and what would be kept."""
    publish_lists(store, FIRST, "d1")
    before = load_published(store, database.address)
    run = publish_lists(store, SECOND, "d2")
    plan = plan_load(store, database.address)
    assert (plan.run_id, plan.rows, plan.previous) == (run.run_id, 2, before.run_id)
    assert database.seen() == FIRST
    assert database.versions() == 1


def test_tables_of_two_names_do_not_meet(database: Served, store: Store) -> None:
    """A staging and a live list may share a database."""
    publish_lists(store, FIRST, "d1")
    load_published(store, database.address)
    publish_lists(store, SECOND, "d2")
    joint = "&" if "?" in database.address else "?"
    assert load_published(store, f"{database.address}{joint}table=rehearsal").previous is None
    assert database.seen() == FIRST


@given(
    st.dictionaries(
        st.text("abcdefg", min_size=1, max_size=1), st.lists(st.text("abcdefg", min_size=1, max_size=1), max_size=4)
    ),
    st.sets(st.text("abcdefg", min_size=1, max_size=1)),
    st.integers(0, 3),
)
def test_without_users_is_what_a_slow_reading_says(lists: dict[str, list[str]], users: set[str], skip: int) -> None:
    """Also of a part of a table, whose lists do not begin at its first byte."""
    rows = [{"idno": user, "payload": payload(*map(twin, found))} for user, found in lists.items()]
    table = pa.Table.from_pylist(rows, RESULT).slice(skip)
    kept = [
        {"idno": user, "payload": payload(*(twin(each) for each in found if each not in users))}
        for user, found in list(lists.items())[skip:]
        if user not in users
    ]
    assert without_users(table, pa.array(sorted(users), pa.string())).to_pylist() == kept


@pytest.mark.parametrize("address", ["oracle://h/db", "result.csv", "postgresql://a:b@c@h/db", "postgresql://h:x/db"])
def test_an_address_that_makes_no_sense_is_refused(store: Store, address: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_published(store, address)
    assert caught.value.problem.code == "DATABASE-ADDRESS"
