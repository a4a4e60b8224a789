"""Somebody is forgotten: no byte of the store names them, nobody else misses anything, and there is a receipt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tastetwin.cli import app
from tastetwin.config import CollectConfig
from tastetwin.delivery.erase import TABLES, Found
from tastetwin.delivery.forget import RECEIPTS, elsewhere, forget
from tastetwin.delivery.kafka import Address, Topic
from tastetwin.delivery.push import push
from tastetwin.errors import StoreError, UsageError
from tastetwin.generations import STAGES, read_manifest
from tastetwin.privacy.opt_out import FORGOTTEN, name_of, opt_in, read_forgotten, read_opt_outs
from tastetwin.sources.collect import collect
from tastetwin.store import Store
from tests import handmade
from tests.delivery.topics import Cluster, Reader
from tests.privacy.haunted import ODD, check_manifests, contents, haunt, naming, rows_of_all
from tests.world import Journey

pytestmark = pytest.mark.slow

NAMES = {"ann": ODD, "bob": "골목-canary", "dot": "u1zebra", "gus": "u1zebra0"}
"""Handmade's users under names that are easy to find and hard to find all of; the last two begin alike."""


OF_NOBODY = {"places", "place", "vocabulary", "place_row", "visitors", "home_axes"}
OF_NOBODY |= {"model", "weights", "record", "evaluation"}


@pytest.fixture
def haunted(memory_store: Store) -> Store:
    haunt(memory_store, NAMES)
    return memory_store


def about(user: str, row: Any) -> bool:
    """Whether a row of any table, or a line, is about a user."""
    if isinstance(row, str):
        return user in row or json.dumps(user)[1:-1] in row
    who = (row.get("user_idno"), row.get("idno"), row.get("twin_idno"), row.get("other_idno"))
    return user in who or user in row.get("excerpt", "")


def without(users: Sequence[str], rows: list[Any]) -> list[Any]:
    """What is to be left: other rows as they are but for ranks, and lists of others without them."""
    left: list[Any] = []
    for row in rows:
        if any(about(user, row) for user in users):
            continue
        if isinstance(row, dict) and "payload" in row:
            twins = [twin for twin in row["payload"]["twins"] if twin["twin_idno"] not in users]
            row = {**row, "payload": {**row["payload"], "twins": twins}}
        if isinstance(row, dict) and row.get("instead_idno") in users:
            row = {**row, "instead_idno": None}
        if isinstance(row, dict) and "rank" in row:
            mine = [each for each in left if each["user_idno"] == row["user_idno"]]
            row = {**row, "rank": len(mine) + 1}
        left.append(row)
    return left


@pytest.mark.parametrize("user", [ODD, "골목-canary"])
def test_no_byte_of_the_store_names_them(haunted: Store, user: str) -> None:
    """Raw lines in any compression, refused lines, tables, lists, reports, errors, what killed processes left."""
    before = naming(user, contents(haunted))
    assert {path.split("/")[0] for path in before} >= {
        *("lake", "mart", "features", "analysis", "results", "reports", "runs", "checkpoints", ".published.json.7.tmp")
    }
    receipt = forget(haunted, [f" {user}\n"])  # as it comes from a file or a form; the gate strips ids too
    assert naming(user, contents(haunted)) == []
    assert check_manifests(haunted) == 8
    found = {entry.place: entry.found for entry in receipt.places}
    assert all(found[place] > 0 for place in ("lake", "mart", "features", "analysis", "results", "reports", "runs"))


