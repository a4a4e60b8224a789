"""What holds of every target; each target's tests are this class with a fixture of its own."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest

from tastetwin.deploy.steps import STEPS, Deployment, Standing
from tastetwin.errors import GateRefused, UsageError
from tastetwin.runs import Run
from tastetwin.store import Store


@dataclass(frozen=True)
class Place:
    """A target, and runs to put there."""

    store: Store
    old: Run
    new: Run
    bad: Run
    """Random weights behind a sound manifest."""
    target: Any
    """A ``Target``."""

    def command(self, *words: str) -> subprocess.Popen[str]:
        """``tastetwin deploy WORDS``; stderr is a pipe."""
        raise NotImplementedError

    def empty(self) -> None:
        """Take everything away."""
        raise NotImplementedError

    def deployment(self, run: Run) -> Deployment:
        """The same in this process."""
        return Deployment(self.target, self.store, run, self.target.config.deploy, lambda said: None)


@dataclass(frozen=True)
class Only:
    """How a target stands in which one run is served, and nothing else is there."""

    run: Run

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Standing)
        up = {self.run.run_id: True}
        return (other.live, other.models, other.apps, other.balancer) == (self.run.run_id, up, up, True)


def served(place: Place, run: Run) -> None:
    place.deployment(run).all_steps()
    assert Only(run) == place.target.standing()


class DeployContract:
    """Promises of ``tastetwin deploy``, whatever it deploys to."""

    back_from: ClassVar[Sequence[int]] = range(len(STEPS) + 1)
    """After how many steps the way back is tried; where each start takes seconds, fewer are."""
    killed_after: ClassVar[Sequence[str]] = STEPS

    def test_a_run_takes_the_place_of_another_step_by_step_and_each_step_says_so(self, place: Place) -> None:
        """Whoever looks in the middle must learn what is so; a step given twice is as good as once."""
        served(place, place.old)
        old, new = place.old.run_id, place.new.run_id
        deployment, seen = place.deployment(place.new), []
        for step in STEPS:
            deployment.step(step)
            once = place.target.standing()
            deployment.step(step)
            assert place.target.standing() == once
            seen.append((once.live, set(once.models), set(once.apps)))
        assert seen == [
            (old, {old, new}, {old}),
            (old, {old, new}, {old, new}),
            (new, {old, new}, {old, new}),
            (new, {old, new}, {old, new}),
            (new, {old, new}, {new}),
            (new, {new}, {new}),
        ]
        assert Only(place.new) == place.target.standing()
        assert place.target.standing().previous == old

    def test_the_way_back_leads_to_the_old_run_from_every_step(self, place: Place) -> None:
        """At night nobody wants to think about how far it had come."""
        served(place, place.old)
        for number in self.back_from:
            deployment = place.deployment(place.new)
            for step in STEPS[:number]:
                deployment.step(step)
            deployment.step("rollback")
            assert Only(place.old) == place.target.standing(), STEPS[:number]
            deployment.step("rollback")
            assert Only(place.old) == place.target.standing(), "and once more"

    def test_a_command_killed_after_any_step_is_given_again(self, place: Place) -> None:
        """kill -9, a lost node, a pod that is moved: the scheduler tries again, and the end is the same."""
        served(place, place.old)
        runs = [place.new, place.old]
        for number, step in enumerate(self.killed_after):
            run = runs[number % 2]
            killed = place.command("--run", run.run_id)
            assert killed.stderr is not None
            for line in killed.stderr:
                if re.match(f"{step} .*: done", line):
                    killed.send_signal(signal.SIGKILL)
                    break
            killed.wait(60)
            served(place, run)

    def test_a_spoilt_model_is_told_by_golden_queries_and_goes_back_by_itself(self, place: Place) -> None:
        """Its files are sound, so nothing but its answers can tell."""
        served(place, place.old)
        with pytest.raises(GateRefused, match="DEPLOY-GOLDEN"):
            place.deployment(place.bad).all_steps()
        assert Only(place.old) == place.target.standing()
        failed = place.command("--run", place.bad.run_id)
        said = failed.communicate(timeout=120)[1]
        assert failed.returncode == 5 and f"rollback {place.bad.run_id}: done" in said

    def test_steps_out_of_order_are_refused(self, place: Place) -> None:
        """A switch to what is not there would be an outage; so would the end of what answers."""
        served(place, place.old)
        for step in ("app", "switch", "check", "remove-app", "remove-model"):
            with pytest.raises(UsageError, match="DEPLOY-ORDER"):
                place.deployment(place.new).step(step)
        assert Only(place.old) == place.target.standing()

    def test_a_run_that_was_never_delivered_is_not_served(self, place: Place) -> None:
        """By its id alone, whatever the gate has said of it, a worse model would ship."""
        served(place, place.old)
        for status in ("refused", "running"):
            with pytest.raises(UsageError, match=f"NOT-DELIVERED.*{status}"):
                place.deployment(replace(place.new, status=status)).all_steps()
        assert Only(place.old) == place.target.standing()

    def test_the_first_run_has_nothing_to_go_back_to(self, place: Place) -> None:
        """What answers, alone, goes on answering."""
        place.empty()
        served(place, place.old)
        with pytest.raises(UsageError, match="NO-PREVIOUS"):
            place.deployment(place.old).step("rollback")
        assert Only(place.old) == place.target.standing()
