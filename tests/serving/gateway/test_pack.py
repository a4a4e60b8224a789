"""A pack says what the run's tables say, and nothing half-written is ever taken for one."""

from __future__ import annotations

import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

from tastetwin.analysis.stored import read_vectors
from tastetwin.delivery import pack as making
from tastetwin.delivery.erase import look_in
from tastetwin.delivery.forget import forget
from tastetwin.delivery.pack import MANIFEST, make_pack, pack_folder, read_pack, verify_pack
from tastetwin.delivery.publish import prune
from tastetwin.errors import StoreError
from tastetwin.features.favors import Favors
from tastetwin.features.stage import read_histories
from tastetwin.features.user_favor import USER_FAVOR
from tastetwin.generations import read_manifest
from tastetwin.runs import Run, published_run
from tastetwin.schema import TWINS, USER
from tastetwin.serving.gateway.pack import Pack
from tastetwin.store import Store
from tastetwin.tables import read_table


@pytest.fixture
def own(served: Store, tmp_path: Path) -> Store:
    """A copy to change."""
    shutil.copytree(served.root, tmp_path / "store")
    return Store.open(tmp_path / "store")


@pytest.fixture(scope="module")
def pack(served: Store) -> Pack:
    return Pack.of(served, published_run(served))


@pytest.fixture(scope="module")
def run(served: Store) -> Run:
    return published_run(served)


def test_people_and_histories_are_those_of_the_features(served: Store, pack: Pack, run: Run) -> None:
    """A position is a user's place among all with a favor: whoever mixes up two positions shows one's twins to the
    other."""
    histories = read_histories(served, read_manifest(served, "features", run.generation("features")), 0)
    assert len(pack) == histories.n_users
    for position, user in enumerate(histories.user_ids):
        assert pack.people.position(user) == position
        assert pack.people.name(position) == user
        mine = histories.places[histories.offsets[position] : histories.offsets[position + 1]]
        assert pack.history(position).tolist() == mine.tolist()
    assert pack.people.position("nobody of that name") < 0


def test_lists_are_the_run_s(served: Store, pack: Pack, run: Run) -> None:
    """What the gateway answers at once is what was checked and published."""
    table = read_table(served, read_manifest(served, "analyze", run.generation("analyze")), "twins", TWINS)
    for position in range(0, len(pack), 7):
        rows = table.filter(pc.equal(table.column(USER), pack.people.name(position))).sort_by("rank")
        found = pack.stored_list(position)
        assert [pack.people.name(at) for at in found.people.tolist()] == rows.column("twin_idno").to_pylist()
        assert found.scores.tolist() == rows.column("score").to_pylist()


def test_vectors_are_the_run_s_and_zero_for_whoever_has_none(served: Store, pack: Pack, run: Run) -> None:
    """Users with too few favors are known, and have no vector."""
    ids, vectors = read_vectors(served, read_manifest(served, "analyze", run.generation("analyze")).paths("vectors"))
    at = [pack.people.position(user) for user in ids]
    np.testing.assert_array_equal(pack.vectors[at], vectors)
    others = np.setdiff1d(np.arange(len(pack)), at)
    assert not pack.vectors[others].any()
    assert {bool(pack.has_vector(each)) for each in others.tolist()} <= {False}


def test_favors_are_the_features_own(served: Store, pack: Pack, run: Run) -> None:
    """New favors are merged into these: one that was lost here would be lost from the history."""
    table = read_table(served, read_manifest(served, "features", run.generation("features")), "user_favor", USER_FAVOR)
    rows = {row[USER]: row for row in table.to_pylist()}
    for position in range(0, len(pack), 5):
        favors, row = pack.favors([position])[0], rows[pack.people.name(position)]
        assert isinstance(favors, Favors)
        assert [review.review_id for review in favors.reviews] == [each["review_id"] for each in row["review_list"]]
        assert [review.rating for review in favors.reviews] == [each["review_rating"] for each in row["review_list"]]
        assert [like.place_id for like in favors.likes] == [each["like_contentsid"] for each in row["like_list"]]


def test_made_once(own: Store, run: Run) -> None:
    """Every gateway of a run answers from the same bytes."""
    before = read_pack(own, run.run_id)
    assert before is not None
    assert make_pack(own, run) == before


def test_made_twice_it_holds_the_same(own: Store, run: Run) -> None:
    """Nothing in it depends on when or where it was made."""
    before = read_pack(own, run.run_id)
    own.remove(pack_folder(run.run_id))
    assert make_pack(own, run) == before


