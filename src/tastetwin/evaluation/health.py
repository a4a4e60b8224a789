"""List health: what the twin lists of one run look like as a whole, and whether they agree with vectors and histories.

A twin table is int32 [n_users, k]: row u holds the positions of u's twins, the closest first, -1 where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tastetwin.analysis.pairs import PairRules, Region
from tastetwin.evaluation.metrics import activity_buckets, region_buckets
from tastetwin.evaluation.records import Coverage, Health, Histogram, VectorHealth
from tastetwin.features.histories import Histories

TwinTable = npt.NDArray[np.int32]
FloatMatrix = npt.NDArray[np.float32]
IdArray = npt.NDArray[np.object_]

SAMPLED_USERS: Final = 2_000
"""Users sampled for the measures that need pairs; enough for two digits at any size of data."""
STABILITY_DEPTH: Final = 10
OVERLAP_DEPTH: Final = 10
AGREEMENT_DEPTH: Final = 10
LORENZ_POINTS: Final = 51
HISTOGRAM_BINS: Final = 40


@dataclass(frozen=True)
class ServedUsers:
    """The users of a twin table, in its row order."""

    histories: Histories
    """[n_users]"""
    regions: npt.NDArray[np.int32]
    """[n_users] home region index, -1 where unknown."""
    region_codes: IdArray
    """[n_regions] the source's code of each region index."""
    vectors: FloatMatrix
    """[n_users, d] unit rows."""
    among: Region = "any"
    """Whose lists the rules let whom into, by home region (``lists.region``)."""


@dataclass(frozen=True)
class EarlierLists:
    """The twin lists of an earlier run, by external ids."""

    user_ids: IdArray
    """[m] unique, any order."""
    twin_ids: IdArray
    """[m, k'] the closest first; "" where there is none."""


def list_health(users: ServedUsers, twins: TwinTable, earlier: EarlierLists | None, seed: int) -> Health:
    """Everything the gate and the report want to know of a twin table."""
    n = len(twins)
    served = np.asarray((twins >= 0).any(axis=1))
    inside = twins[(twins >= 0) & (twins < n)]
    shown = np.bincount(inside, minlength=n)
    sample = drawn(np.flatnonzero(served), seed)
    overlap_twins, overlap_random = _overlap(users.histories, twins, sample, seed)
    return Health(
        users=n,
        k=twins.shape[1],
        served=int(served.sum()),
        out_of_range=int(((twins >= n) | (twins < -1)).sum()),
        self_share=_share((twins == np.arange(n)[:, None]).any(axis=1)),
        duplicate_share=_share(_has_duplicates(twins)),
        never_shown=_share(np.asarray(shown == 0)),
        gini=gini(shown),
        skewness=skewness(shown),
        top_share=_top_share(shown, twins.shape[1]),
        reciprocity=reciprocity(twins, sample),
        agreement=_agreement(users, twins, sample, seed),
        overlap_twins=overlap_twins,
        overlap_random=overlap_random,
        stability=None if earlier is None else stability(users.histories.user_ids, twins, earlier, seed),
        lorenz=lorenz(shown),
        coverage=coverage(
            users.histories.lengths(), users.regions, list(users.region_codes), served, np.asarray(shown > 0)
        ),
    )


def vector_health(vectors: FloatMatrix, seed: int) -> VectorHealth:
    """Are [n, d] vectors finite, of unit length and spread out? Spread is measured on a sample of the finite rows."""
    finite = np.isfinite(vectors).all(axis=1)
    good = vectors[finite]
    norms = np.linalg.norm(good.astype(np.float64), axis=1)
    sample = good[drawn(np.arange(len(good)), seed)].astype(np.float64)
    return VectorHealth(
        rows=len(vectors),
        not_finite=int((~finite).sum()),
        norm_error=float(np.abs(norms - 1).max()) if len(good) else 1.0,
        mean_cosine=_mean_pair_cosine(sample),
        effective_rank=effective_rank(sample),
    )


def effective_rank(vectors: npt.NDArray[np.floating]) -> float:
    """exp(entropy) of the centred rows' normalised singular values (Roy & Vetterli 2007); 0 for a single point."""
    if len(vectors) < 2:
        return 0.0
    singular = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False)
    if singular.sum() <= 1e-9 * len(vectors):
        return 0.0
    shares = singular[singular > 0] / singular.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def gini(shown: npt.NDArray[np.int64]) -> float:
    """Inequality of exposure: 0 when every user is shown equally often, towards 1 when one user fills every list."""
    n, total = len(shown), int(shown.sum())
    if n == 0 or total == 0:
        return 0.0
    ascending = np.sort(shown).astype(np.float64)
    return float((2 * (np.arange(1, n + 1) * ascending).sum()) / (n * total) - (n + 1) / n)


