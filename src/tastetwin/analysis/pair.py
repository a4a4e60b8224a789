"""Two users of a run: why the one is not in the other's list, and what would change that.

Both questions look at everybody as one user sees them: by the score of the lists, in which what the user's own vector
gives away to all alike plays no part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from tastetwin.analysis.chance import Chance
from tastetwin.analysis.encode import Encoder, open_encoder
from tastetwin.analysis.evidence import Evidence, Shared
from tastetwin.analysis.index import Floats, pair_dots
from tastetwin.analysis.lookup import TwinLists
from tastetwin.analysis.pairs import PairRules
from tastetwin.analysis.scale import ScoreScale
from tastetwin.analysis.stage import list_vectors
from tastetwin.config import Config, ListsConfig
from tastetwin.errors import UsageError
from tastetwin.features.histories import Histories, joined
from tastetwin.features.taste import HISTORY, from_arrow
from tastetwin.generations import read_manifest
from tastetwin.privacy.opt_out import is_opted_out, read_opt_outs

FIRST: Final = 10
"""Who is among the first ten matches well; the counterfactual asks what it takes not to."""
MOST_VISITS: Final = 5
TRIED: Final = 32
"""Places tried per visit taken away: those that both have, then the user's rarest."""


_STANDING: Final = {
    None: "they may be in lists",
    "inactive": "no favor for longer than lists.inactive_days",
    "few_places": "fewer places than lists.min_places",
    "burst": "most of what they have was favored on one day (lists.burst_places)",
}


@dataclass(frozen=True)
class Step:
    """One condition for being in a list."""

    condition: str
    holds: bool
    said: str


@dataclass(frozen=True)
class Counterfactual:
    """The fewest of the user's visits found without which the other would be further down than ``beyond``."""

    visits: tuple[str, ...]
    """Names of places that may be named; empty where no ``MOST_VISITS`` of them make the difference."""
    beyond: int
    rank: int
    """Where the other would be then."""


@dataclass(frozen=True)
class Comparison:
    """What two users have in common, and what they have not."""

    score: float
    percentile: float
    chance: float | None
    """That the other has the place that the user favors next; None as of ``Chance.from_json``."""
    taste: float
    home: float
    rank: int
    """Of the other among all who may be shown to the user, from 1."""
    rank_back: int
    """Of the user for the other."""
    agree: Evidence
    more: tuple[Shared, ...]
    """Categories of which the user's history holds a larger share."""
    less: tuple[Shared, ...]
    """Of which the other's does."""
    without: Counterfactual | None
    """None where the other is further down than a list is long."""


