"""The online search finds whom a look at everybody finds, whatever came since and whoever may not be shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tastetwin.analysis.index import Floats, Shown
from tastetwin.analysis.nearest import NearestIndex, build
from tastetwin.analysis.parts import unit
from tastetwin.config import AnalyzeConfig
from tastetwin.runs import published_run
from tastetwin.serving.gateway.pack import Near, Pack
from tastetwin.serving.gateway.people import Changed, People
from tastetwin.serving.gateway.search import Asker, closest, closest_each, listed
from tastetwin.store import Store


@pytest.fixture(scope="module")
def pack(served: Store) -> Pack:
    return Pack.of(served, published_run(served))


def by_looking(people: People, asker: Asker, k: int) -> list[tuple[int, float]]:
    """Everybody who may be shown, one after another, by ``cos - (r + r) / 2``."""
    pack = people.pack
    members = set(pack.members.tolist()) | set(range(len(pack), len(people)))
    mine = crowding(pack, asker.vector, asker.own)
    found = []
    for position in sorted(members):
        vector = people.vector(position)
        if vector is None or people.hidden[position] or position in asker.excluded:
            continue
        theirs = crowding(pack, vector, people.own(position)) if people.is_fresh(position) else pack.crowding[position]
        found.append((position, float(vector @ asker.vector) - (float(theirs) + mine) / 2))
    return sorted(found, key=lambda each: (-each[1], each[0]))[:k]


def crowding(pack: Pack, vector: Floats, own: frozenset[int]) -> float:
    return float(pack.crowding_of(vector[None], [own])[0])


def random_unit(rng: np.random.Generator, dim: int) -> Floats:
    return np.asarray(unit(rng.standard_normal((1, dim)))[0])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10_000),
    fresh=st.integers(0, 30),
    newcomers=st.integers(0, 10),
    hidden=st.floats(0, 1),
    excluded=st.floats(0, 1),
    k=st.sampled_from([1, 10, 100, 1000]),
)
def test_nobody_closer_is_missed(
    pack: Pack, seed: int, fresh: int, newcomers: int, hidden: float, excluded: float, k: int
) -> None:
    """With most people hidden or left out the search has to go deeper, and must not stop before the list is full."""
    rng = np.random.default_rng(seed)
    people = People(pack)
    rows = np.array([2, 3, 4], np.int32)
    for at in rng.choice(len(pack), fresh, replace=False):
        vector = random_unit(rng, pack.dim) if rng.random() < 0.8 else None
        people.put([Changed(people.name(int(at)), rows, vector, -1)])
    people.put([Changed(f"new {number}", rows, random_unit(rng, pack.dim), -1) for number in range(newcomers)])
    people.hidden[: len(people)] = rng.random(len(people)) < hidden
    out = frozenset(np.flatnonzero(rng.random(len(people)) < excluded).tolist())
    asker = Asker(random_unit(rng, pack.dim), -1, excluded=out)
    found = closest(people, asker, k)
    others = [Asker(random_unit(rng, pack.dim), -1, excluded=frozenset({at})) for at in range(20)]
    together = closest_each(people, [*others, asker], k)
    assert together[-1].scores.tobytes() == found.scores.tobytes(), "no list depends on which are made with it"
    assert together[-1].people.tolist() == found.people.tolist()
    assert together[3].people.tolist() == closest(people, others[3], k).people.tolist()
    expected = by_looking(people, asker, k)
    np.testing.assert_allclose(found.scores, [score for _, score in expected], atol=1e-5)
    for at, (position, score) in zip(found.people.tolist(), expected, strict=True):
        assert at == position or abs(dict(expected).get(at, score) - score) < 1e-5, "only ties may change places"


def test_where_the_run_shows_nobody_only_newcomers_are_found(
    pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All who were shown may have been forgotten, and a version that was not published may hide everybody."""
    nobody = Shown(np.empty((0, pack.dim), np.float32), np.empty(0, np.float32), np.empty(0, np.int64))
    (tmp_path / "nobody.faiss").write_bytes(build(nobody, 10, AnalyzeConfig()).data.tobytes())
    monkeypatch.setattr(pack, "index", NearestIndex(tmp_path / "nobody.faiss", 0))
    monkeypatch.setattr(pack, "bank", NearestIndex(tmp_path / "nobody.faiss", 0))
    for name in ("members", "bank_people"):
        monkeypatch.setattr(pack, name, np.empty(0, np.int32))
    people, rng = People(pack), np.random.default_rng(1)
    asker = Asker(random_unit(rng, pack.dim), -1)
    assert [len(each.people) for each in closest_each(people, [asker, asker], 5)] == [0, 0]
    people.put([Changed("new", np.array([2, 3, 4], np.int32), random_unit(rng, pack.dim), -1)])
    assert closest(people, asker, 5).people.tolist() == [len(pack)]