def test_without_its_manifest_there_is_none(own: Store, run: Run) -> None:
    """Whoever is killed while making one leaves files, and no pack."""
    own.remove(f"{pack_folder(run.run_id)}/{MANIFEST}")
    assert read_pack(own, run.run_id) is None
    assert make_pack(own, run).run_id == run.run_id


def test_two_that_make_it_at_once_do_each_other_no_harm(own: Store, run: Run) -> None:
    """Two gateways that start on a new run."""
    own.remove(pack_folder(run.run_id))
    with ThreadPoolExecutor(2) as pool:
        packs = [made.result() for made in [pool.submit(Pack.of, own, run) for _ in range(2)]]
    assert packs[0].manifest == packs[1].manifest == read_pack(own, run.run_id)


def test_somebody_forgotten_while_it_is_made_is_not_in_it(
    own: Store, run: Run, pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was read before they were erased, and kept after all packs were removed."""
    user, real = pack.people.name(3), making._Making.write
    own.remove(pack_folder(run.run_id))
    forgotten: list[str] = []

    def slow(self: Any) -> Any:
        facts = real(self)
        if not forgotten:
            forgotten.extend(forget(own, [user]).users)
        return facts

    monkeypatch.setattr(making._Making, "write", slow)
    assert Pack.of(own, run).people.position(user) < 0


def test_features_without_somebody_of_the_analysis_make_a_good_pack(own: Store, run: Run, pack: Pack) -> None:
    """``forget`` was killed half-way, or is under way: everybody else's twins stay their own."""
    gone = pack.people.name(int(pack.members[0]))
    own.remove(pack_folder(run.run_id))
    look_in("features", "", own, [gone]).erase()
    made = Pack.of(own, run)
    assert len(made) == len(pack) - 1
    for position in range(len(made)):
        user = made.people.name(position)
        before, after = (each.stored_list(each.people.position(user)).people for each in (pack, made))
        names = [pack.people.name(at) for at in before.tolist()]
        assert [made.people.name(at) for at in after.tolist()] == [name for name in names if name != gone]
        np.testing.assert_array_equal(made.vectors[position], pack.vectors[pack.people.position(user)])


@pytest.mark.parametrize("name", ["vectors.npy", "people.faiss", "people/slots.npy", "favors.arrow"])
def test_one_changed_byte_is_found(own: Store, run: Run, name: str) -> None:
    """A damaged file would answer, and answer wrongly."""
    path = Path(own.path(f"{pack_folder(run.run_id)}/{name}"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    manifest = read_pack(own, run.run_id)
    assert manifest is not None
    with pytest.raises(StoreError, match="DAMAGED"):
        verify_pack(own, manifest)
    with pytest.raises(StoreError, match="DAMAGED"):
        Pack.of(own, run)


def test_forget_leaves_no_pack(own: Store, run: Run, pack: Pack) -> None:
    """A pack holds everybody's favors; it is made again without them."""
    receipt = forget(own, [pack.people.name(0)])
    assert not own.files("packs")
    assert "packs" in [entry.place for entry in receipt.places]


def test_a_pack_of_nobody_opens(own: Store, run: Run, pack: Pack) -> None:
    """All were forgotten: the gateway ended in a traceback, and nothing was served until the next day."""
    forget(own, [pack.people.name(at) for at in range(len(pack))])
    made = Pack.of(own, run)
    assert (len(made), made.dim) == (0, pack.dim)


def test_packs_go_with_their_runs(own: Store, run: Run) -> None:
    """Disks fill up with what nobody can roll back to."""
    own.write_json(f"{pack_folder('2020-01-01.1')}/{MANIFEST}", {})
    assert [place for place in prune(own, 2) if place.startswith("packs/")] == [pack_folder("2020-01-01.1")]
    assert read_pack(own, run.run_id) is not None


def test_a_pack_of_a_store_elsewhere_is_copied_and_answers_the_same(
    served: Store, pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Object stores cannot be mapped into memory. The copy goes with the pack: a version a day would fill the disk."""
    import fsspec

    name = "/pack-elsewhere"
    memory = fsspec.filesystem("memory")
    memory.put(served.root, name, recursive=True)
    copies, here = tmp_path / "copies", tmp_path / "here"
    copies.mkdir()
    here.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(copies))
    monkeypatch.chdir(here)
    try:
        elsewhere = Store.open(f"memory:/{name}")
        copied = Pack.of(elsewhere, published_run(elsewhere))
        assert len(copied) == len(pack)
        assert copied.stored_list(3).people.tolist() == pack.stored_list(3).people.tolist()
        np.testing.assert_array_equal(copied.vectors, pack.vectors)
        assert [*copies.iterdir()] and not [*here.iterdir()]
        del copied
        assert not [*copies.iterdir()]
    finally:
        memory.rm(name, recursive=True)
