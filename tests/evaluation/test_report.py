"""The report: one file, no request, nothing from outside runs in it."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from markupsafe import escape

from tastetwin.evaluation.gate import judge
from tastetwin.evaluation.measures import Limit, Measure
from tastetwin.evaluation.report import Example, ExampleTwin, Funnel, ReportData, render
from tastetwin.evaluation.tasks import MATCHED_OTHERS
from tests.evaluation.planted import CONFIG, evaluated, model_run

HOSTILE = "<script>alert('x')</script>\"'><img src=http://evil.example/a.png onerror=alert(1)>&{{7*7}}"


def _data(text: str = "u1") -> ReportData:
    evaluation = evaluated(model_run(seed=3, noise=1.2), baselines=("popularity", "category x region"))
    before = evaluated(model_run(seed=1, noise=0.3))
    return ReportData(
        run_id=text,
        logical_date="2026-01-31",
        version="0.1.0",
        evaluation=evaluation,
        verdict=judge(evaluation, before, CONFIG),
        funnel=Funnel(1000, 990, 10, 500, 480, 470, {text: 7}, {"RATING-ABSURD": 3}),
        examples=[Example(text, 12, text, [ExampleTwin(1, text, 0.91, 99.8, text)])],
        durations={"train": 12.5, text: 100.0},
        settings={"train": {"note": text}},
        published_run=text,
        published=before,
    )


class _Elements(HTMLParser):
    """Collects what a browser would build."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _parse(page: str) -> _Elements:
    elements = _Elements()
    elements.feed(page)
    return elements


def test_hostile_text_stays_text_in_every_field() -> None:
    """Ids, reasons and regions come from the source: anybody can choose them."""
    page = render(_data(HOSTILE), CONFIG)
    elements = _parse(page)
    assert not {"script", "img", "iframe", "object", "link"} & set(elements.tags)
    assert not [name for name, _ in elements.attributes if name.startswith("on")]
    assert "&lt;script&gt;" in page and "{{7*7}}" in page
    assert "http://evil" not in "".join(str(value) for _, value in elements.attributes)


def test_the_page_asks_nobody_for_anything() -> None:
    """It must open from disk, without network, and tell no third party that it was opened."""
    page = render(_data(), CONFIG)
    elements = _parse(page)
    assert elements.open == []
    assert not [a for a in elements.attributes if a[0] in ("src", "href", "srcset", "action")]
    assert not re.search(r"url\(|@import", page)
    assert "default-src 'none'" in page


def test_the_page_shows_what_a_reader_came_for() -> None:
    """Verdict, funnel, methods, comparison, examples, durations, configuration."""
    data = _data()
    page = render(data, CONFIG)
    model = data.evaluation.model()
    assert model is not None
    for text in (
        "Refused",
        "WORSE-THAN-PUBLISHED",
        f"{model.mrr.value:.3f}",
        "category x region",
        "RATING-ABSURD",
        "Matched twin test",
        "1 min 40 s",
        "note: u1",
        "published u1",
        "published model",
    ):
        assert text in page, text


def test_a_first_run_without_held_out_users_still_has_a_report() -> None:
    """The smallest town: no scores, no buckets, nothing published, no examples."""
    data = _data()
    bare = replace(data.evaluation, scores=[], buckets=[], users=[])
    page = render(
        replace(
            data,
            evaluation=bare,
            verdict=judge(bare, None, CONFIG),
            published=None,
            published_run=None,
            examples=[],
            durations={},
            funnel=Funnel(0, 0, 0, 0, 0, 0),
        ),
        CONFIG,
    )
    assert "first run" in page and "Fit to publish, with warnings" in page
    assert _parse(page).open == []


def test_the_same_data_gives_the_same_page() -> None:
    """A re-run of a date gives the same bytes."""
    assert render(_data(), CONFIG) == render(_data(), CONFIG)


@pytest.mark.parametrize(
    "module", ["gate", "health", "metrics", "records", "report", "tasks", "evaluate", "measures", "drift"]
)
def test_evaluation_never_imports_the_model_or_the_engine(module: str) -> None:
    """Vectors are passed in, so that the stage runs where torch, onnxruntime and the engine are not."""
    import subprocess
    import sys

    heavy = "torch onnxruntime pyspark pysail faiss matplotlib pandas"
    code = f"import sys, tastetwin.evaluation.{module}; sys.exit(any(m in sys.modules for m in '{heavy}'.split()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_figure_with_a_limit_is_shown_beside_it() -> None:
    """A number without its limit asks every reader to know the gate by heart."""
    strict = judge(_data().evaluation, None, CONFIG.model_copy(update={"max_gini": 0.0}))
    data = replace(_data(), verdict=strict)
    page = render(data, CONFIG)
    assert len(data.verdict.measures) > 15
    for each in data.verdict.measures:
        row = page[page.index(f"<tr><td>{escape(each.name)}</td>") :].split("</tr>")[0]
        assert escape(each.meaning[1:]) in row
        assert ("at least" in row or "at most" in row) == (each.limit is not None)
    assert page.count(">failed<") == 1 and page.count(">passed<") > 10
    assert "no run was published before" in page


def test_drift_has_a_card_of_its_own() -> None:
    """With the figure that does not pass marked; it is a warning."""
    limit = Limit("DRIFT-MIX", "warn", 0.25, "most", HOSTILE)
    measure = Measure("drift", "regions of the day's events", "number", 0.5, HOSTILE, limit)
    data = _data()
    page = render(replace(data, verdict=replace(data.verdict, measures=[*data.verdict.measures, measure])), CONFIG)
    assert ">look<" in page and "no run was published before" not in page
    assert "<script>" not in page


def test_with_few_held_out_the_page_says_that_both_tests_are_one() -> None:
    """Up to a hundred, everybody is among everybody's 99 others: two equal tables would look like two results."""
    data = replace(_data(), published=None, published_run=None)
    assert "the test above again" not in render(data, CONFIG)
    assert len(data.evaluation.users) > MATCHED_OTHERS + 1
    few = replace(data.evaluation, users=data.evaluation.users[: MATCHED_OTHERS + 1])
    assert render(replace(data, evaluation=few), CONFIG).count("Here only 100 are held out") == 1


def test_the_page_says_what_the_model_was_made_from() -> None:
    """Data, code and seed, for whoever looks into a run; runs of earlier versions did not note it."""
    assert "<h3>The model</h3>" not in render(_data(), CONFIG)
    page = render(replace(_data(), made_with={"data": "features 2026-01-31-abc", "seed": HOSTILE}), CONFIG)
    assert "features 2026-01-31-abc" in page and "<script>" not in page