def skewness(shown: npt.NDArray[np.int64]) -> float:
    """Third standardised moment of the N_k distribution, the usual measure of hubness (Radovanović et al. 2010)."""
    if len(shown) == 0 or shown.std() == 0:
        return 0.0
    return float((((shown - shown.mean()) / shown.std()) ** 3).mean())


def lorenz(shown: npt.NDArray[np.int64]) -> list[float]:
    """Share of all slots held by the least-shown 0 %, 2 %, ... 100 % of users."""
    if len(shown) == 0 or shown.sum() == 0:
        return [0.0] * LORENZ_POINTS
    cumulative = np.concatenate([[0], np.cumsum(np.sort(shown))]) / shown.sum()
    at = np.linspace(0, len(shown), LORENZ_POINTS)
    return [float(x) for x in np.interp(at, np.arange(len(shown) + 1), cumulative)]


def reciprocity(twins: TwinTable, sample: npt.NDArray[np.int64]) -> float:
    """Share of the sampled users' twins who list them back."""
    listed = back = 0
    for user in sample:
        mine = _inside(twins[user], len(twins))
        listed += len(mine)
        back += int((twins[mine] == user).any(axis=1).sum())
    return back / max(1, listed)


def stability(user_ids: IdArray, twins: TwinTable, earlier: EarlierLists, seed: int) -> float | None:
    """Mean Jaccard@10 of today's and the earlier lists, over the sampled users who have both; None without any."""
    sample = drawn(np.flatnonzero((twins >= 0).any(axis=1)), seed)
    wanted = set(user_ids[sample])
    where = {user: row for row, user in enumerate(earlier.user_ids) if user in wanted}
    scores = []
    for user in (u for u in sample if user_ids[u] in where):
        today = set(user_ids[_inside(twins[user, :STABILITY_DEPTH], len(twins))])
        before = {t for t in earlier.twin_ids[where[user_ids[user]], :STABILITY_DEPTH] if t}
        scores.append(len(today & before) / max(1, len(today | before)))
    return float(np.mean(scores)) if scores else None


def score_histogram(vectors: FloatMatrix, twins: TwinTable, seed: int) -> Histogram:
    """Cosines of sampled users with their first ten twins, beside those of random pairs of users."""
    sample = drawn(np.flatnonzero((twins >= 0).any(axis=1)), seed)
    with_twins = [vectors[_inside(twins[u, :OVERLAP_DEPTH], len(twins))] @ vectors[u] for u in sample]
    strangers = np.random.default_rng(seed).integers(0, max(1, len(twins)), (len(sample), OVERLAP_DEPTH))
    at_random = [vectors[others[others != u]] @ vectors[u] for u, others in zip(sample, strangers, strict=True)]
    near = np.concatenate(with_twins) if with_twins else np.zeros(0)
    far = np.concatenate(at_random) if at_random else np.zeros(0)
    everything = np.concatenate([near, far, [0.0]])
    everything = everything[np.isfinite(everything)]
    edges = np.linspace(min(0.0, float(everything.min())), max(1e-3, float(everything.max())), HISTOGRAM_BINS + 1)
    return Histogram(
        edges=[float(e) for e in edges], twins=_histogram_shares(near, edges), strangers=_histogram_shares(far, edges)
    )


def _histogram_shares(values: npt.NDArray[np.floating], edges: npt.NDArray[np.float64]) -> list[float]:
    counts, _ = np.histogram(values[np.isfinite(values)], edges)
    return [float(c) for c in counts / max(1, counts.sum())]


def drawn(users: npt.NDArray[np.int64], seed: int, size: int = SAMPLED_USERS) -> npt.NDArray[np.int64]:
    """``size`` of the given ones drawn at random, ascending; all of fewer."""
    return users if len(users) <= size else np.sort(np.random.default_rng(seed).choice(users, size, replace=False))


def _inside(row: npt.NDArray[np.int32], n: int) -> npt.NDArray[np.int32]:
    """The usable positions of one list: neither empty nor out of range."""
    return row[(row >= 0) & (row < n)]


def _share(flags: npt.NDArray[np.bool_]) -> float:
    return float(flags.mean()) if len(flags) else 0.0


