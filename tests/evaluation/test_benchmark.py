"""The full benchmark on a small town: every task speaks, and says what is true by construction."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pytest

from tastetwin.config import Config, EvaluateConfig, TrainConfig
from tastetwin.engine import Engine
from tastetwin.errors import InputError
from tastetwin.evaluation.baselines import Baseline, Material, Pair, full_linear, random_in_region, tfidf_overlap
from tastetwin.evaluation.benchmark import BERT_2021, Benchmark, Measurement
from tastetwin.evaluation.dataset import Dataset, load_dataset
from tastetwin.evaluation.records import MODEL, Coverage
from tastetwin.evaluation.tables import as_tables
from tastetwin.features.home import home_regions
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
def given() -> list[Material]:
    """What the model of ``found`` was given, once it was."""
    return []


@pytest.fixture(scope="module")
def found(dataset: Dataset, given: list[Material]) -> Benchmark:
    """Two baselines, and the strongest one in the model's place."""

    def model(material: Material) -> Pair:
        given.append(material)
        return full_linear(material)

    methods = {"random in region": random_in_region, "TF-IDF overlap": tfidf_overlap, MODEL: model}
    return Measurement(dataset, CONFIG, 2, methods, tell=lambda text: None).run()


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


def test_no_method_is_fitted_on_whom_it_is_asked_to_find(
    dataset: Dataset, found: Benchmark, given: list[Material]
) -> None:
    """A factor model has both halves of everybody it was fitted on by heart, and finds them all."""
    of_pairs, owned = given[:2], {score.task: score.pairs for score in found.pairs}
    everybody = set(dataset.histories().user_ids)
    for material in of_pairs:
        learnt, asked = set(material.train.user_ids), {*material.a.user_ids, *material.b.user_ids}
        assert len(learnt) > 300 and asked and not learnt & asked
        assert learnt | asked <= everybody
    assert sum(material.a.n_users for material in of_pairs) == owned["disjoint"] + owned["chronological"]
    assert owned["matched"] == owned["disjoint"] > 50


def test_lists_are_chosen_and_judged_by_one_split_of_the_users(given: list[Material], found: Benchmark) -> None:
    """Who validates is drawn by seed: with two seeds, some of those who are judged by had chosen."""
    (of_lists,) = given[len(found.seeds) :]
    assert of_lists.seed == CONFIG.evaluate.seed == of_lists.config.seed


def test_a_day_later_the_same_people_have_what_came_next(
    dataset: Dataset, given: list[Material], found: Benchmark
) -> None:
    """A hundredth of all favors; newcomers of that day have no list of the day before to compare theirs with."""
    (of_lists,) = given[len(found.seeds) :]
    before, after = of_lists.a, of_lists.b
    assert before is of_lists.train and before.user_ids.tolist() == after.user_ids.tolist()
    dated = dataset.favors.filter(dataset.favors.column("at").is_valid()).sort_by("at")
    moments = dated.column("at").cast(pa.int64()).to_numpy()
    begin = np.searchsorted(moments, int(np.quantile(moments, 0.8)), side="right")
    end = begin + round(0.01 * len(dataset.favors))
    assert moments[end - 1] < moments[end], "no tie decides"
    day = dated.slice(begin, end - begin).to_pylist()
    rows = {place: row for row, place in enumerate(dataset.vocabulary.place_ids)}
    for at, user in enumerate(before.user_ids):
        then, now = ({*users.places[users.offsets[at] : users.offsets[at + 1]]} for users in (before, after))
        assert now == then | {rows[each["place"]] for each in day if each["user_idno"] == user}
    assert (after.lengths() > before.lengths()).sum() > 20


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


def test_tables_tell_the_figures_that_their_columns_name(found: Benchmark) -> None:
    """Of a pair of columns, one under the other's name looks as good."""
    tables = {title.partition(":")[0]: (columns, rows) for title, columns, rows in as_tables(found)}

    def cells(title: str, method: str) -> dict[str, str]:
        columns, rows = tables[title]
        return next(dict(zip(columns, row, strict=True)) for row in rows if row[0] == method)

    pair = max((s for s in found.pairs if (s.task, s.method) == ("disjoint", MODEL)), key=lambda s: s.mrr.value)
    assert pair.recall_10 != pair.recall_100
    told = cells("Disjoint twin test", MODEL)
    assert (told["CSLS"], told["recall@10"], told["recall@100"]) == (
        "yes" if pair.csls else "no", f"{pair.recall_10:.2f}", f"{pair.recall_100:.2f}",
    )  # fmt: skip
    (utility,) = (score for score in found.utility if score.method == MODEL)
    told = cells("Neighbour utility", MODEL)
    assert (told["twins"], told["CSLS"]) == (str(utility.neighbours), "yes" if utility.csls else "no")
    told = cells("Neighbour utility", "item kNN")
    assert (told["by"], told["twins"], told["CSLS"]) == ("places", "-", "-")
    (looks,) = (score for score in found.lists if score.method == MODEL)
    assert cells("Lists of everybody", MODEL)["a day later"] == f"{looks.stability:.3f}"


