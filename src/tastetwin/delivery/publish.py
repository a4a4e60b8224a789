"""Which run readers see: publish, promote, roll back; and which old generations may go."""

from __future__ import annotations

from dataclasses import replace

from tastetwin.config import Config
from tastetwin.delivery.pack import remove_packs
from tastetwin.errors import UsageError
from tastetwin.generations import FOLDERS, MANIFEST, STAGES, Stage, is_finished, read_manifest
from tastetwin.runs import Published, Run, list_runs, publish, published, read_run, rollback, write_run
from tastetwin.store import Store


def publish_run(store: Store, run: Run, config: Config) -> Published:
    """Point readers at a delivered run, then remove generations that no kept run needs."""
    pointer = publish(store, run.run_id)
    prune(store, config.deliver.keep_runs)
    return pointer


def promote_run(store: Store, run_id: str) -> Published:
    """Point readers at any delivered run that is still kept.

    Raises:
        UsageError: UNKNOWN-RUN; NOT-DELIVERED when the run was refused, failed, or its tables are gone.
    """
    run = read_run(store, run_id)
    if not _is_complete(store, run_id):
        raise UsageError(
            "NOT-DELIVERED",
            place=f"run {run_id}",
            value=run.status,
            rule="only a delivered run whose tables are kept can be published",
            fix="see: tastetwin runs",
        )
    write_run(store, replace(run, error=None))  # what it waited for, if it did
    return publish(store, run_id)


def roll_back(store: Store) -> Published:
    """Point readers at the run they saw before.

    Raises:
        UsageError: NO-PREVIOUS when none is kept.
    """
    return rollback(store, lambda run_id: _is_complete(store, run_id))


def _is_complete(store: Store, run_id: str) -> bool:
    run = read_run(store, run_id)
    return run.status == "delivered" and all(
        stage in run.stages and is_finished(store, stage, run.stages[stage].generation) for stage in STAGES
    )


def prune(store: Store, keep_runs: int) -> list[str]:
    """Remove generations that neither the newest runs nor the published ones need; returns their folders.

    The lake is never pruned. A generation goes manifest first, so that a half-removed one exists for nobody.
    """
    runs = _kept_runs(store, keep_runs)
    kept = {(stage, run.stages[stage].generation) for run in runs.values() for stage in STAGES if stage in run.stages}
    files = {path for stage, generation in kept for path in _files(store, stage, generation)}
    removed = remove_packs(store, runs)
    for stage in STAGES[1:]:
        for generation in store.names(FOLDERS[stage]):
            folder = f"{FOLDERS[stage]}/{generation}"
            if (stage, generation) in kept or any(path.startswith(f"{folder}/") for path in files):
                continue
            store.remove(f"{folder}/{MANIFEST}")
            store.remove(folder)
            removed.append(folder)
    return removed


def _kept_runs(store: Store, keep_runs: int) -> dict[str, Run]:
    runs = list_runs(store)
    pointer = published(store)
    shown = set() if pointer is None else {pointer.run_id, *pointer.previous[-keep_runs:]}
    kept = [run for place, run in enumerate(runs) if run.run_id in shown or place >= len(runs) - keep_runs]
    return {run.run_id: run for run in kept}


def _files(store: Store, stage: Stage, generation: str) -> list[str]:
    if not is_finished(store, stage, generation):
        return []
    manifest = read_manifest(store, stage, generation)
    return [entry.path for entries in manifest.tables.values() for entry in entries]
