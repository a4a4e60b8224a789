"""Write the Grafana dashboard: ``python deploy/monitoring/dashboard.py``. A test holds the file to this script.

Grafana's own SDK knows which fields there are. What a panel tells and what to do then is its description.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Final

from grafana_foundation_sdk.builders.common import ReduceDataOptions
from grafana_foundation_sdk.builders.dashboard import Dashboard, DatasourceVariable, Row, ThresholdsConfig
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.table import Panel as Table
from grafana_foundation_sdk.builders.timeseries import Panel as Series
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import BigValueTextMode, DataSourceRef
from grafana_foundation_sdk.models.dashboard import DataTransformerConfig, Threshold, ThresholdsMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FILE: Final = Path(__file__).parent / "dashboards" / "tastetwin.json"
SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
LISTS: Final = (
    "eligible users with a list|users in nobody's list|Gini of exposure|skew of exposure|twins who list each other|"
    "Jaccard@10 with the published lists"
)
FUNNEL: Final = "lines_read|accepted|favors|users|eligible|users_served|results"
RATE: Final = "$__rate_interval"


def query(expr: str, legend: str, *, instant: bool = False) -> Dataquery:
    """One PromQL expression."""
    made = Dataquery().expr(expr).legend_format(legend).datasource(SOURCE)
    return made.instant().format(PromQueryFormat.TABLE) if instant else made


def series(title: str, said: str, unit: str, *queries: tuple[str, str]) -> Series:
    """Lines over time."""
    panel = Series().title(title).description(said).unit(unit).min(0).height(8).span(8).datasource(SOURCE)
    for letter, (expr, legend) in zip("ABCDE", queries, strict=False):
        panel.with_target(query(expr, legend).ref_id(letter))
    return panel


def stat(title: str, said: str, unit: str, expr: str, *levels: tuple[float | None, str], legend: str = "") -> Stat:
    """One figure, coloured by the highest level that it reaches."""
    steps = [Threshold(value=value, color=color) for value, color in levels or ((None, "blue"),)]
    panel = Stat().title(title).description(said).unit(unit).height(4).span(4).datasource(SOURCE)
    panel.thresholds(ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
    panel.reduce_options(ReduceDataOptions().calcs(["lastNotNull"])).with_target(query(expr, legend).ref_id("A"))
    return panel.text_mode(BigValueTextMode.NAME) if legend else panel


def card() -> Table:
    """The health card: figure, limit, and whether it holds, a row each."""
    panel = (
        Table()
        .title("Health card of the newest run")
        .description("Every figure beside the gate's limit. One that does not pass is explained in the run's report.")
        .height(10)
        .span(24)
        .datasource(SOURCE)
        .with_transformation(DataTransformerConfig(id_val="merge", options={}))
    )
    for letter, expr in (
        ("A", 'max by (area, measure) (tastetwin_run_measure{run="newest"})'),
        ("B", 'max by (area, measure) (tastetwin_run_measure_limit{run="newest"})'),
        ("C", 'min by (area, measure) (tastetwin_run_measure_passed{run="newest"})'),
    ):
        panel.with_target(query(expr, "", instant=True).ref_id(letter))
    return panel


def daily() -> list[Any]:
    """What the runs have come to."""
    green_red = ((None, "red"), (1, "green"))
    return [
        stat(
            "Age of the data", "Since the end of the last day that readers' lists know. Above 30 h a day is late.", "s",
            'time() - tastetwin_run_data_until_timestamp_seconds{run="published"}',
            (None, "green"), (108_000, "red"),
        ),
        stat(
            "Newest run", "What became of it: tastetwin runs says why.", "none",
            'tastetwin_run_status{run="newest"} == 1', legend="{{status}}",
        ),
        stat(
            "Gate", "1: it lets the newest run be published. 0: read the run's report.", "none",
            'tastetwin_run_gate_passed{run="newest"}', *green_red,
        ),
        stat(
            "Since published", "Time since readers got other lists, by a run, a promotion or a rollback.", "s",
            "time() - tastetwin_published_timestamp_seconds",
        ),
        stat(
            "Room for runs", "Further runs of this size that the store's disk holds. Below 3: make room.", "none",
            "tastetwin:store_free:runs", (None, "red"), (3, "green"),
        ),
        stat("Opt-outs", "Users who are shown to nobody. A jump is somebody's campaign, or a mistake.", "none",
             "tastetwin_opt_outs"),
        series("Funnel of the newest run", "Lines to lists. A step that falls alone is where to look.", "short",
               (f'tastetwin_run_funnel{{run="newest",step=~"{FUNNEL}"}}', "{{step}}")),
        series("Refused lines", "Share of the day's lines, and why. Tell whoever sends them.", "percentunit",
               ('run:tastetwin_run_quarantined_lines:ratio{run="newest"}', "all"),
               ('tastetwin_run_quarantined_lines{run="newest"} / on (job, instance) group_left '
                'sum by (job, instance) (tastetwin_run_funnel{run="newest",step="lines_read"})', "{{reason}}")),
        series("Stages", "How long each took last. One that grows faster than the data will be late one day.", "s",
               ("tastetwin_run_stage_seconds", "{{stage}}")),
        series("Since each stage ended well", "The first stage that is older than the others is where the chain stops.",
               "s", ("time() - tastetwin_run_stage_success_timestamp_seconds", "{{stage}}")),
        series("Health of the published lists", "Whom they reach. A jump without a change of ours is one of the data.",
               "none", (f'tastetwin_run_measure{{run="published",measure=~"{LISTS}"}}', "{{measure}}")),
        series("Quality", "Model over best baseline, and over the published model, both asked today. Below 1: look.",
               "none", ('run_task:tastetwin_run_mrr:ratio_to_baseline{run="newest"}', "to baseline, {{task}}"),
               ('run_task:tastetwin_run_mrr:ratio_to_published{run="newest"}', "to published, {{task}}")),
        series("Mean reciprocal rank", "Of the true twin of held-out users, by method. It falls as the town grows.",
               "none", ('tastetwin_run_mrr_ratio{run="newest",task="disjoint",csls="true"}', "{{method}}")),
        series("Findings of the gate", "broken and refuse stop a run, warn does not.", "none",
               ('tastetwin_run_gate_findings{run="newest"}', "{{severity}}")),
        series("Bytes of the published run", "By stage. deliver.keep_runs of them are kept.", "bytes",
               ('tastetwin_run_bytes{run="published"}', "{{stage}}"), ("tastetwin_store_free_bytes", "free")),
        card(),
    ]  # fmt: skip


def serving() -> list[Any]:
    """Backend, gateway and app."""
    return [
        series("Answers", "By tier and status. 4xx are the callers' mistakes.", "reqps",
               ("sum by (job, status) (job_route_status:tastetwin_requests:rate5m)", "{{job}} {{status}}")),
        series("Errors", "Share of 5xx. Above 0.001 somebody is woken; if it began with a deployment, roll back.",
               "percentunit", ("job:tastetwin_requests_errors:ratio_rate5m", "{{job}}")),
        series("Refused", "By code: see docs/reference/errors.md. HTTP-BUSY is overload.", "reqps",
               (f"sum by (job, reason) (rate(tastetwin_refused_total[{RATE}]))", "{{job}} {{reason}}")),
        series("Latency, p99", "By route. The promise for twins is 50 ms; see how full backends' batches are.", "s",
               ("job_route:tastetwin_request_seconds:p99_5m", "{{job}} {{route}}")),
        series("Latency, p50", "By route. If it rises with the p99, everything is slow: the machine, or the model.",
               "s", ("job_route:tastetwin_request_seconds:p50_5m", "{{job}} {{route}}")),
        series("Under way", "Requests being worked on. A plateau is a limit.", "none",
               ("sum by (job) (tastetwin_requests_in_flight)", "{{job}}")),
        series("Cache hits", "Share of vectors that no model was asked for. It falls after a new bundle.",
               "percentunit", ("job:tastetwin_gateway_outputs_hits:ratio_rate1h", "{{job}}"),
               (f"sum by (job) (rate(tastetwin_gateway_outputs_failures_total[{RATE}]))", "{{job}} failures/s")),
        series("Stale and unread",
               "Lists without the latest favors, people whose favors wait for a model, and histories it refuses.",
               "none", (f"sum by (job) (increase(tastetwin_gateway_stale_answers_total[{RATE}]))", "{{job}} stale"),
               ("max by (job) (tastetwin_gateway_unread_people)", "{{job}} unread"),
               ("max by (job) (tastetwin_gateway_refused_people)", "{{job}} refused")),
        series("People with favors since the run", "By version held. It falls to nothing when a new run takes over.",
               "none", ("max by (version) (tastetwin_gateway_fresh_people)", "{{version}}"),
               ("sum by (job) (tastetwin_gateway_fresh_damaged_total)", "{{job}} damaged records")),
        series("Age of the opt-outs", "Above 5 s a gateway shows nobody.", "s",
               ("max by (job, instance) (tastetwin_gateway_opt_outs_age_seconds)", "{{job}} {{instance}}")),
        series("Models ready", "Versions that each backend has ready, and that it has loaded. 0 everywhere: no model.",
               "none", ("min by (job, backend) (tastetwin_gateway_backend_versions_ready)", "{{job}} {{backend}}"),
               ("tastetwin_backend_models", "{{instance}} loaded")),
        series("Breaker", "0 closed, 1 half open, 2 open: this backend is left alone for a second.", "none",
               ("max by (job, backend) (tastetwin_gateway_backend_breaker)", "{{job}} {{backend}}")),
        series("Calls of backends", "By outcome, and how many were tried again.", "reqps",
               (f"sum by (backend, outcome) (rate(tastetwin_gateway_backend_calls_total[{RATE}]))",
                "{{backend}} {{outcome}}"),
               (f"sum by (result) (rate(tastetwin_gateway_backend_retries_total[{RATE}]))", "retry {{result}}")),
        series("Seconds of a call, p99", "As gateways see it, and within the backend: the difference is the network.",
               "s", ("histogram_quantile(0.99, sum by (backend, le) "
                     f"(rate(tastetwin_gateway_backend_seconds_bucket[{RATE}])))", "{{backend}}"),
               ("job:tastetwin_backend_seconds:p99_5m", "within {{job}}")),
        series("Model", "Histories that wait, and in a call. Calls that are full while histories wait: add backends.",
               "none", ("sum by (job) (tastetwin_backend_queue_rows)", "{{job}} waiting"),
               (f"sum by (job) (rate(tastetwin_backend_batch_rows_sum[{RATE}])) "
                f"/ sum by (job) (rate(tastetwin_backend_batch_rows_count[{RATE}]))", "{{job}} in a call")),
        series("Work of the model", "Favors and padding computed; answers by outcome.", "cps",
               (f"sum by (job) (rate(tastetwin_backend_favors_total[{RATE}]))", "{{job}} favors"),
               (f"sum by (job) (rate(tastetwin_backend_padding_total[{RATE}]))", "{{job}} padding"),
               (f"sum by (job, outcome) (rate(tastetwin_backend_requests_total[{RATE}]))", "{{job}} {{outcome}}")),
        series("Shadow", "Share of the list that a shadow version has too, and requests that only it failed.", "none",
               (f"sum by (version) (rate(tastetwin_gateway_shadow_overlap_sum[{RATE}])) "
                f"/ sum by (version) (rate(tastetwin_gateway_shadow_overlap_count[{RATE}]))", "{{version}} overlap"),
               (f"sum by (version) (rate(tastetwin_gateway_shadow_failures_total[{RATE}]))", "{{version}} failures/s")),
    ]  # fmt: skip


def events() -> list[Any]:
    """Kafka."""
    return [
        series("Oldest message", "How late what users do comes into their twins. Scale by this.", "s",
               ("max by (job) (tastetwin_events_oldest_seconds)", "{{job}}")),
        series("Lag", "Messages that wait, and partitions held.", "none",
               ("sum by (job) (tastetwin_events_lag_messages)", "{{job}} messages"),
               ("sum by (job) (tastetwin_events_partitions)", "{{job}} partitions")),
        series("Messages", "Taken and dead; lists sent.", "cps",
               (f"sum by (outcome) (rate(tastetwin_events_messages_total[{RATE}]))", "{{outcome}}"),
               (f"sum by (kind) (rate(tastetwin_events_updates_total[{RATE}]))", "sent: {{kind}}")),
        series("Dead letters", "By reason. Mend the cause, then tastetwin events replay.", "none",
               (f"sum by (reason) (increase(tastetwin_events_dead_total[{RATE}]))", "{{reason}}")),
        series("Asked again", "By the gateway's code. No event is lost by it.", "cps",
               (f"sum by (code) (rate(tastetwin_events_retries_total[{RATE}]))", "{{code}}")),
        series("Batches", "Seconds until all is confirmed (p99), and messages in one.", "none",
               ("histogram_quantile(0.99, sum by (le) "
                f"(rate(tastetwin_events_batch_seconds_bucket[{RATE}])))", "seconds"),
               (f"sum(rate(tastetwin_events_batch_size_sum[{RATE}])) "
                f"/ sum(rate(tastetwin_events_batch_size_count[{RATE}]))", "messages")),
    ]  # fmt: skip


def dashboard() -> str:
    """The whole, as Grafana imports it."""
    made = Dashboard("TasteTwin").uid("tastetwin").tags(["tastetwin"]).refresh("1m").time("now-7d", "now")
    made.description("Runs, serving, events. What to do: docs/how-to/monitoring.md")
    made.annotations([]).with_variable(DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    ids = itertools.count(1)
    for title, panels in (("The daily run", daily()), ("Serving", serving()), ("Events", events())):
        made.with_row(Row(title).id(next(ids)))
        for panel in panels:
            made.with_panel(panel.id(next(ids)))
    return JSONEncoder(sort_keys=True, indent=1).encode(made.build()) + "\n"


if __name__ == "__main__":
    FILE.write_text(dashboard(), encoding="utf-8")
