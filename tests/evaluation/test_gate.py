"""The gate: every spoilt run is stopped, equal retrains are not, and a newcomer always sees a result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache

import numpy as np
import pytest

from tastetwin.errors import GateRefused, StoreError
from tastetwin.evaluation.evaluate import split_name
from tastetwin.evaluation.gate import Finding, Verdict, judge, older_than, ratio_to_published
from tastetwin.evaluation.measures import Limit, Measure, measures, read_measures
from tastetwin.evaluation.metrics import reciprocal
from tastetwin.evaluation.records import PUBLISHED, Evaluation, from_json, to_json
from tests.evaluation.planted import CONFIG, ModelRun, evaluated, model_run, nearest, noisy, unit, world


@cache
def published() -> Evaluation:
    """Yesterday's run."""
    return evaluated(model_run(seed=0))


def _codes(evaluation: Evaluation, before: Evaluation | None) -> dict[str, str]:
    return {f.code: f.severity for f in judge(evaluation, before, CONFIG).findings}


def _nan_row(run: ModelRun) -> ModelRun:
    vectors = run.vectors.copy()
    vectors[3] = np.nan
    return replace(run, vectors=vectors)


def _nan_half(run: ModelRun) -> ModelRun:
    a = run.a.copy()
    a[3, 2] = np.inf
    return replace(run, a=a)


def _point(run: ModelRun) -> ModelRun:
    vectors = unit(np.ones_like(run.vectors) + 1e-3 * run.vectors)
    return replace(run, vectors=vectors, twins=nearest(vectors))


def _line(run: ModelRun) -> ModelRun:
    vectors = unit(np.outer(run.vectors[:, 0], np.ones(8)) + 1e-6)
    return replace(run, vectors=vectors, twins=nearest(vectors))


def _not_unit(run: ModelRun) -> ModelRun:
    return replace(run, vectors=run.vectors * 3)


def _empty(run: ModelRun) -> ModelRun:
    return replace(run, twins=np.full_like(run.twins, -1))


def _constant(run: ModelRun) -> ModelRun:
    everybody = np.tile(np.arange(run.twins.shape[1], dtype=np.int32), (len(run.twins), 1))
    selves = everybody == np.arange(len(everybody))[:, None]
    return replace(run, twins=np.where(selves, 499, everybody).astype(np.int32))


def _out_of_range(run: ModelRun) -> ModelRun:
    return replace(run, twins=run.twins + 100)


def _self(run: ModelRun) -> ModelRun:
    twins = run.twins.copy()
    twins[:, 0] = np.arange(len(twins))
    return replace(run, twins=twins)


def _repeats(run: ModelRun) -> ModelRun:
    twins = run.twins.copy()
    twins[:, 1] = twins[:, 0]
    return replace(run, twins=twins)


def _swapped_index(run: ModelRun) -> ModelRun:
    return replace(run, twins=nearest(noisy(run.vectors, 1e3, seed=8)))


BROKEN: dict[Callable[[ModelRun], ModelRun], str] = {
    _nan_row: "VECTORS-NOT-FINITE",
    _nan_half: "VECTORS-NOT-FINITE",
    _point: "VECTORS-COLLAPSED",
    _line: "VECTORS-LOW-RANK",
    _not_unit: "VECTORS-NOT-UNIT",
    _empty: "LISTS-EMPTY",
    _constant: "LISTS-CONSTANT",
    _out_of_range: "LISTS-OUT-OF-RANGE",
    _self: "LISTS-SHOW-SELF",
    _repeats: "LISTS-REPEAT",
    _swapped_index: "LISTS-NOT-NEAREST",
}


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(("spoil", "code"), BROKEN.items())
@pytest.mark.parametrize("first", [True, False])
def test_a_broken_run_is_stopped_even_when_nothing_is_published(
    spoil: Callable[[ModelRun], ModelRun], code: str, first: bool
) -> None:
    """No list at all is better than these lists."""
    evaluation = evaluated(spoil(model_run(seed=1)))
    verdict = judge(evaluation, None if first else published(), CONFIG)
    assert not verdict.publish
    assert verdict.findings[0].severity == "broken"
    assert code in {f.code for f in verdict.findings}


def _random_weights(run: ModelRun) -> Evaluation:
    vectors = noisy(run.vectors, 1e3, seed=2)
    return evaluated(ModelRun(noisy(run.a, 1e3, 3), noisy(run.b, 1e3, 4), vectors, nearest(vectors)))


def _shuffled_ids(run: ModelRun) -> Evaluation:
    order = np.random.default_rng(0).permutation(len(run.vectors))
    shuffled = run.vectors[order]
    halves = np.random.default_rng(1).permutation(len(run.a))
    return evaluated(ModelRun(run.a[halves], run.b, shuffled, nearest(shuffled)))


