"""For whom is the encoder better? On results made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from tastetwin.config import EvaluateConfig
from tastetwin.evaluation.benchmark import Benchmark
from tastetwin.evaluation.groups import GroupScore, Judged, end_to_end, pair_groups, utility_groups
from tastetwin.evaluation.halves import PairKey, summaries
from tastetwin.evaluation.lists import Votes, utility_scores
from tastetwin.evaluation.records import MODEL
from tastetwin.evaluation.tables import as_tables
from tastetwin.evaluation.utility import Future
from tests.evaluation.planted import make_histories, make_vocabulary

RULES = EvaluateConfig(bootstrap=200)
USERS = 60
NAMES = np.array([f"u{number:02}" for number in range(USERS)], object)
PLACES = np.repeat([4, 8, 20], [25, 25, 10])
HOMES = np.repeat([0, 1, 2, -1], [30, 10, 19, 1]).astype(np.int32)
ONCE = Judged(NAMES, PLACES, HOMES)


def groups(judged: Judged, model: list[int], baseline: list[int]) -> dict[tuple[str, str], GroupScore]:
    """Of task 1, by kind and name."""
    ranks: dict[PairKey, np.ndarray] = {
        ("disjoint", MODEL, True): np.array(model),
        ("disjoint", "some", True): np.array(baseline),
        ("disjoint", "some", False): np.array(baseline) + 1,
    }
    scores = summaries(ranks, {"disjoint": judged.user_ids}, RULES)
    found = pair_groups(ranks, scores, {"disjoint": judged}, ["a", "b", "c"], RULES)
    return {(group.kind, group.name): group for group in found}


def test_only_the_group_that_is_served_better_has_a_ratio_above_one() -> None:
    """The model halves the ranks of those with 6 to 10 places, and of nobody else."""
    found = groups(ONCE, [1 if 6 <= places <= 10 else 2 for places in PLACES], [2] * USERS)
    ratios = {name: group.ratio and (group.ratio.low, group.ratio.high) for (_, name), group in found.items()}
    assert ratios["6-10"] == (2, 2) and ratios["3-5"] == (1, 1)
    assert {group.rival for group in found.values()} == {"some"}


def test_a_group_too_small_for_an_interval_is_shown_as_small() -> None:
    """An interval over ten users would pass for one; ten users of five splits are ten."""
    for judged, times in ((ONCE, 1), (end_to_end([ONCE] * 5), 5)):
        found = groups(judged, [1] * USERS * times, [2] * USERS * times)
        few = found["activity", "11-30"]
        assert (few.users, few.model, few.baseline, few.ratio) == (10, 1, 0.5, None)
        named = {name: group.users for (kind, name), group in found.items() if kind == "region"}
        assert named == {"a": 30, "other": 29, "unknown": 1}, "b and c have fewer than 20 users, however many pairs"
    *_, (_, _, rows) = as_tables(Benchmark("town", 9, 9, 9, [1], groups=[few]))
    assert rows[0][3] == "10" and rows[0][-1] == "too few"


def test_without_a_model_or_a_baseline_there_is_nothing_to_set_side_by_side() -> None:
    """A benchmark of baselines alone (``--without model``) must not end in a traceback."""
    for method in (MODEL, "some"):
        ranks: dict[PairKey, np.ndarray] = {("disjoint", method, True): np.ones(USERS, np.int64)}
        scores = summaries(ranks, {"disjoint": NAMES}, RULES)
        assert pair_groups(ranks, scores, {"disjoint": ONCE}, ["a", "b", "c"], RULES) == []


@pytest.mark.parametrize(("helped", "has_interval"), [(60, True), (1, False)])
def test_a_baseline_that_is_worth_nothing_gives_no_endless_ratio(helped: int, has_interval: bool) -> None:
    """Drawn again and again, one user who is helped is often missing, and everything over nothing has no bound."""
    past = make_histories({name: [2, 3, 4] for name in NAMES})
    matrix = sp.csr_matrix(np.ones((USERS, 1), np.float32))
    future = Future(past, matrix, matrix, make_vocabulary(3, np.zeros(3, np.int32), np.zeros(3, np.int32)))
    test = np.flatnonzero(~future.validation(RULES.seed))
    ndcg = np.zeros(USERS)
    ndcg[test[:helped]] = 0.5
    ours, theirs = Votes(20, False, np.ones(USERS), np.ones(USERS)), Votes(0, False, ndcg, ndcg)
    measured = {(MODEL, "people"): ours, ("some", "places"): theirs}
    found = utility_groups(measured, utility_scores(measured, future, RULES), future, RULES)
    assert [(group.kind, group.users) for group in found] == [("activity", len(test)), ("region", len(test))]
    assert all((group.ratio is not None) is has_interval for group in found)
