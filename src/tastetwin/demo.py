"""The demo: a synthetic town, the whole daily job on it, and what came out, on one screen."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tastetwin import console
from tastetwin.analysis.lookup import TwinLists
from tastetwin.evaluation.records import Evaluation, MethodScore
from tastetwin.evaluation.reports import report_path
from tastetwin.evaluation.stage import read_evaluation
from tastetwin.generations import read_manifest
from tastetwin.pipeline import run_day
from tastetwin.runs import Run
from tastetwin.settings import load
from tastetwin.sources.synthetic import TownConfig, write_town
from tastetwin.store import Store


def run_demo(folder: Path, users: int, seed: int) -> Run:
    """Write the town (once), run the job, show twins, evaluation and the report's path."""
    config = TownConfig(users=users, seed=seed)
    town = folder / f"town-{users}-{seed}"
    if not town.exists():
        folder.mkdir(parents=True, exist_ok=True)
        report = write_town(config, town)
        console.err.print(f"town: {report.events:,} events of {users:,} people, {report.bytes / 1e6:.1f} MB, in {town}")
    store = Store.create(folder / f"store-{users}-{seed}")
    with console.Reporting() as reporter:
        run = run_day(store, str(town), config.until, load(), reporter=reporter)
    lists = TwinLists(store, run)
    user = lists.some_users(1)[0]
    _show_twins(lists, user)
    _show_evaluation(read_evaluation(store, read_manifest(store, "evaluate", run.generation("evaluate"))))
    _show_next(store, run, user)
    return run


def _show_twins(lists: TwinLists, user: str) -> None:
    about = lists.about(user)
    title = f"\nThe ten closest twins of user {user} ({about.places} places, home area {about.home_region})"
    console.print_twins(title, lists.twins(user, 10))


def _show_evaluation(evaluation: Evaluation) -> None:
    best: dict[str, MethodScore] = {}
    for score in evaluation.scores:
        if score.task == "disjoint" and score.csls:
            best[score.method] = score
    ranked = sorted(best.values(), key=lambda score: -score.mrr.value)
    rows = [
        (
            score.method,
            f"{score.mrr.value:.3f}",
            f"{score.mrr.low:.3f} .. {score.mrr.high:.3f}",
            f"{score.recall_10.value:.2f}",
        )
        for score in ranked
    ]
    title = (
        "\nCan one half of a person's places find the other half?\n"
        f"({len(evaluation.users)} people kept out of training, no place in common)"
    )
    console.print_table(title, ["method", "MRR", "95 % interval", "recall@10"], rows)


def _show_next(store: Store, run: Run, user: str) -> None:
    report = _from_here(store.path(report_path(run.run_id)))
    console.out.print(f"\nReport (open it in a browser): {report}", markup=False)
    console.out.print(f"Next: {sys.argv[0]} similar {user} --store {_from_here(store.root)}", markup=False)


def _from_here(path: str) -> str:
    """As short as it can be typed in the current folder."""
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path