def _clearly_worse(run: ModelRun) -> Evaluation:
    return evaluated(model_run(seed=3, noise=1.2))


def _halved_data(run: ModelRun) -> Evaluation:
    half = world(users=250)
    return evaluated(model_run(seed=4, planted=half), half)


def _few_served(run: ModelRun) -> Evaluation:
    twins = run.twins.copy()
    twins[: int(0.6 * len(twins))] = -1
    return evaluated(replace(run, twins=twins))


WORSE: dict[Callable[[ModelRun], Evaluation], str] = {
    _random_weights: "WORSE-THAN-PUBLISHED",
    _shuffled_ids: "LISTS-UNRELATED",
    _clearly_worse: "WORSE-THAN-PUBLISHED",
    _halved_data: "FEWER-USERS",
    _few_served: "FEW-SERVED",
}


@pytest.mark.parametrize(("spoil", "code"), WORSE.items())
def test_a_worse_run_does_not_replace_a_published_one(spoil: Callable[[ModelRun], Evaluation], code: str) -> None:
    """Readers must never get worse lists than they have: what is published stays."""
    verdict = judge(spoil(model_run(seed=1)), published(), CONFIG)
    assert not verdict.publish
    assert code in {f.code for f in verdict.findings if f.severity == "refuse"}
    with pytest.raises(GateRefused, match=r"GATE-REFUSED.*run 7") as refused:
        verdict.require("run 7")
    assert refused.value.exit_code == 5


@pytest.mark.parametrize("spoil", [_random_weights, _clearly_worse, _few_served])
def test_a_first_run_is_published_with_warnings(spoil: Callable[[ModelRun], Evaluation]) -> None:
    """A newcomer sees a result, and what is wrong with it."""
    verdict = judge(spoil(model_run(seed=1)), None, CONFIG)
    assert verdict.publish and verdict.first_run
    assert all(f.severity == "warn" for f in verdict.findings)
    verdict.require("run 1")


def test_a_model_below_the_baselines_is_refused_or_warned_about() -> None:
    """Below what a histogram of regions and categories gives, an encoder is not worth serving."""
    weak = evaluated(model_run(seed=1, noise=50.0), baselines=("category x region",))
    assert _codes(weak, None)["WORSE-THAN-BASELINE"] == "warn"
    assert _codes(weak, weak)["WORSE-THAN-BASELINE"] == "refuse"
    good = evaluated(model_run(seed=1), baselines=("category x region",))
    assert "WORSE-THAN-BASELINE" not in _codes(good, good)


def test_equal_retrains_are_blocked_at_most_once_in_twenty() -> None:
    """A gate that stops good days by chance will be switched off."""
    blocked = sum(not judge(evaluated(model_run(seed=seed)), published(), CONFIG).publish for seed in range(100, 140))
    assert blocked <= 2


def test_a_good_run_has_no_finding() -> None:
    """Silence is the normal state."""
    assert judge(evaluated(model_run(seed=9)), published(), CONFIG).findings == []


def test_runs_of_another_split_are_not_compared() -> None:
    """Ratios over other users would be noise dressed as a measurement."""
    other = replace(published(), split="seed=99")
    verdict = judge(evaluated(model_run(seed=9)), other, CONFIG)
    assert verdict.publish and [f.code for f in verdict.findings] == ["NOT-COMPARABLE"]
    assert ratio_to_published(published(), other, CONFIG) is None
    assert split_name(CONFIG) != split_name(CONFIG.model_copy(update={"seed": 2}))


def test_only_users_that_neither_model_has_seen_are_compared() -> None:
    """The published model learnt from those held out only today; they would count for it unfairly."""
    now = evaluated(model_run(seed=9))
    common = replace(published(), users=[*published().users[::2], "somebody who left"])
    ours, theirs = now.model(), now.of("disjoint", PUBLISHED)
    assert ours is not None and theirs is not None
    wanted = reciprocal(ours.rank_array()[::2]).mean() / reciprocal(theirs.rank_array()[::2]).mean()
    found = ratio_to_published(now, common, CONFIG)
    assert found is not None and found.value == pytest.approx(wanted)
    assert ratio_to_published(now, replace(published(), users=published().users[:5]), CONFIG) is None


def test_an_evaluation_survives_json_and_names_nobody() -> None:
    """The next run reads it back to compare user by user; the ids themselves must not be in it."""
    data = to_json(published())
    assert from_json(data, "here") == published()
    assert to_json(evaluated(model_run(seed=0))) == data
    assert b"user0" not in data
    with pytest.raises(StoreError, match="EVALUATION-UNREADABLE: here"):
        from_json(b'{"split": 3}', "here")


