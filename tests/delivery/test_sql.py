"""The planner's SQL: every published table is a view, and nothing but the views can be reached."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from typing import Final

import pyarrow as pa
import pytest

from tastetwin.delivery.sql import VIEWS, connect, json_lines, query
from tastetwin.delivery.views import QUESTIONS, READY
from tastetwin.errors import UsageError
from tastetwin.evaluation.stage import read_evaluation, verdict_of
from tastetwin.features.user_favor import USER_FAVOR
from tastetwin.generations import read_manifest
from tastetwin.privacy.opt_out import opt_out
from tastetwin.runs import write_run
from tastetwin.store import Store
from tests import handmade
from tests.world import Journey


def refusal(store: Store, sql: str) -> str:
    """What DuckDB or we say against a statement."""
    with pytest.raises(UsageError) as caught:
        query(store, sql)
    assert caught.value.problem.code == "SQL"
    assert caught.value.problem.place == sql
    return caught.value.problem.value


# -- the views --------------------------------------------------------------------------------------------------------


SCHEMAS: Final = {**{view: schema for view, (_, schema) in VIEWS.items()}, **READY}


@pytest.mark.parametrize("view", SCHEMAS)
def test_a_view_has_the_columns_of_its_schema(shown: Store, view: str) -> None:
    """In their order, and no other: planners write ``SELECT *`` and keep what comes."""
    schema = SCHEMAS[view]
    found = query(shown, f"SELECT * FROM {view}").schema
    assert found.names == schema.names
    assert [str(field.type).replace("<l:", "<item:") for field in found] == [str(field.type) for field in schema]


def test_all_rows_of_all_buckets_are_there(shown: Store) -> None:
    """Users lie in several buckets: a view over the first file only would look fine and be wrong."""
    rows = query(shown, "SELECT user_idno, twin_idno, score FROM twins ORDER BY user_idno, rank").to_pylist()
    assert [(row["user_idno"], row["twin_idno"], row["score"]) for row in rows] == [
        (user, twin, score) for user, found in handmade.LISTS.items() for twin, score, _ in found
    ]
    assert query(shown, "SELECT count(*) AS n FROM twins").to_pylist() == [{"n": 6}]


def test_rows_of_runs_made_before_there_were_parts_have_none(store: Store) -> None:
    """Both where parts are columns and where they lie inside a list of structs."""
    handmade.publish_by_hand(store)
    twin = {"twin_idno": "bob", "score": 0.75, "percentile": 99.0}
    rows = pa.table({"idno": ["ann"], "payload": [{"logical_date": handmade.DAY, "places": 3, "twins": [twin]}]})
    handmade.generation(store, "deliver", "d", {"result": [rows]})
    old = [part.drop_columns(["taste", "home", "chance"]) for part in handmade.bucketed(handmade.twins())]
    handmade.generation(store, "analyze", "a", {"twins": old})
    assert query(store, "SELECT count(*) AS n, count(taste) AS parts FROM twins").to_pylist() == [{"n": 6, "parts": 0}]
    assert query(store, "SELECT t.score, t.home FROM result, unnest(payload.twins) x(t)").to_pylist() == [
        {"score": 0.75, "home": None}
    ]


def test_a_table_without_rows_has_no_file_and_is_a_view_all_the_same(store: Store) -> None:
    """On a clean day nothing is quarantined; the planner's query of every morning must not fail for that."""
    handmade.publish_by_hand(store)
    handmade.generation(store, "mart", "m", {"quarantine": []})
    assert query(store, "SELECT * FROM quarantine").num_rows == 0
    assert query(store, "SELECT * FROM quarantine").schema.names == VIEWS["quarantine"][1].names


def test_structs_and_lists_can_be_taken_apart(shown: Store) -> None:
    """The README's own query, and the times inside a list."""
    row = query(shown, "SELECT idno, payload.* FROM result WHERE idno = 'ann'").to_pylist()
    assert [(r["idno"], r["places"], r["twins"]) for r in row] == [("ann", 3, [])]
    visits = query(shown, "SELECT user_idno, unnest(review_list).review_visited_date AS at FROM user_favor")
    assert visits.to_pylist() == [{"user_idno": "ann", "at": handmade.NOON}]


