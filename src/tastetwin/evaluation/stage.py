"""evaluate: measure the run against baselines and the published run, ask the gate, write the report."""

from __future__ import annotations

import itertools
from dataclasses import asdict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tastetwin.analysis.encode import open_encoder
from tastetwin.analysis.stage import list_vectors
from tastetwin.analysis.stored import as_matrix, read_vectors, read_vectors_table
from tastetwin.config import Config, EvaluateConfig
from tastetwin.errors import StoreError
from tastetwin.evaluation.belonging import (
    PUBLISHED_USERS,
    SAMPLED_ENTRIES,
    SAMPLED_VECTORS,
    Data,
    Entries,
    data_since,
    lists_of_vectors,
    vectors_of_model,
)
from tastetwin.evaluation.drift import Vectors, drift
from tastetwin.evaluation.evaluate import HeldOut, evaluate
from tastetwin.evaluation.gate import Finding, Verdict, judge, older_than
from tastetwin.evaluation.health import EarlierLists, ServedUsers, drawn
from tastetwin.evaluation.intake import fate_of, mart_of, read_intake, unreadable
from tastetwin.evaluation.measures import Measure, read_measures
from tastetwin.evaluation.records import Evaluation, from_json, to_json
from tastetwin.evaluation.tasks import PseudoUsers, disjoint_pairs, in_its_half
from tastetwin.features.histories import Histories, Vocabulary
from tastetwin.features.holdout import choose_holdout, set_aside
from tastetwin.features.home import home_regions
from tastetwin.features.reread import reread
from tastetwin.features.stage import read_histories
from tastetwin.features.taste import HISTORY, from_arrow
from tastetwin.features.vocabulary import read_vocabulary
from tastetwin.generations import Made, Manifest, Plan, entry_of, make, read_manifest
from tastetwin.model.past import full_training
from tastetwin.progress import Progress, silent
from tastetwin.runs import Run, published_or_none
from tastetwin.schema import TWINS, USER
from tastetwin.store import Store
from tastetwin.tables import read_files, read_table

EVALUATION = "evaluation.json"
RIVAL = "rival"
"""Among an evaluation's facts: the digest of the evaluation of the run that was published then."""


def evaluate_run(
    store: Store, run: Run, config: Config, *, again: bool = False, progress: Progress = silent
) -> Manifest:
    """Evaluate what ``run`` made, against the published run where there is one.

    Section ``evaluate`` is used, but for who is held out: the bundle says whom training did not see. ``progress`` is
    told methods done.
    """
    features = read_manifest(store, "features", run.generation("features"))
    bundle = read_manifest(store, "train", run.generation("train"))
    analysis = read_manifest(store, "analyze", run.generation("analyze"))
    rival = published_or_none(store)
    earlier = None if rival is None else read_manifest(store, "evaluate", rival.generation("evaluate"))
    # With the held-out users of the training: others would be users that the model has seen.
    rules = config.evaluate.model_copy(update=bundle.settings["holdout"])
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
    served, stored, left_out = _served(store, features, analysis)
    entries = read_table(store, analysis, "twins", TWINS)
    found = evaluate(
        _held_out(store, features, bundle, rival, served.histories.user_ids, rules, config.analyze.batch_tokens),
        served,
        _twin_table(store, analysis, entries, served.histories.user_ids),
        rules,
        earlier=lists,
        on_method=lambda name: progress(next(done), None),
    )
    besides = [
        *vectors_of_model(*_encoded_again(store, bundle, served.histories, stored, rules.seed, config)),
        *lists_of_vectors(stored, _some_entries(entries, served.histories.user_ids, rules.seed)),
        *unreadable(mart_of(store, features)),
    ]
    moved: list[Measure] = []
    if rival is not None:
        before, today = _both_data(store, rival, features, served.histories, left_out, rules.seed)
        besides += older_than(rival.logical_date, features.logical_date)
        besides += data_since(before, today, _new_events(store, features), rules.min_users_to_published)
        vectors = _both_vectors(store, rival, bundle, before, served.histories, stored)
        fate = fate_of(mart_of(store, read_manifest(store, "features", rival.generation("features"))))
        moved = drift(read_intake(store, features), fate, before, today, vectors, rules)
    verdict = judge(found, None if earlier is None else read_evaluation(store, earlier), rules, besides, moved)
    store.write_bytes(f"{folder}/{EVALUATION}", to_json(found))
    facts = {
        "counts": {"held_out": len(found.users)},
        "verdict": asdict(verdict),
        "quality": [{key: each for key, each in asdict(score).items() if key != "ranks"} for score in found.scores],
        RIVAL: earlier and earlier.digest(),
    }
    return {"evaluation": [entry_of(store, f"{folder}/{EVALUATION}")]}, facts