def test_without_held_out_users_there_is_still_a_verdict() -> None:
    """Ten users, nobody eligible: the lists are judged, quality is reported as unmeasured."""
    planted = world()
    nobody = planted.pseudo.a.select(np.zeros(0, np.int64))
    empty = replace(
        planted,
        pseudo=replace(
            planted.pseudo, a=nobody, b=nobody, activity=np.zeros(0, np.int64), regions=np.zeros(0, np.int32)
        ),
    )
    run = replace(model_run(seed=1), a=np.zeros((0, 8), np.float32), b=np.zeros((0, 8), np.float32))
    verdict = judge(evaluated(run, empty), None, CONFIG)
    assert verdict.publish
    assert [f.code for f in verdict.findings] == ["FEW-HELD-OUT"]


def test_a_published_run_without_held_out_users_blocks_nobody() -> None:
    """Nobody was held out on the first, tiny day: nobody can be missing on the second."""
    health = replace(published().health, users=0)
    nobody = replace(published(), users=[], scores=[], train_users=0, health=health)
    assert "HELD-OUT-LOST" not in _codes(evaluated(model_run(seed=1)), nobody)


def test_few_vectors_may_lie_on_a_line() -> None:
    """The halves of two people with clear tastes do, when the model is good."""
    evaluation = evaluated(model_run(seed=1))
    few = replace(evaluation, pseudo_vectors=replace(evaluation.pseudo_vectors, rows=4, effective_rank=1.5))
    assert judge(few, None, CONFIG).publish


def test_few_people_who_are_alike_are_too_little_data() -> None:
    """Three users with one history have one vector, by the best of models: the newcomer must not look for a bug."""
    evaluation = evaluated(model_run(seed=1))
    for rows, hint in ((3, True), (500, False)):
        alike = replace(evaluation, vectors=replace(evaluation.vectors, rows=rows, mean_cosine=1.0))
        with pytest.raises(GateRefused, match=r"GATE-BROKEN.*VECTORS-COLLAPSED") as broken:
            judge(alike, None, CONFIG).require("run 1")
        assert ("too little data" in str(broken.value)) == hint


def test_an_older_day_never_takes_the_place_of_a_later_one() -> None:
    """A late re-run of last week is good data for nobody who reads today's lists."""
    evaluation = evaluated(model_run(seed=1))
    stale = judge(evaluation, published(), CONFIG, older_than("2026-11-22", "2026-11-21"))
    assert not stale.publish and "STALE-DAY" in {finding.code for finding in stale.findings}
    assert judge(evaluation, published(), CONFIG, older_than("2026-11-22", "2026-11-22")).publish


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.filterwarnings("ignore:overflow")
def test_strangers_who_share_nothing_leave_a_figure_that_can_be_written_down() -> None:
    """No ratio to nothing, no infinity: the card is kept as JSON, and a sparse town is no broken one."""
    evaluation = evaluated(model_run(seed=9))
    sparse = replace(evaluation.health, overlap_twins=[5.0] * 50, overlap_random=[0.0] * 50)
    (overlap,) = [each for each in measures(replace(evaluation, health=sparse), CONFIG) if "strangers" in each.name]
    assert overlap.passed and overlap.value == overlap.high == 1_000


def test_the_findings_are_the_measures_that_do_not_pass() -> None:
    """One figure, one limit: the card cannot say one thing and the gate another."""
    verdict = judge(evaluated(_constant(model_run(seed=1))), None, CONFIG)
    failed = {each.limit.code for each in verdict.measures if each.limit and not each.passed}
    assert failed and failed <= {f.code for f in verdict.findings}
    assert read_measures([asdict(each) for each in verdict.measures]) == verdict.measures


def test_a_refusal_names_what_stopped_the_run_and_nothing_else() -> None:
    """Whoever is woken by it must not mend a warning first."""
    findings = [Finding("GRAVE", "refuse", 0, 1, "worse"), Finding("MILD", "warn", 0, 1, "worth a look")]
    with pytest.raises(GateRefused) as refused:
        Verdict(False, False, findings).require("run 7")
    assert refused.value.problem.value == "GRAVE: worse"


def test_an_uncertain_figure_is_judged_by_its_upper_bound() -> None:
    """An unlucky sample must not stop a run; one that is clearly too low must."""
    limit = Limit("X-LOW", "refuse", 1.2, "least", "too low")
    assert Measure("lists", "ratio", "number", 1.1, "", limit, high=1.3).passed
    assert not Measure("lists", "ratio", "number", 1.1, "", limit, high=1.19).passed
    assert not Measure("lists", "ratio", "number", float("nan"), "", limit).passed
