"""A load test of a gateway: requests come when they come, whether or not earlier ones were answered.

Users do not wait for each other, so neither do these requests, and each one's time is counted from when it was due: a
server that stands still for a second makes everybody late who came in that second, and all of them are in the figures.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tastetwin.client.client import Client, GatewayError
from tastetwin.errors import UsageError

MAX_RATE: Final = 20_000.0
MAX_SECONDS: Final = 3_600.0
CONNECTIONS: Final = 1_000
BATCH: Final = 16
REFUSED: Final = ("429", "503")
Pick = Callable[[int], list[str]]
"""So many different users, by chance."""

QUESTIONS: Final[Mapping[str, Callable[[Client, Pick], Awaitable[Any]]]] = {
    "twins": lambda client, pick: client.twins(pick(1)[0]),
    "twins_batch": lambda client, pick: client.twins_batch(pick(BATCH)),
    "explain": lambda client, pick: client.explain(*pick(2)),
    "compare": lambda client, pick: client.compare(*pick(2)),
    "models": lambda client, pick: client.models(),
}


@dataclass(frozen=True)
class Plan:
    """What is asked, and how often.

    Raises:
        UsageError: LOAD-TEST.
    """

    users: Sequence[str]
    rate: float
    """Requests a second, on average; the gaps are exponential, as those of many independent users."""
    seconds: float
    mix: Mapping[str, float]
    """Weight of each of ``QUESTIONS``."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.rate <= MAX_RATE or not 0 < self.seconds <= MAX_SECONDS:
            raise _bad("rate or seconds", f"a rate up to {MAX_RATE:g} a second, for up to {MAX_SECONDS:g} seconds")
        if len(set(self.users)) < BATCH:
            raise _bad("users", f"{BATCH} different users or more")
        weights = self.mix.values()
        if not set(self.mix) <= set(QUESTIONS) or not all(0 <= each < math.inf for each in weights) or not any(weights):
            raise _bad("mix", f"NAME=WEIGHT of {', '.join(QUESTIONS)}, with a weight above 0")


@dataclass(frozen=True)
class Sample:
    """One request."""

    outcome: str
    """HTTP status; the error's code where there was no answer."""
    sent: float
    """Seconds between when it was due and when it was sent."""
    seconds: float
    """Between when it was due and its answer."""


@dataclass(frozen=True)
class Report:
    """What came of it. Milliseconds are of answers with status 200, from when the request was due."""

    rate: float
    achieved: float
    """Answers with status 200, a second, until the last answer."""
    requests: int
    outcomes: dict[str, int]
    refused: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    sent_late_p99_ms: float
    """That this program was behind: where it is not small, it and not the server was measured."""


async def load(url: str, key: str, plan: Plan, timeout: float) -> Report:
    """Ask ``url`` as planned; each request may take ``timeout`` seconds, and none is tried again."""
    rng = random.Random(plan.seed)
    loop = asyncio.get_running_loop()
    async with Client(url, key, timeout=timeout, retries=0, connections=CONNECTIONS) as client:
        began = loop.time()
        tasks = []
        for due in _arrivals(plan, rng):
            await asyncio.sleep(began + due - loop.time())
            name = rng.choices(list(plan.mix), list(plan.mix.values()))[0]
            question = QUESTIONS[name](client, lambda n: rng.sample(plan.users, n))
            tasks.append(asyncio.create_task(_timed(question, began + due)))
        samples = await asyncio.gather(*tasks)
        took = loop.time() - began
    return report(plan, samples, max(took, plan.seconds))


def _arrivals(plan: Plan, rng: random.Random) -> Iterator[float]:
    """When requests are due, in seconds from the beginning."""
    gaps = (rng.expovariate(plan.rate) for _ in itertools.count())
    return itertools.takewhile(lambda due: due < plan.seconds, itertools.accumulate(gaps))


async def _timed(question: Awaitable[Any], due: float) -> Sample:
    loop = asyncio.get_running_loop()
    sent = loop.time() - due
    try:
        await question
        outcome = "200"
    except GatewayError as error:
        outcome = str(error.status) if error.status else error.problem.code
    return Sample(outcome, sent, loop.time() - due)


def report(plan: Plan, samples: Sequence[Sample], took: float) -> Report:
    """The figures of requests that took so many seconds together."""
    outcomes = Counter(sample.outcome for sample in samples)
    good = sorted(sample.seconds for sample in samples if sample.outcome == "200")
    return Report(
        rate=plan.rate,
        achieved=len(good) / took,
        requests=len(samples),
        outcomes=dict(outcomes.most_common()),
        refused=sum(outcomes[status] for status in REFUSED),
        p50_ms=1e3 * quantile(good, 0.5),
        p95_ms=1e3 * quantile(good, 0.95),
        p99_ms=1e3 * quantile(good, 0.99),
        max_ms=1e3 * quantile(good, 1.0),
        sent_late_p99_ms=1e3 * quantile(sorted(sample.sent for sample in samples), 0.99),
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that so large a share does not exceed; not a number where there is none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def read_mix(text: str) -> dict[str, float]:
    """``twins=8,explain=1``.

    Raises:
        UsageError: LOAD-TEST.
    """
    try:
        return {name.strip(): float(weight) for name, weight in (each.split("=") for each in text.split(","))}
    except ValueError:
        raise _bad("mix", f"NAME=WEIGHT,NAME=WEIGHT of {', '.join(QUESTIONS)}") from None


def _bad(place: str, rule: str) -> UsageError:
    return UsageError("LOAD-TEST", place=place, rule=rule, fix="see: tastetwin bench-serve --help")
