"""The diff before publishing: what it counts, whom it names, and which runs wait for a person."""

from __future__ import annotations

import json
import math
import random
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tastetwin.analysis.lookup import TwinLists
from tastetwin.config import Config, DeliverConfig
from tastetwin.delivery.diff import (
    DEPTH,
    SHOWN,
    ListDiff,
    count_leaks,
    diff_path,
    diff_runs,
    read_diff,
    runs_to_compare,
    write_diff,
)
from tastetwin.delivery.publish import promote_run, roll_back
from tastetwin.errors import GateRefused, StoreError, TasteTwinError, UsageError
from tastetwin.evaluation.gate import Verdict
from tastetwin.evaluation.reports import report_path
from tastetwin.evaluation.stage import RIVAL
from tastetwin.generations import read_manifest
from tastetwin.pipeline import run_stage
from tastetwin.privacy.opt_out import OptOuts, name_of, opt_out, read_opt_outs
from tastetwin.runs import Run, publish, published, published_run, read_run, write_run
from tastetwin.store import Store
from tests import handmade
from tests.test_cli import Shell, shell  # noqa: F401

Lists = Mapping[str, Sequence[str]]
NOBODY: Final = OptOuts(frozenset())
BEFORE: Final[Lists] = {"ann": ["bob", "cid", "dot"], "bob": ["ann", "cid"], "cid": ["ann"], "dot": ["ann"]}
AFTER: Final[Lists] = {"ann": ["cid", "bob", "dot"], "bob": ["dot", "eve"], "cid": ["ann", "eve"], "eve": ["bob"]}
"""ann's list is only in another order, bob's is new, cid's has one more, dot vanishes, eve appears."""


@pytest.fixture
def store(memory_store: Store) -> Store:
    return memory_store


def out(*users: str) -> OptOuts:
    return OptOuts(frozenset(map(name_of, users)))


# -- what it counts ---------------------------------------------------------------------------------------------------


def slow_diff(before: Lists, after: Lists, hidden: set[str]) -> dict[str, Any]:
    """The same by sets, user by user."""

    def seen(lists: Lists) -> dict[str, list[str]]:
        shown = {u: [t for t in twins if t not in hidden][:DEPTH] for u, twins in lists.items() if u not in hidden}
        return {user: twins for user, twins in shown.items() if twins}

    old, new = seen(before), seen(after)
    both = sorted(old.keys() & new.keys())
    kept = {user: len(set(old[user]) & set(new[user])) for user in both}
    changed = {user: max(len(old[user]), len(new[user])) - kept[user] for user in both}
    far = [user for user in both if 2 * changed[user] > max(len(old[user]), len(new[user]))]
    everybody = sorted({twin for lists in (old, new) for twins in lists.values() for twin in twins})
    counts = [[sum(twin in twins for twins in lists.values()) for twin in everybody] for lists in (old, new)]
    shown = list(zip(everybody, *counts, strict=True))
    jaccard = [kept[user] / len({*old[user], *new[user]}) for user in both]
    return {
        "users_before": len(old),
        "users_after": len(new),
        "appeared": len(new.keys() - old.keys()),
        "vanished": len(old.keys() - new.keys()),
        "jaccard": pytest.approx(sum(jaccard) / len(both)) if both else None,
        "churn": [sum(value == number for value in changed.values()) for number in range(DEPTH + 1)],
        "kept": sum(kept.values()),
        "left": sum(len(old[user]) - kept[user] for user in both),
        "new": sum(len(new[user]) - kept[user] for user in both),
        "changed_share": (len(far) + len(old.keys() - new.keys())) / max(1, len(old)),
        "most_changed": [
            {"user_idno": user, "changed": changed[user], "before": old[user], "after": new[user]}
            for user in sorted(both, key=lambda user: (-changed[user], user))
            if changed[user]
        ][:SHOWN],
        "gained": _exposures(sorted((each for each in shown if each[2] > each[1]), key=lambda e: (e[1] - e[2], e[0]))),
        "lost": _exposures(sorted((each for each in shown if each[2] < each[1]), key=lambda e: (e[2] - e[1], e[0]))),
    }


def _exposures(rows: list[tuple[str, int, int]]) -> list[dict[str, Any]]:
    return [dict(zip(("user_idno", "before", "after"), row, strict=True)) for row in rows[:SHOWN]]


