"""The Python interface: settings in any form, frames of any make, and errors that say what was wrong with either."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from tastetwin import TasteTwin
from tastetwin.config import Config, TrainConfig
from tastetwin.errors import StoreError, UsageError
from tastetwin.privacy.opt_out import is_opted_out, name_of
from tastetwin.runs import Run, publish
from tastetwin.schema import TWINS, VECTORS
from tastetwin.store import Store
from tests import handmade
from tests.world import QUICK, Journey

DAY: Final = "2026-06-01"


def code_of(error: pytest.ExceptionInfo[UsageError]) -> str:
    return error.value.problem.code


# -- settings ---------------------------------------------------------------------------------------------------------


def test_settings_come_as_config_sections_file_or_not_at_all(tmp_path: Path) -> None:
    """Four ways to say three epochs, or nothing."""
    for name, text in (("s.yaml", "train:\n  epochs: 3\n"), ("s.toml", "[train]\nepochs = 3\n")):
        (tmp_path / name).write_text(text)
    said: list[Any] = [
        Config(train=TrainConfig(epochs=3)),
        {"train": {"epochs": 3}},
        tmp_path / "s.yaml",
        str(tmp_path / "s.toml"),
    ]
    assert [TasteTwin("store", each).config for each in said] == [Config(train=TrainConfig(epochs=3))] * 4
    assert TasteTwin("store").config == Config()


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        ({"train": {"epoch": 3}}, "CONFIG-INVALID", "did you mean 'epochs'"),
        ({"train": {"epochs": -1}}, "CONFIG-INVALID", "train.epochs = -1"),
        ("no-such-file.yaml", "CONFIG-FILE", "no-such-file.yaml"),
    ],
)
def test_wrong_settings_are_refused_at_once(said: Any, code: str, words: str) -> None:
    """Before the first hour of work, and in words that help."""
    with pytest.raises(UsageError) as caught:
        TasteTwin("store", said)
    assert code_of(caught) == code and words in str(caught.value)


def test_a_store_is_named_long_before_it_is_there(tmp_path: Path) -> None:
    """``TasteTwin(...)`` opens nothing; asking does, and says that there is nothing yet."""
    tt = TasteTwin(tmp_path / "store")
    questions: list[Callable[[], object]] = [
        tt.twins, tt.vectors, tt.runs, lambda: tt.similar("1"), lambda: tt.sql("SELECT 1")
    ]  # fmt: skip
    for ask in questions:
        with pytest.raises(StoreError, match="NO-STORE"):
            ask()
    assert not (tmp_path / "store").exists()


# -- events -----------------------------------------------------------------------------------------------------------


class Job:
    """In place of the daily job: keeps what it was given, and what lay in its source."""

    def __init__(self) -> None:
        self.sources: list[str] = []
        self.days: list[date] = []
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.settings: list[tuple[Config, bool]] = []

    def __call__(self, store: Store, source: str, day: date, config: Config, *, again: bool) -> Run:
        self.sources.append(source)
        self.days.append(day)
        self.settings.append((config, again))
        for path in Path(source).glob("*.jsonl"):
            self.rows[path.stem] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return Run(f"{day}.1", day.isoformat(), "delivered", "now")


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    job = Job()
    monkeypatch.setattr("tastetwin.pipeline.run_day", job)
    yield job


def test_a_folder_goes_to_the_job_as_it_is(tmp_path: Path, job: Job) -> None:
    """With the date, the settings and ``again``."""
    (tmp_path / "events").mkdir()
    tt = TasteTwin(tmp_path / "store", QUICK)
    tt.run(tmp_path / "events", "2026-06-01")
    tt.run(str(tmp_path / "events"), date(2026, 6, 2), again=True)
    assert job.sources == [str(tmp_path / "events")] * 2
    assert job.days == [date(2026, 6, 1), date(2026, 6, 2)]
    assert job.settings == [(QUICK, False), (QUICK, True)]


def test_an_address_goes_to_the_job_as_it_is(tmp_path: Path, job: Job) -> None:
    """Not as a path: two slashes stay two."""
    TasteTwin(tmp_path / "store").run("mongodb://host/db", DAY)
    assert job.sources == ["mongodb://host/db"]


EVENT: Final = {"user_idno": "42", "review_place_id": "p7", "review_rating": 4.5}
MAKES: Final[dict[str, Callable[[dict[str, list[Any]]], Any]]] = {
    "arrow": pa.table,
    "batch": pa.record_batch,
    "polars": pl.DataFrame,
    "pandas": pd.DataFrame,
    "dict": dict,
}


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_a_frame_becomes_json_lines_a_row_each(tmp_path: Path, job: Job, make: Callable[[Any], Any]) -> None:
    """Of whatever make; the kinds that are given, and those only. The lines are gone when the job is done."""
    frame = make({name: [value, value] for name, value in EVENT.items()})
    TasteTwin(tmp_path / "store").run({"reviews": frame, "places": make({"place_id": ["p7"]})}, DAY)
    assert job.rows == {"reviews": [EVENT, EVENT], "places": [{"place_id": "p7"}]}
    assert not Path(job.sources[0]).exists()


@pytest.mark.parametrize("make", [pa.table, pl.DataFrame, pd.DataFrame])
def test_times_lists_and_gaps_of_a_frame_are_said_in_json_s_words(
    tmp_path: Path, job: Job, make: Callable[[Any], Any]
) -> None:
    """As a source that writes JSON would: what the gate is made for."""
    times, codes = [datetime(2026, 5, 1, 12, 30), None], [[1028], None]
    TasteTwin(tmp_path / "store").run(
        {"reviews": make({"review_visited_date": times, "review_rating": [None, 4.0]}), "places": make({"c": codes})},
        DAY,
    )
    first, second = job.rows["reviews"]
    assert datetime.fromisoformat(first["review_visited_date"]) == times[0]
    assert (first["review_rating"], second) == (None, {"review_visited_date": None, "review_rating": 4.0})
    assert [row["c"] for row in job.rows["places"]] == codes


@pytest.mark.parametrize("make", [pa.table, pl.DataFrame, pd.DataFrame])
def test_bytes_in_a_frame_are_the_text_they_hold(tmp_path: Path, job: Job, make: Callable[[Any], Any]) -> None:
    """Parquet of Impala, say, has text without the mark of it: nobody's id is ``b'42'``."""
    TasteTwin(tmp_path / "store").run({"reviews": make({"user_idno": ["김".encode(), None]})}, DAY)
    assert job.rows == {"reviews": [{"user_idno": "김"}, {"user_idno": None}]}


