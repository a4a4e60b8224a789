"""The length of a method's lists is chosen on some users, and what it is worth is told of others."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import scipy.sparse as sp

from tastetwin.evaluation.baselines import Material, Pair
from tastetwin.evaluation.dataset import Dataset
from tastetwin.evaluation.lists import UtilityScore, as_list_score, as_votes, judge_list, utility_scores
from tastetwin.evaluation.utility import DEPTH, NEIGHBOURS, Future, crowds, ndcg_and_recall, twins_places
from tastetwin.features.histories import FIRST_PLACE_ROW
from tastetwin.features.home import home_regions
from tastetwin.features.vocabulary import PlaceRows
from tests.evaluation.planted import CONFIG, make_histories, make_vocabulary, unit

NEAR, FAR, JUDGED = NEIGHBOURS[0], 80, 40
HOME, TRUTH, FIRST_DECOY = FIRST_PLACE_ROW, FIRST_PLACE_ROW + 1, FIRST_PLACE_ROW + 2
PLACES: Final = 2 + DEPTH
"""Home, the truth, and as many decoys as a list of places is long."""


def torn_world() -> tuple[Future, npt.NDArray[np.float32]]:
    """All judged users go to one place; the votes of those nearest name it to the validation users alone.

    To them the 20 nearest voters name the truth and 80 farther ones the decoys; to the others it is the reverse: at the
    shortest length each list is perfect for the former and worthless to the latter, at all longer ones the reverse.
    """
    decoys = list(range(FIRST_DECOY, FIRST_DECOY + DEPTH))
    kinds = [(NEAR, [TRUTH]), (FAR, decoys), (NEAR, decoys), (FAR, [TRUTH])]
    pasts = [[HOME]] * JUDGED + [past for n, past in kinds for _ in range(n)]
    past = make_histories({f"u{at:03}": places for at, places in enumerate(pasts)})
    vocabulary = make_vocabulary(PLACES, np.zeros(PLACES, np.int32), np.zeros(PLACES, np.int32))
    matrix, visits = np.zeros((2, len(pasts), vocabulary.n_rows), np.float32)
    matrix[np.repeat(np.arange(len(pasts)), past.lengths()), past.places] = 1
    visits[:JUDGED, TRUTH] = 1
    future = Future(past, sp.csr_matrix(matrix), sp.csr_matrix(visits), vocabulary)
    return future, sides(future.validation(CONFIG.seed))


def sides(validation: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Validation users look along axis 0, the others along axis 1; judged users are nobody's near twins."""
    strangers = np.eye(JUDGED, dtype=np.float32) * np.sqrt(0.75)
    judged = np.hstack([np.where(validation[:, None], [[0.5, 0]], [[0, 0.5]]), strangers])
    voters = np.zeros((2 * (NEAR + FAR), 2 + JUDGED), np.float32)
    voters[: NEAR + FAR, 0] = voters[NEAR + FAR :, 1] = [1] * NEAR + [0.9] * FAR
    return np.asarray(np.vstack([judged, voters]), np.float32)


def in_dataset(future: Future) -> Dataset:
    """A dataset of which nothing but the vocabulary is known."""
    rows = PlaceRows(pa.array([], pa.string()), np.zeros(0, np.int32))
    return Dataset("made up", pa.table({}), rows, future.vocabulary, np.empty((0, 2), object), None)


def judge(
    dataset: Dataset, future: Future, vectors: npt.NDArray[np.float32], later: npt.NDArray[np.float32]
) -> dict[str, Any]:
    """What is found of a method that gives these vectors."""
    material = Material(future.past, future.vocabulary, future.past, future.past, CONFIG, CONFIG.seed)

    def method(given: Material) -> Pair:
        return vectors, later

    return judge_list("method", method, material, dataset, future)


