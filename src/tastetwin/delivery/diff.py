"""What readers would see change: the lists of a run beside those of another, bucket by bucket.

Lists are compared as readers see them: without who has opted out by now, to a depth of ten. In memory are a bucket of
either run and two counters for everybody who is in a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tastetwin.config import DeliverConfig
from tastetwin.errors import GateRefused, UsageError
from tastetwin.generations import read_manifest
from tastetwin.privacy.opt_out import OptOuts, read_opt_outs
from tastetwin.runs import Run, latest_run, published, published_run, read_run
from tastetwin.schema import RESULT, TWINS, USER
from tastetwin.store import Store
from tastetwin.tables import read_bucket, read_files

DEPTH: Final = 10
SHOWN: Final = 20
"""Users named in each of the three lists of a diff."""
_LISTS: Final = pa.schema([TWINS.field(name) for name in (USER, "rank", "twin_idno")])
_COUNTED: Final = 1 << 22
"""Rows of counters that wait before they are added up."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ChangedList:
    """A user who was and is served, and both lists, the closest first."""

    user_idno: str
    changed: int
    before: list[str]
    after: list[str]


@dataclass(frozen=True)
class Exposure:
    """In how many lists a user was and is."""

    user_idno: str
    before: int
    after: int


@dataclass(frozen=True)
class ListDiff:
    """The lists of ``run_id`` beside those of ``with_run``."""

    run_id: str
    with_run: str
    depth: int
    users_before: int
    users_after: int
    appeared: int
    vanished: int
    jaccard: float | None
    """Mean over the users with both lists; None without any."""
    churn: list[int]
    """[depth + 1] users with both lists by how many entries of the longer of both lists the other does not share."""
    kept: int
    left: int
    new: int
    """Entries of those lists."""
    changed_share: float
    """Of users before: those with more than half of the list changed, or without a list now; 0 where nobody was."""
    most_changed: list[ChangedList]
    gained: list[Exposure]
    lost: list[Exposure]

    def require_approval(self, config: DeliverConfig) -> None:
        """Stop the publication of a run that a person should look at.

        Raises:
            GateRefused: AWAITS-APPROVAL; ``promote`` is the approval.
        """
        if self.changed_share > config.max_changed or config.max_changed == 0:
            raise GateRefused(
                "AWAITS-APPROVAL",
                place=f"run {self.run_id}",
                value=f"{self.changed_share:.1%} of lists change by more than half, {self.vanished} users vanish",
                rule=f"delivered, not published: above deliver.max_changed ({config.max_changed:.1%}) a person decides",
                fix=f"tastetwin diff {self.run_id} --store ..., then tastetwin promote {self.run_id} --store ...",
            )

    def without(self, opt_outs: OptOuts) -> ListDiff:
        """The same with nobody named who has opted out."""

        def shown(users: Sequence[str]) -> list[str]:
            return [user for user, hidden in zip(users, opt_outs.of(users), strict=True) if not hidden]

        return replace(
            self,
            most_changed=[
                replace(each, before=shown(each.before), after=shown(each.after))
                for each in self.most_changed
                if shown([each.user_idno])
            ],
            gained=[each for each in self.gained if shown([each.user_idno])],
            lost=[each for each in self.lost if shown([each.user_idno])],
        )


def diff_path(run_id: str) -> str:
    """Where the diff of a delivered run lies in the store."""
    return f"diffs/{run_id}.json"


def write_diff(store: Store, diff: ListDiff) -> None:
    """Keep a diff beside the run's report."""
    store.write_json(diff_path(diff.run_id), asdict(diff))


def read_diff(store: Store, run_id: str) -> ListDiff:
    """The diff that was kept when a run was delivered, with nobody named who has opted out since.

    Raises:
        StoreError: DAMAGED when there is none or it cannot be read; OPT-OUTS-DAMAGED.
    """
    return _kept(store, diff_path(run_id)).without(read_opt_outs(store))


def kept_diffs(store: Store) -> dict[str, ListDiff]:
    """Path -> every diff that is kept, as it was made.

    Raises:
        StoreError: DAMAGED.
    """
    return {path: _kept(store, path) for path in store.files("diffs") if path.endswith(".json")}


def _kept(store: Store, path: str) -> ListDiff:
    raw = store.read_json(path)
    try:
        most = [ChangedList(**each) for each in raw.pop("most_changed")]
        gained, lost = ([Exposure(**each) for each in raw.pop(name)] for name in ("gained", "lost"))
        return ListDiff(**raw, most_changed=most, gained=gained, lost=lost)
    except (KeyError, TypeError) as error:
        raise store.damaged(path, str(error)) from error