class Pair:
    """Two users of a run that have a vector each."""

    def __init__(self, lists: TwinLists, user: str, other: str) -> None:
        """Look both up.

        Raises:
            UsageError: SAME-USER; UNKNOWN-USER, TOO-FEW-FAVORS of either.
        """
        if user == other:
            raise UsageError("SAME-USER", place=f"user {user}", value=other, rule="two users", fix="name another one")
        self.lists, self.user, self.other = lists, user, other
        self._mine, self._theirs = lists.usable_history(user), lists.usable_history(other)
        self._ids, raw, _ = lists.space
        self._vectors = list_vectors(lists.store, lists.analysis, raw)
        self._me, self._them = lists.position(user), lists.position(other)
        self._crowding = lists.exposure.column("crowding").to_numpy()
        homes = lists.exposure.column("home_region").combine_chunks().dictionary_encode().indices
        self._homes = pc.fill_null(homes, -1).to_numpy().astype(np.int32)
        self._opt_outs = read_opt_outs(lists.store)
        self._settings: dict[str, Any] = lists.analysis.settings
        self._rules = ListsConfig(**self._settings.get("lists", {}))
        self._k = int(self._settings["analyze"]["k"])

    # -- why not ------------------------------------------------------------------------------------------------------

    def why_not(self) -> list[Step]:
        """Every condition for the other to be in the user's list, in the order in which they are looked at."""
        row = self.lists.exposure.slice(self._them, 1).to_pylist()[0]
        listed = self._listed()
        steps = [
            Step("known", True, f"both are in the run of {self.lists.run.logical_date} and have a vector"),
            Step("may be shown", row["hidden"] is None, self._hidden(row)),
            self._followed(),
            self._of_region(),
            self._close(self.other in listed),
            self._has_room(row["lists"], self.other in listed),
        ]
        said = f"at rank {listed[self.other]}" if self.other in listed else f"not among the {len(listed)} in the list"
        return [*steps, Step("in the list", self.other in listed, said)]

    def _close(self, listed: bool) -> Step:
        rank = self._rank(self._me, self._them)
        if self._rules.mutual:
            back = self._rank(self._them, self._me)
            said = f"ranks {rank:,} and {back:,} for each other; lists are ordered by the worse of both"
            return Step("close enough", listed, said)
        said = f"rank {rank:,} of those who may be shown; a list holds {self._k}"
        return Step("close enough", rank <= self._k, said)

    def _hidden(self, row: dict[str, Any]) -> str:
        if row["hidden"] != "same_person":
            return _STANDING[row["hidden"]]
        shown = row["instead_idno"]
        named = "the user's own" if shown == self.user else "another one"
        return f"another account of the same person; {named} is shown in its place"

    def _followed(self) -> Step:
        found = self.other in self.lists.not_shown_to(self.user)
        said = "followed already, or one of the two has blocked the other" if found else "neither followed nor blocked"
        return Step("not followed, not blocked", not found, said)

    def _of_region(self) -> Step:
        mine, theirs = self._homes[self._me], self._homes[self._them]
        # Which region it is may be known to few people.
        homes = "unknown home region" if min(mine, theirs) < 0 else "same" if mine == theirs else "another"
        said = f"{homes}{'' if min(mine, theirs) < 0 else ' home region'}, rule: {self._rules.region}"
        return Step("region", bool(self._of_the_region(self._me)[self._them]), said)

    def _of_the_region(self, user: int) -> npt.NDArray[np.bool_]:
        """[n] whom ``lists.region`` lets into a user's list."""
        everybody = np.arange(len(self._ids), dtype=np.int32)[None]
        rules = PairRules(np.empty(0, np.int64), self._rules.region, self._homes)
        return np.asarray(rules.allow(np.array([user]), everybody)[0])

    def _has_room(self, in_lists: int, listed: bool) -> Step:
        most = self.lists.analysis.facts["search"].get("max_exposure")
        if most is None:
            return Step("has room", True, f"in {in_lists:,} lists; there is no cap")
        said = f"in {in_lists:,} lists of at most {most:,}"
        full = in_lists >= most and not listed
        return Step("has room", not full, said + (", all of them of closer users" if full else ""))

    def _listed(self) -> dict[str, int]:
        """Rank of everybody in the user's list, those who opted out since left out as everywhere."""
        names = self.lists.stored_list(self.user).column("twin_idno").to_pylist()
        shown = [name for name in names if not is_opted_out(self.lists.store, name)]
        return {name: rank for rank, name in enumerate(shown, start=1)}

    # -- compare ------------------------------------------------------------------------------------------------------

    def compare(self) -> Comparison:
        """What both have in common, what they have not, and what it takes not to match."""
        scale = ScoreScale.from_json(self.lists.analysis.facts["scale"])
        chance = Chance.from_json(self.lists.analysis.facts["chance"])
        score = float(self._scores(self._me)[self._them] - self._crowding[self._me] / 2)
        percentile = scale.percentile(np.array([score], np.float32))
        taste, home = self.lists.parts(self.user, self.other)
        explain = self.lists.explainer
        return Comparison(
            score,
            float(percentile[0]),
            None if chance is None else float(chance.of(percentile, np.array([len(self._theirs)]))[0]),
            taste,
            home,
            self._rank(self._me, self._them),
            self._rank(self._them, self._me),
            explain.explain(self._mine, self._theirs),
            explain.more_of(self._mine, self._theirs),
            explain.more_of(self._theirs, self._mine),
            self._without(),
        )

    def _scores(self, user: int, vector: Floats | None = None) -> Floats:
        """[n] everybody's similarity to a user (or to another vector of theirs) less half of their own crowding."""
        mine = self._vectors[user] if vector is None else vector
        dots = pair_dots(mine[None], self._vectors, np.arange(len(self._vectors))[None])[0]
        return np.asarray(dots - self._crowding / np.float32(2))

    def _rank(self, user: int, other: int, vector: Floats | None = None) -> int:
        scores = self._scores(user, vector)
        allowed = self.lists.may_be_shown_to(str(self._ids[user]))
        allowed = allowed[(allowed != other) & self._of_the_region(user)[allowed]]
        theirs = scores[allowed]  # summed as those of the lists, where ties go by position
        ahead = allowed[(theirs > scores[other]) | (theirs == scores[other]) & (allowed < other)]
        return 1 + int((~self._opt_outs.of(self._ids[ahead])).sum())

    def _without(self) -> Counterfactual | None:
        """Greedily: of the places that may be named, take away the one without which the two are least alike."""
        rank = self._rank(self._me, self._them)
        if rank > self._k:
            return None
        beyond = FIRST if rank <= FIRST else self._k
        encoder = self._open_encoder()
        history = from_arrow(self.lists.rows_of(self.lists.features, "history", HISTORY, [self.user]))
        taken: list[int] = []
        while len(taken) < MOST_VISITS and rank <= beyond:
            tried = self._worth_trying(taken)
            if not len(tried) or len(self._mine) - len(taken) <= self.lists.min_favors:
                break
            vectors = self._encode(encoder, [history.filter(~np.isin(history.places, [*taken, row])) for row in tried])
            least = int(np.argmin(vectors @ self._vectors[self._them]))
            taken.append(int(tried[least]))
            rank = self._rank(self._me, self._them, vectors[least])
        names = tuple(self.lists.explainer.name(row) for row in taken) if rank > beyond else ()
        return Counterfactual(names, beyond, rank)

    def _worth_trying(self, taken: list[int]) -> npt.NDArray[np.int32]:
        explain = self.lists.explainer
        mine = explain.rarest_first(explain.may_be_named(np.setdiff1d(self._mine, taken).astype(np.int32)))
        shared = np.isin(mine, self._theirs)
        return np.concatenate([mine[shared], mine[~shared]])[:TRIED]

    def _encode(self, encoder: Encoder, histories: list[Histories]) -> Floats:
        return list_vectors(self.lists.store, self.lists.analysis, encoder.encode(joined(*histories)))

    def _open_encoder(self) -> Encoder:
        bundle = read_manifest(self.lists.store, "train", self.lists.run.generation("train"))
        return open_encoder(self.lists.store, bundle, Config().analyze.batch_tokens)