def test_a_frame_without_rows_is_a_file_without_lines(tmp_path: Path, job: Job) -> None:
    """A day on which nobody liked anything."""
    TasteTwin(tmp_path / "store").run({"likes": pa.table({"user_idno": pa.array([], pa.string())})}, DAY)
    assert job.rows == {"likes": []}


@pytest.mark.parametrize(
    ("events", "words"),
    [({"review": pa.table({})}, "review"), ({"reviews": pa.table({}), "x": 1, "a": 2}, "a, x"), (3, "int")],
)
def test_frames_of_an_unknown_kind_are_refused(tmp_path: Path, job: Job, events: Any, words: str) -> None:
    """``review`` for ``reviews`` would else be a day without reviews. No store is made for it."""
    with pytest.raises(UsageError) as caught:
        TasteTwin(tmp_path / "store").run(events, DAY)
    assert (code_of(caught), caught.value.problem.value) == ("FRAME-KIND", words)
    assert not (tmp_path / "store").exists() and job.sources == []


FRAMES: Final[dict[str, Callable[[], Any]]] = {
    "rows": lambda: [{"user_idno": "1"}],
    "nothing": lambda: None,
    "number": lambda: 3,
    "column": lambda: pd.Series(["1"]),
    "lazy": lambda: pl.DataFrame({"user_idno": ["1"]}).lazy(),
    "mixed": lambda: pd.DataFrame({"user_idno": [1, "x"]}),
    "uneven": lambda: {"user_idno": ["1"], "review_place_id": ["a", "b"]},
    "huge": lambda: pd.DataFrame({"user_idno": [2**70]}),
    "strange": lambda: pd.DataFrame({"user_idno": [object()]}),
    "bytes that are no text": lambda: pd.DataFrame({"user_idno": [b"\xff"]}),
    "beyond all calendars": lambda: pa.table({"at": pa.array([253402300799], pa.timestamp("s", "Asia/Seoul"))}),
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_what_is_no_frame_is_refused_under_its_kind(tmp_path: Path, job: Job, frame: Callable[[], Any]) -> None:
    """Not with a traceback out of Arrow: a column has one type, and it must be one that exists."""
    with pytest.raises(UsageError) as caught:
        TasteTwin(tmp_path / "store").run({"reviews": frame()}, DAY)
    assert (code_of(caught), caught.value.problem.place) == ("FRAME-TYPE", "reviews")
    assert job.sources == []


@pytest.mark.parametrize(("day", "code"), [("01.06.2026", "BAD-DATE"), ("9999-01-01", "FUTURE-DATE")])
def test_a_bad_date_is_refused(tmp_path: Path, job: Job, day: str, code: str) -> None:
    """The same rule as the command line's."""
    with pytest.raises(UsageError) as caught:
        TasteTwin(tmp_path / "store").run(tmp_path, day)
    assert code_of(caught) == code and job.sources == []


# -- questions --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> TasteTwin:
    """A published run of the handmade users, one of whom is called 42; read only."""
    store = Store.create(tmp_path_factory.mktemp("api") / "store")
    handmade.features(store)
    handmade.analysis(store)
    publish(store, handmade.run_of(store, {"features": "f", "analyze": "a"}).run_id)
    return TasteTwin(store.root)


def test_similar_is_a_table_of_twins_and_why(asked: TasteTwin) -> None:
    """The columns that its documentation names."""
    found = asked.similar("ann", k=1)
    assert found.schema.names == [*TWINS.names, "evidence"]
    assert found.to_pylist() == [
        {"user_idno": "ann", "rank": 1, "twin_idno": "bob", "score": 0.75, "percentile": 99.0,
         "taste": 0.5625, "home": 0.1875, "chance": 0.375, "evidence": "Both favor Blue Kitchen."}
    ]  # fmt: skip
    assert asked.similar("ann").num_rows == 2, "all there are, up to ten"


def test_people_are_named_as_the_gate_takes_their_ids_in(tmp_path: Path) -> None:
    """A column of ids with a gap holds floats: who asks for 42.0 must not be told that nobody sees 42, and be shown."""
    tt = TasteTwin(Store.create(tmp_path).root)
    asked: Any = pd.Series([42, None])[0], np.int64(7), " u1 ", "4.0"
    tt.opt_out(*asked)
    assert [is_opted_out(tt.store, user) for user in ("42", "7", "u1", "4.0")] == [True] * 4
    assert tt.forget(asked[0], dry_run=True).users == [name_of("42")]
    tt.opt_in(*asked)
    assert not any(is_opted_out(tt.store, user) for user in ("42", "7", "u1", "4.0"))


@pytest.mark.parametrize("k", [0, -1])
def test_less_than_one_twin_is_refused(asked: TasteTwin, k: int) -> None:
    """``NO-TWINS`` would be a lie."""
    with pytest.raises(UsageError) as caught:
        asked.similar("ann", k)
    assert (code_of(caught), caught.value.problem.value) == ("BAD-K", str(k))


@pytest.mark.parametrize(("user", "code"), [("nobody", "UNKNOWN-USER"), ("cid", "TOO-FEW-FAVORS"), ("hal", "NO-TWINS")])
def test_similar_says_which_of_three_it_is(asked: TasteTwin, user: str, code: str) -> None:
    """As ``TwinLists`` does."""
    with pytest.raises(UsageError) as caught:
        asked.similar(user)
    assert code_of(caught) == code


def test_twins_are_all_lists_users_and_ranks_ascending(asked: TasteTwin) -> None:
    """The files lie in buckets; nobody should have to know."""
    assert asked.twins().schema == TWINS
    assert asked.twins().to_pylist() == handmade.twins().to_pylist()


def test_vectors_are_all_vectors_users_ascending(asked: TasteTwin) -> None:
    """Row i of the matrix is user i of the list."""
    assert asked.vectors().schema == VECTORS
    assert asked.vectors().to_pylist() == handmade.vectors().to_pylist()


def test_runs_are_the_records(asked: TasteTwin) -> None:
    """As Python objects, oldest first."""
    assert [(run.run_id, run.status) for run in asked.runs()] == [("2026-06-01.1", "delivered")]


def test_nothing_published_is_said(tmp_path: Path) -> None:
    """By every question."""
    Store.create(tmp_path / "store")
    tt = TasteTwin(tmp_path / "store")
    questions: list[Callable[[], object]] = [
        tt.twins, tt.vectors, lambda: tt.similar("1"), lambda: tt.sql("SELECT 1"), lambda: tt.embed(tmp_path)
    ]  # fmt: skip
    for ask in questions:
        with pytest.raises(UsageError, match="NOT-PUBLISHED"):
            ask()


# -- a whole run ------------------------------------------------------------------------------------------------------


def place_of(journey: Journey) -> str:
    return str(journey.tt.sql("SELECT place_id FROM place LIMIT 1")["place_id"][0].as_py())


@pytest.mark.slow
def test_frames_of_any_make_give_the_same_vectors(journey: Journey) -> None:
    """And ids that come as numbers go out as the strings they are."""
    place = place_of(journey)
    reviews = pa.table({"user_idno": [42], "review_place_id": [place]})
    frames = (reviews, pl.from_arrow(reviews), reviews.to_pandas())
    found = [journey.tt.embed({"reviews": frame})[0].to_pylist() for frame in frames]
    assert found[0] == found[1] == found[2]
    assert [row["user_idno"] for row in found[0]] == ["42"]


@pytest.mark.slow
def test_frames_pass_the_gate(journey: Journey) -> None:
    """As lines do: a visit without a rating counts; a poor rating does not, and one out of range says nothing."""
    ratings = {"impossible": -7.0, "poor": 1.0, "good": 5.0, "visit": None}
    place = place_of(journey)
    rows = {"user_idno": list(ratings), "review_place_id": [place] * 4, "review_rating": list(ratings.values())}
    vectors, unusable = journey.tt.embed({"reviews": pl.DataFrame(rows)})
    assert vectors["user_idno"].to_pylist() == ["good", "visit"]
    assert unusable == []


@pytest.mark.slow
def test_vectors_of_a_real_run_have_unit_length(journey: Journey) -> None:
    """What a dot product between them relies on."""
    vectors = np.stack(journey.tt.vectors()["vector"].to_numpy(zero_copy_only=False))
    assert len(vectors) == journey.first.stages["features"].counts["eligible"]
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
