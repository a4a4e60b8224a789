"""Lists made in shards on the engine are those of one process, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tastetwin.analysis.pairs import PairRules, Region, no_rules
from tastetwin.analysis.sharded import ShardedTwins, find_sharded
from tastetwin.analysis.shards import shards_for, write_shards
from tastetwin.analysis.stage import analyze_users
from tastetwin.analysis.stored import packed
from tastetwin.analysis.twins import Twins, find_twins
from tastetwin.config import AnalyzeConfig, Config, ListsConfig
from tastetwin.engine import Engine
from tastetwin.errors import StoreError, UsageError
from tastetwin.generations import Manifest, read_manifest
from tastetwin.store import Store
from tastetwin.tables import bucket_name, bucket_of, put_table
from tests.world import QUICK, Journey

from .test_fill import rules_of
from .test_twins import clustered, unit

pytestmark = pytest.mark.slow


def put_vectors(store: Store, ids: list[str], vectors: np.ndarray, buckets: int) -> list[str]:
    """Files of vectors as ``analyze`` makes them."""
    bucket = np.array([bucket_of(user, buckets) for user in ids])
    paths = []
    for number in np.unique(bucket):
        mine = np.flatnonzero(bucket == number)
        paths.append(f"vectors/{bucket_name(number)}")
        put_table(store, paths[-1], packed(pa.array([ids[at] for at in mine]), vectors[mine], "float32"))
    return paths


def lists_of(found: ShardedTwins) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours and scores of everybody."""
    numbers = range(len(found.blocks.paths))
    users = np.concatenate([found.blocks.get(f"users/{number}") for number in numbers])
    neighbours, scores = (
        np.concatenate([found.blocks.get(f"lists/{name}/{number}") for number in numbers])[np.argsort(users)]
        for name in ("neighbours", "scores")
    )
    return neighbours, scores


def same(found: ShardedTwins, whole: Twins) -> None:
    neighbours, scores = lists_of(found)
    assert np.array_equal(neighbours, whole.neighbours)
    assert np.array_equal(scores, whole.scores)
    assert np.array_equal(found.densities, whole.densities)
    assert found.facts == whole.facts
    assert found.scale.to_json() == whole.scale.to_json()
    n = len(neighbours)
    assert found.shown.tolist() == np.bincount(neighbours[neighbours >= 0], minlength=n).tolist()
    assert found.served == (neighbours >= 0).any(axis=1).sum()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(1, 80),
    k=st.integers(1, 12),
    shards=st.integers(1, 90),
    buckets=st.integers(1, 5),
    region=st.sampled_from(["any", "same", "other"]),
    share=st.sampled_from([0.0, 0.1, 0.9]),
    cap=st.sampled_from([None, 1.0, 1.3, 2.0]),
    csls=st.sampled_from([0, 3]),
    ties=st.booleans(),
    seed=st.integers(0, 2**31),
)
@example(61, 6, 1, 1, "any", 0.1, None, 3, True, 1542633)  # scores that are equal after rounding alone
def test_lists_in_shards_are_those_of_one_process(
    engine: Engine, memory_store: Store, n: int, k: int, shards: int, buckets: int, region: Region, share: float,
    cap: float | None, csls: int, ties: bool, seed: int,
) -> None:  # fmt: skip
    """Whoever is shown, hidden, forbidden, followed or a double; whoever is short of candidates, or tied."""
    rng = np.random.default_rng(seed)
    vectors = unit(rng.integers(-1, 2, (n, 3)) + np.array([0.1, 0, 0])) if ties else clustered(n, 3, 0.4, seed=seed)[0]
    labels = np.array([rng.choice([user, max(user - 1, 0)], p=[0.8, 0.2]) for user in range(n)])
    shown, rules = rng.random(n) < 0.8, rules_of(n, seed, region, share)
    config, lists = AnalyzeConfig(k=k, csls_neighbours=csls), ListsConfig(exposure_cap=cap)
    ids = sorted(f"ü{number}" for number in range(n))
    memory_store.remove("vectors")
    memory_store.remove("shards")
    paths = put_vectors(memory_store, ids, vectors, buckets)
    names = np.array(ids, object)
    made = write_shards(
        engine, memory_store, paths, names, vectors.shape[1], shards_for(shards, n, mutual=False), "shards"
    )
    found = find_sharded(engine, made, paths, names, config, labels, shown, rules, lists)
    same(found, find_twins(vectors, config, labels, shown, rules=rules, lists=lists))


