"""The benchmark's results as tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from tastetwin.evaluation.benchmark import Benchmark
from tastetwin.evaluation.groups import FEWEST_USERS
from tastetwin.evaluation.halves import PairScore, PairTask
from tastetwin.evaluation.lists import UtilityScore
from tastetwin.evaluation.metrics import Interval
from tastetwin.evaluation.records import Coverage

_TITLES: Final[dict[PairTask, str]] = {
    "disjoint": "Disjoint twin test: one half of a person's places finds the other, none in common",
    "matched": "Matched twin test: the same among 99 others of the same area and activity",
    "chronological": "Chronological twin test: older places find newer ones (secondary: overlap in time helps)",
}


def as_tables(found: Benchmark) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """(title, columns, rows) per task, the best method first, then for whom; the better of with and without CSLS."""
    for task, title in _TITLES.items():
        best: dict[str, PairScore] = {}
        for score in (each for each in found.pairs if each.task == task):
            if score.method not in best or score.mrr.value > best[score.method].mrr.value:
                best[score.method] = score
        ranked = sorted(best.values(), key=lambda score: -score.mrr.value)
        rows = [
            [
                *(s.method, _yes(s.csls), *_shown(s.mrr), f"{s.recall_10:.2f}", f"{s.recall_100:.2f}"),
                *_shown_ratio(s.ratio),
            ]
            for s in ranked
        ]
        recalls = ("recall@10", "recall@100")
        yield title, ["method", "CSLS", "MRR", "95 % interval", *recalls, "x best baseline", "95 % interval "], rows
    yield (
        "Neighbour utility: the places of the twins rank those visited for the first time later",
        ["method", "by", "twins", "CSLS", "NDCG@20", "95 % interval", "recall@20", "x best baseline", "95 % interval "],
        [
            [s.method, s.kind, *_list_length(s), *_shown(s.ndcg_20, 4), f"{s.recall_20:.3f}", *_shown_ratio(s.ratio)]
            for s in sorted(found.utility, key=lambda s: -s.ndcg_20.value)
        ],
    )  # fmt: skip
    yield (
        "Lists of everybody",
        ["method", "never shown", "Gini", "skew", "reciprocity", "a day later", "friends AUC", "friends MRR",
         "planted taste"],
        [
            [s.method, *(f"{v:.3f}" for v in (s.never_shown, s.gini, s.skewness, s.reciprocity)),
             *("-" if v is None else f"{v:.3f}" for v in (s.stability, s.friends_auc, s.friends_mrr, s.planted))]
            for s in found.lists
        ],
    )  # fmt: skip
    yield (
        "Who is among anybody's first ten: the groups, by how many places they have and by home, of whom fewest are",
        ["method", "places", "share", "home", "share "],
        [[s.method, *_fewest(s.coverage, "activity"), *_fewest(s.coverage, "region")] for s in found.lists],
    )
    yield (
        "For whom: MRR (utility: NDCG@20) of model and best baseline by places of the user that they saw, and by home",
        ["task", "by", "group", "users", "model", "best baseline", "its score", "x best baseline", "95 % interval"],
        [
            [s.task, s.kind, s.name, f"{s.users:,}", f"{s.model:.4f}", s.rival, f"{s.baseline:.4f}",
             *(["-", "too few"] if s.ratio is None else _shown_ratio(s.ratio))]
            for s in found.groups
        ],
    )  # fmt: skip


def _fewest(coverage: Sequence[Coverage], kind: str) -> list[str]:
    """Name of the group least shown, and the share of it that is; a dash where all are shown alike.

    Of groups of ``FEWEST_USERS``, where there are any: of one user, all or none are.
    """
    groups = [group for group in coverage if group.kind == kind]
    groups = [group for group in groups if group.users >= FEWEST_USERS] or groups
    least = min(groups, key=lambda group: group.shown)
    alike = least.shown == max(group.shown for group in groups)
    return ["-" if alike else least.name, f"{least.shown:.3f}"]


def _list_length(score: UtilityScore) -> list[str]:
    """And whether by CSLS; dashes where there are no lists."""
    return [str(score.neighbours), _yes(score.csls)] if score.neighbours else ["-", "-"]


def _yes(does: bool) -> str:
    return "yes" if does else "no"


def _shown(value: Interval, digits: int = 3) -> list[str]:
    return [f"{value.value:.{digits}f}", f"{value.low:.{digits}f} .. {value.high:.{digits}f}"]


def _shown_ratio(ratio: Interval | None) -> list[str]:
    return (
        ["1", "the best baseline"] if ratio is None else [f"{ratio.value:.3f}", f"{ratio.low:.3f} .. {ratio.high:.3f}"]
    )