def test_runs_tell_how_they_ended_how_long_they_took_and_what_they_counted(shown: Store) -> None:
    """All runs, not the published one only: the others are those a planner asks about."""
    rows = query(shown, "SELECT run_id, status, seconds['collect'] AS took FROM runs ORDER BY run_id").to_pylist()
    assert rows == [
        {"run_id": "2026-06-01.1", "status": "delivered", "took": 1.5},
        {"run_id": "2026-06-01.2", "status": "failed", "took": 1.5},
    ]


# -- ready views ------------------------------------------------------------------------------------------------------


def test_views_are_listed_and_nothing_else_is(shown: Store) -> None:
    """Neither the tables behind them nor the hashes of who has opted out are something to browse."""
    assert query(shown, "SHOW TABLES")["name"].to_pylist() == sorted(SCHEMAS)


def test_every_view_has_a_question_that_it_answers(shown: Store) -> None:
    """Whoever copies the statement of the reference page must not be the first to run it."""
    assert set(QUESTIONS) == set(SCHEMAS)
    for view, (_, sql) in QUESTIONS.items():
        assert f"FROM {view}" in sql and query(shown, sql).num_columns, view


def test_a_favor_comes_with_its_place(store: Store) -> None:
    """Reviews and likes alike, also of a place that the source never described: one line, no join."""
    liked = {"like_regymdt": handmade.NOON, "like_displayid": "heart", "like_contentsid": "d"}
    row = {**handmade.user_favor().to_pylist()[0], "like_list": [liked]}
    handmade.publish_by_hand(store)
    handmade.features(store, tables={"user_favor": [pa.Table.from_pylist([row], USER_FAVOR)]})
    nothing = dict.fromkeys(("place_name", "place_category_code_list", "place_dongcode", "place_lat", "place_lon"))
    about = {"user_idno": "ann", "favored_at": handmade.NOON}
    known = {"place_name": "Blue Kitchen", "place_category_code_list": [100], "place_dongcode": "r1"}
    assert query(store, "FROM favors ORDER BY kind").to_pylist() == [
        {**about, **nothing, "kind": "like", "place_id": "d", "review_rating": None},
        {**about, **nothing, **known, "kind": "review", "place_id": "a", "review_rating": 4.5},
    ]


def test_the_favors_of_who_opted_out_are_gone_too(store: Store) -> None:
    """The ready view stands on the watched one."""
    handmade.publish_by_hand(store)
    assert query(store, "FROM favors").num_rows == 1
    opt_out(store, ["ann"])
    assert query(store, "FROM favors").num_rows == 0


def test_a_funnel_has_a_row_per_step_and_reason(store: Store) -> None:
    """Long, so that a planner can filter and pivot; the order is the data's way."""
    run = handmade.publish_by_hand(store)
    counts = {"mart": {"lines_read": 9, "quarantined": 2, "quarantined.not-json": 2}, "analyze": {"hidden.burst": 1}}
    stages = {name: replace(record, counts=counts.get(name, {})) for name, record in run.stages.items()}
    write_run(store, replace(run, stages=stages))
    rows = query(store, f"SELECT stage, step, reason, count FROM funnel WHERE run_id = '{run.run_id}'").to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("mart", "lines_read", None, 9),
        ("mart", "quarantined", None, 2),
        ("mart", "quarantined", "not-json", 2),
        ("analyze", "hidden", "burst", 1),
    ]


def test_the_run_that_readers_see_is_marked(shown: Store) -> None:
    """A delivered run need not be the one: somebody may have gone back."""
    rows = query(shown, "SELECT run_id, published FROM runs ORDER BY run_id").to_pylist()
    assert [row["published"] for row in rows] == [True, False]


# -- only reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sql",
    ["SELECT 1 AS n", "FROM twins", "WITH t AS (FROM twins) FROM t", "DESCRIBE twins", "SHOW TABLES", "VALUES (1)"],
)
def test_reading_statements_are_answered(shown: Store, sql: str) -> None:
    """The premise of the tests below: it is not that everything fails."""
    assert query(shown, sql).num_rows > 0