def test_a_whole_list_may_lie_in_one_shard(engine: Engine, memory_store: Store) -> None:
    """Later shards are asked for few at first, as most lists are spread over all; these are not."""
    n, config = 200, AnalyzeConfig(k=30)
    vectors, member = clustered(n, 5, 0.2)
    vectors = vectors[np.argsort(member, kind="stable")]
    ids = [f"{number:03d}" for number in range(n)]
    names, paths, rules = np.array(ids, object), put_vectors(memory_store, ids, vectors, 2), no_rules(n)
    made = write_shards(engine, memory_store, paths, names, vectors.shape[1], 5, "shards")
    free = ListsConfig(exposure_cap=None)
    found = find_sharded(engine, made, paths, names, config, np.arange(n), np.ones(n, bool), rules, free)
    same(found, find_twins(vectors, config))


class Anxious(Engine):
    """An engine that does every task twice, as a cluster may that takes a slow worker for a dead one."""

    def each(self, items: Sequence[str], job: Callable[[str], str]) -> Iterator[str]:
        return super().each([*items, *items], job)


def test_a_task_done_twice_changes_nothing(engine: Engine, memory_store: Store) -> None:
    """Lists that were put in twice would hold people twice; requests counted twice would turn others away."""
    n, config, lists = 60, AnalyzeConfig(k=6), ListsConfig(exposure_cap=1.0)
    vectors, ids = clustered(n, 3, 0.4)[0], [f"{number:02d}" for number in range(n)]
    names, paths, rules = np.array(ids, object), put_vectors(memory_store, ids, vectors, 3), no_rules(n)
    anxious = Anxious(engine.spark, engine.partitions, engine.is_embedded)
    made = write_shards(anxious, memory_store, paths, names, vectors.shape[1], 4, "shards")
    found = find_sharded(anxious, made, paths, names, config, np.arange(n), np.ones(n, bool), rules, lists)
    assert found.facts.searches > 1
    same(found, find_twins(vectors, config, rules=rules, lists=lists))


@pytest.mark.parametrize("noise", [0.4, 1.0])
def test_cells_of_shards_reach_the_required_recall(engine: Engine, tmp_path: Path, noise: float) -> None:
    """On all users, a sample of whom the number of cells was chosen on; rules and cap hold as ever."""
    store, n, k = Store.create(tmp_path / "store"), 8_000, 20
    vectors, _ = clustered(n, 100, noise)
    ids = [f"{number:05d}" for number in range(n)]
    names, paths = np.array(ids, object), put_vectors(store, ids, vectors, 3)
    rules = PairRules(np.arange(n) * n + (np.arange(n) + 1) % n, "any", np.full(n, -1, np.int32))
    found, again, exact = (
        find_sharded(
            engine, write_shards(engine, store, paths, names, vectors.shape[1], 3, folder), paths, names,
            AnalyzeConfig(k=k, exact_below=below), np.arange(n), np.arange(n) % 10 > 0, rules, ListsConfig(),
        )
        for folder, below in (("a", 1_000), ("b", 1_000), ("c", n))
    )  # fmt: skip
    assert 0 < found.facts.probes < found.facts.cells and exact.facts.cells == 0
    assert found.facts.recall >= 0.99
    (neighbours, scores), (wanted, _) = lists_of(found), lists_of(exact)
    assert np.mean([np.isin(*pair).mean() for pair in zip(wanted, neighbours, strict=True)]) > 0.985
    assert found.shown.max() <= found.facts.max_exposure == exact.facts.max_exposure
    assert not found.shown[::10].any() and not (neighbours == (np.arange(n)[:, None] + 1) % n).any()
    assert all(map(np.array_equal, (neighbours, scores), lists_of(again)))


