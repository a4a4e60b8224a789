"""What the pages of one run are made from: the small tables in memory, one user's rows from files at each question."""

from __future__ import annotations

import bisect
import functools
import itertools
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa

from tastetwin.analysis.chance import Chance
from tastetwin.analysis.lookup import TwinLists
from tastetwin.config import EvaluateConfig
from tastetwin.errors import UsageError
from tastetwin.evaluation.gate import Verdict
from tastetwin.evaluation.records import Evaluation
from tastetwin.evaluation.stage import read_evaluation, verdict_of
from tastetwin.generations import read_manifest
from tastetwin.page.atlas import EXAMPLES, Atlas, Neighbourhood, draw
from tastetwin.page.charts import Drawing
from tastetwin.privacy.opt_out import is_opted_out
from tastetwin.runs import Run
from tastetwin.schema import (
    CATEGORIES,
    LAT,
    LIKE_CONTENTS,
    LIKED_AT,
    LON,
    NAME,
    PLACE,
    PLACES,
    RATING,
    REGION,
    REVIEW_PLACE,
    USER,
    VISITED,
)
from tastetwin.store import Store
from tastetwin.tables import read_files, read_table

SUGGESTED: Final = 8
_LOOKED_AT: Final = 200
"""Ids looked at for suggestions: many of a prefix may have opted out."""


@dataclass(frozen=True)
class Place:
    """A place as the source describes it; what it does not say is empty."""

    place_id: str
    name: str
    categories: tuple[int, ...] = ()
    region: str = ""
    lat: float | None = None
    lon: float | None = None


@dataclass(frozen=True)
class Visit:
    """All favors of one user for one place."""

    place: Place
    last: datetime | None
    times: int
    rating: float | None
    """Mean of those known."""
    liked: bool


@dataclass(frozen=True)
class Person:
    """A user at a glance."""

    user: str
    places: int
    home: str
    lists: int
    """In how many lists of others."""
    hidden: str
    """Why in none; "" where nothing keeps them out."""


class View:
    """One run. Everything but the map answers at once; ``warm`` reads what later questions need."""

    def __init__(self, store: Store, run: Run) -> None:
        self.store, self.run = store, run
        self.lists = TwinLists(store, run)
        evaluated = read_manifest(store, "evaluate", run.generation("evaluate"))
        self.verdict: Verdict = verdict_of(evaluated)
        self.evaluation: Evaluation = read_evaluation(store, evaluated)
        self.rules = EvaluateConfig(**evaluated.settings.get("evaluate", {}))
        self.chance = Chance.from_json(self.lists.analysis.facts.get("chance"))
        self.map: tuple[Atlas, Drawing] | None = None
        """None until it is drawn."""

    def warm(self) -> threading.Thread:
        """Read ahead and draw the map, in a thread of its own."""
        thread = threading.Thread(target=self._warm, daemon=True, name="warm")
        thread.start()
        return thread

    def _warm(self) -> None:
        lists = self.lists
        histories = lists.hold()
        _ = self.ids, self.places, self.examples, lists.explainer
        ids, vectors, axes = lists.space
        if len(ids):
            mine = histories.select(np.searchsorted(histories.user_ids, ids))
            atlas = draw(vectors, axes, mine, lists.vocabulary, lists.explainer)
            self.map = atlas, Drawing(atlas)

    # -- users ----------------------------------------------------------------------------------------------------

    @functools.cached_property
    def ids(self) -> list[str]:
        """Everybody analysed, ascending."""
        table = read_files(self.store, self.lists.analysis.paths("vectors"), pa.schema([pa.field(USER, pa.string())]))
        return sorted(table.column(USER).to_pylist())

    @functools.cached_property
    def examples(self) -> list[str]:
        """A few users; some may have opted out since."""
        return self.lists.some_users(EXAMPLES)

    def suggest(self, prefix: str) -> list[str]:
        """The first users whose ids begin so."""
        start = bisect.bisect_left(self.ids, prefix)
        near = itertools.takewhile(lambda user: user.startswith(prefix), self.ids[start : start + _LOOKED_AT])
        return self.shown(near, SUGGESTED)

    def shown(self, users: Iterable[str], n: int) -> list[str]:
        """The first ``n`` of them who have not opted out."""
        return list(itertools.islice((user for user in users if not is_opted_out(self.store, user)), n))

    def person(self, user: str) -> Person:
        """A user at a glance.

        Raises:
            UsageError: UNKNOWN-USER, for who has opted out as well.
        """
        at = bisect.bisect_left(self.ids, user)
        if self.ids[at : at + 1] != [user]:
            raise UsageError(
                "UNKNOWN-USER",
                place=f"user {user}",
                value=f"not in the run of {self.run.logical_date}",
                rule="a user with enough favors",
                fix="check the id",
            )
        about = self.lists.about(user)
        return Person(user, about.places, about.home_region, *self.lists.in_lists(user))

    def visits(self, user: str) -> list[Visit]:
        """The places of a user, the latest first, unknown times last."""
        row = self.lists.favors(user)
        events: dict[str, list[tuple[datetime | None, float | None, bool]]] = {}
        for each in row["review_list"]:
            events.setdefault(each[REVIEW_PLACE], []).append((each[VISITED], each[RATING], False))
        for each in row["like_list"]:
            events.setdefault(each[LIKE_CONTENTS], []).append((each[LIKED_AT], None, True))
        visits = [_visit(self.place(place), those) for place, those in events.items()]
        return sorted(visits, key=lambda visit: (visit.last or datetime.min, visit.place.place_id), reverse=True)

    # -- places ---------------------------------------------------------------------------------------------------

    @functools.cached_property
    def places(self) -> tuple[pa.Table, dict[str, int]]:
        """``PLACES`` and the row of each place."""
        table = read_table(self.store, self.lists.features, "place", PLACES)
        return table, {place: row for row, place in enumerate(table.column(PLACE).to_pylist())}

    def place(self, place_id: str) -> Place:
        """A place; only its id where the source does not describe it."""
        table, rows = self.places
        if place_id not in rows:
            return Place(place_id, place_id)
        said: dict[str, Any] = table.slice(rows[place_id], 1).to_pylist()[0]
        codes = tuple(said[CATEGORIES] or ())
        return Place(place_id, said[NAME] or place_id, codes, said[REGION] or "", said[LAT], said[LON])

    def named(self, neighbourhood: Neighbourhood) -> list[str]:
        """The names of a neighbourhood's places."""
        return [self.place(each).name for each in neighbourhood.places]


def _visit(place: Place, events: list[tuple[datetime | None, float | None, bool]]) -> Visit:
    times = [at for at, _, _ in events if at is not None]
    ratings = [rating for _, rating, _ in events if rating is not None]
    mean = sum(ratings) / len(ratings) if ratings else None
    return Visit(place, max(times, default=None), len(events), mean, any(liked for _, _, liked in events))
