"""deliver: the ``result`` table of a run that the gate lets through."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tastetwin.errors import UsageError
from tastetwin.evaluation.reports import report_path
from tastetwin.evaluation.stage import RIVAL, verdict_of
from tastetwin.features.histories import Vocabulary
from tastetwin.features.home import home_regions
from tastetwin.features.taste import HISTORY, from_arrow
from tastetwin.features.vocabulary import read_vocabulary
from tastetwin.generations import FileEntry, Made, Manifest, Plan, make, read_manifest
from tastetwin.privacy.opt_out import OptOuts, read_opt_outs
from tastetwin.progress import Progress, silent
from tastetwin.runs import Run, published_or_none
from tastetwin.schema import RESULT, TWINS, USER
from tastetwin.store import Store
from tastetwin.tables import put_table, read_files

_PAYLOAD = RESULT.field("payload").type
_TWIN = _PAYLOAD.field("twins").type.value_type


def deliver_run(store: Store, run: Run, *, again: bool = False, progress: Progress = silent) -> Manifest:
    """Make the ``result`` table of an evaluated run; nothing is published yet. ``progress`` is told users written.

    Raises:
        GateRefused: when the evaluation's verdict is against publishing.
        UsageError: OLD-VERDICT when another run has been published since the evaluation.
        StoreError: OPT-OUTS-DAMAGED.
    """
    evaluation = read_manifest(store, "evaluate", run.generation("evaluate"))
    verdict_of(evaluation).require(f"run {run.run_id}, report {store.url(report_path(run.run_id))}")
    _check_rival(store, run, evaluation)
    features = read_manifest(store, "features", run.generation("features"))
    analysis = read_manifest(store, "analyze", run.generation("analyze"))
    opt_outs = read_opt_outs(store)
    settings = {"opted_out": opt_outs.digest()}
    plan = Plan("deliver", run.logical_date, {"features": features, "analyze": analysis}, settings)
    return make(store, plan, lambda folder: _write(store, features, analysis, opt_outs, folder, progress), again=again)


def _write(
    store: Store, features: Manifest, analysis: Manifest, opt_outs: OptOuts, folder: str, progress: Progress
) -> Made:
    vocabulary = read_vocabulary(store, features.paths("vocabulary")[0])
    histories = {path.rsplit("/", 1)[-1]: path for path in features.paths("history")}
    written: list[FileEntry] = []
    users = 0
    for path in analysis.paths("twins"):
        name = path.rsplit("/", 1)[-1]
        twins = opt_outs.without(read_files(store, [path], TWINS), USER, "twin_idno")
        rows = _results(store, twins, histories[name], vocabulary, analysis.logical_date)
        written.append(put_table(store, f"{folder}/result/{name}", rows))
        users += rows.num_rows
        progress(users, None)
    return {"result": written}, {"counts": {"results": users}, "buckets": analysis.facts["buckets"]}


def _check_rival(store: Store, run: Run, evaluation: Manifest) -> None:
    """The verdict must be about the run that readers see now, or this would replace it unseen."""
    shown = published_or_none(store)
    rival = None if shown is None else read_manifest(store, "evaluate", shown.generation("evaluate")).digest()
    if rival not in (evaluation.facts.get(RIVAL), evaluation.digest()):
        raise UsageError(
            "OLD-VERDICT",
            place=f"run {run.run_id}",
            value="another run was published after its evaluation",
            rule="a run is judged against the published one",
            fix=f"tastetwin evaluate --store ... --date {run.logical_date}, then deliver",
        )


def _results(store: Store, rows: pa.Table, history_path: str, vocabulary: Vocabulary, day: str) -> pa.Table:
    """The result rows of one bucket of ``TWINS`` rows; users ascending."""
    twins = rows.sort_by([(USER, "ascending"), ("rank", "ascending")])
    ids = pc.unique(twins.column(USER))
    counts = pc.value_counts(twins.column(USER)).field("counts").to_numpy()
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    lists = pa.ListArray.from_arrays(offsets, _structs(twins.select([field.name for field in _TWIN]), _TWIN))
    history = read_files(store, [history_path], HISTORY)
    history = history.take(pc.index_in(ids, value_set=history.column(USER))).combine_chunks()
    home = home_regions(from_arrow(history), vocabulary)
    names = pa.array([*vocabulary.region_codes, None], pa.string())
    columns = {
        "logical_date": pa.array([day] * len(ids), pa.string()),
        "favors": history.column("favors"),
        "places": pc.list_value_length(history.column("places")).cast(pa.int32()),
        "home_region": names.take(pa.array(np.where(home < 0, len(names) - 1, home))),
        "twins": lists,
    }
    return pa.table([ids, _structs(pa.table(columns), _PAYLOAD)], schema=RESULT)


def _structs(table: pa.Table, kind: pa.StructType) -> pa.StructArray:
    arrays = [table.column(kind.field(at).name).combine_chunks() for at in range(kind.num_fields)]
    return pa.StructArray.from_arrays(arrays, fields=list(kind))
