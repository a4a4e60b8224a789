"""What votes of twins can be worth: the same neighbours' votes, chosen and weighted in more and more ways.

    OMP_NUM_THREADS=1 python benchmarks/votes.py FOLDER

Neighbour utility (task 4 of the benchmark; NDCG@20 of first visits after the cut, on the users by whom nothing is
chosen) lets the nearest K users vote with their similarity, K of 20, 50, 100: the cosine, or by CSLS the cosine less
half of how near the twin's nearest are. Here the encoder's vectors and the strongest baselines vote also by squares,
and with the TF-IDF cosine of the places both have on top; "the same, overlap in it" has the 128 strongest directions of
those TF-IDF rows in the vector, at equal weight. The last column fits the weight of a vote to the very question, on the
validation users: a log-linear function of cosine, TF-IDF cosine, their squares and product, and both lengths of
history, for the 300 nearest by either. Below the table the encoder's *views* are weighted anew for the question:
everybody votes by the exponential of the cosine, and the weight of each view, the temperature and that of a long
history are fitted on the validation users (Goldberger et al. 2004). The last line has no people in it: what a
recommender of *places* reaches on the same question, EASE (Steck 2019), the strongest linear one known, its ridge
chosen on the validation users.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from datetime import date
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from ablations import without_days, without_ratings
from tastetwin.analysis.parts import unit
from tastetwin.config import Config
from tastetwin.engine import connect
from tastetwin.evaluation.baselines import BASELINES, MORE_BASELINES, TUNED, Baseline, Material
from tastetwin.evaluation.dataset import load_dataset
from tastetwin.evaluation.metrics import CSLS_NEIGHBOURS
from tastetwin.evaluation.utility import NEIGHBOURS, Future, cosines_of_others, cut_in_time, ndcg_and_recall
from tastetwin.features.histories import Histories
from tastetwin.model.encoder import Encoder, strength
from tastetwin.model.finish import batches
from tastetwin.model.train import Trained, train

Floats = npt.NDArray[np.float32]
SEED: Final = 1
BASELINE_NAMES: Final = ("TF-IDF overlap", "BM25 overlap", "iALS (tuned)", "full linear", "full linear (tuned)")
DEPTH: Final = 300
"""Nearest by cosine, and by TF-IDF, whose votes the fitted weights may use."""
EPOCHS: Final = 5
OVERLAP_SIZE: Final = 128
RIDGES: Final = (30, 100, 300, 1000)


class Town:
    """Everybody's similarities, and who judges."""

    def __init__(self, future: Future) -> None:
        self.future = future
        self.chosen_by = future.validation(SEED)
        visitors = np.maximum(np.asarray(future.matrix.sum(axis=0)).ravel(), 1)
        idf = np.log(future.past.n_users / visitors).astype(np.float32)
        weighted = (future.matrix @ sp.diags_array(idf)).tocsr()
        norms = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
        self.rows = (sp.diags_array((1 / np.maximum(norms, 1e-9)).astype(np.float32)) @ weighted).tocsr()
        self.overlap = similarities(self.rows)

    def worth(self, weights: Iterator[tuple[int, sp.csr_matrix]]) -> npt.NDArray[np.float64]:
        """[n_judged] NDCG@20 of votes by blocks of [users, n] weights."""
        scores = ((at, np.asarray((block @ self.future.matrix).toarray(), np.float32)) for at, block in weights)
        return ndcg_and_recall(self.future, lambda: scores)[0]

    def best(self, similarity: Floats, power: int) -> float:
        """Mean on the test users, with the number of voters that serves the others best."""
        tried = [self.worth(nearest(similarity, k, power)) for k in NEIGHBOURS]
        found = max(tried, key=lambda ndcg: float(ndcg[self.chosen_by].mean()))
        return float(found[~self.chosen_by].mean())


def similarities(vectors: Any) -> Floats:
    """[n, n] everybody's with everybody else; nobody votes for themselves."""
    return np.concatenate([block for _, block in cosines_of_others(vectors)])


def nearest(similarity: Floats, k: int, power: int) -> Iterator[tuple[int, sp.csr_matrix]]:
    """The k nearest, each voting by a power of ``similarity``."""
    for at in range(0, len(similarity), 1000):
        top = np.argpartition(-similarity[at : at + 1000], k - 1, axis=1)[:, :k]
        weights = np.maximum(np.take_along_axis(similarity[at : at + 1000], top, axis=1), 0) ** power
        indptr = np.arange(0, top.size + 1, k)
        yield at, sp.csr_matrix((weights.ravel(), top.ravel(), indptr), shape=(len(top), len(similarity)))