def measured() -> tuple[UtilityScore, npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """The score of the method there, NDCG of all judged users by the length it chose, and who validates."""
    future, vectors = torn_world()
    votes = as_votes(judge(in_dataset(future), future, vectors, vectors))
    (score,) = utility_scores({("method", "people"): votes}, future, CONFIG)
    return score, votes.ndcg, future.validation(CONFIG.seed)


def test_a_length_is_chosen_by_the_validation_users_alone() -> None:
    """The best of several on the users it is told of is a figure that nobody would see again."""
    score, ndcg, validation = measured()
    assert not score.csls, "what serves alike is left plain"
    assert 5 < validation.sum() < JUDGED / 2, "by all of them together the longer lists are the better ones"
    assert score.neighbours == NEAR
    assert ndcg[validation].tolist() == [1] * validation.sum()


def random_world(seed: int, n: int = 150) -> tuple[Dataset, Future, npt.NDArray[np.float32]]:
    """People of random directions and random places, each of whom goes to one of the places that they do not know."""
    rng, places = np.random.default_rng(seed), 40
    past = make_histories({f"u{at:03}": list(FIRST_PLACE_ROW + rng.permutation(places)[:5]) for at in range(n)})
    vocabulary = make_vocabulary(places, np.arange(places, dtype=np.int32) % 2, np.zeros(places, np.int32))
    matrix, visits = np.zeros((2, n, vocabulary.n_rows), np.float32)
    matrix[np.repeat(np.arange(n), past.lengths()), past.places] = 1
    for at in range(n):
        visits[at, rng.choice(FIRST_PLACE_ROW + np.flatnonzero(matrix[at, FIRST_PLACE_ROW:] == 0))] = 1
    future = Future(past, sp.csr_matrix(matrix), sp.csr_matrix(visits), vocabulary)
    return in_dataset(future), future, unit(rng.standard_normal((n, 4)) + 0.5)


def crowds_by_hand(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """[n] mean cosine of the ten nearest others."""
    cosine = vectors @ vectors.T
    np.fill_diagonal(cosine, -np.inf)
    return np.asarray(np.sort(cosine, axis=1)[:, -10:].mean(axis=1))


def nearest_by_hand(vectors: npt.NDArray[np.float32], length: int) -> npt.NDArray[np.int64]:
    """[n, length] by CSLS."""
    cosine = vectors @ vectors.T
    np.fill_diagonal(cosine, -np.inf)
    return np.argsort(-(2 * cosine - crowds_by_hand(vectors)), axis=1)[:, :length]


def test_length_and_csls_are_the_best_of_all_on_the_validation_users() -> None:
    """Every pair of the two tried by hand, in worlds where chance decides; of equal ones the first: short and plain."""
    chosen = set()
    for seed in range(8):
        dataset, future, vectors = random_world(seed)
        np.testing.assert_allclose(crowds(vectors), crowds_by_hand(vectors), rtol=1e-5)
        validation = future.validation(CONFIG.seed)
        tried = {
            (csls, k): ndcg_and_recall(future, twins_places(future, vectors, k, crowd))[0]
            for csls, crowd in ((False, 0), (True, crowds(vectors)))
            for k in NEIGHBOURS
        }
        best = max(tried, key=lambda key: tried[key][validation].mean())
        votes = as_votes(judge(dataset, future, vectors, vectors))
        assert (votes.csls, votes.length) == best
        assert votes.ndcg.tolist() == tried[best].tolist()
        (score,) = utility_scores({("method", "people"): votes}, future, CONFIG)
        assert (score.csls, score.neighbours) == best
        chosen.add(votes.csls)
    assert chosen == {False, True}


@pytest.mark.parametrize("share", [0, 1])
def test_where_nothing_tells_them_apart_the_first_is_taken(monkeypatch: pytest.MonkeyPatch, share: int) -> None:
    """Nobody who chooses, or nobody who is helped by anybody: short lists, by plain similarity."""
    dataset, future, vectors = random_world(0)
    monkeypatch.setattr("tastetwin.evaluation.utility.VALIDATION_SHARE", share)
    assert future.validation(CONFIG.seed).all() == share
    lonely = np.eye(len(vectors), dtype=np.float32)
    votes = as_votes(judge(dataset, future, lonely, lonely))
    assert (votes.csls, votes.length) == (False, NEIGHBOURS[0])


def test_lists_that_nothing_happened_to_stay_and_others_change() -> None:
    """The nearest ten of both days, beside each other by hand; a day on which everybody was mixed up leaves chance."""
    dataset, future, vectors = random_world(1)
    moved = unit(vectors + 0.2 * np.random.default_rng(2).standard_normal(vectors.shape))
    sets = ([{*row} for row in nearest_by_hand(rows, 10).tolist()] for rows in (vectors, moved))
    wanted = np.mean([len(a & b) / len(a | b) for a, b in zip(*sets, strict=True)])
    same, other, mixed = (judge(dataset, future, vectors, later) for later in (vectors, moved, vectors[::-1]))
    stability = [as_list_score(found).stability for found in (same, other, mixed)]
    assert stability[0] == 1 and stability[1] == pytest.approx(wanted) and 0.2 < wanted < 0.9
    assert stability[2] is not None and stability[2] < 0.15
    for found in (other, mixed):  # the later day has some of the very visits that are to be foretold
        assert as_votes(found).ndcg.tolist() == as_votes(same).ndcg.tolist()
        assert found["list"] == same["list"] | {"stability": found["list"]["stability"]}


def test_who_is_among_anybodys_first_ten_is_told_by_activity_and_region() -> None:
    """One who is opposite to everybody is in nobody's ten, but in lists that have room for all but one."""
    dataset, future, vectors = random_world(3, 101)
    vectors = unit(vectors + 2)
    vectors[7] = -unit(vectors.mean(axis=0)[None])[0]
    score = as_list_score(judge(dataset, future, vectors, vectors))
    shown = np.isin(np.arange(len(vectors)), nearest_by_hand(vectors, 10))
    assert not shown[7] and score.never_shown == 0
    assert {group.kind for group in score.coverage} == {"activity", "region"}
    (everybody,) = [group for group in score.coverage if group.kind == "activity"]
    assert (everybody.name, everybody.users, everybody.shown) == ("3-5", 101, float(shown.mean()))
    homes = home_regions(future.past, future.vocabulary)
    for group in (group for group in score.coverage if group.kind == "region"):
        mine = homes == list(map(str, future.vocabulary.region_codes)).index(group.name)
        assert (group.users, group.shown) == (mine.sum(), float(shown[mine].mean()))


def test_figures_are_of_the_users_by_whom_nothing_was_chosen() -> None:
    """Those who chose are served best by what they chose: with them in it, a figure flatters."""
    score, _, validation = measured()
    assert score.users == (~validation).sum()
    assert (score.ndcg_20.value, score.recall_20) == (0, 0)