IDS: Final = ["", "a", "A", "é", "골목", "\x00", "\U0010ffff", "10", "9", '"', "\\", "\n", *map(str, range(100, 118))]


@st.composite
def some_lists(draw: st.DrawFn) -> dict[str, list[str]]:
    chance = random.Random(draw(st.integers(0, 1 << 32)))
    users = chance.sample(IDS, draw(st.integers(0, len(IDS))))
    longest = draw(st.sampled_from([2, 10, 13]))
    return {user: chance.sample(IDS, chance.randint(1, longest)) for user in users}


@given(some_lists(), some_lists(), st.integers(1, 6), st.integers(1, 6), st.sets(st.sampled_from(IDS), max_size=4))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_diff_is_that_of_its_slow_twin(
    store: Store, before: Lists, after: Lists, buckets_before: int, buckets_after: int, hidden: set[str]
) -> None:
    """Whatever the ids, the lengths, the order of rows, the numbers of buckets, and whoever has opted out."""
    name = uuid.uuid4().hex
    old = handmade.run_with_lists(store, f"{name}-old", before, buckets=buckets_before)
    new = handmade.run_with_lists(store, f"{name}-new", after, buckets=buckets_after)
    found = asdict(diff_runs(store, new, old, out(*hidden)))
    names = {"run_id": new.run_id, "with_run": old.run_id, "depth": DEPTH}
    assert found == {**names, **slow_diff(before, after, hidden)}


