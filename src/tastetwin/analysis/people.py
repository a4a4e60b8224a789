"""The users of one run, as its tables know them: a few row groups are read, never a whole table."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tastetwin.analysis.index import Floats, Ints
from tastetwin.analysis.parts import read_axes
from tastetwin.analysis.standing import EXPOSURE
from tastetwin.analysis.stored import read_vectors
from tastetwin.errors import UsageError
from tastetwin.features.histories import Histories, Vocabulary
from tastetwin.features.home import home_region
from tastetwin.features.stage import NOT_SHOWN, read_histories
from tastetwin.features.taste import HISTORY
from tastetwin.features.user_favor import USER_FAVOR
from tastetwin.features.vocabulary import read_vocabulary
from tastetwin.generations import Manifest, read_manifest
from tastetwin.privacy.opt_out import is_opted_out
from tastetwin.runs import Run
from tastetwin.schema import OTHER, TWINS, USER
from tastetwin.store import Store
from tastetwin.tables import bucket_name, bucket_of, read_files, read_table

_PLACES: Final = pa.schema([HISTORY.field(USER), HISTORY.field("places")])


@dataclass(frozen=True)
class About:
    """A user in one line."""

    places: int
    """Distinct places."""
    home_region: str
    """The region of most of them; "" where none is known."""


class People:
    """Everybody of one run."""

    def __init__(self, store: Store, run: Run) -> None:
        self.store = store
        self.run = run
        self.features = read_manifest(store, "features", run.generation("features"))
        self.analysis = read_manifest(store, "analyze", run.generation("analyze"))
        self.min_favors = int(self.analysis.settings["min_favors"])
        self._held: Histories | None = None

    def hold(self) -> Histories:
        """Read everybody's histories: for a process that answers many questions, each then in milliseconds.

        Returns:
            The histories of the users with enough favors, opted out or not, user ids ascending.
        """
        self._held = read_histories(self.store, self.features, self.min_favors)
        return self._held

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
    def vocabulary(self) -> Vocabulary:
        """What the rows of histories are."""
        return read_vocabulary(self.store, self.features.paths("vocabulary")[0])

    def about(self, user: str) -> About:
        """What the run knows of a user.

        Raises:
            UsageError: UNKNOWN-USER or TOO-FEW-FAVORS.
        """
        rows = self.usable_history(user)
        home = home_region(rows, self.vocabulary)
        return About(len(rows), "" if home < 0 else str(self.vocabulary.region_codes[home]))

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

    @functools.cached_property
    def exposure(self) -> pa.Table:
        """``EXPOSURE`` of the run; users ascending."""
        return read_table(self.store, self.analysis, "exposure", EXPOSURE)

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

    def not_shown_to(self, user: str) -> list[str]:
        """Whom the user follows, and either side of a block."""
        found: list[str] = self.rows_of(self.features, "not_shown", NOT_SHOWN, [user]).column(OTHER).to_pylist()
        return found

    def may_be_shown_to(self, user: str) -> Ints:
        """Positions, ascending, of those whom the run lets into a user's list, in whatever region."""
        ids, (hidden, instead) = self.space[0], self._hidden
        shown = np.ones(len(ids), bool)
        shown[hidden] = False
        others = np.array([*instead.get(user, []), *self.not_shown_to(user), user], object)
        at = np.minimum(np.searchsorted(ids, others), len(ids) - 1)
        shown[at[ids[at] == others]] = False
        return np.flatnonzero(shown)

    @functools.cached_property
    def _hidden(self) -> tuple[Ints, dict[str, list[str]]]:
        """Positions of those shown to nobody, and who is shown instead of whom."""
        hidden = self.exposure.filter(pc.is_valid(self.exposure.column("hidden")))
        users, instead = hidden.column(USER).to_pylist(), hidden.column("instead_idno").to_pylist()
        known = pa.array(self.space[0], pa.string())
        at = np.flatnonzero(pc.is_in(known, value_set=pa.array(users, pa.string())).to_numpy(zero_copy_only=False))
        return at, {user: [other] for user, other in zip(users, instead, strict=True) if other is not None}

    @functools.cached_property
    def space(self) -> tuple[npt.NDArray[np.object_], Floats, Floats]:
        """Those who have a vector, ascending; their vectors; the home axes. *Positions* are places among them."""
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
            raise self.no_twins(user)
        return at

    def no_twins(self, user: str) -> UsageError:
        """What to say where nobody is left to be shown."""
        return self._refusal("NO-TWINS", user, "has enough favors, but nobody to be shown", "look at the run's report")

    def _refusal(self, code: str, user: str, value: str, fix: str) -> UsageError:
        return UsageError(code, place=f"user {user}", value=value, rule="", fix=fix)


def _select(histories: Histories, users: list[str]) -> dict[str, npt.NDArray[np.int32]]:
    at = np.searchsorted(histories.user_ids, np.array(users, object))
    found = [(user, place) for user, place in zip(users, at.tolist(), strict=True) if place < histories.n_users]
    ids, offsets, places = histories.user_ids, histories.offsets, histories.places
    return {user: places[offsets[place] : offsets[place + 1]] for user, place in found if ids[place] == user}
