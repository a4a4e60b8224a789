"""Evaluate one run: the model and every baseline on the held-out tasks, and the health of vectors and lists."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tastetwin.config import EvaluateConfig
from tastetwin.evaluation.baselines import BASELINES, Baseline, Material, Pair, home_candidates
from tastetwin.evaluation.health import (
    EarlierLists,
    ServedUsers,
    TwinTable,
    list_health,
    score_histogram,
    vector_health,
)
from tastetwin.evaluation.metrics import (
    CSLS_NEIGHBOURS,
    Ranks,
    activity_buckets,
    bootstrap_mean,
    hits,
    reciprocal,
    region_buckets,
    true_twin_ranks,
    true_twin_ranks_among,
)
from tastetwin.evaluation.records import MODEL, PUBLISHED, Bucket, Evaluation, MethodScore, Task
from tastetwin.evaluation.tasks import PseudoUsers
from tastetwin.features.histories import Histories, Vocabulary

FloatMatrix = npt.NDArray[np.float32]
OnMethod = Callable[[str], None]


@dataclass(frozen=True)
class HeldOut:
    """The held-out tasks of one run, and how its model saw them."""

    train: Histories
    """The users the model was fitted on; none of them is held out."""
    vocabulary: Vocabulary
    pseudo: PseudoUsers
    model_a: FloatMatrix
    """[n, d] the model's unit vectors of ``pseudo.a``."""
    model_b: FloatMatrix
    """[n, d] of ``pseudo.b``."""
    published: Pair | None = None
    """The published run's vectors of the same two; None on a first run."""


def evaluate(
    held_out: HeldOut,
    served: ServedUsers,
    twins: TwinTable,
    config: EvaluateConfig,
    *,
    earlier: EarlierLists | None = None,
    baselines: Mapping[str, Baseline] = BASELINES,
    on_method: OnMethod = lambda name: None,
) -> Evaluation:
    """Run tasks 1, 3 and 7.

    ``served`` are the users of the lists and ``twins`` their table, int32 [n_users, k], positions among them, -1 for
    none. ``earlier`` are yesterday's lists, for stability. ``on_method`` hears the name of each method before it runs.
    """
    pseudo = held_out.pseudo
    scores = score_methods(held_out, config, baselines, on_method) if pseudo.n_users else []
    on_method("lists")
    return Evaluation(
        split=split_name(config),
        users=pseudonyms(pseudo.a.user_ids, config.seed),
        train_users=held_out.train.n_users,
        scores=scores,
        buckets=_buckets(held_out, scores, config),
        health=list_health(served, twins, earlier, config.seed),
        vectors=vector_health(served.vectors, config.seed),
        pseudo_vectors=vector_health(np.concatenate([held_out.model_a, held_out.model_b]), config.seed),
        histogram=score_histogram(served.vectors, twins, config.seed),
    )


def score_methods(
    held_out: HeldOut, config: EvaluateConfig, baselines: Mapping[str, Baseline], on_method: OnMethod
) -> list[MethodScore]:
    """Model, published model, then the baselines in their order; each on both tasks, without and with CSLS."""
    pseudo = held_out.pseudo
    candidates = home_candidates(pseudo, held_out.vocabulary, config.seed)
    material = Material(held_out.train, held_out.vocabulary, pseudo.a, pseudo.b, config, config.seed)
    scores: list[MethodScore] = []
    on_method(MODEL)
    scores += _score(MODEL, (held_out.model_a, held_out.model_b), candidates, config)
    if held_out.published is not None:
        scores += _score(PUBLISHED, held_out.published, candidates, config)
    for name, baseline in baselines.items():
        on_method(name)
        scores += _score(name, baseline(material), candidates, config)
    return scores


def split_name(config: EvaluateConfig) -> str:
    """What decides who is held out, in words: runs that differ in it are not compared user by user."""
    return (
        f"seed={config.seed} share={config.holdout_share} max={config.max_holdout} "
        f"places>={config.min_places} half>={config.min_half}"
    )


def pseudonyms(user_ids: Iterable[object], seed: int) -> list[str]:
    """Hashes that pair the same user's results in two runs without keeping the id."""
    key = f"evaluation {seed}".encode()
    encoded = (str(user).encode("utf-8", "surrogatepass") for user in user_ids)
    return [hashlib.blake2b(user, digest_size=8, key=key).hexdigest() for user in encoded]


def _score(method: str, pair: Pair, candidates: npt.NDArray[np.int64], config: EvaluateConfig) -> list[MethodScore]:
    a, b = pair
    scores = []
    for neighbours in (0, CSLS_NEIGHBOURS):
        disjoint = true_twin_ranks(a, b, neighbours)
        matched = true_twin_ranks_among(a, b, candidates, neighbours)
        scores.append(_summary("disjoint", method, neighbours > 0, disjoint, config))
        scores.append(_summary("matched", method, neighbours > 0, matched, config))
    return scores


def _summary(task: Task, method: str, csls: bool, ranks: Ranks, config: EvaluateConfig) -> MethodScore:
    measured = (reciprocal(ranks), hits(ranks, 10), hits(ranks, 100))
    mrr, recall_10, recall_100 = (bootstrap_mean(values, config.bootstrap, config.seed) for values in measured)
    return MethodScore(task, method, csls, mrr, recall_10, recall_100, [int(r) for r in ranks])


def _buckets(held_out: HeldOut, scores: list[MethodScore], config: EvaluateConfig) -> list[Bucket]:
    """MRR by the number of places the encoder saw (those of ~a), and by home region."""
    model = next((s for s in scores if s.task == "disjoint" and s.method == MODEL and s.csls), None)
    rivals = [s for s in scores if s.task == "disjoint" and s.method not in (MODEL, PUBLISHED)]
    if model is None or not rivals:
        return []
    ours = reciprocal(model.rank_array())
    theirs = reciprocal(max(rivals, key=lambda s: s.mrr.value).rank_array())
    pseudo = held_out.pseudo
    by_activity = [("activity", *bucket) for bucket in activity_buckets(pseudo.a.lengths())]
    by_region = [("region", *b) for b in region_buckets(pseudo.regions, list(held_out.vocabulary.region_codes))]
    return [
        Bucket(
            kind,  # type: ignore[arg-type]
            name,
            int(mask.sum()),
            bootstrap_mean(ours[mask], config.bootstrap, config.seed),
            bootstrap_mean(theirs[mask], config.bootstrap, config.seed),
        )
        for kind, name, mask in by_activity + by_region
    ]
