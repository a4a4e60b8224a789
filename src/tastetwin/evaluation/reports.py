"""The reports of a store: written for each evaluated run, cleaned of who opts out."""

from __future__ import annotations

from typing import Final

from tastetwin import __version__
from tastetwin.analysis.chance import Chance
from tastetwin.analysis.lookup import TwinLists
from tastetwin.config import Config
from tastetwin.evaluation.report import Example, ExampleTwin, Funnel, ReportData, render, without_users
from tastetwin.evaluation.stage import evaluation_of, read_evaluation, verdict_of
from tastetwin.generations import Manifest, read_manifest
from tastetwin.model.past import full_training
from tastetwin.privacy.opt_out import OptOuts, read_opt_outs
from tastetwin.runs import Run, funnel, published_or_none
from tastetwin.store import Store, is_aside

EXAMPLES: Final = 3
SHOWN: Final = 10
"""Users whose lists a report shows, and twins of each."""
_NOT_SHOWN: Final = {"engine": {"remote"}, "tracking": {"mlflow"}, "gateway": {"outputs", "fresh"}, "app": {"state"}}
"""Settings that may hold a token or a password."""


def report_path(run_id: str) -> str:
    """Where a run's report is, relative to the store's root."""
    return f"reports/{run_id}.html"


def write_report(store: Store, run: Run, config: Config) -> str:
    """Render the report of an evaluated run; returns its path on the store's file system.

    Takes who has opted out from all others, too: of whom a gateway was told, no report was cleaned yet.
    """
    manifest = read_manifest(store, "evaluate", run.generation("evaluate"))
    lists, rival = TwinLists(store, run), published_or_none(store)
    data = ReportData(
        run_id=run.run_id,
        logical_date=run.logical_date,
        version=__version__,
        evaluation=read_evaluation(store, manifest),
        verdict=verdict_of(manifest),
        funnel=_funnel(funnel(run)),
        examples=[_example(lists, user) for user in lists.some_users(EXAMPLES)],
        durations={stage: record.seconds for stage, record in run.stages.items()},
        settings=config.model_dump(mode="json", exclude=_NOT_SHOWN),
        chance=Chance.from_json(lists.analysis.facts.get("chance")),
        made_with=_made_with(read_manifest(store, "train", run.generation("train"))),
        published_run=None if rival is None else rival.run_id,
        published=None if rival is None else evaluation_of(store, rival),
    )
    store.write_bytes(report_path(run.run_id), render(data, config.evaluate).encode())
    clean_reports(store)
    return store.url(report_path(run.run_id))


def clean_reports(store: Store) -> None:
    """Take users who have opted out from all reports of a store."""
    for path, page in cleaned_reports(store, read_opt_outs(store)).items():
        store.write_bytes(path, page)


def cleaned_reports(store: Store, people: OptOuts) -> dict[str, bytes]:
    """Path -> what is to stand there, of each report that names one of these people."""
    paths = [path for path in store.files("reports") if not is_aside(path.rpartition("/")[2])]
    pages = {path: store.read_bytes(path).decode() for path in paths}
    cleaned = {path: without_users(page, people) for path, page in pages.items()}
    return {path: page.encode() for path, page in cleaned.items() if page != pages[path]}


def _made_with(bundle: Manifest) -> dict[str, str]:
    """What a bundle says of its origin, in words; nothing of what earlier versions did not note."""
    said = bundle.provenance
    if not said:
        return {}
    code, machine = said["code"], said["machine"]
    return {
        "bundle": bundle.generation,
        "data": f"features {bundle.parents['features']}, sha256 {said['parents']['features'][:12]}",
        "seed": str(bundle.settings["train"]["seed"]),
        "learnt": _learnt(bundle),
        "code": f"{code['version']}, commit {(code['commit'] or 'none')[:12]}, sources {code['sources'][:12]}",
        "libraries": ", ".join(f"{name} {version}" for name, version in said["libraries"].items() if version),
        "machine": f"{machine['architecture']}, {machine['blas']}, threads {machine['threads']}",
    }


def _learnt(bundle: Manifest) -> str:
    full = full_training(bundle)
    since = "" if full.on == bundle.logical_date else f", carried on for {full.days_before(bundle.logical_date)} days"
    return f"in full on {full.on} ({full.because}){since}"


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


def _example(lists: TwinLists, user: str) -> Example:
    about = lists.about(user)
    twins = [
        ExampleTwin(twin.rank, twin.twin_idno, twin.score, twin.percentile, twin.evidence.sentence)
        for twin in lists.twins(user, SHOWN)
    ]
    return Example(user, about.places, about.home_region, twins)
