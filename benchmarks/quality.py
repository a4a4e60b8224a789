"""Quality on data folders: disjoint and matched twin test, the baselines and the encoder side by side.

    python benchmarks/quality.py DATA_FOLDER... [--holdout 0.3] [--seed 1] [--epochs 6] [--layers 2]

Each DATA_FOLDER holds reviews / likes / places as JSON lines (.gz). All events count as favors, whatever their rating,
and every place has a row of its own, as in the protocol that the published figures of the baselines follow.
"""

from __future__ import annotations

import argparse
import gzip
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import torch

from tastetwin.config import EvaluateConfig, TrainConfig
from tastetwin.evaluation.baselines import Material, Pair, full_linear, fused_linear, region_histograms, svd, tuned_ials
from tastetwin.evaluation.metrics import bootstrap_mean, reciprocal, true_twin_ranks, true_twin_ranks_among
from tastetwin.evaluation.tasks import PseudoUsers, disjoint_pairs, matched_candidates
from tastetwin.features.histories import FIRST_PLACE_ROW, UNKNOWN_DAY, Histories, Vocabulary
from tastetwin.features.holdout import choose_holdout
from tastetwin.model.batches import length_buckets, pad
from tastetwin.model.encoder import Encoder
from tastetwin.model.train import tensors, train

CSLS = 10


def lines(folder: Path, kind: str) -> Iterator[dict[str, Any]]:
    """The objects of ``kind``*.jsonl.gz."""
    for path in sorted(folder.glob(f"{kind}*.jsonl.gz")):
        with gzip.open(path) as handle:
            yield from map(orjson.loads, handle)


