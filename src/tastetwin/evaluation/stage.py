"""evaluate: measure the run against baselines and the published run, ask the gate, write the report."""

from __future__ import annotations

import itertools
from dataclasses import asdict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tastetwin import __version__
from tastetwin.analysis.encode import open_encoder
from tastetwin.analysis.lookup import TwinLists
from tastetwin.analysis.stage import read_vectors
from tastetwin.config import Config, EvaluateConfig
from tastetwin.evaluation.evaluate import HeldOut, evaluate
from tastetwin.evaluation.gate import Finding, Verdict, judge, older_than
from tastetwin.evaluation.health import EarlierLists, ServedUsers
from tastetwin.evaluation.records import Evaluation, from_json, to_json
from tastetwin.evaluation.report import Example, ExampleTwin, Funnel, ReportData, render
from tastetwin.evaluation.tasks import PseudoUsers, disjoint_pairs, in_its_half
from tastetwin.features.histories import Vocabulary
from tastetwin.features.holdout import choose_holdout
from tastetwin.features.home import home_regions
from tastetwin.features.reread import reread
from tastetwin.features.stage import read_histories
from tastetwin.features.vocabulary import read_vocabulary
from tastetwin.progress import Progress, silent
from tastetwin.runs import Made, Manifest, Plan, Run, entry_of, make, published_or_none, read_manifest
from tastetwin.schema import TWINS, USER
from tastetwin.store import Store
from tastetwin.tables import read_table

EVALUATION = "evaluation.json"
RIVAL = "rival"
"""Among an evaluation's facts: the digest of the evaluation of the run that was published then."""


def evaluate_run(
    store: Store, run: Run, config: Config, *, again: bool = False, progress: Progress = silent
) -> Manifest:
    """Evaluate what ``run`` made, against the published run where there is one.

    Args:
        store: holds everything.
        run: its features, bundle and analysis are judged.
        config: section ``evaluate`` is used, but for who is held out: the bundle says whom training did not see.
        again: make it once more even if it is finished.
        progress: told methods done.
    """
    features = read_manifest(store, "features", run.generation("features"))
    bundle = read_manifest(store, "train", run.generation("train"))
    analysis = read_manifest(store, "analyze", run.generation("analyze"))
    rival = published_or_none(store)
    earlier = None if rival is None else read_manifest(store, "evaluate", rival.generation("evaluate"))
    rules = rules_of(bundle, config.evaluate)
    parents = {"features": features, "train": bundle, "analyze": analysis, "published": earlier}
    plan = Plan("evaluate", run.logical_date, parents, {"evaluate": rules.model_dump(mode="json")})

    def work(folder: str) -> Made:
        return _evaluate(store, run, plan, rules, config, folder, progress)

    return make(store, plan, work, again=again)


def _evaluate(
    store: Store, run: Run, plan: Plan, rules: EvaluateConfig, config: Config, folder: str, progress: Progress
) -> Made:
    features, bundle, analysis = (_given(plan, role) for role in ("features", "train", "analyze"))
    rival, earlier = published_or_none(store), plan.parents["published"]
    lists = None if rival is None else _earlier_lists(store, rival)
    done = itertools.count(1)
    served = _served(store, features, analysis)
    found = evaluate(
        _held_out(store, features, bundle, rival, rules, config.analyze.batch_tokens),
        served,
        _twin_table(store, analysis, served.histories.user_ids),
        rules,
        earlier=lists,
        on_method=lambda name: progress(next(done), None),
    )
    besides = [] if rival is None else list(older_than(rival.logical_date, run.logical_date))
    verdict = judge(found, None if earlier is None else read_evaluation(store, earlier), rules, besides)
    store.write_bytes(f"{folder}/{EVALUATION}", to_json(found))
    facts = {"counts": {"held_out": len(found.users)}, "verdict": asdict(verdict), RIVAL: earlier and earlier.digest()}
    return {"evaluation": [entry_of(store, f"{folder}/{EVALUATION}")]}, facts


def _given(plan: Plan, role: str) -> Manifest:
    manifest = plan.parents[role]
    assert manifest is not None
    return manifest


def read_evaluation(store: Store, manifest: Manifest) -> Evaluation:
    """What an evaluation found."""
    path = manifest.paths("evaluation")[0]
    with store.open_read(path) as handle:
        return from_json(handle.read(), store.path(path))


def _evaluation_of(store: Store, run: Run) -> Evaluation:
    return read_evaluation(store, read_manifest(store, "evaluate", run.generation("evaluate")))


def verdict_of(manifest: Manifest) -> Verdict:
    """What the gate said."""
    said = manifest.facts["verdict"]
    return Verdict(said["publish"], said["first_run"], [Finding(**finding) for finding in said["findings"]])


def rules_of(bundle: Manifest, config: EvaluateConfig) -> EvaluateConfig:
    """The settings, with the held-out users of the training: others would be users that the model has seen."""
    return config.model_copy(update=bundle.settings["holdout"])