def test_tables_are_whole_and_name_who_is_shown_least(found: Benchmark) -> None:
    """A group of a few, of whom one is in no list, says nothing."""
    for _, columns, rows in as_tables(found):
        assert rows and {len(row) for row in rows} == {len(set(columns))}
    alike = found.lists[0]
    groups = [Coverage("activity", name, 20, 1.0, shown) for name, shown in (("3-5", 0.5), ("6-10", 0.25))]
    groups += [Coverage("activity", "11-30", 19, 1.0, 0.1)]
    groups += [Coverage("region", name, 9, 1.0, 1.0) for name in ("a", "b")]
    told = {title: rows for title, _, rows in as_tables(replace(found, lists=[replace(alike, coverage=groups)]))}
    (rows,) = (rows for title, rows in told.items() if title.startswith("Who is among anybody's first ten"))
    assert rows == [[alike.method, "6-10", "0.250", "-", "1.000"]]


def test_the_record_is_plain_json(found: Benchmark) -> None:
    """It is kept beside the docs and compared from release to release; NaN is no JSON."""
    again = json.loads(orjson.dumps(found))
    assert again["dataset"] == "town" and again["seeds"] == [1, 2]
    assert len(again["pairs"]) == 3 * 3 * 2


METHODS: dict[str, Baseline] = {"random in region": random_in_region, "TF-IDF overlap": tfidf_overlap}


def counted(calls: list[str], stop_at: int = 10**9) -> dict[str, Baseline]:
    """``METHODS``, noting each call; the one numbered ``stop_at`` is interrupted."""

    def noting(name: str, method: Baseline) -> Baseline:
        def fit(material: Material) -> Pair:
            if len(calls) == stop_at:
                raise SystemExit(130)
            calls.append(name)
            return method(material)

        return fit

    return {name: noting(name, method) for name, method in METHODS.items()}


@pytest.mark.parametrize(("stop_at", "seeds", "pairs", "lists"), [(1, [1], 6, 0), (3, [1], 12, 0), (5, [1, 2], 12, 1)])
def test_stopped_it_tells_what_it_has_and_goes_on_from_there(
    dataset: Dataset, tmp_path: Path, stop_at: int, seeds: list[int], pairs: int, lists: int
) -> None:
    """Of an unfinished seed only where there is no other, so that methods are compared on the same splits."""
    first: list[str] = []
    stopped = Measurement(dataset, CONFIG, 2, counted(first, stop_at), tell=lambda text: None, keep=tmp_path)
    with pytest.raises(SystemExit):
        stopped.run()
    found = stopped.found()
    assert (found.seeds, len(found.pairs), len(found.lists), found.complete) == (seeds, pairs, lists, False)
    orjson.dumps(found)
    second: list[str] = []
    later = Measurement(dataset, CONFIG, 2, counted(second), tell=lambda text: None, keep=tmp_path)
    later.run()
    assert len(first) + len(second) == 6, "two methods on two seeds and for the lists, each once"
    whole = Measurement(dataset, CONFIG, 2, METHODS, tell=lambda text: None).run()
    assert orjson.dumps(later.found()) == orjson.dumps(whole) and whole.complete


def test_a_slow_method_keeps_nothing_else_waiting(dataset: Dataset) -> None:
    """Stopped while it is at it, there is all of the others, on all splits, and nothing of it on some of them."""
    done: list[str] = []

    def slow(material: Material) -> Pair:
        if "slow" in done:
            raise SystemExit(130)
        done.append("slow")
        return random_in_region(material)

    stopped = Measurement(dataset, CONFIG, 2, {BERT_2021: slow, **METHODS}, tell=lambda text: None)
    with pytest.raises(SystemExit):
        stopped.run()
    assert done == ["slow"], "one split of it"
    found = stopped.found()
    assert (found.seeds, {score.method for score in found.pairs}, found.complete) == ([1, 2], {*METHODS}, False)
    assert {score.method for score in found.utility if score.kind == "people"} == {*METHODS}
    assert [score.kind for score in found.utility].count("places") > 1


def test_stopped_before_the_first_result_there_is_nothing(dataset: Dataset) -> None:
    stopped = Measurement(dataset, CONFIG, 1, counted([], 0), tell=lambda text: None)
    with pytest.raises(SystemExit):
        stopped.run()
    assert stopped.found().pairs == [] and next(as_tables(stopped.found()))[2] == []


