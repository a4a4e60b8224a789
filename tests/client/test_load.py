"""The load test: it does not wait, it counts everybody, and its figures can be checked by hand."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tastetwin.cli import app
from tastetwin.client.load import QUESTIONS, Plan, Report, Sample, load, quantile, read_mix, report
from tastetwin.errors import UsageError
from tests.serving.gateways import BUSY, KEY, Gateway, closed_port, listening

pytestmark = pytest.mark.slow

USERS = [f"u{at}" for at in range(20)]


def plan(**changes: Any) -> Plan:
    return Plan(**{"users": USERS, "rate": 100.0, "seconds": 0.5, "mix": {"twins": 1.0}, **changes})


def run(gateway: Gateway, timeout: float = 10.0, **changes: Any) -> Report:
    with listening(gateway):
        return asyncio.run(load(gateway.url, KEY, plan(**changes), timeout))


def people() -> dict[str, list[str]]:
    return {user: ["v1"] for user in USERS}


def test_requests_come_whether_or_not_earlier_ones_were_answered() -> None:
    """A closed loop would send one a second to a server that takes one, and find it fast."""
    gateway = Gateway(people=people(), seconds=1.0)
    found = run(gateway)
    assert found.requests == len(gateway.asked) > 20
    assert found.outcomes == {"200": found.requests}
    assert found.p50_ms >= 1_000.0


def test_the_same_seed_asks_the_same() -> None:
    """Two servers can be compared only if they are asked the same."""
    first, second = Gateway(people=people()), Gateway(people=people())
    for each in (first, second):
        run(each, mix={"twins": 3.0, "compare": 1.0})
    asked = [sorted(json.dumps([path, body]) for path, body, _ in each.asked) for each in (first, second)]
    assert asked[0] == asked[1] and len({path for path, _, _ in first.asked}) == 2


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_question_can_be_asked(name: str) -> None:
    """Also those that the default mix leaves out."""
    found = run(Gateway(people=people()), mix={name: 1.0}, seconds=0.1)
    assert set(found.outcomes) == {"200"}


def test_refusals_are_counted_once_and_not_among_the_times() -> None:
    """A refusal is quick; among the times it would make an overloaded server look fast."""
    gateway = Gateway(people=people(), always=BUSY)
    found = run(gateway)
    assert found.outcomes == {"503": len(gateway.asked)} and found.refused == len(gateway.asked)
    assert found.achieved == 0.0 and math.isnan(found.p50_ms)


def test_a_server_that_is_gone_or_too_slow_is_told_by_code() -> None:
    """Statuses alone would not have them."""
    assert set(run(Gateway(people=people(), seconds=5.0), timeout=0.1, seconds=0.1).outcomes) == {"GATEWAY-TIMEOUT"}
    gone = asyncio.run(load(closed_port(), KEY, plan(seconds=0.1), 5.0))
    assert set(gone.outcomes) == {"GATEWAY-UNREACHABLE"}


def test_figures_by_hand() -> None:
    """A hundred answers of 1 to 100 ms, two refusals, in two seconds."""
    samples = [Sample("200", 0.0, at / 1_000) for at in range(100, 0, -1)] + [Sample("503", 0.5, 9.0)] * 2
    found = report(plan(), samples, 2.0)
    assert (found.achieved, found.requests, found.refused) == (50.0, 102, 2)
    assert (found.p50_ms, found.p95_ms, found.p99_ms, found.max_ms) == (50.0, 95.0, 99.0, 100.0)
    assert found.sent_late_p99_ms == 500.0


def test_quantiles_are_values_that_were_there() -> None:
    """Of two answers, the median is the faster and the 99th of a hundred the slower one."""
    assert (quantile([1.0, 2.0], 0.5), quantile([1.0, 2.0], 0.99), quantile([3.0], 0.5)) == (1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    "change",
    [{"rate": 0.0}, {"rate": 1e9}, {"seconds": 0}, {"users": ["a"]}, {"mix": {"favors": 1.0}}, {"mix": {"twins": 0.0}},
     {"mix": {}}, {"rate": math.nan}, {"mix": {"twins": math.inf}}],
)  # fmt: skip
def test_a_plan_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    """Before anything is sent."""
    with pytest.raises(UsageError, match="LOAD-TEST"):
        plan(**change)


def test_the_mix_as_text() -> None:
    """As on the command line."""
    assert read_mix("twins=8, explain=1.5") == {"twins": 8.0, "explain": 1.5}
    with pytest.raises(UsageError, match="LOAD-TEST"):
        read_mix("twins")


def test_the_command(tmp_path: Path) -> None:
    """The whole of it: users from a file, key from a file, figures as JSON or as a table."""
    (tmp_path / "users").write_text("\n".join(USERS))
    (tmp_path / "key").write_text(f"{KEY}\n")
    with listening(Gateway(people=people())) as gateway:
        command = ["bench-serve", gateway.url, "--users", str(tmp_path / "users"), "--key", str(tmp_path / "key")]
        command += ["--rate", "100", "--seconds", "0.3", "--mix", "twins=1"]
        said = CliRunner().invoke(app, [*command, "--json"])
        table = CliRunner().invoke(app, command)
    figures = json.loads(said.stdout)
    assert figures["outcomes"] == {"200": figures["requests"]}
    assert table.exit_code == 0 and "p99" in table.stdout and "200: " in table.stdout


@pytest.mark.parametrize("more", [[], ["--users", "nowhere"], ["--users", "a", "--store", "b"]])
def test_without_users_there_is_no_test(more: list[str]) -> None:
    """Told before anything is sent."""
    said = CliRunner().invoke(app, ["bench-serve", "http://127.0.0.1:1", *more])
    assert isinstance(said.exception, UsageError) and said.exception.problem.code == "LOAD-TEST"