def beside_overlap(vectors: Floats, town: Town) -> Floats:
    """[n, d] unit vectors in which the overlap of places counts as much as [n, d] ``vectors``."""
    left, values, _ = sp.linalg.svds(town.rows.astype(np.float64), k=OVERLAP_SIZE, random_state=SEED)
    wide = np.hstack([vectors, left * values])
    strongest = np.linalg.eigh(wide.T @ wide)[1][:, -vectors.shape[1] :]
    return np.asarray(unit(wide @ strongest), np.float32)


def csls(similarity: Floats) -> Floats:
    """Less half of how near each one's nearest are."""
    crowd = np.partition(similarity, -CSLS_NEIGHBOURS, axis=1)[:, -CSLS_NEIGHBOURS:].mean(axis=1)
    return np.asarray(similarity - crowd / 2)


def fitted(town: Town, cosine: Floats) -> float:
    """Mean on the test users, with weights of votes fitted on the others."""
    future, judged = town.future, town.future.judged
    near = np.argpartition(-cosine[judged], DEPTH, axis=1)[:, :DEPTH]
    rest = town.overlap[judged].copy()
    np.put_along_axis(rest, near, -np.inf, axis=1)
    voters = np.concatenate([near, np.argpartition(-rest, DEPTH, axis=1)[:, :DEPTH]], axis=1)
    length = np.log(future.past.lengths()) - np.log(future.past.lengths()).mean()

    def features(rows: npt.NDArray[np.int64]) -> torch.Tensor:
        users, others = judged[rows], voters[rows]
        c, t = (np.maximum(np.take_along_axis(s[users], others, axis=1), 0) for s in (cosine, town.overlap))
        mine, theirs = np.broadcast_to(length[users][:, None], c.shape), length[others]
        columns = (c, t, np.sqrt(t), c * c, c * t, theirs, theirs * theirs, mine * c, theirs * c)
        return torch.tensor(np.stack(columns, axis=-1), dtype=torch.float32)

    torch.manual_seed(SEED)
    law = torch.nn.Linear(9, 1)
    with torch.no_grad():
        law.weight.zero_()
        law.weight[0, :2] = torch.tensor([4.0, 2.0])
    optimizer = torch.optim.Adam(law.parameters(), 0.05)
    teachers, rng = np.flatnonzero(town.chosen_by), np.random.default_rng(SEED)
    for _ in range(EPOCHS):
        for rows in np.array_split(rng.permutation(teachers), max(len(teachers) // 128, 1)):
            votes = torch.exp(law(features(rows))[..., 0].clamp(max=12))
            optimizer.zero_grad()
            _loss(votes, voters[rows], judged[rows], future).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def weights() -> Iterator[tuple[int, sp.csr_matrix]]:
        n = future.past.n_users
        for start in range(0, len(judged), 500):
            rows = np.arange(start, min(start + 500, len(judged)))
            with torch.no_grad():
                votes = torch.exp(law(features(rows))[..., 0].clamp(max=12)).numpy()
            for row, mine in zip(rows, votes, strict=True):
                yield int(judged[row]), sp.csr_matrix((mine, (np.zeros(len(mine), int), voters[row])), shape=(1, n))

    return float(town.worth(weights())[~town.chosen_by].mean())


def _loss(
    votes: torch.Tensor, voters: npt.NDArray[np.int64], users: npt.NDArray[np.int64], future: Future
) -> torch.Tensor:
    """Cross-entropy of the first visits under the votes, among places still unseen."""
    rows = future.matrix[voters.ravel()]
    source = torch.tensor(np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr)))
    places = torch.tensor(rows.indices.astype(np.int64))
    scores = torch.zeros(len(users), rows.shape[1])
    scores = scores.index_put((source // voters.shape[1], places), votes.reshape(-1)[source], accumulate=True)
    seen, wanted = (torch.tensor(matrix[users].toarray() > 0) for matrix in (future.matrix, future.visits))
    logits = torch.log(scores + 1e-4 * votes.sum(1, keepdim=True)).masked_fill(seen, -1e9)
    return (-(torch.log_softmax(logits, 1) * wanted).sum(1) / wanted.sum(1)).mean()


def weighted_views(town: Town, trained: Trained, max_length: int) -> float:
    """Mean on the test users, with weights of the encoder's views fitted on the others."""
    future, views = town.future, torch.from_numpy(views_of(trained.encoder, town.future.past, max_length))
    sizes = [*trained.encoder.views.sizes, trained.encoder.part_sizes[2]]
    view = torch.repeat_interleave(torch.tensor(sizes))
    length = torch.tensor(np.log(future.past.lengths()), dtype=torch.float32)
    places, visits = torch.from_numpy(future.matrix.toarray()), torch.from_numpy(future.visits.toarray() > 0)
    weights, temperature, longer = torch.zeros(len(sizes)), torch.tensor(2.5), torch.tensor(0.0)
    optimizer = torch.optim.Adam([each.requires_grad_() for each in (weights, temperature, longer)], 0.03)

    def scores(users: npt.NDArray[np.int64]) -> torch.Tensor:
        vectors = torch.nn.functional.normalize(views * weights.exp()[view], dim=1)
        votes = temperature.exp() * (vectors[users] @ vectors.T) + longer * (length - length.mean())
        votes[np.arange(len(users)), users] = -torch.inf
        return torch.softmax(votes, 1) @ places

    teachers, rng = future.judged[town.chosen_by], np.random.default_rng(SEED)
    for _ in range(2 * EPOCHS):
        for users in np.array_split(rng.permutation(teachers), max(len(teachers) // 128, 1)):
            seen = places[users] > 0
            logits = torch.log(scores(users) + 1e-5).masked_fill(seen, -torch.inf)
            wanted = visits[users]
            told = torch.log_softmax(logits, 1).masked_fill(~wanted, 0).sum(1) / wanted.sum(1)
            optimizer.zero_grad()
            (-told.mean()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    @torch.no_grad()
    def blocks() -> Iterator[tuple[int, Floats]]:
        for start in range(0, future.past.n_users, 1000):
            yield start, scores(np.arange(start, min(start + 1000, future.past.n_users))).numpy()

    return float(ndcg_and_recall(future, blocks)[0][~town.chosen_by].mean())


def ease(town: Town) -> float:
    """Mean on the test users of the places that each user's own predict, with the ridge that serves the others best.

    The inverse of the places' Gram matrix, by that of the users (Woodbury): there are fewer of them.
    """
    future, visits = town.future, np.asarray(town.future.matrix.toarray(), np.float32)
    tried = []
    for ridge in RIDGES:
        kernel = np.linalg.inv(visits.astype(np.float64) @ visits.T + ridge * np.eye(len(visits)))
        solved = kernel.astype(np.float32) @ visits
        scores = visits - solved * (ridge / (1 - (visits * solved).sum(axis=0)))
        tried.append(ndcg_and_recall(future, functools.partial(iter, [(0, scores)]))[0])
    found = max(tried, key=lambda ndcg: float(ndcg[town.chosen_by].mean()))
    return float(found[~town.chosen_by].mean())


@torch.no_grad()
def views_of(encoder: Encoder, histories: Histories, max_length: int) -> Floats:
    """[n_users, linear views and sequence view] each view at unit length."""
    views = np.zeros((histories.n_users, encoder.part_sizes[0] + encoder.part_sizes[2]), np.float32)
    for users, favors in batches(histories, max_length, encoder.prior.device):
        strengths = strength(favors.visits, favors.places)
        sequence = encoder.parts(encoder.views, favors)[2]
        views[users] = torch.cat([encoder.views(favors.places, strengths, favors.layout), sequence], dim=1).numpy()
    return views


def main() -> None:
    """One row a method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    options = parser.parse_args()
    config = Config()
    dataset = load_dataset(connect(None, config.engine.partitions), options.folder, date.today(), config)
    future = cut_in_time(dataset)
    material = Material(future.past, dataset.vocabulary, future.past, future.past, config.evaluate, SEED)
    town = Town(future)
    baselines = {**MORE_BASELINES, **BASELINES, **TUNED}
    trained = train(future.past, dataset.vocabulary, config.train.model_copy(update={"seed": SEED}))
    encoded = trained.encode(future.past, config.train.max_length)
    untold = without_ratings(without_days(future.past))
    bare = train(untold, dataset.vocabulary, config.train.model_copy(update={"seed": SEED}))
    methods: dict[str, Baseline] = {
        **{name: baselines[name] for name in BASELINE_NAMES},
        "encoder": lambda _: (encoded, encoded),
        "the same, overlap in it": lambda _: 2 * (beside_overlap(encoded, town),),
        "encoder, neither ratings nor days": lambda _: 2 * (bare.encode(untold, config.train.max_length),),
    }
    print(f"| {dataset.name} | cosine | CSLS | squared | CSLS, squared | + overlap | CSLS, + overlap | fitted |")
    print("|---|---|---|---|---|---|---|---|")
    for name, method in methods.items():
        vectors = method(material)[0]
        cosine = similarities(vectors)
        mixed = cosine + 2 * town.overlap
        found = [
            town.best(csls(similarity) if corrected else similarity, power)
            for similarity, corrected, power in (
                (cosine, False, 1), (cosine, True, 1), (cosine, False, 2), (cosine, True, 2),
                (mixed, False, 2), (mixed, True, 2),
            )
        ]  # fmt: skip
        found.append(fitted(town, cosine))
        print(f"| {name} | " + " | ".join(f"{value:.4f}" for value in found) + " |", flush=True)
    print(
        f"\nthe encoder's views weighted for the question: {weighted_views(town, trained, config.train.max_length):.4f}"
    )
    print(f"without people, by places alone (EASE): {ease(town):.4f}")


if __name__ == "__main__":
    main()
