"""The benchmark's results as tables for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tastetwin.evaluation.benchmark import Benchmark
from tastetwin.evaluation.halves import PairScore, PairTask
from tastetwin.evaluation.metrics import Interval

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
            [s.method, "yes" if s.csls else "no", *_shown(s.mrr), f"{s.recall_10:.2f}", *_shown_ratio(s.ratio)]
            for s in ranked
        ]
        yield title, ["method", "CSLS", "MRR", "95 % interval", "recall@10", "x best baseline", "95 % interval "], rows
    yield (
        "Neighbour utility: the places of the twins rank those visited for the first time later",
        ["method", "by", "twins", "NDCG@20", "95 % interval", "recall@20", "x best baseline", "95 % interval "],
        [
            [s.method, s.kind, str(s.neighbours or "-"), *_shown(s.ndcg_20, 4), f"{s.recall_20:.3f}",
             *_shown_ratio(s.ratio)]
            for s in sorted(found.utility, key=lambda s: -s.ndcg_20.value)
        ],
    )  # fmt: skip
    yield (
        "Lists of everybody",
        ["method", "never shown", "Gini", "skew", "reciprocity", "friends AUC", "friends MRR", "planted taste"],
        [
            [s.method, *(f"{v:.3f}" for v in (s.never_shown, s.gini, s.skewness, s.reciprocity)),
             *("-" if v is None else f"{v:.3f}" for v in (s.friends_auc, s.friends_mrr, s.planted))]
            for s in found.lists
        ],
    )  # fmt: skip
    yield (
        "For whom: MRR (utility: NDCG@20) of model and best baseline by places of the user that they saw, and by home",
        ["task", "by", "group", "users", "model", "best baseline", "its score", "x best baseline", "95 % interval"],
        [
            [s.task, s.kind, s.name, f"{s.users:,}", f"{s.model:.4f}", s.rival, f"{s.baseline:.4f}",
             *(["-", "too few"] if s.ratio is None else _shown_ratio(s.ratio))]
            for s in found.groups
        ],
    )  # fmt: skip


def _shown(value: Interval, digits: int = 3) -> list[str]:
    return [f"{value.value:.{digits}f}", f"{value.low:.{digits}f} .. {value.high:.{digits}f}"]


def _shown_ratio(ratio: Interval | None) -> list[str]:
    return (
        ["1", "the best baseline"] if ratio is None else [f"{ratio.value:.3f}", f"{ratio.low:.3f} .. {ratio.high:.3f}"]
    )
