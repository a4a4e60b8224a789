"""The full benchmark on a small town: every task speaks, and says what is true by construction."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest

from tastetwin.config import Config, EvaluateConfig
from tastetwin.engine import Engine
from tastetwin.errors import InputError
from tastetwin.evaluation.baselines import Material, Pair, full_linear, random_in_region, tfidf_overlap
from tastetwin.evaluation.benchmark import Benchmark, run_benchmark
from tastetwin.evaluation.dataset import Dataset, load_dataset
from tastetwin.evaluation.records import MODEL
from tastetwin.sources.synthetic import TownConfig, write_town

CONFIG = Config(evaluate=EvaluateConfig(bootstrap=100))
TOWN = TownConfig(users=600, seed=11)


@pytest.fixture(scope="module")
def dataset(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("benchmark") / "town"
    write_town(TOWN, folder)
    (folder / "friends.csv").write_text("user_id,friend_id\n10000001,10000002\n007,12345678901234567890\n")
    return load_dataset(engine, str(folder), TOWN.until, CONFIG)


@pytest.fixture(scope="module")
def found(dataset: Dataset) -> Benchmark:
    """Two baselines, and the strongest one in the model's place."""

    def model(material: Material) -> Pair:
        return full_linear(material)

    methods = {"random in region": random_in_region, "TF-IDF overlap": tfidf_overlap, MODEL: model}
    return run_benchmark(dataset, CONFIG, 2, methods, tell=lambda text: None)


def test_the_dataset_is_everything_the_source_says(dataset: Dataset) -> None:
    """Every event counts, whatever its rating; friends and the town's truth come along."""
    histories = dataset.histories()
    assert 590 <= histories.n_users <= 600 and histories.lengths().min() == 1
    assert dataset.friends.tolist() == [["10000001", "10000002"], ["007", "12345678901234567890"]], "ids are no numbers"
    assert dataset.truth is not None and set(histories.user_ids) <= set(dataset.truth.user_ids)
    ratings = np.array([value for value in dataset.favors["rating"].to_pylist() if value is not None])
    assert ratings.min() < 3


def test_overlap_is_worth_nothing_on_disjoint_halves_and_taste_is(found: Benchmark) -> None:
    disjoint = {(score.method, score.csls): score for score in found.pairs if score.task == "disjoint"}
    assert disjoint["TF-IDF overlap", True].mrr.value < 0.03
    assert disjoint[MODEL, True].mrr.value > 2 * disjoint["random in region", True].mrr.value
    assert all(score.recall_10 <= score.recall_100 for score in found.pairs)


def test_a_ratio_is_to_the_best_baseline_of_its_task(found: Benchmark) -> None:
    for task in ("disjoint", "matched", "chronological"):
        scores = [score for score in found.pairs if score.task == task]
        best = [score for score in scores if score.ratio is None]
        assert len(best) == 1 and best[0].method != MODEL
        assert best[0].mrr.value == max(score.mrr.value for score in scores if score.method != MODEL)
        for score in scores:
            if score.ratio is not None:
                assert score.ratio.value == pytest.approx(score.mrr.value / best[0].mrr.value)


def test_lists_are_judged_by_what_people_did_next(found: Benchmark) -> None:
    utility = {(score.method, score.kind): score for score in found.utility}
    assert utility[MODEL, "people"].ndcg_20.value > utility["popularity", "places"].ndcg_20.value > 0
    assert {score.neighbours for score in found.utility if score.kind == "places"} == {0}


def test_planted_taste_and_friends_are_told_where_there_are_vectors(found: Benchmark) -> None:
    lists = {score.method: score for score in found.lists}
    planted = lists[MODEL].planted
    assert planted is not None and planted > 0.05 and lists["TF-IDF overlap"].planted is None
    assert lists[MODEL].friends_auc is not None and 0 <= lists[MODEL].never_shown < 0.5


def test_the_record_is_plain_json(found: Benchmark) -> None:
    """It is kept beside the docs and compared from release to release; NaN is no JSON."""
    again = json.loads(orjson.dumps(found.to_json()))
    assert again["dataset"] == "town" and again["seeds"] == [1, 2]
    assert len(again["pairs"]) == 3 * 3 * 2


def test_a_source_of_short_histories_is_refused_with_the_reason(dataset: Dataset) -> None:
    few = replace(dataset, favors=dataset.favors.slice(0, 30))
    with pytest.raises(InputError, match="TOO-FEW-LONG"):
        run_benchmark(few, CONFIG, 1, {"random in region": random_in_region}, tell=lambda text: None)


def test_friends_that_are_no_pairs_are_refused(engine: Engine, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "likes.jsonl").write_text('{"user_idno": "u", "like_contentsid": "p"}\n')
    (folder / "friends.csv").write_text("only_one\n1\n")
    with pytest.raises(InputError, match="BAD-FRIENDS"):
        load_dataset(engine, str(folder), TOWN.until, CONFIG)


def test_data_without_regions_categories_or_friends_is_measured_all_the_same(dataset: Dataset) -> None:
    """Held-back cities may have none of them."""
    bare = replace(
        dataset,
        friends=np.empty((0, 2), object),
        truth=None,
        vocabulary=replace(
            dataset.vocabulary,
            regions=np.full_like(dataset.vocabulary.regions, -1),
            category_offsets=np.zeros_like(dataset.vocabulary.category_offsets),
            categories=dataset.vocabulary.categories[:0],
        ),
    )
    found = run_benchmark(bare, CONFIG, 1, {"random in region": random_in_region}, tell=lambda text: None)
    assert found.lists[0].friends_auc is None and len(found.pairs) == 6
