"""The length of a method's lists is chosen on some users, and what it is worth is told of others."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import scipy.sparse as sp

from tastetwin.evaluation.baselines import Material, Pair
from tastetwin.evaluation.dataset import Dataset
from tastetwin.evaluation.lists import UtilityScore, judge_list, utility_scores
from tastetwin.evaluation.utility import DEPTH, NEIGHBOURS, Future
from tastetwin.features.histories import FIRST_PLACE_ROW
from tastetwin.features.vocabulary import PlaceRows
from tests.evaluation.planted import CONFIG, make_histories, make_vocabulary

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


def measured() -> tuple[UtilityScore, npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """The score of the method there, NDCG of all judged users by the length it chose, and who validates."""
    future, vectors = torn_world()
    nobody = np.empty((0, 2), object)
    dataset = Dataset(
        "torn",
        pa.table({}),
        PlaceRows(pa.array([], pa.string()), np.zeros(0, np.int32)),
        future.vocabulary,
        nobody,
        None,
    )
    material = Material(future.past, future.vocabulary, future.past, future.past, CONFIG, CONFIG.seed)

    def method(given: Material) -> Pair:
        return vectors, vectors

    found = judge_list("method", method, material, dataset, future)
    value = (found["length"], found["ndcg"], found["recall"])
    (score,) = utility_scores({("method", "people"): value}, future, CONFIG)
    return score, found["ndcg"], future.validation(CONFIG.seed)


def test_a_length_is_chosen_by_the_validation_users_alone() -> None:
    """The best of several on the users it is told of is a figure that nobody would see again."""
    score, ndcg, validation = measured()
    assert 5 < validation.sum() < JUDGED / 2, "by all of them together the longer lists are the better ones"
    assert score.neighbours == NEAR
    assert ndcg[validation].tolist() == [1] * validation.sum()


def test_figures_are_of_the_users_by_whom_nothing_was_chosen() -> None:
    """Those who chose are served best by what they chose: with them in it, a figure flatters."""
    score, _, validation = measured()
    assert score.users == (~validation).sum()
    assert (score.ndcg_20.value, score.recall_20) == (0, 0)