def test_nobody_else_misses_anything(haunted: Store) -> None:
    """Every other row is there, in its order; ranks close up; whose id begins alike is another person."""
    before = rows_of_all(haunted)
    lines = [key for key in before if key.startswith("collect")]
    forget(haunted, ["u1zebra"])
    after = rows_of_all(haunted)
    assert list(after) == list(before)
    for key in set(before) - set(lines):
        wanted = without(["u1zebra"], before[key])
        if key.endswith("quarantine"):
            wanted = [row for row in before[key] if "u1zebra," not in row["excerpt"]]
        assert after[key] == wanted, key
    assert naming("u1zebra0", contents(haunted)), "u1zebra0 is still there"
    for key in lines:
        own, others = (
            [text for text in before[key] if ("bystander" in text) == is_other] for is_other in (False, True)
        )
        assert [text for text in after[key] if "bystander" not in text] == [
            text for text in own if "u1zebra" not in text or "u1zebra0" in text
        ]
        assert sum("bystander" in text for text in after[key]) == len(others)


@given(st.lists(st.sampled_from(sorted(handmade.USERS)), unique=True, min_size=1))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_in_whatever_order_people_are_forgotten_they_were_never_there(memory_store: Store, users: list[str]) -> None:
    """One by one, all others' histories, vectors, lists and results are what they are without them."""
    for folder in memory_store.names(""):
        if folder != "store.json":
            memory_store.remove(folder)
    haunt(memory_store, {})
    before = {key: rows for key, rows in rows_of_all(memory_store).items() if not key.startswith("collect")}
    for user in users:
        forget(memory_store, [user])
    after = rows_of_all(memory_store)
    assert {key: after[key] for key in before} == {key: without(users, rows) for key, rows in before.items()}
    check_manifests(memory_store)


def test_the_receipt_tells_of_every_place_and_names_nobody(haunted: Store) -> None:
    """Somebody will be asked for it, perhaps a year later."""
    receipt = forget(haunted, [ODD, "골목-canary"])
    (kept,) = haunted.files(RECEIPTS)
    assert haunted.read_json(kept) == asdict(receipt)
    assert receipt.users == sorted(map(name_of, (ODD, "골목-canary")))
    assert naming(ODD, {"receipt": str(receipt)}) == []
    assert [entry.place for entry in receipt.places][:7] == [
        *("lake", "mart", "features", "bundles", "analysis", "evaluation", "results")
    ]
    remains = {entry.place: entry.remains for entry in receipt.places}
    assert "t" in remains["bundles"] and "full training" in remains["bundles"]


def test_who_is_unknown_gets_a_receipt_that_found_nothing(haunted: Store) -> None:
    """The same answer: whether somebody was here is nobody's business."""
    before = rows_of_all(haunted)
    receipt = forget(haunted, ["nobody", "\udc80"])
    assert all(entry.found == entry.rewritten == 0 for entry in receipt.places)
    assert rows_of_all(haunted) == before
    assert read_forgotten(haunted).of(["nobody", "\udc80", "ann"]).tolist() == [True, True, False]


def test_a_dry_run_says_what_would_be_and_does_nothing(haunted: Store) -> None:
    before = {path: haunted.sha256(path) for path in haunted.files("")}
    planned = forget(haunted, [ODD], dry_run=True)
    assert {path: haunted.sha256(path) for path in haunted.files("")} == before
    done = forget(haunted, [ODD])
    assert planned.places[:-1] == done.places[:-1], "but for unfinished writes, of which some went with their stage"


def test_forgetting_twice_is_forgetting_once(haunted: Store) -> None:
    forget(haunted, [ODD])
    before = {path: haunted.sha256(path) for path in haunted.files("") if not path.startswith(RECEIPTS)}
    assert all(entry.found == entry.rewritten == entry.removed == 0 for entry in forget(haunted, [ODD]).places)
    assert {path: haunted.sha256(path) for path in haunted.files("") if not path.startswith(RECEIPTS)} == before


def test_they_are_hidden_before_anything_is_erased_and_also_when_the_store_is_busy(copied: Journey) -> None:
    """Erasing takes its time, and may have to wait for a run."""
    user = copied.tt.vectors().column("user_idno")[0].as_py()
    with copied.store.writing(), pytest.raises(StoreError) as caught:
        copied.tt.forget(user)
    assert caught.value.problem.code == "STORE-BUSY"
    assert user not in copied.tt.twins().column("user_idno").to_pylist()