def _has_duplicates(twins: TwinTable) -> npt.NDArray[np.bool_]:
    """[n_users] true where a list shows somebody twice."""
    ascending = np.sort(twins, axis=1)
    repeated: npt.NDArray[np.bool_] = ((ascending[:, 1:] == ascending[:, :-1]) & (ascending[:, 1:] >= 0)).any(axis=1)
    return repeated


def _top_share(shown: npt.NDArray[np.int64], k: int) -> float:
    """Share of all slots filled by the k users shown most: near 1 when everybody gets the same list."""
    top = min(k, len(shown))
    return float(np.sort(shown)[len(shown) - top :].sum() / max(1, shown.sum()))


def _mean_pair_cosine(vectors: npt.NDArray[np.float64]) -> float:
    """Mean cosine over pairs of different rows: |sum of rows|^2 holds every pair twice and the squared norms once."""
    n = len(vectors)
    if n < 2:
        return 0.0
    squares = (vectors**2).sum()
    return float(((vectors.sum(axis=0) ** 2).sum() - squares) / max(squares * (n - 1), 1e-12))


def _agreement(users: ServedUsers, twins: TwinTable, sample: npt.NDArray[np.int64], seed: int) -> float:
    """How far the first ten go from random (0) to the ten nearest by cosine (1): their mean cosine between those two.

    Random and nearest among those whom the region rule lets in. A list made from other vectors than these (swapped
    index, shuffled rows) comes out near 0; CSLS lists near .9.
    """
    vectors = users.vectors
    listed, best, average = [], [], []
    for user in _sample_few(sample, seed):
        mine = _inside(twins[user, :AGREEMENT_DEPTH], len(twins))
        cosine = (vectors @ vectors[user])[_may_meet(users, user)]
        if len(mine) == 0 or len(cosine) == 0:
            continue
        listed.append(float((vectors[mine] @ vectors[user]).mean()))
        best.append(float(np.sort(cosine)[-len(mine) :].mean()))
        average.append(float(cosine.mean()))
    gap = np.sum(best) - np.sum(average)
    return float((np.sum(listed) - np.sum(average)) / gap) if gap > 1e-9 else 1.0


def _may_meet(users: ServedUsers, user: np.integer) -> npt.NDArray[np.bool_]:
    """[n_users] whom the region rule lets into a user's list."""
    rules = PairRules(np.empty(0, np.int64), users.among, users.regions)
    others = np.arange(len(users.regions), dtype=np.int32)
    return np.asarray(rules.allow(np.array([user]), others[None])[0] & (others != user))


def _sample_few(users: npt.NDArray[np.int64], seed: int, size: int = 200) -> npt.NDArray[np.int64]:
    """Measures that look at every user for each sampled one take fewer."""
    return users if len(users) <= size else np.random.default_rng(seed).choice(users, size, replace=False)


def _overlap(
    histories: Histories, twins: TwinTable, sample: npt.NDArray[np.int64], seed: int
) -> tuple[list[float], list[float]]:
    """Per sampled user, the mean number of places shared with ten twins, and with ten users drawn at random."""
    generator = np.random.default_rng(seed)
    with_twins, at_random = [], []
    favored = np.zeros(int(histories.places.max()) + 1 if len(histories.places) else 1, bool)
    for user in _sample_few(sample, seed, 500):
        mine = _places(histories, user)
        favored[mine] = True
        strangers = generator.integers(0, histories.n_users, OVERLAP_DEPTH)
        shared = [int(favored[_places(histories, t)].sum()) for t in _inside(twins[user, :OVERLAP_DEPTH], len(twins))]
        by_chance = [int(favored[_places(histories, s)].sum()) for s in strangers if s != user]
        favored[mine] = False
        with_twins.append(float(np.mean(shared)) if shared else 0.0)
        at_random.append(float(np.mean(by_chance)) if by_chance else 0.0)
    return with_twins, at_random


def _places(histories: Histories, user: np.integer) -> npt.NDArray[np.int32]:
    return histories.places[histories.offsets[user] : histories.offsets[user + 1]]


def coverage(
    activity: npt.NDArray[np.int64],
    homes: npt.NDArray[np.int32],
    region_codes: Sequence[object],
    served: npt.NDArray[np.bool_],
    shown: npt.NDArray[np.bool_],
) -> list[Coverage]:
    """By activity and home region, who has a list and who is in one; all [n_users]."""
    by_activity = [("activity", *bucket) for bucket in activity_buckets(activity)]
    by_region = [("region", *bucket) for bucket in region_buckets(homes, region_codes)]
    return [
        Coverage(kind, name, int(mask.sum()), _share(served[mask]), _share(shown[mask]))
        for kind, name, mask in by_activity + by_region
    ]
