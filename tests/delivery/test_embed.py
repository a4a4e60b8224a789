"""embed: how a stranger's favors are read by the published model, and who is told that it cannot be done."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from tastetwin.config import Config
from tastetwin.delivery import embed as module
from tastetwin.delivery.embed import Embedded, embed
from tastetwin.engine import Engine
from tastetwin.errors import UsageError
from tastetwin.features.histories import Histories
from tastetwin.features.stage import PLACE_ROWS
from tastetwin.features.vocabulary import write_vocabulary
from tastetwin.runs import publish
from tastetwin.schema import VECTORS
from tastetwin.store import Store
from tastetwin.tables import read_files
from tests import handmade
from tests.world import Journey

DAY: Final = date(2026, 6, 2)

PLACES: Final[list[dict[str, Any]]] = [
    {"place_id": "noodle bar", "place_category_code_list": [100], "place_dongcode": "r1"},
    {"place_id": "hut", "place_category_code_list": [999], "place_dongcode": "r2"},
    {"place_id": "odd", "place_category_code_list": [999], "place_dongcode": "r9"},
    {"place_id": "moved", "place_category_code_list": [], "place_dongcode": "r2"},
]
READ_AS: Final = {
    "knows a": (["a"], {2}),  # a row of its own; the source does not describe it
    "rare": (["rare"], {8}),  # published as one of a group; the source does not describe it
    "new noodles": (["noodle bar"], {8}),  # new, by category and region
    "new in r2": (["hut"], {9}),  # new, of an unknown category, by region
    "moved": (["moved"], {9}),  # published as noodles in r1, but the source knows better
    "many": (["a", "hut", "unheard of"], {2, 9}),  # what is not understood is left out
    "unheard of": (["unheard of"], set()),
    "odd": (["odd"], set()),  # described, by words the model does not know
}
"""User -> places, and the vocabulary rows that they are read as."""


class Reader:
    """In place of the model: a vector says which rows a user's history has."""

    def encode(self, histories: Histories) -> npt.NDArray[np.float32]:
        """1 at each row of a history."""
        vectors = np.zeros((histories.n_users, 10), np.float32)
        for user in range(histories.n_users):
            vectors[user, histories.places[histories.offsets[user] : histories.offsets[user + 1]]] = 1
        return vectors


def published_store(folder: Path) -> Store:
    store = Store.create(folder / "store")
    features = handmade.features(store)
    rows = read_files(store, features.paths("place_row"), PLACE_ROWS)
    moved = pa.Table.from_pylist([{"place_id": "moved", "row": 8, "visitors": 1}], PLACE_ROWS)
    handmade.generation(store, "features", "f", {"place_row": [pa.concat_tables([rows, moved])]})
    vocabulary = {"vocabulary": [write_vocabulary(store, "bundles/t/vocabulary.parquet", handmade.vocabulary())]}
    handmade.generation(store, "train", "t", keeps=vocabulary)
    publish(store, handmade.run_of(store, {"features": "f", "train": "t"}).run_id)
    return store


def source(folder: Path, reviews: list[dict[str, Any]], places: list[dict[str, Any]]) -> str:
    folder.mkdir()
    for name, rows in (("reviews.jsonl", reviews), ("places.jsonl", places)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> tuple[Embedded, list[str], list[str]]:
    """What came of ``READ_AS``, and the store's files before and after."""
    folder = tmp_path_factory.mktemp("embed")
    store = published_store(folder)
    reviews = [{"user_idno": user, "review_place_id": p} for user, (places, _) in READ_AS.items() for p in places]
    displeased = {"user_idno": "displeased", "review_place_id": "a", "review_rating": 1.0}
    where = source(folder / "source", [*reviews, displeased, {"user_idno": "no place"}], PLACES)
    before = store.files("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "open_encoder", lambda *_: Reader())
        found = embed(engine, store, where, DAY, Config())
    return found, before, store.files("")


def rows_of(found: Embedded) -> dict[str, set[int]]:
    return {row["user_idno"]: set(np.flatnonzero(row["vector"]).tolist()) for row in found.vectors.to_pylist()}


def test_every_favor_is_read_as_its_place_else_by_category_and_region(
    asked: tuple[Embedded, list[str], list[str]],
) -> None:
    """The source's description counts, then the published one; a newcomer must not need to describe known places."""
    assert rows_of(asked[0]) == {user: rows for user, (_, rows) in READ_AS.items() if rows}
    assert asked[0].vectors.schema == VECTORS
    assert asked[0].vectors["user_idno"].to_pylist() == sorted(user for user, (_, rows) in READ_AS.items() if rows)


def test_users_of_whom_nothing_is_understood_are_listed(asked: tuple[Embedded, list[str], list[str]]) -> None:
    """Ascending. Who favors nothing is no such user: of that one there is nothing to understand."""
    assert asked[0].unusable == ["odd", "unheard of"]


def test_the_source_goes_through_the_gate_and_the_favor_rule(asked: tuple[Embedded, list[str], list[str]]) -> None:
    """A low rating is no favor of the daily job, so it is none here; a line without place is counted as refused."""
    assert "displeased" not in {*rows_of(asked[0]), *asked[0].unusable}
    lines = sum(len(places) for places, _ in READ_AS.values()) + 2 + len(PLACES)
    assert {name: asked[0].lines[name] for name in ("lines_read", "accepted", "quarantined")} == {
        "lines_read": lines,
        "accepted": lines - 1,
        "quarantined": 1,
    }


def test_nothing_is_written_into_the_store(asked: tuple[Embedded, list[str], list[str]]) -> None:
    """A question leaves no trace; strangers' events least of all."""
    assert asked[1] == asked[2]


def test_a_source_without_a_favor_gives_no_vectors(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty answer, not a crash."""
    store = published_store(tmp_path)
    monkeypatch.setattr(module, "open_encoder", lambda *_: Reader())
    where = source(tmp_path / "source", [{"user_idno": "u", "review_place_id": "a", "review_rating": 1.0}], [])
    found = embed(engine, store, where, DAY, Config())
    assert (found.vectors.num_rows, found.vectors.schema, found.unusable) == (0, VECTORS, [])


def test_without_a_published_run_there_is_no_model(tmp_path: Path, engine: Engine) -> None:
    """Said before the source is looked at, which may be large."""
    store = Store.create(tmp_path / "store")
    with pytest.raises(UsageError, match="NOT-PUBLISHED"):
        embed(engine, store, str(tmp_path / "absent"), DAY, Config())


# -- a whole run ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_embedding_the_same_source_gives_the_published_vectors(journey: Journey) -> None:
    """Batch and embed share one path from raw favors to tensors, so they must agree."""
    vectors, unusable = journey.tt.embed(journey.town.folder)
    known = {row["user_idno"]: row["vector"] for row in journey.tt.vectors().to_pylist()}
    found = {row["user_idno"]: row["vector"] for row in vectors.to_pylist()}
    assert unusable == []
    assert all(np.dot(known[user], found[user]) > 0.999 for user in known)