@pytest.mark.parametrize(
    "sql",
    [
        "ATTACH 'x.db' AS x",
        "SET threads = 1",
        "RESET threads",
        "PRAGMA version",
        "INSTALL httpfs",
        "LOAD httpfs",
        "CREATE TABLE t (i INT)",
        "DROP VIEW twins",
        "CALL enable_logging()",
        "EXPORT DATABASE 'x'",
        "INSERT INTO twins VALUES (1)",
    ],
)
def test_a_statement_that_does_not_read_is_refused(shown: Store, sql: str) -> None:
    """Said with what would be answered."""
    assert "only SELECT" in refusal(shown, sql)


@pytest.mark.parametrize("sql", ["", " ", ";", "-- nothing", "SELEC 1", "SELECT * FROM no_such_view"])
def test_what_is_no_query_is_refused(shown: Store, sql: str) -> None:
    """An empty answer to an empty statement would pass for a table without rows."""
    assert refusal(shown, sql)


def test_of_several_statements_the_last_is_answered(shown: Store) -> None:
    """As every SQL shell does."""
    assert query(shown, "SELECT 1 AS n; SELECT 2 AS n;").to_pylist() == [{"n": 2}]


@pytest.mark.parametrize("sql", ["SELECT 1; {}", "{}; SELECT 1", "SELECT 1; -- \n{}; SELECT 2"])
def test_a_writing_statement_does_not_hide_among_others(shown: Store, sql: str, tmp_path: Path) -> None:
    """The first statement alone being a SELECT proves nothing."""
    assert "only SELECT" in refusal(shown, sql.format(f"COPY (SELECT 1) TO '{tmp_path / 'out.csv'}'"))
    assert not (tmp_path / "out.csv").exists()


SMUGGLED: Final[dict[str, str]] = {
    "copy": "COPY (SELECT 1) TO '{}'",
    "with": "WITH x AS (COPY (SELECT 1) TO '{}') SELECT * FROM x",
    "serialized": "SELECT * FROM json_execute_serialized_sql(json_serialize_sql("
    "$$WITH x AS (COPY (SELECT 1) TO '{}') SELECT * FROM x$$))",
}


@pytest.mark.parametrize("sql", SMUGGLED.values(), ids=SMUGGLED)
def test_published_files_cannot_be_overwritten(shown: Store, sql: str) -> None:
    """To DuckDB a COPY inside a WITH is a SELECT, and where it may read it may write: it must reach no file at all."""
    with shown.open_read("published.json") as handle:
        before = handle.read()
    refusal(shown, sql.format(shown.url("published.json").replace("'", "''")))
    with shown.open_read("published.json") as handle:
        assert handle.read() == before


@pytest.mark.parametrize("sql", SMUGGLED.values(), ids=SMUGGLED)
def test_nothing_is_written_outside_the_store(shown: Store, sql: str, tmp_path: Path) -> None:
    """Also where the store is a bucket and the statement names a file of this machine."""
    refusal(shown, sql.format(tmp_path / "out.csv"))
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("read", ["read_text('{}')", "read_csv('{}')", "'{}'", "glob('{}*')"])
def test_no_file_can_be_read_but_through_the_views(shown: Store, read: str, tmp_path: Path) -> None:
    """Neither what lies on the machine nor raw lines in the lake, which hold more than the tables show."""
    secret = tmp_path / "secret.csv"
    secret.write_text("word\nopen sesame\n")
    assert "sesame" not in refusal(shown, f"SELECT * FROM {read.format(secret)}")
    inside = shown.url(handmade.RAW).replace("'", "''")
    assert "sesame" not in refusal(shown, f"SELECT * FROM {read.format(inside)}")


def test_python_s_variables_are_no_tables(shown: Store) -> None:
    """DuckDB looks for a table's name among the caller's variables if it is let."""
    secret = pa.table({"word": ["open sesame"]})
    assert secret.num_rows == 1
    refusal(shown, "SELECT * FROM secret")


def test_the_session_cannot_be_unlocked(shown: Store) -> None:
    """``connect`` is for notebooks, where every statement goes: its limits must not rest on ``query``."""
    with pytest.raises(Exception, match="locked"):
        connect(shown).execute("SET enable_external_access = true")