def _given(plan: Plan, role: str) -> Manifest:
    manifest = plan.parents[role]
    assert manifest is not None
    return manifest


def read_evaluation(store: Store, manifest: Manifest) -> Evaluation:
    """What an evaluation found."""
    path = manifest.paths("evaluation")[0]
    return from_json(store.read_bytes(path), store.path(path))


def evaluation_of(store: Store, run: Run) -> Evaluation:
    """What the evaluation of a run found."""
    return read_evaluation(store, read_manifest(store, "evaluate", run.generation("evaluate")))


def verdict_of(manifest: Manifest) -> Verdict:
    """What the gate said."""
    said = manifest.facts["verdict"]
    findings, card = [Finding(**finding) for finding in said["findings"]], read_measures(said.get("measures", []))
    return Verdict(said["publish"], said["first_run"], findings, card)


def _held_out(
    store: Store,
    features: Manifest,
    bundle: Manifest,
    rival: Run | None,
    ids: npt.NDArray[np.object_],
    rules: EvaluateConfig,
    batch_tokens: int,
) -> HeldOut:
    """``ids``: who has a vector; nobody else is judged by, since they have opted out."""
    histories = read_histories(store, features, bundle.settings["min_favors"])
    histories = histories.select(_those(histories, ids))
    vocabulary = read_vocabulary(store, bundle.paths("vocabulary")[0])
    aside = set_aside(histories, full_training(bundle).aside_limit, rules.seed)
    mask = choose_holdout(histories, rules, rules.seed) & aside
    pseudo = disjoint_pairs(histories, mask, vocabulary, rules, rules.seed)
    trained_on = histories.select(np.flatnonzero(~aside))
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


def _served(
    store: Store, features: Manifest, analysis: Manifest
) -> tuple[ServedUsers, npt.NDArray[np.float32], npt.NDArray[np.object_]]:
    """The users of the lists, [n, dim] their vectors as stored, and the eligible users who had opted out."""
    everybody = read_histories(store, features, analysis.settings["min_favors"])
    vocabulary = read_vocabulary(store, features.paths("vocabulary")[0])
    ids, stored = read_vectors(store, analysis.paths("vectors"))
    with_vector = _those(everybody, ids)
    histories = everybody.select(with_vector)
    left_out = int(analysis.facts["counts"]["opted_out"])
    # Fewer than had opted out are missing where one of them was forgotten since.
    if not np.array_equal(ids, histories.user_ids) or everybody.n_users - histories.n_users > left_out:
        found = f"vectors of {len(ids)} users, {everybody.n_users} are eligible, {left_out} had opted out"
        raise _other_users(store, analysis, found)
    looked_at = list_vectors(store, analysis, stored)
    homes, rules = home_regions(histories, vocabulary), analysis.settings.get("lists", {})
    among = rules.get("region", "any")  # runs made before there were rules
    gone = np.delete(everybody.user_ids, with_vector)
    return ServedUsers(histories, homes, vocabulary.region_codes, looked_at, among), stored, gone


def _other_users(store: Store, analysis: Manifest, found: str) -> StoreError:
    return StoreError(
        "OTHER-USERS",
        place=store.path(analysis.folder),
        value=found,
        rule="vectors and lists are those of the day's eligible users",
        fix=f"tastetwin analyze --store ... --date {analysis.logical_date}",
    )


def _twin_table(
    store: Store, analysis: Manifest, entries: pa.Table, ids: npt.NDArray[np.object_]
) -> npt.NDArray[np.int32]:
    """[n_users, k] positions in ``ids``, the analysis's users ascending; -1 for none, n_users for a stranger.

    Raises:
        StoreError: OTHER-USERS when a stranger has a list.
    """
    known = pa.array(ids, pa.string())
    user, twin = (_positions(entries.column(name), known) for name in (USER, "twin_idno"))
    if (user == len(ids)).any():
        raise _other_users(store, analysis, "lists of users without a vector")
    lists = np.full((len(ids), analysis.settings["analyze"]["k"]), -1, np.int32)
    lists[user, entries.column("rank").to_numpy() - 1] = twin
    return lists


