"""The cap on exposure against the textbook's greedy rule, and the promises of a stable matching."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from tastetwin.analysis.exposure import accepted


def ranked(scores: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """Everybody as everybody's candidate, the best first; nobody is their own."""
    scores = scores.copy()
    np.fill_diagonal(scores, -np.inf)
    order = np.argsort(-scores, axis=1)[:, :-1].astype(np.int32)
    return order, np.take_along_axis(scores, order, axis=1)


def greedy(scores: npt.NDArray[np.float64], k: int, room: npt.NDArray[np.int64]) -> set[tuple[int, int]]:
    """The closest pair first, as long as the list takes somebody and the candidate has room."""
    n = len(scores)
    pairs = sorted((-scores[u, v], u, v) for u in range(n) for v in range(n) if u != v)
    length, left, taken = [0] * n, room.tolist(), set()
    for _, u, v in pairs:
        if length[u] < k and left[v] > 0:
            taken.add((u, v))
            length[u] += 1
            left[v] -= 1
    return taken


@settings(max_examples=100, deadline=None)
@given(n=st.integers(2, 12), k=st.integers(1, 6), seed=st.integers(0, 2**31), data=st.data())
def test_what_both_sides_order_alike_is_matched_as_greed_would(n: int, k: int, seed: int, data: st.DataObject) -> None:
    """A symmetric score without ties has one stable matching, and greed finds it pair by pair."""
    scores = np.random.default_rng(seed).standard_normal((n, n))
    scores = scores + scores.T
    room = np.array(data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)))
    candidates, priority = ranked(scores)
    chosen = accepted(candidates, priority, np.full(n, k), room)
    found = {(int(u), int(candidates[u, c])) for u, c in zip(*np.nonzero(chosen), strict=True)}
    assert found == greedy(scores, k, room)


@settings(max_examples=100, deadline=None)
@given(n=st.integers(2, 15), k=st.integers(1, 5), cap=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_no_pair_would_rather_have_each_other(n: int, k: int, cap: int, seed: int) -> None:
    """Also where the two sides disagree and many priorities are equal; and nobody is in more than ``cap`` lists."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (n, n)).astype(np.float64)
    candidates, priority = ranked(scores)
    room = np.full(n, cap)
    chosen = accepted(candidates, priority, np.full(n, k), room)
    lists = {u: [int(candidates[u, c]) for c in np.flatnonzero(chosen[u])] for u in range(n)}
    asked = {v: [u for u in range(n) if v in lists[u]] for v in range(n)}
    assert max(map(len, asked.values())) <= cap and max(map(len, lists.values())) <= k
    for u in range(n):
        for place, v in enumerate(candidates[u].tolist()):
            if v in lists[u]:
                continue
            better = [w for w in candidates[u, place:].tolist() if w in lists[u]]
            wants = len(lists[u]) < k or better
            has_room = len(asked[v]) < cap or min(scores[w, v] for w in asked[v]) < scores[u, v]
            assert not (wants and has_room), (u, v)


def test_candidates_that_are_none_are_passed_over() -> None:
    """-1 anywhere in a row, also where the last user has no room."""
    candidates = np.array([[-1, 2, 1], [2, -1, 0], [-1, -1, -1]], np.int32)
    priority = np.array([[0.0, 3, 2], [4, 0, 1], [0, 0, 0]])
    chosen = accepted(candidates, priority, np.array([2, 1, 2]), np.array([1, 1, 1]))
    assert chosen.tolist() == [[False, False, True], [True, False, False], [False] * 3]