def _held_out(
    store: Store, features: Manifest, bundle: Manifest, rival: Run | None, rules: EvaluateConfig, batch_tokens: int
) -> HeldOut:
    histories, _ = read_histories(store, features, bundle.settings["min_favors"])
    vocabulary = read_vocabulary(store, bundle.paths("vocabulary")[0])
    mask = choose_holdout(histories, rules, rules.seed)
    pseudo = disjoint_pairs(histories, mask, vocabulary, rules, rules.seed)
    trained_on = histories.select(np.flatnonzero(~mask))
    a, b = _vectors_of(store, bundle, pseudo, vocabulary, rules.seed, batch_tokens)
    published = None
    if rival is not None:
        its_bundle = read_manifest(store, "train", rival.generation("train"))
        published = _vectors_of(store, its_bundle, pseudo, vocabulary, rules.seed, batch_tokens)
    return HeldOut(trained_on, vocabulary, pseudo, a, b, published)


def _vectors_of(
    store: Store, bundle: Manifest, pseudo: PseudoUsers, vocabulary: Vocabulary, seed: int, batch_tokens: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """What a bundle's model makes of both halves, read by its own vocabulary."""
    encoder = open_encoder(store, bundle, batch_tokens)
    own = read_vocabulary(store, bundle.paths("vocabulary")[0])
    a, b = (
        encoder.encode(in_its_half(reread(half, vocabulary, own), own, seed, second))
        for half, second in ((pseudo.a, False), (pseudo.b, True))
    )
    return a, b


def _served(store: Store, features: Manifest, analysis: Manifest) -> ServedUsers:
    histories, _ = read_histories(store, features, analysis.settings["min_favors"])
    vocabulary = read_vocabulary(store, features.paths("vocabulary")[0])
    _, vectors = read_vectors(store, analysis.paths("vectors"))
    return ServedUsers(histories, home_regions(histories, vocabulary), vocabulary.region_codes, vectors)


def _twin_table(store: Store, analysis: Manifest, ids: npt.NDArray[np.object_]) -> npt.NDArray[np.int32]:
    """[n_users, k] positions in ``ids``, the analysis's users ascending; -1 for none, n_users for a stranger."""
    table = read_table(store, analysis, "twins", TWINS)
    known = pa.array(ids, pa.string())
    user, twin = (_positions(table.column(name), known) for name in (USER, "twin_idno"))
    lists = np.full((len(ids), analysis.settings["analyze"]["k"]), -1, np.int32)
    lists[user, table.column("rank").to_numpy() - 1] = twin
    return lists


def _positions(values: pa.ChunkedArray, known: pa.Array) -> npt.NDArray[np.int32]:
    found: npt.NDArray[np.int32] = pc.fill_null(pc.index_in(values, value_set=known), len(known)).to_numpy()
    return found


def _earlier_lists(store: Store, run: Run, depth: int = 10) -> EarlierLists:
    """The first ranks of the published lists."""
    analysis = read_manifest(store, "analyze", run.generation("analyze"))
    ids, _ = read_vectors(store, analysis.paths("vectors"))
    lists = _twin_table(store, analysis, ids)[:, :depth]
    names = np.append(ids, "")  # the last one answers for -1
    return EarlierLists(ids, names[lists])


def report_path(run_id: str) -> str:
    """Where a run's report is, relative to the store's root."""
    return f"reports/{run_id}.html"


def write_report(store: Store, run: Run, config: Config) -> str:
    """Render the report of an evaluated run; returns its path on the store's file system."""
    manifest = read_manifest(store, "evaluate", run.generation("evaluate"))
    rival = published_or_none(store)
    counts = {name: count for record in run.stages.values() for name, count in record.counts.items()}
    data = ReportData(
        run_id=run.run_id,
        logical_date=run.logical_date,
        version=__version__,
        evaluation=read_evaluation(store, manifest),
        verdict=verdict_of(manifest),
        funnel=_funnel(counts),
        examples=_examples(store, run),
        durations={stage: record.seconds for stage, record in run.stages.items()},
        settings=config.model_dump(mode="json", exclude={"engine": {"remote"}}),  # its URL may hold a token
        published_run=None if rival is None else rival.run_id,
        published=None if rival is None else _evaluation_of(store, rival),
    )
    store.write_bytes(report_path(run.run_id), render(data, config.evaluate).encode())
    return store.path(report_path(run.run_id))


def _funnel(counts: dict[str, int]) -> Funnel:
    def under(prefix: str) -> dict[str, int]:
        return {name.removeprefix(prefix): count for name, count in counts.items() if name.startswith(prefix)}

    return Funnel(
        lines_read=counts.get("lines_read", 0),
        accepted=counts.get("accepted", 0),
        quarantined=counts.get("quarantined", 0),
        users=counts.get("users", 0),
        eligible=counts.get("eligible", 0),
        served=counts.get("users_served", 0),
        quarantined_by_reason=under("quarantined."),
        nulled_by_reason=under("nulled."),
    )


def _examples(store: Store, run: Run, users: int = 3, k: int = 10) -> list[Example]:
    """The lists of a few users with ordinary histories, chosen by the hash of their ids."""
    lists = TwinLists(store, run)
    return [_example(lists, user, k) for user in lists.some_users(users)]


def _example(lists: TwinLists, user: str, k: int) -> Example:
    about = lists.about(user)
    twins = [
        ExampleTwin(twin.rank, twin.twin_idno, twin.score, twin.percentile, twin.evidence.sentence)
        for twin in lists.twins(user, k)
    ]
    return Example(user, about.places, about.home_region, twins)