def _encoded_again(
    store: Store,
    bundle: Manifest,
    histories: Histories,
    stored: npt.NDArray[np.float32],
    seed: int,
    config: Config,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """[m, dim] stored vectors of a sample of users, and what the bundle makes of their histories now."""
    some = drawn(np.arange(histories.n_users), seed, SAMPLED_VECTORS)
    encoder = open_encoder(store, bundle, config.analyze.batch_tokens)
    return stored[some], encoder.encode(histories.select(some))


def _some_entries(entries: pa.Table, ids: npt.NDArray[np.object_], seed: int) -> Entries:
    """A sample of list entries that say how similar the two are and point at somebody."""
    said = entries.take(pa.array(drawn(np.arange(entries.num_rows), seed, SAMPLED_ENTRIES)))
    known = pa.array(ids, pa.string())
    user, twin = (_positions(said.column(name), known) for name in (USER, "twin_idno"))
    similarity = pc.add(said.column("taste"), said.column("home"))
    usable = (twin < len(ids)) & pc.is_valid(similarity).to_numpy()
    return Entries(user[usable], twin[usable], similarity.to_numpy()[usable])


def _both_data(
    store: Store, rival: Run, features: Manifest, histories: Histories, left_out: npt.NDArray[np.object_], seed: int
) -> tuple[Data, Data]:
    """The published run's data, of a sample of its users, and today's; both without those ``left_out`` today."""
    then = read_manifest(store, "features", rival.generation("features"))
    analysis = read_manifest(store, "analyze", rival.generation("analyze"))
    some = _some_histories(store, then, analysis.settings["min_favors"], seed)
    some = some.select(np.delete(np.arange(some.n_users), _those(some, left_out)))
    return _data(store, then, some), _data(store, features, histories)


def _both_vectors(
    store: Store, rival: Run, bundle: Manifest, before: Data, histories: Histories, stored: npt.NDArray[np.float32]
) -> Vectors:
    """Stored vectors of the users of ``before`` whom both runs have; [n_users, dim] ``stored`` are today's."""
    analysis = read_manifest(store, "analyze", rival.generation("analyze"))
    wanted = [(USER, "in", before.histories.user_ids.tolist())]
    then = read_vectors_table(store, analysis.paths("vectors"), wanted)
    ids = np.array(then.column(USER).to_pylist(), dtype=object)
    _, theirs, ours = np.intersect1d(ids, histories.user_ids, return_indices=True)
    past = rival.generation("train")
    same_space = past == bundle.generation or (
        bundle.parents.get("past") == past and bundle.facts.get("likeness_to_past") is not None
    )
    return Vectors(as_matrix(then)[theirs], stored[ours], same_space)


def _data(store: Store, features: Manifest, histories: Histories) -> Data:
    vocabulary = read_vocabulary(store, features.paths("vocabulary")[0])
    return Data(features.logical_date, features.digest(), histories, vocabulary)


def _new_events(store: Store, features: Manifest) -> int:
    kinds = mart_of(store, features).facts["kinds"]
    return sum(kinds.get(kind, {}).get("accepted", 0) for kind in ("reviews", "likes"))


def _some_histories(store: Store, features: Manifest, min_favors: int, seed: int) -> Histories:
    """Those of a sample of the eligible users, from as few files as hold enough of them."""
    parts = [HISTORY.empty_table()]
    for path in features.paths("history"):
        table = read_files(store, [path], HISTORY)
        parts.append(table.filter(pc.greater_equal(pc.list_value_length(table.column("places")), min_favors)))
        if sum(part.num_rows for part in parts) >= PUBLISHED_USERS:
            break
    histories = from_arrow(pa.concat_tables(parts).combine_chunks())
    return histories.select(drawn(np.arange(histories.n_users), seed, PUBLISHED_USERS))


def _positions(values: pa.ChunkedArray, known: pa.Array) -> npt.NDArray[np.int32]:
    found: npt.NDArray[np.int32] = pc.fill_null(pc.index_in(values, value_set=known), len(known)).to_numpy()
    return found


def _those(histories: Histories, ids: npt.NDArray[np.object_]) -> npt.NDArray[np.int64]:
    """Positions of the given users in the histories."""
    names, known = (pa.array(each, pa.string()) for each in (histories.user_ids, ids))
    return np.flatnonzero(pc.is_in(names, value_set=known))


def _earlier_lists(store: Store, run: Run, depth: int = 10) -> EarlierLists:
    """The first ranks of the published lists."""
    analysis = read_manifest(store, "analyze", run.generation("analyze"))
    ids, _ = read_vectors(store, analysis.paths("vectors"))
    lists = _twin_table(store, analysis, read_table(store, analysis, "twins", TWINS), ids)[:, :depth]
    names = np.append(ids, "")  # the last one answers for -1
    return EarlierLists(ids, names[lists])