def test_an_opt_in_does_not_bring_them_back(haunted: Store) -> None:
    """A list of opt-ins from another system may be older than the request."""
    forget(haunted, [ODD])
    with pytest.raises(UsageError) as caught:
        opt_in(haunted, ["x", ODD])
    assert caught.value.problem.code == "FORGOTTEN"
    assert read_opt_outs(haunted).of([ODD]).all()


def test_every_table_of_a_run_is_known_to_speak_of_users_or_not(journey: Journey) -> None:
    """Whoever adds a table or a folder to the store decides here whether people are in it."""
    tables = {
        table.split("/")[0]
        for stage in STAGES
        for table in read_manifest(journey.store, stage, journey.first.generation(stage)).tables
    }
    assert tables <= set(TABLES) | OF_NOBODY
    assert not set(TABLES) & OF_NOBODY
    known = {"lake", "mart", "features", "bundles", "analysis", "evaluation", "results", "reports", "runs"}
    known |= {"checkpoints", "privacy", "receipts", "diffs", "pushed", "published.json", "store.json", ".lock"}
    assert set(journey.store.names("")) <= known


def test_nothing_is_collected_when_nobody_knows_who_was_forgotten(haunted: Store, tmp_path: Any) -> None:
    """Fail closed: a deny set that lost names would let people back in."""
    (tmp_path / "reviews.jsonl").write_bytes(b"{}\n")
    haunted.write_bytes(f"{FORGOTTEN}/zz/readme", b"")
    with pytest.raises(StoreError) as caught:
        collect(haunted, str(tmp_path), date(2026, 6, 1), config=CollectConfig())
    assert caught.value.problem.code == "OPT-OUTS-DAMAGED"


def test_the_command_line_prints_the_receipt(copied: Journey) -> None:
    runner, store = CliRunner(), ["--store", copied.store.root]
    said = json.loads(runner.invoke(app, ["forget", "nobody", *store, "--dry-run", "--json"]).stdout)
    assert said["users"] == [name_of("nobody")] and not copied.store.files(RECEIPTS)
    done = runner.invoke(app, ["forget", "nobody", *store])
    assert done.exit_code == 0 and "lake" in done.stdout and len(copied.store.files(RECEIPTS)) == 1


def test_a_topic_that_was_pushed_to_gets_tombstones(haunted: Store) -> None:
    """What a consumer still holds of them goes, and our own note of what it holds; others stay as they are."""
    cluster = Cluster()
    target = cluster.topic()
    push(haunted, target, Topic(Address.of(target), {}))
    assert naming(ODD, {path: text for path, text in contents(haunted).items() if path.startswith("pushed")})
    receipt = forget(haunted, [ODD], besides=elsewhere(haunted, [], None))
    assert receipt.places[-1].place == target and naming(ODD, contents(haunted)) == []
    reader = Reader(cluster.brokers, target.rpartition("/")[2])
    held = reader.read()
    reader.close()
    assert reader.last[ODD.encode()] is None and "골목-canary".encode() in held


def test_an_unreachable_topic_is_no_silent_success(haunted: Store) -> None:
    """The store is clean, the command fails, and the same command does the rest once the cluster is back."""

    def lost(store: Store, users: Any) -> Any:
        def erase() -> None:
            raise StoreError("KAFKA-UNREACHABLE", place="kafka", rule="a broker answers", fix="again")

        return Found("kafka", 1, 1, 1, 0, "", erase)

    with pytest.raises(StoreError):
        forget(haunted, [ODD], besides=[lost])
    assert naming(ODD, contents(haunted)) == [] and not haunted.files(RECEIPTS)
    assert forget(haunted, [ODD]).users == [name_of(ODD)]
