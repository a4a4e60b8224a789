"""One user's twins of a run, as they are stored or searched afresh, and why."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tastetwin.analysis.dials import Bank, Space, closest, draw_bank, far, near
from tastetwin.analysis.evidence import Evidence, EvidenceRules, Explainer
from tastetwin.analysis.index import SLACK, Floats
from tastetwin.analysis.parts import Split
from tastetwin.analysis.people import People
from tastetwin.analysis.sentences import Language
from tastetwin.analysis.visitors import read_visitors
from tastetwin.config import AnalyzeConfig
from tastetwin.errors import StoreError
from tastetwin.features.histories import Histories
from tastetwin.privacy.opt_out import is_opted_out
from tastetwin.runs import Run
from tastetwin.schema import NAME, PLACE, PLACES, TWINS, USER
from tastetwin.store import Store
from tastetwin.tables import read_table

AMONG: Final = 5
"""Niche and mainstream twins are chosen among this many times as many of the list."""


@dataclass(frozen=True)
class Twin:
    """One row of a twin list, explained."""

    rank: int
    twin_idno: str
    score: float
    percentile: float
    taste: float | None
    """Taste part of the similarity; None in runs made before there were parts."""
    home: float | None
    """Home part of the similarity."""
    chance: float | None
    """That the twin has the place that the user favors next; None where there was not enough data to measure it."""
    evidence: Evidence


class TwinLists(People):
    """The twin lists of one run."""

    def __init__(self, store: Store, run: Run, language: Language = "en") -> None:
        """The lists of ``run``, explained in ``language``."""
        super().__init__(store, run)
        self._language = language

    def hold(self) -> Histories:
        """As ``People.hold``; vectors are read as well."""
        held = super().hold()
        if len(self.space[0]):
            _ = self._near, self._far, self._hidden
        return held

    def twins(self, user: str, k: int, skip: int = 0) -> list[Twin]:
        """A user's ``k`` closest twins, closest first, without the first ``skip`` of them.

        Raises:
            UsageError: UNKNOWN-USER, TOO-FEW-FAVORS or NO-TWINS, whichever it is.
        """
        mine = self.usable_history(user)
        stored = self.stored_list(user).to_pylist()
        shown = (row for row in stored if not is_opted_out(self.store, row["twin_idno"]))
        # Ranks are counted anew: a gap would tell that somebody was there.
        rows = [{**row, "rank": rank} for rank, row in enumerate(itertools.islice(shown, k), start=1)]
        if not rows:
            raise self.no_twins(user)
        return self._explained(rows[skip:], mine)

    def niche(self, user: str, k: int) -> list[Twin]:
        """Of the ``AMONG`` * k first in a user's list, the k whose taste is the most unusual; closest first.

        Raises:
            UsageError: as ``twins``.
            StoreError: OLD-ANALYSIS in runs made before that was noted.
        """
        return sorted(self._by_mainstream(user, k)[:k], key=lambda twin: twin.rank)

    def mainstream(self, user: str, k: int) -> list[Twin]:
        """As ``niche``, of those who favor what most people favor; raises the same."""
        return sorted(self._by_mainstream(user, k)[-k:], key=lambda twin: twin.rank)

    def _by_mainstream(self, user: str, k: int) -> list[Twin]:
        found = self.twins(user, AMONG * k)
        known = self.exposure.filter(pc.is_in(self.exposure.column(USER), pa.array([t.twin_idno for t in found])))
        how = dict(zip(known.column(USER).to_pylist(), known.column("mainstream").to_pylist(), strict=True))
        if None in how.values():
            again = f"tastetwin analyze --again --store ... --date {self.run.logical_date}, and the stages after it"
            rule = "a run that notes whose taste is unusual"
            raise StoreError("OLD-ANALYSIS", place=f"run {self.run.run_id}", rule=rule, fix=again)
        return sorted(found, key=lambda twin: how[twin.twin_idno])

    def stored_list(self, user: str) -> pa.Table:
        """``TWINS`` of a user by rank, as the run made it: who has opted out since is in it."""
        return self.rows_of(self.analysis, "twins", TWINS, [user]).sort_by("rank")

    def entry(self, user: str, other: str) -> Twin | None:
        """The row of ``other`` in the list of ``user``, with the rank that ``twins`` says; None where there is none.

        Raises:
            UsageError: UNKNOWN-USER or TOO-FEW-FAVORS, of either.
        """
        mine, _ = self.usable_history(user), self.usable_history(other)
        stored = self.stored_list(user).to_pylist()
        for place, row in enumerate(stored):
            if row["twin_idno"] == other:
                gone = sum(is_opted_out(self.store, before["twin_idno"]) for before in stored[:place])
                return self._explained([{**row, "rank": row["rank"] - gone}], mine)[0]
        return None

    def evidence(self, user: str, other: str) -> Evidence:
        """What two users share, whether one is in the list of the other or not.

        Raises:
            UsageError: as ``entry``.
        """
        return self.explainer.explain(self.usable_history(user), self.usable_history(other))

    def parts(self, user: str, other: str) -> tuple[float, float]:
        """The taste and the home part of the similarity of two users who have a vector; all vectors are read, once."""
        _, vectors, axes = self.space
        at = np.array([self.position(user), self.position(other)])
        taste, home = Split.of(vectors[at], axes).parts(np.array([0]), np.array([[1]]))
        return float(taste[0, 0]), float(home[0, 0])

    def near(self, user: str, k: int, skip: int = 0) -> list[Twin]:
        """As ``twins``, where home area counts for more; all vectors are read.

        Where the run has no home part (see ``has_home_part``), by the whole similarity.

        Raises:
            UsageError: as ``twins``.
        """
        return self._search(user, k, skip, self._near)

    def far(self, user: str, k: int, skip: int = 0) -> list[Twin]:
        """As ``near``, of those who live elsewhere and share the taste.

        Raises:
            UsageError: as ``twins``.
        """
        return self._search(user, k, skip, self._far)

    @functools.cached_property
    def has_home_part(self) -> bool:
        """False where home regions are unknown, all one, not or not told by the vectors."""
        return len(self.space[2]) > 0

    @functools.cached_property
    def _near(self) -> tuple[Space, Bank]:
        return self._measured(near)

    @functools.cached_property
    def _far(self) -> tuple[Space, Bank]:
        return self._measured(far)

    def _measured(self, space_of: Callable[[Floats, Floats], Space]) -> tuple[Space, Bank]:
        _, vectors, axes = self.space
        space = space_of(vectors, axes)
        return space, draw_bank(space, self._dials)

    @functools.cached_property
    def _dials(self) -> AnalyzeConfig:
        neighbours = int(self.analysis.settings["analyze"].get("csls_neighbours", AnalyzeConfig().csls_neighbours))
        return AnalyzeConfig(csls_neighbours=neighbours)

    def _search(self, user: str, k: int, skip: int, measured: tuple[Space, Bank]) -> list[Twin]:
        mine = self.usable_history(user)
        ids, vectors, axes = self.space
        me, (space, bank) = self.position(user), measured
        found = closest(space, me, self.may_be_shown_to(user), 2 * k + SLACK, self._dials, bank)
        names = [str(each) for each in ids[found.users]]
        shown = (place for place, each in enumerate(names) if not is_opted_out(self.store, each))
        kept = list(itertools.islice(shown, k))
        if not kept:
            raise self.no_twins(user)
        at = found.users[kept]
        taste, home = Split.of(vectors[np.append(me, at)], axes).parts(np.array([0]), np.arange(1, len(at) + 1)[None])
        numbers = (found.scores[kept], found.percentiles[kept], taste[0], home[0])
        columns = (range(1, len(kept) + 1), ids[at].tolist(), *(number.tolist() for number in numbers))
        # The chance was measured for the score of the lists, not for those of near and far.
        rows = [{**dict(zip(TWINS.names[1:], row, strict=False)), "chance": None} for row in zip(*columns, strict=True)]
        return self._explained(rows[skip:], mine)

    def _explained(self, rows: list[dict[str, Any]], mine: npt.NDArray[np.int32]) -> list[Twin]:
        """Rows of ``TWINS`` of one user, with what they share with the history ``mine``."""
        theirs, explain = self.histories_of([row["twin_idno"] for row in rows]), self.explainer.explain
        return [
            Twin(**{name: row[name] for name in TWINS.names[1:]}, evidence=explain(mine, theirs[row["twin_idno"]]))
            for row in rows
        ]

    @functools.cached_property
    def explainer(self) -> Explainer:
        """Says what two users share."""
        visitors = read_visitors(self.store, self.analysis.paths("visitors")[0])
        sensitive = frozenset(self.analysis.settings["analyze"].get("sensitive_categories", []))
        rules = EvidenceRules(sensitive_categories=sensitive)
        return Explainer(self.vocabulary, visitors, rules, self._names(), self._language)

    def _names(self) -> dict[str, str]:
        """Names of the places that have one."""
        named = pa.schema([PLACES.field(PLACE), PLACES.field(NAME)])
        table = read_table(self.store, self.features, "place", named)
        table = table.filter(pc.is_valid(table.column(NAME)))
        return dict(zip(table.column(PLACE).to_pylist(), table.column(NAME).to_pylist(), strict=True))


def as_json_row(twin: Twin) -> dict[str, Any]:
    """A twin as one JSON object; evidence as the sentence and the shared things by id."""
    numbers = {name: getattr(twin, name) for name in ("score", "percentile", "taste", "home", "chance")}
    evidence = twin.evidence
    return {
        "rank": twin.rank,
        "twin_idno": twin.twin_idno,
        **{name: None if value is None else round(value, 4) for name, value in numbers.items()},
        "evidence": evidence.sentence,
        "shared_places": [shared.key for shared in evidence.places],
        "shared_categories": [shared.key for shared in evidence.categories],
        "shared_regions": [shared.key for shared in evidence.regions],
    }