def analyzed(engine: Engine, journey: Journey, **settings: object) -> Manifest:
    """The town analyzed by other settings."""
    features, bundle = (
        read_manifest(journey.store, stage, journey.first.generation(stage)) for stage in ("features", "train")
    )
    return analyze_users(engine, journey.store, features, bundle, QUICK.model_copy(update=settings))


def contents(manifest: Manifest) -> dict[str, list[tuple[str, str]]]:
    """Names and hashes of the files of each table."""
    return {
        table: [(entry.path.rsplit("/", 1)[-1], entry.sha256) for entry in entries]
        for table, entries in manifest.tables.items()
    }


@pytest.mark.parametrize("shards", [1, 2, 7])
def test_a_town_analyzed_in_shards_has_the_same_files(engine: Engine, journey: Journey, shards: int) -> None:
    """Vectors, lists with parts and chance, exposure: byte for byte; with cap, double accounts and hidden ones."""
    whole = read_manifest(journey.store, "analyze", journey.first.generation("analyze"))
    found = analyzed(engine, journey, analyze=AnalyzeConfig(shards=shards))
    assert contents(found) == contents(whole)
    assert found.facts == whole.facts
    assert journey.store.names(f"{found.folder}/shards") == [], "what it worked with is not left behind"


def test_lists_by_another_weight_of_home_and_stored_shorter_are_the_same_in_shards(
    engine: Engine, journey: Journey
) -> None:
    """Shards hold vectors as they were stored; those looked at are made of them where they are read."""
    ways = [
        analyzed(
            engine,
            journey,
            analyze=AnalyzeConfig(shards=shards, home_weight=0.3, vectors="int8", csls_bank=100, k=30),
            lists=ListsConfig(region="other", exposure_cap=1.1, min_places=12),
        )
        for shards in (0, 3)
    ]
    assert contents(ways[0]) == contents(ways[1])
    assert ways[0].facts == ways[1].facts and ways[0].facts["search"]["searches"] > 1


def test_shards_are_made_where_they_pay() -> None:
    """A few users need none; a configured number is kept, as far as there are users."""
    assert [shards_for(0, n, mutual=False) for n in (0, 1_000, 500_000, 30_000_000)] == [0, 0, 0, 120]
    assert shards_for(7, 1_000, mutual=False) == 7 and shards_for(7, 3, mutual=False) == 3
    assert shards_for(0, 30_000_000, mutual=True) == 0


def test_mutual_order_in_shards_is_refused_at_the_start(engine: Engine, memory_store: Store) -> None:
    """It is not made in shards, and must not be passed over in silence."""
    config = Config(analyze=AnalyzeConfig(shards=2), lists=ListsConfig(mutual=True))
    nothing = Manifest("features", "", "2026-06-30", {}, {}, {}, {})
    with pytest.raises(UsageError, match="CONFIG-VALUE"):
        analyze_users(engine, memory_store, nothing, nothing, config)


def test_users_without_a_vector_stop_the_making_of_shards(engine: Engine, memory_store: Store) -> None:
    """An engine that lost rows must not shorten anybody's list in silence."""
    vectors, _ = clustered(9, 2, 0.4)
    ids = [f"u{number}" for number in range(9)]
    paths = put_vectors(memory_store, ids[:-2] + ids[-1:], vectors[:8], 2)
    with pytest.raises(StoreError, match="ENGINE-LOST-ROWS"):
        write_shards(engine, memory_store, paths, np.array(ids, object), vectors.shape[1], 2, "shards")