def test_searched_again_the_lists_are_the_run_s(pack: Pack) -> None:
    """The same question asked online and in the batch has one answer, to the last bit of the score.

    The run's exposure cap turns people away whom the search finds: whoever is in both has the same score.
    """
    people, met = People(pack), 0
    for position in range(0, len(pack), 3):
        vector = people.vector(position)
        if vector is None:
            continue
        asker = Asker(vector, people.home(position), people.own(position), people.excluded(position))
        found, stored = closest(people, asker, pack.manifest.k), pack.stored_list(position)
        scores = dict(zip(found.people.tolist(), found.scores.tolist(), strict=True))
        both = [at for at in stored.people.tolist() if at in scores]
        met += len(both)
        assert [scores[at] for at in both] == [
            score for at, score in zip(stored.people.tolist(), stored.scores.tolist(), strict=True) if at in scores
        ]
        assert found.people[0] == stored.people[0] or found.scores[0] >= stored.scores[0]
    assert met > 5_000


@pytest.mark.parametrize("region", ["same", "other"])
def test_the_rule_of_regions_is_the_run_s(pack: Pack, region: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``lists.region`` holds for what is searched in between, too."""
    monkeypatch.setitem(pack.manifest.__dict__, "region", region)
    people = People(pack)
    position = next(at for at in range(len(pack)) if people.home(at) >= 0 and people.vector(at) is not None)
    vector, home = people.vector(position), people.home(position)
    assert vector is not None
    found = closest(people, Asker(vector, home, excluded=frozenset({position})), len(pack))
    homes = pack.homes[found.people]
    assert len(homes)
    assert ((homes == home) if region == "same" else (homes != home)).all()


def test_the_run_s_list_is_given_as_long_as_it_lasts(pack: Pack) -> None:
    """A list out of which many dropped is too short, and is searched for anew; one that named everybody is not."""
    people = People(pack)
    position = next(at for at in range(len(pack)) if len(pack.stored_list(at).people) == pack.manifest.k)
    stored = pack.stored_list(position)
    few = listed(people, position, frozenset(), 10)
    assert few is not None
    assert few.people.tolist() == stored.people[:10].tolist()
    without = listed(people, position, frozenset(stored.people[:5].tolist()), 10)
    assert isinstance(without, Near)
    assert without.people.tolist() == stored.people[5:15].tolist()
    assert listed(people, position, frozenset(stored.people[:95].tolist()), 10) is None


def test_whom_the_run_hides_stays_hidden_with_new_favors(pack: Pack) -> None:
    """A farm's account would else come back with every new favor."""
    people = People(pack)
    hidden = next(iter(set(range(len(pack))) - set(pack.members.tolist())))
    vector = people.vector(int(pack.members[0]))
    assert vector is not None
    people.put([Changed(people.name(hidden), np.array([2], np.int32), vector, -1)])
    found = closest(people, Asker(vector, -1), len(people))
    assert hidden not in found.people


def test_room_grows_with_newcomers(pack: Pack) -> None:
    """Nothing is lost when what came since outgrows what was set aside for it."""
    people, rng = People(pack), np.random.default_rng(0)
    vectors = unit(rng.standard_normal((3_000, pack.dim)))
    rows = np.array([2], np.int32)
    people.put([Changed(f"new {number}", rows, vector, -1) for number, vector in enumerate(vectors)])
    for number in (0, 1_023, 1_024, 2_999):
        position = people.find(f"new {number}")
        assert people.name(position) == f"new {number}"
        found = closest(people, Asker(vectors[number], -1), 1)
        assert found.people.tolist() == [position] or found.scores[0] >= 0
    assert len(people) == len(pack) + 3_000
