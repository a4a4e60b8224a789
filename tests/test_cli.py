"""The command line: help, errors, exit codes, answers and tables; a real run is in ``test_journey.py``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import pytest
from rich.cells import cell_len
from typer.main import get_command

from tastetwin import __version__, cli, console
from tastetwin.analysis.evidence import Evidence
from tastetwin.analysis.lookup import Twin
from tastetwin.cli import app
from tastetwin.cli.deploy import Step
from tastetwin.cli.history import say_run
from tastetwin.delivery.embed import Embedded
from tastetwin.errors import EXIT_INTERRUPTED, GateRefused, InputError, MissingExtra, StoreError, UsageError
from tastetwin.evaluation.benchmark import Benchmark
from tastetwin.evaluation.gate import Finding, Verdict
from tastetwin.evaluation.halves import PairScore
from tastetwin.evaluation.metrics import Interval
from tastetwin.evaluation.steps import Steps
from tastetwin.generations import STAGES
from tastetwin.privacy.opt_out import is_opted_out
from tastetwin.runs import write_run
from tastetwin.schema import VECTORS
from tastetwin.store import Store
from tests import handmade

VERBS: Final = [
    name
    for name, verb in get_command(app).commands.items()  # type: ignore[attr-defined]
    if getattr(verb, "invoke_without_command", True)
]
NEEDS_STORE: Final = ("mart", "features", "train", "analyze", "evaluate", "deliver", "runs", "rollback")
EVENTS: Final = '{"user_idno": "1", "review_place_id": "a"}\n'


class Result:
    """What a command said and how it ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def error(self) -> dict[str, Any]:
        """The JSON error on stdout."""
        found: dict[str, Any] = json.loads(self.out)["error"]
        return found