def runs_to_compare(store: Store, run_id: str | None, with_run: str | None) -> tuple[Run, Run]:
    """(run, run to compare it with): by default the newest run, and the published one or, for that, the one before.

    Raises:
        UsageError: UNKNOWN-RUN, NO-RUN, NOT-PUBLISHED; NO-PREVIOUS when the only run ever published is to be compared.
    """
    run = latest_run(store) if run_id is None else read_run(store, run_id)
    if with_run is not None:
        return run, read_run(store, with_run)
    shown = published_run(store)
    if shown.run_id != run.run_id:
        return run, shown
    pointer = published(store)
    if pointer is None or not pointer.previous:
        raise UsageError(
            "NO-PREVIOUS",
            place=store.url(""),
            value=f"{run.run_id} is the first that was published",
            rule="an earlier published run, or another one by --with",
            fix="see: tastetwin runs",
        )
    return run, read_run(store, pointer.previous[-1])


def diff_runs(store: Store, run: Run, other: Run, opt_outs: OptOuts) -> ListDiff:
    """Compare the lists of ``run`` with those of ``other``; ``opt_outs`` are shown nowhere and looked for in ``run``.

    Raises:
        UsageError: STAGE-MISSING when one of them has no lists.
        StoreError: NO-GENERATION when one's lists are no longer kept.
    """
    new, old = (read_manifest(store, "analyze", each.generation("analyze")) for each in (run, other))
    buckets = int(new.facts["buckets"])
    total = _Total()
    for number in range(buckets):
        before, after = (read_bucket(store, made, "twins", _LISTS, number, buckets) for made in (old, new))
        total.add(compare(before, after, opt_outs))
    return total.diff(run.run_id, other.run_id)


def count_leaks(store: Store, run: Run, opt_outs: OptOuts) -> int:
    """Users and twins in the ``result`` table of a delivered run who have opted out.

    Of those who had when it was made there is none; those who did since are there, and shown by no reader.
    """
    made = read_manifest(store, "deliver", run.generation("deliver"))
    return sum(_hidden(read_files(store, [path], RESULT), opt_outs) for path in made.paths("result") if opt_outs.names)


def _hidden(results: pa.Table, opt_outs: OptOuts) -> int:
    twins = pc.list_flatten(pc.struct_field(results.column("payload"), "twins"))
    named = pa.chunked_array([*results.column("idno").chunks, *pc.struct_field(twins, "twin_idno").chunks], pa.string())
    return int(len(named) - opt_outs.without(pa.table({"id": named}), "id").num_rows)


def require_no_leak(store: Store, run: Run, opt_outs: OptOuts) -> None:
    """Stop a delivery that shows somebody of ``opt_outs``, who had opted out before it.

    Raises:
        GateRefused: OPT-OUT-LEAK; nothing approves that.
    """
    if leaks := count_leaks(store, run, opt_outs):
        raise GateRefused(
            "OPT-OUT-LEAK",
            place=f"run {run.run_id}",
            value=f"{leaks} entries of users who have opted out",
            rule="nobody who has opted out is delivered, and no approval changes that",
            fix="run 'deliver' with --again; if that says the same, please report it",
        )


@dataclass(frozen=True)
class Compared:
    """Two sets of lists side by side; a list's entries are positions in ``twins``."""

    users: pa.Array
    """[n] everybody of whom there are rows."""
    sizes: Ints
    """[2, n] entries of the lists before and after."""
    kept: Ints
    """[n] entries in both."""
    twins: pa.Array
    """[m] everybody in a row."""
    shown: Ints
    """[2, m] in how many lists."""
    entries: Ints
    """[2, n, DEPTH] the lists, the closest first; -1 where there is nobody."""

    @property
    def changed(self) -> Ints:
        """[n] entries of the longer list that the other does not share."""
        return np.asarray(self.sizes.max(axis=0) - self.kept)

    @property
    def in_both(self) -> npt.NDArray[np.bool_]:
        """[n] whether the user has a list before and after."""
        return np.asarray((self.sizes > 0).all(axis=0))

    def most_changed(self) -> list[ChangedList]:
        """Users with both lists and not the same in them, the most changed first, ids ascending."""
        at = np.flatnonzero(self.in_both & (self.changed > 0))
        table = pa.table({"changed": self.changed[at], "user": self.users.take(pa.array(at)), "at": at})
        order = [("changed", "descending"), ("user", "ascending")]
        rows = table.take(pc.select_k_unstable(table, SHOWN, order)).to_pylist()
        return [ChangedList(row["user"], row["changed"], *self._lists(row["at"])) for row in rows]

    def _lists(self, user: int) -> list[list[str]]:
        return [self.twins.take(pa.array(side[side >= 0])).to_pylist() for side in self.entries[:, user]]


