"""Somebody opts out: from the next moment no answer names them, and from the next run no list was made with them."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tastetwin.analysis.lookup import TwinLists
from tastetwin.cli import app
from tastetwin.delivery.export import export_published
from tastetwin.delivery.views import READY
from tastetwin.errors import UsageError
from tastetwin.evaluation.reports import report_path, write_report
from tastetwin.generations import read_manifest
from tastetwin.pipeline import run_day
from tastetwin.privacy.opt_out import opt_out, read_opt_outs
from tastetwin.runs import Run
from tastetwin.schema import RESULT, TWINS
from tastetwin.tables import read_table
from tests.world import QUICK, TOWN, Journey

pytestmark = pytest.mark.slow


def loud(journey: Journey) -> list[str]:
    """Users who are hard to miss: shown most often, in the report with a list of their own, and as a twin there."""
    shown = Counter(journey.tt.twins().column("twin_idno").to_pylist())
    example = TwinLists(journey.store, journey.first).some_users(3)[0]
    twin = TwinLists(journey.store, journey.first).twins(example, 3)[2].twin_idno
    return [*dict.fromkeys([shown.most_common(1)[0][0], example, twin])]


def answers(journey: Journey, folder: Path) -> dict[str, str]:
    """Everything the store says to anybody, as text."""
    tt, said = journey.tt, {}
    for what, suffix in (("twins", ".csv"), ("twins", ".parquet"), ("vectors", ".parquet"), ("report", ".html")):
        to = folder / f"{what}{suffix}"
        export_published(journey.store, what, to)
        said[f"{what}{suffix}"] = str(pq.read_table(to).to_pylist()) if suffix == ".parquet" else to.read_text()
    said["report on disk"] = Path(journey.store.path(report_path(journey.first.run_id))).read_text()
    said["api twins"], said["api vectors"] = str(tt.twins().to_pylist()), str(tt.vectors().to_pylist())
    for view in ("result", "twins", "exposure", "user_favor", "place", *READY):
        said[f"sql {view}"] = str(tt.sql(f"FROM {view}").to_pylist())
    lists = TwinLists(journey.store, journey.first)
    said["some users"] = str(lists.some_users(1000))
    asked = tt.vectors().column("user_idno").to_pylist()[::20]
    said["similar"] = str([lists.twins(user, 100) for user in asked])
    said["niche"] = str([lists.niche(user, 20) + lists.mainstream(user, 20) for user in asked[:5]])
    pairs = list(zip(asked[::2], asked[1::2], strict=False))
    said["compare"] = str([tt.compare(*pair) for pair in pairs[:10]])
    said["why not"] = str([tt.why_not(*pair) for pair in pairs[:10]])
    said["far"] = str([lists.far(user, 30) for user in asked[:5]])
    return said


def name(users: list[str], said: dict[str, str]) -> dict[str, list[str]]:
    """Answer -> which of the users it names."""
    # An id of digits within a longer number is a component of somebody's vector.
    found = {
        where: [user for user in users if re.search(rf"(?<![\d.]){re.escape(user)}(?!\d)", text)]
        for where, text in said.items()
    }
    return {where: named for where, named in found.items() if named}


def test_who_opts_out_is_named_by_no_answer_from_then_on(copied: Journey, tmp_path: Path) -> None:
    """The lists that are out were made with them, and stay as they are on disk: every way to them is watched."""
    users = loud(copied)
    before = name(users, answers(copied, tmp_path))
    assert set(before) >= {"twins.csv", "vectors.parquet", "report.html", "report on disk", "api twins", "sql result"}
    assert set(before) >= {"sql twins", "sql user_favor", "sql exposure", "sql favors", "similar", "some users", "far"}
    copied.tt.opt_out(*users)
    after = answers(copied, tmp_path)
    assert name(users, after) == {}
    assert name(copied.tt.twins().column("twin_idno").to_pylist()[:20], after), "all others are still there"


@pytest.mark.parametrize("ask", ["similar", "near", "far"])
def test_who_opted_out_is_as_unknown_as_a_stranger(copied: Journey, ask: str) -> None:
    """Another answer would tell that somebody of that id opted out."""
    user = loud(copied)[0]
    copied.tt.opt_out(user)
    said = []
    for each in (user, "nobody-of-that-name"):
        with pytest.raises(UsageError) as caught:
            getattr(copied.tt, ask)(each)
        said.append((caught.value.problem.code, caught.value.problem.value, caught.value.problem.fix))
    assert said[0] == said[1]


def test_ranks_leave_no_gap(copied: Journey, tmp_path: Path) -> None:
    """A missing rank would tell that somebody was there; wherever lists are read, they say the same."""
    lists = TwinLists(copied.store, copied.first)
    user = lists.some_users(1)[0]
    _, second, third = copied.tt.similar(user, k=3).column("twin_idno").to_pylist()
    copied.tt.opt_out(second)
    listed = copied.tt.similar(user, k=100).column("twin_idno").to_pylist()
    export_published(copied.store, "twins", tmp_path / "twins.parquet")
    for table in (copied.tt.twins(), pq.read_table(tmp_path / "twins.parquet"), copied.tt.sql("FROM twins")):
        rows = [row for row in table.to_pylist() if row["user_idno"] == user]
        assert {row["rank"]: row["twin_idno"] for row in rows} == dict(enumerate(listed, 1))
    assert (entry := lists.entry(user, third)) is not None and entry.rank == 2
    report = Path(copied.store.path(report_path(copied.first.run_id))).read_text()
    shown = re.search(rf">{re.escape(user)} <.*?</details>", report, re.DOTALL)
    assert shown is not None and re.findall(r'soft">(\d+)</td>', shown[0]) == [str(rank) for rank in range(1, 10)]
    assert copied.tt.similar(user, k=5).column("rank").to_pylist() == [1, 2, 3, 4, 5]
    assert second not in copied.tt.similar(user, k=100).column("twin_idno").to_pylist()


def test_a_run_s_report_cleans_the_others_of_who_left_through_a_gateway(copied: Journey) -> None:
    """A gateway writes the opt-out and no report: until somebody asks at the command line, files would name them."""
    user = TwinLists(copied.store, copied.first).some_users(1)[0]
    page = copied.store.read_bytes(report_path(copied.first.run_id))
    copied.store.write_bytes(report_path("2026-01-01.1"), page)
    assert f">{user} <".encode() in page
    opt_out(copied.store, [user])
    write_report(copied.store, copied.first, QUICK)
    for run_id in ("2026-01-01.1", copied.first.run_id):
        assert f">{user} <".encode() not in copied.store.read_bytes(report_path(run_id))


def again(journey: Journey, config: Any = QUICK) -> Run:
    return run_day(journey.store, str(journey.town.folder), TOWN.until, config)


def test_the_next_run_is_made_without_them_and_no_list_is_short(copied: Journey) -> None:
    """Nobody pays for another's wish with a shorter list; what is on disk does not name them either."""
    users = loud(copied)
    copied.tt.opt_out(*users)
    run = again(copied)
    assert run.generation("features") == copied.first.generation("features"), "nothing was read anew"
    analysis = read_manifest(copied.store, "analyze", run.generation("analyze"))
    delivered = read_manifest(copied.store, "deliver", run.generation("deliver"))
    assert analysis.facts["counts"]["opted_out"] == len(users)
    twins = read_table(copied.store, analysis, "twins", TWINS)
    result = read_table(copied.store, delivered, "result", RESULT)
    assert name(users, {"twins": str(twins.to_pylist()), "result": str(result.to_pylist())}) == {}
    lengths = Counter(Counter(twins.column("user_idno").to_pylist()).values())
    assert lengths == {100: analysis.facts["counts"]["users_served"]}


