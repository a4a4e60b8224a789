"""One user's twins of a run, and why: a few row groups are read, never a whole table."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tastetwin.analysis.dials import Bank, Space, closest, draw_bank, far, near
from tastetwin.analysis.evidence import Evidence, EvidenceRules, Explainer
from tastetwin.analysis.index import SLACK, Floats, Ints
from tastetwin.analysis.parts import Split, read_axes
from tastetwin.analysis.sentences import Language
from tastetwin.analysis.standing import EXPOSURE
from tastetwin.analysis.stored import read_vectors
from tastetwin.analysis.visitors import read_visitors
from tastetwin.config import AnalyzeConfig
from tastetwin.errors import UsageError
from tastetwin.features.histories import Histories, Vocabulary
from tastetwin.features.stage import NOT_SHOWN, read_histories
from tastetwin.features.taste import HISTORY
from tastetwin.features.user_favor import USER_FAVOR
from tastetwin.features.vocabulary import read_vocabulary
from tastetwin.generations import Manifest, read_manifest
from tastetwin.privacy.opt_out import is_opted_out
from tastetwin.runs import Run
from tastetwin.schema import NAME, OTHER, PLACE, PLACES, TWINS, USER
from tastetwin.store import Store
from tastetwin.tables import bucket_name, bucket_of, read_files, read_table

AMONG: Final = 5
"""Niche and mainstream twins are chosen among this many times as many of the list."""
_PLACES: Final = pa.schema([HISTORY.field(USER), HISTORY.field("places")])


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


@dataclass(frozen=True)
class About:
    """A user in one line."""

    places: int
    """Distinct places."""
    home_region: str
    """The region of most of them; "" where none is known."""


class TwinLists:
    """The twin lists of one run."""

    def __init__(self, store: Store, run: Run, language: Language = "en") -> None:
        """The lists of ``run``, explained in ``language``."""
        self.store = store
        self.run = run
        self._language = language
        self.features = read_manifest(store, "features", run.generation("features"))
        self.analysis = read_manifest(store, "analyze", run.generation("analyze"))
        self.min_favors = int(self.analysis.settings["min_favors"])
        self._held: Histories | None = None

    def twins(self, user: str, k: int, skip: int = 0) -> list[Twin]:
        """A user's ``k`` closest twins, closest first, without the first ``skip`` of them.

        Raises:
            UsageError: UNKNOWN-USER, TOO-FEW-FAVORS or NO-TWINS, whichever it is.
        """
        return self._first(user, k, skip)

    def niche(self, user: str, k: int) -> list[Twin]:
        """Of the ``AMONG`` * k first in a user's list, the k whose taste is the most unusual; closest first.

        Raises:
            UsageError: as ``twins``.
        """
        return sorted(self._by_mainstream(user, k)[:k], key=lambda twin: twin.rank)

    def mainstream(self, user: str, k: int) -> list[Twin]:
        """As ``niche``, of those who favor what most people favor.

        Raises:
            UsageError: as ``twins``.
        """
        return sorted(self._by_mainstream(user, k)[-k:], key=lambda twin: twin.rank)

    def _by_mainstream(self, user: str, k: int) -> list[Twin]:
        if not self.exposure.num_rows:
            raise self.old_run("exposure")
        found = self._first(user, AMONG * k)
        known = self.exposure.filter(pc.is_in(self.exposure.column(USER), pa.array([t.twin_idno for t in found])))
        how = dict(zip(known.column(USER).to_pylist(), known.column("mainstream").to_pylist(), strict=True))
        return sorted(found, key=lambda twin: how[twin.twin_idno])

    def _first(self, user: str, k: int, skip: int = 0) -> list[Twin]:
        mine = self.usable_history(user)
        table = self.stored_list(user)
        shown = (row for row in table.to_pylist() if not is_opted_out(self.store, row["twin_idno"]))
        # Ranks are counted anew: a gap would tell that somebody was there.
        rows = [{**row, "rank": rank} for rank, row in enumerate(itertools.islice(shown, k), start=1)]
        if not rows:
            raise self._no_twins(user)
        rows = rows[skip:]
        return self._explained(rows, mine, self.histories_of([row["twin_idno"] for row in rows]))

    def stored_list(self, user: str) -> pa.Table:
        """``TWINS`` of a user by rank, as the run made it: who has opted out since is in it."""
        return self.rows_of(self.analysis, "twins", TWINS, [user]).sort_by("rank")

    def entry(self, user: str, other: str) -> Twin | None:
        """The row of ``other`` in the list of ``user``, with the rank it has there; None where there is none.

        Raises:
            UsageError: UNKNOWN-USER or TOO-FEW-FAVORS, of either.
        """
        mine, theirs = self.usable_history(user), self.usable_history(other)
        table = self.rows_of(self.analysis, "twins", TWINS, [user])
        rows = table.filter(pc.equal(table.column("twin_idno"), other)).to_pylist()
        return self._explained(rows, mine, {other: theirs})[0] if rows else None

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
        """False where home regions are unknown, all one, not told by the vectors, or the run was made before parts."""
        return len(self.space[2]) > 0

    @functools.cached_property
    def space(self) -> tuple[npt.NDArray[np.object_], Floats, Floats]:
        """Users ascending, their vectors, the home axes."""
        ids, vectors = read_vectors(self.store, self.analysis.paths("vectors"))
        return ids, vectors, read_axes(self.store, self.analysis, vectors.shape[1])

    def position(self, user: str) -> int:
        """Where a user with a usable history is among those who have a vector.

        Raises:
            UsageError: NO-TWINS where there is none: the user had opted out when the run was made.
        """
        ids = self.space[0]
        at = int(np.searchsorted(ids, user))
        if at == len(ids) or ids[at] != user:
            raise self._no_twins(user)
        return at

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
        me = self.position(user)
        among = self.may_be_shown_to(user, ids)
        if not len(among):
            raise self._no_twins(user)
        space, bank = measured
        found = closest(space, me, among, 2 * k + SLACK, self._dials, bank)
        names = [str(each) for each in ids[found.users]]
        shown = (place for place, each in enumerate(names) if not is_opted_out(self.store, each))
        kept = list(itertools.islice(shown, k))
        if not kept:
            raise self._no_twins(user)
        at = found.users[kept]
        taste, home = Split.of(vectors[np.append(me, at)], axes).parts(np.array([0]), np.arange(1, len(at) + 1)[None])
        numbers = (found.scores[kept], found.percentiles[kept], taste[0], home[0])
        columns = (range(1, len(kept) + 1), ids[at].tolist(), *(number.tolist() for number in numbers))
        # The chance was measured for the score of the lists, not for those of near and far.
        rows = [{**dict(zip(TWINS.names[1:], row, strict=False)), "chance": None} for row in zip(*columns, strict=True)]
        rows = rows[skip:]
        return self._explained(rows, mine, self.histories_of([row["twin_idno"] for row in rows]))

    def _explained(
        self, rows: list[dict[str, Any]], mine: npt.NDArray[np.int32], theirs: Mapping[str, npt.NDArray[np.int32]]
    ) -> list[Twin]:
        """Rows of ``TWINS`` without the user."""
        explain = self.explainer.explain
        return [
            Twin(**{name: row[name] for name in TWINS.names[1:]}, evidence=explain(mine, theirs[row["twin_idno"]]))
            for row in rows
        ]

    def may_be_shown_to(self, user: str, ids: npt.NDArray[np.object_]) -> Ints:
        """Positions in ``ids`` [n], ascending, of those whom the run lets into a user's list, in whatever region."""
        hidden, instead = self._hidden
        shown = np.ones(len(ids), bool)
        shown[hidden] = False
        others = np.array([*instead.get(user, []), *self.not_shown_to(user), user], object)
        at = np.minimum(np.searchsorted(ids, others), len(ids) - 1)
        shown[at[ids[at] == others]] = False
        return np.flatnonzero(shown)

    @functools.cached_property
    def _hidden(self) -> tuple[Ints, dict[str, list[str]]]:
        """Positions among the users of ``space`` of those shown to nobody, and who is shown instead of whom."""
        if not self.exposure.num_rows:  # without it, one person's second accounts would be shown
            raise self.old_run("exposure")
        hidden = self.exposure.filter(pc.is_valid(self.exposure.column("hidden")))
        users, instead = hidden.column(USER).to_pylist(), hidden.column("instead_idno").to_pylist()
        known = pa.array(self.space[0], pa.string())
        at = np.flatnonzero(pc.is_in(known, value_set=pa.array(users, pa.string())).to_numpy(zero_copy_only=False))
        return at, {user: [other] for user, other in zip(users, instead, strict=True) if other is not None}

    @functools.cached_property
    def exposure(self) -> pa.Table:
        """``EXPOSURE`` of the run; users ascending."""
        return read_table(self.store, self.analysis, "exposure", EXPOSURE)

    def not_shown_to(self, user: str) -> list[str]:
        """Whom the user follows, and either side of a block."""
        found: list[str] = self.rows_of(self.features, "not_shown", NOT_SHOWN, [user]).column(OTHER).to_pylist()
        return found

    def about(self, user: str) -> About:
        """What the run knows of a user.

        Raises:
            UsageError: UNKNOWN-USER or TOO-FEW-FAVORS.
        """
        rows = self.usable_history(user)
        regions = self.vocabulary.regions[rows]
        known, counts = np.unique(regions[regions >= 0], return_counts=True)
        home = str(self.vocabulary.region_codes[known[np.argmax(counts)]]) if len(known) else ""
        return About(len(rows), home)

    def favors(self, user: str) -> dict[str, Any]:
        """The user's ``USER_FAVOR`` row.

        Raises:
            UsageError: as ``about``.
        """
        self.usable_history(user)
        rows: list[dict[str, Any]] = self.rows_of(self.features, "user_favor", USER_FAVOR, [user]).to_pylist()
        return rows[0]

    def in_lists(self, user: str) -> tuple[int, str]:
        """In how many lists the user is, and why in none (``EXPOSURE``); "" where nothing keeps them out.

        Raises:
            UsageError: as ``about``.
        """
        self.usable_history(user)
        found = read_files(self.store, self.analysis.paths("exposure"), EXPOSURE, filters=[(USER, "=", user)])
        rows = found.to_pylist()
        return (rows[0]["lists"], rows[0]["hidden"] or "") if rows else (0, "")

    def some_users(self, n: int) -> list[str]:
        """A few users with twins and neither a very short nor a very long history; always the same ones for a run."""
        path = self.features.paths("history")[0]
        table = read_files(self.store, [path], HISTORY)
        lengths = pc.list_value_length(table.column("places")).to_numpy()
        served = pc.is_in(table.column(USER), value_set=self._served_in(path)).to_numpy()
        usual = np.flatnonzero(served & (lengths >= max(self.min_favors, 10)) & (lengths <= 100))
        usual = usual if len(usual) else np.flatnonzero(served)
        drawn = [str(table.column(USER)[int(at)]) for at in np.random.default_rng(0).permutation(usual)]
        return sorted(itertools.islice((user for user in drawn if not is_opted_out(self.store, user)), n))

    def _served_in(self, history_path: str) -> pa.Array:
        name = history_path.rsplit("/", 1)[-1]
        paths = [path for path in self.analysis.paths("twins") if path.endswith(f"/{name}")]
        return pc.unique(read_files(self.store, paths, pa.schema([TWINS.field(USER)])).column(USER))

    def usable_history(self, user: str) -> npt.NDArray[np.int32]:
        """Vocabulary rows of a user, oldest first.

        Raises:
            UsageError: UNKNOWN-USER, who has opted out included; TOO-FEW-FAVORS.
        """
        places = self.histories_of([user]).get(user)
        # Who has opted out is as unknown as who never was here: the answer tells nobody which.
        if places is None or is_opted_out(self.store, user):
            raise self._refusal(
                "UNKNOWN-USER",
                user,
                f"not in the run of {self.run.logical_date}",
                "check the id; users without a favor are in no run",
            )
        if len(places) < self.min_favors:
            raise self._refusal(
                "TOO-FEW-FAVORS",
                user,
                f"has {len(places)} distinct places that the model of {self.run.logical_date} knows",
                f"at least {self.min_favors} are needed (features.min_favors); rarely visited places without category "
                "and region do not count (features.min_visitors)",
            )
        return places

    def old_run(self, table: str) -> UsageError:
        """What to say where a run was made before there was a table."""
        fix = f"make it again: tastetwin analyze --date {self.run.logical_date}, evaluate, deliver"
        return UsageError("OLD-RUN", place=f"run {self.run.run_id}", value=f"no table {table}", rule="", fix=fix)

    def _no_twins(self, user: str) -> UsageError:
        return self._refusal("NO-TWINS", user, "has enough favors, but nobody to be shown", "look at the run's report")

    def _refusal(self, code: str, user: str, value: str, fix: str) -> UsageError:
        return UsageError(code, place=f"user {user}", value=value, rule="", fix=fix)

    def hold(self) -> Histories:
        """Read everybody's histories and vectors: for a process that answers many questions, each then in milliseconds.

        Returns:
            The histories of the users with enough favors, opted out or not, user ids ascending.
        """
        self._held = read_histories(self.store, self.features, self.min_favors)[0]
        if len(self.space[0]) and self.exposure.num_rows:  # runs made before there was the table answer no dial
            _ = self._near, self._far, self._hidden
        return self._held

    def histories_of(self, users: list[str]) -> dict[str, npt.NDArray[np.int32]]:
        """Vocabulary rows by user, for those that exist."""
        if self._held is not None:
            return _select(self._held, users)
        table = self.rows_of(self.features, "history", _PLACES, users)
        lists = table.column("places").to_pylist()
        return {user: np.array(row, np.int32) for user, row in zip(table.column(USER).to_pylist(), lists, strict=True)}

    def rows_of(self, manifest: Manifest, table: str, schema: pa.Schema, users: list[str]) -> pa.Table:
        """The rows of some users, from the buckets that can hold them."""
        wanted = {bucket_name(bucket_of(user, int(manifest.facts["buckets"]))) for user in users}
        paths = [path for path in manifest.paths(table) if path.rsplit("/", 1)[-1] in wanted]
        return read_files(self.store, paths, schema, filters=[(USER, "in", users)])

    @functools.cached_property
    def explainer(self) -> Explainer:
        """Says what two users share."""
        visitors = read_visitors(self.store, self.analysis.paths("visitors")[0])
        sensitive = frozenset(self.analysis.settings["analyze"].get("sensitive_categories", []))
        rules = EvidenceRules(sensitive_categories=sensitive)
        return Explainer(self.vocabulary, visitors, rules, self._names(), self._language)

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """What the rows of histories are."""
        return read_vocabulary(self.store, self.features.paths("vocabulary")[0])

    def _names(self) -> dict[str, str]:
        """Names of the places that have one."""
        named = pa.schema([PLACES.field(PLACE), PLACES.field(NAME)])
        table = read_table(self.store, self.features, "place", named)
        table = table.filter(pc.is_valid(table.column(NAME)))
        return dict(zip(table.column(PLACE).to_pylist(), table.column(NAME).to_pylist(), strict=True))


def _select(histories: Histories, users: list[str]) -> dict[str, npt.NDArray[np.int32]]:
    at = np.searchsorted(histories.user_ids, np.array(users, object))
    found = [(user, place) for user, place in zip(users, at.tolist(), strict=True) if place < histories.n_users]
    ids, offsets, places = histories.user_ids, histories.offsets, histories.places
    return {user: places[offsets[place] : offsets[place + 1]] for user, place in found if ids[place] == user}


def as_json_row(twin: Twin) -> dict[str, Any]:
    """A twin as one JSON object; evidence as the sentence and the shared things by id."""
    evidence = twin.evidence
    return {
        "rank": twin.rank,
        "twin_idno": twin.twin_idno,
        "score": round(twin.score, 4),
        "percentile": round(twin.percentile, 4),
        "taste": None if twin.taste is None else round(twin.taste, 4),
        "home": None if twin.home is None else round(twin.home, 4),
        "chance": None if twin.chance is None else round(twin.chance, 4),
        "evidence": evidence.sentence,
        "shared_places": [shared.key for shared in evidence.places],
        "shared_categories": [shared.key for shared in evidence.categories],
        "shared_regions": [shared.key for shared in evidence.regions],
    }