def compare(before: pa.Table, after: pa.Table, opt_outs: OptOuts) -> Compared:
    """Compare two tables of lists (user, rank, twin; in any order of rows, nobody twice in a list)."""
    rows = pa.concat_tables([before, after])
    side = np.repeat([0, 1], [before.num_rows, after.num_rows])
    users, twins = (rows.column(name).combine_chunks().dictionary_encode() for name in (USER, "twin_idno"))
    n, m = len(users.dictionary), len(twins.dictionary)
    ranks = rows.column("rank").to_numpy().astype(np.int64)
    lists, entry = side * n + users.indices.to_numpy(), twins.indices.to_numpy()
    # Mostly in order as stored, which a stable sort is quick to find.
    order = np.argsort(lists * (ranks.max(initial=0) + 1) + ranks, kind="stable")
    hidden = [opt_outs.of(each.dictionary.to_pylist()) for each in (users, twins)]
    order = order[~(np.tile(hidden[0], 2)[lists] | hidden[1][entry])[order]]
    lists, entry = lists[order], entry[order]
    first = np.flatnonzero(np.diff(lists, prepend=-1))
    place = np.arange(len(lists)) - np.repeat(first, np.diff(first, append=len(lists)))
    top = place < DEPTH
    entries = np.full((2, n, DEPTH), -1, np.int64)
    entries.reshape(2 * n, DEPTH)[lists[top], place[top]] = entry[top]
    kept = np.zeros(n, np.int64)
    for column in entries[0].T:  # ten comparisons of whole tables cost less than sorting one
        kept += ((entries[1] == column[:, None]) & (column >= 0)[:, None]).any(axis=1)
    shown = np.stack([np.bincount(each[each >= 0], minlength=m) for each in entries])
    return Compared(users.dictionary, (entries >= 0).sum(axis=2), kept, twins.dictionary, shown, entries)


@dataclass
class _Total:
    """What the buckets add up to."""

    before: int = 0
    after: int = 0
    both: int = 0
    jaccard: float = 0.0
    churn: Ints = field(default_factory=lambda: np.zeros(DEPTH + 1, np.int64))
    entries: Ints = field(default_factory=lambda: np.zeros(3, np.int64))
    changed: int = 0
    most: list[ChangedList] = field(default_factory=list)
    shown: list[pa.Table] = field(default_factory=list)

    def add(self, found: Compared) -> None:
        both, sizes, kept = found.in_both, found.sizes[:, found.in_both], found.kept[found.in_both]
        changed = found.changed[both]
        self.before += int((found.sizes[0] > 0).sum())
        self.after += int((found.sizes[1] > 0).sum())
        self.both += len(kept)
        self.jaccard += float((kept / (sizes.sum(axis=0) - kept)).sum())
        self.churn += np.bincount(changed, minlength=DEPTH + 1)
        self.entries += [kept.sum(), *(sizes.sum(axis=1) - kept.sum())]
        self.changed += int((2 * changed > sizes.max(axis=0, initial=0)).sum())
        self.most = sorted([*self.most, *found.most_changed()], key=lambda each: (-each.changed, each.user_idno))[
            :SHOWN
        ]
        self.shown.append(pa.table({"user": found.twins, "before": found.shown[0], "after": found.shown[1]}))
        if sum(table.num_rows for table in self.shown[1:]) > max(_COUNTED, self.shown[0].num_rows):
            self.shown = [self._exposure()]

    def _exposure(self) -> pa.Table:
        summed = pa.concat_tables(self.shown).group_by("user").aggregate([("before", "sum"), ("after", "sum")])
        return summed.rename_columns({"before_sum": "before", "after_sum": "after"}).select(["user", "before", "after"])

    def diff(self, run_id: str, with_run: str) -> ListDiff:
        exposure = self._exposure()
        change = pc.subtract(exposure.column("after"), exposure.column("before"))
        exposure = exposure.append_column("change", change)
        vanished = self.before - self.both
        return ListDiff(
            run_id,
            with_run,
            DEPTH,
            users_before=self.before,
            users_after=self.after,
            appeared=self.after - self.both,
            vanished=vanished,
            jaccard=self.jaccard / self.both if self.both else None,
            churn=self.churn.tolist(),
            kept=int(self.entries[0]),
            left=int(self.entries[1]),
            new=int(self.entries[2]),
            changed_share=(self.changed + vanished) / max(1, self.before),
            most_changed=self.most,
            gained=_extremes(exposure.filter(pc.greater(exposure.column("change"), 0)), "descending"),
            lost=_extremes(exposure.filter(pc.less(exposure.column("change"), 0)), "ascending"),
        )


def _extremes(exposure: pa.Table, order: str) -> list[Exposure]:
    rows: list[dict[str, Any]] = exposure.take(
        pc.select_k_unstable(exposure, SHOWN, [("change", order), ("user", "ascending")])
    ).to_pylist()
    return [Exposure(row["user"], row["before"], row["after"]) for row in rows]
