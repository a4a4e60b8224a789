"""The report of one run: one HTML file that opens from disk, holds everything it shows and asks nobody for anything."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import yaml

from tastetwin.analysis.chance import Chance
from tastetwin.config import EvaluateConfig
from tastetwin.errors import MissingExtra
from tastetwin.evaluation.gate import Verdict, ratio_to_best_baseline, ratio_to_published
from tastetwin.evaluation.metrics import Interval
from tastetwin.evaluation.records import MODEL, TASKS, Evaluation, MethodScore, Task
from tastetwin.evaluation.tasks import MATCHED_OTHERS
from tastetwin.privacy.opt_out import OptOuts, name_of

if TYPE_CHECKING:
    from jinja2 import Environment

TASK_TITLES: Final[dict[Task, str]] = {"disjoint": "Disjoint twin test", "matched": "Matched twin test"}
TASK_SENTENCES: Final[dict[Task, str]] = {
    "disjoint": "Each held-out user is cut in two by a random cut of the catalogue. One half must find the other among "
    "all second halves, with not one place in common: only taste and home area can help.",
    "matched": "As above, but among the 99 others nearest by region and activity (fewer where fewer are held out): "
    "geography earns little, taste decides.",
}


@dataclass(frozen=True)
class Funnel:
    """What became of the source's lines and users."""

    lines_read: int
    accepted: int
    quarantined: int
    users: int
    """Users with at least one favor."""
    eligible: int
    """Users with enough favors."""
    served: int
    """Users with a twin list."""
    quarantined_by_reason: Mapping[str, int] = field(default_factory=dict)
    nulled_by_reason: Mapping[str, int] = field(default_factory=dict)
    """Unusable optional values that became null."""


@dataclass(frozen=True)
class ExampleTwin:
    """One row of an example list."""

    rank: int
    user: str
    score: float
    percentile: float
    evidence: str
    """Why, in words."""


@dataclass(frozen=True)
class Example:
    """One user's twin list, for a reader's own judgement."""

    user: str
    places: int
    home_region: str
    twins: list[ExampleTwin]


@dataclass(frozen=True)
class ReportData:
    """Everything the report shows."""

    run_id: str
    logical_date: str
    version: str
    evaluation: Evaluation
    verdict: Verdict
    funnel: Funnel
    examples: list[Example]
    durations: Mapping[str, float]
    """Stage to seconds."""
    settings: Mapping[str, Any]
    """The whole configuration."""
    chance: Chance | None = None
    """What the scores of the lists are worth; None as of ``Chance.from_json``."""
    made_with: Mapping[str, str] = field(default_factory=dict)
    """What the model was made from and with, in words."""
    published_run: str | None = None
    published: Evaluation | None = None


def render(data: ReportData, config: EvaluateConfig) -> str:
    """The HTML document. Every value that came from outside is escaped.

    Raises:
        MissingExtra: without jinja2 (``tastetwin[report]``).
    """
    environment = _environment()
    evaluation = data.evaluation
    return environment.get_template("report.html.j2").render(
        data=data,
        evaluation=evaluation,
        health=evaluation.health,
        verdict=data.verdict,
        headline=_headline(data.verdict),
        model=evaluation.model(),
        to_baseline=ratio_to_best_baseline(evaluation, config) if evaluation.scores else None,
        to_published=ratio_to_published(evaluation, data.published, config) if data.published else None,
        tables=[_table(evaluation, task) for task in TASKS if evaluation.model(task)],
        buckets_most=max(
            [0.05, *(b.model.high for b in evaluation.buckets), *(b.baseline.high for b in evaluation.buckets)]
        ),
        comparison=_comparison(data) if data.published else [],
        settings=yaml.safe_dump(dict(data.settings), sort_keys=False, allow_unicode=True),
    )


def without_users(page: str, opt_outs: OptOuts) -> str:
    """A rendered report without the example lists of users who opted out, and without them in the lists of others.

    Ranks count up from 1: a gap would tell that somebody was there.
    """

    def kept(found: re.Match[str]) -> str:
        return "" if found["name"] in opt_outs.names else found[0]

    def ranked(found: re.Match[str]) -> str:
        ranks = itertools.count(1)
        return _RANK.sub(lambda rank: f"{rank['before']}{next(ranks)}", found[0])

    return _OF_A_USER.sub(ranked, _OF_A_TWIN.sub(kept, _OF_A_USER.sub(kept, page)))