def test_other_data_or_settings_share_nothing_with_what_is_kept(dataset: Dataset, tmp_path: Path) -> None:
    """A figure of yesterday's events must not pass for today's; the order of the events is no difference."""
    rows = len(dataset.favors)
    reordered = replace(dataset, favors=dataset.favors.take(pa.array(np.arange(rows)[::-1])))
    fewer = replace(dataset, favors=dataset.favors.slice(0, rows - 1))
    other = CONFIG.model_copy(update={"train": TrainConfig(epochs=1)})
    pairs = [(dataset, CONFIG), (reordered, CONFIG), (fewer, CONFIG), (dataset, other)]
    same, again, *others = [
        Measurement(data, config, 1, METHODS, tell=lambda text: None, keep=tmp_path).steps.folder
        for data, config in pairs
    ]
    assert same == again and len({same, *others}) == 3


def test_the_first_line_says_what_is_ahead(dataset: Dataset, tmp_path: Path) -> None:
    """Data, users, methods, seeds: who started the wrong thing sees it before an hour is gone."""
    heard: list[str] = []
    measurement = Measurement(dataset, CONFIG, 3, counted([], 0), tell=heard.append, keep=tmp_path)
    with pytest.raises(SystemExit):
        measurement.run()
    assert heard[0].startswith("town: ") and " users, " in heard[0]
    assert "2 methods on 3 splits" in heard[0] and "12 steps; 0 of them are kept in " in heard[0]


def test_a_source_of_short_histories_is_refused_with_the_reason(dataset: Dataset) -> None:
    few = replace(dataset, favors=dataset.favors.slice(0, 30))
    with pytest.raises(InputError, match="TOO-FEW-LONG"):
        Measurement(few, CONFIG, 1, {"random in region": random_in_region}, tell=lambda text: None).run()


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
    methods = {"random in region": random_in_region, MODEL: tfidf_overlap}
    found = Measurement(bare, CONFIG, 1, methods, tell=lambda text: None).run()
    assert found.lists[0].friends_auc is None and len(found.pairs) == 12
    assert {group.kind for group in found.groups} == {"activity"}, "there is no region to tell of"


def blind_but_for(dataset: Dataset, group: str) -> Baseline:
    """Full linear for the users of one group, and for all others vectors that are near to nobody."""
    everybody = dataset.histories()
    codes = dataset.vocabulary.region_codes

    def model(material: Material) -> Pair:
        a, b = full_linear(material)
        if group == "11-30":
            sees = (material.a.lengths() >= 11) & (material.a.lengths() <= 30)
        else:  # the halves' home is that of the whole user; the lists know the past alone
            known = material.a if material.a is material.train else everybody
            homes = dict(zip(known.user_ids, home_regions(known, dataset.vocabulary), strict=True))
            sees = np.array([str(codes[homes[user]]) == group for user in material.a.user_ids])
        return np.asarray(a * sees[:, None], np.float32), np.asarray(b * sees[:, None], np.float32)

    return model


@pytest.mark.parametrize("kind", ["activity", "region"])
def test_what_serves_one_group_alone_shows_there_and_nowhere_else(dataset: Dataset, tmp_path: Path, kind: str) -> None:
    """A mean over all hides who is served badly; kept results must be told of the same users as fresh ones."""
    homes = home_regions(dataset.histories(), dataset.vocabulary)
    largest = str(dataset.vocabulary.region_codes[np.bincount(homes[homes >= 0]).argmax()])
    name = "11-30" if kind == "activity" else largest
    methods = {"full linear": full_linear, MODEL: blind_but_for(dataset, name)}
    found = Measurement(dataset, CONFIG, 2, methods, tell=lambda text: None, keep=tmp_path).run()
    groups = [group for group in found.groups if group.kind == kind]
    assert {group.task for group in groups if group.name == name} == {"disjoint", "matched", "utility"}
    for group in groups:
        share = group.model / group.baseline
        assert share > 0.7 if group.name == name else share < 0.2, group
        assert group.ratio is None or group.ratio.value == pytest.approx(share)
    kept = Measurement(dataset, CONFIG, 2, methods, tell=lambda text: None, keep=tmp_path).run()
    assert orjson.dumps(kept) == orjson.dumps(found)


def test_groups_are_the_users_of_the_task_once_each(found: Benchmark) -> None:
    """Who is in no group, or in two regions, would be judged by nobody, or twice."""
    utility = next(score for score in found.utility if score.method == MODEL)
    for kind in ("activity", "region"):
        groups = [group for group in found.groups if (group.task, group.kind) == ("utility", kind)]
        users = [group.users for group in groups]
        assert sum(users) == utility.users
        assert np.average([g.model for g in groups], weights=users) == pytest.approx(utility.ndcg_20.value)
    *_, (title, columns, rows) = as_tables(found)
    assert title.startswith("For whom") and len(rows) == len(found.groups) and {*map(len, rows)} == {len(columns)}
