"""What the taste part and the home part of the vectors find, and what near, far and reweighted lists look like.

    OMP_NUM_THREADS=1 python benchmarks/parts.py FOLDER [--date 2026-07-01]

The encoder and the axes are fitted without the 30 % of users who are then cut in two; each half looks for the other.
Lists are of everybody, by the same vectors. Of a synthetic town (``tastetwin town``) the truth is known.
Target: a far list shares true taste as the whole list does, and hardly a home.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from tastetwin.analysis.dials import closest, far, near
from tastetwin.analysis.parts import fit_parts, reweighted, unit
from tastetwin.analysis.twins import find_twins
from tastetwin.config import AnalyzeConfig, Config
from tastetwin.engine import connect
from tastetwin.evaluation.baselines import home_candidates
from tastetwin.evaluation.dataset import Dataset, load_dataset
from tastetwin.evaluation.metrics import CSLS_NEIGHBOURS, reciprocal, true_twin_ranks, true_twin_ranks_among
from tastetwin.evaluation.tasks import disjoint_pairs
from tastetwin.features.holdout import choose_holdout
from tastetwin.features.home import home_regions

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

HOLDOUT = 0.3
DEPTH = 10
ASKING = 200
PAIRS = 200_000


@dataclass(frozen=True)
class Learned:
    """A folder's users, encoded by a model that has not seen those who are cut in two."""

    dataset: Dataset
    user_ids: npt.NDArray[np.object_]
    vectors: Floats
    """[n, dim] everybody."""
    homes: npt.NDArray[np.int32]
    """[n]"""
    seen: Ints
    """Positions of the users trained on."""
    a: Floats
    """[m, dim] one half of each user cut in two."""
    b: Floats
    """[m, dim] the other."""
    candidates: Ints
    """[m, 100] for the matched test."""

    def mrr(self, change: Callable[[Floats], Floats]) -> tuple[float, float]:
        """Disjoint and matched, by CSLS, of changed vectors."""
        a, b = change(self.a), change(self.b)
        disjoint = true_twin_ranks(a, b, CSLS_NEIGHBOURS)
        matched = true_twin_ranks_among(a, b, self.candidates, CSLS_NEIGHBOURS)
        return float(reciprocal(disjoint).mean()), float(reciprocal(matched).mean())


def learn(folder: str, day: date) -> Learned:
    """Read, train, encode; seed 1."""
    from tastetwin.model.train import train

    config = Config()
    dataset = load_dataset(connect(None, 2), folder, day, config)
    histories = dataset.histories()
    rules = config.evaluate.model_copy(update={"holdout_share": HOLDOUT, "max_holdout": 10**9, "seed": 1})
    mask = choose_holdout(histories, rules, 1)
    pseudo = disjoint_pairs(histories, mask, dataset.vocabulary, rules, 1)
    trained = train(histories.select(np.flatnonzero(~mask)), dataset.vocabulary, config.train)
    a, b, everybody = (trained.encode(each, config.train.max_length) for each in (pseudo.a, pseudo.b, histories))
    homes, candidates = home_regions(histories, dataset.vocabulary), home_candidates(pseudo, dataset.vocabulary, 1)
    return Learned(dataset, histories.user_ids, everybody, homes, np.flatnonzero(~mask), a, b, candidates)


@dataclass(frozen=True)
class Planted:
    """What is true of a town's users."""

    taste: Floats
    """[n, groups] unit."""
    homes: npt.NDArray[np.object_]
    """[n]"""

    @classmethod
    def of(cls, learned: Learned) -> Planted | None:
        """None for a folder that is no town."""
        truth = learned.dataset.truth
        if truth is None:
            return None
        row = {user: at for at, user in enumerate(truth.user_ids)}
        rows = np.array([row[user] for user in learned.user_ids])
        return cls(unit(truth.taste[rows]), truth.homes[rows])

    def correlations(self, vectors: Floats) -> tuple[float, float]:
        """Partial Spearman correlations of dot products: with true taste, home fixed; with same home, taste fixed."""
        rng = np.random.default_rng(1)
        first = rng.integers(0, len(vectors), PAIRS)
        second = (first + rng.integers(1, len(vectors), PAIRS)) % len(vectors)
        found, taste = (rankdata((rows[first] * rows[second]).sum(axis=1)) for rows in (vectors, self.taste))
        home = (self.homes[first] == self.homes[second]).astype(float)
        return partial(found, taste, home), partial(found, home, taste)