def without_examples(page: str) -> str:
    """A rendered report without any example list, so that it names nobody."""
    return _OF_A_USER.sub("", page)


_OF_A_USER: Final = re.compile(r'<details[^>]* data-user="(?P<name>\w+)">.*?</details>\n?', re.DOTALL)
_RANK: Final = re.compile(r'(?P<before><tr data-user="\w+"><td class="num soft">)\d+')
_OF_A_TWIN: Final = re.compile(r'<tr data-user="(?P<name>\w+)">.*?</tr>\n?', re.DOTALL)


def _environment() -> Environment:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError:
        raise MissingExtra.of("jinja2", "report") from None
    from tastetwin.evaluation import plots

    environment = Environment(
        loader=PackageLoader("tastetwin.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": count,
        "percent": percent,
        "seconds": _seconds,
        "figure": _figure,
        "name": name_of,
        "value": lambda measure: _in_unit(measure.value, measure.unit),
        "threshold": lambda measure: _in_unit(measure.limit.threshold, measure.unit),
    }
    environment.globals |= {"plots": plots}
    return environment


def _figure(value: float) -> str:
    """A measure of any kind: a count in full, a share to four digits."""
    return count(int(value)) if float(value).is_integer() and abs(value) >= 1_000 else f"{value:.4g}"


def _in_unit(value: float, unit: str) -> str:
    if unit == "number":
        return f"{value:.2f}" if abs(value) >= 0.01 or value == 0 else f"{value:.0e}"
    return percent(value) if unit == "share" else count(value)


def _headline(verdict: Verdict) -> tuple[str, str]:
    """(css class, words) of the verdict."""
    if not verdict.publish:
        return "bad", "Broken" if verdict.findings[0].severity == "broken" else "Refused"
    return ("warn", "Fit to publish, with warnings") if verdict.findings else ("good", "Fit to publish")


@dataclass(frozen=True)
class _Row:
    """One method of a task's table."""

    plain: MethodScore
    csls: MethodScore

    @property
    def is_model(self) -> bool:
        return self.plain.method == MODEL


def _table(evaluation: Evaluation, task: Task) -> dict[str, Any]:
    """One task's rows, the best first: each method without and with CSLS."""
    plain = {s.method: s for s in evaluation.scores if s.task == task and not s.csls}
    csls = {s.method: s for s in evaluation.scores if s.task == task and s.csls}
    rows = sorted((_Row(plain[m], csls[m]) for m in plain), key=lambda row: -row.csls.mrr.value)
    most = max(0.01, *(row.csls.mrr.high for row in rows))
    sentence, held_out = TASK_SENTENCES[task], len(evaluation.users)
    if task == "matched" and held_out <= MATCHED_OTHERS + 1:
        sentence += f" Here only {held_out} are held out, so everybody ranks among all others: the test above again."
    return {"title": TASK_TITLES[task], "sentence": sentence, "rows": rows, "most": most}


def _comparison(data: ReportData) -> list[tuple[str, str, str]]:
    """(what, published, this run) for the measures one looks at from day to day."""
    now, before = data.evaluation, data.published
    assert before is not None
    rows = [
        ("users in the lists", count(before.health.users), count(now.health.users)),
        ("users served", count(before.health.served), count(now.health.served)),
        ("never shown", percent(before.health.never_shown), percent(now.health.never_shown)),
        ("Gini of exposure", f"{before.health.gini:.3f}", f"{now.health.gini:.3f}"),
        ("reciprocity", percent(before.health.reciprocity), percent(now.health.reciprocity)),
        ("effective rank of the vectors", f"{before.vectors.effective_rank:.1f}", f"{now.vectors.effective_rank:.1f}"),
    ]
    for task in TASKS:
        ours, theirs = now.model(task), before.model(task)
        if ours and theirs:
            rows.append((f"{TASK_TITLES[task]}, MRR", _with_interval(theirs.mrr), _with_interval(ours.mrr)))
    return rows


def _with_interval(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f}–{interval.high:.3f})"


def count(number: float) -> str:
    """A whole number with narrow no-break spaces, the SI's thousands separator."""
    return f"{number:,.0f}".replace(",", "\u202f")


def percent(share: float) -> str:
    """A share to a tenth of a per cent."""
    return f"{100 * share:.1f}\u202f%"


def _seconds(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"
