"""For whom the encoder is better: beside the best baseline of a task, by how many places it saw and by home region."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from tastetwin.config import EvaluateConfig
from tastetwin.evaluation.halves import PairKey, PairScore, PairTask
from tastetwin.evaluation.lists import UtilityScore, Votes
from tastetwin.evaluation.metrics import (
    Interval,
    activity_buckets,
    bootstrap_ratio_by_user,
    reciprocal,
    region_buckets,
)
from tastetwin.evaluation.records import MODEL
from tastetwin.evaluation.utility import Future
from tastetwin.features.home import home_regions

GroupTask = Literal["disjoint", "matched", "utility"]
Values = npt.NDArray[np.float64]

LARGEST_REGIONS: Final = 5
FEWEST_USERS: Final = 20
"""Users that a region needs to stand on its own, and any group to have an interval."""
FEWEST_FOUND: Final = 5
"""Users for whom the baseline must be worth anything: of fewer, samples without any are too common (e^-5 of them)."""


@dataclass(frozen=True)
class Judged:
    """Whose the results of a task are, one row each; a user may have several."""

    user_ids: npt.NDArray[np.object_]
    """[n]"""
    places: npt.NDArray[np.int64]
    """[n] how many distinct places of the user the vector was made of."""
    homes: npt.NDArray[np.int32]
    """[n] home region, the same in every row of a user; -1 where none is known."""


@dataclass(frozen=True)
class GroupScore:
    """The encoder and the task's best baseline for one group of users: MRR, or NDCG@20 for ``utility``."""

    task: GroupTask
    kind: Literal["activity", "region"]
    name: str
    users: int
    rival: str
    """The baseline that is best over all users."""
    model: float
    baseline: float
    ratio: Interval | None
    """Of the two, paired; None where users are too few for an interval."""


def end_to_end(parts: Sequence[Judged]) -> Judged:
    """Those of several splits."""
    columns = ([vars(part)[name] for part in parts] for name in ("user_ids", "places", "homes"))
    return Judged(*map(np.concatenate, columns))


def pair_groups(
    ranks: Mapping[PairKey, npt.NDArray[np.int64]],
    scores: Sequence[PairScore],
    judged: Mapping[PairTask, Judged],
    region_codes: Sequence[object],
    rules: EvaluateConfig,
) -> list[GroupScore]:
    """Tasks 1 and 3 by groups: ``ranks`` [pairs] and ``judged`` [pairs] over all seeds, ``scores`` made of the ranks.

    Of the encoder the better of with and without CSLS, as everywhere; nothing of a task without it or a baseline.
    """
    found: list[GroupScore] = []
    tasks: tuple[Literal["disjoint", "matched"], ...] = ("disjoint", "matched")
    for task in tasks:
        mine = [score for score in scores if score.task == task]
        ours = max((s for s in mine if s.method == MODEL), key=lambda s: s.mrr.value, default=None)
        best = next((s for s in mine if s.ratio is None and s.method != MODEL), None)
        if ours is not None and best is not None:
            a, b = (reciprocal(ranks[task, score.method, score.csls]) for score in (ours, best))
            found += _by_group((task, best.method), a, b, judged[task], region_codes, rules)
    return found


def utility_groups(
    found: Mapping[tuple[str, str], Votes],
    scores: Sequence[UtilityScore],
    future: Future,
    rules: EvaluateConfig,
) -> list[GroupScore]:
    """Task 4 by groups: the users of ``scores``, by what they did before the cut."""
    best = next((score for score in scores if score.ratio is None and score.method != MODEL), None)
    if best is None or (MODEL, "people") not in found:
        return []
    test = ~future.validation(rules.seed)
    users = future.past.select(future.judged[test])
    judged = Judged(users.user_ids, users.lengths(), home_regions(users, future.vocabulary))
    a, b = (found[key].ndcg[test] for key in ((MODEL, "people"), (best.method, best.kind)))
    return list(_by_group(("utility", best.method), a, b, judged, list(future.vocabulary.region_codes), rules))


def _by_group(
    what: tuple[GroupTask, str],
    ours: Values,
    theirs: Values,
    judged: Judged,
    region_codes: Sequence[object],
    rules: EvaluateConfig,
) -> Iterator[GroupScore]:
    task, rival = what
    for kind, name, mask in _groups(judged, region_codes):
        a, b, owners = ours[mask], theirs[mask], judged.user_ids[mask]
        users = len(np.unique(owners.astype(str)))
        enough = users >= FEWEST_USERS and np.count_nonzero(b) >= FEWEST_FOUND
        ratio = bootstrap_ratio_by_user(a, b, owners, rules.bootstrap, rules.seed) if enough else None
        yield GroupScore(task, kind, name, users, rival, float(a.mean()), float(b.mean()), ratio)


def _groups(
    judged: Judged, region_codes: Sequence[object]
) -> Iterator[tuple[Literal["activity", "region"], str, npt.NDArray[Any]]]:
    """Kind, name and [n] mask of every group with anybody in it; no regions where nobody's is known."""
    for name, mask in activity_buckets(judged.places):
        yield "activity", name, mask
    if not (judged.homes >= 0).any():
        return
    _, first, at = np.unique(judged.user_ids.astype(str), return_index=True, return_inverse=True)
    for name, mask in region_buckets(judged.homes[first], region_codes, LARGEST_REGIONS, FEWEST_USERS):
        yield "region", name, mask[at]
