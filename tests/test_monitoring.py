"""Rules and dashboard belong to the metrics that there are. What needs Prometheus itself: tests/platform."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from grafana_foundation_sdk.models.dashboard import Dashboard

from tastetwin.config import Config
from tastetwin.delivery.metrics import run_metrics
from tastetwin.serving.together import Home, all_tiers
from tests.test_docs import metrics_of_all_tiers
from tests.world import Journey

ROOT: Final = Path(__file__).parent.parent
FOLDER: Final = ROOT / "deploy" / "monitoring"
PAGE: Final = ROOT / "docs" / "how-to" / "monitoring.md"
RULES: Final = [
    rule
    for file in sorted(FOLDER.glob("rules/*.yaml"))
    for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
ALERTS: Final = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED: Final = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
ANCHORS: Final = {
    line.removeprefix("## ").strip().lower().replace(" ", "-").replace(",", "")
    for line in (FOLDER.parents[1] / "docs/how-to/runbooks.md").read_text().splitlines()
    if line.startswith("## ")
}
"""Of docs/how-to/runbooks.md."""
METRIC: Final = re.compile(r"\b(?<![\w:])tastetwin_\w+")
RECORD: Final = re.compile(r"\b\w+(?::\w+)+")
MATCHER: Final = re.compile(r'(\w+)=(~?)"([^"]*)"')


def panels() -> list[dict[str, Any]]:
    found = json.loads((FOLDER / "dashboards" / "tastetwin.json").read_text(encoding="utf-8"))["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def expressions() -> list[str]:
    shown = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [rule["expr"] for rule in RULES] + shown


def named(expression: str) -> set[str]:
    """Metrics of ours that an expression looks at; names in recorded ones aside."""
    return set(METRIC.findall(RECORD.sub("", expression)))


def test_what_prometheus_is_told_to_scrape_is_what_serve_starts(tmp_path: Path) -> None:
    """A target that nobody started wakes somebody for nothing; a tier that is not looked at wakes nobody."""
    jobs = yaml.safe_load((FOLDER / "prometheus.yaml").read_text(encoding="utf-8"))["scrape_configs"]
    scraped = {job["job_name"]: job["static_configs"][0]["targets"] for job in jobs if job["job_name"] != "node"}
    served = {}
    for tier in all_tiers("store", Home(tmp_path, None), Config(), None, 8101):
        words = list(tier.arguments)
        option = "--metrics-port" if "--metrics-port" in words else "--port"  # a backend has them on its own
        served[f"tastetwin-{tier.name}"] = [f"127.0.0.1:{words[words.index(option) + 1]}"]
    assert scraped == served


@pytest.fixture(scope="module")
def of_runs(journey: Journey) -> str:
    return run_metrics(journey.store).decode()


@pytest.fixture(scope="module")
def metrics(of_runs: str) -> set[str]:
    """Every metric that a process of ours tells, in all spellings."""
    return set(re.findall(r"^# TYPE (\w+)", of_runs, flags=re.MULTILINE)) | metrics_of_all_tiers()


def test_every_metric_that_a_rule_or_panel_names_exists(metrics: set[str]) -> None:
    """An alert on a metric that is not there never rings, and a panel stays empty."""
    asked = {name for each in expressions() for name in named(each)}
    assert len(asked) > 40 and asked <= metrics


def test_every_recorded_figure_that_is_asked_for_is_made() -> None:
    """A misspelt one is an empty panel."""
    asked = {name for each in expressions() for name in RECORD.findall(re.sub(r'"[^"]*"', "", each))}
    assert asked == set(RECORDED)


def test_every_metric_is_shown_somewhere_or_the_page_says_that_it_is_not(metrics: set[str]) -> None:
    """What nobody looks at is cost without use; whoever adds one says where it belongs."""
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for each in expressions() for name in named(each)}
    kinds = {re.sub(r"_(bucket|sum|count)$", "", name) for name in metrics if not name.endswith("_created")}
    unseen = sorted(kinds - shown)
    listed = PAGE.read_text(encoding="utf-8").partition("Shown nowhere")[2]
    assert [name for name in unseen if f"`{name}`" not in listed] == []


def test_labels_of_runs_that_expressions_ask_for_have_such_values(of_runs: str) -> None:
    """`measure="Gini"` would match nothing, for ever, without a word."""
    known: dict[str, set[str]] = {}
    for label, _, value in MATCHER.findall(of_runs):
        known.setdefault(label, set()).add(value)
    later = {"Jaccard@10 with the published lists", "published model"}  # not on a first run
    asked = [each for text in expressions() if "tastetwin_run_" in text for each in MATCHER.findall(text)]
    assert len(asked) > 20
    for label, pattern, value in asked:
        for each in value.split("|") if pattern else [value]:
            assert each in known[label] | later, (label, each)


def test_nobody_is_named_by_a_label(of_runs: str, journey: Journey) -> None:
    """Labels come from the code, so they are few and the same tomorrow."""
    labels = {label for label, _, _ in MATCHER.findall(of_runs)}
    assert labels == {
        "run", "run_id", "logical_date", "status", "stage", "step", "reason", "severity", "area", "measure", "at",
        "task", "method", "csls",
    }  # fmt: skip


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_how_grave_it_is_what_happened_and_what_to_do(name: str) -> None:
    """Somebody reads it at three in the morning."""
    said, labels = ALERTS[name]["annotations"], ALERTS[name]["labels"]
    assert labels["severity"] in ("critical", "warning")
    assert said["summary"] and said["description"].endswith(".")
    page, _, anchor = said["runbook_url"].partition("#")
    assert page == "docs/how-to/runbooks.md" and anchor in ANCHORS


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_is_tested_quiet_and_firing(name: str) -> None:
    """One that cannot fire is worse than none; `promtool test rules` carries them out."""
    cases = [
        sample["exp_samples"]
        for file in FOLDER.glob("tests/*.yaml")
        for case in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]
        if case["name"] == name
        for sample in case["promql_expr_test"]
        if f'alertname="{name}",alertstate="firing"' in sample["expr"]
    ]
    assert [] in cases and any(cases)


def test_the_page_has_every_alert_and_every_panel() -> None:
    """It is where one learns what they mean before they are needed."""
    text = PAGE.read_text(encoding="utf-8")
    assert not [name for name in ALERTS if f"`{name}`" not in text]
    assert not [panel["title"] for panel in panels() if f"| {panel['title']} |" not in text]


def test_the_dashboard_is_what_its_script_writes() -> None:
    """After a change of the script: python deploy/monitoring/dashboard.py."""
    spec = importlib.util.spec_from_file_location("dashboard", FOLDER / "dashboard.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (FOLDER / "dashboards" / "tastetwin.json").read_text(encoding="utf-8") == module.dashboard()


def test_grafana_s_own_model_knows_every_field_of_the_dashboard() -> None:
    """Grafana drops in silence what it does not know."""
    raw = json.loads((FOLDER / "dashboards" / "tastetwin.json").read_text(encoding="utf-8"))
    read = json.loads(json.dumps(Dashboard.from_json(raw).to_json(), default=lambda each: each.to_json()))
    assert set(leaves(raw)) <= set(leaves(read))
    assert raw["schemaVersion"] >= 41 and raw["uid"] == "tastetwin"


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """Paths of all values."""
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(each, f"{path}/{key}")
    else:
        yield path


def test_panels_have_ids_queries_a_source_and_lie_side_by_side() -> None:
    """Two panels of one id, or one on top of another, and Grafana shows one of them."""
    found = panels()
    assert len({panel["id"] for panel in found}) == len(found) > 30
    cells: set[tuple[int, int]] = set()
    for panel in found:
        assert panel["title"] and panel["description"].endswith(".") and panel["targets"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
        at = panel["gridPos"]
        own = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not own & cells and at["x"] + at["w"] <= 24
        cells |= own
