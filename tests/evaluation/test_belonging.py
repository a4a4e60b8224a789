"""Vectors, lists and data that do not belong together are told from those that do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tastetwin.evaluation.belonging import Data, Entries, data_since, kept_favors, lists_of_vectors, vectors_of_model
from tastetwin.evaluation.stage import _both_data
from tastetwin.features.histories import UNKNOWN_DAY
from tastetwin.features.stage import read_histories
from tastetwin.store import Store
from tests import handmade
from tests.evaluation.planted import make_histories, noisy, unit, world

VECTORS = unit(np.random.default_rng(0).standard_normal((50, 16)))
USER = np.repeat(np.arange(50, dtype=np.int32), 3)
TWIN = np.roll(USER, 5)


def entries() -> Entries:
    return Entries(USER, TWIN, (VECTORS[USER] * VECTORS[TWIN]).sum(axis=1))


def data(day: str = "2026-06-01", digest: str = "a", **rows_of: list[int]) -> Data:
    return Data(day, digest, make_histories(rows_of), world().vocabulary)


def seen(found: Data, newest: int) -> Data:
    """The same with the last favor on that day."""
    days = found.histories.days.copy()
    days[-1] = newest
    return replace(found, histories=replace(found.histories, days=days))


def codes(published: Data, today: Data, least: float = 0.8, new_events: int = 7) -> list[str]:
    return [finding.code for finding in data_since(published, today, new_events, least)]


def test_vectors_encoded_again_are_the_same_up_to_how_they_are_stored() -> None:
    """Half floats and other processors round; another model does not look like that."""
    assert not list(vectors_of_model(VECTORS, VECTORS))
    assert not list(vectors_of_model(unit(VECTORS.astype(np.float16).astype(np.float32)), VECTORS))
    assert not list(vectors_of_model(unit(np.round(VECTORS * 127) / 127), VECTORS))


@pytest.mark.parametrize("wrong", [VECTORS[::-1], noisy(VECTORS, 0.2, 1), VECTORS * np.float32(np.nan), VECTORS[:, :8]])
def test_vectors_of_another_model_or_another_user_are_broken(wrong: np.ndarray) -> None:
    """Shuffled, of an equally good model, no numbers, of another length."""
    (finding,) = vectors_of_model(np.ascontiguousarray(wrong), VECTORS)
    assert (finding.code, finding.severity) == ("VECTORS-OTHER-MODEL", "broken")


def test_one_vector_that_is_not_the_model_s_is_enough() -> None:
    """Somebody would be shown the twins of somebody else."""
    swapped = VECTORS.copy()
    swapped[3] = VECTORS[4]
    (finding,) = vectors_of_model(swapped, VECTORS)
    assert finding.measured == pytest.approx(1 / 50)


def test_favors_of_who_opted_out_are_not_lost(memory_store: Store) -> None:
    """Today's lists are without them; were they counted in what was published, a store in which many have opted out
    could publish no second run."""
    features = handmade.features(memory_store)
    handmade.analysis(memory_store)
    rival = handmade.run_of(memory_store, {"features": "f", "analyze": "a"})
    everybody = read_histories(memory_store, features, handmade.MIN_FAVORS)
    two, left_out = everybody.select(np.array([0, 1])), np.array(["dot", "gus", "hal"], object)
    before, today = _both_data(memory_store, rival, features, two, left_out, 1)
    assert set(before.histories.user_ids) == {"ann", "bob"} and kept_favors(before, today) == 1


def test_lists_say_what_the_vectors_say() -> None:
    """The similarity in a list is recomputed from the stored vectors; equally good lists of others do not pass."""
    assert not list(lists_of_vectors(VECTORS, entries()))
    assert not list(lists_of_vectors(VECTORS, Entries(USER[:0], TWIN[:0], np.zeros(0, np.float32))))
    for wrong in (replace(entries(), twin=np.roll(TWIN, 1)), replace(entries(), user=np.roll(USER, 1))):
        (finding,) = lists_of_vectors(VECTORS, wrong)
        assert (finding.code, finding.severity) == ("LISTS-OTHER-VECTORS", "broken")
    (finding,) = lists_of_vectors(noisy(VECTORS, 0.2, 1), entries())
    assert finding.code == "LISTS-OTHER-VECTORS"


def test_a_day_that_adds_a_favor_has_no_finding() -> None:
    """Nor the same day again, nor data without times."""
    before = data(ann=[2, 3], bob=[4])
    assert codes(before, data("2026-06-02", "b", ann=[2, 3, 5], bob=[4])) == []
    assert codes(before, before) == []
    assert codes(seen(before, 100), seen(data("2026-06-02", "b", ann=[2, 3], bob=[4, 5]), 100)) == []


def test_a_later_day_with_the_same_data_is_stale() -> None:
    """Features that were not made again, or a feed that repeats itself: somebody must hear of it."""
    before = data(ann=[2, 3], bob=[4])
    assert codes(before, replace(before, logical_date="2026-06-02")) == ["STALE-DATA"]


def test_a_day_without_events_may_be_published() -> None:
    before = data(ann=[2, 3], bob=[4])
    assert codes(before, replace(before, logical_date="2026-06-02"), new_events=0) == []


@pytest.mark.parametrize("newest", [99, int(UNKNOWN_DAY)])
def test_data_that_ends_before_the_published_data_is_stale(newest: int) -> None:
    """Whatever its logical date says; times that are gone altogether, too."""
    before, today = data(ann=[2, 3], bob=[4]), data("2026-06-02", "b", ann=[2, 3], bob=[4])
    assert codes(seen(before, 100), seen(today, newest)) == ["STALE-DATA"]


def test_favors_that_are_gone_are_lost_whoever_had_them() -> None:
    """Favors of people who stayed, and people; ids alone say nothing: another city's people have the same."""
    before = data(ann=[2, 3, 4, 5], bob=[6, 7, 8, 9])
    assert kept_favors(before, data(ann=[2, 3, 4, 5], bob=[6, 7])) == pytest.approx(6 / 8)
    assert kept_favors(before, data(ann=[2, 3, 4, 5], cid=[6, 7, 8, 9])) == pytest.approx(4 / 8)
    assert kept_favors(before, data(ann=[10, 11], bob=[12])) == 0
    assert codes(before, data("2026-06-02", "b", ann=[2, 3, 4, 5], bob=[6, 7])) == ["FAVORS-LOST"]
    assert codes(before, data("2026-06-02", "b", ann=[2, 3, 4, 5], bob=[6, 7, 8])) == []


def test_places_are_compared_by_id_and_groups_not_at_all() -> None:
    """Rows are places only by their own vocabulary; a place that leaves its group for a row of its own is not lost."""
    before = data(ann=[2, 3], bob=[4])
    known = before.vocabulary
    other = replace(known, place_ids=np.roll(known.place_ids, 7))
    assert kept_favors(before, replace(before, vocabulary=other)) < 1
    groups = replace(before, vocabulary=replace(known, is_group=np.arange(known.n_rows) == 4))
    assert kept_favors(groups, data(ann=[2, 3], bob=[9])) == 1
    assert kept_favors(replace(before, vocabulary=replace(known, is_group=np.full(known.n_rows, True))), before) == 1