def test_counters_are_added_up_when_many_wait(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody may be in lists of every bucket; a hundred buckets must not cost a hundred counters each."""
    monkeypatch.setattr("tastetwin.delivery.diff._COUNTED", 1)
    chance = random.Random(1)
    old, new = ({u: chance.sample(IDS, 5) for u in IDS} for _ in range(2))
    runs = [handmade.run_with_lists(store, name, lists) for name, lists in (("old", old), ("new", new))]
    found = asdict(diff_runs(store, runs[1], runs[0], NOBODY))
    assert {name: found[name] for name in ("gained", "lost")} == {
        name: slow_diff(old, new, set())[name] for name in ("gained", "lost")
    }


def test_the_diff_by_hand(store: Store) -> None:
    """Written out: order alone is no change, of three entries of bob's and cid's longer lists one or two are new."""
    old, new = (handmade.run_with_lists(store, name, lists) for name, lists in (("b", BEFORE), ("a", AFTER)))
    found = diff_runs(store, new, old, NOBODY)
    assert (found.users_before, found.users_after, found.appeared, found.vanished) == (4, 4, 1, 1)
    assert found.churn == [1, 1, 1, *[0] * 8] and (found.kept, found.left, found.new) == (4, 2, 3)
    assert found.jaccard is not None and math.isclose(found.jaccard, (1 + 0 + 1 / 2) / 3)
    assert found.changed_share == 2 / 4, "bob's whole list, and dot's is gone; half of cid's is not more than half"
    assert [(each.user_idno, each.changed) for each in found.most_changed] == [("bob", 2), ("cid", 1)]
    assert found.most_changed[0].before == ["ann", "cid"] and found.most_changed[0].after == ["dot", "eve"]
    assert [asdict(each) for each in found.gained] == [{"user_idno": "eve", "before": 0, "after": 2},
                                                       {"user_idno": "bob", "before": 1, "after": 2},
                                                       {"user_idno": "dot", "before": 1, "after": 2}]  # fmt: skip
    assert [each.user_idno for each in found.lost] == ["ann", "cid"]


def test_two_runs_with_equal_lists_differ_in_nothing(store: Store) -> None:
    """A day without events."""
    old, new = (handmade.run_with_lists(store, name, BEFORE) for name in "ab")
    found = diff_runs(store, new, old, NOBODY)
    assert (found.jaccard, found.changed_share, found.churn[0], found.gained, found.lost) == (1.0, 0.0, 4, [], [])
    assert found.most_changed == [], "lists that are as they were are not among those that change most"


def test_an_opt_out_is_no_change(store: Store) -> None:
    """Readers do not see ann before, either: her leaving is not what a person should be woken for."""
    gone = {user: [twin for twin in twins if twin != "ann"] for user, twins in BEFORE.items() if user != "ann"}
    old, new = (handmade.run_with_lists(store, name, lists) for name, lists in (("b", BEFORE), ("a", gone)))
    found = diff_runs(store, new, old, out("ann"))
    assert (found.changed_share, found.vanished, found.left) == (0.0, 0, 0)
    assert "ann" not in json.dumps(asdict(found))


# -- which runs are compared ------------------------------------------------------------------------------------------


def test_by_default_the_newest_run_is_compared_with_the_published_one(store: Store) -> None:
    """And once it is published, with what readers saw before."""
    first, second = (handmade.run_with_lists(store, name, BEFORE) for name in "ab")
    publish(store, first.run_id)
    assert [run.run_id for run in runs_to_compare(store, None, None)] == [second.run_id, first.run_id]
    publish(store, second.run_id)
    assert [run.run_id for run in runs_to_compare(store, None, None)] == [second.run_id, first.run_id]
    assert [run.run_id for run in runs_to_compare(store, first.run_id, None)] == [first.run_id, second.run_id]
    assert [run.run_id for run in runs_to_compare(store, first.run_id, first.run_id)] == [first.run_id] * 2


def test_there_may_be_nothing_to_compare_with(store: Store) -> None:
    """The first run ever, before and after it is published; a run without lists."""
    first = handmade.run_with_lists(store, "a", BEFORE)
    with pytest.raises(UsageError, match="NOT-PUBLISHED"):
        runs_to_compare(store, None, None)
    publish(store, first.run_id)
    with pytest.raises(UsageError, match="NO-PREVIOUS"):
        runs_to_compare(store, None, None)
    with pytest.raises(UsageError, match="STAGE-MISSING"):
        diff_runs(store, handmade.run_of(store, {"collect": "a"}), first, NOBODY)
    store.remove("analysis/a")
    with pytest.raises(StoreError, match="NO-GENERATION"):
        diff_runs(store, first, first, NOBODY)


# -- before publication -----------------------------------------------------------------------------------------------


class Service:
    """A store whose handmade lists are published; further runs are one ``deliver`` away from that."""

    def __init__(self, store: Store) -> None:
        self.store = store
        handmade.features(store)
        for stage in ("collect", "mart", "train"):
            handmade.generation(store, stage, "x")
        handmade.analysis(store)
        self.first = self.deliver(self.evaluated("a"), DeliverConfig())

    def analysis(self, name: str, lists: Lists) -> None:
        twins = handmade.bucketed(handmade.ranked(lists))
        keeps = {table: read_manifest(self.store, "analyze", "a").tables[table] for table in ("visitors", "vectors")}
        facts = {"buckets": handmade.BUCKETS}
        settings = {"min_favors": handmade.MIN_FAVORS, **handmade.SAYS_ALL}
        handmade.generation(self.store, "analyze", name, {"twins": twins}, keeps=keeps, facts=facts, settings=settings)

    def evaluated(self, analysis: str) -> Run:
        """A run with these lists that the gate has let through."""
        shown = published(self.store)
        rival = None if shown is None else read_manifest(
            self.store, "evaluate", read_run(self.store, shown.run_id).generation("evaluate")
        ).digest()  # fmt: skip
        facts = {"verdict": asdict(Verdict(True, rival is None, [])), RIVAL: rival}
        handmade.generation(self.store, "evaluate", f"e-{analysis}", {"t": [handmade.twins()]}, facts=facts)
        made = {"collect": "x", "mart": "x", "features": "f", "train": "x", "analyze": analysis}
        run = handmade.run_of(self.store, {**made, "evaluate": f"e-{analysis}"}, status="open")  # type: ignore[dict-item]
        self.store.write_bytes(report_path(run.run_id), b"fine")
        return write_run(self.store, replace(run, started_at=f"2099-{run.started_at[5:]}"))

    def deliver(self, run: Run, config: DeliverConfig) -> Run:
        """By the stage itself."""
        return run_stage(self.store, "deliver", None, Config(deliver=config))

    def refusal(self, run: Run, config: DeliverConfig | None = None) -> TasteTwinError:
        with pytest.raises(GateRefused) as caught:
            self.deliver(run, config or DeliverConfig())
        return caught.value

    def twins(self, user: str) -> list[str]:
        """What a reader is told."""
        return [twin.twin_idno for twin in TwinLists(self.store, published_run(self.store)).twins(user, 10)]


@pytest.fixture
def service(store: Store) -> Service:
    return Service(store)


UNLIKE: Final[Lists] = {"ann": ["gus", "hal"], "bob": ["gus"], "dot": ["hal"], "gus": ["ann"]}
ALIKE: Final[Lists] = {user: [twin for twin, *_ in twins] for user, twins in handmade.LISTS.items()} | {"gus": ["ann"]}
"""Of four lists one changes."""


def test_a_run_that_changes_little_is_published_and_its_diff_is_kept(service: Service) -> None:
    """Nobody is asked; who wonders later finds what changed. A first run has nothing to differ from."""
    assert published_run(service.store).run_id == service.first.run_id
    assert not service.store.exists(diff_path(service.first.run_id))
    service.analysis("b", ALIKE)
    done = service.deliver(service.evaluated("b"), DeliverConfig())
    assert published_run(service.store).run_id == done.run_id
    kept = read_diff(service.store, done.run_id)
    assert (kept.with_run, kept.changed_share) == (service.first.run_id, 0.25)
    assert kept == diff_runs(service.store, done, service.first, NOBODY)


def test_a_run_that_changes_much_waits_until_a_person_promotes_it(service: Service) -> None:
    """Delivered, so that it can be promoted; not published; the scheduler hears of it by the exit code, people by
    ``runs``, and once it is approved nothing is said any more."""
    service.analysis("b", UNLIKE)
    run = service.evaluated("b")
    error = service.refusal(run)
    assert (error.problem.code, error.exit_code) == ("AWAITS-APPROVAL", 5)
    assert f"tastetwin promote {run.run_id}" in error.problem.fix
    waiting = read_run(service.store, run.run_id)
    assert waiting.status == "delivered" and str(waiting.error).startswith("AWAITS-APPROVAL")
    assert published_run(service.store).run_id == service.first.run_id and service.twins("bob") == ["ann"]
    assert read_diff(service.store, run.run_id).changed_share == 1.0
    promote_run(service.store, run.run_id)
    assert service.twins("bob") == ["gus"] and read_run(service.store, run.run_id).error is None


@pytest.mark.parametrize(("lists", "most", "waits"), [(ALIKE, 0.25, False), (ALIKE, 0.24, True), (UNLIKE, 1, False)])
def test_the_threshold_is_the_most_that_may_pass(service: Service, lists: Lists, most: float, waits: bool) -> None:
    """At it a run passes, above it not; 1 lets everything pass."""
    service.analysis("b", lists)
    run = service.evaluated("b")
    if waits:
        assert service.refusal(run, DeliverConfig(max_changed=most)).problem.code == "AWAITS-APPROVAL"
    else:
        assert service.deliver(run, DeliverConfig(max_changed=most)).status == "delivered"
    assert (published_run(service.store).run_id == run.run_id) is not waits


def test_with_a_threshold_of_zero_every_run_waits(service: Service) -> None:
    """For those who want to look every day, even at one that changes nothing."""
    assert service.refusal(service.evaluated("a"), DeliverConfig(max_changed=0)).problem.code == "AWAITS-APPROVAL"


def test_an_opted_out_user_in_what_is_delivered_stops_the_run_for_good(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot happen; if it does all the same, by whatever mistake, no approval publishes it."""
    opt_out(service.store, ["ann"])
    service.analysis("b", ALIKE)
    monkeypatch.setattr("tastetwin.delivery.stage.read_opt_outs", lambda _: NOBODY)
    run = service.evaluated("b")
    error = service.refusal(run, DeliverConfig(max_changed=1))
    assert (error.problem.code, error.exit_code) == ("OPT-OUT-LEAK", 5)
    assert error.problem.value.startswith("4 "), "ann herself, and in the lists of bob, dot and gus"
    assert read_run(service.store, run.run_id).status == "refused"
    with pytest.raises(UsageError, match="NOT-DELIVERED"):
        promote_run(service.store, run.run_id)
    assert published_run(service.store).run_id == service.first.run_id


def test_an_opt_out_after_the_analysis_is_no_leak(service: Service) -> None:
    """The lists are older than the request; ``deliver`` leaves her out, so nothing is wrong."""
    service.analysis("b", ALIKE)
    run = service.evaluated("b")
    opt_out(service.store, ["ann"])
    done = service.deliver(run, DeliverConfig(max_changed=1))
    assert count_leaks(service.store, done, read_opt_outs(service.store)) == 0
    assert count_leaks(service.store, service.first, read_opt_outs(service.store)) == 3, "delivered before the request"


def test_a_kept_diff_names_nobody_who_opted_out_since(store: Store) -> None:
    """The file is older than the request: whoever reads it leaves them out, as user, as twin, as one shown more."""
    old, new = (handmade.run_with_lists(store, name, lists) for name, lists in (("b", BEFORE), ("a", AFTER)))
    write_diff(store, diff_runs(store, new, old, NOBODY))
    assert read_diff(store, new.run_id) == diff_runs(store, new, old, NOBODY)
    opt_out(store, ["bob", "eve"])
    seen = read_diff(store, new.run_id)
    assert not {"bob", "eve"} & set(named(seen)) and {"ann", "cid", "dot"} <= set(named(seen))
    assert seen.churn == [1, 1, 1, *[0] * 8], "counts name nobody"


def named(diff: ListDiff) -> list[str]:
    lists = [user for each in diff.most_changed for user in (each.user_idno, *each.before, *each.after)]
    return [*lists, *(each.user_idno for each in (*diff.gained, *diff.lost))]


@pytest.mark.parametrize("text", ["{}", '{"most_changed": [], "gained": [], "lost": []}', "[]", "{"])
def test_a_diff_that_cannot_be_read_is_said(store: Store, text: str) -> None:
    """And one that is not there."""
    with pytest.raises(StoreError, match="DAMAGED"):
        read_diff(store, "2026-06-01.1")
    store.write_bytes(diff_path("2026-06-01.1"), text.encode())
    with pytest.raises(StoreError, match="DAMAGED"):
        read_diff(store, "2026-06-01.1")


def test_after_a_rollback_the_run_before_answers(service: Service) -> None:
    """From one moment to the next: nothing but the pointer is written."""
    service.analysis("b", UNLIKE)
    service.deliver(service.evaluated("b"), DeliverConfig(max_changed=1))
    assert service.twins("ann") == ["gus", "hal"]
    files = set(service.store.files(""))
    assert roll_back(service.store).run_id == service.first.run_id
    assert service.twins("ann") == ["bob", "dot"] and set(service.store.files("")) == files


# -- on the screen ----------------------------------------------------------------------------------------------------


@pytest.fixture
def on_disk(tmp_path: Any) -> Store:
    """A store with two delivered runs, the first one published."""
    store = Store.create(tmp_path / "store")
    publish(store, handmade.run_with_lists(store, "b", BEFORE).run_id)
    handmade.run_with_lists(store, "a", AFTER)
    return store


def test_diff_prints_everything_in_json(shell: Shell, on_disk: Store) -> None:  # noqa: F811
    """With the leaks, of which there are none."""
    said = json.loads(shell("diff", "--store", on_disk.root, "--json").out)
    run, other = runs_to_compare(on_disk, None, None)
    assert said == {**asdict(diff_runs(on_disk, run, other, NOBODY)), "leaks": 0}
    back = json.loads(shell("diff", other.run_id, "--with", run.run_id, "--store", on_disk.root, "--json").out)
    assert (back["run_id"], back["appeared"], back["leaks"]) == (other.run_id, 1, 0)


def test_diff_shows_people_how_many_and_who(shell: Shell, on_disk: Store) -> None:  # noqa: F811
    """On a terminal of 80 columns, ids as they are."""
    lines = [" ".join(line.split()) for line in shell("diff", "--store", on_disk.root).out.splitlines()]
    assert "run 2026-06-01.2 beside 2026-06-01.1" in lines
    assert "lists changed by more than half, or gone 50.0%" in lines
    assert "1 1 33.3% █████████████" in lines and "bob 2 ann cid dot eve" in lines and "eve 0 2" in lines


def test_diff_shows_no_table_that_would_be_empty(shell: Shell, on_disk: Store) -> None:  # noqa: F811
    """Of two runs with the same lists there is nobody to name, and a heading over nothing would look like a fault."""
    said = shell("diff", "2026-06-01.1", "--with", "2026-06-01.1", "--store", on_disk.root).out
    assert "entries new" in said and "lists that change most" not in said and "fewer lists" not in said
