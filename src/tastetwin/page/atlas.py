"""The taste map: everybody in the plane, and neighbourhoods named by what their people favor more than others do.

Neighbourhoods are k-means cells of the taste vectors on the sphere, without the home part. Their centres are laid out
so that distances in the plane are as in the space (metric multidimensional scaling by majorization, SMACOF; de Leeuw
1977), and each user lies at the mean of the centres, weighted by the softmax of the similarities to them. The first two
principal components keep less: on a town of 1,500 the nearest ten on the map have a mean cosine of 0.41 by those and
0.49 by this (random 0.26, the true nearest 0.73), and neighbourhoods overlap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tastetwin.analysis.blas import load_faiss
from tastetwin.analysis.evidence import K_ANONYMITY, Explainer, Visitors, count_visitors
from tastetwin.analysis.index import Floats, Ints
from tastetwin.analysis.parts import unit
from tastetwin.features.histories import Histories, Vocabulary

NEIGHBOURHOODS: Final = 12
USERS_EACH: Final = 50
"""Users for each neighbourhood, at least, so that there is something that ten of them favor."""
NAMED: Final = 3
EXAMPLES: Final = 6
LIFT: Final = 1.2
"""How many times as common as among all users something must be, at least, to name a neighbourhood."""
CENTRAL: Final = 50
"""Users nearest to the centre of whom the examples are the first that may be shown."""
_PER_CELL: Final = 4096
_ITERATIONS: Final = 20
_MAJORIZATIONS: Final = 300
_SEED: Final = 1

Masks = tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class Neighbourhood:
    """Users of similar taste; names are of what at least ten of them favor, the most telling first."""

    users: int
    centre: tuple[float, float]
    categories: tuple[str, ...]
    places: tuple[str, ...]
    """Place ids."""
    regions: tuple[str, ...]
    central: tuple[str, ...]
    """Ids of users nearest to the centre; whoever shows them leaves out who has opted out."""


@dataclass(frozen=True)
class Atlas:
    """Everybody on the map."""

    ids: npt.NDArray[np.object_]
    """[n] ascending."""
    points: Floats
    """[n, 2]"""
    cells: Ints
    """[n] positions in ``neighbourhoods``."""
    neighbourhoods: tuple[Neighbourhood, ...]
    """The largest first."""

    def of(self, user: str) -> tuple[int, tuple[float, float]]:
        """The neighbourhood and the point of a user who is on the map."""
        at = int(np.searchsorted(self.ids, user))
        return int(self.cells[at]), (float(self.points[at, 0]), float(self.points[at, 1]))


def draw(vectors: Floats, axes: Floats, histories: Histories, vocabulary: Vocabulary, explainer: Explainer) -> Atlas:
    """The map of at least one user.

    ``vectors`` [n, dim] are unit vectors of the users of ``histories``, in the same order; taste is what is left
    without the home ``axes`` [rank, dim].
    """
    taste = unit(vectors - (vectors @ axes.T) @ axes) if len(axes) else vectors
    count = max(1, min(NEIGHBOURHOODS, len(taste) // USERS_EACH))
    kmeans = load_faiss().Kmeans(
        taste.shape[1],
        count,
        niter=_ITERATIONS,
        spherical=True,
        seed=_SEED,
        min_points_per_centroid=1,
        max_points_per_centroid=_PER_CELL,
    )
    kmeans.train(taste)
    centres = unit(kmeans.centroids)
    similarities = taste @ centres.T
    cells = similarities.argmax(axis=1)
    order = np.argsort(-np.bincount(cells, minlength=count), kind="stable")
    similarities, cells = similarities[:, order], np.argsort(order)[cells]
    positions = laid_out(centres[order])
    weights = np.exp((similarities - similarities.max(axis=1, keepdims=True)) / max(float(similarities.std()), 1e-6))
    points = (weights / weights.sum(axis=1, keepdims=True)) @ positions
    everybody, may_name = count_visitors(histories, vocabulary), explainer.may_name()
    found = []
    for number in range(count):
        mine = np.flatnonzero(cells == number)
        some = mine[np.argsort(-similarities[mine, number], kind="stable")[:CENTRAL]]
        names = _names(count_visitors(histories.select(mine), vocabulary), everybody, vocabulary, may_name)
        middle = np.median(points[mine], axis=0) if len(mine) else positions[number]
        central = tuple(str(user) for user in histories.user_ids[some])
        found.append(Neighbourhood(len(mine), (float(middle[0]), float(middle[1])), *names, central))
    return Atlas(histories.user_ids, points.astype(np.float32), cells, tuple(found))


def laid_out(centres: Floats) -> npt.NDArray[np.float64]:
    """[k, 2] positions whose distances are as near to those of the [k, dim] unit vectors as majorization comes."""
    around = centres.astype(np.float64) - centres.mean(axis=0)
    left, sizes, right = np.linalg.svd(around, full_matrices=False)
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])  # an axis has no direction of its own
    axes = (left * sizes * signs)[:, :2]
    positions = np.zeros((len(centres), 2))
    positions[:, : axes.shape[1]] = axes
    wanted = np.linalg.norm(around[:, None] - around[None], axis=2)
    for _ in range(_MAJORIZATIONS):
        between = np.linalg.norm(positions[:, None] - positions[None], axis=2)
        ratio = np.divide(wanted, between, out=np.zeros_like(wanted), where=between > 0)
        positions = (np.diag(ratio.sum(axis=1)) - ratio) @ positions / len(centres)
    return positions


def _names(
    here: Visitors, all_users: Visitors, vocabulary: Vocabulary, may_name: Masks
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Categories, places and regions that tell a neighbourhood from the rest."""
    kinds: Mapping[str, npt.NDArray[np.generic]] = {
        "categories": vocabulary.category_codes,
        "places": vocabulary.place_ids,
        "regions": vocabulary.region_codes,
    }
    allowed = {"places": may_name[0], "categories": may_name[1], "regions": may_name[2]}

    def named(kind: str) -> tuple[str, ...]:
        mine, theirs = getattr(here, kind), getattr(all_users, kind)
        share = mine / max(here.n_users, 1)
        usual = theirs / max(all_users.n_users, 1)
        # Its part of the divergence of the shares: how much more it is favored here, times by how many (Kullback 1959).
        telling = share * np.log(np.maximum(share, 1e-12) / np.maximum(usual, 1e-12))
        telling = np.where(allowed[kind] & (mine >= K_ANONYMITY) & (share > LIFT * usual), telling, 0)
        best = np.argsort(-telling, kind="stable")[:NAMED]
        return tuple(str(kinds[kind][at]) for at in best if telling[at] > 0)

    return named("categories"), named("places"), named("regions")
