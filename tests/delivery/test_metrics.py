"""What runs tell Prometheus: true while the file lies there, for every state of a store, and nobody's name in it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from tastetwin.cli import app
from tastetwin.delivery.metrics import STATES, run_metrics
from tastetwin.privacy.opt_out import opt_out
from tastetwin.runs import Run, list_runs, write_run
from tastetwin.store import Store
from tests.world import Journey

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def told(store: Store) -> Series:
    families = text_string_to_metric_families(run_metrics(store).decode())
    return {(each.name, frozenset(each.labels.items())): each.value for one in families for each in one.samples}


def one(series: Series, name: str, **labels: str) -> float:
    return series[(f"tastetwin_{name}", frozenset(labels.items()))]


def names_of(series: Series) -> set[str]:
    return {name for name, _ in series}


def labels_of(series: Series, name: str) -> list[Mapping[str, str]]:
    return [dict(labels) for known, labels in series if known == f"tastetwin_{name}"]


def test_figures_are_those_of_the_run_s_record(journey: Journey) -> None:
    """Two places that count the same thing must say the same."""
    found, run = told(journey.store), journey.first
    assert one(found, "run_info", run="published", run_id=run.run_id, logical_date=run.logical_date) == 1
    counts = run.stages["mart"].counts
    assert one(found, "run_funnel", run="published", stage="mart", step="lines_read") == counts["lines_read"]
    refused = {each["reason"]: found[("tastetwin_run_quarantined_lines", frozenset(each.items()))]
               for each in labels_of(found, "run_quarantined_lines") if each["run"] == "published"}  # fmt: skip
    assert sum(refused.values()) == counts["quarantined"] > 0
    assert one(found, "run_stage_seconds", stage="train") == run.stages["train"].seconds
    assert one(found, "run_gate_passed", run="published") == 1


def test_moments_are_told_and_not_ages(journey: Journey) -> None:
    """The file lies there for a day: an age in it would stand still, and the alert with it."""
    found, run = told(journey.store), journey.first
    day = datetime.fromisoformat(run.logical_date).replace(tzinfo=UTC).timestamp()
    assert one(found, "run_data_until_timestamp_seconds", run="published") == day + 86_400
    started = datetime.fromisoformat(run.started_at).timestamp()
    for stage in run.stages:
        assert started - 1 <= one(found, "run_stage_success_timestamp_seconds", stage=stage)
        assert one(found, "run_stage_success_timestamp_seconds", stage=stage) <= datetime.now(UTC).timestamp()


def test_every_limit_of_the_card_is_told_with_its_figure(journey: Journey) -> None:
    """A dashboard that shows a figure without its limit leaves everybody to guess."""
    found = told(journey.store)
    limits, passed = (labels_of(found, f"run_measure_{what}") for what in ("limit", "passed"))
    figures = labels_of(found, "run_measure")
    assert len(figures) > 10
    for each in passed:
        assert each in figures and any(each.items() <= limit.items() for limit in limits)


def test_the_newest_run_is_told_of_however_it_ended(copied: Journey) -> None:
    """A run that failed leaves readers the one before: both are to be seen."""
    first = copied.first
    now = datetime.now(UTC).isoformat()
    write_run(copied.store, Run("2026-07-01.1", "2026-07-01", "failed", now, {"collect": first.stages["collect"]}))
    found = told(copied.store)
    assert [one(found, "run_status", run="newest", status=each) for each in STATES] == [
        float(each == "failed") for each in STATES
    ]
    assert one(found, "run_status", run="published", status="delivered") == 1
    assert {each["stage"] for each in labels_of(found, "run_funnel") if each["run"] == "newest"} == {"collect"}
    assert one(found, "run_stage_seconds", stage="train") == first.stages["train"].seconds


def test_a_store_without_a_run_and_without_a_publication_has_metrics(tmp_path: Path, copied: Journey) -> None:
    """The alert for a store in which nothing ever happened needs them most."""
    empty = told(Store.create(tmp_path / "empty"))
    assert "tastetwin_metrics_timestamp_seconds" in names_of(empty) and one(empty, "opt_outs") == 0
    copied.store.remove("published.json")
    found = told(copied.store)
    assert {each["run"] for each in labels_of(found, "run_status")} == {"newest"}


def test_a_run_of_an_earlier_version_has_no_moment_of_success(copied: Journey) -> None:
    """Records without it are still read; a wrong moment would be worse than none."""
    old = copied.store.read_json(f"runs/{copied.first.run_id}.json")
    for record in old["stages"].values():
        del record["finished_at"]
    copied.store.write_json(f"runs/{copied.first.run_id}.json", old)
    found = told(copied.store)
    assert not labels_of(found, "run_stage_success_timestamp_seconds")
    assert len(labels_of(found, "run_stage_seconds")) == 7


def test_what_was_pruned_is_passed_over(copied: Journey) -> None:
    """Monitoring must not fail because an old evaluation is gone."""
    copied.store.remove(f"evaluation/{copied.first.generation('evaluate')}")
    found = told(copied.store)
    assert not labels_of(found, "run_gate_passed") and labels_of(found, "run_funnel")


def test_opt_outs_are_counted_and_nobody_is_named(copied: Journey) -> None:
    """Metrics go to people who may not see users."""
    user = copied.tt.twins().column("user_idno")[0].as_py()
    opt_out(copied.store, [user, "somebody-else"])
    text = run_metrics(copied.store).decode()
    assert "tastetwin_opt_outs 2.0" in text
    assert f'"{user}"' not in text and "somebody-else" not in text


def test_a_file_is_replaced_whole_and_can_be_read_by_others(copied: Journey, tmp_path: Path) -> None:
    """Node exporter looks at any moment, as another user; half a file is a parse error for all of its metrics."""
    to = tmp_path / "tastetwin.prom"
    to.write_text("old")
    held = to.open()
    done = CliRunner().invoke(app, ["metrics", "--store", copied.store.root, "--output", str(to)])
    assert done.exit_code == 0 and done.stdout == ""
    assert held.read() == "old"
    assert to.read_text().startswith("# HELP") and to.stat().st_mode & 0o044 == 0o044
    assert [each.name for each in tmp_path.iterdir() if each.suffix == ".prom"] == ["tastetwin.prom"]
    printed = CliRunner().invoke(app, ["metrics", "--store", copied.store.root])
    assert names_of_text(printed.stdout) == names_of_text(to.read_text())


def names_of_text(text: str) -> set[str]:
    return {one.name for one in text_string_to_metric_families(text)}


def test_a_folder_that_is_not_there_is_refused_by_name(journey: Journey, tmp_path: Path) -> None:
    """The scheduler's log says which file."""
    done = CliRunner().invoke(app, ["metrics", "--store", journey.store.root, "--output", str(tmp_path / "no" / "f")])
    assert getattr(done.exception, "problem").code == "EXPORT-UNWRITABLE"  # noqa: B009


def test_nothing_is_written_into_the_store(copied: Journey) -> None:
    """It runs every five minutes beside a run that holds the store."""
    before = copied.store.files("")
    with copied.store.writing():
        run_metrics(Store.open(copied.store.root))
    assert copied.store.files("") == sorted({*before, ".lock"})
    assert len(list_runs(copied.store)) == 1
