"""The order of a blue-green deployment, and the way back from anywhere in it.

``model``, ``app``, ``switch``, ``check``, ``remove-app``, ``remove-model``. A step looks at what is there and does
what is missing, so a command that was killed is simply given again; nothing is kept here of what was done.
"""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from http.client import HTTPException
from typing import Final, Protocol, TypeVar

from prometheus_client.parser import text_string_to_metric_families

from tastetwin.config import DeployConfig
from tastetwin.deploy.golden import Golden, check_gateway, check_model
from tastetwin.errors import GateRefused, StoreError, TasteTwinError, UsageError
from tastetwin.runs import Run, read_run
from tastetwin.store import Store

STEPS: Final = ("model", "app", "switch", "check", "remove-app", "remove-model")
TRIES: Final = 3
"""Of golden queries: what is wrong stays wrong, a busy machine or somebody who leaves meanwhile does not."""
PAUSE: Final = 1.0
T = TypeVar("T")


@dataclass(frozen=True)
class Standing:
    """What runs, and where traffic goes."""

    live: str | None
    """Run that requests reach."""
    previous: str | None
    """Run that they reached before."""
    models: dict[str, bool]
    """Run -> whether its model is ready."""
    apps: dict[str, bool]
    """Run -> whether its gateway and app are ready."""
    balancer: bool
    """Whether there is something in front."""


class Target(Protocol):
    """Where runs are deployed. What is asked for and is so already takes no time."""

    def standing(self) -> Standing:
        """What is so now, as those who run it say."""

    def start_model(self, run: Run) -> None:
        """Returns once it is ready."""

    def start_app(self, run: Run) -> None:
        """Gateway and app, pinned to the run; returns once they are ready. The model is up."""

    def point(self, run_id: str, previous: str | None) -> None:
        """Send requests to a run that is up, and note which one they went to before."""

    def stop_app(self, run_id: str) -> None:
        """When what it was asked is answered."""

    def stop_model(self, run_id: str) -> None:
        """The run's app is gone."""

    def model(self, run_id: str) -> AbstractContextManager[str]:
        """Where its backend is asked."""

    def gateway(self, run_id: str) -> AbstractContextManager[str]:
        """Where its gateway is asked."""

    def front(self) -> AbstractContextManager[str]:
        """Where everybody asks."""

    def key(self) -> str:
        """Of all gateways; scopes twins and embed."""

    def metrics(self, run_id: str) -> list[str]:
        """``/metrics`` of each of its gateways."""


