"""Attacks on what clients get: how well an attacker tells a visit, or who was learned from. 0.5 = not at all.

    OMP_NUM_THREADS=1 python benchmarks/attack.py [FOLDER] [--users 1000] [--pairs 300] [--models 6] [--noise 0]
        [--only WORD]
    OMP_NUM_THREADS=1 python benchmarks/attack.py --quick

FOLDER holds raw events; without it a synthetic town is made. Prints the AUC of each attack, with its 95 % bootstrap
interval over users, by kind of answers; each kind also holds those before it, but the raw score, which no client gets.
`--noise` measures a remedy: noise on everybody's vector, and what it costs in the utility of the lists. All answers are
made by the product's functions, in memory. Explained in docs/explanation/privacy.md.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Final

from attacks.accounts import Game, Knowledge, ask
from attacks.diffs import new_favor, new_user, whole_knowledge
from attacks.figures import Trial
from attacks.membership import shadows
from attacks.sentences import betrays, common_categories, nameable, sentences
from attacks.service import Service, blurred, material, open_service
from tastetwin.analysis.evidence import EvidenceRules
from tastetwin.config import Config
from tastetwin.engine import connect
from tastetwin.evaluation.dataset import Dataset, load_dataset
from tastetwin.evaluation.utility import cut_in_time, ndcg_and_recall, twins_places
from tastetwin.features.histories import Histories
from tastetwin.model.train import train
from tastetwin.sources.synthetic import write_town
from tastetwin.sources.synthetic_world import TownConfig

PROMISED: Final = 0.55
SEED: Final = 1
TAKEN: Final[Game] = "favored or taken out"
MATCHED: Final[Game] = "favored or not"
VOTERS: Final = 50
A_DAY: Final = 0.01
"""Share of all favors that a day brings."""


def trials(service: Service, histories: Histories, pairs: int, models: int) -> dict[str, Callable[[], Trial]]:
    """Every attack by name, the cheapest first."""

    def accounts(knowledge: Knowledge, game: Game, number: int = pairs) -> Callable[[], Trial]:
        return lambda: ask(service, histories, knowledge, game, number, SEED)

    trained = functools.cache(functools.partial(shadows, service, histories, models, SEED))
    few = max(20, pairs // 3)
    return {
        **{
            f"accounts: {known} known places, {game}": accounts(Knowledge(known), game)
            for game in (TAKEN, MATCHED)
            for known in (3, 5, 10)
        },
        f"accounts: all places but one, {TAKEN}": accounts(Knowledge(None), TAKEN),
        f"accounts: 10 known, 5 accounts for the evidence, {TAKEN}": accounts(Knowledge(10, 5), TAKEN),
        f"accounts: a place of under 10 visitors, 10 accounts, {TAKEN}": accounts(Knowledge(10, 10, True), TAKEN, few),
        "diffs: one favor, next day": lambda: new_favor(service, histories, pairs, A_DAY, SEED),
        "diffs: one favor, a week later": lambda: new_favor(service, histories, pairs, 7 * A_DAY, SEED),
        "diffs: one favor, all else known": lambda: whole_knowledge(service, histories, max(5, pairs // 15), SEED),
        "diffs: a history of somebody who is not shown": lambda: new_user(service, histories, pairs, A_DAY, SEED),
        "membership: features as they are (Shokri)": lambda: trained().as_they_are(),
        "membership: by user (Carlini)": lambda: trained().by_user(),
    }


def show(name: str, trial: Trial, seconds: float) -> None:
    """A line a kind; what is above the promise is marked."""
    print(f"\n{name}   ({len(trial.secret)} cases, {seconds:.0f} s)")
    for kind, found in trial.leaks().items():
        mark = "" if found.value <= PROMISED else f"   above {PROMISED}"
        print(f"  {kind:24} {found.value:.3f} [{found.low:.3f}, {found.high:.3f}]{mark}", flush=True)


def show_sentences(service: Service, histories: Histories) -> int:
    """Every sentence of the day; returns how many say what they must not."""
    sensitive = common_categories(histories, service.vocabulary, 2)
    answers = service.answers(histories, rules=EvidenceRules(sensitive_categories=sensitive))
    allowed = nameable(histories, service.vocabulary, sensitive)
    said = [sentence for _, _, sentence in sentences(answers)]
    bad = [sentence for sentence in said if betrays(sentence, allowed)]
    print(f"\nevidence: {len(said):,} sentences, categories {sorted(sensitive)} sensitive: {len(bad)} betray something")
    print("".join(f"  {sentence}\n" for sentence in bad[:10]), end="")
    return len(bad)


def show_cost(dataset: Dataset, config: Config, noise: float) -> None:
    """NDCG@20 of the places of twins, without and with noise."""
    future = cut_in_time(dataset)
    trained = train(future.past, dataset.vocabulary, config.train)
    vectors = trained.encode(future.past, config.train.max_length)
    without, with_it = (
        float(ndcg_and_recall(future, twins_places(future, blurred(vectors, future.past, size), VOTERS))[0].mean())
        for size in (0.0, noise)
    )
    print(f"noise {noise}: NDCG@20 of {VOTERS} twins' places {without:.4f} without, {with_it:.4f} with")


def lists_kept(service: Service, histories: Histories) -> float:
    """Share of everybody's twins that are the same without noise."""
    one, other = (each.answers(histories).twins for each in (service, replace(service, noise=0.0)))
    return float((one[:, :, None] == other[:, None, :]).any(axis=2).mean())


def main() -> None:
    """Every attack, then every sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="raw events; without it a town is made")
    parser.add_argument("--users", type=int, default=1_000, help="of the town")
    parser.add_argument("--date", type=date.fromisoformat, default=TownConfig().until, help="the logical date")
    parser.add_argument("--pairs", type=int, default=300, help="targets of each attack")
    parser.add_argument("--models", type=int, default=6, help="shadow models")
    parser.add_argument("--noise", type=float, default=0.0, help="length of the noise on a taste vector of length 1")
    parser.add_argument("--only", default="", help="attacks whose name holds this")
    parser.add_argument("--quick", action="store_true", help="few users, cases and models: a minute")
    options = parser.parse_args()
    if options.quick:
        options.users, options.pairs, options.models = 300, 20, 3
    config = Config()
    with tempfile.TemporaryDirectory() as aside:
        folder = options.folder or str(write_town(TownConfig(users=options.users), Path(aside) / "town").folder)
        dataset = load_dataset(connect(None, config.engine.partitions), folder, options.date, config)
    histories, vocabulary = material(dataset, config)
    service = replace(open_service(histories, vocabulary, config, options.date), noise=options.noise)
    print(
        f"{dataset.name}: {histories.n_users:,} users, {len(histories.places):,} places favored, noise {options.noise}"
    )
    if options.noise:
        print(f"{lists_kept(service, histories):.3f} of twins are the same without noise")
        show_cost(dataset, config, options.noise)
    for name, attack in trials(service, histories, options.pairs, options.models).items():
        if options.only in name:
            began = time.perf_counter()
            trial = attack()
            show(name, trial, time.perf_counter() - began)
    if options.only in "evidence" and show_sentences(service, histories):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