def test_nothing_published_is_said(store: Store) -> None:
    """Not a missing view."""
    with pytest.raises(UsageError) as caught:
        query(store, "SELECT 1")
    assert caught.value.problem.code == "NOT-PUBLISHED"


# -- JSON lines -------------------------------------------------------------------------------------------------------


def lines(table: pa.Table) -> list[dict[str, object]]:
    return [json.loads(line) for line in json_lines(table)]


def test_a_row_is_one_json_object_on_one_line() -> None:
    """Also with a line break in the text, and beyond one batch of 4,096."""
    table = pa.table({"n": list(range(5_000)), "text": ["two\nlines"] * 5_000})
    assert not any(b"\n" in line for line in json_lines(table))
    assert lines(table) == [{"n": n, "text": "two\nlines"} for n in range(5_000)]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (lambda: pa.array([datetime(2026, 5, 1, 12, 30)]), "2026-05-01T12:30:00"),
        (lambda: pa.array([date(2026, 5, 1)]), "2026-05-01"),
        (lambda: pa.array([None], pa.float64()), None),
        (lambda: pa.array([float("nan")]), None),
        (lambda: pa.array([[{"twin": "골목"}]]), [{"twin": "골목"}]),
    ],
    ids=["time", "day", "null", "nan", "nested"],
)
def test_values_are_said_in_json_s_words(value: Callable[[], pa.Array], said: object) -> None:
    """Times as ISO 8601, what is no number as null, text as it is."""
    assert lines(pa.table({"v": value()})) == [{"v": said}]


# -- a whole run ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_view_of_a_real_run_has_rows_and_its_schema(journey: Journey) -> None:
    """What the stages write is what the schemas say, down to lists that are empty and never null."""
    for view, schema in SCHEMAS.items():
        assert journey.tt.sql(f"SELECT * FROM {view} LIMIT 1").schema.names == schema.names
        assert journey.tt.sql(f"SELECT count(*) AS n FROM {view}")["n"][0].as_py() > 0
    nulls = "SELECT count(*) AS n FROM user_favor WHERE like_list IS NULL OR review_list IS NULL"
    assert journey.tt.sql(nulls)["n"][0].as_py() == 0
    rows = journey.tt.sql("SELECT status, funnel['users_served'] AS served FROM runs").to_pylist()
    assert rows == [{"status": "delivered", "served": journey.first.stages["analyze"].counts["users_served"]}]


@pytest.mark.slow
def test_a_result_is_the_user_s_list(journey: Journey) -> None:
    """``result`` and ``twins`` are two shapes of the same lists."""
    user = journey.tt.twins()["user_idno"][0].as_py()
    (row,) = journey.tt.sql(f"SELECT payload.twins AS twins FROM result WHERE idno = '{user}'").to_pylist()
    listed = journey.tt.sql(f"SELECT * EXCLUDE (user_idno, rank) FROM twins WHERE user_idno = '{user}' ORDER BY rank")
    assert row["twins"] == listed.to_pylist() and len(row["twins"]) == 100


@pytest.mark.slow
def test_the_health_card_says_what_the_gate_said(journey: Journey) -> None:
    """A planner who reads ``passed`` must come to the gate's own conclusions."""
    evaluation = read_manifest(journey.store, "evaluate", journey.first.generation("evaluate"))
    failed = journey.tt.sql("SELECT code FROM health WHERE NOT passed")["code"].to_pylist()
    findings = {finding.code for finding in verdict_of(evaluation).findings}
    assert set(failed) == {code for code in findings if code not in ("FEW-HELD-OUT", "WORSE-THAN-BASELINE")}
    (never,) = journey.tt.sql("FROM health WHERE code = 'MANY-NEVER-SHOWN'").to_pylist()
    found = read_evaluation(journey.store, evaluation)
    assert (never["value"], never["threshold"], never["limit"]) == (found.health.never_shown, 0.6, "most")
    (model,) = journey.tt.sql("FROM quality WHERE method = 'model' AND task = 'disjoint' AND csls").to_pylist()
    score = found.model()
    assert score is not None and (model["mrr"], model["mrr_high"]) == (score.mrr.value, score.mrr.high)