class Shell:
    """Runs commands in this process."""

    def __init__(self, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self._patch, self._capture = patch, capture

    def __call__(self, *arguments: str, columns: int = 80) -> Result:
        self._patch.setenv("COLUMNS", str(columns))
        self._patch.setattr(sys, "argv", ["tastetwin", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = self._capture.readouterr()
        return Result(int(ended.value.code or 0), said.out, said.err)


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.setattr("tastetwin.cli.signal.signal", lambda *_: None)
    monkeypatch.setattr("tastetwin.cli.os._exit", sys.exit)
    return Shell(monkeypatch, capsys)


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_an_example_and_fits_the_terminal(shell: Shell, verb: str, columns: int) -> None:
    """Most people copy the example; on a narrow terminal it must still be there, and nothing may stick out."""
    shown = shell(verb, "--help", columns=columns)
    assert shown.code == 0
    assert f"Example: tastetwin {verb}" in shown.out
    assert max(map(len, shown.out.splitlines())) <= columns
    assert "…" not in shown.out, "a word was cut off"


def test_the_steps_of_deploy_stand_whole_in_its_help(shell: Shell) -> None:
    """Whoever looks for the word to give must not have to put it together from two lines."""
    words = shell("deploy", "--help").out.replace(",", " ").replace(".", " ").split()
    assert {step.value for step in Step} <= set(words)


def test_the_version_is_the_package_s(shell: Shell) -> None:
    """Bug reports begin with it."""
    assert shell("--version").out.strip() == __version__


@pytest.mark.parametrize(
    "arguments", [["fly"], ["run"], ["similar", "1", "--store", "s", "-k", "0"], ["runs", "--jsn"]]
)
def test_a_request_that_cannot_be_read_exits_with_2(shell: Shell, arguments: list[str]) -> None:
    """As every Unix command does; a scheduler must not try it again."""
    assert shell(*arguments).code == 2


@pytest.mark.parametrize("verb", NEEDS_STORE)
def test_a_store_that_is_not_there_is_said_and_not_made(shell: Shell, verb: str, tmp_path: Path) -> None:
    """A typo in --store must not leave an empty store behind that hides the next mistake."""
    store = tmp_path / "nothing"
    done = shell(verb, "--store", str(store))
    assert done.code == StoreError.exit_code
    assert "NO-STORE" in done.err and str(store) in done.err and "fix:" in done.err
    assert not store.exists()


def test_with_json_an_error_is_json_and_says_all_five_things(shell: Shell, tmp_path: Path) -> None:
    """A program that calls us reads stdout; it must be able to tell errors apart without reading prose."""
    done = shell("similar", "42", "--store", str(tmp_path / "no"), "--json")
    assert set(done.error) == {"code", "place", "value", "rule", "fix", "exit_code"}
    assert done.error["code"] == "NO-STORE" and done.error["exit_code"] == done.code == StoreError.exit_code


def test_nothing_published_yet_is_said(shell: Shell, tmp_path: Path) -> None:
    """The first thing that goes wrong for somebody who asks before running."""
    Store.create(tmp_path / "store")
    for arguments in (["similar", "42"], ["sql", "SELECT 1"], ["export", "twins", "--to", str(tmp_path / "t.csv")]):
        done = shell(*arguments, "--store", str(tmp_path / "store"), "--json")
        assert (done.code, done.error["code"]) == (UsageError.exit_code, "NOT-PUBLISHED")
    assert not (tmp_path / "t.csv").exists()


@pytest.mark.parametrize(
    ("day", "code"), [("22.11.2026", "BAD-DATE"), ("2026-02-30", "BAD-DATE"), ("9999-01-01", "FUTURE-DATE")]
)
def test_a_bad_date_is_refused_before_anything_is_written(shell: Shell, tmp_path: Path, day: str, code: str) -> None:
    """A wrong logical date would make every later day's merge wrong."""
    store = tmp_path / "store"
    done = shell("run", "--source", str(tmp_path), "--store", str(store), "--date", day, "--json")
    assert (done.code, done.error["code"]) == (UsageError.exit_code, code)
    assert not store.exists()


def test_a_typo_in_the_settings_suggests_the_right_key(shell: Shell, tmp_path: Path) -> None:
    """All wrong keys are told at once, with what was probably meant."""
    settings = tmp_path / "settings.yaml"
    settings.write_text("train:\n  epoch: 3\nmrat:\n  rating_max: 10\n")
    done = shell("run", "--source", ".", "--store", str(tmp_path / "s"), "--config", str(settings), "--json")
    assert (done.code, done.error["code"]) == (UsageError.exit_code, "CONFIG-INVALID")
    assert "'epochs'" in done.error["value"] and "'mart'" in done.error["value"]


@pytest.mark.parametrize(
    ("name", "code"),
    [("", "SOURCE-EMPTY"), ("places.jsonl", "SOURCE-NO-EVENTS"), ("reviews.csv", "SOURCE-WRONG-TYPE")],
)
def test_a_source_without_events_exits_with_3(shell: Shell, tmp_path: Path, name: str, code: str) -> None:
    """The data's fault, not the request's: whoever delivers the events has to act."""
    source = tmp_path / "events"
    source.mkdir()
    if name:
        (source / name).write_text("{}\n")
    done = shell("collect", "--source", str(source), "--store", str(tmp_path / "store"), "--json")
    assert (done.code, done.error["code"]) == (InputError.exit_code, code)


def test_collect_lands_events_and_says_so_in_json(shell: Shell, tmp_path: Path) -> None:
    """Stdout holds the JSON and nothing else; progress goes to stderr as plain lines."""
    source = tmp_path / "events"
    source.mkdir()
    (source / "reviews.jsonl").write_text(EVENTS)
    where = ["--store", str(tmp_path / "store"), "--json"]
    done = shell("collect", "--source", str(source), "--date", "2026-11-22", *where)
    assert done.code == 0 and json.loads(done.out)["run_id"] == "2026-11-22.1"
    assert "collect: finished" in done.err and "\x1b" not in done.err
    (listed,) = json.loads(shell("runs", *where).out)
    assert listed["logical_date"] == "2026-11-22" and listed["seconds"].keys() == {"collect"}
    late = shell("train", *where)
    assert (late.code, late.error["code"]) == (UsageError.exit_code, "STAGE-MISSING")


def raising(error: BaseException) -> Any:
    """A stand-in for the command line that fails."""

    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("A", place="p", rule="r"), 2),
        (InputError("A", place="p", rule="r"), 3),
        (StoreError("A", place="p", rule="r"), 4),
        (GateRefused("A", place="p", rule="r"), 5),
        (MissingExtra.of("pymongo", "mongodb"), 6),
        (OSError(28, "No space left on device", "/disk"), 4),
        (KeyboardInterrupt(), EXIT_INTERRUPTED),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else type(value).__name__,
)
def test_each_kind_of_failure_has_its_exit_code(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    """Documented in docs/reference/errors.md; schedulers and scripts decide by it."""
    monkeypatch.setattr(cli, "app", raising(error))
    done = shell("run")
    assert done.code == code
    assert done.err.strip() and "Traceback" not in done.err


def test_a_missing_extra_says_what_to_install(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exact line, to be copied."""
    monkeypatch.setattr(cli, "app", raising(MissingExtra.of("pymongo", "mongodb")))
    assert "pip install 'tastetwin[mongodb]'" in shell("collect").err


def test_a_reader_that_goes_away_is_no_crash() -> None:
    """``tastetwin config show | head -1`` must not end in a traceback."""
    command = f"{sys.executable} -m tastetwin config show --json | head -c 1"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, env=environment)
    assert "Traceback" not in done.stderr


# -- answers ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The root of a store with a published run, and one that failed after it; read only."""
    store = Store.create(tmp_path_factory.mktemp("cli") / "store")
    handmade.publish_by_hand(store)
    return store.root


def test_near_and_far_say_where_they_are_the_same(shell: Shell, shown: str) -> None:
    """The handmade run has no home part; the words go to stderr, where no program reads them as twins."""
    near, far = (shell("similar", "ann", "--store", shown, dial, "--json") for dial in ("--near", "--far"))
    assert json.loads(near.out) == json.loads(far.out) and "no home part" in near.err and "no home part" in far.err
    assert "no home part" not in shell("similar", "ann", "--store", shown).err


def test_similar_answers_in_json_with_the_run_it_speaks_of(shell: Shell, shown: str) -> None:
    """Who keeps an answer must know which day's it is."""
    said = json.loads(shell("similar", "ann", "--store", shown, "-k", "1", "--json").out)
    assert (said["user_idno"], said["run_id"]) == ("ann", "2026-06-01.1")
    assert [(twin["twin_idno"], twin["evidence"], twin["shared_places"]) for twin in said["twins"]] == [
        ("bob", "Both favor Blue Kitchen.", ["a"])
    ]


def test_runs_tell_status_durations_and_funnel_in_json(shell: Shell, shown: str) -> None:
    """Oldest first, stages in their order; what monitoring reads."""
    first, second = json.loads(shell("runs", "--store", shown, "--json").out)
    assert (first["published"], first["status"]) == (True, "delivered")
    assert (second["published"], second["status"]) == (False, "failed")
    assert first["seconds"] == dict.fromkeys(STAGES, 1.5) and list(first["seconds"]) == list(STAGES)
    assert {"lines_read", "accepted", "quarantined", "users", "users_served"} < set(first["funnel"])


def test_a_run_ends_with_what_the_gate_did_not_like(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """On a first run all but the gravest are warnings; nobody opens the report of a run that ends without a word."""
    store = Store.create(tmp_path / "store")
    finding = Finding("WORSE-THAN-BASELINE", "warn", 0.8, 0.95, "below the baseline 'iALS [tuned]'")
    facts = {"verdict": asdict(Verdict(True, True, [finding]))}
    handmade.generation(store, "evaluate", "judged", facts=facts)
    say_run(store.root, handmade.run_of(store, {"evaluate": "judged"}), as_json=False)
    assert "warn: WORSE-THAN-BASELINE: below the baseline 'iALS [tuned]'" in capsys.readouterr().out.splitlines()


def test_runs_tell_people_when_what_and_why(shell: Shell, shown: str, tmp_path: Path) -> None:
    """Who looks after a bad night sees the code and the reason at once, and which run readers see."""
    store = Store.create(tmp_path / "store")
    run = handmade.publish_by_hand(store)
    error = "QUARANTINE-SHARE: lake/x, byte 7: 9 of 10 lines refused. at most 20% may be refused. look at the source"
    failed = handmade.run_of(store, {"collect": "c"}, status="failed")
    write_run(store, replace(failed, started_at="2099-11-22T03:04:05.678+00:00", error=error))
    said = shell("runs", "--store", store.root).out
    assert f"{run.run_id} published".split() == said.splitlines()[2].split()[:2]
    assert "11-22 03:04" in said and "delivered" not in said
    assert f"{failed.run_id} failed: {error}" in said.splitlines()


def test_the_error_of_a_run_is_shown_for_the_newest_only(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A year of failures must not bury last night's."""
    monkeypatch.setattr("tastetwin.cli.history.ERRORS", 2)
    store = Store.create(tmp_path / "store")
    for number in range(3):
        write_run(store, replace(handmade.run_of(store, {}, status="failed"), error=f"CODE-{number}"))
    said = shell("runs", "--store", store.root).out
    assert "CODE-0" not in said and "CODE-1" in said and "CODE-2" in said and "1 older errors" in said


class StoppedMeasurement:
    """A benchmark that is interrupted after one of four steps, or none."""

    def __init__(self, done: int) -> None:
        self.steps = Steps([("seed 1", f"m{n}") for n in range(4)], lambda text: None)
        self.steps.done = {("seed 1", f"m{n}"): 1.0 for n in range(done)}

    def run(self) -> None:
        raise SystemExit(130)

    def found(self) -> Benchmark:
        score = PairScore("disjoint", "m0", False, 9, Interval(0.5, 0.4, 0.6), 0.7, 0.8)
        return Benchmark("town", 9, 9, 9, [1], [score], complete=False)


@pytest.mark.parametrize("done", [0, 1])
def test_a_stopped_benchmark_shows_what_it_has(shell: Shell, monkeypatch: pytest.MonkeyPatch, done: int) -> None:
    """Hours of work are not thrown away; nobody is told of published runs, which are not touched at all."""
    monkeypatch.setattr("tastetwin.cli.evaluation._measurement", lambda *_: StoppedMeasurement(done))
    said = shell("evaluate", "--source", "events/")
    assert (said.code, "0.400 .. 0.600" in said.out) == (130, bool(done))
    last = said.err.strip().splitlines()[-1]
    assert last == f"interrupted: {done} of 4 steps are kept; the same command goes on from there"
    as_json = shell("evaluate", "--source", "events/", "--json").out
    assert not done or json.loads(as_json)["complete"] is False


@pytest.mark.parametrize(("option", "value"), [("--seeds", "5"), ("--keep", "benchmark-results")])
def test_what_a_run_is_not_judged_by_is_refused_with_a_store(shell: Shell, shown: str, option: str, value: str) -> None:
    """Whoever asks for five splits, even as many as there would be, must not take one for them."""
    said = shell("evaluate", "--store", shown, option, value, "--json")
    assert (said.code, said.error["code"], said.error["place"]) == (2, "EVALUATE-WHAT", option)
    assert said.error["value"] == value and option in said.error["fix"]


def test_a_benchmark_has_its_defaults(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are what ``--help`` says."""
    asked: list[tuple[Any, ...]] = []

    def measurement(*given: Any) -> StoppedMeasurement:
        asked.append(given)
        return StoppedMeasurement(0)

    monkeypatch.setattr("tastetwin.cli.evaluation._measurement", measurement)
    shell("evaluate", "--source", "events/")
    shell("evaluate", "--source", "events/", "--seeds", "2", "--keep", "here")
    assert [given[3:5] for given in asked] == [(5, Path("benchmark-results")), (2, Path("here"))]


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        (["run", "--source", "."], "interrupted: what is published is untouched, the same command goes on from here"),
        (["runs"], "interrupted"),
    ],
)
@pytest.mark.parametrize("code", [130, 143], ids=["ctrl-C", "SIGTERM"])
def test_an_interrupt_says_what_is_true_of_that_verb(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: list[str], words: str, code: int
) -> None:
    """Nothing was published by ``runs``, and nothing goes on."""
    for name in ("tastetwin.pipeline.run_day", "tastetwin.runs.list_runs"):
        monkeypatch.setattr(name, raising(SystemExit(code)))
    Store.create(tmp_path / "store")
    done = shell(*verb, "--store", str(tmp_path / "store"))
    assert (done.code, done.err.strip().splitlines()[-1]) == (code, words)


@pytest.mark.parametrize(
    ("what", "name", "said"),
    [
        ("twins", "t.csv", {"rows": 6}),
        ("vectors", "v.parquet", {"rows": 5}),
        ("report", "r.html", {"bytes": len(handmade.REPORT)}),
    ],
)
def test_export_says_what_it_wrote(
    shell: Shell, shown: str, tmp_path: Path, what: str, name: str, said: dict[str, int]
) -> None:
    """And how much of it."""
    to = str(tmp_path / name)
    done = shell("export", what, "--store", shown, "--to", to, "--json")
    assert json.loads(done.out) == {"what": what, "to": to, **said}
    assert (tmp_path / name).exists()


def test_sql_prints_an_object_a_row(shell: Shell, shown: str) -> None:
    """For ``jq``; a refused statement is a coded error there, too."""
    done = shell("sql", "SELECT idno FROM result ORDER BY idno", "--store", shown, "--json")
    assert [json.loads(line) for line in done.out.splitlines()] == [{"idno": "ann"}, {"idno": "bob"}]
    refused = shell("sql", "DROP VIEW result", "--store", shown, "--json")
    assert (refused.code, refused.error["code"]) == (UsageError.exit_code, "SQL")


def test_sql_shows_lists_and_structs_as_json(shell: Shell, shown: str) -> None:
    """A Python object's repr can be copied nowhere."""
    statement = "SELECT review_list[1].review_place_id AS place, review_list, 1/3 AS third FROM user_favor"
    (row,) = shell("sql", statement, "--store", shown, columns=300).out.splitlines()[2:]
    review = '[{"review_id":"r1","review_rating":4.5,"review_visited_date":"2026-05-01T12:00:00","review_place_id":'
    assert row.split() == ["a", review[:99] + "…", "0.3333"]
    maps = shell("sql", "SELECT seconds FROM runs LIMIT 1", "--store", shown, columns=300).out.splitlines()[2]
    assert json.loads(maps)["collect"] == 1.5


# -- tables ----------------------------------------------------------------------------------------------------------


def table(capture: pytest.CaptureFixture[str], columns: list[str], rows: list[list[object]]) -> list[str]:
    """The lines of a table."""
    console.print_table("", columns, rows)
    return [line.rstrip() for line in capture.readouterr().out.splitlines()]


RUN: Final[list[object]] = ["2026-06-30.12", "interrupted", "07-01 00:15", 123, 3_000_000, 50_000, 100_000, None]
HEADERS: Final = ["run", "status", "started", "secs", "lines", "quarantined", "users", "served"]


@pytest.mark.parametrize("columns", [20, 80, 120])
def test_ids_and_numbers_are_never_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    """A run id is there to be copied into ``promote``; half of one on each line is none."""
    monkeypatch.setenv("COLUMNS", str(columns))
    header, row = table(capsys, HEADERS, [RUN])
    assert header.split() == HEADERS
    start = ["07-01", "00:15"]
    assert row.split() == ["2026-06-30.12", "interrupted", *start, "123", "3,000,000", "50,000", "100,000", "-"]


def test_a_usual_list_of_runs_fits_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The width that a terminal opens with."""
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, table(capsys, HEADERS, [RUN]))) <= 80


def test_long_text_is_folded_beside_numbers_on_the_right(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is cut off: all words are still there."""
    monkeypatch.setenv("COLUMNS", "40")
    why = "Both favor Blue Kitchen, Old House and Corner Diner."
    lines = table(capsys, ["rank", "score", "why"], [[1, "0.5", why], [10, "-0.25", why]])
    assert lines[0] == "rank  score  why"
    assert lines[1].startswith("   1    0.5  Both favor")
    assert " ".join(" ".join(lines[1:]).split()).count("Kitchen") == 2
    assert max(map(len, lines)) <= 40


WHY: Final = Evidence((), (), (), "Both favor Café Kitchen 67, 골목 House 335 and X.")
TWIN: Final = Twin(1, "10000648", -0.0461, 99.96, None, None, 0.125, WHY)


def twins(capture: pytest.CaptureFixture[str]) -> list[str]:
    """The lines of a twin list."""
    console.print_twins("twins", [TWIN])
    return [line.rstrip() for line in capture.readouterr().out.splitlines()]


def test_a_twin_list_says_which_number_to_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A score below zero on the first screen needs a word."""
    monkeypatch.setenv("COLUMNS", "120")
    _, header, row, note = twins(capsys)
    assert header.split() == ["rank", "twin_idno", "chance", "percentile", "evidence"]
    assert row.split()[:6] == ["1", "10000648", "12.5", "%", "99.96", "Both"]
    assert "chance" in note and (Path(__file__).parents[1] / note.split()[-1]).exists()


def test_a_chance_that_is_not_told_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    """A column of dashes looks like a fault."""
    console.print_twins("twins", [TWIN, replace(TWIN, chance=None)])
    assert "too few people" in capsys.readouterr().out.splitlines()[-1]


def test_on_a_narrow_terminal_no_name_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A place's name over two lines cannot be read in a list of ten; so the evidence gets a line of its own."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = twins(capsys)
    assert TWIN.evidence.sentence in [line.strip() for line in lines]
    assert max(map(cell_len, lines)) <= 80


def test_what_forget_left_can_be_read_on_a_narrow_terminal(shell: Shell, tmp_path: Path) -> None:
    """Numbers in one table, what remains in words in another: beside each other neither has room."""
    handmade.publish_by_hand(Store.create(tmp_path / "store"))
    said = shell("forget", "ann", "--dry-run", "--store", str(tmp_path / "store")).out.splitlines()
    numbers, words = (next(at for at, line in enumerate(said) if title in line) for title in ("rewritten", "remains"))
    assert max(map(cell_len, said)) <= 80 and max(map(len, said[:words])) <= 60
    assert [line.split()[0] for line in said[numbers + 1 : words - 1]][:2] == ["lake", "mart"]
    assert any(line.startswith("bundles") for line in said[words:])


def test_away_from_a_terminal_a_row_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``tastetwin sql ... | grep`` finds whole rows."""
    monkeypatch.delenv("COLUMNS", raising=False)
    assert len(table(capsys, ["a", "b"], [["x", "word " * 100], ["y", "word"]])) == 3


def test_cells_are_shown_as_they_are(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A place called ``[bold]`` is a place, not an instruction to the terminal."""
    monkeypatch.setenv("COLUMNS", "80")
    assert table(capsys, ["name"], [["[bold]x[/bold]"], [None]]) == ["name", "[bold]x[/bold]", "-"]


def test_a_town_goes_on_for_a_day(shell: Shell, tmp_path: Path) -> None:
    """Whoever tries a second run by hand needs other events than the first day's, of the same people."""
    words = ("--users", "50", "--seed", "7", "--json")
    first = json.loads(shell("town", str(tmp_path / "town"), *words).out)
    second = json.loads(shell("town", str(tmp_path / "day1"), *words, "--day", "1").out)
    assert 0 < second["events"] < first["events"] / 10 and second["users"] >= first["users"]


def test_a_list_of_ids_from_a_text_editor_names_those_who_are_known_by_them(shell: Shell, tmp_path: Path) -> None:
    """Notepad's mark and a spreadsheet's blanks are no part of an id: they would be told that nobody sees them, and be
    shown."""
    store, ids = Store.create(tmp_path / "store"), tmp_path / "ids.txt"
    ids.write_bytes("\ufeffu1\r\nu2 \r\n\r\n\tu3".encode())
    found = shell("opt-out", " u4", "--from", str(ids), "--store", str(tmp_path / "store"), "--json")
    assert (found.code, json.loads(found.out)) == (0, {"opted_out": 4})
    assert all(is_opted_out(store, user) for user in ("u1", "u2", "u3", "u4"))


def test_users_of_whom_nothing_can_be_said_are_counted_and_named_to_programs_only(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A city's worth of ids in one line of a terminal hides the three lines that matter."""
    Store.create(tmp_path / "store")
    found = Embedded(VECTORS.empty_table(), ["u1", "u2"], {"lines_read": 2})
    monkeypatch.setattr("tastetwin.delivery.embed.embed", lambda *_: found)
    monkeypatch.setattr("tastetwin.engine.connect", lambda *_: None)
    command = ("embed", "events", "--store", str(tmp_path / "store"), "--to", str(tmp_path / "v.parquet"))
    assert "unusable: 2\n" in shell(*command).out
    assert json.loads(shell(*command, "--json").out)["unusable"] == ["u1", "u2"]