class Deployment:
    """One run on its way to one target."""

    def __init__(
        self, target: Target, store: Store, run: Run, config: DeployConfig, tell: Callable[[str], None]
    ) -> None:
        """Nothing is done yet.

        Args:
            target: where to.
            store: holds the run.
            run: analysed and delivered.
            config: how long to wait, how many golden queries.
            tell: hears what was done.
        """
        self._target, self._store, self.run, self._config, self._tell = target, store, run, config, tell

    def step(self, name: str) -> None:
        """One of ``STEPS``, or ``rollback``.

        Raises:
            UsageError: DEPLOY-ORDER where an earlier step is missing.
            GateRefused: DEPLOY-GOLDEN, DEPLOY-ERRORS.
            StoreError: DEPLOY-NOT-READY, DEPLOY-TOOL; of the store.
        """
        getattr(self, name.replace("-", "_"))()
        self._tell(f"{name} {self.run.run_id}: done")

    def all_steps(self) -> None:
        """All ``STEPS``; where one fails, ``rollback``.

        Raises:
            TasteTwinError: what failed, after the way back.
        """
        for name in STEPS:
            try:
                self.step(name)
            except Exception as error:
                self._tell(f"{name} {self.run.run_id}: {error}")
                self._try_to_roll_back()
                raise

    def _try_to_roll_back(self) -> None:
        """What went wrong first is what is told last."""
        try:
            self.step("rollback")
        except TasteTwinError as error:
            self._tell(f"rollback {self.run.run_id}: {error}")

    # -- the steps ----------------------------------------------------------------------------------------------------

    def model(self) -> None:
        """The run's model beside the one that answers.

        Raises:
            UsageError: NOT-DELIVERED where the gate refused the run, or it never came so far.
        """
        if self.run.status != "delivered":
            raise UsageError(
                "NOT-DELIVERED",
                place=f"run {self.run.run_id}",
                value=self.run.status,
                rule="only a delivered run is served",
                fix="see: tastetwin runs",
            )
        self._start_model(self.run)

    def app(self) -> None:
        """The run's gateway and app beside those that answer."""
        self._need("model", self.run.run_id in self._target.standing().models)
        self._start_app(self.run)

    def switch(self) -> None:
        """Requests to the run."""
        now, run_id = self._target.standing(), self.run.run_id
        self._need("app", now.apps.get(run_id, False))
        previous = now.previous if now.live in (None, run_id) else now.live
        self._target.point(run_id, None if previous == run_id else previous)

    def check(self) -> None:
        """Golden queries the way everybody asks, and what became of everybody's requests meanwhile."""
        self._need("switch", self._target.standing().live == self.run.run_id)
        golden = Golden.of(self._store, self.run, self._config.golden)
        before, until = self._answered(), time.monotonic() + self._config.check_seconds
        with self._target.front() as url:
            while True:
                _insist(lambda: check_gateway(url, self._target.key(), golden))  # a switch may take a moment
                if (left := until - time.monotonic()) <= 0:
                    break
                time.sleep(min(PAUSE, left))  # ours are counted too: without a pause they would hide what fails
        requests, failed = (now - past for now, past in zip(self._answered(), before, strict=True))
        if failed > self._config.max_errors * requests:
            raise GateRefused(
                "DEPLOY-ERRORS",
                place=f"run {self.run.run_id}",
                value=f"{failed:.0f} of {requests:.0f} requests",
                rule=f"at most {self._config.max_errors:.2%} fail (deploy.max_errors)",
                fix="see the gateways' logs",
            )

    def remove_app(self) -> None:
        """All gateways and apps but the run's."""
        now = self._target.standing()
        self._need("switch", now.live == self.run.run_id)
        for other in set(now.apps) - {self.run.run_id}:
            self._target.stop_app(other)

    def remove_model(self) -> None:
        """All models but the run's."""
        now = self._target.standing()
        self._need("remove-app", now.live == self.run.run_id and set(now.apps) <= {self.run.run_id})
        for other in set(now.models) - {self.run.run_id}:
            self._target.stop_model(other)

    def rollback(self) -> None:
        """Requests to the run that had them before, which is started again if it is gone; then nothing of this one.

        Raises:
            UsageError: NO-PREVIOUS where there is none: an answer is better than none, so all stays.
        """
        now, run_id = self._target.standing(), self.run.run_id
        if now.live == run_id:
            back = self._before(now)
            self._start_model(back)
            self._start_app(back)
            self._target.point(back.run_id, None)
        elif now.live is not None:  # once more: whoever went this way before may have been killed on it
            self._target.point(now.live, now.previous if now.previous not in (run_id, now.live) else None)
        self._target.stop_app(run_id)
        self._target.stop_model(run_id)

    def _before(self, now: Standing) -> Run:
        if now.previous is None:
            raise UsageError(
                "NO-PREVIOUS",
                place=f"run {self.run.run_id}",
                value="nothing to go back to",
                rule="another run was served before",
                fix="it goes on answering; deploy another run",
            )
        return read_run(self._store, now.previous)

    # -- what they share ----------------------------------------------------------------------------------------------

    def _start_model(self, run: Run) -> None:
        golden = Golden.of(self._store, run, self._config.golden)
        self._target.start_model(run)
        with self._target.model(run.run_id) as url:
            lowest = _insist(lambda: check_model(url, golden))
        self._tell(f"model {run.run_id}: {len(golden.users)} golden vectors, cosine at least {lowest:.5f}")

    def _start_app(self, run: Run) -> None:
        golden = Golden.of(self._store, run, self._config.golden)
        self._target.start_app(run)
        with self._target.gateway(run.run_id) as url:
            compared = _insist(lambda: check_gateway(url, self._target.key(), golden))
        self._tell(f"app {run.run_id}: {compared} golden lists as published")

    def _answered(self) -> tuple[float, float]:
        """Requests to the run's gateways so far, and how many of them failed by our fault."""
        requests = failed = 0.0
        for text in self._target.metrics(self.run.run_id):
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    if sample.name == "tastetwin_requests_total" and sample.labels["route"] != "/readyz":
                        requests += sample.value
                        failed += sample.value if sample.labels["status"].startswith("5") else 0
        return requests, failed

    def _need(self, step: str, done: bool) -> None:
        if not done:
            raise UsageError(
                "DEPLOY-ORDER",
                place=f"run {self.run.run_id}",
                value=f"'{step}' is not done",
                rule="steps in order: " + ", ".join(STEPS),
                fix=f"tastetwin deploy {step}",
            )


def read_metrics(url: str) -> str:
    """For a ``Target``: ``/metrics`` of one gateway.

    Raises:
        StoreError: DEPLOY-NOT-READY.
    """
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as said:  # nosec B310  # http: of a target
            return str(said.read().decode())
    except (OSError, HTTPException) as error:
        fix = "see its log"
        raise StoreError("DEPLOY-NOT-READY", place=url, value=str(error), rule="it answers", fix=fix) from error


def _insist(check: Callable[[], T]) -> T:
    """What a check gives; only the last of ``TRIES`` may fail."""
    for _ in range(TRIES - 1):
        try:
            return check()
        except TasteTwinError:
            time.sleep(PAUSE)
    return check()