def test_the_model_learns_from_them_only_where_that_is_asked_for(copied: Journey) -> None:
    """They asked to be shown to nobody; whether their data teaches is the operator's to answer for."""
    bundle = read_manifest(copied.store, "train", copied.first.generation("train"))
    vectors = copied.tt.vectors().column("user_idno").to_pylist()
    copied.tt.opt_out(*vectors[:20])
    asked = QUICK.model_copy(update={"train": QUICK.train.model_copy(update={"learn_from_opted_out": True})})
    bundles = [read_manifest(copied.store, "train", again(copied, each).generation("train")) for each in (QUICK, asked)]
    counts = [each.facts["counts"]["training_users"] for each in bundles]
    assert counts[0] < counts[1] == bundle.facts["counts"]["training_users"]


def test_who_opts_in_again_is_back_with_the_next_run(copied: Journey) -> None:
    """And the day is the day it was: the same lists, found finished."""
    users = loud(copied)
    copied.tt.opt_out(*users)
    copied.tt.opt_in(*users)
    assert again(copied).generation("deliver") == copied.first.generation("deliver")


def test_nothing_is_answered_when_nobody_knows_who_opted_out(copied: Journey, tmp_path: Path) -> None:
    """Fail closed: a folder that somebody tidied up may have lost names."""
    copied.store.write_bytes("privacy/opted_out/zz/readme", b"")
    runner = CliRunner()
    store = ["--store", copied.store.root]
    for verb in (["export", "twins", *store, "--to", str(tmp_path / "t.csv")], ["sql", "FROM twins", *store]):
        done = runner.invoke(app, verb)
        assert done.exit_code != 0 and "OPT-OUTS-DAMAGED" in str(done.exception)
    assert not (tmp_path / "t.csv").exists()


def test_the_command_line_takes_names_and_files(copied: Journey, tmp_path: Path) -> None:
    """Requests come one by one, and as lists from another system, with its byte order mark and blanks: ids are read as
    the gate reads them, or somebody would be told to be hidden and is not."""
    (tmp_path / "ids").write_text("7 \n\n\t골목\n \n", encoding="utf-8-sig")
    runner, store = CliRunner(), ["--store", copied.store.root]
    done = runner.invoke(app, ["opt-out", "42", "--from", str(tmp_path / "ids"), *store, "--json"])
    assert json.loads(done.stdout) == {"opted_out": 3}
    assert read_opt_outs(copied.store).of(["42", "7", "골목", "8"]).tolist() == [True, True, True, False]
    assert runner.invoke(app, ["opt-in", "42", " 7", *store]).exit_code == 0
    assert read_opt_outs(copied.store).of(["42", "7", "골목"]).tolist() == [False, False, True]
    for wrong, code in ((["opt-out", *store], "NO-USERS"), (["opt-out", "--from", "/nowhere", *store], "USERS-FILE")):
        assert code in str(runner.invoke(app, wrong).exception)