def load(folder: Path) -> tuple[Histories, Vocabulary]:
    """Every event as a favor, every visited place as a row."""
    events = [
        (e["user_idno"], e["review_place_id"], e["review_visited_date"], e["review_rating"])
        for e in lines(folder, "reviews")
    ] + [(e["user_idno"], e["like_contentsid"], e["like_regymdt"], None) for e in lines(folder, "likes")]
    users, owner = np.unique(np.array([e[0] for e in events], str), return_inverse=True)
    places, place = np.unique(np.array([e[1] for e in events], str), return_inverse=True)
    days = np.array([np.datetime64(e[2][:10]).astype(int) if e[2] else UNKNOWN_DAY for e in events], np.int64)
    ratings = np.array([np.nan if e[3] is None else e[3] for e in events], float)
    known = np.isfinite(ratings)
    means = np.bincount(owner[known], ratings[known], len(users)) / np.maximum(
        np.bincount(owner[known], minlength=len(users)), 1
    )
    keys, pair, visits = np.unique(owner * len(places) + place, return_inverse=True, return_counts=True)
    last = np.full(len(keys), UNKNOWN_DAY, np.int64)
    np.maximum.at(last, pair, days)
    centred = np.where(known, ratings - means[owner], 0)
    rated = np.bincount(pair, known, len(keys))
    rating = np.where(rated > 0, np.bincount(pair, centred, len(keys)) / np.maximum(rated, 1), np.nan)
    order = np.lexsort((keys % len(places), last, keys // len(places)))
    counts = np.bincount(keys // len(places), minlength=len(users))
    histories = Histories(
        users.astype(object),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        (keys[order] % len(places) + FIRST_PLACE_ROW).astype(np.int32),
        visits[order].astype(np.float32),
        rating[order].astype(np.float32),
        last[order].astype(np.int32),
    )
    return histories, describe(folder, places)


def describe(folder: Path, places: npt.NDArray[np.str_]) -> Vocabulary:
    """Categories and regions of the visited places."""
    known = {p["place_id"]: p for p in lines(folder, "places")}
    lists = [[]] * FIRST_PLACE_ROW + [known.get(p, {}).get("place_category_code_list") or [] for p in places]
    regions = [None] * FIRST_PLACE_ROW + [known.get(p, {}).get("place_dongcode") for p in places]
    codes = sorted({c for one in lists for c in one})
    names = sorted({r for r in regions if r is not None})
    return Vocabulary(
        np.array([""] * FIRST_PLACE_ROW + list(places), object),
        np.zeros(len(lists), bool),
        np.concatenate([[0], np.cumsum([len(one) for one in lists])]).astype(np.int64),
        np.array([codes.index(c) for one in lists for c in one], np.int32),
        np.array([-1 if r is None else names.index(r) for r in regions], np.int32),
        np.array(codes, np.int64),
        np.array(names, object),
    )


def encode(encoder: Encoder, histories: Histories, max_length: int) -> npt.NDArray[np.float32]:
    """[n_users, dim] vectors by torch."""
    vectors = np.zeros((histories.n_users, int(encoder.projection.shape[1])), np.float32)
    with torch.no_grad():
        for users in length_buckets(histories.lengths(), 16_384, max_length):
            vectors[users] = encoder(*tensors(pad(histories, users, max_length))).numpy()
    return vectors


def report(name: str, pair: Pair, pseudo: PseudoUsers, candidates: npt.NDArray[np.int64]) -> None:
    """One row of the table."""
    disjoint = bootstrap_mean(reciprocal(true_twin_ranks(*pair, CSLS)), 1000, 1)
    plain = reciprocal(true_twin_ranks(*pair)).mean()
    matched = reciprocal(true_twin_ranks_among(*pair, candidates, CSLS)).mean()
    print(
        f"  {name:20s} {plain:.3f}   {disjoint.value:.3f} [{disjoint.low:.3f}, {disjoint.high:.3f}]   {matched:.3f}",
        flush=True,
    )


def run(folder: Path, evaluation: EvaluateConfig, config: TrainConfig) -> None:
    """Fit everything on the users not held out and print the table."""
    histories, vocabulary = load(folder)
    holdout = choose_holdout(histories, evaluation, evaluation.seed)
    pseudo = disjoint_pairs(histories, holdout, vocabulary, evaluation, evaluation.seed)
    whole = histories.select(np.flatnonzero(np.isin(histories.user_ids, pseudo.a.user_ids)))
    candidates = matched_candidates(pseudo, region_histograms(whole, vocabulary), evaluation.seed)
    learners = histories.select(np.flatnonzero(~holdout))
    material = Material(learners, vocabulary, pseudo.a, pseudo.b, evaluation, evaluation.seed)
    print(f"{folder.name}: {learners.n_users} training users, {pseudo.n_users} pairs, {vocabulary.n_rows} rows")
    print(f"  {'method':20s} MRR     MRR + CSLS (mean, low, high)   matched + CSLS")
    for name, baseline in (
        ("svd 64", svd(64)),
        ("tuned iALS", tuned_ials),
        ("fused linear", fused_linear),
        ("full linear", full_linear),
    ):
        report(name, baseline(material), pseudo, candidates)
    started = time.process_time(), time.perf_counter()
    trained = train(histories, vocabulary, config, np.flatnonzero(holdout))
    seconds = time.process_time() - started[0], time.perf_counter() - started[1]
    pair = encode(trained.encoder, pseudo.a, config.max_length), encode(trained.encoder, pseudo.b, config.max_length)
    report("encoder", pair, pseudo, candidates)
    print(f"  training: {seconds[0]:.0f} s CPU, {seconds[1]:.0f} s; gates {trained.record.gates}")


def main() -> None:
    """Parse arguments, run each folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--holdout", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=TrainConfig().epochs)
    parser.add_argument("--layers", type=int, default=TrainConfig().layers)
    arguments = parser.parse_args()
    evaluation = EvaluateConfig(holdout_share=arguments.holdout, max_holdout=10_000, seed=arguments.seed)
    config = TrainConfig(epochs=arguments.epochs, layers=arguments.layers, seed=arguments.seed)
    for folder in arguments.folders:
        run(folder, evaluation, config)


if __name__ == "__main__":
    main()