def partial(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], fixed: npt.NDArray[np.float64]) -> float:
    """Correlation of what ``fixed`` does not explain."""
    known = np.stack([np.ones(len(fixed)), fixed], axis=1)
    left, right = (each - known @ np.linalg.lstsq(known, each, rcond=None)[0] for each in (x, y))
    return float(left @ right / np.sqrt((left @ left) * (right @ right)))


def show_parts(learned: Learned, axes: Floats, truth: Planted | None) -> None:
    """One line a part: who finds whom."""

    def taste(rows: Floats) -> Floats:
        return reweighted(rows, axes, 0.0)

    def home(rows: Floats) -> Floats:
        return unit(rows @ axes.T)

    shown: dict[str, Callable[[Floats], Floats]] = {"whole": lambda rows: rows, "taste part": taste}
    if len(axes):
        shown["home part"] = home
    for name, change in shown.items():
        disjoint, matched = learned.mrr(change)
        planted = "" if truth is None else "; with true taste {:.3f}, with true home {:.3f}".format(
            *truth.correlations(change(learned.vectors))
        )  # fmt: skip
        print(f"{name:11} MRR disjoint {disjoint:.3f}, matched {matched:.3f}{planted}")


def listed(vectors: Floats) -> Ints:
    """Everybody's list, as the daily job makes it."""
    return find_twins(vectors, AnalyzeConfig(k=DEPTH)).neighbours.astype(np.int64)


def show_lists(learned: Learned, axes: Floats, truth: Planted | None) -> None:
    """One line a dial: who is in the lists."""
    asking = np.random.default_rng(1).permutation(len(learned.vectors))[:ASKING]
    lists = {
        f"home_weight {weight:g}": listed(reweighted(learned.vectors, axes, weight))[asking]
        for weight in (2.0, 1.0, 0.5, 0.0)
    }
    for name, dial in (("--near", near), ("--far", far)):
        space = dial(learned.vectors, axes)
        everybody = np.arange(len(learned.vectors))
        found_by = [closest(space, int(user), np.delete(everybody, user), DEPTH, AnalyzeConfig()) for user in asking]
        lists[name] = np.stack([found.users for found in found_by])
    lists["at random"] = np.random.default_rng(2).integers(0, len(learned.vectors), (len(asking), DEPTH))
    known = learned.homes[asking] >= 0
    for name, found in lists.items():
        same = (learned.homes[found] == learned.homes[asking][:, None])[known].mean() if known.any() else np.nan
        shared = "" if truth is None else ", true taste in common {:.3f}".format(
            np.einsum("ijd,id->ij", truth.taste[found], truth.taste[asking]).mean()
        )  # fmt: skip
        print(f"{name:15} same home region {same:.3f}{shared}")


def main() -> None:
    """Both tables of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--date", type=date.fromisoformat, default=date.today(), help="later times are not believed")
    arguments = parser.parse_args()
    learned = learn(arguments.folder, arguments.date)
    parts = fit_parts(learned.vectors[learned.seen], learned.homes[learned.seen], 1)
    print(f"{learned.dataset.name}: {len(learned.vectors)} users; {parts.to_json()}")
    truth = Planted.of(learned)
    show_parts(learned, parts.axes, truth)
    show_lists(learned, parts.axes, truth)


if __name__ == "__main__":
    main()
